//! The signal mask and signalfd. In: nothing. Out: signals as data on a descriptor, in a process that blocks them all,
//! and the mask as it was, for the children.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The mask and dispositions that this process inherited, which its children must find again.
pub struct SavedMask {
    mask: libc::sigset_t,
}

/// Blocks every signal that can be blocked and returns a descriptor that reads them.
pub fn block_all() -> io::Result<(OwnedFd, SavedMask)> {
    let mut saved = SavedMask { mask: empty_set() };
    let mut all = empty_set();
    // SAFETY: fills a set that lives on this stack; faults of our own stay deliverable.
    unsafe {
        libc::sigfillset(&mut all);
        for fault in
            [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS]
        {
            libc::sigdelset(&mut all, fault);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, &all, &mut saved.mask) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the set is initialised; a descriptor that is returned is ours alone.
    let fd = unsafe { libc::signalfd(-1, &all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, saved))
}

/// The next signal that waits, without blocking.
pub fn next(signals: &OwnedFd) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has exactly the size of one record.
    let read = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if read != size as isize {
        return None;
    }
    // SAFETY: the kernel has filled the whole record.
    let info = unsafe { info.assume_init() };
    i32::try_from(info.ssi_signo).ok()
}

impl SavedMask {
    /// Restores the mask in a forked child that goes on with our code.
    pub fn restore(&self) {
        // SAFETY: the set was filled by the kernel.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.mask, std::ptr::null_mut()) };
    }

    pub(crate) fn restore_for_exec(&self) {
        // Rust's start-up ignores SIGPIPE, and an ignored signal would survive exec: the app gets the default back.
        // SAFETY: sets a disposition that is no function of ours.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        self.restore();
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
