//! The product built with fault injection, by which a test has a fault happen inside a worker or tries from there what the sandbox
//! forbids. In: a line such as `hang proxy` or `read /etc/passwd`. Out: the worker's line back. Bound: one answer, ten seconds.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{PATIENCE, SECOND, Scene, until, within};

pub const NO_FAULTS: &str = "OUTRIGGER_FAULTS_BIN names no program; cargo xtask test builds it (feature `fault-injection`), or see the manifest of outrigger";

/// What the kernel answers to what is not allowed: by Landlock, and by the filter of system calls.
pub const EPERM: &str = "errno 1";
pub const EACCES: &str = "errno 13";

pub fn binary() -> Option<String> {
    let named = std::env::var("OUTRIGGER_FAULTS_BIN").ok()?;
    assert!(Path::new(&named).is_file(), "OUTRIGGER_FAULTS_BIN names a program: {named}");
    Some(named)
}

/// Asks the worker that serves. It waits until one answers, since the worker before it may be gone already.
#[track_caller]
pub fn inject(scene: &Scene, line: &str) -> String {
    let (mut answer, mut error_text) = (String::new(), String::new());
    let heard = within(PATIENCE, || match try_get(scene, line) {
        Ok(heard) => {
            answer = heard;
            true
        }
        Err(error) => {
            error_text = error.to_string();
            false
        }
    });
    assert!(heard, "fault injection answers `{line}`: {error_text}");
    answer
}

/// As `ask`, where the fault may take the answer with it, and must not come to the next worker as well.
#[track_caller]
pub fn send(scene: &Scene, line: &str) {
    let mut found = None;
    until(PATIENCE, "fault injection takes a connection", || {
        found = UnixStream::connect(scene.path("state/faults.sock")).ok();
        found.is_some()
    });
    let mut stream = found.expect("just found");
    stream.set_read_timeout(Some(10 * SECOND)).expect("a socket has a time-out");
    stream.write_all(format!("{line}\n").as_bytes()).expect("the worker reads");
    // Whatever comes, an answer or the end: by then the line has been read.
    BufReader::new(stream).read_line(&mut String::new()).ok();
}

fn try_get(scene: &Scene, line: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(scene.path("state/faults.sock"))?;
    stream.set_read_timeout(Some(10 * SECOND))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.trim() {
        "" => Err(std::io::Error::other("it closed without an answer")),
        answer => Ok(answer.to_owned()),
    }
}
