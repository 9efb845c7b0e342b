//! Acknowledgements: up to which contiguous offset each sink has acknowledged each stream. In: batches passed to sinks, and their
//! acknowledgements in any order. Out: offsets that may be persisted, since nothing before them is unacknowledged.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Receives progress: the sink's index, and the offset before which it has acknowledged everything.
pub type OnProgress = Box<dyn Fn(usize, u64)>;

/// One stream of one source, as seen by all its sinks.
pub struct AckTracker {
    sinks: RefCell<Vec<Progress>>,
    on_progress: OnProgress,
}

struct Progress {
    /// The ends of batches that were passed to the sink, in order, and whether each is done.
    open: VecDeque<(u64, bool)>,
    first: u64,
    acknowledged: u64,
}

/// A batch's handle on its tracker; a sink that is done with the batch reports it here.
#[derive(Clone)]
pub struct AckHandle {
    tracker: Rc<AckTracker>,
    end: u64,
    numbers: Rc<RefCell<Vec<Option<u64>>>>,
}

impl std::fmt::Debug for AckHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AckHandle({})", self.end)
    }
}

impl AckTracker {
    /// `starts`: the present offset of each sink.
    pub fn new(starts: &[u64], on_progress: OnProgress) -> Rc<AckTracker> {
        let progress = |start: &u64| Progress { open: VecDeque::new(), first: 0, acknowledged: *start };
        Rc::new(AckTracker { sinks: RefCell::new(starts.iter().map(progress).collect()), on_progress })
    }

    pub fn handle(self: &Rc<AckTracker>, end: u64) -> AckHandle {
        let count = self.sinks.borrow().len();
        AckHandle { tracker: self.clone(), end, numbers: Rc::new(RefCell::new(vec![None; count])) }
    }

    /// The offset up to which a sink has acknowledged.
    pub fn acknowledged(&self, sink: usize) -> u64 {
        self.sinks.borrow().get(sink).map_or(0, |progress| progress.acknowledged)
    }
}

impl AckHandle {
    /// The batch is about to be passed to a sink. Batches are passed in the order of their ends.
    pub fn open(&self, sink: usize) {
        if let Some(progress) = self.tracker.sinks.borrow_mut().get_mut(sink) {
            let number = progress.first + progress.open.len() as u64;
            progress.open.push_back((self.end, false));
            if let Some(slot) = self.numbers.borrow_mut().get_mut(sink) {
                *slot = Some(number);
            }
        }
    }

    /// The sink has delivered the batch, or dropped it for a counted reason.
    pub fn done(&self, sink: usize) {
        let Some(number) = self.numbers.borrow().get(sink).copied().flatten() else { return };
        let mut sinks = self.tracker.sinks.borrow_mut();
        let Some(progress) = sinks.get_mut(sink) else { return };
        let index = usize::try_from(number.saturating_sub(progress.first)).unwrap_or(usize::MAX);
        if let Some(entry) = progress.open.get_mut(index) {
            entry.1 = true;
        }
        let before = progress.acknowledged;
        while let Some((end, true)) = progress.open.front().copied() {
            progress.open.pop_front();
            progress.first += 1;
            progress.acknowledged = progress.acknowledged.max(end);
        }
        let now = progress.acknowledged;
        drop(sinks);
        if now > before {
            (self.tracker.on_progress)(sink, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_waits_for_every_batch_before_it() {
        let reported = Rc::new(RefCell::new(Vec::new()));
        let report = reported.clone();
        let tracker = AckTracker::new(&[0, 0], Box::new(move |sink, offset| report.borrow_mut().push((sink, offset))));
        let handles: Vec<AckHandle> = [10, 20, 30].into_iter().map(|end| tracker.handle(end)).collect();
        handles.iter().for_each(|handle| handle.open(0));
        handles[2].open(1);
        handles[1].done(0);
        handles[2].done(0);
        assert!(reported.borrow().is_empty(), "the first batch is still open");
        handles[0].done(0);
        handles[2].done(1);
        assert_eq!(*reported.borrow(), [(0, 30), (1, 30)]);
        handles[0].done(0);
        assert_eq!(reported.borrow().len(), 2, "a second `done` changes nothing");
        assert_eq!(tracker.acknowledged(0), 30);
    }
}
