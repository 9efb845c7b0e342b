//! Instructions per request by `perf stat`, if the machine counts them; many virtual machines do not.
//!
//! In: the load's command and the PIDs of the proxy. Out: the number of instructions that those processes executed while
//! the load ran. The load itself is not counted: `perf` attaches to the PIDs and runs only as long as the command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::programs;
use crate::running::finish;

pub struct Counter {
    perf: PathBuf,
}

impl Counter {
    /// Tries `perf stat` on a program that does nothing; an error if it returns no number.
    pub fn find(directory: &Path) -> Result<Self, String> {
        let perf = programs::system("perf").map_err(|_| "perf is not installed".to_owned())?;
        let counts = directory.join("instructions.csv");
        let mut trial = Command::new(&perf);
        trial.args(["stat", "-x,", "-e", "instructions", "-o"]).arg(&counts).args(["--", "true"]);
        finish(trial, Duration::from_secs(10))?;
        let text = std::fs::read_to_string(&counts).unwrap_or_default();
        match read_count(&text) {
            Some(_) => Ok(Self { perf }),
            None => Err("perf cannot count instructions on this machine".to_owned()),
        }
    }

    pub fn around(&self, load: &Command, pids: &[u32], counts: &Path) -> Command {
        let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(&self.perf);
        command.args(["stat", "-x,", "-e", "instructions", "-p", &pids, "-o"]).arg(counts).arg("--");
        command.arg(load.get_program()).args(load.get_args());
        command
    }
}

/// The first field of the line for the event; `<not supported>` and `<not counted>` are not numbers.
pub fn read_count(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains(",instructions"))?;
    line.split(',').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_and_a_missing_counter_is_none() {
        let supported = "# started on Mon\n\n123456,,instructions:u,1000,100.00,,\n";
        let missing = "# started on Mon\n\n<not supported>,,instructions,0,100.00,,\n";
        assert_eq!(read_count(supported), Some(123_456.0));
        assert_eq!(read_count(missing), None);
    }
}
