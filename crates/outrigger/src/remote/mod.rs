//! The commands that talk to a running Outrigger: status, reload, upgrade, stop, log-level, and in `probe.rs` wait and probe. In:
//! the socket or configuration. Out: the response on stdout, or the error on stderr, and an exit code: 0 success, 1 failure.
//! Limits: the timeout of each command. They start no runtime and read only the admin section of the configuration, so that they
//! work with a configuration that is now invalid, and without the variables that other sections need.

mod request;
mod probe;

use crate::arguments::ConfigFile;
use base::system::output;
use config::unit::TimeSpan;
use request::{Failure, Instance};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;

pub use probe::{For, Probe, probe, wait};

/// The running Outrigger to connect to.
#[derive(clap::Args)]
pub struct Target {
    /// The admin socket [default: admin.socket of the configuration].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub file: ConfigFile,
}

/// The output format of the status.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Timeout of a response that does not wait for an event.
const RESPONSE: Duration = Duration::from_secs(5);

/// The time of a stop if the response does not have it: the default of `app.stop.timeout`.
const STOP: Duration = Duration::from_secs(30);

/// Added to a given time: for the transfer of the response, and for the half second after a stop's deadline.
const ALLOWANCE: Duration = Duration::from_secs(5);

/// How often `stop` checks for a listener, and how long there must be none before Outrigger counts as exited: if a worker
/// crashes, the next one binds the socket within this time.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const EXITED_AFTER: Duration = Duration::from_millis(250);

/// `outrigger status`.
pub fn status(target: &Target, format: Format) -> i32 {
    exit_code(Instance::from_target(target, None).and_then(|instance| {
        let reply = instance.request("GET", "/status", b"", RESPONSE)?;
        let status: serde_json::Value = serde_json::from_str(&reply.text).map_err(|error| {
            Failure::new(
                format!("invalid status from {}: {error}", instance.address()),
                "check that Outrigger listens there",
            )
        })?;
        let printed = output::print(&match format {
            Format::Text => admin::view::terminal(&status),
            Format::Json => format!("{}\n", reply.text.trim_end()),
        });
        Ok(printed.max(i32::from(status["health"] == "failed")))
    }))
}

/// `outrigger reload`.
pub fn reload(target: &Target, token_file: Option<&Path>) -> i32 {
    exit_code(Instance::from_target(target, token_file).and_then(|instance| {
        output::print(&instance.change("/reload", b"", admin::run::UPGRADE_MAX + ALLOWANCE)?.text);
        Ok(0)
    }))
}

/// `outrigger log-level`.
pub fn log_level(target: &Target, level: LevelFilter, token_file: Option<&Path>) -> i32 {
    exit_code(Instance::from_target(target, token_file).and_then(|instance| {
        output::print(&instance.change("/log-level", level.to_string().as_bytes(), RESPONSE)?.text);
        Ok(0)
    }))
}

/// `outrigger upgrade`: to the binary at a path, or to the one that was started.
pub fn upgrade(target: &Target, binary: Option<&Path>, token_file: Option<&Path>) -> i32 {
    exit_code(Instance::from_target(target, token_file).and_then(|instance| {
        // The running Outrigger has a different working directory.
        let absolute = binary.map(std::path::absolute).transpose();
        let absolute = absolute
            .map_err(|error| Failure::new(format!("invalid path of the binary: {error}"), "use an absolute path"))?;
        let body = absolute.as_ref().map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
        let action = absolute.as_ref().map_or("upgrade".into(), |path| format!("upgrade to {}", path.display()));
        let reply = instance.change("/upgrade", body, admin::run::UPGRADE_MAX + ALLOWANCE);
        output::print(&reply.map_err(|failure| failure.of_action(&action))?.text);
        Ok(0)
    }))
}

/// `outrigger stop`: returns 0 once Outrigger has stopped.
pub fn stop(target: &Target, timeout: Option<Duration>, token_file: Option<&Path>) -> i32 {
    exit_code(Instance::from_target(target, token_file).and_then(|instance| {
        let body = timeout.map(|timeout| TimeSpan(timeout).to_string()).unwrap_or_default();
        let reply = instance.change("/stop", body.as_bytes(), RESPONSE)?.text;
        let announced = reply.trim().strip_prefix(admin::STOPPING).and_then(|time| TimeSpan::parse(time.trim()).ok());
        let limit = announced.map(|time| time.0).or(timeout).unwrap_or(STOP) + ALLOWANCE;
        let until = Instant::now() + limit;
        let mut unreachable_since = None;
        loop {
            match (instance.has_listener(), unreachable_since) {
                (true, _) => unreachable_since = None,
                (false, None) => unreachable_since = Some(Instant::now()),
                (false, Some(since)) if since.elapsed() >= EXITED_AFTER => break,
                (false, Some(_)) => {}
            }
            if Instant::now() >= until {
                let message = format!("{} still listens {limit:?} after the stop request", instance.address());
                let help = "see the Outrigger log for what it waits for; `--timeout` limits the time of a stop";
                return Err(Failure::new(message, help));
            }
            sleep(POLL_INTERVAL);
        }
        output::print("stopped\n");
        Ok(0)
    }))
}

fn exit_code(result: Result<i32, Failure>) -> i32 {
    result.unwrap_or_else(|failure| {
        eprint!("{failure}");
        i32::from(crate::EXIT_ERROR)
    })
}

/// A duration of the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    TimeSpan::parse(text).map(|span| span.0)
}
