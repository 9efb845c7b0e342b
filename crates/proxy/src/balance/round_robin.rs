//! Each endpoint in turn.

use super::{EndpointState, Policy};
use schemars::JsonSchema;
use serde::Deserialize;

/// Takes the endpoints one after the other. Right where all requests cost the same; else `least_request` spreads better.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl config::registry::Kind for Config {
    const EXAMPLE: &'static str = "round_robin: {}\n";
}

#[derive(Default)]
pub struct RoundRobin {
    last: usize,
}

impl Policy for RoundRobin {
    fn pick(&mut self, loads: &[EndpointState], usable: &dyn Fn(usize) -> bool) -> usize {
        let count = loads.len().max(1);
        let next = (1..=count).map(|step| (self.last + step) % count).find(|index| usable(*index));
        self.last = next.unwrap_or(0);
        self.last
    }
}
