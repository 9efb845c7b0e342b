//! The end of the logs thread. In: readers and queues, with what they still hold. Out: a worker that reads on, or the files of what
//! no sink took and the row that tells so. Bounds: `READER_LEAVES` for the readers, `KEEP_RESERVE` for the files.

use crate::pipeline::Pipeline;
use crate::plan::SinkPlan;
use crate::queue::Queue;
use crate::source::stdio;
use base::telemetry::Telemetry;
use base::telemetry::reason::Reason;
use std::rc::Rc;
use std::time::{Duration, Instant};
use sys::ring::Ring;
use tokio::task::JoinHandle;

/// How long a reader may take to see that another worker takes over.
const READER_LEAVES: Duration = Duration::from_millis(100);

/// The end of the time for delivering, left for writing down what was not delivered.
pub const KEEP_RESERVE: Duration = Duration::from_millis(200);

/// Lets another worker read on: nothing more is read here, and what is under way may end.
pub async fn hand_over(readers: Vec<JoinHandle<()>>, queues: &[Rc<Queue>], until: Instant) {
    let reading_until = Instant::now() + READER_LEAVES;
    for mut reader in readers {
        // A reader that waits for room in a queue is ended; the batch in its hand is read again.
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
    queues.iter().for_each(|queue| queue.leave_tracked());
}

/// What could not be kept of a source: all of it, or a number of lines.
pub struct Unkept {
    pipeline: Rc<Pipeline>,
    lines: Option<u64>,
}

/// Writes what the app wrote and no sink took into the state directory. Returns what is lost all the same.
pub fn keep(leftovers: Vec<BacklogOf>) -> Vec<Unkept> {
    let mut unkept = Vec::new();
    for (left, ring, pipeline) in leftovers {
        match left.keep(&ring, pipeline.name(), &pipeline.required_sinks()) {
            Ok(0) => {}
            Ok(lines) => {
                tracing::error!(
                    source = pipeline.name(),
                    records = lines,
                    reason = Reason::BufferFull.as_str(),
                    "log records dropped at shutdown: capture buffer overflow"
                );
                unkept.push(Unkept { pipeline, lines: Some(lines) });
            }
            Err(error) => {
                tracing::info!(source = pipeline.name(), %error, "cannot persist undelivered app output at shutdown");
                unkept.push(Unkept { pipeline, lines: None });
            }
        }
    }
    unkept
}

/// Tells what each sink has not taken: records of files and of the app are read again after a start, unless they could not be kept.
pub fn leave_behind(sinks: &[SinkPlan], telemetry: &Telemetry, queues: &[Rc<Queue>], unkept: &[Unkept]) {
    for (sink, queue) in sinks.iter().zip(queues) {
        let lost = queue.give_up_untracked();
        let row = telemetry.ledger.row(&sink.component());
        let pending = row.counts().pending;
        let of_sink = unkept.iter().filter(|unkept| unkept.pipeline.sinks().any(|(index, _)| index == queue.sink));
        let gone: u64 = of_sink.map(|unkept| unkept.lines.unwrap_or(pending)).sum();
        let gone = gone.min(pending);
        let (kept, lost) = (pending - gone, lost + gone);
        telemetry.leave_behind(sink.component().id, kept, lost);
    }
}

/// What may be left in a ring, and the source that reads it.
pub type BacklogOf = (stdio::Backlog, Ring, Rc<Pipeline>);
