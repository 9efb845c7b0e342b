//! The terminal, if there is one: its foreground process group, what Ctrl-Z does, and a dedicated pseudo-terminal for the app.
//! In: Outrigger's stdin. Out: a session for the app. Limits: one chunk of input waits for the app.

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
    /// Outrigger's stdin is not a terminal: the app gets its own session, if allowed.
    None,
    /// The app shares Outrigger's terminal, in its own process group.
    Shared,
    Own(Box<Pty>),
}

/// A pseudo-terminal: the supervisor holds one side, and the app's stdin, stdout and stderr are the other.
pub struct Pty {
    supervisor_side: OwnedFd,
    /// The path of the app's side, which is opened for each start: as long as a process has it open, reads find no end.
    name: CString,
    /// The settings of Outrigger's terminal before it was set to raw mode.
    before: Option<Termios>,
    waiting: [u8; CHUNK],
    range: std::ops::Range<usize>,
    input_closed: bool,
}

const CHUNK: usize = 1024;

impl Terminal {
    pub fn new(pty: bool) -> io::Result<Terminal> {
        if pty {
            return Ok(Terminal::Own(Box::new(Pty::open()?)));
        }
        Ok(if termios::isatty(stdin()) { Terminal::Shared } else { Terminal::None })
    }

    /// The session of the app; `group`: whether it may have its own process group.
    pub fn session<'a>(&self, group: bool, app_side: Option<&'a OwnedFd>) -> Session<'a> {
        match (self, app_side) {
            (Terminal::Own(_), Some(app_side)) => return Session::Terminal(app_side.as_fd()),
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

    /// Whether the kernel has also sent its signal to the app: a key at the terminal signals the entire foreground group.
    pub fn is_shared(&self) -> bool {
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

    /// The app was stopped, as by Ctrl-Z: a process that waits for Outrigger, such as a shell, must see it stopped too.
    pub fn stop_with_app(&self, app: i32) {
        if let Terminal::Shared = self {
            self.take_foreground(Some(app));
            stop_ourselves();
        }
    }

    /// Outrigger is continued, and so is the app: in the foreground, if Outrigger has been given that.
    pub fn give_foreground(&self, app: i32) {
        if let (Terminal::Shared, Some(app), true) = (self, Pid::from_raw(app), has_foreground()) {
            let _ = termios::tcsetpgrp(stdin(), app);
        }
    }

    /// The foreground that the app had is Outrigger's again: SIGTTOU is blocked here, so that this is allowed. The foreground of
    /// any other process group is left unchanged.
    pub fn take_foreground(&self, app: Option<i32>) {
        let has = termios::tcgetpgrp(stdin()).ok().map(|group| group.as_raw_nonzero().get());
        if let (Terminal::Shared, true) = (self, has.is_some() && has == app) {
            let _ = termios::tcsetpgrp(stdin(), getpgrp());
        }
    }

    /// In a forked child: closes what is the parent's, and leaves Outrigger's terminal as the parent has set it.
    pub fn abandon(self) {
        if let Terminal::Own(mut pty) = self {
            pty.before = None;
        }
    }
}

/// PID 1 cannot be stopped, and no process waits for it; the attempt alone would discard a SIGCONT that has already arrived
/// (signal(7): a stop signal discards it).
pub(crate) fn stop_ourselves() {
    let own_pid = rustix::process::getpid();
    if own_pid != Pid::INIT {
        let _ = kill_process(own_pid, Signal::STOP);
    }
}

/// Whether the supervisor's own group has the terminal's foreground.
fn has_foreground() -> bool {
    termios::tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}

impl Pty {
    fn open() -> io::Result<Pty> {
        let supervisor_side = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&supervisor_side)?;
        rustix::pty::unlockpt(&supervisor_side)?;
        let name = rustix::pty::ptsname(&supervisor_side, Vec::new())?;
        let before = termios::tcgetattr(stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &raw);
        }
        let pty = Pty { supervisor_side, name, before, waiting: [0; CHUNK], range: 0..0, input_closed: false };
        pty.copy_size();
        Ok(pty)
    }

    /// A copy of the supervisor's side, to read the app's output from.
    pub fn output(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.supervisor_side, 3)?)
    }

    /// Opens the app's side, which the app's user may reopen.
    pub fn open_app_side(&self, user: Option<&User>) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let app_side = rustix::fs::open(self.name.as_c_str(), flags, rustix::fs::Mode::empty())?;
        if let Some(user) = user {
            let _ = rustix::fs::fchown(&app_side, Some(rustix::fs::Uid::from_raw(user.uid)), None);
        }
        Ok(app_side)
    }

    /// Copies the size of Outrigger's terminal to the app's.
    pub fn copy_size(&self) {
        if let Ok(size) = termios::tcgetwinsize(stdin()) {
            let _ = termios::tcsetwinsize(&self.supervisor_side, size);
        }
    }

    /// Outrigger's stdin, while the app accepts input.
    pub fn input(&self) -> Option<BorrowedFd<'static>> {
        (!self.input_closed && self.range.is_empty()).then_some(stdin())
    }

    /// The supervisor's side, while input waits to be written to it.
    pub fn blocked(&self) -> Option<BorrowedFd<'_>> {
        (!self.range.is_empty()).then_some(self.supervisor_side.as_fd())
    }

    /// Moves one chunk from Outrigger's stdin to the app. Called when poll has reported one.
    pub fn move_input(&mut self, readable: bool) {
        if self.range.is_empty() {
            if !readable || self.input_closed {
                return;
            }
            match rustix::io::read(stdin(), &mut self.waiting) {
                Ok(0) => {
                    self.input_closed = true;
                    // As with the key at a terminal: Ctrl-D at the beginning of a line ends the input (termios(3), VEOF).
                    self.waiting[0] = 4;
                    self.range = 0..1;
                }
                Ok(count) => self.range = 0..count,
                Err(Errno::INTR | Errno::AGAIN) => return,
                Err(_) => self.input_closed = true,
            }
        }
        // The supervisor's side does not block: the reader of the app's output has set that on its description.
        match rustix::io::write(&self.supervisor_side, self.waiting.get(self.range.clone()).unwrap_or(&[])) {
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
