//! The admin interface for operators and probes: health, own metrics, the ledger, the configuration and one page. In: the
//! telemetry of all subsystems. Out: responses on a read-only TCP listener, a socket that also allows changes, and a listener
//! only for probes. It knows no subsystem by name and prints no secret.

pub mod config;
pub mod run;
pub mod controls;
mod change;
mod authorize;
mod socket;
pub mod view;

pub use authorize::{is_valid_token, read_token};
pub use change::STOPPING;
pub use socket::Prepared;
