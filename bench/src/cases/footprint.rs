//! `footprint`: what we cost beside an app that does not need us just now, beside programs that do a part of our work.
//!
//! Envoy does the proxy's part alone; dumb-init and tini do the supervisor's. Each measure is a module with rows of its
//! own, and in every round all of them run in turn. Waiting by the clock is the measurement here, not a guess.

mod idle;
mod lines;
mod outage;
mod parts;
mod scene;
mod size;
mod start;
mod upgrade;

use crate::contenders::{DUMB_INIT, ENVOY, TINI};
use crate::report::Report;
use scene::Scene;

/// Programs that start one app and do nothing else: what our supervisor is measured against.
const INITS: [&str; 2] = [DUMB_INIT, TINI];
const MEGABYTE: f64 = 1e6;

/// covers: foundation 10, foundation 17, attachment 13, attachment 14
pub fn run(pairs: usize) -> Result<Report, String> {
    let mut report = Report::new("footprint", pairs, &[DUMB_INIT, TINI, ENVOY]);
    let scene = Scene::lay(&mut report)?;
    size::record(&scene, &mut report);
    let idle = idle::Rows::new(&mut report);
    let start = start::Rows::new(&mut report);
    let lines = lines::Rows::new(&mut report);
    let outage = outage::Rows::new(&mut report);
    let upgrade = upgrade::Rows::new(&scene, &mut report);
    for round in 0..pairs {
        eprintln!("  round {} of {pairs}", round + 1);
        idle.measure(&scene, &mut report, round);
        start.measure(&scene, &mut report, round);
        lines.measure(&scene, &mut report, round);
        outage.measure(&scene, &mut report, round);
        if let Some(upgrade) = &upgrade {
            upgrade.measure(&scene, &mut report, round);
        }
    }
    report.remark("memory and CPU of ours are those of supervisor and worker; the wrapped app is not counted");
    Ok(report)
}
