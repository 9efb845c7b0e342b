//! Memory that only the start of a process needs. In: nothing. Out: released pages. Startup (the configuration parser,
//! certificates) leaves pages of the binary mapped that are not used afterwards. They stay in the page cache and are mapped
//! again one by one if they are needed after all.

use std::ffi::{c_int, c_void};

/// Releases free memory that the allocator still holds, such as after a burst of load.
pub fn trim() {
    // SAFETY: malloc_trim takes a number.
    unsafe { libc::malloc_trim(0) };
}

/// Resident memory of this process that is not shared: `resident` of proc_pid_statm(5), without file pages.
pub fn private_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.nth(1).unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

/// Releases pages that can be re-read from the binary, and free memory that the allocator still holds.
pub fn release_startup_pages() {
    // SAFETY: the records are valid during each call of the callback.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
    trim();
}

/// Called for the binary, the only object of a static program.
unsafe extern "C" fn release_object(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the record and its table of segments live as long as the program (dl_iterate_phdr(3)).
    let (base, headers) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    let page = rustix::param::page_size() as u64;
    for header in headers {
        // Writable segments have been relocated and differ from the file.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Complete pages within the segment: its edges may share a page with a writable segment.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if end > start {
            // SAFETY: a private mapping of a file that was never written to; the kernel reloads it at the next access
            // (madvise(2), MADV_DONTNEED).
            unsafe { libc::madvise(start as *mut c_void, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    static WORDS: [&str; 3] = ["read", "only", "data"];

    #[test]
    fn code_and_constants_are_reloaded_on_use() {
        let before: Vec<String> = WORDS.iter().map(|word| word.to_uppercase()).collect();
        let used = vec![7u8; 1 << 20];
        release_startup_pages();
        assert_eq!(WORDS.iter().map(|word| word.to_uppercase()).collect::<Vec<_>>(), before);
        assert!(used.iter().all(|byte| *byte == 7), "memory in use is not released");
    }
}
