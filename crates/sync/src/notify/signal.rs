//! A signal to the app, sent by the supervisor, which owns the app.

use super::{Failure, Notification, NotifyConfig, Sending};
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Entry, Kind};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::{Duration, Instant};

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
    fn example() -> &'static str {
        "signal: SIGHUP\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        entry.requires_app("`signal`", ", or notify by http").into_iter().collect()
    }

    /// /proc/PID/status shows whether the app handles the signal.
    fn needs(&self, _id: &str) -> Needs {
        Needs { read: vec!["/proc".into()], ..Needs::default() }
    }
}

/// How long an app may take to install a handler for the signal, and how often that is checked.
const HANDLER_WAIT: Duration = Duration::from_secs(30);
const HANDLER_POLL: Duration = Duration::from_millis(100);

impl NotifyConfig for Config {
    fn describe(&self) -> String {
        format!("signal {}", self.name())
    }

    fn send<'a>(&'a self, notification: Notification<'a>) -> Sending<'a> {
        Box::pin(async move {
            let until = Instant::now() + HANDLER_WAIT;
            // An app that is starting has no handler yet, and the signal would terminate it.
            while !(notification.signal_app)(self.number()) {
                if Instant::now() > until {
                    let error = format!("the app has no handler for {}, which would terminate it", self.name());
                    return Err(Failure { error, retry: false });
                }
                tokio::time::sleep(HANDLER_POLL).await;
            }
            Ok(())
        })
    }
}

impl Config {
    fn name(&self) -> &'static str {
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
    fn number(&self) -> i32 {
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
