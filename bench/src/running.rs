//! A started program: its PID, its exit, and how to wait until it is ready.
//!
//! In: a command. Out: a guard that stops the program when it is dropped: SIGTERM, a time limit, then SIGKILL for it and
//! for its remaining descendants. Output goes to a file, whose last lines explain a failed start.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::usage;

const READY_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(10);

pub struct Running {
    child: Child,
    started: Instant,
    output: PathBuf,
}

impl Running {
    /// Starts `command` with its output in `directory`. The clock of `ready` starts here, just before fork and exec.
    pub fn start(command: Command, directory: &Path) -> Result<Self, String> {
        Self::start_with(command, directory, |file| file.try_clone().map(Stdio::from).map_err(|e| e.to_string()))
    }

    /// The same with stdout in a pipe, which the caller must read.
    pub fn start_piped(command: Command, directory: &Path) -> Result<(Self, ChildStdout), String> {
        let mut running = Self::start_with(command, directory, |_| Ok(Stdio::piped()))?;
        let stdout = running.child.stdout.take().ok_or("a started program has no pipe")?;
        Ok((running, stdout))
    }

    fn start_with(
        mut command: Command,
        directory: &Path,
        stdout: impl FnOnce(&File) -> Result<Stdio, String>,
    ) -> Result<Self, String> {
        let output = directory.join("output.log");
        let file = File::create(&output).map_err(|e| format!("cannot create {}: {e}", output.display()))?;
        command.stdin(Stdio::null()).stdout(stdout(&file)?).stderr(file).current_dir(directory);
        let started = Instant::now();
        let child = command.spawn().map_err(|e| format!("cannot start {:?}: {e}", command.get_program()))?;
        Ok(Self { child, started, output })
    }

    /// Polls `path` on `port` in a tight loop until it returns 200; returns the time since exec.
    pub fn ready(&mut self, port: u16, path: &str) -> Result<Duration, String> {
        loop {
            if status(port, path) == Some(200) {
                return Ok(self.started.elapsed());
            }
            if let Ok(Some(end)) = self.child.try_wait() {
                return Err(format!("exited at start ({end}): {}", self.last_lines()));
            }
            if self.started.elapsed() > READY_LIMIT {
                return Err(format!("{path} was not 200 within {READY_LIMIT:?}: {}", self.last_lines()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The program and its descendants, without processes that run exactly `app`.
    pub fn processes(&self, app: &[String]) -> Vec<u32> {
        let mut pids = usage::tree(self.child.id());
        pids.retain(|pid| app.is_empty() || usage::command_line(*pid) != app);
        pids
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn last_lines(&self) -> String {
        let text = std::fs::read(&self.output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pids = usage::tree(self.child.id());
        signal(self.child.id(), Signal::TERM);
        let limit = Instant::now() + STOP_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            eprintln!("bench: {} did not exit within {STOP_LIMIT:?} of SIGTERM and is killed", self.child.id());
            for pid in pids {
                signal(pid, Signal::KILL);
            }
            if let Err(fault) = self.child.wait() {
                eprintln!("bench: cannot reap {}: {fault}", self.child.id());
            }
        }
    }
}

/// Runs a short-lived program to its end and returns its stdout; past `limit` it is killed.
pub fn finish(mut command: Command, limit: Duration) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
    let pid = child.id();
    let (done, waiting) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || done.send(child.wait_with_output()));
    let output = match waiting.recv_timeout(limit) {
        Ok(output) => output.map_err(|e| format!("{name}: {e}"))?,
        Err(_) => {
            signal(pid, Signal::KILL);
            drop(reader.join());
            return Err(format!("{name} did not exit within {limit:?}"));
        }
    };
    if !output.status.success() {
        return Err(format!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The status code of a GET of `path`, if there is a response.
pub fn status(port: u16, path: &str) -> Option<u16> {
    let mut stream = request(port, path).ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(head.strip_prefix(b"HTTP/1.")?.get(2..)?).ok()?.parse().ok()
}

/// The JSON of a GET of `path`; the body is the text after the first empty line.
pub fn json(port: u16, path: &str) -> Option<serde_json::Value> {
    let mut response = String::new();
    request(port, path).ok()?.read_to_string(&mut response).ok()?;
    serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()
}

fn request(port: u16, path: &str) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
    Ok(stream)
}

pub fn signal(pid: u32, signal: Signal) {
    // An error means that the process has already exited, as intended.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::free_ports;

    #[test]
    fn a_failed_start_has_the_last_lines() {
        let directory = std::env::temp_dir().join(format!("bench-last-lines-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a scratch directory");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such listener; exit 3"]);
        let [port] = free_ports().expect("a free port");
        let mut running = Running::start(command, &directory).expect("sh starts");
        let fault = running.ready(port, "/").expect_err("nothing listens");
        std::fs::remove_dir_all(&directory).expect("the test created the directory");
        assert!(fault.contains("no such listener") && fault.contains('3'), "{fault}");
    }

    #[test]
    fn a_program_over_its_limit_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("30");
        let began = Instant::now();
        let fault = finish(command, Duration::from_millis(50)).expect_err("sleep runs longer");
        assert!(fault.contains("did not exit"), "{fault}");
        assert!(began.elapsed() < Duration::from_secs(20), "the limit was not enforced");
    }
}
