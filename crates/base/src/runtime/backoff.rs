//! Delay between attempts: exponential, with jitter and a maximum. In: the number of failures. Out: the delay.

use std::time::Duration;

/// The delay before the next attempt, doubled after each failure, with a jitter of a quarter, so that many sidecars do not
/// return to a failed server in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
    noise: u64,
}

/// The longest delay that a server may request; a longer one is shortened to this.
const REQUESTED_MAX: Duration = Duration::from_secs(3600);

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Backoff {
        // Time and process id differ between processes, which is all the randomness that jitter needs.
        let seed =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.subsec_nanos());
        Backoff { first, max, attempts: 0, noise: (u64::from(seed) << 16) ^ u64::from(std::process::id()) | 1 }
    }

    pub fn pause(&mut self) -> Duration {
        let doubled =
            self.first.saturating_mul(1u32.checked_shl(self.attempts.min(30)).unwrap_or(u32::MAX)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003).
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        let share = (self.noise % 1000) as f64 / 1000.0;
        doubled.mul_f64(0.75 + 0.5 * share).min(self.max)
    }

    /// The delay, and not less than the server requested: `Retry-After` is a lower bound for it.
    pub fn pause_at_least(&mut self, requested: Option<Duration>) -> Duration {
        self.pause().max(requested.unwrap_or_default().min(REQUESTED_MAX))
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_max_until_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let delays: Vec<Duration> = (0..12).map(|_| backoff.pause()).collect();
        assert!(delays[0] >= Duration::from_millis(75) && delays[0] <= Duration::from_millis(125));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(5)));
        assert!(delays[11] >= Duration::from_millis(3750));
        assert_eq!(backoff.pause_at_least(Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert!(backoff.pause_at_least(Some(Duration::ZERO)) >= Duration::from_millis(3750));
        assert_eq!(backoff.pause_at_least(Some(Duration::MAX)), REQUESTED_MAX);
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(125));
    }
}
