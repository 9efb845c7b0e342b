//! The order of a stop, and of a hand-over to another worker. In: orders. Out: phases for the subsystems, messages back. One
//! deadline holds for all of it.

use crate::app::Stop;
use crate::control::{AppFacts, Control, Order};
use base::runtime::lifecycle::{Lifecycle, Phase};
use base::runtime::scope::Scope;
use base::runtime::state::StateDir;
use base::telemetry::{Left, Telemetry};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use supervisor::message::EXIT_HANDED_OVER;
use supervisor::message::ToSupervisor;
use tokio::sync::mpsc::Receiver;

/// What delivering and keeping get even where the deadline has passed; the supervisor allows for it.
const KEEP_AT_LEAST: Duration = Duration::from_millis(250);

/// SavedConfig back from the deadline for closing what is open.
const CLOSE_RESERVE: Duration = Duration::from_millis(300);

/// How long bodies at receivers may take before another worker takes over. Requests under way have `drain` after that.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How long the last records of a worker that was replaced may take; the supervisor allows for it.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// Serves until told to stop or to make room, then leads the subsystems through the phases. Answers the exit code.
pub async fn lead(
    control: &Control,
    orders: &mut Receiver<Order>,
    lifecycle: &mut Lifecycle,
    facts: &AppFacts,
    times: &Stop,
    state: &StateDir,
    pages: Scope,
) -> i32 {
    let first = orders.recv().await;
    let until = match first {
        Some(Order::Yield) => return hand_over(control, lifecycle, times, state, pages).await,
        Some(Order::Stop { until }) => until,
        Some(Order::AppEnded | Order::Gone) | None => Instant::now() + times.timeout.0,
    };
    facts.runs.send_replace(false);
    tracing::info!(within = %rounded(until.saturating_duration_since(Instant::now())), "stopping");
    // A later word on the time, as of `stop --timeout`, can only shorten it.
    let mut until = until;
    let left =
        |reserve: Duration, until: Instant| until.saturating_duration_since(Instant::now()).saturating_sub(reserve);
    let late = lifecycle.advance(Phase::Drain, times.drain_timeout.0.min(left(CLOSE_RESERVE, until))).await;
    report_late(&late, "drained");
    control.send(ToSupervisor::Drained);
    // The app's own end is the supervisor's to bring about, within the same deadline; without a supervisor there is none to hear of.
    let mut awaited = matches!(first, Some(Order::Stop { .. }));
    while awaited && let Ok(Some(order)) = tokio::time::timeout(left(CLOSE_RESERVE, until), orders.recv()).await {
        match order {
            Order::Stop { until: sooner } => until = until.min(sooner),
            Order::AppEnded | Order::Gone => awaited = false,
            Order::Yield => {}
        }
    }
    facts.pid.store(0, Ordering::Relaxed);
    // An app that used up all the time has the most interesting last lines: they are kept in any case.
    let hurry = lifecycle.hurry();
    let late = {
        let mut finishing =
            std::pin::pin!(lifecycle.advance(Phase::Finish, left(CLOSE_RESERVE, until).max(KEEP_AT_LEAST)));
        loop {
            tokio::select! {
                late = &mut finishing => break late,
                Some(order) = orders.recv() => {
                    if let Order::Stop { until: sooner } = order {
                        until = until.min(sooner);
                        hurry.by(Instant::now() + left(CLOSE_RESERVE, until).max(KEEP_AT_LEAST));
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

/// Another worker is ready: it gets the rings and the state as soon as nothing here touches them any more, and what is under way
/// has the time of a drain.
async fn hand_over(control: &Control, lifecycle: &mut Lifecycle, times: &Stop, state: &StateDir, pages: Scope) -> i32 {
    tracing::info!("handing over to a new worker");
    let late = lifecycle.advance(Phase::Handover, HAND_OVER).await;
    if late.is_empty() {
        state.release();
        control.send(ToSupervisor::Released);
        // The other worker answers from here on.
        drop(pages);
    } else {
        // What was not let go of ends with this process; until then the other worker waits for it, and serves requests meanwhile.
        report_late(&late, "let go");
    }
    lifecycle.advance(Phase::Drain, times.drain_timeout.0).await;
    lifecycle.advance(Phase::Finish, LAST_RECORDS).await;
    lifecycle.advance(Phase::Close, KEEP_AT_LEAST).await;
    EXIT_HANDED_OVER
}

/// The time as it was configured, in seconds: what the message took on its way is not worth a word.
fn rounded(left: Duration) -> String {
    let tenths = left.as_millis().div_ceil(100);
    match tenths % 10 {
        0 => format!("{}s", tenths / 10),
        tenth => format!("{}.{tenth}s", tenths / 10),
    }
}

/// One line for all that a stop leaves behind, and the last one.
pub fn log_undelivered(telemetry: &Telemetry) {
    let left = telemetry.left_behind();
    let told: Vec<String> = left.iter().map(Left::to_string).collect();
    match left.iter().map(|left| left.lost).sum::<u64>() {
        _ if left.is_empty() => {}
        0 => tracing::warn!(
            left = told.join("; "),
            "shutdown with undelivered records; persisted, sent after the next start"
        ),
        lost => tracing::error!(left = told.join("; "), lost, "shutdown with undelivered records; some were dropped"),
    }
}

fn report_late(late: &[&str], what: &str) {
    if !late.is_empty() {
        tracing::warn!(subsystems = late.join(", "), "not {what} when the time was over");
    }
}
