//! What people and probes see: health, own metrics, the ledger, the configuration and one page. In: the telemetry of all
//! subsystems. Out: answers on a read-only TCP listener, a socket that may also change things, and a listener for probes alone.
//! It knows no subsystem by name and prints no secret.

pub mod config;
pub mod run;
pub mod controls;
mod change;
mod authorize;
mod socket;
pub mod view;

pub use authorize::{can_be_sent, read_token};
pub use socket::Prepared;
