//! `cargo xtask bench`: our product beside its peers, both as a user would run them.
//! In: a case and whatever else the benchmark program takes. Out: its table, and its exit code as ours.
//! Bound: this only prepares; what is measured and how is in the package `bench`.

use crate::shell::{self, Outcome};
use crate::{peers, product};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub fn run(arguments: &[String]) -> Outcome {
    peers::run(&[])?;
    let programs = product::build("release", &[product::NAME, "bench"])?;
    let outrigger = product::program(&programs, product::NAME)?;
    let bench = product::program(&programs, "bench")?;

    let mut command = Command::new(&bench);
    peers::offer(&mut command);
    // In our place: no process of ours stands between the benchmark and the one who interrupts it.
    let error = command.args(arguments).env("OUTRIGGER_BIN", outrigger).exec();
    Err(format!("`{}` could not be started: {error}", shell::show(&command)))
}
