//! Memory and CPU while idle: compared with Envoy with all four jobs enabled, compared with the inits with none.
//!
//! Five idle seconds pass after every part has worked, then memory is read, then wake-ups of five seconds and CPU of ten
//! are counted. A wake-up is a voluntary context switch of any thread. Memory that only the supervisor's file
//! descriptors hold (the capture rings) counts for the supervisor; the rest of the total counts for the worker.

use std::time::Duration;

use super::parts::{self, Part};
use super::scene::{App, AtWork, Scene};
use super::{INITS, MEGABYTE};
use crate::peers::{DUMB_INIT, ENVOY, TINI};
use crate::report::{Limit, OURS, Report, RowId};
use crate::usage;

const SETTLING: Duration = Duration::from_secs(5);
const HALF: Duration = Duration::from_secs(5);
const IDLE_SECONDS: f64 = 10.0;

pub struct Rows {
    pss: RowId,
    pss_supervisor: RowId,
    pss_worker: RowId,
    rss: RowId,
    /// No job, then each job alone.
    pss_of: Vec<(&'static [Part], RowId)>,
    ready: RowId,
    wakes_supervisor: RowId,
    wakes_worker: RowId,
    cpu: RowId,
    cpu_supervisor: RowId,
    cpu_worker: RowId,
}

impl Rows {
    pub fn new(report: &mut Report) -> Self {
        let ours = |most: f64| vec![Limit::Ours(most)];
        let mut row = |measure: String, unit, decimals, limits, peers: &[&'static str]| {
            let row = report.limited_row(measure, unit, decimals, limits);
            report.about(row, peers)
        };
        let mut memory = |what: &str, limits, peers: &[_]| row(format!("idle memory, {what}"), "MB", 1, limits, peers);
        let pss = memory("PSS", ours(12.0), &[ENVOY]);
        let pss_supervisor = memory("PSS, supervisor", ours(2.5), &[]);
        let pss_worker = memory("PSS, worker", Vec::new(), &[]);
        let rss = memory("VmRSS", Vec::new(), &[ENVOY]);
        let mut pss_of = vec![(&[][..], memory("PSS, no job", Vec::new(), &INITS))];
        for alone in parts::ALL.chunks(1) {
            let name = alone.iter().map(|part| part.name()).collect::<String>();
            pss_of.push((alone, memory(&format!("PSS, {name} only"), Vec::new(), &[])));
        }
        let all = [DUMB_INIT, TINI, ENVOY];
        Self {
            pss,
            pss_supervisor,
            pss_worker,
            rss,
            pss_of,
            ready: row("exec to ready".into(), "ms", 1, ours(100.0), &[ENVOY]),
            wakes_supervisor: row("wake-ups in 5 idle seconds, supervisor".into(), "", 0, ours(0.0), &INITS),
            wakes_worker: row("wake-ups in 5 idle seconds, worker".into(), "", 0, Vec::new(), &[ENVOY]),
            cpu: row("CPU per idle second".into(), "µs", 0, Vec::new(), &all),
            cpu_supervisor: row("CPU per idle second, supervisor".into(), "µs", 0, Vec::new(), &[]),
            cpu_worker: row("CPU per idle second, worker".into(), "µs", 0, Vec::new(), &[]),
        }
    }

    pub fn measure(&self, scene: &Scene, report: &mut Report, round: usize) {
        for name in [OURS, ENVOY].into_iter().chain(INITS) {
            let Some(program) = scene.program(name) else { continue };
            eprintln!("    {name}, idle");
            let outcome = match name {
                OURS => scene
                    .wrap(program, &parts::ALL, App::prints_one_line())
                    .and_then(|it| self.ours(&it, report, round)),
                ENVOY => scene.envoy(program).and_then(|it| self.envoy(&it, report, round)),
                // The other end of its output stays open during the measurement.
                init => scene
                    .init_piped(init, program, App::asleep())
                    .and_then(|(it, _stdout)| self.init(&it, init, report, round)),
            };
            if let Err(reason) = outcome {
                report.remark(format!("{name}, idle: {reason}"));
            }
        }
        let Some(program) = scene.program(OURS) else { return };
        for (parts, row) in &self.pss_of {
            eprintln!("    {OURS}, idle, {} jobs", parts.len());
            match scene.wrap(program, parts, App::prints_one_line()).and_then(|it| settled_memory(&it)) {
                Ok(memory) => report.record(*row, OURS, round, memory.pss as f64 / MEGABYTE),
                Err(reason) => report.remark(format!("{OURS}, idle, alone: {reason}")),
            }
        }
    }

