//! Memory pressure of the worker: published by the self-check, read by every component that can slow down. In: resident bytes
//! and the limit. Out: whether to read more. Sources that can wait do so, and their data stays in the file or the capture ring;
//! work that cannot wait is skipped and counted.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The percentage of the limit above which no more data is read.
const PRESSURE_PERCENT: u64 = 75;

/// The longest pause of a source that can wait: a source that never resumes would lose data, too.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Shared by all subsystems of a worker.
#[derive(Clone, Debug)]
pub struct Pressure {
    active: Arc<watch::Sender<bool>>,
    requested: Arc<Notify>,
}

impl Default for Pressure {
    fn default() -> Pressure {
        Pressure { active: Arc::new(watch::channel(false).0), requested: Arc::default() }
    }
}

impl Pressure {
    /// Records the memory in use; returns whether it exceeds the limit.
    pub fn note(&self, used: u64, limit: u64) -> bool {
        let active = used >= limit / 100 * PRESSURE_PERCENT;
        self.active.send_if_modified(|current| std::mem::replace(current, active) != active);
        used > limit
    }

    /// Requests a self-check now, after much data was read since the last one.
    pub fn request_check(&self) {
        self.requested.notify_one();
    }

    pub async fn check_requested(&self) {
        self.requested.notified().await;
    }

    pub fn has_pressure(&self) -> bool {
        *self.active.borrow()
    }

    /// Waits until there is memory pressure.
    pub async fn begins(&self) {
        // The sender is in `self`, so the channel is open.
        let _ = self.active.subscribe().wait_for(|active| *active).await;
    }

    /// Waits while there is memory pressure; returns whether there was.
    pub async fn wait_for_relief(&self) -> bool {
        self.wait_for_relief_within(PAUSE_MAX).await
    }

    /// Like `wait_for_relief`, with another longest pause.
    pub async fn wait_for_relief_within(&self, max: Duration) -> bool {
        if !self.has_pressure() {
            return false;
        }
        let mut active = self.active.subscribe();
        let _ = tokio::time::timeout(max, active.wait_for(|active| !active)).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn waiting_ends_with_pressure_or_after_a_limit() {
        let pressure = Pressure::default();
        assert!(!pressure.wait_for_relief().await, "no pressure");
        assert!(!pressure.note(80, 100) && pressure.has_pressure(), "above the threshold, below the limit");
        let (waited, ()) = tokio::join!(pressure.wait_for_relief(), async {
            tokio::task::yield_now().await;
            pressure.note(50, 100);
        });
        assert!(waited && !pressure.has_pressure());
        assert!(pressure.note(101, 100), "over the limit");
        let began = tokio::time::Instant::now();
        assert!(pressure.wait_for_relief().await && began.elapsed() >= PAUSE_MAX, "resumes after the longest pause");
    }
}
