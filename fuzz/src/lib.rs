//! Hostile input for each text and message that comes from outside. `targets` holds one function for each, which asserts what must be
//! true of any input; `explore` runs it over a corpus and what mutation makes of it, `watch` in a process of its own. In: `corpus/`
//! and a seed. Out: inputs that break a property, in `findings/`. Bounds: a size per input, CPU per input, memory of the process.

pub mod targets;
pub mod attempt;
pub mod mutate;
pub mod explore;
pub mod desk;
pub mod watch;
pub mod scratch;
mod assemble;

// The binary has no library: what turns its file into plans is compiled here a second time, as it stands.
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

/// As in the binary; `load` names it.
const EXIT_ERROR: u8 = 1;
