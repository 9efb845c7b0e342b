//! The header page of a capture ring, shared between supervisor and worker as atomics. In: a memfd or file. Out: counters
//! that both see. A malicious or broken peer can write any value into it: readers validate what they use.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// One page: header of a ring.
pub const HEADER_BYTES: usize = 4096;

/// How many sinks may store their own position in one ring.
pub const SLOTS_MAX: usize = 32;

/// The header. Positions count bytes since the app's start and never wrap.
#[repr(C)]
#[derive(Default)]
pub struct Header {
    /// Bytes written by the supervisor.
    pub head: AtomicU64,
    /// End of the supervisor's current write, published before it writes: bytes that this write overwrites are invalid.
    pub writing: AtomicU64,
    /// Newlines among the bytes written, published after `head`.
    pub lines: AtomicU64,
    /// The highest position that any worker has read, and the newlines before it; with `lines` they give the overwritten lines.
    pub read: AtomicU64,
    pub lines_read: AtomicU64,
    /// Newlines that were overwritten before they were read, as far as counted.
    pub lines_lost: AtomicU64,
    /// 1 once the app's end of the pipe is closed: no more bytes follow.
    pub closed: AtomicU64,
    /// Capacity in bytes of the ring after the header; 0 until it is set.
    pub capacity: AtomicU64,
    /// Per sink: a hash of its name, its acknowledged position, and the newlines read before that position.
    pub slots: [Slot; SLOTS_MAX],
}

#[repr(C)]
#[derive(Default)]
pub struct Slot {
    pub owner: AtomicU64,
    pub acknowledged: AtomicU64,
    pub lines: AtomicU64,
}

/// A mapped header page; unmapped on drop.
pub struct SharedHeader {
    page: NonNull<Header>,
}

// SAFETY: the page consists of atomics, and the pointer stays valid until drop.
unsafe impl Send for SharedHeader {}
// SAFETY: as above.
unsafe impl Sync for SharedHeader {}

impl SharedHeader {
    /// Maps the first page of a file of at least `HEADER_BYTES`.
    pub fn map(file: impl AsFd) -> io::Result<SharedHeader> {
        const { assert!(size_of::<Header>() <= HEADER_BYTES) };
        if rustix::fs::fstat(&file)?.st_size < HEADER_BYTES as i64 {
            return Err(io::Error::other("the file is shorter than the header"));
        }
        // SAFETY: a new mapping, chosen by the kernel; the file is as long as the mapping.
        let page = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                HEADER_BYTES,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let page = NonNull::new(page.cast::<Header>()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(SharedHeader { page })
    }

    pub fn get(&self) -> &Header {
        // SAFETY: mapped until drop, page-aligned, and any bit pattern is a valid atomic.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for SharedHeader {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; an error would leave a page mapped, which is harmless.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), HEADER_BYTES) };
    }
}
