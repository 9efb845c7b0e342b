//! `cargo xtask bench`: the product compared with its peers, both as a user would run them.
//! In: the arguments of the benchmark program. Out: its table and its exit code.
//! Bound: this only prepares; the measurements are in the package `bench`.

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
    // exec: no xtask process is between the terminal and the benchmark, so that a signal to it reaches the benchmark.
    let error = command.args(arguments).env("OUTRIGGER_BIN", outrigger).exec();
    Err(format!("`{}` could not be started: {error}", shell::show(&command)))
}
