//! Outrigger's own metrics, `outrigger_*`: typed descriptions, opened once, counted with relaxed atomics. In: counts of the
//! components. Out: the families of `/metrics`, together with the ledger, the health and the process itself. Limits: one entry
//! per name and configured component; no external value becomes a label.

pub mod component;
pub mod family;
pub mod ledger;
pub mod logging;
pub mod reason;

use crate::runtime::health::{Health, State};
use crate::runtime::pressure::Pressure;
use crate::sync::lock;
use component::{Component, LABELS};
use family::{Family, FamilyKind, Gather, Labels, Point, PointValue, labels_of};
use ledger::Ledger;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// One of Outrigger's own metrics: name, labels and help text. The docs list all of them.
#[derive(Debug)]
pub struct MetricDesc {
    pub name: &'static str,
    pub kind: FamilyKind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl MetricDesc {
    pub const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricDesc {
        MetricDesc { name, kind: FamilyKind::Counter, labels, help }
    }

    pub const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricDesc {
        MetricDesc { name, kind: FamilyKind::Gauge, labels, help }
    }

    /// An empty family of this metric.
    pub fn family(&self) -> Family {
        Family::new(self.name, self.help, self.kind)
    }

    /// A point with the values of its labels, in their order.
    pub fn point(&self, values: &[&str], value: f64) -> Point {
        Point { labels: self.labels_of(values), value: PointValue::Number(value) }
    }

    fn labels_of(&self, values: &[&str]) -> Labels {
        debug_assert_eq!(self.labels.len(), values.len(), "{} has the labels {:?}", self.name, self.labels);
        labels_of(&self.labels.iter().copied().zip(values.iter().copied()).collect::<Vec<_>>())
    }
}

/// A value that only increases.
#[derive(Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Stores the current value of a count that another process counts, such as the supervisor.
    pub fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// A value that is set.
#[derive(Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Sets the current time, for a `_timestamp_seconds` metric.
    pub fn set_now(&self) {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.set(since_epoch.map_or(0, |time| time.as_secs()));
    }
}

/// Opens and gathers Outrigger's own metrics.
#[derive(Clone, Default)]
pub struct Telemetry {
    inner: Arc<Mutex<Inner>>,
    pub ledger: Ledger,
    pub pressure: Pressure,
    /// Notified when a subsystem fails.
    pub alarm: Arc<tokio::sync::Notify>,
}

#[derive(Default)]
struct Inner {
    counts: Vec<(&'static MetricDesc, Labels, Arc<AtomicU64>)>,
    healths: Vec<Arc<Health>>,
    parts: Vec<Arc<dyn Gather>>,
    left: Vec<Left>,
}

/// Undelivered records of one sink after a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The sink's path in the configuration.
    pub sink: String,
    /// Records or samples that are read or sent after the next start.
    pub kept: u64,
    /// Records or samples that are lost.
    pub lost: u64,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Left { sink, kept, lost } = self;
        match (kept, lost) {
            (_, 0) => write!(f, "{sink}: {kept} persisted"),
            (0, _) => write!(f, "{sink}: {lost} lost"),
            _ => write!(f, "{sink}: {kept} persisted, {lost} lost"),
        }
    }
}

impl Telemetry {
    /// Records the undelivered records of a sink at a stop; one log line at the end of the stop reports all sinks.
    pub fn leave_behind(&self, sink: String, kept: u64, lost: u64) {
        if kept + lost > 0 {
            lock(&self.inner).left.push(Left { sink, kept, lost });
        }
    }

    pub fn left_behind(&self) -> Vec<Left> {
        lock(&self.inner).left.clone()
    }

    pub fn counter(&self, desc: &'static MetricDesc, values: &[&str]) -> Counter {
        debug_assert_eq!(desc.kind, FamilyKind::Counter, "{}", desc.name);
        Counter(self.number(desc, values))
    }

    pub fn gauge(&self, desc: &'static MetricDesc, values: &[&str]) -> Gauge {
        debug_assert_eq!(desc.kind, FamilyKind::Gauge, "{}", desc.name);
        Gauge(self.number(desc, values))
    }

