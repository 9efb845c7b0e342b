//! Requests through the proxy, as its threads count them.

use config::registry::Kind;
use config::unit::TimeSpan;
use schemars::JsonSchema;
use serde::Deserialize;

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
    const EXAMPLE: &'static str = "proxy: {}\n";
}
