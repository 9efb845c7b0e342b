//! `outrigger wait` and `outrigger probe`: probes for images without an HTTP client, such as one without a shell. In: the probe
//! and the target. Out: exit code 0 on success, 1 on failure with the last response on stderr; or exec of another program after
//! success. Limits: the given timeout, `PROBE` for a probe.

use super::request::{Failure, Instance};
use super::{Target, exit_code};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The state to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum For {
    /// Configuration is published and outbound listeners are open; does not depend on the app.
    Started,
    /// Started, and the app accepts connections.
    Ready,
}

/// The probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Probe {
    Started,
    Ready,
    Live,
}

/// Timeout of one probe; the default of Kubernetes is one second.
const PROBE: Duration = Duration::from_secs(1);

/// Timeout of one request of a wait, and the delays between requests.
const REQUEST: Duration = Duration::from_secs(2);
const DELAY_FIRST: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_millis(500);

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

/// Waits until the probe succeeds. A socket that does not exist yet counts as a failed probe. Then execs the command, if there is
/// one.
pub fn wait(target: &Target, state: For, timeout: Duration, url: Option<&str>, command: &[OsString]) -> i32 {
    let instance = url.map_or_else(|| Instance::from_target(target, None), Instance::from_url);
    exit_code(instance.and_then(|instance| {
        let until = Instant::now() + timeout;
        let mut delay = DELAY_FIRST;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let reason = match request(&instance, state.into(), left.clamp(DELAY_FIRST, REQUEST)) {
                Ok(()) => break,
                Err(reason) => reason,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("not {} within {timeout:?}: {reason}", state_name(state));
                return Err(Failure::new(
                    message,
                    "`outrigger status` shows what is missing; --timeout allows more time",
                ));
            }
            sleep(delay.min(left));
            delay = (delay * 2).min(DELAY_MAX);
        }
        Ok(command.split_first().map_or(0, |(program, arguments)| exec(program, arguments)))
    }))
}

/// Sends one probe.
pub fn probe(target: &Target, probe: Probe) -> i32 {
    exit_code(Instance::from_target(target, None).map(|instance| match request(&instance, probe, PROBE) {
        Ok(()) => 0,
        Err(reason) => {
            // Kubernetes shows this in the event of the failed probe.
            base::system::output::note(&format!("{reason}\n"));
            1
        }
    }))
}

/// The error is the reason in one line.
fn request(instance: &Instance, probe: Probe, limit: Duration) -> Result<(), String> {
    match instance.try_request("GET", probe.path(), b"", limit) {
        Ok(reply) if reply.status == 200 => Ok(()),
        Ok(reply) if reply.status == 503 => Err(reply.text.trim_end().replace('\n', "; ")),
        Ok(reply) => Err(format!("{} returned {}: {}", instance.address(), reply.status, reply.text.trim_end())),
        Err(error) => Err(format!("no response from {}: {error}", instance.address())),
    }
}

fn state_name(state: For) -> &'static str {
    match state {
        For::Started => "started",
        For::Ready => "ready",
    }
}

/// Returns only if the program cannot be executed, with the exit code of a shell (POSIX.1-2024, XCU 2.8.2).
fn exec(program: &OsString, arguments: &[OsString]) -> i32 {
    let error = Command::new(program).args(arguments).exec();
    let program = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        base::system::output::note(&format!("outrigger: {program}: command not found\n"));
        return 127;
    }
    base::system::output::note(&format!("outrigger: {program}: {error}\n"));
    126
}
