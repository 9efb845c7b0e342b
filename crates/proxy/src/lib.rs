//! Proxies the service's traffic: accept → pick → connect → forward, HTTP/1.1 on both sides. In: listeners and clusters of
//! the configuration. Out: forwarded requests, a duration histogram per listener, method and status, and access records
//! for the readers of the feed. It resolves no names, terminates no TLS and does not support HTTP/2 yet.

pub mod config;
pub mod plan;
pub mod run;
mod accept;
pub mod balance;
mod connect;
mod buffer;
mod lazy_timeout;
mod parked;
pub mod http1;
mod access;
mod recent;
pub mod reason;
pub mod telemetry;

pub use telemetry::Counters;
