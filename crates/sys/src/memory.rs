//! Memory that the start of a process needed and its life does not. In: nothing. Out: pages given back. A long start (the parser
//! of the configuration, certificates) leaves mapped pages of the binary behind that no other moment uses; they stay in the
//! page cache, and come back one by one where they are needed after all.

use std::ffi::{c_int, c_void};

/// Gives back what the allocator holds and nobody uses, of a flood that is over.
pub fn trim() {
    // SAFETY: malloc_trim takes a number.
    unsafe { libc::malloc_trim(0) };
}

/// Resident memory of this process that is not shared: what proc_pid_statm(5) calls resident, without the pages of files.
pub fn private_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.nth(1).unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

/// Gives back what can be read again from the binary, and what the allocator holds and nobody uses.
pub fn release_startup_pages() {
    // SAFETY: the callback gets valid records for the time of its call.
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
        // What can be written has been relocated, and is not what the file holds.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages within the segment: its edges may share theirs with a segment that can be written.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if end > start {
            // SAFETY: a private mapping of a file that was never written to; the kernel reads it again at the next access
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
    fn code_and_constants_are_there_again_when_they_are_used() {
        let before: Vec<String> = WORDS.iter().map(|word| word.to_uppercase()).collect();
        let kept = vec![7u8; 1 << 20];
        release_startup_pages();
        assert_eq!(WORDS.iter().map(|word| word.to_uppercase()).collect::<Vec<_>>(), before);
        assert!(kept.iter().all(|byte| *byte == 7), "what is in use stays");
    }
}
