//! The signal mask and signalfd. In: nothing. Out: signals as data on a file descriptor, in a process that blocks them all, and
//! the inherited signal state, for its children.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The mask and the dispositions that this process inherited, which its children must inherit unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedSignals {
    /// Bit n-1 for signal n (proc_pid_status(5), SigBlk).
    pub blocked: u64,
    /// Whether SIGPIPE was ignored before Rust's runtime ignored it ahead of main.
    pub pipe_ignored: bool,
    /// Signals that this process was started with as ignored, such as by `nohup`; bit n-1 for signal n.
    pub ignored: u64,
}

impl SavedSignals {
    /// Whether a signal is ignored since the start of this process, and therefore by its children.
    pub fn ignores(&self, signal: i32) -> bool {
        (1..=SIGNAL_MAX).contains(&signal) && self.ignored >> (signal - 1) & 1 == 1
    }
}

/// The signals that this process ignores now.
pub fn ignored() -> u64 {
    let is_ignored = |signal: &i32| {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: reads the disposition of a number; the kernel fills the complete record if it returns 0.
        let found = unsafe { libc::sigaction(*signal, std::ptr::null(), action.as_mut_ptr()) } == 0;
        // SAFETY: it was filled.
        found && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
    };
    (1..=SIGNAL_MAX).filter(|signal| *signal != libc::SIGPIPE).filter(is_ignored).fold(0, |mask, n| mask | 1 << (n - 1))
}

/// A signal with its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub number: i32,
    /// Sent by the kernel, such as for a key at a terminal, and not by a process.
    pub from_kernel: bool,
    /// The process that sent it.
    pub sender: u32,
}

/// The highest signal of Linux (signal(7)).
pub const SIGNAL_MAX: i32 = 64;

/// Blocks every signal that can be blocked and returns a file descriptor that reads them. A fault of this process still kills
/// it: the kernel does not let a process block a signal that it causes itself (sigprocmask(2)). Sent by a process, it is data.
pub fn block_all() -> io::Result<(OwnedFd, SavedSignals)> {
    let mut before = empty_set();
    let mut all = empty_set();
    // SAFETY: fills sets that live on this stack.
    unsafe {
        libc::sigfillset(&mut all);
        if libc::sigprocmask(libc::SIG_SETMASK, &all, &mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the set is initialised; a file descriptor that is returned has no other owner.
    let fd = unsafe { libc::signalfd(-1, &all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: reads a set that the kernel has filled.
    let is_blocked = |signal: &i32| unsafe { libc::sigismember(&before, *signal) } == 1;
    let blocked = (1..=SIGNAL_MAX).filter(is_blocked).fold(0, |mask, signal| mask | 1 << (signal - 1));
    let saved = SavedSignals { blocked, pipe_ignored: PIPE_IGNORED.load(Ordering::Relaxed), ignored: ignored() };
    // SAFETY: just opened, no other owner.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, saved))
}

/// The number of the last noted signal.
static NOTED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    NOTED.store(signal, Ordering::Relaxed);
}

/// Notes these signals instead of being terminated by them, until they are blocked: a child that is started in between does not
/// inherit a handler, as it would inherit a mask (signal(7)). Signals that this process ignores stay ignored.
pub fn note_until_blocked(signals: &[i32]) {
    let ignored = ignored();
    for signal in signals.iter().filter(|signal| ignored >> (**signal - 1) & 1 == 0) {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(*signal, handler as libc::sighandler_t) };
    }
}

/// Ends that, once the signals are blocked. Returns the last one that was noted.
pub fn end_noting(signals: &[i32]) -> Option<i32> {
    let ignored = ignored();
    for signal in signals.iter().filter(|signal| ignored >> (**signal - 1) & 1 == 0) {
        // SAFETY: sets a disposition that is not a function.
        unsafe { libc::signal(*signal, libc::SIG_DFL) };
    }
    Some(NOTED.swap(0, Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// The next pending signal, without blocking.
pub fn next(signals: &OwnedFd) -> Option<Arrived> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has exactly the size of one record.
    let read = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if read != size as isize {
        return None;
    }
    // SAFETY: the kernel has filled the whole record.
    let info = unsafe { info.assume_init() };
    Some(Arrived {
        number: i32::try_from(info.ssi_signo).ok()?,
        from_kernel: info.ssi_code == libc::SI_KERNEL,
        sender: info.ssi_pid,
    })
}

impl SavedSignals {
    /// Restores the mask in a forked child that continues with Outrigger's code.
    pub fn restore(&self) {
        let mut set = empty_set();
        // SAFETY: fills and reads a set that lives on this stack.
        unsafe {
            for signal in (1..=SIGNAL_MAX).filter(|signal| self.blocked >> (signal - 1) & 1 == 1) {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        }
    }

    pub(crate) fn restore_for_exec(&self) {
        // An ignored signal survives exec, so the app would inherit Outrigger's disposition.
        let pipe = if self.pipe_ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: sets a disposition that is not a function.
        unsafe { libc::signal(libc::SIGPIPE, pipe) };
        self.restore();
    }
}

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Runs before main, and so before Rust's runtime ignores SIGPIPE.
extern "C" fn note_pipe() {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: reads one disposition; the record is used only if the kernel has filled it.
    let ignored = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    };
    PIPE_IGNORED.store(ignored, Ordering::Relaxed);
}

// SAFETY: the list of functions that the loader calls before main (System V ABI, initialisation functions); this one makes
// one system call and touches one atomic.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_PIPE: extern "C" fn() = note_pipe;

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}
