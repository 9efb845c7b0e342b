//! `footprint`: the resources of Outrigger next to an idle app, compared with programs that do a part of its work.
//!
//! Envoy does the proxy's part only; dumb-init and tini do the supervisor's. Each measurement is a module with its own
//! rows, and in every round all of them run in turn. Fixed waiting times are part of the measurement here.

mod idle;
mod lines;
mod outage;
mod parts;
mod scene;
mod size;
mod start;
mod upgrade;

use crate::peers::{DUMB_INIT, ENVOY, TINI};
use crate::report::Report;
use scene::Scene;

/// Programs that start one app and do nothing else: the peers of the supervisor.
const INITS: [&str; 2] = [DUMB_INIT, TINI];
const MEGABYTE: f64 = 1e6;

pub fn run(pairs: usize) -> Result<Report, String> {
    let mut report = Report::new("footprint", pairs, &[DUMB_INIT, TINI, ENVOY]);
    let scene = Scene::create(&mut report)?;
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
    report.remark("memory and CPU of Outrigger are those of supervisor and worker; the wrapped app is not counted");
    Ok(report)
}
