//! PID 1's duties beside the app: start it, pass its output through, forward signals, reap, keep descriptors, restart a
//! failed worker, and end with the app's own exit code. In: a flat `Plan`. Out: an exit code. One thread, no runtime,
//! nothing allocated after start; it imports nothing of ours but the system calls, and never reads the configuration.

pub mod plan;
pub mod message;
mod capture;
mod store;
mod app;
mod worker;
pub mod run;
