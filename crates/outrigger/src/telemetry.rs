//! Own metrics of the worker that belong to no subsystem. In: exits of the app. Out: names, labels and help texts, and the list
//! of all of Outrigger's metrics for the docs.

use base::system::process::{ProcessStat, boot_time, max_descriptors, open_descriptors};
use base::telemetry::family::{Family, Gather};
use base::telemetry::{Counter, Gauge, MetricDesc, Telemetry};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use supervisor::message::Ended;
use supervisor::restarts::{RestartReason, Restarts};

pub static MEMORY_USED: MetricDesc =
    MetricDesc::gauge("outrigger_memory_used_bytes", &[], "Private memory of the worker.");
pub static MEMORY_LIMIT: MetricDesc =
    MetricDesc::gauge("outrigger_memory_limit_bytes", &[], "Limit of the worker's memory (limits.memory).");
pub static MEMORY_PRESSURE: MetricDesc = MetricDesc::gauge(
    "outrigger_memory_pressure",
    &[],
    "1 under memory pressure, while sources and new connections are paused.",
);
pub static MEMORY_PRESSURE_SECONDS: MetricDesc =
    MetricDesc::counter("outrigger_memory_pressure_seconds_total", &[], "Time spent under memory pressure.");
pub static STATE_WRITABLE: MetricDesc = MetricDesc::gauge(
    "outrigger_state_writable",
    &[],
    "1 if the state directory is writable; if 0, progress is lost at a restart.",
);
pub static STATE_MAX: MetricDesc =
    MetricDesc::gauge("outrigger_state_max_bytes", &[], "Limit of a file in the state directory (state.max_bytes).");
pub static WORKER_RESTARTS: MetricDesc =
    MetricDesc::counter("outrigger_worker_restarts_total", &["reason"], "Worker replacements.");
pub static RELOAD_SUCCESSFUL: MetricDesc = MetricDesc::gauge(
    "outrigger_config_last_reload_successful",
    &[],
    "Whether the last configuration reload was successful.",
);
pub static RELOAD_TIMESTAMP: MetricDesc = MetricDesc::gauge(
    "outrigger_config_last_reload_success_timestamp_seconds",
    &[],
    "Timestamp of the last successful configuration load.",
);
pub static RELOADS: MetricDesc = MetricDesc::counter(
    "outrigger_config_reloads_total",
    &["result"],
    "Reloads of the configuration: success; failure since the start of this worker.",
);
pub static PROCESS_CPU: MetricDesc = MetricDesc::counter(
    "outrigger_process_cpu_seconds_total",
    &["process"],
    "User and system CPU time of the process, without its children.",
);
pub static PROCESS_RESIDENT: MetricDesc =
    MetricDesc::gauge("outrigger_process_resident_memory_bytes", &["process"], "Resident memory.");
pub static PROCESS_VIRTUAL: MetricDesc =
    MetricDesc::gauge("outrigger_process_virtual_memory_bytes", &["process"], "Virtual memory.");
pub static PROCESS_OPEN_FDS: MetricDesc =
    MetricDesc::gauge("outrigger_process_open_fds", &["process"], "Open file descriptors (Linux 6.2 and later).");
pub static PROCESS_MAX_FDS: MetricDesc =
    MetricDesc::gauge("outrigger_process_max_fds", &["process"], "Limit of open file descriptors.");
pub static PROCESS_START_TIME: MetricDesc =
    MetricDesc::gauge("outrigger_process_start_time_seconds", &["process"], "Start time, in Unix time.");
pub static PROCESS_THREADS: MetricDesc = MetricDesc::gauge("outrigger_process_threads", &["process"], "Threads.");
pub static APP_UP: MetricDesc = MetricDesc::gauge("outrigger_app_up", &[], "1 while the app runs.");
pub static APP_RESTARTS: MetricDesc =
    MetricDesc::counter("outrigger_app_restarts_total", &[], "Restarts of the wrapped app.");
pub static APP_LAST_EXIT_CODE: MetricDesc = MetricDesc::gauge(
    "outrigger_app_last_exit_code",
    &[],
    "Exit code of the app's last run; 128 + N if signal N killed it.",
);

/// Reloads, as Prometheus counts them.
pub struct ReloadMetrics {
    successful: Gauge,
    failures: Counter,
}

impl ReloadMetrics {
    /// Of a worker that has loaded its configuration; `restarts` has the reloads of the workers before it.
    pub fn new(telemetry: &Telemetry, restarts: &Restarts) -> ReloadMetrics {
        let successful = telemetry.gauge(&RELOAD_SUCCESSFUL, &[]);
        successful.set(1);
        telemetry.gauge(&RELOAD_TIMESTAMP, &[]).set_now();
        let reloads = restarts.counts().into_iter().find(|(reason, _)| *reason == RestartReason::Reload);
        telemetry.counter(&RELOADS, &["success"]).store(reloads.map_or(0, |(_, count)| count));
        ReloadMetrics { successful, failures: telemetry.counter(&RELOADS, &["failure"]) }
    }

    /// The file is again the configuration in use.
    pub fn recover(&self) {
        self.successful.set(1);
    }

