//! Own metrics of the worker that belong to no subsystem. In: exits of the app. Out: names, labels and help texts, and the list
//! of all of Outrigger's metrics for the docs.

use base::telemetry::{Counter, Gauge, MetricDesc, Telemetry};
use supervisor::message::Ended;

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
pub static APP_UP: MetricDesc = MetricDesc::gauge("outrigger_app_up", &[], "1 while the app runs.");
pub static APP_RESTARTS: MetricDesc =
    MetricDesc::counter("outrigger_app_restarts_total", &[], "Restarts of the wrapped app.");
pub static APP_LAST_EXIT_CODE: MetricDesc = MetricDesc::gauge(
    "outrigger_app_last_exit_code",
    &[],
    "Exit code of the app's last run; 128 + N if signal N killed it.",
);

/// The wrapped app.
#[derive(Clone)]
pub struct AppMetrics {
    pub up: Gauge,
    restarts: Counter,
    telemetry: Telemetry,
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
pub static METRICS: [&MetricDesc; 12] = [
    &MEMORY_USED,
    &MEMORY_LIMIT,
    &MEMORY_PRESSURE,
    &MEMORY_PRESSURE_SECONDS,
    &STATE_WRITABLE,
    &STATE_MAX,
    &WORKER_RESTARTS,
    &RELOAD_SUCCESSFUL,
    &RELOAD_TIMESTAMP,
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
