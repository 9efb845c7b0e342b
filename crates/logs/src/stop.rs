//! Shutdown and handover of the logs thread. In: readers and queues, with what they still hold. Out: streams that another worker
//! continues, or backlog files of undelivered lines and a report. Limits: `READER_STOP` for the readers, `PERSIST_RESERVE` for
//! the files.

use crate::batch::Batch;
use crate::pipeline::Pipeline;
use crate::plan::SinkPlan;
use crate::source::Unacknowledged;
use base::telemetry::Telemetry;
use base::telemetry::reason::Reason;
use delivery::queue::Queue;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How long a reader may take to stop in a handover.
const READER_STOP: Duration = Duration::from_millis(100);

/// The end of the time for delivery, reserved for persisting undelivered lines.
pub const PERSIST_RESERVE: Duration = Duration::from_millis(200);

/// Hands over to another worker: nothing more is read here, and batches in flight may finish.
pub async fn hand_over(readers: Vec<JoinHandle<()>>, queues: &[Rc<Queue<Batch>>], until: Instant) {
    let reading_until = Instant::now() + READER_STOP;
    for mut reader in readers {
        // A reader that waits for room in a queue is aborted; its batch is re-read.
        if tokio::time::timeout_at(reading_until.into(), &mut reader).await.is_err() {
            reader.abort();
        }
    }
    let settled = async {
        for queue in queues {
            queue.settled().await;
        }
    };
    let _ = tokio::time::timeout_at(until.into(), settled).await;
    queues.iter().for_each(|queue| queue.discard_tracked());
}

/// Lines of a source that could not be persisted: all of them, or a number.
pub struct Unpersisted {
    pipeline: Rc<Pipeline>,
    lines: Option<u64>,
}

/// Persists app output that no sink has acknowledged in the state directory. Returns what is lost nevertheless.
pub fn persist(backlogs: Vec<Unacknowledged>) -> Vec<Unpersisted> {
    let mut unpersisted = Vec::new();
    for Unacknowledged { pipeline, persist } in backlogs {
        match persist() {
            Ok(0) => {}
            Ok(lines) => {
                tracing::error!(
                    component = pipeline.id(),
                    records = lines,
                    reason = Reason::BufferFull.as_str(),
                    "log records dropped at shutdown: capture buffer overflow"
                );
                unpersisted.push(Unpersisted { pipeline, lines: Some(lines) });
            }
            Err(error) => {
                tracing::info!(component = pipeline.id(), %error, "cannot persist undelivered app output at shutdown");
                unpersisted.push(Unpersisted { pipeline, lines: None });
            }
        }
    }
    unpersisted
}

/// Reports what each sink has not delivered: records of files are re-read after a start, and those of the app if a required sink
/// waits for them and they could be persisted.
pub fn report_undelivered(
    sinks: &[SinkPlan],
    telemetry: &Telemetry,
    queues: &[Rc<Queue<Batch>>],
    unpersisted: &[Unpersisted],
) {
    for (sink, queue) in sinks.iter().zip(queues) {
        let mut dropped = queue.drop_untracked();
        if !sink.required {
            dropped += queue.drop_output();
        }
        let row = telemetry.ledger.row(&sink.component());
        let pending = row.counts().pending;
        let of_sink = unpersisted.iter().filter(|source| source.pipeline.sinks().any(|(index, _)| index == queue.sink));
        let lost: u64 = of_sink.map(|source| source.lines.unwrap_or(pending)).sum();
        let lost = lost.min(pending);
        let (persisted, lost) = (pending - lost, dropped + lost);
        telemetry.leave_behind(sink.component().id, persisted, lost);
    }
}
