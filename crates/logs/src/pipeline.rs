//! The path of a source's batch to the sinks: the source's stages, then each sink's branch with its own stages and queue. In:
//! batches. Out: batches in queues, the source's row. Limits: a batch waits until each blocking queue has room.

use crate::ack::AckTracker;
use crate::batch::Batch;
use crate::stage::{MeteredStage, apply};
use crate::telemetry::{REMOVED_BYTES, REMOVED_FILES, TRUNCATED};
use base::runtime::health::Health;
use base::runtime::pressure::Pressure;
use base::telemetry::component::Component;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use base::telemetry::{Counter, Gauge, MetricDesc, RECEIVED_BYTES, Telemetry};
use delivery::queue::Queue;
use std::rc::Rc;
use std::sync::Arc;

/// One sink of a pipeline.
pub struct Branch {
    pub name: String,
    pub required: bool,
    pub queue: Rc<Queue<Batch>>,
    pub stages: Vec<MeteredStage>,
}

/// The path from one source to its sinks.
pub struct Pipeline {
    name: String,
    component: Component,
    stages: Vec<MeteredStage>,
    branches: Vec<Branch>,
    sink_count: usize,
    row: Arc<Row>,
    bytes: Counter,
    truncated: Counter,
    removed_files: Counter,
    removed_bytes: Counter,
    telemetry: Telemetry,
    health: Arc<Health>,
    pressure: Pressure,
}

impl Pipeline {
    /// `stages`: those of the source, followed by those of all sources.
    pub fn new(
        name: &str,
        component: Component,
        stages: Vec<MeteredStage>,
        branches: Vec<Branch>,
        telemetry: &Telemetry,
        health: Arc<Health>,
    ) -> Pipeline {
        Pipeline {
            sink_count: branches.iter().map(|branch| branch.queue.sink + 1).max().unwrap_or(0),
            branches,
            stages,
            row: telemetry.ledger.row(&component),
            bytes: telemetry.counter(&RECEIVED_BYTES, &component.labels()),
            truncated: telemetry.counter(&TRUNCATED, &component.labels()),
            removed_files: telemetry.counter(&REMOVED_FILES, &component.labels()),
            removed_bytes: telemetry.counter(&REMOVED_BYTES, &component.labels()),
            health,
            pressure: telemetry.pressure.clone(),
            telemetry: telemetry.clone(),
            name: name.to_string(),
            component,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The component's id.
    pub fn id(&self) -> &str {
        &self.component.id
    }

    /// A gauge of the source.
    pub fn gauge(&self, desc: &'static MetricDesc) -> Gauge {
        self.telemetry.gauge(desc, &self.component.labels())
    }

    /// The index in trackers and the name of each sink.
    pub fn sinks(&self) -> impl Iterator<Item = (usize, &str)> {
        self.branches.iter().map(|branch| (branch.queue.sink, branch.name.as_str()))
    }

    /// Names of the required sinks.
    pub fn required_sinks(&self) -> Vec<String> {
        self.branches.iter().filter(|branch| branch.required).map(|branch| branch.name.clone()).collect()
    }

    /// The length of lists with a value per sink: the highest index, plus one.
    pub fn sink_count(&self) -> usize {
        self.sink_count
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Passes a batch to all sinks; waits while a blocking sink is full. Records before `read_before` were read by a previous
    /// worker. A sink does not receive records again that it has acknowledged.
    pub async fn push(&self, mut batch: Batch, tracker: &Rc<AckTracker>, read_before: u64) {
        // Unread lines stay in the file or the ring until there is memory for them.
        if self.branches.iter().any(|branch| branch.queue.exceeds_reserve()) {
            self.pressure.wait_for_relief().await;
        }
        let end = batch.base + batch.bytes.len() as u64;
        let replayed = batch.records.iter().filter(|record| batch.base + u64::from(record.end) < read_before).count();
        batch.ack = Some(tracker.handle(end));
        self.row.receive(batch.records.len() as u64);
        self.row.replay(replayed as u64);
        let skip = |sink: usize| tracker.acknowledged(sink);
        self.fan_out(batch, &skip, replayed > 0).await;
    }

    /// The same for records that cannot be re-read.
    pub async fn push_untracked(&self, batch: Batch) {
        self.row.receive(batch.records.len() as u64);
        self.fan_out(batch, &|_| 0, false).await;
    }

    async fn fan_out(&self, mut batch: Batch, acknowledged: &dyn Fn(usize) -> u64, replayed: bool) {
        let count = batch.records.len() as u64;
        self.bytes.add(batch.bytes.len() as u64);
        self.truncated.add(batch.records.iter().filter(|record| record.truncated).count() as u64);
        apply(&self.stages, &mut batch);
        batch.records.shrink_to_fit();
        let cost = batch.cost();
        let batch = Rc::new(batch);
        for branch in &self.branches {
            let sink = branch.queue.sink;
            let offset = acknowledged(sink);
            let mut own = batch.clone();
            if offset > batch.base {
                // Complete records before the sink's own offset are skipped.
                let records: Vec<_> =
                    batch.records.iter().filter(|r| batch.base + u64::from(r.end) >= offset).copied().collect();
                if records.is_empty() {
                    continue;
                }
                own = Rc::new(Batch { records, ..(*batch).clone() });
            }
            if !branch.stages.is_empty() {
                apply(&branch.stages, Rc::make_mut(&mut own));
            }
            branch.queue.room(cost).await;
            own.ack.iter().for_each(|ack| ack.open(sink));
            branch.queue.push(own, replayed);
        }
        self.row.deliver(count);
    }

    /// Records that were lost before they could be read.
    pub fn lost(&self, reason: Reason, records: u64) {
        if records > 0 {
            self.row.drop_unseen(reason, records);
            tracing::error!(
                component = self.component.id,
                records,
                reason = reason.as_str(),
                "log records dropped before they could be read"
            );
        }
    }

    /// Counts a file of the state directory that is reset, since its version is not supported.
    pub fn count_reset(&self, file: &str) {
        self.telemetry.counter(&base::runtime::state::FILES_RESET, &[file]).add(1);
    }

    /// A file that was removed before all sinks had received it; 0 stands for an unknown number of bytes.
    pub fn missed_file(&self, path: &std::path::Path, bytes: u64) {
        self.removed_files.add(1);
        self.removed_bytes.add(bytes);
        let (component, path) = (&self.component.id, path.display());
        tracing::error!(component, %path, bytes, "log file removed before it was fully delivered");
    }

    pub fn failed(&self, error: &str) {
        self.health.panicked(&format!("log source {}: {error}", self.name));
    }
}
