//! The shared floor of all subsystems: tasks, health, feeds, the ledger, own telemetry, diagnostics, the
//! configuration tree and the registry of kinds. It knows no subsystem and reads no configuration of one.

pub mod config;
pub mod diag;
pub mod interpolate;
pub mod renamed;
pub mod schema;
pub mod tree;
pub mod unit;
#[macro_use]
pub mod registry;
pub mod family;
pub mod file;
pub mod feed;
pub mod listen;
pub mod revisions;
pub mod component;
pub mod reason;
pub mod ledger;
pub mod backoff;
#[cfg(feature = "fault-injection")]
pub mod fault_mailbox;
pub mod cgroup;
pub mod start_time;
pub mod groups;
pub mod pressure;
pub mod needs;
pub mod logging;
pub mod output;
pub mod scope;
pub mod state;
pub mod subsystem;
pub mod telemetry;
pub mod protobuf;
