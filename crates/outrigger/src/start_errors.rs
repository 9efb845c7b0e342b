//! Errors for which a worker cannot start. In: the errors. Out: a message to the supervisor, the log, and the rejected
//! configuration.

use base::telemetry::logging;
use supervisor::message::ToSupervisor;
use supervisor::worker::SavedConfig;

/// Reports why a worker cannot start. The next one then uses the last good configuration.
pub fn report_errors(
    errors: &[String],
    generation: u32,
    saved: &SavedConfig,
    text: &str,
    send: impl FnOnce(ToSupervisor<'_>),
) -> i32 {
    send(ToSupervisor::CannotStart { reason: errors.join("; ").as_bytes() });
    let report: String = errors.iter().map(|error| format!("error: {error}\n")).collect();
    match generation {
        0 => eprint!("{report}"),
        _ => logging::report("worker", &report, "worker failed to start"),
    }
    if generation > 0 {
        let _ = SavedConfig::keep(&saved.rejected, text.as_bytes());
    }
    i32::from(crate::EXIT_ERROR)
}
