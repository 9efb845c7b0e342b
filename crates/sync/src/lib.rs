//! Configuration and secrets onto the shared volume: fetch → verify → publish → notify. In: stores. Out: a directory that is
//! always one whole revision, behind one symlink. It never deletes the published revision to recover from anything, and
//! never writes into it.

pub mod config;
pub mod plan;
pub mod run;
mod notified;
pub mod telemetry;
pub mod store;
pub mod candidate;
pub mod publish;
pub mod notify;
