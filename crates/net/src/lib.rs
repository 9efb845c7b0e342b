//! Outrigger's own HTTP. Outgoing, for sinks, stores and exporters: one client with timeouts, limits, proxies, custom CA,
//! client certificates, authentication and extra headers. In: a request with a complete body. Out: a response with a complete
//! body, or an error with its blame and whether to retry. Credentials are re-read for every attempt. Incoming: a small server
//! for metrics, probes and the admin interface.

pub mod config;
pub mod error;
pub mod client;
mod auth;
mod sigv4;
mod connect;
mod resolve;
pub mod serve;
mod proxies;
mod tls;
mod needs;

pub use auth::percent_decoded;
pub use client::{Client, Request, Response};
pub use config::{ClientConfig, connect_timeout, timeout};
pub use error::{Blame, Error};
pub use needs::needs;
pub use resolve::dial_blocking;