    pub fn fail(&self) {
        self.successful.set(0);
        self.failures.add(1);
    }
}

/// Supervisor and worker, as /proc reports them when the metrics are gathered.
pub struct OwnProcesses {
    processes: Vec<OwnProcess>,
    boot_time: Option<i64>,
}

/// A process whose files in /proc are open: the sandbox does not allow to open those of the supervisor.
struct OwnProcess {
    name: &'static str,
    pid: i32,
    stat: File,
    limits: File,
}

impl OwnProcesses {
    /// Call it before the sandbox.
    pub fn open() -> OwnProcesses {
        let raw = |pid: rustix::process::Pid| pid.as_raw_nonzero().get();
        let (supervisor, worker) = (rustix::process::getppid().map(raw), raw(rustix::process::getpid()));
        let file = |pid: i32, name: &str| File::open(format!("/proc/{pid}/{name}")).ok();
        let open = |name, pid| Some(OwnProcess { name, pid, stat: file(pid, "stat")?, limits: file(pid, "limits")? });
        let supervisor = supervisor.and_then(|pid| open("supervisor", pid));
        OwnProcesses {
            processes: supervisor.into_iter().chain(open("worker", worker)).collect(),
            boot_time: boot_time(),
        }
    }
}

/// The present text of an open file of /proc.
fn text_of(file: &File) -> Option<String> {
    let mut bytes = [0; PROC_FILE_MAX];
    let length = file.read_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(bytes.get(..length)?).into_owned())
}

/// The files that are read here have about 400 and 1,300 bytes.
const PROC_FILE_MAX: usize = 4096;

impl Gather for OwnProcesses {
    fn gather(&self, families: &mut Vec<Family>) {
        let descs = [
            &PROCESS_CPU,
            &PROCESS_RESIDENT,
            &PROCESS_VIRTUAL,
            &PROCESS_OPEN_FDS,
            &PROCESS_MAX_FDS,
            &PROCESS_START_TIME,
            &PROCESS_THREADS,
        ];
        let mut found = descs.map(MetricDesc::family);
        for process in &self.processes {
            let Some(stat) = text_of(&process.stat).and_then(|text| ProcessStat::parse(&text)) else { continue };
            let max = text_of(&process.limits).and_then(|text| max_descriptors(&text));
            let values = [
                Some(stat.cpu_seconds()),
                Some(stat.resident_bytes()),
                Some(stat.virtual_bytes as f64),
                open_descriptors(process.pid).map(|count| count as f64),
                max.map(|count| count as f64),
                self.boot_time.map(|boot_time| stat.start_time(boot_time)),
                Some(stat.threads as f64),
            ];
            for ((family, desc), value) in found.iter_mut().zip(descs).zip(values) {
                family.points.extend(value.map(|value| desc.point(&[process.name], value)));
            }
        }
        families.extend(found.into_iter().filter(|family| !family.points.is_empty()));
    }
}

/// The wrapped app.
#[derive(Clone)]
pub struct AppMetrics {
    pub up: Gauge,
    restarts: Counter,
    pub telemetry: Telemetry,
}

impl AppMetrics {
    pub fn new(telemetry: &Telemetry) -> AppMetrics {
        let (up, restarts) = (telemetry.gauge(&APP_UP, &[]), telemetry.counter(&APP_RESTARTS, &[]));
        AppMetrics { up, restarts, telemetry: telemetry.clone() }
    }

    /// `restarts` includes those during previous workers.
    pub fn exited(&self, exit: Ended, restarts: u32) {
        self.restarts.store(restarts.into());
        let code = if exit.signal > 0 { 128 + exit.signal } else { exit.code };
        self.telemetry.gauge(&APP_LAST_EXIT_CODE, &[]).set(u64::try_from(code).unwrap_or(0));
    }
}

/// For the docs.
pub static METRICS: [&MetricDesc; 20] = [
    &MEMORY_USED,
    &MEMORY_LIMIT,
    &MEMORY_PRESSURE,
    &MEMORY_PRESSURE_SECONDS,
    &STATE_WRITABLE,
    &STATE_MAX,
    &WORKER_RESTARTS,
    &RELOAD_SUCCESSFUL,
    &RELOAD_TIMESTAMP,
    &RELOADS,
    &PROCESS_CPU,
    &PROCESS_RESIDENT,
    &PROCESS_VIRTUAL,
    &PROCESS_OPEN_FDS,
    &PROCESS_MAX_FDS,
    &PROCESS_START_TIME,
    &PROCESS_THREADS,
    &APP_UP,
    &APP_RESTARTS,
    &APP_LAST_EXIT_CODE,
];

/// All of Outrigger's own metrics, in the order of the docs.
pub fn all() -> Vec<&'static MetricDesc> {
    [
        &base::telemetry::METRICS[..],
        &logs::telemetry::METRICS,
        &metrics::telemetry::METRICS,
        &sync::telemetry::METRICS,
        &proxy::telemetry::METRICS,
        &METRICS,
        &[&base::runtime::state::FILES_RESET],
    ]
    .concat()
}
