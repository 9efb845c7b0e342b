//! Why workers were replaced, and how often for each reason. In: one count for each worker that serves after another one. Out:
//! numbers that outlive workers and an upgrade of the supervisor. Limits: one number for each reason.

use crate::reexec_state::ReexecState;

/// Why a worker was replaced. Its number goes over the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartReason {
    /// Another configuration.
    Reload,
    /// A task panicked.
    Panic,
    /// A thread stalled.
    Hung,
    /// It used more than `limits.memory`.
    MemoryLimit,
    /// It had no file descriptors left.
    DescriptorLimit,
    /// It exited by itself or was killed by a signal.
    Crash,
    /// The kernel OOM-killed it.
    OomKilled,
    /// Another binary.
    Upgrade,
}

impl RestartReason {
    /// In the order of their numbers.
    pub const ALL: [RestartReason; 8] = [
        RestartReason::Reload,
        RestartReason::Panic,
        RestartReason::Hung,
        RestartReason::MemoryLimit,
        RestartReason::DescriptorLimit,
        RestartReason::Crash,
        RestartReason::OomKilled,
        RestartReason::Upgrade,
    ];

    /// The value of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            RestartReason::Reload => "reload",
            RestartReason::Panic => "panic",
            RestartReason::Hung => "hung",
            RestartReason::MemoryLimit => "memory_limit",
            RestartReason::DescriptorLimit => "descriptor_limit",
            RestartReason::Crash => "crash",
            RestartReason::OomKilled => "oom_killed",
            RestartReason::Upgrade => "upgrade",
        }
    }

    pub fn number(self) -> i64 {
        self as i64
    }

    pub fn from_number(number: i64) -> Option<RestartReason> {
        RestartReason::ALL.into_iter().find(|reason| reason.number() == number)
    }

    /// Whether the worker itself is at fault, so that the backoff before the next one grows.
    pub fn is_fault(self) -> bool {
        !matches!(self, RestartReason::Reload | RestartReason::Upgrade)
    }
}

/// How often workers were replaced, for each reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restarts([u64; RestartReason::ALL.len()]);

impl Restarts {
    #[must_use]
    pub fn with(mut self, reason: RestartReason) -> Restarts {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
        self
    }

    pub fn counts(&self) -> impl Iterator<Item = (RestartReason, u64)> {
        RestartReason::ALL.into_iter().zip(self.0)
    }

    pub(crate) fn save_to(&self, saved: &mut ReexecState) {
        for (reason, count) in self.counts() {
            saved.number(&key(reason), i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// An older version without these counts passes none.
    pub(crate) fn inherited(saved: &ReexecState) -> Restarts {
        let count = |reason| saved.value(&key(reason)).and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
        Restarts(RestartReason::ALL.map(count))
    }
}

fn key(reason: RestartReason) -> String {
    format!("restarts {}", reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_reason_round_trips() {
        for reason in RestartReason::ALL {
            assert_eq!(RestartReason::from_number(reason.number()), Some(reason));
        }
        assert_eq!(RestartReason::from_number(8), None);
        let restarts = Restarts::default().with(RestartReason::Hung).with(RestartReason::Hung);
        let hung = restarts.counts().find(|(reason, _)| *reason == RestartReason::Hung);
        assert_eq!(hung, Some((RestartReason::Hung, 2)));
    }
}
