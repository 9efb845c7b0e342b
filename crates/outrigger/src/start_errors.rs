//! Errors for which a worker cannot start. In: the errors. Out: a message to the supervisor, the log, and the rejected configuration.

use base::telemetry::logging;
use supervisor::message::ToSupervisor;
use supervisor::worker::SavedConfig;

/// Says why a worker cannot start. The next one then takes the last text that served.
pub fn report_errors(
    errors: &[String],
    generation: u32,
    kept: &SavedConfig,
    text: &str,
    send: impl FnOnce(ToSupervisor<'_>),
) -> i32 {
    send(ToSupervisor::CannotStart { reason: errors.join("; ").as_bytes() });
    let report: String = errors.iter().map(|error| format!("error: {error}\n")).collect();
    match generation {
        0 => eprint!("{report}"),
        _ => logging::report(&report, "this worker cannot start; the one before it goes on"),
    }
    if generation > 0 {
        let _ = SavedConfig::keep(&kept.rejected, text.as_bytes());
    }
    i32::from(crate::EXIT_ERROR)
}
