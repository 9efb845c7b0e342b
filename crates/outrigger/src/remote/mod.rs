//! The commands that speak to a running Outrigger: status, reload, upgrade, stop, log-level, and in `probe.rs` wait and probe. In:
//! which one is meant. Out: its answer on stdout, or why there is none on stderr, and an exit code: 0 yes, 1 no. Bounds: the
//! time-out of each command. They start no runtime and read no more of the configuration than its admin section, so that they
//! work beside a configuration that has become wrong, and without the variables that other parts of it need.

mod request;
mod probe;

use base::system::output;
use config::unit::TimeSpan;
use request::{Found, Trouble};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tracing::level_filters::LevelFilter;

pub use probe::{For, Probe, probe, wait};

/// Which running Outrigger is meant.
#[derive(clap::Args)]
pub struct Target {
    /// The admin socket [default: the one that the configuration names].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The configuration that names the socket.
    #[arg(
        short,
        long,
        default_value = "outrigger.yaml",
        env = "OUTRIGGER_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: PathBuf,
}

/// How a status is printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// How long an answer that waits for nothing may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a stop may take where nothing is said: the deadline of a stop is 30 s by default.
const STOP: Duration = Duration::from_secs(40);

/// What is added to a time that was given: for the answer's way, and for the half second after a stop's deadline.
const ALLOWANCE: Duration = Duration::from_secs(5);

/// How often a stop looks whether somebody still answers, and for how long nobody may before it counts as ended: when a
/// worker fails, the next one takes the socket within this time.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const GONE_AFTER: Duration = Duration::from_millis(250);

/// `outrigger status`.
pub fn status(target: &Target, format: Format) -> i32 {
    answer(Found::by(target, None).and_then(|found| {
        let reply = found.request("GET", "/status", b"", ANSWER)?;
        let status: serde_json::Value = serde_json::from_str(&reply.text).map_err(|error| {
            Trouble::new(format!("{} gave no status: {error}", found.place()), "is it Outrigger that listens there?")
        })?;
        let printed = output::print(&match format {
            Format::Text => admin::view::terminal(&status),
            Format::Json => format!("{}\n", reply.text.trim_end()),
        });
        Ok(printed.max(i32::from(status["verdict"] == "failed")))
    }))
}

/// `outrigger reload`.
pub fn reload(target: &Target, token_file: Option<&Path>) -> i32 {
    answer(Found::by(target, token_file).and_then(|found| {
        output::print(&found.change("/reload", b"", admin::run::UPGRADE_MAX + ALLOWANCE)?.text);
        Ok(0)
    }))
}

/// `outrigger log-level`.
pub fn log_level(target: &Target, level: LevelFilter, token_file: Option<&Path>) -> i32 {
    answer(Found::by(target, token_file).and_then(|found| {
        output::print(&found.change("/log-level", level.to_string().as_bytes(), ANSWER)?.text);
        Ok(0)
    }))
}

/// `outrigger upgrade`: by the binary at a path, or by the one that was started.
pub fn upgrade(target: &Target, binary: Option<&Path>, token_file: Option<&Path>) -> i32 {
    answer(Found::by(target, token_file).and_then(|found| {
        // It has another working directory than we.
        let whole = binary.map(std::path::absolute).transpose();
        let whole = whole.map_err(|error| Trouble::new(format!("the path of the binary: {error}"), "give it whole"))?;
        let body = whole.as_ref().map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
        let asked = whole.as_ref().map_or("upgrade".into(), |path| format!("upgrade to {}", path.display()));
        let reply = found.change("/upgrade", body, admin::run::UPGRADE_MAX + ALLOWANCE);
        output::print(&reply.map_err(|trouble| trouble.about(&asked))?.text);
        Ok(0)
    }))
}

/// `outrigger stop`: 0 once it has stopped.
pub fn stop(target: &Target, timeout: Option<Duration>, token_file: Option<&Path>) -> i32 {
    answer(Found::by(target, token_file).and_then(|found| {
        let limit = timeout.map_or(STOP, |timeout| timeout + ALLOWANCE);
        let until = Instant::now() + limit;
        let body = timeout.map(|timeout| TimeSpan(timeout).to_string()).unwrap_or_default();
        found.change("/stop", body.as_bytes(), ANSWER)?;
        let mut silent_since = None;
        loop {
            match (found.has_listener(), silent_since) {
                (true, _) => silent_since = None,
                (false, None) => silent_since = Some(Instant::now()),
                (false, Some(since)) if since.elapsed() >= GONE_AFTER => break,
                (false, Some(_)) => {}
            }
            if Instant::now() >= until {
                let what = format!("{} still answers, {limit:?} after it was asked to stop", found.place());
                return Err(Trouble::new(what, "its log says what it waits for; `--timeout` gives it less time"));
            }
            sleep(LOOK_EVERY);
        }
        output::print("stopped\n");
        Ok(0)
    }))
}

fn answer(result: Result<i32, Trouble>) -> i32 {
    result.unwrap_or_else(|trouble| {
        eprint!("{trouble}");
        i32::from(crate::EXIT_ERROR)
    })
}

/// A duration of the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    TimeSpan::parse(text).map(|span| span.0)
}
