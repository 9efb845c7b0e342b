//! Bodies in flight: futures that run at the same time, and finish in any order. In: a future per body. Out: their results.
//! Limit: `max_concurrency`, which the caller keeps.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

pub struct Window<T> {
    futures: Vec<Pin<Box<dyn Future<Output = T>>>>,
}

impl<T> Default for Window<T> {
    fn default() -> Window<T> {
        Window { futures: Vec::new() }
    }
}

impl<T> Window<T> {
    pub fn push(&mut self, future: impl Future<Output = T> + 'static) {
        self.futures.push(Box::pin(future));
    }

    pub fn len(&self) -> usize {
        self.futures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.futures.is_empty()
    }

    /// The result of the next one that finishes; never returns if there is none.
    pub async fn next(&mut self) -> T {
        poll_fn(|context| {
            for index in 0..self.futures.len() {
                let Some(future) = self.futures.get_mut(index) else { break };
                if let Poll::Ready(result) = future.as_mut().poll(context) {
                    drop(self.futures.swap_remove(index));
                    return Poll::Ready(result);
                }
            }
            Poll::Pending
        })
        .await
    }
}