    /// Returns the same number if it was opened before.
    fn number(&self, desc: &'static MetricDesc, values: &[&str]) -> Arc<AtomicU64> {
        let labels = desc.labels_of(values);
        let mut inner = lock(&self.inner);
        if let Some((.., number)) = inner.counts.iter().find(|(d, l, _)| d.name == desc.name && *l == labels) {
            return number.clone();
        }
        let number = Arc::<AtomicU64>::default();
        inner.counts.push((desc, labels, number.clone()));
        number
    }

    /// Opens the health of a subsystem, so that probes, page and metrics see it.
    pub fn health(&self, subsystem: &'static str) -> Arc<Health> {
        let health = Health::with_alarm(subsystem, self.alarm.clone());
        lock(&self.inner).healths.push(health.clone());
        health
    }

    pub fn healths(&self) -> Vec<Arc<Health>> {
        lock(&self.inner).healths.clone()
    }

    /// Adds a component with its own counters, such as the threads of the proxy.
    pub fn register(&self, part: Arc<dyn Gather>) {
        lock(&self.inner).parts.push(part);
    }
}

pub static BUILD_INFO: MetricDesc =
    MetricDesc::gauge("outrigger_build_info", &["version"], "Version of the running binary; always 1.");
pub static SUBSYSTEM_HEALTH: MetricDesc = MetricDesc::gauge(
    "outrigger_subsystem_health",
    &["subsystem", "health"],
    "1 for the current health of a subsystem.",
);
pub static RECEIVED: MetricDesc =
    MetricDesc::counter("outrigger_component_received_records_total", &LABELS, "Records received.");
pub static DELIVERED: MetricDesc = MetricDesc::counter(
    "outrigger_component_delivered_records_total",
    &LABELS,
    "Records passed on; for sinks: acknowledged by the receiver.",
);
pub static MERGED: MetricDesc = MetricDesc::counter(
    "outrigger_component_merged_records_total",
    &LABELS,
    "Records that became part of another record.",
);
pub static REPLAYED: MetricDesc = MetricDesc::counter(
    "outrigger_component_replayed_records_total",
    &LABELS,
    "Received records that had been read before a restart.",
);
pub static PENDING: MetricDesc = MetricDesc::gauge(
    "outrigger_component_pending_records",
    &LABELS,
    "Records received but not yet delivered or dropped.",
);
pub static DROPPED: MetricDesc = MetricDesc::counter(
    "outrigger_component_dropped_records_total",
    &["component_id", "component_kind", "component_type", "reason", "intentional"],
    "Records dropped. Alert on intentional=\"false\".",
);
pub static RECEIVED_BYTES: MetricDesc =
    MetricDesc::counter("outrigger_component_received_bytes_total", &LABELS, "Bytes received, before decompression.");
pub static SENT_BYTES: MetricDesc =
    MetricDesc::counter("outrigger_component_sent_bytes_total", &LABELS, "Bytes sent, after compression.");
pub static ERRORS: MetricDesc = MetricDesc::counter(
    "outrigger_component_errors_total",
    &["component_id", "component_kind", "component_type", "reason"],
    "Errors that did not lose a record.",
);
pub static UP: MetricDesc =
    MetricDesc::gauge("outrigger_component_up", &LABELS, "1 if the last attempt to reach the peer succeeded.");
pub static REQUESTS: MetricDesc = MetricDesc::counter(
    "outrigger_component_requests_total",
    &["component_id", "component_kind", "component_type", "result"],
    "Requests to the receiver: success, retried, rejected.",
);

/// Counters of the requests of a sink to its receiver.
pub struct Requests {
    succeeded: Counter,
    retried: Counter,
    rejected: Counter,
    sent_bytes: Counter,
    up: Gauge,
}

impl Requests {
    pub fn new(telemetry: &Telemetry, component: &Component) -> Requests {
        let [id, kind, type_name] = component.labels();
        let requests = |result| telemetry.counter(&REQUESTS, &[id, kind, type_name, result]);
        Requests {
            succeeded: requests("success"),
            retried: requests("retried"),
            rejected: requests("rejected"),
            sent_bytes: telemetry.counter(&SENT_BYTES, &component.labels()),
            up: telemetry.gauge(&UP, &component.labels()),
        }
    }

    /// The receiver accepted a body of this size.
    pub fn succeed(&self, bytes: usize) {
        self.succeeded.add(1);
        self.sent_bytes.add(bytes as u64);
        self.up.set(1);
    }

