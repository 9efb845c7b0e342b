//! The account of every record: for each source, stage and sink, `received = delivered + merged + pending + dropped`.
//! In: counts per batch. Out: rows that balance, each taken under its own lock. Limits: rows are configured components,
//! and reasons are constants, so neither grows with the data.

use crate::sync::lock;
use crate::telemetry::component::Component;
use crate::telemetry::reason::Reason;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The kinds of rows, in the order in which a record passes them.
const KINDS: [&str; 4] = ["source", "store", "stage", "sink"];

/// All rows, in the order in which they were opened.
#[derive(Clone, Default)]
pub struct Ledger {
    rows: Arc<Mutex<Vec<Arc<Row>>>>,
}

/// One component's account.
pub struct Row {
    component: Component,
    counts: Mutex<Counts>,
}

/// A snapshot of one row; every snapshot balances.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub received: u64,
    pub delivered: u64,
    /// Records that became part of another one, such as the lines of a stack trace.
    pub merged: u64,
    pub pending: u64,
    /// The part of `received` that was re-read after a restart.
    pub replayed: u64,
    pub dropped: BTreeMap<Reason, u64>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct Snapshot {
    #[serde(flatten)]
    pub component: Component,
    #[serde(flatten)]
    pub counts: Counts,
}

impl Ledger {
    /// The row of a component; the same row if it was opened before, such as by each source for a shared stage.
    pub fn row(&self, component: &Component) -> Arc<Row> {
        let mut rows = lock(&self.rows);
        if let Some(row) = rows.iter().find(|row| row.component == *component) {
            return row.clone();
        }
        let row = Arc::new(Row { component: component.clone(), counts: Mutex::default() });
        rows.push(row.clone());
        row
    }

    /// All rows as a record passes them: by subsystem, sources, stages, sinks.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let mut rows = lock(&self.rows).clone();
        rows.sort_by_key(|row| {
            let Component { id, kind, .. } = &row.component;
            let subsystem = id.split('.').next().unwrap_or_default().to_string();
            (subsystem, KINDS.iter().position(|known| known == kind), id.clone())
        });
        let snapshot =
            |row: &Arc<Row>| Snapshot { component: row.component.clone(), counts: lock(&row.counts).clone() };
        rows.iter().map(snapshot).collect()
    }
}

impl Row {
    /// Records were received and are pending.
    pub fn receive(&self, records: u64) {
        let mut counts = lock(&self.counts);
        counts.received += records;
        counts.pending += records;
    }

    /// Records how many of the received records had been read before.
    pub fn replay(&self, records: u64) {
        lock(&self.counts).replayed += records;
    }

    pub fn deliver(&self, records: u64) {
        let mut counts = lock(&self.counts);
        let records = counts.settle(records);
        counts.delivered += records;
    }

    pub fn merge(&self, records: u64) {
        let mut counts = lock(&self.counts);
        let records = counts.settle(records);
        counts.merged += records;
    }

    pub fn drop_records(&self, reason: Reason, records: u64) {
        if records == 0 {
            return;
        }
        let mut counts = lock(&self.counts);
        let records = counts.settle(records);
        *counts.dropped.entry(reason).or_default() += records;
    }

    /// Records that were lost before they could be received, such as bytes overwritten in a full ring.
    pub fn drop_unseen(&self, reason: Reason, records: u64) {
        self.receive(records);
        self.drop_records(reason, records);
    }

    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }
}

impl Counts {
    /// Takes records out of `pending`. More than `pending` is a bug, which must not unbalance the row.
    fn settle(&mut self, records: u64) -> u64 {
        debug_assert!(records <= self.pending, "{records} settled, {} pending", self.pending);
        let settled = records.min(self.pending);
        self.pending -= settled;
        settled
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    pub fn balances(&self) -> bool {
        self.received == self.delivered + self.merged + self.pending + self.dropped_total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guarantee: ledger-balances
    #[test]
    fn row_balances_after_every_step() {
        let ledger = Ledger::default();
        let row = ledger.row(&Component::sink("logs.sinks.main".into(), "loki"));
        let steps: [&dyn Fn(); 6] = [
            &|| row.receive(10),
            &|| row.deliver(4),
            &|| row.merge(2),
            &|| row.drop_records(Reason::Rejected, 3),
            &|| row.drop_unseen(Reason::BufferFull, 5),
            &|| row.replay(1),
        ];
        for step in steps {
            step();
            assert!(row.counts().balances(), "{:?}", row.counts());
        }
        let counts = row.counts();
        assert_eq!((counts.received, counts.delivered, counts.pending, counts.dropped_total()), (15, 4, 1, 8));
    }

    #[test]
    fn json_is_the_documented_one() {
        let ledger = Ledger::default();
        ledger.row(&Component::sink("logs.sinks.main".into(), "loki")).drop_unseen(Reason::Rejected, 2);
        assert_eq!(
            serde_json::to_string(&ledger.snapshot()).ok().as_deref(),
            Some(
                r#"[{"id":"logs.sinks.main","kind":"sink","type":"loki","received":2,"delivered":0,"merged":0,"pending":0,"replayed":0,"dropped":{"rejected":2}}]"#
            )
        );
    }
}
