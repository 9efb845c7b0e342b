//! HTTP of our own. Outgoing, for sinks, stores and exporters: one client with time-outs, caps, proxies, custom CA, client
//! certificates, authentication and extra headers. In: a request with a whole body. Out: a response with a whole body, or
//! an error that says whose fault it is and whether to retry. Credentials are read anew for every attempt. Incoming: a small
//! server for our own pages.

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
