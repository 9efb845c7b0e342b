//! What a person writes under `proxy`.

use crate::balance::BalanceEntry;
use base::unit::{Address, ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Forwards the service's traffic: inbound to the app, outbound from the app to others.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Data threads, each with its own listeners, pools and counters.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub threads: u16,
    /// Where connections come in, by name.
    #[schemars(extend("x-names" = true))]
    pub listeners: BTreeMap<String, Listener>,
    /// Where requests go, by name. The cluster `app` is the app itself on `app.port`.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub clusters: BTreeMap<String, Cluster>,
}

/// An address that takes connections, and where their requests go.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// The address to listen on, such as 0.0.0.0:8443.
    pub listen: Address,
    /// Whose requests these are. Inbound drains first at a stop; outbound stays open until the app has ended.
    pub direction: Direction,
    /// The cluster that gets the requests: `app`, or a name under `clusters`.
    pub to: String,
    /// Connections open at a time. Where there are more, those that wait longest for a request give way.
    #[serde(default = "connections")]
    #[schemars(range(min = 1))]
    pub connections_max: u32,
    /// The largest request or response head.
    #[serde(default = "head_max")]
    pub head_max: ByteSize,
    /// How long a request head may take from its first byte (RFC 9110, 15.5.9: 408 after it).
    #[serde(default = "head_timeout")]
    pub head_timeout: Span,
    /// How long a connection may be open without a request, and how long a request's body may not go on (408 after it).
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Inbound,
    Outbound,
}

/// Endpoints that serve the same thing.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Addresses with ports, such as 10.0.0.5:8080.
    #[schemars(length(min = 1, max = 1024))]
    pub endpoints: Vec<Address>,
    /// How an endpoint is picked.
    #[serde(default)]
    pub balance: Option<BalanceEntry>,
    /// How long a connection attempt may take.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// How long an endpoint may take from the whole request to the whole head of its response, and how long it may take nothing
    /// of a request's body (504 after it).
    #[serde(default = "response_timeout")]
    pub response_timeout: Span,
    /// How long an unused connection is kept. Keep it below the endpoint's own keep-alive time-out.
    #[serde(default = "pool_idle")]
    pub pool_idle: Span,
    /// Unused connections kept per endpoint and data thread.
    #[serde(default = "pool_max")]
    pub pool_max: u32,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            endpoints: Vec::new(),
            balance: None,
            connect_timeout: connect_timeout(),
            response_timeout: response_timeout(),
            pool_idle: pool_idle(),
            pool_max: pool_max(),
        }
    }
}

fn one() -> u16 {
    1
}

fn connections() -> u32 {
    10_000
}

fn head_max() -> ByteSize {
    ByteSize(64 << 10)
}

fn head_timeout() -> Span {
    Span::from_secs(10)
}

fn idle_timeout() -> Span {
    Span::from_secs(60)
}

fn connect_timeout() -> Span {
    Span::from_secs(2)
}

fn response_timeout() -> Span {
    Span::from_secs(60)
}

/// Node.js closes after 5 s, the shortest default in wide use.
fn pool_idle() -> Span {
    Span::from_secs(4)
}

fn pool_max() -> u32 {
    1024
}
