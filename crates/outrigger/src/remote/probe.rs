//! `outrigger wait` and `outrigger probe`: a yes or a no for whoever has no HTTP client, such as an image without a shell.
//! In: what is asked, and whom. Out: exit code 0 for yes, 1 for no with the last answer on stderr; or another program in our
//! place once the answer is yes. Bounds: the time-out that was given, `PROBE` for a probe.

use super::request::{Found, Trouble};
use super::{Target, answer};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum For {
    /// Configuration is there and outbound listeners are open; does not depend on the app.
    Started,
    /// Started, and the app takes connections.
    Ready,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Probe {
    Started,
    Ready,
    Live,
}

/// How long one probe may take; Kubernetes gives it a second by default.
const PROBE: Duration = Duration::from_secs(1);

/// How long one question of a wait may take, and the pauses between them.
const QUESTION: Duration = Duration::from_secs(2);
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_millis(500);

impl From<For> for Probe {
    fn from(state: For) -> Probe {
        match state {
            For::Started => Probe::Started,
            For::Ready => Probe::Ready,
        }
    }
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Probe::Started => "/started",
            Probe::Ready => "/ready",
            Probe::Live => "/live",
        }
    }
}

/// Waits for a yes. A socket that is not there yet is waited for like an answer. Then becomes the command, where there is one.
pub fn wait(target: &Target, state: For, timeout: Duration, url: Option<&str>, command: &[OsString]) -> i32 {
    let found = url.map_or_else(|| Found::by(target, None), Found::at);
    answer(found.and_then(|found| {
        let until = Instant::now() + timeout;
        let mut pause = PAUSE_FIRST;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let no = match request(&found, state.into(), left.clamp(PAUSE_FIRST, QUESTION)) {
                Ok(()) => break,
                Err(no) => no,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("not {} within {timeout:?}: {no}", state_name(state));
                return Err(Trouble::new(what, "`outrigger status` shows what is missing; --timeout gives it longer"));
            }
            sleep(pause.min(left));
            pause = (pause * 2).min(PAUSE_MOST);
        }
        Ok(command.split_first().map_or(0, |(program, arguments)| become_it(program, arguments)))
    }))
}

/// One try.
pub fn probe(target: &Target, probe: Probe) -> i32 {
    answer(Found::by(target, None).map(|found| match request(&found, probe, PROBE) {
        Ok(()) => 0,
        Err(no) => {
            // Kubernetes shows this in the event of the failed probe.
            eprintln!("{no}");
            1
        }
    }))
}

/// The error is the reason in one line.
fn request(found: &Found, probe: Probe, limit: Duration) -> Result<(), String> {
    match found.try_request("GET", probe.path(), b"", limit) {
        Ok(reply) if reply.status == 200 => Ok(()),
        Ok(reply) if reply.status == 503 => Err(reply.text.trim_end().replace('\n', "; ")),
        Ok(reply) => Err(format!("{} answered {}: {}", found.place(), reply.status, reply.text.trim_end())),
        Err(error) => Err(format!("no answer from {}: {error}", found.place())),
    }
}

fn state_name(state: For) -> &'static str {
    match state {
        For::Started => "started",
        For::Ready => "ready",
    }
}

/// Returns only where the program cannot be executed, with the exit code of a shell (POSIX.1-2024, XCU 2.8.2).
fn become_it(program: &OsString, arguments: &[OsString]) -> i32 {
    let error = Command::new(program).args(arguments).exec();
    let program = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        eprintln!("outrigger: {program}: command not found");
        return 127;
    }
    eprintln!("outrigger: {program}: {error}");
    126
}
