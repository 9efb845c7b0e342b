//! The connection to a git server through the program `ssh`, started without a shell. In: a URL, keys and known hosts. Out: the
//! bytes of `git-upload-pack` on the server, or the last line of ssh. Limits: `timeout` for each wait for bytes, `ERRORS_MAX`
//! bytes of ssh's stderr; ssh exits with the thread that waits for it.

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

/// The end of ssh's stderr, which has the reason.
const ERRORS_MAX: usize = 4096;

/// How long the rest of ssh's stderr may take after the end of its output.
const FINAL_READ: Duration = Duration::from_secs(1);

/// Starts ssh; its errors are reported when its output is read.
pub fn connect(
    url: &gix::Url,
    config: &Config,
    reports: &Reports,
) -> Result<Connection<Reading, Corrected<Writing>>, String> {
    let destination = destination(url)?;
    let mut command = command(url, config, &destination)?;
    sys::process::end_with_thread(&mut command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the program `ssh`: {error}"))?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("ssh has no pipes".into());
    };
    let timeout = config.timeout;
    let timeout_text = format!("no bytes from {destination} within {timeout}");
    let read = Reading {
        child,
        stdout,
        stderr: Some(stderr),
        errors: Vec::new(),
        timeout,
        timeout_text: timeout_text.clone(),
        reports: reports.clone(),
    };
    let write = Corrected::new(Writing { stdin, timeout, timeout_text, reports: reports.clone() });
    let virtual_host = None::<(String, Option<u16>)>;
    Ok(Connection::new(read, write, Protocol::V2, url.path.clone(), virtual_host, ConnectMode::Process, false))
}

/// `user@host`, which must not look like an option.
fn destination(url: &gix::Url) -> Result<String, String> {
    let host = url.host().ok_or("an ssh:// URL needs a host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let destination = url.user().map_or(host.to_string(), |user| format!("{user}@{host}"));
    match destination.starts_with('-') || host.starts_with('-') {
        true => Err(format!("`{destination}` looks like an option of ssh")),
        false => Ok(destination),
    }
}

/// ssh never prompts, never trusts an unknown host, and detects a server that is down (ssh_config(5)).
fn command(url: &gix::Url, config: &Config, destination: &str) -> Result<Command, String> {
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
    // The server's shell parses it: one word, in which only the quote has a meaning. `/~user` is a home directory (git-clone(1)).
    let path = url.path.strip_prefix(b"/").filter(|rest| rest.starts_with(b"~")).unwrap_or(&url.path);
    let path = path.to_str().map_err(|_| "the path of an ssh:// URL must be UTF-8")?.replace('\'', "'\\''");
    command.args([destination, &format!("git-upload-pack '{path}'")]);
    Ok(command)
}

/// A file's name as a value of ssh_config(5), where a space separates and `%` begins a token.
fn quoted(path: &Path) -> Result<String, String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains('"'))
        .ok_or_else(|| format!("{} has a character that ssh's command line does not support", path.display()))?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// The output of ssh, and the process itself, which is killed on drop.
pub struct Reading {
    child: Child,
    stdout: ChildStdout,
    stderr: Option<ChildStderr>,
    errors: Vec<u8>,
    timeout: TimeSpan,
    timeout_text: String,
    reports: Reports,
}

impl Reading {
    /// Waits until there is output, and reads stderr in the meantime. False: timed out.
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
            let stderr_index = waits.len() - 1;
            if !ready(&mut waits, until)? {
                return Ok(false);
            }
            let output = with_output && waits.first().is_some_and(|wait| !wait.revents().is_empty());
            let has_errors =
                self.stderr.is_some() && waits.get(stderr_index).is_some_and(|wait| !wait.revents().is_empty());
            if has_errors {
                self.read_stderr()?;
            }
            if output || (!with_output && self.stderr.is_none()) {
                return Ok(true);
            }
        }
    }

    fn read_stderr(&mut self) -> io::Result<()> {
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

/// The last `fatal:` line, or else the last line, since git and ssh print hints after the reason; and the lines of ssh about a
/// key before it, without which "Permission denied" points to the wrong side.
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
        if !self.wait(true, Instant::now() + self.timeout.0)? {
            return Err(self.reports.put(io::ErrorKind::TimedOut, self.timeout_text.clone(), None));
        }
        let count = self.stdout.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            // The end of the stream, or a failure: the caller knows which, and then takes the reason.
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

/// The input of ssh.
pub struct Writing {
    stdin: ChildStdin,
    timeout: TimeSpan,
    timeout_text: String,
    reports: Reports,
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waits = [PollFd::new(&self.stdin, PollFlags::OUT)];
        if !ready(&mut waits, Instant::now() + self.timeout.0)? {
            return Err(self.reports.put(io::ErrorKind::TimedOut, self.timeout_text.clone(), None));
        }
        // A writable pipe accepts this many bytes without blocking (pipe(7), PIPE_BUF).
        self.stdin.write(bytes.get(..bytes.len().min(PIPE_BUF)).unwrap_or(&[]))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.flush()
    }
}

const PIPE_BUF: usize = 4096;

/// False: timed out.
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
    fn ssh_errors_about_a_key_are_in_the_reason() {
        let denied = "git@host: Permission denied (publickey).";
        assert_eq!(reason(denied).as_deref(), Some(&*format!("ssh: {denied}")));
        let open = format!(
            "@@@@@@@\r\n@  WARNING: UNPROTECTED PRIVATE KEY FILE!  @\r\n@@@@@@@\r\nPermissions 0644 for '/k' are too open.\r\n\
             This private key will be ignored.\r\nLoad key \"/k\": bad permissions\r\n{denied}\r\n"
        );
        let key_errors = "Permissions 0644 for '/k' are too open; Load key \"/k\": bad permissions";
        assert_eq!(reason(&open), Some(format!("ssh: {denied} ({key_errors})")));
        let missing = format!("Warning: Identity file /k not accessible: No such file or directory.\n{denied}\n");
        assert!(reason(&missing).is_some_and(|text| text.contains("/k not accessible")));
        assert_eq!(
            reason("fatal: no such repository\nhint: look\n").as_deref(),
            Some("ssh: fatal: no such repository")
        );
        assert_eq!(reason("\n"), None);
    }
}
