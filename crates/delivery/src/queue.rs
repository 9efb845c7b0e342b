//! The queue of one sink: batches in order, bounded by bytes. In: batches of all sources. Out: the same, those of a stream in
//! order. Limits: when `max` bytes are reached, sources wait (`block`), or the oldest or the newest batch is dropped and counted
//! (`drop_oldest`, `drop_newest`). A single batch larger than the limit still passes when the queue is empty.

use crate::batch::{Batch, Origin};
use crate::options::WhenFull;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes that may be queued for a sink even under memory pressure.
const RESERVED: usize = 512 << 10;

pub struct Queue<B> {
    /// The sink's index in all trackers.
    pub sink: usize,
    batches: RefCell<VecDeque<Rc<B>>>,
    bytes: Cell<usize>,
    /// How many of the first batches are known to be of a busy stream.
    busy: Cell<usize>,
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

impl<B: Batch> Queue<B> {
    pub fn new(sink: usize, max: usize, when_full: WhenFull, row: Arc<Row>) -> Rc<Queue<B>> {
        Rc::new(Queue {
            sink,
            batches: RefCell::default(),
            bytes: Cell::new(0),
            busy: Cell::new(0),
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
    pub fn push(&self, batch: Rc<B>, replayed: bool) {
        let records = batch.records() as u64;
        self.row.receive(records);
        self.row.replay(if replayed { records } else { 0 });
        self.count(&batch);
        let is_full = || self.bytes.get() > 0 && self.bytes.get() + batch.cost() > self.max;
        if self.when_full == WhenFull::DropNewest && is_full() {
            return self.overflow(&batch);
        }
        while self.when_full == WhenFull::DropOldest && is_full() {
            match self.pop() {
                Some(oldest) => self.overflow(&oldest),
                None => break,
            }
        }
        self.bytes.set(self.bytes.get() + batch.cost());
        self.batches.borrow_mut().push_back(batch);
        self.filled.notify_one();
    }

    fn count(&self, batch: &B) {
        let records = batch.records() as u64;
        match batch.origin() {
            Origin::Stored => self.tracked.set(self.tracked.get() + 1),
            Origin::Captured => {
                self.tracked.set(self.tracked.get() + 1);
                self.output.set(self.output.get() + records);
            }
            Origin::Memory => self.untracked.set(self.untracked.get() + records),
        }
    }

    fn overflow(&self, batch: &B) {
        self.row.drop_records(Reason::BufferFull, batch.records() as u64);
        self.done(batch);
    }

    pub fn pop(&self) -> Option<Rc<B>> {
        self.rescan();
        self.pop_unless(&|_| false)
    }

    /// A stream may have stopped being busy.
    pub fn rescan(&self) {
        self.busy.set(0);
    }

    /// The first batch whose stream is not busy. Those before it are not checked again until `rescan`.
    pub fn pop_unless(&self, is_busy: &dyn Fn(u64) -> bool) -> Option<Rc<B>> {
        let mut batches = self.batches.borrow_mut();
        let index = (self.busy.get()..batches.len())
            .find(|index| batches.get(*index).is_some_and(|batch| !is_busy(batch.stream())));
        self.busy.set(index.unwrap_or(batches.len()));
        let index = index?;
        let batch = batches.remove(index)?;
        drop(batches);
        self.bytes.set(self.bytes.get().saturating_sub(batch.cost()));
        self.emptied.notify_waiters();
        self.emptied.notify_one();
        Some(batch)
    }

    /// Waits until a batch was pushed or the queue was closed.
    pub async fn changed(&self) {
        self.filled.notified().await;
    }

    pub fn is_empty(&self) -> bool {
        self.batches.borrow().is_empty()
    }

    /// The sink has delivered a batch, or dropped it for a counted reason.
    pub fn done(&self, batch: &B) {
        let records = batch.records() as u64;
        batch.acknowledge(self.sink);
        match batch.origin() {
            Origin::Memory => return self.untracked.set(self.untracked.get().saturating_sub(records)),
            Origin::Captured => self.output.set(self.output.get().saturating_sub(records)),
            Origin::Stored => {}
        }
        self.tracked.set(self.tracked.get().saturating_sub(1));
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
        self.rescan();
        let (tracked, rest): (VecDeque<_>, _) =
            self.batches.take().into_iter().partition(|batch| batch.origin() != Origin::Memory);
        let discarded: usize = tracked.iter().map(|batch| batch.cost()).sum();
        self.batches.replace(rest);
        self.bytes.set(self.bytes.get().saturating_sub(discarded));
        self.emptied.notify_waiters();
    }

    /// Drops records that cannot be re-read, such as access records; returns how many.
    pub fn drop_untracked(&self) -> u64 {
        self.rescan();
        self.batches.borrow_mut().retain(|batch| batch.origin() != Origin::Memory);
        let dropped = self.untracked.take();
        self.row.drop_records(Reason::Shutdown, dropped);
        dropped
    }

    /// Drops records of the app's output, which are persisted for required sinks only; returns how many.
    pub fn drop_output(&self) -> u64 {
        self.rescan();
        self.batches.borrow_mut().retain(|batch| batch.origin() != Origin::Captured);
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

#[cfg(test)]
mod tests {
    use super::*;
    use base::telemetry::component::Component;
    use base::telemetry::ledger::Ledger;
    use std::time::Duration;

    /// A batch of two records.
    struct Two(usize);

    impl Batch for Two {
        fn records(&self) -> usize {
            2
        }

        fn cost(&self) -> usize {
            10
        }

        fn stream(&self) -> u64 {
            self.0 as u64 % 2
        }

        fn origin(&self) -> Origin {
            Origin::Memory
        }

        fn acknowledge(&self, _sink: usize) {}
    }

    fn queue(max: usize, when_full: WhenFull) -> (Rc<Queue<Two>>, Arc<Row>) {
        let row = Ledger::default().row(&Component::sink("logs.sinks.x".into(), "http"));
        (Queue::new(0, max, when_full, row.clone()), row)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn full_queue_drops_and_counts_or_blocks() {
        for (when_full, first) in [(WhenFull::DropOldest, 1), (WhenFull::DropNewest, 0)] {
            let (dropping, row) = queue(21, when_full);
            for number in 0..3 {
                dropping.room(10).await;
                dropping.push(Rc::new(Two(number)), false);
            }
            assert_eq!(dropping.pop().map(|batch| batch.0), Some(first), "{when_full:?}");
            let counts = row.counts();
            assert_eq!((counts.dropped_total(), counts.pending), (2, 4), "{when_full:?}");
        }

        let (blocking, _) = queue(5, WhenFull::Block);
        blocking.room(100).await;
        blocking.push(Rc::new(Two(0)), false);
        let waits = tokio::time::timeout(Duration::from_millis(20), blocking.room(1)).await;
        assert!(waits.is_err());
        let (_, popped) = tokio::join!(blocking.room(1), async { blocking.pop() });
        assert!(popped.is_some());
        blocking.push(Rc::new(Two(1)), false);
        assert_eq!(blocking.drop_untracked(), 4, "including the popped batch that is not done");
        assert!(blocking.is_empty());
    }

    #[test]
    fn busy_streams_are_skipped_in_order() {
        let (queue, _) = queue(100, WhenFull::Block);
        (0..4).for_each(|number| queue.push(Rc::new(Two(number)), false));
        let order: Vec<usize> =
            std::iter::from_fn(|| queue.pop_unless(&|stream| stream == 0)).map(|batch| batch.0).collect();
        assert_eq!(order, [1, 3]);
        queue.push(Rc::new(Two(5)), false);
        assert_eq!(queue.pop_unless(&|stream| stream == 0).map(|batch| batch.0), Some(5));
        assert!(queue.pop_unless(&|_| false).is_none(), "known to be busy");
        queue.rescan();
        assert_eq!(queue.pop_unless(&|_| false).map(|batch| batch.0), Some(0));
        assert_eq!(queue.pop().map(|batch| batch.0), Some(2));
    }
}