    fn ours(&self, it: &AtWork, report: &mut Report, round: usize) -> Result<(), String> {
        let total = settled_memory(it)?;
        let (supervisor, worker) = (it.running.pid(), it.worker()?);
        let supervisor_pss = usage::memory(&[supervisor], &[])?.pss;
        let [all, of_supervisor, of_worker] = watch(|| [it.processes(), vec![supervisor], vec![worker]]);
        if it.worker()? != worker {
            return Err("the worker was replaced while idle".to_owned());
        }
        let values = [
            (self.pss, total.pss as f64 / MEGABYTE),
            (self.pss_supervisor, supervisor_pss as f64 / MEGABYTE),
            (self.pss_worker, total.pss.saturating_sub(supervisor_pss) as f64 / MEGABYTE),
            (self.rss, total.rss as f64 / MEGABYTE),
            (self.wakes_supervisor, of_supervisor.wake_ups as f64),
            (self.wakes_worker, of_worker.wake_ups as f64),
            (self.cpu, all.micros_per_second),
            (self.cpu_supervisor, of_supervisor.micros_per_second),
            (self.cpu_worker, of_worker.micros_per_second),
        ];
        for (row, value) in values {
            report.record(row, OURS, round, value);
        }
        self.record_ready(it, OURS, report, round);
        Ok(())
    }

    fn envoy(&self, it: &AtWork, report: &mut Report, round: usize) -> Result<(), String> {
        let memory = settled_memory(it)?;
        let [quiet] = watch(|| [it.processes()]);
        report.record(self.pss, ENVOY, round, memory.pss as f64 / MEGABYTE);
        report.record(self.rss, ENVOY, round, memory.rss as f64 / MEGABYTE);
        report.record(self.wakes_worker, ENVOY, round, quiet.wake_ups as f64);
        report.record(self.cpu, ENVOY, round, quiet.micros_per_second);
        self.record_ready(it, ENVOY, report, round);
        Ok(())
    }

    fn init(&self, it: &AtWork, name: &'static str, report: &mut Report, round: usize) -> Result<(), String> {
        let memory = settled_memory(it)?;
        let [quiet] = watch(|| [it.processes()]);
        if let Some((_, no_job)) = self.pss_of.first() {
            report.record(*no_job, name, round, memory.pss as f64 / MEGABYTE);
        }
        report.record(self.wakes_supervisor, name, round, quiet.wake_ups as f64);
        report.record(self.cpu, name, round, quiet.micros_per_second);
        Ok(())
    }

    fn record_ready(&self, it: &AtWork, name: &'static str, report: &mut Report, round: usize) {
        if let Some(ready) = it.ready {
            report.record(self.ready, name, round, ready.as_secs_f64() * 1e3);
        }
    }
}

fn settled_memory(it: &AtWork) -> Result<usage::Memory, String> {
    std::thread::sleep(SETTLING);
    usage::memory(&it.processes(), &[&it.directory]).map_err(|fault| it.explain(fault))
}

/// The activity of a group of processes while idle.
struct Quiet {
    /// In five seconds.
    wake_ups: u64,
    /// Time on a core, over ten seconds.
    micros_per_second: f64,
}

fn watch<const N: usize>(groups: impl Fn() -> [Vec<u32>; N]) -> [Quiet; N] {
    let read = || groups().map(|pids| usage::threads(&pids));
    let before = read();
    std::thread::sleep(HALF);
    let between = read();
    std::thread::sleep(HALF);
    let after = read();
    std::array::from_fn(|group| Quiet {
        wake_ups: between[group].since(&before[group]).sleeps,
        micros_per_second: after[group].since(&before[group]).on_core.as_secs_f64() * 1e6 / IDLE_SECONDS,
    })
}
