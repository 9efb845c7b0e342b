//! How long nobody answers when the worker is killed.
//!
//! A request through the proxy begins every millisecond, each on a connection of its own. The time runs from just before
//! `kill -9` to the end of the first request that began after it and was answered. Between two kills the worker lives
//! for more than a second: one that dies sooner is replaced later on purpose, and that is not what is asked here.

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
            let row =
                report.limited_row(format!("worker killed to next answer, {which}"), "ms", 1, vec![Limit::Ours(100.0)]);
            report.about(row, &[])
        };
        Self { median: row("median"), slowest: row("slowest of all") }
    }

    /// covers: attachment 13, attachment 14
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

/// The milliseconds of each kill.
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
    await_until("the first answer", || pace.ended().iter().any(|request| request.answered))?;
    let worker = it.worker()?;
    let before = Instant::now();
    signal(worker, Signal::KILL);
    let killed = Instant::now();
    let mut answered = None;
    await_within(OUTAGE_LIMIT, "an answer after the kill", || {
        // The list is in the order of the ends, so the first that fits is the soonest.
        answered = pace.ended().into_iter().find(|request| request.answered && request.begun > killed);
        answered.is_some()
    })?;
    await_until("the next worker", || it.worker().is_ok_and(|next| next != worker))?;
    let answered = answered.ok_or("no answer came")?;
    Ok(answered.ended - before)
}
