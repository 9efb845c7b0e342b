//! Connections that wait for their client, the oldest first, to be evicted when memory or slots run out. In: connections of
//! one data thread that begin and end to wait. Out: a signal to the oldest to close. Closing a connection without a request
//! costs its client one more connection; closing one with an incomplete head costs only the client that began it, so it is
//! closed first. Limits: one slot per connection.

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

/// Why a wait ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    Evicted,
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
    /// First and last of those that wait for the rest of a head, and of those that wait for a request.
    lists: [Option<(usize, usize)>; 2],
    draining: bool,
}

#[derive(Default)]
struct Entry {
    list: Option<usize>,
    previous: Option<usize>,
    next: Option<usize>,
    waker: Option<Waker>,
    must_close: bool,
    /// The drain has interrupted it.
    drain_seen: bool,
}

/// A connection's slot.
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

    /// Signals the connection that has waited longest to close; false if none waits.
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

    /// Interrupts all that wait, and all that will, since a drain has begun.
    pub fn drain(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.draining = true;
        inner.slots.iter_mut().filter_map(|entry| entry.waker.take()).for_each(Waker::wake);
    }
}

impl ParkedSlot {
    /// Returns the future's value, unless an interrupt comes first. A drain interrupts once.
    pub async fn wait<T>(&self, waiting: Waiting, future: impl Future<Output = T>) -> Result<T, Interrupt> {
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
                return Poll::Ready(Err(Interrupt::Evicted));
            }
            if draining && !std::mem::replace(&mut entry.drain_seen, true) {
                return Poll::Ready(Err(Interrupt::Drain));
            }
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                entry.waker = Some(context.waker().clone());
            }
            if entry.list.is_none() {
                inner.link(self.index, waiting as usize);
            }
            Poll::Pending
        })
        .await
        .inspect(|_| drop(parking))
    }
}

/// Removes a connection from the list when it no longer waits, also if its task is dropped.
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
    /// Appends to the end of its list: the wait begins now.
    fn link(&mut self, index: usize, list: usize) {
        let Some(ends) = self.lists.get_mut(list) else { return };
        let last = ends.map(|(_, last)| last);
        *ends = Some((ends.map_or(index, |(first, _)| first), index));
        if let Some(entry) = self.slots.get_mut(index) {
            (entry.list, entry.previous, entry.next) = (Some(list), last, None);
        }
        if let Some(last) = last.and_then(|last| self.slots.get_mut(last)) {
            last.next = Some(index);
        }
    }

    fn unlink(&mut self, index: usize) {
        let Some(entry) = self.slots.get_mut(index) else { return };
        let (Some(list), previous, next) = (entry.list.take(), entry.previous.take(), entry.next.take()) else {
            return;
        };
        if let Some(entry) = previous.and_then(|previous| self.slots.get_mut(previous)) {
            entry.next = next;
        }
        if let Some(entry) = next.and_then(|next| self.slots.get_mut(next)) {
            entry.previous = previous;
        }
        if let Some(Some((first, last))) = self.lists.get_mut(list) {
            match (previous, next) {
                (None, None) => self.lists[list] = None,
                (None, Some(next)) => *first = next,
                (Some(previous), None) => *last = previous,
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
    fn oldest_partial_head_is_evicted_before_idle() {
        let parked = Rc::new(Parked::default());
        let slots: Vec<ParkedSlot> = (0..4).map(|_| parked.slot()).collect();
        let mut idle = pin!(slots[0].wait(Waiting::Idle, pending::<()>()));
        let mut older = pin!(slots[1].wait(Waiting::Head, pending::<()>()));
        let mut newer = pin!(slots[2].wait(Waiting::Head, pending::<()>()));
        assert!(!parked.close_oldest(), "a wait begins when it is polled");
        assert!(poll(&mut idle).is_pending() && poll(&mut older).is_pending() && poll(&mut newer).is_pending());
        assert!(parked.close_oldest() && poll(&mut newer).is_pending() && poll(&mut idle).is_pending());
        assert_eq!(poll(&mut older), Poll::Ready(Err(Interrupt::Evicted)));
        assert!(parked.close_oldest() && poll(&mut idle).is_pending());
        assert_eq!(poll(&mut newer), Poll::Ready(Err(Interrupt::Evicted)));
        assert!(parked.close_oldest());
        assert_eq!(poll(&mut idle), Poll::Ready(Err(Interrupt::Evicted)));
        assert!(!parked.close_oldest());
    }

    #[test]
    fn ended_wait_is_skipped_and_drain_fires_once() {
        let parked = Rc::new(Parked::default());
        let slot = parked.slot();
        {
            let mut waiting = pin!(slot.wait(Waiting::Idle, pending::<()>()));
            assert!(poll(&mut waiting).is_pending());
        }
        assert!(!parked.close_oldest());
        parked.drain();
        let mut waiting = pin!(slot.wait(Waiting::Idle, pending::<()>()));
        assert_eq!(poll(&mut waiting), Poll::Ready(Err(Interrupt::Drain)));
        let mut again = pin!(slot.wait(Waiting::Idle, pending::<()>()));
        assert!(poll(&mut again).is_pending());
        let mut value = pin!(slot.wait(Waiting::Idle, async { 7 }));
        assert_eq!(poll(&mut value), Poll::Ready(Ok(7)));
    }
}
