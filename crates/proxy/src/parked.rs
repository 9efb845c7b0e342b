//! Connections that wait for their client, the oldest first, so that they can give way when memory or places are short. In:
//! connections of one data thread that begin and end to wait. Out: the oldest of them told to close. A connection without a
//! request costs its client one more connection; one whose head has begun and does not end costs nobody but whoever began it, and
//! goes first. Bound: one place a connection.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The rest of a request head.
    Head,
    /// A request.
    Idle,
}

/// Why the waiting ended before what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    GiveWay,
    Drain,
}

#[derive(Default)]
pub struct Parked {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Entry>,
    free: Vec<usize>,
    /// First and last of those that wait for a head, and of those that wait for a request.
    lists: [Option<(usize, usize)>; 2],
    draining: bool,
}

#[derive(Default)]
struct Entry {
    list: Option<usize>,
    before: Option<usize>,
    after: Option<usize>,
    waker: Option<Waker>,
    must_close: bool,
    /// It knows that a drain has begun.
    drains: bool,
}

/// A connection's place.
pub struct ParkedSlot {
    parked: Rc<Parked>,
    index: usize,
}

impl Parked {
    pub fn slot(self: &Rc<Parked>) -> ParkedSlot {
        let mut inner = self.inner.borrow_mut();
        let index = inner.free.pop().unwrap_or_else(|| {
            inner.slots.push(Entry::default());
            inner.slots.len() - 1
        });
        ParkedSlot { parked: self.clone(), index }
    }

    /// Tells the one that has waited longest to close; false where none waits.
    pub fn close_oldest(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Some(index) = inner.lists.iter().flatten().map(|(first, _)| *first).next() else { return false };
        inner.unlink(index);
        if let Some(entry) = inner.slots.get_mut(index) {
            entry.must_close = true;
            entry.waker.take().into_iter().for_each(Waker::wake);
        }
        true
    }

    /// Tells all that wait, and all that will, that a drain has begun.
    pub fn drain(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.draining = true;
        inner.slots.iter_mut().filter_map(|entry| entry.waker.take()).for_each(Waker::wake);
    }
}

impl ParkedSlot {
    /// The future's value, unless the connection is told something first. A drain is told once.
    pub async fn wait<T>(&self, what: Waiting, future: impl Future<Output = T>) -> Result<T, Told> {
        let mut future = std::pin::pin!(future);
        let parking = Parking(self);
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            let mut inner = self.parked.inner.borrow_mut();
            let draining = inner.draining;
            let Some(entry) = inner.slots.get_mut(self.index) else { return Poll::Pending };
            if std::mem::take(&mut entry.must_close) {
                return Poll::Ready(Err(Told::GiveWay));
            }
            if draining && !std::mem::replace(&mut entry.drains, true) {
                return Poll::Ready(Err(Told::Drain));
            }
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                entry.waker = Some(context.waker().clone());
            }
            if entry.list.is_none() {
                inner.link(self.index, what as usize);
            }
            Poll::Pending
        })
        .await
        .inspect(|_| drop(parking))
    }
}

/// Takes a connection out of the list when it no longer waits, also where its task is dropped.
struct Parking<'a>(&'a ParkedSlot);

impl Drop for Parking<'_> {
    fn drop(&mut self) {
        self.0.parked.inner.borrow_mut().unlink(self.0.index);
    }
}

impl Drop for ParkedSlot {
    fn drop(&mut self) {
        let mut inner = self.parked.inner.borrow_mut();
        inner.unlink(self.index);
        if let Some(entry) = inner.slots.get_mut(self.index) {
            *entry = Entry::default();
        }
        inner.free.push(self.index);
    }
}

impl Inner {
    /// At the end of its list: it begins to wait now.
    fn link(&mut self, index: usize, list: usize) {
        let Some(ends) = self.lists.get_mut(list) else { return };
        let last = ends.map(|(_, last)| last);
        *ends = Some((ends.map_or(index, |(first, _)| first), index));
        if let Some(entry) = self.slots.get_mut(index) {
            (entry.list, entry.before, entry.after) = (Some(list), last, None);
        }
        if let Some(last) = last.and_then(|last| self.slots.get_mut(last)) {
            last.after = Some(index);
        }
    }

    fn unlink(&mut self, index: usize) {
        let Some(entry) = self.slots.get_mut(index) else { return };
        let (Some(list), before, after) = (entry.list.take(), entry.before.take(), entry.after.take()) else { return };
        if let Some(before) = before.and_then(|before| self.slots.get_mut(before)) {
            before.after = after;
        }
        if let Some(after) = after.and_then(|after| self.slots.get_mut(after)) {
            after.before = before;
        }
        if let Some(Some((first, last))) = self.lists.get_mut(list) {
            match (before, after) {
                (None, None) => self.lists[list] = None,
                (None, Some(after)) => *first = after,
                (Some(before), None) => *last = before,
                (Some(_), Some(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::pin::pin;
    use std::task::Context;

    fn poll<T>(future: &mut std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_oldest_gives_way_and_a_begun_head_goes_before_an_idle_connection() {
        let parked = Rc::new(Parked::default());
        let slots: Vec<ParkedSlot> = (0..4).map(|_| parked.slot()).collect();
        let mut idle = pin!(slots[0].wait(Waiting::Idle, pending::<()>()));
        let mut older = pin!(slots[1].wait(Waiting::Head, pending::<()>()));
        let mut newer = pin!(slots[2].wait(Waiting::Head, pending::<()>()));
        assert!(!parked.close_oldest(), "nobody waits before it is polled");
        assert!(poll(&mut idle).is_pending() && poll(&mut older).is_pending() && poll(&mut newer).is_pending());
        assert!(parked.close_oldest() && poll(&mut newer).is_pending() && poll(&mut idle).is_pending());
        assert_eq!(poll(&mut older), Poll::Ready(Err(Told::GiveWay)));
        assert!(parked.close_oldest() && poll(&mut idle).is_pending());
        assert_eq!(poll(&mut newer), Poll::Ready(Err(Told::GiveWay)));
        assert!(parked.close_oldest());
        assert_eq!(poll(&mut idle), Poll::Ready(Err(Told::GiveWay)));
        assert!(!parked.close_oldest());
    }

    #[test]
    fn who_waits_no_more_is_not_told_and_a_drain_is_told_once() {
        let parked = Rc::new(Parked::default());
        let slot = parked.slot();
        {
            let mut waiting = pin!(slot.wait(Waiting::Idle, pending::<()>()));
            assert!(poll(&mut waiting).is_pending());
        }
        assert!(!parked.close_oldest());
        parked.drain();
        let mut waiting = pin!(slot.wait(Waiting::Idle, pending::<()>()));
        assert_eq!(poll(&mut waiting), Poll::Ready(Err(Told::Drain)));
        let mut again = pin!(slot.wait(Waiting::Idle, pending::<()>()));
        assert!(poll(&mut again).is_pending());
        let mut value = pin!(slot.wait(Waiting::Idle, async { 7 }));
        assert_eq!(poll(&mut value), Poll::Ready(Ok(7)));
    }
}
