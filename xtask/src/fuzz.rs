//! `cargo xtask fuzz`: hostile input for each text and message that comes from outside.
//! In: the arguments of the fuzz program. Out: its output, its findings, and its exit status.
//! Bound: this only builds, with the overflow checks and assertions of the test profile; the rest is in the package `fuzz`.

use crate::product;
use crate::shell::{self, Outcome};
use std::process::Command;

const NAME: &str = "fuzz";

/// The time in CI, shared among all targets.
const CI_TIME: &str = "5m";

pub fn run(arguments: &[String]) -> Outcome {
    let fuzz = product::program(&product::build("ci", &[NAME])?, NAME)?;
    shell::run(Command::new(fuzz).args(arguments))
}

pub fn for_ci() -> Outcome {
    run(&["--for".to_string(), CI_TIME.to_string()])
}
