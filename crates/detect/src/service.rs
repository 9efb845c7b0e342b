//! What listens on a port, as a probe found it. In and out: plain values.

use std::net::SocketAddr;

/// What a port turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// And why.
    NotProbed(String),
    /// It takes no connection (any more).
    Refused,
    /// It answers nothing, or no whole head, within the limit.
    Silent,
    /// It answers something that is not HTTP/1: what it looks like.
    Other(&'static str),
    Http(Server),
}

/// An HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub at: SocketAddr,
    /// The answer to the first of `PATHS`.
    pub status: u16,
    /// Its `Server` header.
    pub name: Option<String>,
    pub page: Option<Page>,
    /// A path that asks for credentials, where a page may be.
    pub locked: Option<&'static str>,
}

/// A page of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub path: &'static str,
    pub content_type: String,
    pub is_openmetrics: bool,
}
