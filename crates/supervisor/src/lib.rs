//! PID 1's duties for the app: start it, pass its output through, forward signals, reap, store file descriptors, start, replace
//! and restart workers, and exit with the app's own exit code. In: a flat `Plan`, which the first worker sends. Out: an exit
//! code. One thread, no runtime; of the other crates it imports only `sys`, and it never reads the configuration.

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
