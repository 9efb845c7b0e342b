//! The way to a git server by the program `ssh`, started without a shell. In: a URL, keys and known hosts. Out: the bytes of
//! `git-upload-pack` on the other side, or the last line of ssh. Bounds: `timeout` for each wait for bytes, `ERRORS_MAX` bytes
//! of what ssh says; it ends with whoever waits for it.

use super::Config;
use super::reports::Reports;
use super::request::Corrected;
use config::unit::TimeSpan;
use gix::bstr::ByteSlice as _;
use gix_transport::Protocol;
use gix_transport::client::git::{ConnectMode, blocking_io::Connection};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The end of what ssh says, which has the reason.
const ERRORS_MAX: usize = 4096;

/// How long the last words of an ssh whose output has ended may take.
const FINAL_READ: Duration = Duration::from_secs(1);

/// Starts ssh; what it cannot do is told when its output is read.
pub fn connect(
    url: &gix::Url,
    config: &Config,
    reports: &Reports,
) -> Result<Connection<Reading, Corrected<Writing>>, String> {
    let place = place(url)?;
    let mut command = command(url, config, &place)?;
    sys::process::end_with_thread(&mut command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("the program `ssh` cannot be started: {error}"))?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("ssh has no pipes".into());
    };
    let silence = config.timeout;
    let silent = format!("no bytes from {place} within {silence}");
    let read = Reading {
        child,
        stdout,
        stderr: Some(stderr),
        errors: Vec::new(),
        silence,
        silent: silent.clone(),
        reports: reports.clone(),
    };
    let write = Corrected::new(Writing { stdin, silence, silent, reports: reports.clone() });
    let virtual_host = None::<(String, Option<u16>)>;
    Ok(Connection::new(read, write, Protocol::V2, url.path.clone(), virtual_host, ConnectMode::Process, false))
}

/// `user@host`, which must not look like an option.
fn place(url: &gix::Url) -> Result<String, String> {
    let host = url.host().ok_or("an ssh:// URL needs a host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let place = url.user().map_or(host.to_string(), |user| format!("{user}@{host}"));
    match place.starts_with('-') || host.starts_with('-') {
        true => Err(format!("`{place}` could be taken for an option of ssh")),
        false => Ok(place),
    }
}

/// ssh never asks, never trusts an unknown host, and notices a server that is gone (ssh_config(5)).
fn command(url: &gix::Url, config: &Config, place: &str) -> Result<Command, String> {
    let mut command = Command::new("ssh");
    let connect_timeout = config.connect_timeout.0.as_secs().max(1);
    let options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "ServerAliveInterval=10", "ServerAliveCountMax=3"];
    options.iter().for_each(|option| {
        command.args(["-o", option]);
    });
    command.args(["-o", &format!("ConnectTimeout={connect_timeout}"), "-o", "SendEnv=GIT_PROTOCOL"]);
    command.env("GIT_PROTOCOL", "version=2");
    if let Some(key) = &config.ssh.key_file {
        command.args(["-o", &format!("IdentityFile={}", quoted(key)?), "-o", "IdentitiesOnly=yes"]);
    }
    if let Some(hosts) = &config.ssh.known_hosts_file {
        command.args(["-o", &format!("UserKnownHostsFile={}", quoted(hosts)?)]);
    }
    if let Some(port) = url.port {
        command.args(["-p", &port.to_string()]);
    }
    // The shell on the other side reads it: one word, in which only the quote has a meaning. `/~user` is a home (git-clone(1)).
    let path = url.path.strip_prefix(b"/").filter(|rest| rest.starts_with(b"~")).unwrap_or(&url.path);
    let path = path.to_str().map_err(|_| "the path of an ssh:// URL must be UTF-8")?.replace('\'', "'\\''");
    command.args([place, &format!("git-upload-pack '{path}'")]);
    Ok(command)
}

/// A file's name as a value of ssh_config(5), where a space separates and `%` begins a token.
fn quoted(path: &Path) -> Result<String, String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains('"'))
        .ok_or_else(|| format!("{} has a character that ssh's command line cannot hold", path.display()))?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// What ssh gives out, and the program itself, which ends with it.
pub struct Reading {
    child: Child,
    stdout: ChildStdout,
    stderr: Option<ChildStderr>,
    errors: Vec<u8>,
    silence: TimeSpan,
    silent: String,
    reports: Reports,
}

