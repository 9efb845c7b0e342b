//! The end of the logs thread. In: readers and queues, with what they still hold. Out: a worker that reads on, or the files of what
//! no sink took and the row that tells so. Bounds: `READER_LEAVES` for the readers, `KEEP_RESERVE` for the files.

use crate::queue::Queue;
use crate::run::{LeftoverOf, Parts, Pipeline, sink_id};
use std::rc::Rc;
use std::time::{Duration, Instant};
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

/// Writes what the app wrote and no sink took into the state directory. Returns the pipelines where that failed.
pub fn keep(leftovers: Vec<LeftoverOf>) -> Vec<Rc<Pipeline>> {
    let mut unkept = Vec::new();
    for (left, ring, pipeline) in leftovers {
        if let Err(error) = left.keep(&ring, pipeline.name(), &pipeline.required_sinks()) {
            tracing::info!(source = pipeline.name(), %error, "lines of the app that no sink took could not be kept");
            unkept.push(pipeline);
        }
    }
    unkept
}

/// Tells what each sink has not taken: records of files and of the app are read again after a start, unless they could not be kept.
pub fn leave_behind(parts: &Parts, queues: &[Rc<Queue>], unkept: &[Rc<Pipeline>]) {
    for (sink, queue) in parts.plan.sinks.iter().zip(queues) {
        let lost = queue.give_up_untracked();
        let row = parts.telemetry.ledger.row("sink", format!("logs/{}", sink.name));
        let pending = row.counts().pending;
        let is_lost = unkept.iter().any(|pipeline| pipeline.sinks().any(|(index, _)| index == queue.sink));
        let (kept, lost) = if is_lost { (0, lost + pending) } else { (pending, lost) };
        parts.telemetry.leave_behind(sink_id(&sink.name), kept, lost);
    }
}
