//! Shared by all subsystems: tasks, health and the lifecycle, the state directory, listening sockets, feeds between subsystems,
//! Outrigger's own metrics, the ledger and the log. This crate knows no subsystem and reads no configuration of one.

pub mod feeds;
pub mod protobuf;
pub mod runtime;
pub mod sync;
pub mod system;
pub mod telemetry;
pub mod text;
