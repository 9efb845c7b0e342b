//! The section `app` of the configuration: the command and its lifecycle.

pub mod plan;
mod user;
pub mod ready;
pub mod end;

use config::unit::{Secret, TimeSpan};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The app that Outrigger runs alongside.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// The program and its arguments; a command after `--` on the command line overrides it. A name without `/` is looked up
    /// in the app's `PATH`.
    #[serde(default)]
    pub command: Vec<String>,
    /// The port that it listens on: `/ready` waits until the app accepts connections there, and the cluster `app` is 127.0.0.1
    /// at this port.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Its working directory. Default: Outrigger's own.
    #[serde(default)]
    pub working_directory: Option<PathBuf>,
    /// The user that it runs as, `user` or `user:group`, by name (/etc/passwd, /etc/group) or number. Requires root; variables
    /// such as `HOME` stay unchanged. Default: Outrigger's own.
    #[serde(default)]
    pub user: Option<String>,
    /// Environment of the app: inherited from Outrigger, without Outrigger's own variables.
    #[serde(default)]
    pub environment: Environment,
    /// Whether it gets a dedicated pseudo-terminal, with stdout and stderr as one stream. Otherwise it inherits Outrigger's; if
    /// stdin is a terminal, the app is its foreground process group.
    #[serde(default)]
    pub tty: bool,
    /// Signal forwarding.
    #[serde(default)]
    pub signals: Signals,
    /// Start of the app: gates and timeout.
    #[serde(default)]
    pub start: Start,
    /// Exit codes that are a success and become 0, such as 143 for an app that exits on SIGTERM.
    #[serde(default)]
    pub success_exit_codes: Vec<u8>,
    /// When it is restarted.
    #[serde(default)]
    pub restart: Restart,
    /// Shutdown: signal, drain, grace period.
    #[serde(default)]
    pub stop: Stop,
    /// How the exit of an app in another container is detected; Outrigger then stops too, as a Job requires. One key is enough.
    #[serde(default)]
    pub external: Option<External>,
}

/// The app's environment.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Variables to set; their values are secrets. Overrides `unset` and `pass`.
    #[serde(default)]
    pub set: BTreeMap<String, Secret>,
    /// Variables to remove. Overrides `pass`.
    #[serde(default)]
    pub unset: Vec<String>,
    /// Variables that the app gets although a secret of this configuration uses them (`password: ${TOKEN}`) or they are meant
    /// for Outrigger (`NOTIFY_SOCKET`).
    #[serde(default)]
    pub pass: Vec<String>,
}

/// Forwarding of the signals that Outrigger receives. All but SIGKILL, SIGSTOP and SIGCHLD are forwarded; SIGTERM and SIGINT
/// begin the shutdown.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signals {
    /// Whether the app gets its own process group, all of which receives signals; otherwise only the app receives them.
    #[serde(default = "yes")]
    pub process_group: bool,
    /// If unset, the app keeps running when the supervisor is killed. If set, the kernel then sends this signal (prctl(2),
    /// PR_SET_PDEATHSIG).
    #[serde(default)]
    pub parent_death: Option<StopSignal>,
    /// Signals that become another one, `none`, or `upgrade`: `{ SIGTERM: SIGQUIT, SIGHUP: none, SIGUSR2: upgrade }`.
    #[serde(default)]
    pub rewrite: BTreeMap<String, String>,
}

/// When the app starts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// How long the app waits until each subsystem has started and each sync entry has published; in a companion, how long
    /// `/started` waits for that.
    #[serde(default = "start_timeout")]
    pub timeout: TimeSpan,
    /// The action at the timeout: the app starts anyway (`continue`), or it does not and Outrigger exits with 1 (`fail`).
    /// Default: `continue`.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

/// The action if the start gates do not open in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The app starts anyway.
    #[default]
    Continue,
    /// The app is not started, and Outrigger exits with 1.
    Fail,
}

