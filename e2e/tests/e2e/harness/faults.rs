//! The product built with fault injection: a test injects a fault into a worker, or attempts from there what the sandbox denies.
//! In: a line such as `hang proxy` or `read /etc/passwd`. Out: the worker's response, a line. Limits: one response, ten seconds.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{PATIENCE, SECOND, Scene, until, within};

pub const NO_FAULTS: &str = "OUTRIGGER_FAULTS_BIN is not set; cargo xtask test builds it (feature `fault-injection`), or see the manifest of outrigger";

/// The errors with which the kernel denies an action: by Landlock, and by the seccomp filter.
pub const EPERM: &str = "errno 1";
pub const EACCES: &str = "errno 13";

pub fn binary() -> Option<String> {
    let path = std::env::var("OUTRIGGER_FAULTS_BIN").ok()?;
    assert!(Path::new(&path).is_file(), "OUTRIGGER_FAULTS_BIN is the path of a program: {path}");
    Some(path)
}

/// Sends the line to the active worker. Waits for a response, since the previous worker may have exited already.
#[track_caller]
pub fn inject(scene: &Scene, line: &str) -> String {
    let (mut response, mut error_text) = (String::new(), String::new());
    let received = within(PATIENCE, || match try_inject(scene, line) {
        Ok(line) => {
            response = line;
            true
        }
        Err(error) => {
            error_text = error.to_string();
            false
        }
    });
    assert!(received, "fault injection responds to `{line}`: {error_text}");
    response
}

/// Like `inject`, for a fault that may prevent the response, and that the next worker must not receive as well.
#[track_caller]
pub fn send(scene: &Scene, line: &str) {
    let mut found = None;
    until(PATIENCE, "fault injection accepts a connection", || {
        found = UnixStream::connect(scene.path("state/faults.sock")).ok();
        found.is_some()
    });
    let mut stream = found.expect("just found");
    stream.set_read_timeout(Some(10 * SECOND)).expect("the timeout is not zero");
    stream.write_all(format!("{line}\n").as_bytes()).expect("the worker reads");
    // With a response or the end of the stream, the line has been read.
    BufReader::new(stream).read_line(&mut String::new()).ok();
}

fn try_inject(scene: &Scene, line: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(scene.path("state/faults.sock"))?;
    stream.set_read_timeout(Some(10 * SECOND))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut response = String::new();
    BufReader::new(stream).read_line(&mut response)?;
    match response.trim() {
        "" => Err(std::io::Error::other("the connection was closed without a response")),
        response => Ok(response.to_owned()),
    }
}
