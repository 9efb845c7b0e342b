//! Syncs configuration and secrets to the shared volume: fetch → verify → publish → notify. In: stores. Out: a directory that is
//! always one complete revision, through one symlink. The published revision is never deleted to recover from an error, and
//! never written to.

pub mod config;
pub mod plan;
pub mod run;
mod notified;
pub mod telemetry;
pub mod store;
pub mod candidate;
mod files;
pub mod publish;
pub mod notify;
