//! Outgoing HTTP, for sinks, stores and exporters: one client with time-outs, caps, proxies, custom CA, client
//! certificates, authentication and extra headers. In: a request with a whole body. Out: a response with a whole body, or
//! an error that says whose fault it is and whether to retry. Credentials are read anew for every attempt.

pub mod config;
pub mod error;
pub mod client;
mod auth;
mod sigv4;
mod connect;
mod proxies;
mod tls;

pub use client::{Client, Request, Response};
pub use config::ClientConfig;
pub use error::{Blame, Error};
