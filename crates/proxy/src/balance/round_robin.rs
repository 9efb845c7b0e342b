//! Each endpoint in turn.

use super::{BalanceConfig, EndpointState, Policy};
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;

/// Picks the endpoints in rotation. Suits requests of equal cost; otherwise `least_request` distributes better.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Kind for Config {
    fn example() -> &'static str {
        "round_robin: {}\n"
    }
}

impl BalanceConfig for Config {
    fn build(&self) -> Box<dyn Policy> {
        Box::new(RoundRobin::default())
    }
}

#[derive(Default)]
pub struct RoundRobin {
    last: usize,
}

impl Policy for RoundRobin {
    fn pick(&mut self, endpoints: &[EndpointState], usable: &dyn Fn(usize) -> bool) -> usize {
        let count = endpoints.len().max(1);
        let next = (1..=count).map(|step| (self.last + step) % count).find(|index| usable(*index));
        self.last = next.unwrap_or(0);
        self.last
    }
}