/// When an app that has exited is restarted. A container platform does this itself: leave it at `never` there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Which exits lead to a restart: `always` all, `on_failure` those by a signal or with a code other than 0 and
    /// `success_exit_codes`. Leave it at `never` if a platform restarts the app. Default: `never`.
    #[serde(default)]
    pub policy: RestartPolicy,
    /// The delay before the first restart, doubled each time and jittered by a tenth.
    #[serde(default = "backoff")]
    pub backoff: TimeSpan,
    /// The longest delay.
    #[serde(default = "max_backoff")]
    pub max_backoff: TimeSpan,
    /// Consecutive restarts, after which Outrigger exits with the app's exit code. Default: no limit.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_restarts: Option<u32>,
    /// An app that ran this long resets the delay and the restart counter.
    #[serde(default = "reset_after")]
    pub reset_after: TimeSpan,
}

/// Which exits of the app lead to a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// None: Outrigger exits with the app's exit code.
    #[default]
    Never,
    /// Those by a signal, or with a code other than 0 and `success_exit_codes`.
    OnFailure,
    /// All, until a shutdown.
    Always,
}

/// How the app stops. All times are within `timeout`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The signal that stops it. Default: `SIGTERM`.
    #[serde(default)]
    pub signal: StopSignal,
    /// How long active inbound requests may take to complete before the app gets its signal.
    #[serde(default = "drain_timeout")]
    pub drain_timeout: TimeSpan,
    /// How long the app may take after its signal, before its process group gets SIGKILL.
    #[serde(default = "grace_period")]
    pub grace_period: TimeSpan,
    /// The time for the complete shutdown, at least `drain_timeout` and `grace_period` together. Keep it below the platform's
    /// (`terminationGracePeriodSeconds`, `TimeoutStopSec`).
    #[serde(default = "stop_timeout")]
    pub timeout: TimeSpan,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[expect(clippy::upper_case_acronyms, reason = "signal(7) names them so")]
pub enum StopSignal {
    #[default]
    SIGTERM,
    SIGINT,
    SIGQUIT,
    SIGHUP,
    SIGUSR1,
    SIGUSR2,
}

/// An app in another container, and how its exit is detected. One key is enough.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// A file that the app's container writes when the app has exited; it may contain the exit code as text.
    #[serde(default)]
    pub exit_code_file: Option<PathBuf>,
    /// The name of the app's process as `ps -o comm` shows it, at most 15 characters. Requires a shared process namespace.
    #[serde(default)]
    pub process_name: Option<String>,
    /// A file with the app's process ID. Requires a shared process namespace.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
}

impl External {
    /// Whether no key is set.
    pub fn is_empty(&self) -> bool {
        self.exit_code_file.is_none()
            && self.pid_file.is_none()
            && self.process_name.as_deref().is_none_or(str::is_empty)
    }
}

impl Default for Signals {
    fn default() -> Signals {
        Signals { process_group: yes(), parent_death: None, rewrite: BTreeMap::new() }
    }
}

impl Default for Start {
    fn default() -> Start {
        Start { timeout: start_timeout(), on_timeout: OnTimeout::default() }
    }
}

impl Default for Restart {
    fn default() -> Restart {
        Restart {
            policy: RestartPolicy::default(),
            backoff: backoff(),
            max_backoff: max_backoff(),
            max_restarts: None,
            reset_after: reset_after(),
        }
    }
}

impl Default for Stop {
    fn default() -> Stop {
        Stop {
            signal: StopSignal::default(),
            drain_timeout: drain_timeout(),
            grace_period: grace_period(),
            timeout: stop_timeout(),
        }
    }
}

impl StopSignal {
    /// Its number on Linux, x86 and ARM (signal(7)).
    pub fn number(self) -> i32 {
        match self {
            StopSignal::SIGHUP => 1,
            StopSignal::SIGINT => 2,
            StopSignal::SIGQUIT => 3,
            StopSignal::SIGUSR1 => 10,
            StopSignal::SIGUSR2 => 12,
            StopSignal::SIGTERM => 15,
        }
    }
}

fn yes() -> bool {
    true
}

fn start_timeout() -> TimeSpan {
    TimeSpan::from_secs(30)
}

fn backoff() -> TimeSpan {
    TimeSpan::from_secs(1)
}

fn max_backoff() -> TimeSpan {
    TimeSpan::from_secs(300)
}

fn reset_after() -> TimeSpan {
    TimeSpan::from_secs(600)
}

fn drain_timeout() -> TimeSpan {
    TimeSpan::from_secs(5)
}

fn grace_period() -> TimeSpan {
    TimeSpan::from_secs(20)
}

fn stop_timeout() -> TimeSpan {
    TimeSpan::from_secs(30)
}
