//! Requests through the proxy, as its threads count them.

use super::{Gathered, Inputs, Source, SourceConfig};
use config::diag::Diagnostic;
use config::registry::{Entry, Kind};
use config::unit::TimeSpan;
use schemars::JsonSchema;
use serde::Deserialize;
use std::rc::Rc;
use std::time::Duration;

/// Count and duration of requests through the proxy, by listener, cluster, method and status, under OpenTelemetry's names:
/// `http_server_request_duration_seconds` inbound, `http_client_request_duration_seconds` outbound; and the
/// `outrigger_proxy_*` metrics.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often samples are taken for sinks that push, at least 100ms.
    #[serde(default = "super::interval")]
    pub interval: TimeSpan,
}

impl Kind for Config {
    fn example() -> &'static str {
        "proxy: {}\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        entry.requires_proxy("`proxy` counts requests").into_iter().collect()
    }
}

impl SourceConfig for Config {
    fn interval(&self) -> Duration {
        self.interval.0
    }

    fn build(&self, _name: &str, inputs: &Inputs) -> Result<Rc<dyn Source>, String> {
        let counters = inputs.proxy.clone().ok_or("no proxy is configured whose requests could be counted")?;
        Ok(Rc::new(Gathered::new(counters)))
    }
}
