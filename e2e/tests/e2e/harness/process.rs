//! Processes of a test: started with their output captured, signalled by their id, looked up in /proc, and killed with
//! all their descendants when the test ends. In: commands. Out: exit codes and output. Limits: every wait has one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use std::os::unix::process::ExitStatusExt;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use super::{SECOND, within};

pub struct Running {
    child: Child,
    name: String,
    pub stdout: Captured,
    pub stderr: Captured,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Starts a command with stdout and stderr captured and /dev/null as stdin.
    pub fn start(command: &[impl AsRef<str>]) -> Self {
        let (program, arguments) = command.split_first().expect("a command has a program");
        let mut built = Command::new(program.as_ref());
        built.args(arguments.iter().map(AsRef::as_ref));
        Self::spawn(built)
    }

    pub fn spawn(mut command: Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} starts: {error}"));
        let stdout = Captured::from(child.stdout.take());
        let stderr = Captured::from(child.stderr.take());
        Self { child, name, stdout, stderr, ended: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// The exit status once the process has exited.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the process is a child of the test");
        }
        self.ended
    }

    /// Waits for the exit, then until the outputs are read. The code is that of a shell: 128 + n for signal n.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let ended = within(limit, || self.ended().is_some());
        assert!(ended, "{} exits within {limit:?}; its stderr: {}", self.name, self.stderr.text());
        // A grandchild may keep the pipe open; then the output so far is used.
        within(2 * SECOND, || self.stdout.is_closed() && self.stderr.is_closed());
        self.ended.map_or(-1, shell_code)
    }

    /// Sends SIGTERM, and kills it with all its descendants if it does not exit.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        within(5 * SECOND, || self.ended().is_some());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of {} ({}):\n{}", self.name, self.pid(), self.stderr.tail(6000));
        }
        if self.ended().is_none() {
            let below = descendants(self.pid());
            // The parent first, so that it does not restart its children.
            self.child.kill().ok();
            self.child.wait().ok();
            for pid in below {
                send_signal(pid, Signal::KILL);
            }
        }
    }
}

/// The output of a process so far, stdout or stderr.
#[derive(Clone)]
pub struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    closed: Arc<AtomicBool>,
}

impl Captured {
    fn from(pipe: Option<impl Read + Send + 'static>) -> Self {
        let captured = Self { bytes: Arc::default(), closed: Arc::default() };
        let mut pipe = pipe.expect("the outputs are pipes");
        let (bytes, closed) = (captured.bytes.clone(), captured.closed.clone());
        std::thread::spawn(move || {
            let mut block = [0; 64 * 1024];
            while let Ok(size @ 1..) = pipe.read(&mut block) {
                bytes.lock().expect("no holder panics").extend_from_slice(&block[..size]);
            }
            closed.store(true, Ordering::SeqCst);
        });
        captured
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().expect("no holder panics").clone()
    }

    pub fn len(&self) -> usize {
        self.bytes.lock().expect("no holder panics").len()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    pub fn contains(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn tail(&self, size: usize) -> String {
        let bytes = self.bytes();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(size)..]).into_owned()
    }
}

/// Runs a command until it exits and returns its exit code, stdout and stderr.
#[track_caller]
pub fn run_to_end(command: &[impl AsRef<str>], limit: Duration) -> (i32, String, String) {
    let mut running = Running::start(command);
    let code = running.wait(limit);
    (code, running.stdout.text(), running.stderr.text())
}

pub fn shell_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A process that has exited already is not an error: it may exit at any time.
pub fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

#[derive(Clone, Debug)]
pub struct Process {
    pub pid: u32,
    /// At most 15 bytes, as stored by the kernel.
    pub name: String,
    pub state: char,
    parent: u32,
}

/// The process as /proc shows it; `None` if it does not exist. A zombie has state `Z`.
pub fn look_up(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain spaces and parentheses itself, so it ends at the last parenthesis.
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    let mut rest = stat.get(end + 2..)?.split(' ');
    let state = rest.next()?.chars().next()?;
    let parent = rest.next()?.parse().ok()?;
    Some(Process { pid, name: stat.get(start + 1..end)?.to_owned(), state, parent })
}

pub fn is_alive(pid: u32) -> bool {
    look_up(pid).is_some_and(|process| process.state != 'Z')
}

/// Whether all threads of a process have exited, which closes its files. It may still be a zombie.
pub fn has_ended(pid: u32) -> bool {
    !is_alive(pid) && !status_value(pid, "Threads:").parse().is_ok_and(|threads: u32| threads > 1)
}

pub fn children(pid: u32) -> Vec<Process> {
    all_processes().into_iter().filter(|process| process.parent == pid).collect()
}

pub fn descendants(pid: u32) -> Vec<u32> {
    let mut below: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in all_processes() {
        below.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = below.remove(&pid).unwrap_or_default();
    let mut next = 0;
    while let Some(child) = found.get(next).copied() {
        found.extend(below.remove(&child).unwrap_or_default());
        next += 1;
    }
    found
}

fn all_processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc can be listed").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(look_up).collect()
}

/// Resident memory of a process in KiB; 0 if it has exited.
pub fn resident_kib(pid: u32) -> u64 {
    kib(pid, "VmRSS:")
}

/// Resident memory of a process without file pages, in KiB; 0 if it has exited. How many pages of an executable are
/// mapped together depends on how the page cache stores the file, and so differs by half a megabyte between two copies
/// of one file.
pub fn anonymous_kib(pid: u32) -> u64 {
    kib(pid, "RssAnon:")
}

fn kib(pid: u32, name: &str) -> u64 {
    let value = status_value(pid, name);
    value.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether a signal that was sent to the process is still pending.
pub fn is_pending(pid: u32, signal: Signal) -> bool {
    let set = u64::from_str_radix(&status_value(pid, "ShdPnd:"), 16).unwrap_or(0);
    set >> (signal.as_raw() - 1) & 1 == 1
}

/// A line of the process's status; empty if it has exited.
fn status_value(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
}
