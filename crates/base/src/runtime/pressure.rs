//! How much of its memory the worker uses, told by one who looks to all who can do with less. In: resident bytes and the limit. Out:
//! whether to take in more. Sources that can wait wait, so that what they would read stays where it is (a file, the capture ring);
//! what cannot wait is left out, counted.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The part of the limit above which nothing more is taken in, in percent.
const TIGHT_PERCENT: u64 = 75;

/// The longest pause of a source that can wait: one that read nothing for ever would be a loss too.
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// Shared by all subsystems of a worker.
#[derive(Clone, Debug)]
pub struct Pressure {
    tight: Arc<watch::Sender<bool>>,
    requested: Arc<Notify>,
}

impl Default for Pressure {
    fn default() -> Pressure {
        Pressure { tight: Arc::new(watch::channel(false).0), requested: Arc::default() }
    }
}

impl Pressure {
    /// Notes what is used; answers whether it is more than the limit.
    pub fn note(&self, used: u64, limit: u64) -> bool {
        let tight = used >= limit / 100 * TIGHT_PERCENT;
        self.tight.send_if_modified(|before| std::mem::replace(before, tight) != tight);
        used > limit
    }

    /// Asks for a look now: much was taken in since the last one.
    pub fn request_check(&self) {
        self.requested.notify_one();
    }

    pub async fn check_requested(&self) {
        self.requested.notified().await;
    }

    pub fn has_pressure(&self) -> bool {
        *self.tight.borrow()
    }

    /// Waits until memory is tight.
    pub async fn begins(&self) {
        // Its sender is ours.
        let _ = self.tight.subscribe().wait_for(|tight| *tight).await;
    }

    /// Waits while memory is tight; answers whether it was.
    pub async fn wait_for_relief(&self) -> bool {
        self.wait_for_relief_within(PAUSE_MOST).await
    }

    /// The same, with a longest pause of one's own.
    pub async fn wait_for_relief_within(&self, most: Duration) -> bool {
        if !self.has_pressure() {
            return false;
        }
        let mut tight = self.tight.subscribe();
        let _ = tokio::time::timeout(most, tight.wait_for(|tight| !tight)).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn who_can_wait_waits_until_memory_is_free_again_but_not_for_ever() {
        let pressure = Pressure::default();
        assert!(!pressure.wait_for_relief().await, "there is room");
        assert!(!pressure.note(80, 100) && pressure.has_pressure(), "tight, and not over");
        let (eased, ()) = tokio::join!(pressure.wait_for_relief(), async {
            tokio::task::yield_now().await;
            pressure.note(50, 100);
        });
        assert!(eased && !pressure.has_pressure());
        assert!(pressure.note(101, 100), "over the limit");
        let began = tokio::time::Instant::now();
        assert!(pressure.wait_for_relief().await && began.elapsed() >= PAUSE_MOST, "goes on in the end");
    }
}
