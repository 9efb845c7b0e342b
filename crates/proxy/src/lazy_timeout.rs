//! Timeouts that cost nothing unless they expire: one timer per connection, armed for the earliest relevant deadline
//! and checked again only when it fires. In: a future and a limit. Out: its value, or that the limit has elapsed.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::Sleep;

pub struct LazyTimeout {
    timer: Pin<Box<Sleep>>,
}

/// The limit has elapsed.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

impl LazyTimeout {
    pub fn new(first: Duration) -> LazyTimeout {
        LazyTimeout { timer: Box::pin(tokio::time::sleep(first)) }
    }

    /// Waits for the future, but no longer than `limit`.
    pub async fn within<F: Future>(&mut self, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
        let mut future = std::pin::pin!(future);
        let mut until: Option<Instant> = None;
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            // The clock is read only if there is something to wait for.
            let until = *until.get_or_insert_with(|| Instant::now() + limit);
            if self.timer.deadline().into_std() > until {
                self.timer.as_mut().reset(until.into());
            }
            while self.timer.as_mut().poll(context).is_ready() {
                if Instant::now() >= until {
                    return Poll::Ready(Err(Elapsed));
                }
                self.timer.as_mut().reset(until.into());
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn limit_holds_with_timer_armed_early_or_late() {
        let mut timeout = LazyTimeout::new(Duration::from_millis(1));
        for limit in [20, 5, 60] {
            let limit = Duration::from_millis(limit);
            assert_eq!(timeout.within(limit, std::future::pending::<()>()).await, Err(Elapsed));
            assert_eq!(timeout.within(limit, async { 7 }).await, Ok(7));
        }
    }
}
