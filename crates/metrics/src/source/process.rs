//! Metrics of the app from /proc: all processes of its session, summed, since servers fork. In: a process id. Out: CPU time,
//! memory, file descriptors, threads under OpenTelemetry's names, which do not clash with `process_*` of client libraries.

use super::{Collected, Collecting, CountDescriptors, Inputs, Source, SourceConfig, now_ms};
use crate::series::{Interner, Snapshot, snapshot_of};
use base::system::process::{ProcessStat, boot_time, open_descriptors};
use base::telemetry::family::{Family, FamilyKind};
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Entry, Kind};
use config::unit::TimeSpan;
use schemars::JsonSchema;
use serde::Deserialize;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// CPU time, memory, open file descriptors and threads of the wrapped app, summed over the processes of its session. From /proc, as
/// `process_cpu_time_seconds_total`, `process_memory_usage_bytes`, `process_memory_virtual_bytes`,
/// `process_unix_file_descriptor_count`, `process_thread_count`, `process_children_count` and `process_uptime_seconds`. Wrap mode only.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often samples are taken for sinks that push, at least 100ms.
    #[serde(default = "super::interval")]
    pub interval: TimeSpan,
}

impl Kind for Config {
    fn example() -> &'static str {
        "process: {}\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        entry.requires_app("`process`", "").into_iter().collect()
    }

    /// Names, times and memory of the app's processes, as `ps` shows them.
    fn needs(&self, _id: &str) -> Needs {
        Needs { read: vec!["/proc".into()], ..Needs::default() }
    }
}

impl SourceConfig for Config {
    fn interval(&self) -> Duration {
        self.interval.0
    }

    fn build(&self, _name: &str, inputs: &Inputs) -> Result<Rc<dyn Source>, String> {
        Ok(Rc::new(Process {
            pid: inputs.app_pid.clone(),
            descriptors: inputs.descriptors.clone(),
            interner: Cell::default(),
        }))
    }
}

/// Processes of one app whose file descriptors are counted; a server forks no more than a few.
const COUNTED_MAX: usize = 64;

struct Process {
    pid: Arc<AtomicI32>,
    descriptors: CountDescriptors,
    interner: Cell<Interner>,
}

impl Source for Process {
    fn collect(&self) -> Collecting<'_> {
        Box::pin(async {
            let pid = self.pid.load(Ordering::Relaxed);
            let mut totals = session(pid);
            if let Some(totals) = &mut totals {
                for pid in totals.pids.iter().take(COUNTED_MAX) {
                    totals.descriptors += match open_descriptors(*pid) {
                        Some(count) => count,
                        None => (self.descriptors)(*pid).await.unwrap_or(0),
                    };
                }
            }
            let families = totals.map(|totals| families(&totals)).unwrap_or_default();
            let error = (pid != 0 && families.is_empty()).then(|| format!("cannot read /proc/{pid}"));
            let mut interner = self.interner.take();
            let snapshot = snapshot_of(&families, now_ms(), &mut interner);
            self.interner.set(interner);
            Collected { snapshot: Some(snapshot), dropped: Vec::new(), up: error.is_none(), error }
        })
    }

    fn end(&self) -> Snapshot {
        super::ended(&self.interner)
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[derive(Debug, Default)]
struct Totals {
    pids: Vec<i32>,
    processes: u64,
    user_ticks: u64,
    system_ticks: u64,
    resident_pages: u64,
    virtual_bytes: u64,
    threads: u64,
    descriptors: u64,
    /// Unix time in seconds.
    start_time: f64,
}

/// Sums over the app and all processes of its session. None if the app does not run.
fn session(pid: i32) -> Option<Totals> {
    if pid <= 0 {
        return None;
    }
    let mut totals = Totals::default();
    let leader = ProcessStat::read(pid)?;
    totals.start_time = leader.start_time(boot_time().unwrap_or(0));
    totals.add(pid, &leader);
    // If the app shares Outrigger's session, its children cannot be distinguished from other processes.
    if leader.session == pid {
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(other) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if other != pid
                && let Some(stat) = ProcessStat::read(other).filter(|stat| stat.session == pid)
            {
                totals.add(other, &stat);
            }
        }
    }
    Some(totals)
}

impl Totals {
    fn add(&mut self, pid: i32, stat: &ProcessStat) {
        self.processes += 1;
        // Including the times of reaped children, so that the sum does not decrease when one exits.
        self.user_ticks += stat.user_ticks + stat.children_user_ticks;
        self.system_ticks += stat.system_ticks + stat.children_system_ticks;
        self.resident_pages += stat.resident_pages;
        self.virtual_bytes += stat.virtual_bytes;
        self.threads += stat.threads;
        self.pids.push(pid);
    }
}

fn families(totals: &Totals) -> Vec<Family> {
    let ticks = base::system::process::ticks_per_second();
    let gauge = |name, help, value: f64| Family::new(name, help, FamilyKind::Gauge).with(&[], value);
    let cpu = Family::new("process_cpu_time_seconds_total", "CPU time of the app.", FamilyKind::Counter)
        .with(&[("cpu_mode", "user")], totals.user_ticks as f64 / ticks)
        .with(&[("cpu_mode", "system")], totals.system_ticks as f64 / ticks);
    let memory = totals.resident_pages as f64 * rustix::param::page_size() as f64;
    vec![
        cpu,
        gauge("process_memory_usage_bytes", "Resident memory of the app.", memory),
        gauge("process_memory_virtual_bytes", "Virtual memory of the app.", totals.virtual_bytes as f64),
        gauge("process_unix_file_descriptor_count", "Open file descriptors of the app.", totals.descriptors as f64),
        gauge("process_thread_count", "Threads of the app.", totals.threads as f64),
        gauge("process_children_count", "Further processes of the app.", totals.processes.saturating_sub(1) as f64),
        gauge("process_uptime_seconds", "Time since the start of the app.", uptime(totals.start_time).max(0.0)),
    ]
}

fn uptime(start_time: f64) -> f64 {
    now_ms() as f64 / 1e3 - start_time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_process_has_totals() {
        let pid = i32::try_from(std::process::id()).expect("a process id");
        let totals = session(pid).expect("this process runs");
        assert!(totals.resident_pages > 0 && totals.threads > 0 && totals.pids == [pid]);
        let uptime = uptime(totals.start_time);
        assert!((0.0..600.0).contains(&uptime), "{uptime}");
        assert!(session(0).is_none() && session(i32::MAX).is_none());
    }
}
