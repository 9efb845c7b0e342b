//! What the supervisor needs to know of the configuration: flat values, all memory reserved. It cannot be wrong.

use std::time::Duration;
use sys::process::ExecPlan;

/// The plan of one app and its worker.
pub struct Plan {
    pub app: ExecPlan,
    /// The command as it was given, for the message where it cannot be run.
    pub app_name: String,
    /// Whether the app's stdout and stderr go through a capture ring, and how much each holds. None: inherited as they are.
    pub capture_bytes: Option<u64>,
    /// The signal that asks the app to stop.
    pub stop_signal: i32,
    /// How long inbound may drain before the app gets its signal.
    pub drain: Duration,
    /// How long the app may take after its signal, before its group is killed.
    pub grace: Duration,
    /// From the first stop request to our exit.
    pub deadline: Duration,
    /// How long to wait for the worker's gates before the app starts anyway.
    pub gate: Duration,
}

/// A worker that shows no sign of life for this long is killed and replaced.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// The wait before a failed worker is started again: doubled from the first to the most, reset after `RESTART_CALM`.
pub const RESTART_FIRST: Duration = Duration::from_millis(10);
pub const RESTART_MOST: Duration = Duration::from_secs(5);
pub const RESTART_CALM: Duration = Duration::from_secs(1);

/// How long the app's pipes are read after its end: a grandchild may hold them open for ever.
pub const PIPE_LINGER: Duration = Duration::from_secs(1);
