//! Picks the endpoint of a cluster for the next request. In: the state of each endpoint. Out: one of them. A policy sees
//! only endpoints that are not ejected; if all are, it sees them all, since an attempt is better than a rejection.

pub mod least_request;
pub mod round_robin;

use config::registry::{Kind, Named};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

config::registry! {
    /// How an endpoint is picked; `least_request` by default.
    pub entry BalanceEntry, configs dyn BalanceConfig {
        /// The one of two random endpoints with fewer requests in flight.
        least_request => least_request::Config,
        /// Each in turn.
        round_robin => round_robin::Config,
    } shared {}
}

/// The Config of a policy.
pub trait BalanceConfig: Kind {
    /// Builds it for one data thread.
    fn build(&self) -> Box<dyn Policy>;
}

/// The policy of a cluster without the key `balance`.
pub fn default() -> Named<dyn BalanceConfig> {
    Named::new("least_request", Arc::new(least_request::Config {}))
}

/// The state of an endpoint as seen by one data thread.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// Requests in flight.
    pub active: Cell<u32>,
    /// Ejected until then, after it refused a connection.
    pub ejected_until: Cell<Option<Instant>>,
}

/// Picks an index of `endpoints`, which is never empty.
pub trait Policy {
    fn pick(&mut self, endpoints: &[EndpointState], usable: &dyn Fn(usize) -> bool) -> usize;
}

/// Picks among the endpoints that are not ejected, or among all if none is left.
pub fn pick(policy: &mut dyn Policy, endpoints: &[EndpointState], now: Instant) -> usize {
    let available = |state: &EndpointState| state.ejected_until.get().is_none_or(|until| until <= now);
    let usable = |index: usize| endpoints.get(index).is_some_and(available);
    let any_usable = (0..endpoints.len()).any(usable);
    policy.pick(endpoints, &|index| !any_usable || usable(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<BalanceEntry>(BalanceEntry::KINDS);
    }

    #[test]
    fn policies_skip_ejected_unless_all_are_ejected() {
        let now = Instant::now();
        for kind in [default(), Named::new("round_robin", Arc::new(round_robin::Config {}))] {
            let mut policy = kind.build();
            let endpoints: Vec<EndpointState> = (0..4).map(|_| EndpointState::default()).collect();
            endpoints[2].ejected_until.set(Some(now + Duration::from_secs(1)));
            let picks: Vec<usize> = (0..100).map(|_| pick(policy.as_mut(), &endpoints, now)).collect();
            assert!(!picks.contains(&2) && [0, 1, 3].iter().all(|index| picks.contains(index)), "{kind:?}: {picks:?}");
            endpoints.iter().for_each(|state| state.ejected_until.set(Some(now + Duration::from_secs(1))));
            assert!(pick(policy.as_mut(), &endpoints, now) < 4);
        }
    }
}
