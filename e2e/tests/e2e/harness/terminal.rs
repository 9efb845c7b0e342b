//! A terminal with a program on it: the test holds the other side, as a window or an ssh session would. A command comes in;
//! what the screen shows and the exit code go out. Keys are typed, the window is resized, the line is hung up. The program
//! leads the terminal's session, and is killed with everything below it when the test ends.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::process::{Signal, descendants, send_signal, shell_code};
use super::{peer, until, within};

/// What the keys send.
pub const CONTROL_C: &str = "\x03";
pub const CONTROL_D: &str = "\x04";
pub const CONTROL_Z: &str = "\x1a";

pub struct Terminal {
    /// Gone once the line was hung up.
    line: Option<OwnedFd>,
    child: Child,
    screen: Mutex<Vec<u8>>,
}

impl Terminal {
    /// Starts a command that leads a session on a new terminal; `None` where `setsid` is missing.
    pub fn start(command: &[impl AsRef<str>]) -> Option<Self> {
        let setsid = peer("setsid")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let line = openpt(flags).expect("the kernel has pseudo-terminals");
        grantpt(&line).expect("it is ours");
        unlockpt(&line).expect("it is ours");
        let name = ptsname(&line, Vec::new()).expect("it has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let side = openat(CWD, &name, flags, Mode::empty()).expect("the other side opens");
        // Neither echo nor changed line ends, so that the screen holds what the program wrote.
        let mut modes = tcgetattr(&side).expect("it is a terminal");
        modes.local_modes.remove(LocalModes::ECHO);
        modes.output_modes.remove(OutputModes::OPOST);
        tcsetattr(&side, OptionalActions::Now, &modes).expect("it is a terminal");
        rustix::io::ioctl_fionbio(&line, true).expect("it can be read without waiting");
        let copy = || Stdio::from(side.try_clone().expect("there are descriptors"));
        // It executes the command in its own place, so that the child's id is the command's.
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
        let line = self.line.as_ref().expect("the line stands");
        let written = rustix::io::write(line, keys.as_bytes()).expect("the terminal takes keys");
        assert_eq!(written, keys.len(), "the terminal takes all of {keys:?}");
    }

    /// The kernel sends SIGWINCH to whoever has the foreground.
    pub fn resize(&self, rows: u16, columns: u16) {
        let line = self.line.as_ref().expect("the line stands");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(line, size).expect("a terminal has a size");
    }

    /// Closes our side, as when a window is shut or a connection is lost.
    pub fn hang_up(&mut self) {
        self.read();
        self.line = None;
    }

    /// All that the screen has shown so far.
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
        assert!(shown, "the screen shows {text:?} within {limit:?}, and not only {:?}", self.text());
    }

    /// The exit code as a shell gives it.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let mut ended = None;
        until(limit, "the program on the terminal ends", || {
            self.read();
            ended = self.child.try_wait().expect("our own child can be waited for");
            ended.is_some()
        });
        self.read();
        ended.map_or(-1, shell_code)
    }

    fn read(&self) {
        let Some(line) = &self.line else { return };
        let mut block = [0; 4096];
        // EIO is the other side's last close (pty(7)); EAGAIN means that nothing more is there yet.
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