    /// The body will be retried.
    pub fn retry(&self) {
        self.retried.add(1);
        self.up.set(0);
    }

    /// The receiver rejected the body permanently.
    pub fn reject(&self) {
        self.rejected.add(1);
    }
}

/// The metrics of every component, for the docs.
pub static METRICS: [&MetricDesc; 14] = [
    &BUILD_INFO,
    &SUBSYSTEM_HEALTH,
    &RECEIVED,
    &DELIVERED,
    &MERGED,
    &REPLAYED,
    &PENDING,
    &DROPPED,
    &RECEIVED_BYTES,
    &SENT_BYTES,
    &ERRORS,
    &UP,
    &REQUESTS,
    &logging::MESSAGES,
];

impl Gather for Telemetry {
    fn gather(&self, families: &mut Vec<Family>) {
        let build = BUILD_INFO.point(&[env!("CARGO_PKG_VERSION")], 1.0);
        families.push(Family { points: vec![build], ..BUILD_INFO.family() });
        let (healths, parts) = {
            let inner = lock(&self.inner);
            for (desc, labels, number) in &inner.counts {
                let value = PointValue::Number(number.load(Ordering::Relaxed) as f64);
                let point = Point { labels: labels.clone(), value };
                match families.iter_mut().find(|family| &*family.name == desc.name) {
                    Some(family) => family.points.push(point),
                    None => families.push(Family { points: vec![point], ..desc.family() }),
                }
            }
            (inner.healths.clone(), inner.parts.clone())
        };
        families.push(health_family(&healths));
        families.push(logging::messages());
        families.extend(ledger_families(&self.ledger));
        parts.iter().for_each(|part| part.gather(families));
    }
}

fn health_family(healths: &[Arc<Health>]) -> Family {
    let mut family = SUBSYSTEM_HEALTH.family();
    for subsystem in healths.iter().map(|health| health.current()) {
        for health in State::ALL {
            let value = if subsystem.health == health { 1.0 } else { 0.0 };
            family.points.push(SUBSYSTEM_HEALTH.point(&[subsystem.name, health.as_str()], value));
        }
    }
    family
}

fn ledger_families(ledger: &Ledger) -> [Family; 6] {
    let descs = [&RECEIVED, &DELIVERED, &MERGED, &REPLAYED, &PENDING, &DROPPED];
    let mut families = descs.map(MetricDesc::family);
    for row in ledger.snapshot() {
        let labels = row.component.labels();
        let c = &row.counts;
        let values = [c.received, c.delivered, c.merged, c.replayed, c.pending];
        for ((family, desc), value) in families.iter_mut().zip(descs).zip(values) {
            family.points.push(desc.point(&labels, value as f64));
        }
        for (reason, dropped) in &c.dropped {
            let intentional = if reason.is_intentional() { "true" } else { "false" };
            let [id, kind, type_name] = labels;
            families[5]
                .points
                .push(DROPPED.point(&[id, kind, type_name, reason.as_str(), intentional], *dropped as f64));
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::reason::Reason;

    #[test]
    fn gathered_names_start_with_outrigger() {
        let telemetry = Telemetry::default();
        static THINGS: MetricDesc = MetricDesc::counter("outrigger_things_total", &["part"], "Things.");
        telemetry.counter(&THINGS, &["a"]).add(2);
        telemetry.counter(&THINGS, &["a"]).add(1);
        telemetry.health("logs").set_ready(true);
        let main = Component::sink("logs.sinks.main".into(), "loki");
        telemetry.ledger.row(&main).drop_unseen(Reason::BufferFull, 4);
        let mut families = Vec::new();
        telemetry.gather(&mut families);
        let mut text = String::new();
        family::write_text(&families, &mut text);
        for line in [
            "outrigger_things_total{part=\"a\"} 3\n",
            "outrigger_subsystem_health{subsystem=\"logs\",health=\"ok\"} 1\n",
            "outrigger_component_dropped_records_total{component_id=\"logs.sinks.main\",component_kind=\"sink\",component_type=\"loki\",\
             reason=\"buffer_full\",intentional=\"false\"} 4\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(families.iter().all(|family| family.name.starts_with("outrigger_")));
    }
}
