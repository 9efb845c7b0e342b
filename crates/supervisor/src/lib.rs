//! PID 1's duties beside the app: start it, pass its output through, forward signals, reap, keep descriptors, start, replace
//! and restart workers, and end with the app's own exit code. In: a flat `Plan`, which the first worker hands over. Out: an exit
//! code. One thread, no runtime; it imports nothing of ours but the system calls, and never reads the configuration.

pub mod plan;
pub mod message;
pub mod restarts;
mod reexec_state;
mod capture;
pub mod fdstore;
mod terminal;
mod app;
pub mod worker;
mod workers;
mod systemd;
mod state;
mod signals;
mod reexec;
mod transitions;
pub mod run;
#[doc(hidden)]
pub mod fuzzing;

pub use reexec::RESUME;
