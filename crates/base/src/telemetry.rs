//! Own metrics, `outrigger_*`: typed names, opened once, counted with relaxed atomics. In: counts of the parts. Out: the
//! families of `/metrics`, together with the ledger, the verdicts and the process itself. Bound: one entry per name and
//! configured part; no value from outside becomes a label.

use crate::family::{Family, FamilyKind, Gather, Labels, Point, PointValue, labels_of};
use crate::ledger::Ledger;
use crate::pressure::Pressure;
use crate::subsystem::{Health, State, lock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A metric of ours: its name and what it tells, in one place.
#[derive(Clone, Copy)]
pub struct Name {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: FamilyKind,
}

impl Name {
    pub const fn counter(name: &'static str, help: &'static str) -> Name {
        Name { name, help, kind: FamilyKind::Counter }
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Name {
        Name { name, help, kind: FamilyKind::Gauge }
    }
}

/// One number of one part.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicU64>);

impl Count {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where own metrics are opened and gathered.
#[derive(Clone, Default)]
pub struct Telemetry {
    inner: Arc<Mutex<Inner>>,
    pub ledger: Ledger,
    pub pressure: Pressure,
    /// Rings when a subsystem broke.
    pub alarm: Arc<tokio::sync::Notify>,
}

#[derive(Default)]
struct Inner {
    counts: Vec<(Name, Labels, Count)>,
    healths: Vec<Arc<Health>>,
    parts: Vec<Arc<dyn Gather>>,
    left: Vec<Left>,
}

/// What a stop leaves behind of one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The sink's path in the configuration.
    pub sink: String,
    /// Records or samples that are read or sent after the next start.
    pub kept: u64,
    /// Those that nobody has any more.
    pub lost: u64,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Left { sink, kept, lost } = self;
        match (kept, lost) {
            (_, 0) => write!(f, "{sink}: {kept} kept"),
            (0, _) => write!(f, "{sink}: {lost} lost"),
            _ => write!(f, "{sink}: {kept} kept, {lost} lost"),
        }
    }
}

impl Telemetry {
    /// Notes what a stop leaves behind; one line at its end tells all of it.
    pub fn leave_behind(&self, sink: String, kept: u64, lost: u64) {
        if kept + lost > 0 {
            lock(&self.inner).left.push(Left { sink, kept, lost });
        }
    }

    pub fn left_behind(&self) -> Vec<Left> {
        lock(&self.inner).left.clone()
    }

    pub fn count(&self, name: Name, labels: &[(&str, &str)]) -> Count {
        let labels = labels_of(labels);
        let mut inner = lock(&self.inner);
        if let Some((.., count)) = inner.counts.iter().find(|(n, l, _)| n.name == name.name && *l == labels) {
            return count.clone();
        }
        let count = Count::default();
        inner.counts.push((name, labels, count.clone()));
        count
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

    /// Adds a part that counts in its own way, such as the proxy's threads.
    pub fn register(&self, part: Arc<dyn Gather>) {
        lock(&self.inner).parts.push(part);
    }
}

impl Gather for Telemetry {
    fn gather(&self, families: &mut Vec<Family>) {
        let build = Family::new("outrigger_build_info", "The version that runs.", FamilyKind::Gauge);
        families.push(build.with(&[("version", env!("CARGO_PKG_VERSION"))], 1.0));
        let (healths, parts) = {
            let inner = lock(&self.inner);
            for (name, labels, count) in &inner.counts {
                let point = Point { labels: labels.clone(), value: PointValue::Number(count.value() as f64) };
                match families.iter_mut().find(|family| &*family.name == name.name) {
                    Some(family) => family.points.push(point),
                    None => {
                        families.push(Family { points: vec![point], ..Family::new(name.name, name.help, name.kind) })
                    }
                }
            }
            (inner.healths.clone(), inner.parts.clone())
        };
        families.push(health_family(&healths));
        families.extend(ledger_families(&self.ledger));
        parts.iter().for_each(|part| part.gather(families));
    }
}

fn health_family(healths: &[Arc<Health>]) -> Family {
    let mut family =
        Family::new("outrigger_subsystem_state", "1 for the state that a subsystem is in.", FamilyKind::Gauge);
    for verdict in healths.iter().map(|health| health.verdict()) {
        for (state, word) in
            [(State::Starting, "starting"), (State::Ok, "ok"), (State::Degraded, "degraded"), (State::Failed, "failed")]
        {
            let value = if verdict.state == state { 1.0 } else { 0.0 };
            family = family.with(&[("subsystem", verdict.subsystem), ("state", word)], value);
        }
    }
    family
}

fn ledger_families(ledger: &Ledger) -> [Family; 6] {
    let counter = |name, help| Family::new(name, help, FamilyKind::Counter);
    let mut families = [
        counter("outrigger_records_received_total", "Records that came in."),
        counter("outrigger_records_delivered_total", "Records that were handed on, and by a sink: acknowledged."),
        counter("outrigger_records_merged_total", "Records that became part of another one."),
        counter("outrigger_records_replayed_total", "Records of those received that were read again after a restart."),
        Family::new("outrigger_records_pending", "Records that wait.", FamilyKind::Gauge),
        counter("outrigger_records_dropped_total", "Records that were given up, by reason."),
    ];
    for row in ledger.snapshot() {
        let labels = [("kind", row.kind), ("name", row.name.as_str())];
        let c = &row.counts;
        for (family, value) in families.iter_mut().zip([c.received, c.delivered, c.merged, c.replayed, c.pending]) {
            family.points.push(Point { labels: labels_of(&labels), value: PointValue::Number(value as f64) });
        }
        for (reason, dropped) in &c.dropped {
            let labels = labels_of(&[labels[0], labels[1], ("reason", reason)]);
            families[5].points.push(Point { labels, value: PointValue::Number(*dropped as f64) });
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 2
    #[test]
    fn counts_ledger_and_health_are_gathered_under_outrigger_names() {
        let telemetry = Telemetry::default();
        let name = Name::counter("outrigger_things_total", "Things.");
        telemetry.count(name, &[("part", "a")]).add(2);
        telemetry.count(name, &[("part", "a")]).add(1);
        telemetry.health("logs").set_ready(true);
        telemetry.ledger.row("sink", "logs/main").drop_unseen("full", 4);
        let mut families = Vec::new();
        telemetry.gather(&mut families);
        let mut text = String::new();
        crate::family::write_text(&families, &mut text);
        for line in [
            "outrigger_things_total{part=\"a\"} 3\n",
            "outrigger_subsystem_state{subsystem=\"logs\",state=\"ok\"} 1\n",
            "outrigger_records_dropped_total{kind=\"sink\",name=\"logs/main\",reason=\"full\"} 4\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(families.iter().all(|family| family.name.starts_with("outrigger_")));
    }
}
