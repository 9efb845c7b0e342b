//! The whole configuration: one file, one struct, each section's own Config within.

use base::unit::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Outrigger's configuration. What is left out is off and costs nothing.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The app.
    #[serde(default)]
    pub app: App,
    /// Where progress is kept.
    #[serde(default)]
    pub state: StateConfig,
    /// What may be used.
    #[serde(default)]
    pub limits: Limits,
    /// The app's logs.
    #[serde(default)]
    pub logs: Option<logs::config::Config>,
    /// The app's metrics.
    #[serde(default)]
    pub metrics: Option<metrics::config::Config>,
    /// Directories that follow stores, by name.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sync: BTreeMap<String, sync::config::Config>,
    /// The service's traffic.
    #[serde(default)]
    pub proxy: Option<proxy::config::Config>,
    /// Where Outrigger shows itself.
    #[serde(default)]
    pub admin: admin::config::Config,
}

/// The app that Outrigger rides beside.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Its command and arguments; what follows `--` on the command line goes before this.
    #[serde(default)]
    pub command: Vec<String>,
    /// The port that it listens on. Ready waits for it, and a listener with `to: app` forwards to it.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// When it starts.
    #[serde(default)]
    pub start: Start,
    /// How it stops.
    #[serde(default)]
    pub stop: Stop,
}

/// When the app starts.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// How long the app waits for its configuration and the proxy; then it starts anyway.
    #[serde(default = "wait")]
    pub wait: Span,
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

/// Where checkpoints, caches and leftovers are kept.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// The directory; $STATE_DIRECTORY, else /var/lib/outrigger, where left out. One that cannot be written is reported, and
    /// everything runs without durability.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// The most bytes of any file in it.
    #[serde(default = "state_max")]
    pub max: ByteSize,
}

/// What Outrigger may use.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory for what waits: buffers of sinks must fit into it together.
    #[serde(default = "memory")]
    pub memory: ByteSize,
}

impl Default for Start {
    fn default() -> Start {
        Start { wait: wait() }
    }
}

impl Default for Stop {
    fn default() -> Stop {
        Stop { signal: StopSignal::default(), drain: drain(), grace: grace(), deadline: deadline() }
    }
}

impl Default for StateConfig {
    fn default() -> StateConfig {
        StateConfig { dir: None, max: state_max() }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { memory: memory() }
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

fn wait() -> Span {
    Span::from_secs(30)
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

fn state_max() -> ByteSize {
    ByteSize::mib(256)
}

fn memory() -> ByteSize {
    ByteSize::mib(64)
}
