//! Readiness of a file descriptor, without waiting. In: a file descriptor. Out: true or false. For code that must never wait for
//! another process, such as the reader of Outrigger's output.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;

/// The size up to which a write to a writable pipe is complete (pipe(7)).
pub const PIPE_BUF: usize = 4096;

pub fn is_writable(fd: BorrowedFd<'_>) -> bool {
    is(fd, PollFlags::OUT)
}

pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    is(fd, PollFlags::IN)
}

fn is(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}
