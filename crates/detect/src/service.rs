//! What listens on a port: the result of a probe. In and out: plain values.

use std::net::SocketAddr;

/// The result of probing a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// With the reason.
    NotProbed(String),
    /// It accepts no connection (any more).
    Refused,
    /// It sends nothing, or no complete head, within the limit.
    Silent,
    /// It sends something that is not HTTP/1: what it looks like.
    Other(&'static str),
    Http(Server),
}

/// An HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub at: SocketAddr,
    /// The status of the response to the first of `PATHS`.
    pub status: u16,
    /// Its `Server` header.
    pub name: Option<String>,
    pub metrics: Option<MetricsEndpoint>,
    /// A path that requires credentials and may be a metrics endpoint.
    pub protected: Option<&'static str>,
}

/// A metrics endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsEndpoint {
    pub path: &'static str,
    pub content_type: String,
    pub is_openmetrics: bool,
}
