//! The delay that an upgrade in place adds to a request.
//!
//! Two hundred requests a second go through the proxy, each on its own connection, while `outrigger upgrade` is called
//! five times. The result is the slowest request's time above the median of two quiet seconds before. Failed requests
//! have a separate row, and their time is not counted.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::parts::Part;
use super::scene::{App, AtWork, Scene, await_until};
use crate::pace::{Pace, Request};
use crate::report::{Limit, OURS, Report, RowId, median};
use crate::running::finish;

const UPGRADES: usize = 5;
const BEAT: Duration = Duration::from_millis(5);
const QUIET: Duration = Duration::from_secs(2);
const BETWEEN: Duration = Duration::from_secs(1);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

pub struct Rows {
    excess: RowId,
    worst: RowId,
    failed: RowId,
}

struct Outcome {
    excess: Duration,
    failed: usize,
}

impl Rows {
    /// `None` if the program has no such command, which a remark reports.
    pub fn new(scene: &Scene, report: &mut Report) -> Option<Self> {
        let mut help = Command::new(scene.program(OURS)?);
        help.args(["upgrade", "--help"]);
        if finish(help, COMMAND_LIMIT).is_err() {
            report.remark(format!("{OURS} has no command `upgrade`: upgrades were not measured"));
            return None;
        }
        let mut row = |measure: &str, unit, most| {
            let row = report.limited_row(format!("{UPGRADES} upgrades, {measure}"), unit, 0, vec![Limit::Ours(most)]);
            report.about(row, &[])
        };
        Some(Self {
            excess: row("slowest request over the normal median", "ms", 50.0),
            worst: row("slowest of all rounds", "ms", 50.0),
            failed: row("requests that failed", "", 0.0),
        })
    }

    pub fn measure(&self, scene: &Scene, report: &mut Report, round: usize) {
        let Some(program) = scene.program(OURS) else { return };
        eprintln!("    {OURS}, {UPGRADES} upgrades");
        match upgrades(scene, program) {
            Err(reason) => report.remark(format!("{OURS}, upgrade: {reason}")),
            Ok(outcome) => {
                let excess = outcome.excess.as_secs_f64() * 1e3;
                report.record(self.excess, OURS, round, excess);
                report.record_worst(self.worst, OURS, excess);
                report.record(self.failed, OURS, round, outcome.failed as f64);
            }
        }
    }
}

fn upgrades(scene: &Scene, program: &Path) -> Result<Outcome, String> {
    let it = scene.wrap(program, &[Part::Proxy], App::asleep())?;
    let pace = Pace::start(it.ports.listen, BEAT);
    std::thread::sleep(QUIET);
    let begun = Instant::now();
    for _ in 0..UPGRADES {
        upgrade(&it, program).map_err(|fault| it.explain(fault))?;
        std::thread::sleep(BETWEEN);
    }
    evaluate(&pace.stop(), begun)
}

/// Runs the command and awaits the exit of the old worker.
fn upgrade(it: &AtWork, program: &Path) -> Result<(), String> {
    let old = it.worker()?;
    let mut command = Command::new(program);
    command.arg("upgrade").arg("--socket").arg(it.directory.join("admin.sock"));
    finish(command, COMMAND_LIMIT)?;
    await_until("the next worker", || it.worker().is_ok_and(|next| next != old))
}

fn evaluate(requests: &[Request], begun: Instant) -> Result<Outcome, String> {
    let took = |request: &&Request| request.took().as_secs_f64();
    let answered = || requests.iter().filter(|request| request.answered);
    let normal = median(answered().filter(|request| request.ended < begun).map(|request| took(&request)).collect());
    let normal = Duration::from_secs_f64(normal.ok_or("no request succeeded before the first upgrade")?);
    let slowest = answered().filter(|request| request.ended >= begun).map(Request::took).max();
    let slowest = slowest.ok_or("no request succeeded during the upgrades")?;
    let failed = requests.iter().filter(|request| !request.answered).count();
    Ok(Outcome { excess: slowest.saturating_sub(normal), failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_not_in_the_slowest_response_time() {
        let start = Instant::now();
        let at = |begun: u64, took: u64, answered: bool| {
            let begun = start + Duration::from_millis(begun);
            Request { begun, ended: begun + Duration::from_millis(took), answered }
        };
        let requests = [at(0, 1, true), at(5, 2, true), at(10, 3, true), at(110, 40, true), at(120, 900, false)];
        let outcome =
            evaluate(&requests, start + Duration::from_millis(100)).expect("responses before and after the start");
        assert_eq!((outcome.excess, outcome.failed), (Duration::from_millis(38), 1));
        assert!(evaluate(&requests[..3], start + Duration::from_millis(100)).is_err());
    }
}
