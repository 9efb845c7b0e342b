//! How far each sink has come in each stream: the lowest contiguous offset that it has acknowledged. In: batches handed to
//! sinks, and their acknowledgements in any order. Out: offsets that may be written down, since nothing before them is open.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Hears of progress: the sink's index, and the offset before which it has everything.
pub type OnProgress = Box<dyn Fn(usize, u64)>;

/// One stream of one source, as seen by all its sinks.
pub struct AckTracker {
    sinks: RefCell<Vec<Progress>>,
    on_progress: OnProgress,
}

struct Progress {
    /// The ends of batches that were handed out, in order, and whether each is done.
    open: VecDeque<(u64, bool)>,
    first: u64,
    acknowledged: u64,
}

/// A batch's claim on its track; the sink that is done with the batch says so through it.
#[derive(Clone)]
pub struct AckHandle {
    track: Rc<AckTracker>,
    end: u64,
    numbers: Rc<RefCell<Vec<Option<u64>>>>,
}

impl std::fmt::Debug for AckHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AckHandle({})", self.end)
    }
}

impl AckTracker {
    /// `starts`: where each sink stands now.
    pub fn new(starts: &[u64], on_progress: OnProgress) -> Rc<AckTracker> {
        let progress = |start: &u64| Progress { open: VecDeque::new(), first: 0, acknowledged: *start };
        Rc::new(AckTracker { sinks: RefCell::new(starts.iter().map(progress).collect()), on_progress })
    }

    pub fn ticket(self: &Rc<AckTracker>, end: u64) -> AckHandle {
        let count = self.sinks.borrow().len();
        AckHandle { track: self.clone(), end, numbers: Rc::new(RefCell::new(vec![None; count])) }
    }

    /// How far a sink has acknowledged.
    pub fn acknowledged(&self, sink: usize) -> u64 {
        self.sinks.borrow().get(sink).map_or(0, |progress| progress.acknowledged)
    }
}

impl AckHandle {
    /// The batch is about to be handed to a sink. Handed out in the order of their ends.
    pub fn open(&self, sink: usize) {
        if let Some(progress) = self.track.sinks.borrow_mut().get_mut(sink) {
            let number = progress.first + progress.open.len() as u64;
            progress.open.push_back((self.end, false));
            if let Some(place) = self.numbers.borrow_mut().get_mut(sink) {
                *place = Some(number);
            }
        }
    }

    /// The sink has delivered the batch, or given it up for a counted reason.
    pub fn done(&self, sink: usize) {
        let Some(number) = self.numbers.borrow().get(sink).copied().flatten() else { return };
        let mut sinks = self.track.sinks.borrow_mut();
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
            (self.track.on_progress)(sink, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_told_only_when_nothing_before_it_is_open() {
        let told = Rc::new(RefCell::new(Vec::new()));
        let hear = told.clone();
        let track = AckTracker::new(&[0, 0], Box::new(move |sink, offset| hear.borrow_mut().push((sink, offset))));
        let tickets: Vec<AckHandle> = [10, 20, 30].into_iter().map(|end| track.ticket(end)).collect();
        tickets.iter().for_each(|ticket| ticket.open(0));
        tickets[2].open(1);
        tickets[1].done(0);
        tickets[2].done(0);
        assert!(told.borrow().is_empty(), "the first is still open");
        tickets[0].done(0);
        tickets[2].done(1);
        assert_eq!(*told.borrow(), [(0, 30), (1, 30)]);
        tickets[0].done(0);
        assert_eq!(told.borrow().len(), 2, "done twice is done once");
        assert_eq!(track.acknowledged(0), 30);
    }
}
