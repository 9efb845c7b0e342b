//! A signal to the app, sent by the supervisor, which owns the app.

use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;

/// Sends a signal to the wrapped app's main process, such as SIGHUP, on which many servers reload their configuration.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(SignalName);

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[expect(clippy::upper_case_acronyms, reason = "the names of signal(7)")]
enum SignalName {
    SIGHUP,
    SIGUSR1,
    SIGUSR2,
    SIGINT,
    SIGTERM,
    SIGQUIT,
    SIGWINCH,
}

impl Kind for Config {
    const EXAMPLE: &'static str = "signal: SIGHUP\n";
}

impl Config {
    pub fn name(&self) -> &'static str {
        match self.0 {
            SignalName::SIGHUP => "SIGHUP",
            SignalName::SIGUSR1 => "SIGUSR1",
            SignalName::SIGUSR2 => "SIGUSR2",
            SignalName::SIGINT => "SIGINT",
            SignalName::SIGTERM => "SIGTERM",
            SignalName::SIGQUIT => "SIGQUIT",
            SignalName::SIGWINCH => "SIGWINCH",
        }
    }

    /// Its number on Linux, x86 and ARM (signal(7)).
    pub fn number(&self) -> i32 {
        match self.0 {
            SignalName::SIGHUP => 1,
            SignalName::SIGINT => 2,
            SignalName::SIGQUIT => 3,
            SignalName::SIGUSR1 => 10,
            SignalName::SIGUSR2 => 12,
            SignalName::SIGTERM => 15,
            SignalName::SIGWINCH => 28,
        }
    }
}
