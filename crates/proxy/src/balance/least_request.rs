//! Power of two choices (Mitzenmacher, IEEE TPDS 12 (2001)): near the best distribution for the cost of two samples.

use super::{BalanceConfig, EndpointState, Policy};
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;

/// Power of two choices: takes the one of two random endpoints with fewer requests in flight. An endpoint that slows down
/// gets fewer requests, without any latency measurement.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Kind for Config {
    fn example() -> &'static str {
        "least_request: {}\n"
    }
}

impl BalanceConfig for Config {
    fn build(&self) -> Box<dyn Policy> {
        Box::new(LeastRequest::default())
    }
}

pub struct LeastRequest {
    noise: u64,
}

impl Default for LeastRequest {
    fn default() -> LeastRequest {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        LeastRequest { noise: clock.map_or(1, |now| u64::from(now.subsec_nanos())) | 1 }
    }
}

impl LeastRequest {
    fn draw(&mut self, below: usize) -> usize {
        // xorshift64: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (2003).
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        (self.noise % below.max(1) as u64) as usize
    }
}

impl Policy for LeastRequest {
    fn pick(&mut self, endpoints: &[EndpointState], usable: &dyn Fn(usize) -> bool) -> usize {
        if endpoints.len() == 1 {
            return 0;
        }
        let count = (0..endpoints.len()).filter(|index| usable(*index)).count();
        let (first, second) = (self.draw(count), self.draw(count.saturating_sub(1)));
        // The second is drawn from the remaining endpoints, so that two different ones are compared.
        let second = if second >= first { second + 1 } else { second };
        let nth = |n: usize| (0..endpoints.len()).filter(|index| usable(*index)).nth(n);
        let active = |index: usize| endpoints.get(index).map_or(u32::MAX, |state| state.active.get());
        match (nth(first), nth(second)) {
            (Some(a), Some(b)) => {
                if active(b) < active(a) {
                    b
                } else {
                    a
                }
            }
            (Some(only), None) => only,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busier_of_two_endpoints_is_never_picked() {
        let endpoints = [EndpointState::default(), EndpointState::default()];
        endpoints[0].active.set(5);
        let mut policy = LeastRequest::default();
        assert!((0..100).all(|_| policy.pick(&endpoints, &|_| true) == 1));
    }
}
