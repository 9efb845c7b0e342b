//! The queue of one sink: batches in order, bounded by bytes. In: batches of all sources. Out: the same, one after the
//! other. Limits: when `max` bytes are reached, sources wait (`block`), or the oldest batch is dropped and counted
//! (`drop_oldest`). A single batch larger than the limit still passes when the queue is empty.

use crate::batch::Batch;
use crate::sink_options::WhenFull;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes that may be queued for a sink even under memory pressure.
const RESERVED: usize = 512 << 10;

pub struct Queue {
    /// The sink's index in all trackers.
    pub sink: usize,
    batches: RefCell<VecDeque<Rc<Batch>>>,
    bytes: Cell<usize>,
    max: usize,
    when_full: WhenFull,
    closed: Cell<bool>,
    filled: Notify,
    emptied: Notify,
    /// Batches of streams that can be re-read, queued or in a body in flight.
    tracked: Cell<usize>,
    /// Records that cannot be re-read, queued or in a body in flight.
    untracked: Cell<u64>,
    /// Records of the app's output, queued or in a body in flight. What no required sink waits for is not persisted at a stop.
    output: Cell<u64>,
    settled: Notify,
    row: Arc<Row>,
}

impl Queue {
    pub fn new(sink: usize, max: usize, when_full: WhenFull, row: Arc<Row>) -> Rc<Queue> {
        Rc::new(Queue {
            sink,
            batches: RefCell::default(),
            bytes: Cell::new(0),
            max,
            when_full,
            closed: Cell::new(false),
            filled: Notify::new(),
            emptied: Notify::new(),
            tracked: Cell::new(0),
            untracked: Cell::new(0),
            output: Cell::new(0),
            settled: Notify::new(),
            row,
        })
    }

    /// Whether the queue uses memory that other components may need. If not, the logs do not have to wait.
    pub fn exceeds_reserve(&self) -> bool {
        self.bytes.get() > RESERVED
    }

    /// Waits until there is room, if this queue blocks.
    pub async fn room(&self, bytes: usize) {
        while self.when_full == WhenFull::Block && self.bytes.get() > 0 && self.bytes.get() + bytes > self.max {
            self.emptied.notified().await;
        }
    }

    /// Appends a batch; its records count as the sink's from now on. `replayed`: some of them were read before a restart.
    pub fn push(&self, batch: Rc<Batch>, replayed: bool) {
        while self.when_full == WhenFull::DropOldest
            && self.bytes.get() > 0
            && self.bytes.get() + batch.cost() > self.max
        {
            if let Some(oldest) = self.pop() {
                self.row.drop_records(Reason::BufferFull, oldest.records.len() as u64);
                self.done(&oldest);
            }
        }
        let records = batch.records.len() as u64;
        self.row.receive(records);
        self.row.replay(if replayed { records } else { 0 });
        self.bytes.set(self.bytes.get() + batch.cost());
        match batch.ack {
            Some(_) => {
                self.tracked.set(self.tracked.get() + 1);
                self.output.set(self.output.get() + output_records(&batch));
            }
            None => self.untracked.set(self.untracked.get() + records),
        }
        self.batches.borrow_mut().push_back(batch);
        self.filled.notify_one();
    }

    pub fn pop(&self) -> Option<Rc<Batch>> {
        let batch = self.batches.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get().saturating_sub(batch.cost()));
        self.emptied.notify_waiters();
        self.emptied.notify_one();
        Some(batch)
    }

    /// The next batch; None when the queue is closed and empty.
    pub async fn next(&self) -> Option<Rc<Batch>> {
        loop {
            if let Some(batch) = self.pop() {
                return Some(batch);
            }
            if self.closed.get() {
                return None;
            }
            self.filled.notified().await;
        }
    }

    /// The sink has delivered a batch, or dropped it for a counted reason.
    pub fn done(&self, batch: &Batch) {
        let Some(ack) = &batch.ack else {
            return self.untracked.set(self.untracked.get().saturating_sub(batch.records.len() as u64));
        };
        ack.done(self.sink);
        self.tracked.set(self.tracked.get().saturating_sub(1));
        self.output.set(self.output.get().saturating_sub(output_records(batch)));
        self.settled.notify_one();
    }

    /// Waits until no batch is pending that another worker would re-read.
    pub async fn settled(&self) {
        while self.tracked.get() > 0 {
            self.settled.notified().await;
        }
    }

    /// Removes the batches that another worker will re-read.
    pub fn discard_tracked(&self) {
        let (tracked, rest): (VecDeque<_>, _) = self.batches.take().into_iter().partition(|batch| batch.ack.is_some());
        let discarded: usize = tracked.iter().map(|batch| batch.cost()).sum();
        self.batches.replace(rest);
        self.bytes.set(self.bytes.get().saturating_sub(discarded));
        self.emptied.notify_waiters();
    }

    /// Drops records that cannot be re-read, such as access records; returns how many.
    pub fn drop_untracked(&self) -> u64 {
        self.batches.borrow_mut().retain(|batch| batch.ack.is_some());
        let dropped = self.untracked.take();
        self.row.drop_records(Reason::Shutdown, dropped);
        dropped
    }

    /// Drops records of the app's output, which are persisted for required sinks only; returns how many.
    pub fn drop_output(&self) -> u64 {
        self.batches.borrow_mut().retain(|batch| output_records(batch) == 0);
        let dropped = self.output.take();
        self.row.drop_records(Reason::Shutdown, dropped);
        dropped
    }

    /// No more batches follow.
    pub fn close(&self) {
        self.closed.set(true);
        self.filled.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

/// A file can be read again; the app's output cannot.
fn output_records(batch: &Batch) -> u64 {
    if batch.file.is_none() && batch.ack.is_some() { batch.records.len() as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Stream;
    use crate::framer::Framer;
    use base::telemetry::component::Component;
    use base::telemetry::ledger::Ledger;
    use std::time::Duration;

    fn batch(text: &str) -> Rc<Batch> {
        Rc::new(Framer::new("s".into(), None, Stream::None, 100, 0).take(text.as_bytes()).expect("complete lines"))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn full_queue_drops_and_counts_oldest_or_blocks() {
        let row = Ledger::default().row(&Component::sink("logs.sinks.x".into(), "http"));
        let dropping = Queue::new(0, 2 * batch("a\nb\n").cost() + 1, WhenFull::DropOldest, row.clone());
        for text in ["a\nb\n", "c\nd\n", "e\nf\n"] {
            dropping.room(text.len()).await;
            dropping.push(batch(text), false);
        }
        assert_eq!(dropping.pop().map(|b| b.bytes.to_vec()), Some(b"c\nd\n".to_vec()));
        assert_eq!(row.counts().dropped_total(), 2);

        let blocking = Queue::new(0, 10, WhenFull::Block, row);
        blocking.room(100).await;
        blocking.push(batch("a line longer than the limit\n"), false);
        let waits = tokio::time::timeout(Duration::from_millis(20), blocking.room(1)).await;
        assert!(waits.is_err());
        let (_, popped) = tokio::join!(blocking.room(1), async { blocking.pop() });
        assert!(popped.is_some());

        blocking.push(batch("not\nre-readable\n"), false);
        assert_eq!(blocking.drop_untracked(), 3, "including the popped record that is not done");
        assert!(blocking.pop().is_none());
        blocking.close();
        assert!(blocking.next().await.is_none());
    }
}
