//! The outage after the worker is killed.
//!
//! A request through the proxy begins every millisecond, each on its own connection. The time runs from just before
//! `kill -9` to the end of the first request that began after it and got a response. Between two kills the worker runs
//! for more than a second: one that crashes sooner is replaced with a back-off, which is not measured here.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::parts::Part;
use super::scene::{App, AtWork, Scene, await_until, await_within};
use crate::pace::Pace;
use crate::report::{Limit, OURS, Report, RowId, median};
use crate::running::signal;

const KILLS: usize = 5;
const BEAT: Duration = Duration::from_millis(1);
const LIFE: Duration = Duration::from_millis(1500);
const OUTAGE_LIMIT: Duration = Duration::from_secs(5);

pub struct Rows {
    median: RowId,
    slowest: RowId,
}

impl Rows {
    pub fn new(report: &mut Report) -> Self {
        let mut row = |which: &str| {
            let row = report.limited_row(
                format!("worker killed to next response, {which}"),
                "ms",
                1,
                vec![Limit::Ours(100.0)],
            );
            report.about(row, &[])
        };
        Self { median: row("median"), slowest: row("slowest of all") }
    }

    pub fn measure(&self, scene: &Scene, report: &mut Report, round: usize) {
        let Some(program) = scene.program(OURS) else { return };
        eprintln!("    {OURS}, {KILLS} kills of the worker");
        match outages(scene, program) {
            Err(reason) => report.remark(format!("{OURS}, killed: {reason}")),
            Ok(outages) => {
                outages.iter().for_each(|outage| report.record_worst(self.slowest, OURS, *outage));
                median(outages).into_iter().for_each(|outage| report.record(self.median, OURS, round, outage));
            }
        }
    }
}

/// The outage of each kill, in milliseconds.
fn outages(scene: &Scene, program: &Path) -> Result<Vec<f64>, String> {
    let it = scene.wrap(program, &[Part::Proxy], App::asleep())?;
    let mut outages = Vec::with_capacity(KILLS);
    for _ in 0..KILLS {
        std::thread::sleep(LIFE);
        let outage = kill(&it).map_err(|fault| it.explain(fault))?;
        outages.push(outage.as_secs_f64() * 1e3);
    }
    Ok(outages)
}

fn kill(it: &AtWork) -> Result<Duration, String> {
    let pace = Pace::start(it.ports.listen, BEAT);
    await_until("the first response", || pace.ended().iter().any(|request| request.answered))?;
    let worker = it.worker()?;
    let before = Instant::now();
    signal(worker, Signal::KILL);
    let killed = Instant::now();
    let mut answered = None;
    await_within(OUTAGE_LIMIT, "a response after the kill", || {
        // The list is ordered by end, so the first match is the earliest.
        answered = pace.ended().into_iter().find(|request| request.answered && request.begun > killed);
        answered.is_some()
    })?;
    await_until("the next worker", || it.worker().is_ok_and(|next| next != worker))?;
    let answered = answered.ok_or("no response arrived")?;
    Ok(answered.ended - before)
}
