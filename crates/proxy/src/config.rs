//! The keys under `proxy`.

use crate::balance::BalanceEntry;
use config::unit::{Address, ByteSize, TimeSpan};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The cluster of the app itself.
pub const APP: &str = "app";

/// Forwards the service's traffic: inbound to the app, outbound from the app to other services.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Data threads, each with its own sockets, connections and counters.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub threads: u16,
    /// Addresses that accept connections, by name.
    #[schemars(extend("x-names" = true))]
    pub listeners: BTreeMap<String, Listener>,
    /// Upstream endpoints of requests, by cluster name. The cluster `app` is the app itself on `app.port`.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub clusters: BTreeMap<String, Cluster>,
}

/// An address that accepts connections, and the cluster of their requests.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The IP address and port to listen on, such as 0.0.0.0:8443.
    pub listen: Address,
    /// When it drains at shutdown: `inbound` first, `outbound` after the app has exited. Default: `inbound` if `cluster` is
    /// `app`, else `outbound`.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// The cluster that gets the requests: `app`, or a name under `clusters`.
    pub cluster: String,
    /// Maximum open connections per data thread. Beyond it, connections that wait for a request are closed, the longest wait
    /// first; if none waits, new ones stay in the kernel's queue of 4096, and the listener is `degraded`.
    #[serde(default = "connections")]
    #[schemars(range(min = 1))]
    pub max_connections: u32,
    /// Maximum size of a request or response head, clamped to 1KiB to 1MiB. A larger request gets 431 or, if its target is that
    /// long, 414; a larger response becomes 502.
    #[serde(default = "max_header_bytes")]
    pub max_header_bytes: ByteSize,
    /// How long a request head may take from its first byte to its last; then 408 (RFC 9110, 15.5.9).
    #[serde(default = "request_headers_timeout")]
    pub request_headers_timeout: TimeSpan,
    /// How long a connection may be without a request, and a request's body without progress (then 408).
    #[serde(default = "idle_timeout")]
    pub idle_timeout: TimeSpan,
}

impl Listener {
    /// The configured direction; otherwise requests to the app are inbound.
    pub fn direction(&self) -> Direction {
        let default = if self.cluster == APP { Direction::Inbound } else { Direction::Outbound };
        self.direction.unwrap_or(default)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Inbound,
    Outbound,
}

/// Equivalent endpoints.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// IP addresses with ports, such as 10.0.0.5:8080; names are not resolved.
    #[schemars(length(min = 1, max = 1024))]
    pub endpoints: Vec<Address>,
    /// How an endpoint is picked: `least_request` takes the one of two random endpoints with fewer active requests,
    /// `round_robin` takes each in turn. Default: `least_request`.
    #[serde(default)]
    pub balance: Option<BalanceEntry>,
    /// How long a connection attempt may take; then the endpoint is ejected for 1s and another is tried, three for one request.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: TimeSpan,
    /// How long an endpoint may take from the complete request to the complete head of its response, and how long it may read
    /// nothing of a request's body; then 504.
    #[serde(default = "response_headers_timeout")]
    pub response_headers_timeout: TimeSpan,
    /// Pool of idle connections to the endpoints.
    #[serde(default)]
    pub pool: Pool,
}

/// Idle connections for later requests.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// How long an idle connection stays open. Set it below the endpoint's own keep-alive timeout.
    #[serde(default = "pool_idle_timeout")]
    pub idle_timeout: TimeSpan,
    /// Maximum idle connections per endpoint and data thread.
    #[serde(default = "pool_max_idle")]
    pub max_idle: u32,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool { idle_timeout: pool_idle_timeout(), max_idle: pool_max_idle() }
    }
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            endpoints: Vec::new(),
            balance: None,
            connect_timeout: connect_timeout(),
            response_headers_timeout: response_headers_timeout(),
            pool: Pool::default(),
        }
    }
}

fn one() -> u16 {
    1
}

fn connections() -> u32 {
    10_000
}

fn max_header_bytes() -> ByteSize {
    ByteSize(64 << 10)
}

fn request_headers_timeout() -> TimeSpan {
    TimeSpan::from_secs(10)
}

fn idle_timeout() -> TimeSpan {
    TimeSpan::from_secs(60)
}

fn connect_timeout() -> TimeSpan {
    TimeSpan::from_secs(2)
}

fn response_headers_timeout() -> TimeSpan {
    TimeSpan::from_secs(60)
}

/// Node.js closes after 5 s, the shortest default in wide use.
fn pool_idle_timeout() -> TimeSpan {
    TimeSpan::from_secs(4)
}

fn pool_max_idle() -> u32 {
    1024
}
