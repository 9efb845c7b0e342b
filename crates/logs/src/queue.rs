//! What waits for one sink: batches in order, bounded by bytes. In: batches of all sources. Out: the same, one after the
//! other. Full: sources wait (`block`), or the oldest batch goes, counted (`drop_oldest`). A batch that alone is larger than
//! the bound still passes when the queue is empty.

use crate::batch::Batch;
use crate::sink_options::WhenFull;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes that may wait for a sink whatever other parts do with the memory.
const LITTLE: usize = 512 << 10;

pub struct Queue {
    /// The sink's place in all tracks.
    pub sink: usize,
    batches: RefCell<VecDeque<Rc<Batch>>>,
    bytes: Cell<usize>,
    max: usize,
    when_full: WhenFull,
    closed: Cell<bool>,
    filled: Notify,
    emptied: Notify,
    /// Batches of streams that can be read again, here or in a body under way.
    tracked: Cell<usize>,
    /// Records that nobody can read again, here or in a body under way.
    untracked: Cell<u64>,
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
            settled: Notify::new(),
            row,
        })
    }

    /// Whether what waits here takes memory that others may miss. While it does not, it is not the logs that have to wait.
    pub fn holds_much(&self) -> bool {
        self.bytes.get() > LITTLE
    }

    /// Waits until there is room, where this queue blocks.
    pub async fn room(&self, bytes: usize) {
        while self.when_full == WhenFull::Block && self.bytes.get() > 0 && self.bytes.get() + bytes > self.max {
            self.emptied.notified().await;
        }
    }

    /// Appends a batch; its records are the sink's from now on. `replayed`: some of them were read before a restart.
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
        match batch.ticket {
            Some(_) => self.tracked.set(self.tracked.get() + 1),
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

    /// The sink has delivered a batch, or given it up for a counted reason.
    pub fn done(&self, batch: &Batch) {
        let Some(ticket) = &batch.ticket else {
            return self.untracked.set(self.untracked.get().saturating_sub(batch.records.len() as u64));
        };
        ticket.done(self.sink);
        self.tracked.set(self.tracked.get().saturating_sub(1));
        self.settled.notify_one();
    }

    /// Waits until nothing is under way that another worker would read again.
    pub async fn settled(&self) {
        while self.tracked.get() > 0 {
            self.settled.notified().await;
        }
    }

    /// Leaves what another worker will read again to it.
    pub fn leave_tracked(&self) {
        let (tracked, rest): (VecDeque<_>, _) =
            self.batches.take().into_iter().partition(|batch| batch.ticket.is_some());
        let left: usize = tracked.iter().map(|batch| batch.cost()).sum();
        self.batches.replace(rest);
        self.bytes.set(self.bytes.get().saturating_sub(left));
        self.emptied.notify_waiters();
    }

    /// Gives up what nobody can read again, as access records; answers how many records that are.
    pub fn give_up_untracked(&self) -> u64 {
        self.batches.borrow_mut().retain(|batch| batch.ticket.is_some());
        let given_up = self.untracked.take();
        self.row.drop_records(Reason::Shutdown, given_up);
        given_up
    }

    /// Nothing more will come.
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
    use crate::batch::Stream;
    use crate::framer::Framer;
    use base::telemetry::component::Component;
    use base::telemetry::ledger::Ledger;
    use std::time::Duration;

    fn batch(text: &str) -> Rc<Batch> {
        Rc::new(Framer::new("s".into(), None, Stream::None, 100, 0).take(text.as_bytes()).expect("whole lines"))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_full_queue_drops_the_oldest_and_counts_or_makes_its_source_wait() {
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
        blocking.push(batch("a line longer than the bound\n"), false);
        let waits = tokio::time::timeout(Duration::from_millis(20), blocking.room(1)).await;
        assert!(waits.is_err());
        let (_, taken) = tokio::join!(blocking.room(1), async { blocking.pop() });
        assert!(taken.is_some());

        blocking.push(batch("nobody\nreads it again\n"), false);
        assert_eq!(blocking.give_up_untracked(), 3, "with the one that was taken and is not done");
        assert!(blocking.pop().is_none());
        blocking.close();
        assert!(blocking.next().await.is_none());
    }
}
