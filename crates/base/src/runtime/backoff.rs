//! Waiting between tries: exponential, with jitter, bounded. In: how often it failed. Out: how long to wait.

use std::time::Duration;

/// The wait before the next try, doubled after each failure and spread by a quarter, so that many sidecars whose
/// receiver went away do not return in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
    noise: u64,
}

/// A receiver that asks for more is asked again after that all the same.
const ASKED_MOST: Duration = Duration::from_secs(3600);

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Backoff {
        // The address of a local differs between processes, which is all the randomness that spreading needs.
        let seed =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.subsec_nanos());
        Backoff { first, most, tries: 0, noise: (u64::from(seed) << 16) ^ u64::from(std::process::id()) | 1 }
    }

    pub fn pause(&mut self) -> Duration {
        let doubled =
            self.first.saturating_mul(1u32.checked_shl(self.tries.min(30)).unwrap_or(u32::MAX)).min(self.most);
        self.tries = self.tries.saturating_add(1);
        // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003).
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        let share = (self.noise % 1000) as f64 / 1000.0;
        doubled.mul_f64(0.75 + 0.5 * share).min(self.most)
    }

    /// The pause, and no less than the receiver asked for: `Retry-After` is a lower bound beside our own.
    pub fn pause_at_least(&mut self, requested: Option<Duration>) -> Duration {
        self.pause().max(requested.unwrap_or_default().min(ASKED_MOST))
    }

    pub fn reset(&mut self) {
        self.tries = 0;
    }

    pub fn tries(&self) -> u32 {
        self.tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_begin_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let waits: Vec<Duration> = (0..12).map(|_| backoff.pause()).collect();
        assert!(waits[0] >= Duration::from_millis(75) && waits[0] <= Duration::from_millis(125));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(5)));
        assert!(waits[11] >= Duration::from_millis(3750));
        assert_eq!(backoff.pause_at_least(Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert!(backoff.pause_at_least(Some(Duration::ZERO)) >= Duration::from_millis(3750));
        assert_eq!(backoff.pause_at_least(Some(Duration::MAX)), ASKED_MOST);
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(125));
    }
}
