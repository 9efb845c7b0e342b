//! Execution and shutdown: tasks and threads, health, phases, memory pressure, the state directory, backoff.

pub mod backoff;
#[cfg(feature = "fault-injection")]
pub mod fault_mailbox;
pub mod health;
pub mod lifecycle;
pub mod pressure;
pub mod scope;
pub mod state;
