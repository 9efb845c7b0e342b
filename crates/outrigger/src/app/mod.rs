//! What a person writes under `app`: the command, and how its life goes.

pub mod plan;
mod user;
pub mod ready;
pub mod end;

use base::unit::{Secret, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The app that Outrigger rides beside.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Its command and arguments; what follows `--` on the command line takes their place.
    #[serde(default)]
    pub command: Vec<String>,
    /// The port that it listens on. Ready waits for it, and a listener with `to: app` forwards to it.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Its working directory; ours where left out.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The user that it runs as, `user` or `user:group`, by name or number; ours where left out. It takes the rights of root.
    #[serde(default)]
    pub user: Option<String>,
    /// Its environment: ours, without what is meant for Outrigger alone.
    #[serde(default)]
    pub environment: Environment,
    /// The terminal that it sees.
    #[serde(default)]
    pub terminal: Terminal,
    /// What becomes of signals.
    #[serde(default)]
    pub signals: Signals,
    /// When it starts.
    #[serde(default)]
    pub start: Start,
    /// What its exit codes mean.
    #[serde(default)]
    pub exit: Exit,
    /// When it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// How it stops.
    #[serde(default)]
    pub stop: Stop,
    /// How the end of an app in a container of its own is seen; Outrigger then stops too, as a Job needs it.
    #[serde(default)]
    pub end: Option<End>,
}

/// The app's environment.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Variables to set. Their values are secrets to everybody else.
    #[serde(default)]
    pub set: BTreeMap<String, Secret>,
    /// Variables to take away.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Variables that the app needs although this configuration uses them in a secret, as `password: ${TOKEN}`; others of that
    /// kind are taken away.
    #[serde(default)]
    pub keep: Vec<String>,
}

/// The app's terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Terminal {
    /// What we have: where our stdin is a terminal, the app gets its foreground.
    #[default]
    Inherit,
    /// A pseudo-terminal of its own. Its stdout and stderr are then one stream.
    Pty,
}

/// What becomes of the signals that Outrigger gets. All but SIGKILL, SIGSTOP and SIGCHLD are forwarded; SIGTERM and SIGINT begin
/// the stop.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signals {
    /// The app gets a process group of its own, and signals reach all of it; else the app alone gets them.
    #[serde(default = "yes")]
    pub group: bool,
    /// A signal that the app gets when Outrigger itself is killed (SIGKILL, out of memory), such as SIGTERM: outside a container
    /// the app lives on without it otherwise.
    #[serde(default)]
    pub parent_death: Option<StopSignal>,
    /// Signals that become others, `none`, or `upgrade`: `{ SIGTERM: SIGQUIT, SIGHUP: none, SIGUSR2: upgrade }`.
    #[serde(default)]
    pub rewrite: BTreeMap<String, String>,
}

/// When the app starts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// How long the app waits for its configuration and the proxy.
    #[serde(default = "wait")]
    pub wait: Span,
    /// What follows when they are not there by then.
    #[serde(default)]
    pub on_timeout: OnTimeout,
}

/// What follows a start gate that does not open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The app starts anyway.
    #[default]
    Continue,
    /// The app is not started, and Outrigger exits with 1.
    Fail,
}

/// What the app's exit codes mean.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Codes that are a success and become 0, such as 143 for an app that ends by SIGTERM.
    #[serde(default)]
    pub success: Vec<u8>,
}

/// When an app that has ended is started again. A container platform does this itself: leave it at `never` there.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Which ends lead to a restart.
    #[serde(default)]
    pub when: When,
    /// The pause before the first restart; it doubles each time.
    #[serde(default = "first")]
    pub wait: Span,
    /// The longest pause.
    #[serde(default = "most")]
    pub wait_max: Span,
    /// Restarts in a row, after which the app's end is the end; 0 for any number.
    #[serde(default)]
    pub max: u32,
    /// An app that ran this long begins a new row.
    #[serde(default = "reset")]
    pub reset: Span,
}

/// Which ends of the app lead to a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// None: the app's end is ours.
    #[default]
    Never,
    /// Those by a signal, or with a code other than 0 and those of `exit.success`.
    OnFailure,
    /// All, until a stop.
    Always,
}

/// How the app stops. All times count within `deadline`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The signal that asks it to stop.
    #[serde(default)]
    pub signal: StopSignal,
    /// How long inbound requests may take to end before the app gets its signal. Without any, no time passes.
    #[serde(default = "drain")]
    pub drain: Span,
    /// How long the app may take after its signal, before its process group is killed.
    #[serde(default = "grace")]
    pub grace: Span,
    /// The time for everything, from the first request to stop until we exit. Keep it below the platform's own.
    #[serde(default = "deadline")]
    pub deadline: Span,
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

/// How the end of an app that runs elsewhere is seen. One of them is enough.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// A file that the app's container writes when it has ended; it may hold the exit code as text.
    #[serde(default)]
    pub tombstone: Option<PathBuf>,
    /// The name of the app's process as `ps -o comm` shows it, where the containers share a process namespace.
    #[serde(default)]
    pub process: Option<String>,
    /// A file with the app's process id, where the containers share a process namespace.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
}

impl End {
    /// Whether it names nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.tombstone.is_none() && self.pid_file.is_none() && self.process.as_deref().is_none_or(str::is_empty)
    }
}

impl Default for Signals {
    fn default() -> Signals {
        Signals { group: yes(), parent_death: None, rewrite: BTreeMap::new() }
    }
}

impl Default for Start {
    fn default() -> Start {
        Start { wait: wait(), on_timeout: OnTimeout::default() }
    }
}

impl Default for Restart {
    fn default() -> Restart {
        Restart { when: When::default(), wait: first(), wait_max: most(), max: 0, reset: reset() }
    }
}

impl Default for Stop {
    fn default() -> Stop {
        Stop { signal: StopSignal::default(), drain: drain(), grace: grace(), deadline: deadline() }
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

fn wait() -> Span {
    Span::from_secs(30)
}

fn first() -> Span {
    Span::from_secs(1)
}

fn most() -> Span {
    Span::from_secs(300)
}

fn reset() -> Span {
    Span::from_secs(600)
}

fn drain() -> Span {
    Span::from_secs(5)
}

fn grace() -> Span {
    Span::from_secs(20)
}

fn deadline() -> Span {
    Span::from_secs(30)
}
