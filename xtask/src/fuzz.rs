//! `cargo xtask fuzz`: hostile input for each text and message that comes from outside.
//! In: a target and whatever else the fuzz program takes. Out: its lines, its findings, and its verdict as ours.
//! Bound: this only builds, with the checks of overflow and the assertions that tests have; the rest is in the package `fuzz`.

use crate::product;
use crate::shell::{self, Outcome};
use std::process::Command;

const NAME: &str = "fuzz";

/// What CI takes, shared among all targets.
const CI_TIME: &str = "5m";

pub fn run(arguments: &[String]) -> Outcome {
    let fuzz = product::program(&product::build("ci", &[NAME])?, NAME)?;
    shell::run(Command::new(fuzz).args(arguments))
}

pub fn for_ci() -> Outcome {
    run(&["--for".to_string(), CI_TIME.to_string()])
}
