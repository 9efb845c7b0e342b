//! A program on a pseudo-terminal whose other side the test holds, like a terminal window or an ssh session. In: a command.
//! Out: the output on the screen and the exit code. A test can type keys, resize the window and hang up. The program is the
//! leader of the terminal's session, and is killed with all its descendants when the test ends.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::process::{Signal, descendants, send_signal, shell_code};
use super::{peer, until, within};

/// The characters that the keys send.
pub const CONTROL_C: &str = "\x03";
pub const CONTROL_D: &str = "\x04";
pub const CONTROL_Z: &str = "\x1a";

pub struct Terminal {
    /// `None` after `hang_up`.
    line: Option<OwnedFd>,
    child: Child,
    screen: Mutex<Vec<u8>>,
}

impl Terminal {
    /// Starts a command as session leader on a new terminal; `None` if `setsid` is missing.
    pub fn start(command: &[impl AsRef<str>]) -> Option<Self> {
        let setsid = peer("setsid")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let line = openpt(flags).expect("the kernel provides pseudo-terminals");
        grantpt(&line).expect("the test owns the terminal");
        unlockpt(&line).expect("the test owns the terminal");
        let name = ptsname(&line, Vec::new()).expect("the terminal has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let side = openat(CWD, &name, flags, Mode::empty()).expect("the other side opens");
        // No echo and no conversion of newlines, so that the screen contains exactly what the program wrote.
        let mut modes = tcgetattr(&side).expect("the device is a terminal");
        modes.local_modes.remove(LocalModes::ECHO);
        modes.output_modes.remove(OutputModes::OPOST);
        tcsetattr(&side, OptionalActions::Now, &modes).expect("the device is a terminal");
        rustix::io::ioctl_fionbio(&line, true).expect("the terminal supports non-blocking reads");
        let copy = || Stdio::from(side.try_clone().expect("a file descriptor is available"));
        // setsid calls exec, so that the child's id is the command's.
        let mut leader = Command::new(setsid);
        leader.arg("--ctty").args(command.iter().map(AsRef::as_ref));
        leader.env("PS1", "$ ").env_remove("PROMPT_COMMAND").env("TERM", "dumb");
        let child = leader.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("setsid starts");
        let terminal = Self { line: Some(line), child, screen: Mutex::default() };
        terminal.resize(24, 80);
        Some(terminal)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    #[track_caller]
    pub fn type_keys(&self, keys: &str) {
        let line = self.line.as_ref().expect("the terminal is not hung up");
        let written = rustix::io::write(line, keys.as_bytes()).expect("the terminal accepts keys");
        assert_eq!(written, keys.len(), "the terminal accepts all of {keys:?}");
    }

    /// The kernel sends SIGWINCH to the foreground process group.
    pub fn resize(&self, rows: u16, columns: u16) {
        let line = self.line.as_ref().expect("the terminal is not hung up");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(line, size).expect("the size of a terminal can be set");
    }

    /// Closes the test's side, as when a window is closed or a connection is lost.
    pub fn hang_up(&mut self) {
        self.read();
        self.line = None;
    }

    /// All output on the screen so far.
    pub fn text(&self) -> String {
        self.read();
        String::from_utf8_lossy(&self.screen.lock().expect("no holder panics")).into_owned()
    }

    pub fn shows(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    #[track_caller]
    pub fn await_text(&self, limit: Duration, text: &str) {
        let shown = within(limit, || self.shows(text));
        assert!(shown, "the screen shows {text:?} within {limit:?}; it shows {:?}", self.text());
    }

    /// The exit code as a shell reports it.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let mut ended = None;
        until(limit, "the program on the terminal exits", || {
            self.read();
            ended = self.child.try_wait().expect("the process is a child of the test");
            ended.is_some()
        });
        self.read();
        ended.map_or(-1, shell_code)
    }

    fn read(&self) {
        let Some(line) = &self.line else { return };
        let mut block = [0; 4096];
        // EIO is the last close of the other side (pty(7)); EAGAIN means that no more data is available yet.
        while let Ok(size @ 1..) = rustix::io::read(line, &mut block[..]) {
            self.screen.lock().expect("no holder panics").extend_from_slice(&block[..size]);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the screen of process {}:\n{}", self.pid(), self.text());
        }
        if let Ok(None) = self.child.try_wait() {
            let below = descendants(self.pid());
            self.child.kill().ok();
            self.child.wait().ok();
            for pid in below {
                send_signal(pid, Signal::KILL);
            }
        }
    }
}