impl Reading {
    /// Waits until there is output, and takes what ssh says meanwhile. False: the time is over.
    fn wait(&mut self, with_output: bool, until: Instant) -> io::Result<bool> {
        loop {
            let mut waits = Vec::with_capacity(2);
            if with_output {
                waits.push(PollFd::new(&self.stdout, PollFlags::IN));
            }
            if let Some(stderr) = &self.stderr {
                waits.push(PollFd::new(stderr, PollFlags::IN));
            }
            if waits.is_empty() {
                return Ok(true);
            }
            let words = waits.len() - 1;
            if !ready(&mut waits, until)? {
                return Ok(false);
            }
            let output = with_output && waits.first().is_some_and(|wait| !wait.revents().is_empty());
            let says = self.stderr.is_some() && waits.get(words).is_some_and(|wait| !wait.revents().is_empty());
            if says {
                self.listen()?;
            }
            if output || (!with_output && self.stderr.is_none()) {
                return Ok(true);
            }
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        let Some(stderr) = &mut self.stderr else { return Ok(()) };
        let mut chunk = [0; 1024];
        let count = stderr.read(&mut chunk)?;
        self.errors.extend_from_slice(chunk.get(..count).unwrap_or(&[]));
        let surplus = self.errors.len().saturating_sub(ERRORS_MAX);
        self.errors.drain(..surplus);
        if count == 0 {
            self.stderr = None;
        }
        Ok(())
    }

    fn reason(&self) -> Option<String> {
        reason(&String::from_utf8_lossy(&self.errors))
    }
}

/// The last line that says something, since git and ssh put hints below the reason; and what ssh said of a key before it, without
/// which "Permission denied" sends people to the wrong side.
fn reason(text: &str) -> Option<String> {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let fatal = lines().rev().find(|line| line.starts_with("fatal:"));
    let line = fatal.or(lines().next_back())?;
    let of_key = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["load key ", "permissions ", "identity file ", "warning: identity file ", "no such identity"]
            .iter()
            .any(|begin| line.starts_with(begin))
    };
    let others = lines().filter(of_key).filter(|of_key| *of_key != line);
    let keys: Vec<&str> = others.map(|line| line.trim_end_matches('.')).collect();
    match keys.is_empty() {
        true => Some(format!("ssh: {line}")),
        false => Some(format!("ssh: {line} ({})", keys.join("; "))),
    }
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.wait(true, Instant::now() + self.silence.0)? {
            return Err(self.reports.put(io::ErrorKind::TimedOut, self.silent.clone(), None));
        }
        let count = self.stdout.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            // The end of all, or a failure: whoever reads knows which, and takes the reason then.
            let _ = self.wait(false, Instant::now() + FINAL_READ);
            if let Some(reason) = self.reason() {
                self.reports.put(io::ErrorKind::UnexpectedEof, reason, None);
            }
        }
        Ok(count)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What ssh takes in.
pub struct Writing {
    stdin: ChildStdin,
    silence: TimeSpan,
    silent: String,
    reports: Reports,
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waits = [PollFd::new(&self.stdin, PollFlags::OUT)];
        if !ready(&mut waits, Instant::now() + self.silence.0)? {
            return Err(self.reports.put(io::ErrorKind::TimedOut, self.silent.clone(), None));
        }
        // A pipe with room takes this many bytes at once (pipe(7), PIPE_BUF).
        self.stdin.write(bytes.get(..bytes.len().min(PIPE_BUF)).unwrap_or(&[]))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.flush()
    }
}

const PIPE_BUF: usize = 4096;

/// False: the time is over.
fn ready(waits: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
        match poll(waits, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn what_ssh_says_of_a_key_stands_beside_the_refusal() {
        let denied = "git@host: Permission denied (publickey).";
        assert_eq!(reason(denied).as_deref(), Some(&*format!("ssh: {denied}")));
        let open = format!(
            "@@@@@@@\r\n@  WARNING: UNPROTECTED PRIVATE KEY FILE!  @\r\n@@@@@@@\r\nPermissions 0644 for '/k' are too open.\r\n\
             This private key will be ignored.\r\nLoad key \"/k\": bad permissions\r\n{denied}\r\n"
        );
        let told = "Permissions 0644 for '/k' are too open; Load key \"/k\": bad permissions";
        assert_eq!(reason(&open), Some(format!("ssh: {denied} ({told})")));
        let missing = format!("Warning: Identity file /k not accessible: No such file or directory.\n{denied}\n");
        assert!(reason(&missing).is_some_and(|text| text.contains("/k not accessible")));
        assert_eq!(
            reason("fatal: no such repository\nhint: look\n").as_deref(),
            Some("ssh: fatal: no such repository")
        );
        assert_eq!(reason("\n"), None);
    }
}
