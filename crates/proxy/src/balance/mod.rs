//! Which endpoint of a cluster gets the next request. In: what is known of each endpoint. Out: one of them. A policy sees
//! only endpoints that are not set aside; where all are, it sees them all, since trying beats refusing.

pub mod least_request;
pub mod round_robin;

use std::cell::Cell;
use std::time::Instant;

config::registry! {
    /// How an endpoint is picked; `least_request` where nothing is said.
    pub entry BalanceEntry, kind BalanceKind {
        /// Of two endpoints drawn by chance, the one with fewer requests under way.
        least_request => LeastRequest(least_request::Config),
        /// Each in turn.
        round_robin => RoundRobin(round_robin::Config),
    } shared {}
}

impl Default for BalanceKind {
    fn default() -> BalanceKind {
        BalanceKind::LeastRequest(least_request::Config {})
    }
}

impl BalanceKind {
    pub fn build(&self) -> Box<dyn Policy> {
        match self {
            BalanceKind::LeastRequest(_) => Box::new(least_request::LeastRequest::default()),
            BalanceKind::RoundRobin(_) => Box::new(round_robin::RoundRobin::default()),
        }
    }
}

/// What one data thread knows of an endpoint.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Requests under way.
    pub active: Cell<u32>,
    /// Set aside until then, after it refused a connection.
    pub ejected_until: Cell<Option<Instant>>,
}

/// Picks an index of `loads`, which is never empty.
pub trait Policy {
    fn pick(&mut self, loads: &[EndpointState], usable: &dyn Fn(usize) -> bool) -> usize;
}

/// Picks among the endpoints that are not set aside, or among all where none is left.
pub fn pick(policy: &mut dyn Policy, loads: &[EndpointState], now: Instant) -> usize {
    let free =
        |index: usize| loads.get(index).is_some_and(|load| load.ejected_until.get().is_none_or(|until| until <= now));
    let any_free = (0..loads.len()).any(free);
    policy.pick(loads, &|index| !any_free || free(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_registry_keeps_its_laws() {
        config::registry::assert_laws::<BalanceEntry>(BalanceEntry::KINDS);
    }

    #[test]
    fn every_policy_avoids_what_is_set_aside_and_never_gives_up() {
        let now = Instant::now();
        for kind in [BalanceKind::default(), BalanceKind::RoundRobin(round_robin::Config {})] {
            let mut policy = kind.build();
            let loads: Vec<EndpointState> = (0..4).map(|_| EndpointState::default()).collect();
            loads[2].ejected_until.set(Some(now + Duration::from_secs(1)));
            let picks: Vec<usize> = (0..100).map(|_| pick(policy.as_mut(), &loads, now)).collect();
            assert!(!picks.contains(&2) && [0, 1, 3].iter().all(|index| picks.contains(index)), "{kind:?}: {picks:?}");
            loads.iter().for_each(|load| load.ejected_until.set(Some(now + Duration::from_secs(1))));
            assert!(pick(policy.as_mut(), &loads, now) < 4);
        }
    }
}
