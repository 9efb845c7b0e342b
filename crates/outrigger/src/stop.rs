//! The sequence of a shutdown, and of a handover to another worker. In: events. Out: phases for the subsystems, messages to the
//! supervisor. One deadline limits the complete sequence.

use crate::app::Stop;
use crate::control::{AppFacts, Control, Event};
use base::runtime::lifecycle::{Lifecycle, Phase};
use base::runtime::scope::Scope;
use base::runtime::state::StateDir;
use base::telemetry::{Left, Telemetry};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use supervisor::message::{EXIT_HANDED_OVER, StopCause, ToSupervisor};
use supervisor::restarts::RestartReason;
use tokio::sync::mpsc::Receiver;

/// Minimum time to deliver and persist records, even if the deadline has passed; the supervisor allows for it.
const FINISH_MIN: Duration = Duration::from_millis(250);

/// Reserved before the deadline to close open resources.
const CLOSE_RESERVE: Duration = Duration::from_millis(300);

/// How long deliveries in flight may take before another worker takes over. Requests in flight have `drain_timeout` after that.
const HANDOVER_MAX: Duration = Duration::from_secs(2);

/// How long a replaced worker may take to deliver its last records; the supervisor allows for it.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// Serves until a shutdown or handover is requested, then runs the phases of the subsystems. Returns the exit code.
pub async fn run_until_exit(
    control: &Control,
    events: &mut Receiver<Event>,
    lifecycle: &mut Lifecycle,
    facts: &AppFacts,
    times: &Stop,
    state: &StateDir,
    admin: Scope,
) -> i32 {
    let first = events.recv().await;
    let until = match first {
        Some(Event::HandOver { cause }) => return hand_over(cause, control, lifecycle, times, state, admin).await,
        Some(Event::Stop { until, .. }) => until,
        Some(Event::AppExited | Event::Disconnected) | None => Instant::now() + times.timeout.0,
    };
    facts.runs.send_replace(false);
    facts.metrics.telemetry.healths().iter().for_each(|health| health.set_stopping());
    let cause = match first {
        Some(Event::Stop { cause, .. }) => cause.to_string(),
        Some(Event::Disconnected) | None => "supervisor exit".into(),
        Some(_) => StopCause::AppExit.to_string(),
    };
    tracing::info!(cause, timeout = %rounded(until.saturating_duration_since(Instant::now())), "stopping");
    // A later deadline, for instance of `stop --timeout`, can only shorten it.
    let mut until = until;
    let left =
        |reserve: Duration, until: Instant| until.saturating_duration_since(Instant::now()).saturating_sub(reserve);
    let late = lifecycle.advance(Phase::Drain, times.drain_timeout.0.min(left(CLOSE_RESERVE, until))).await;
    if !times.drain_timeout.0.is_zero() {
        report_late(&late, "draining");
    }
    control.send(ToSupervisor::Drained);
    // The supervisor stops the app within the same deadline; without a supervisor, no exit is reported.
    let mut awaited = matches!(first, Some(Event::Stop { .. }));
    while awaited && let Ok(Some(event)) = tokio::time::timeout(left(CLOSE_RESERVE, until), events.recv()).await {
        match event {
            Event::Stop { until: sooner, .. } => until = until.min(sooner),
            Event::AppExited | Event::Disconnected => awaited = false,
            Event::HandOver { .. } => {}
        }
    }
    facts.pid.store(0, Ordering::Relaxed);
    // The last lines of an app that used all of the time matter most, so they are always persisted.
    let hurry = lifecycle.hurry();
    let late = {
        let mut finishing =
            std::pin::pin!(lifecycle.advance(Phase::Finish, left(CLOSE_RESERVE, until).max(FINISH_MIN)));
        loop {
            tokio::select! {
                late = &mut finishing => break late,
                Some(event) = events.recv() => {
                    if let Event::Stop { until: sooner, .. } = event {
                        until = until.min(sooner);
                        hurry.by(Instant::now() + left(CLOSE_RESERVE, until).max(FINISH_MIN));
                    }
                }
            }
        }
    };
    if !late.is_empty() {
        tracing::info!(subsystems = late.join(", "), "timed out before everything was delivered");
    }
    lifecycle.advance(Phase::Close, left(Duration::ZERO, until)).await;
    0
}

/// Another worker is ready: it gets the rings and the state as soon as this worker no longer uses them, and requests in flight
/// have `drain_timeout`.
async fn hand_over(
    cause: RestartReason,
    control: &Control,
    lifecycle: &mut Lifecycle,
    times: &Stop,
    state: &StateDir,
    admin: Scope,
) -> i32 {
    tracing::info!(component = "worker", reason = cause.as_str(), "handing over to a new worker");
    let late = lifecycle.advance(Phase::Handover, HANDOVER_MAX).await;
    if late.is_empty() {
        state.release();
        control.send(ToSupervisor::Released);
        // The new worker serves the admin endpoints from here on.
        drop(admin);
    } else {
        // Resources that were not released are freed when this process exits; until then the new worker waits for them, and
        // already serves requests.
        report_late(&late, "releasing the rings and the state");
    }
    lifecycle.advance(Phase::Drain, times.drain_timeout.0).await;
    lifecycle.advance(Phase::Finish, LAST_RECORDS).await;
    lifecycle.advance(Phase::Close, FINISH_MIN).await;
    EXIT_HANDED_OVER
}

/// The configured time in seconds, rounded up to hide the latency of the message.
fn rounded(left: Duration) -> String {
    let tenths = left.as_millis().div_ceil(100);
    match tenths % 10 {
        0 => format!("{}s", tenths / 10),
        tenth => format!("{}.{tenth}s", tenths / 10),
    }
}

/// One log line for all undelivered records of a shutdown, the last line of the log.
pub fn log_undelivered(telemetry: &Telemetry) {
    let left = telemetry.left_behind();
    let summary: Vec<String> = left.iter().map(Left::to_string).collect();
    match left.iter().map(|left| left.lost).sum::<u64>() {
        _ if left.is_empty() => {}
        0 => tracing::warn!(
            left = summary.join("; "),
            "shutdown with undelivered records; persisted, sent after the next start"
        ),
        lost => {
            tracing::error!(left = summary.join("; "), lost, "shutdown with undelivered records; some were dropped")
        }
    }
}

fn report_late(late: &[&str], phase: &str) {
    if !late.is_empty() {
        tracing::warn!(subsystems = late.join(", "), "timed out while {phase}");
    }
}
