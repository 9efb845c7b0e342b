//! Hostile input for each text and message that comes from outside. `targets` has one function for each, which asserts properties
//! of any input; `explore` runs it over a corpus and mutations of it, `watch` runs it in a separate process. In: `corpus/` and a
//! seed. Out: inputs that break a property, in `findings/`. Bounds: a size per input, CPU per input, memory of the process.

pub mod targets;
pub mod attempt;
pub mod mutate;
pub mod explore;
pub mod desk;
pub mod watch;
pub mod scratch;
mod assemble;

// The binary has no library: the modules that turn its file into plans are compiled here a second time, unchanged.
#[allow(dead_code, reason = "the binary uses the rest")]
#[path = "../../crates/outrigger/src/config.rs"]
mod config;
#[allow(dead_code, reason = "the binary uses the rest")]
#[path = "../../crates/outrigger/src/app/mod.rs"]
mod app;
#[allow(dead_code, reason = "the binary uses the rest")]
#[path = "../../crates/outrigger/src/load.rs"]
mod load;
#[allow(dead_code, reason = "the binary uses the rest")]
#[path = "../../crates/outrigger/src/plans.rs"]
mod plans;
#[allow(dead_code, reason = "the binary uses the rest")]
#[path = "../../crates/outrigger/src/grants.rs"]
mod grants;
mod control;

/// As in the binary; `load` uses it.
const EXIT_ERROR: u8 = 1;
