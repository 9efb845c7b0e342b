//! The terminal, where there is one: who has its foreground, what Ctrl-Z means, and a terminal of the app's own. In: our stdin.
//! Out: a session for the app. Bound: one chunk of input waits for the app.

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpgrp, kill_process};
use rustix::pty::OpenptFlags;
use rustix::stdio::stdin;
use rustix::termios::{self, OptionalActions, Termios};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::process::{Session, User};

pub enum Terminal {
    /// Our stdin is none: the app gets a session of its own, where it may.
    None,
    /// The app shares ours, in a process group of its own.
    Shared,
    Own(Box<Pty>),
}

/// A pseudo-terminal: we hold one side, and the app's stdin, stdout and stderr are the other.
pub struct Pty {
    ours: OwnedFd,
    /// The path of the other side, which is opened for each start: as long as anybody has it open, there is no end to read.
    name: CString,
    /// How our own terminal was set before its keys were passed through as they are.
    before: Option<Termios>,
    waiting: [u8; CHUNK],
    range: std::ops::Range<usize>,
    input_over: bool,
}

const CHUNK: usize = 1024;

impl Terminal {
    pub fn new(pty: bool) -> io::Result<Terminal> {
        if pty {
            return Ok(Terminal::Own(Box::new(Pty::open()?)));
        }
        Ok(if termios::isatty(stdin()) { Terminal::Shared } else { Terminal::None })
    }

    /// Where the app stands; `group`: whether it may have a group of its own.
    pub fn session<'a>(&self, group: bool, theirs: Option<&'a OwnedFd>) -> Session<'a> {
        match (self, theirs) {
            (Terminal::Own(_), Some(theirs)) => return Session::Terminal(theirs.as_fd()),
            (Terminal::Own(_), None) => return Session::New,
            _ => {}
        }
        match self {
            _ if !group => Session::Ours,
            Terminal::None | Terminal::Own(_) => Session::New,
            Terminal::Shared if has_foreground() => Session::Foreground(stdin()),
            Terminal::Shared => Session::Background,
        }
    }

    /// Whether a signal from the kernel has reached the app without us: a key at the terminal reaches the whole foreground.
    pub fn has_reported(&self) -> bool {
        matches!(self, Terminal::Shared)
    }

    pub fn pty(&mut self) -> Option<&mut Pty> {
        match self {
            Terminal::Own(pty) => Some(pty),
            _ => None,
        }
    }

    pub fn pty_ref(&self) -> Option<&Pty> {
        match self {
            Terminal::Own(pty) => Some(pty),
            _ => None,
        }
    }

    /// The app was stopped, as by Ctrl-Z: whoever waits for us, as a shell does, must see us stopped too.
    pub fn stop_with_app(&self, app: i32) {
        if let Terminal::Shared = self {
            self.take_back(Some(app));
            stop_ourselves();
        }
    }

    /// We go on: so does the app, in the foreground where we have been given that.
    pub fn hand_over(&self, app: i32) {
        if let (Terminal::Shared, Some(app), true) = (self, Pid::from_raw(app), has_foreground()) {
            let _ = termios::tcsetpgrp(stdin(), app);
        }
    }

    /// The foreground that the app had is ours again: SIGTTOU is blocked here, so that this is allowed. A foreground that is
    /// somebody else's stays his.
    pub fn take_back(&self, app: Option<i32>) {
        let has = termios::tcgetpgrp(stdin()).ok().map(|group| group.as_raw_nonzero().get());
        if let (Terminal::Shared, true) = (self, has.is_some() && has == app) {
            let _ = termios::tcsetpgrp(stdin(), getpgrp());
        }
    }

    /// In a fork: closes what is the parent's, and leaves our own terminal as the parent has set it.
    pub fn abandon(self) {
        if let Terminal::Own(mut pty) = self {
            pty.before = None;
        }
    }
}

/// PID 1 cannot be stopped, and nobody waits for it either; the attempt alone would throw away a SIGCONT that has come already
/// (signal(7): a stop signal discards it).
pub(crate) fn stop_ourselves() {
    let us = rustix::process::getpid();
    if us != Pid::INIT {
        let _ = kill_process(us, Signal::STOP);
    }
}

/// Whether our own group has the terminal's foreground.
fn has_foreground() -> bool {
    termios::tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

impl Pty {
    fn open() -> io::Result<Pty> {
        let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        let before = termios::tcgetattr(stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &raw);
        }
        let pty = Pty { ours, name, before, waiting: [0; CHUNK], range: 0..0, input_over: false };
        pty.copy_size();
        Ok(pty)
    }

    /// A copy of our side, to read the app's output from.
    pub fn output(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.ours, 3)?)
    }

    /// The app's side, which the user that it becomes may open anew.
    pub fn theirs(&self, user: Option<&User>) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(self.name.as_c_str(), flags, rustix::fs::Mode::empty())?;
        if let Some(user) = user {
            let _ = rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(user.uid)), None);
        }
        Ok(theirs)
    }

    /// The app's terminal is as large as ours.
    pub fn copy_size(&self) {
        if let Ok(size) = termios::tcgetwinsize(stdin()) {
            let _ = termios::tcsetwinsize(&self.ours, size);
        }
    }

    /// Our stdin, while the app takes what comes from it.
    pub fn input(&self) -> Option<BorrowedFd<'static>> {
        (!self.input_over && self.range.is_empty()).then_some(stdin())
    }

    /// Our side, while input waits for it.
    pub fn blocked(&self) -> Option<BorrowedFd<'_>> {
        (!self.range.is_empty()).then_some(self.ours.as_fd())
    }

    /// Moves one chunk from our stdin to the app. Called when poll has said that there is one.
    pub fn move_input(&mut self, readable: bool) {
        if self.range.is_empty() {
            if !readable || self.input_over {
                return;
            }
            match rustix::io::read(stdin(), &mut self.waiting) {
                Ok(0) => {
                    self.input_over = true;
                    // As the key at a terminal would say it: Ctrl-D at the beginning of a line ends the input (termios(3), VEOF).
                    self.waiting[0] = 4;
                    self.range = 0..1;
                }
                Ok(count) => self.range = 0..count,
                Err(Errno::INTR | Errno::AGAIN) => return,
                Err(_) => self.input_over = true,
            }
        }
        // Our side does not block: the reader of the app's output has made its description so.
        match rustix::io::write(&self.ours, self.waiting.get(self.range.clone()).unwrap_or(&[])) {
            Ok(count) => self.range.start += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.range = 0..0,
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}
