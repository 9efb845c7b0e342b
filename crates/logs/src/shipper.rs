//! One sink's task: takes batches from its queue, encodes them into a body, delivers it with retries, and acknowledges its
//! batches. In: a queue. Out: requests of the sink, the sink's row. Limits: the batch options of the sink; one body in flight.

use crate::batch::Batch;
use crate::plan::{BatchLimits, SinkPlan};
use crate::queue::Queue;
use crate::sink::{Failure, Sink};
use base::runtime::backoff::Backoff;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use base::telemetry::{Requests, Telemetry};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first and the longest delay between attempts to deliver one body.
const RETRY_FIRST: Duration = Duration::from_millis(250);

const RETRY_MAX: Duration = Duration::from_secs(30);

/// A shutdown leaves no time for longer delays.
const RETRY_MAX_STOPPING: Duration = Duration::from_millis(500);

/// One sink's task.
pub struct Shipper {
    /// The component's id.
    id: String,
    sink: Box<dyn Sink>,
    queue: Rc<Queue>,
    row: Arc<Row>,
    limits: BatchLimits,
    requests: Requests,
    health: Arc<Health>,
    phase: PhaseWatch,
    /// A batch of which only the first records are in the body.
    current: Option<(Rc<Batch>, usize)>,
}

/// A part of a body: how many records of which batch, and whether they are its last.
struct Part {
    batch: Rc<Batch>,
    records: u64,
    complete: bool,
}

impl Shipper {
    pub fn new(
        plan: &SinkPlan,
        queue: Rc<Queue>,
        telemetry: &Telemetry,
        health: Arc<Health>,
        phase: PhaseWatch,
    ) -> Result<Shipper, String> {
        let component = plan.component();
        Ok(Shipper {
            id: component.id.clone(),
            sink: plan.kind.build()?,
            row: telemetry.ledger.row(&component),
            queue,
            limits: plan.batch,
            requests: Requests::new(telemetry, &component),
            health,
            phase,
            current: None,
        })
    }

    pub async fn run(mut self) {
        loop {
            let parts = self.fill().await;
            if parts.is_empty() {
                return;
            }
            let delivered = self.deliver().await;
            let records: u64 = parts.iter().map(|part| part.records).sum();
            match delivered {
                Ok(()) => self.row.deliver(records),
                Err(failure) => {
                    self.row.drop_records(Reason::Rejected, records);
                    self.health
                        .fault(&self.id, format!("records rejected by the receiver and dropped: {}", failure.error));
                    tracing::error!(
                        component = self.id,
                        records,
                        reason = Reason::Rejected.as_str(),
                        error = failure.error,
                        "log records rejected by the receiver and dropped"
                    );
                }
            }
            self.sink.reset();
            for part in parts.iter().filter(|part| part.complete) {
                self.queue.done(&part.batch);
            }
        }
    }

    /// Builds a body until it is full or reaches its maximum age. Empty if no more batches follow.
    async fn fill(&mut self) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut until: Option<Instant> = None;
        let mut room = self.limits.records;
        while self.sink.size() < self.limits.bytes && room > 0 {
            let (batch, first) = match self.current.take() {
                Some(current) => current,
                None => match self.next_batch(until).await {
                    Some(batch) => (batch, 0),
                    None => break,
                },
            };
            let end = batch.records.len().min(first + room);
            let next = self.sink.encode(&batch, first..end, self.limits.bytes);
            room -= next - first;
            let complete = next >= batch.records.len();
            parts.push(Part { batch: batch.clone(), records: (next - first) as u64, complete });
            until.get_or_insert_with(|| Instant::now() + self.limits.age);
            if !complete {
                self.current = Some((batch, next));
                break;
            }
        }
        parts
    }

    async fn next_batch(&mut self, until: Option<Instant>) -> Option<Rc<Batch>> {
        let Some(until) = until else { return self.queue.next().await };
        if let Some(batch) = self.queue.pop() {
            return Some(batch);
        }
        // Neither a shutdown nor a handover waits for more records.
        if self.phase.is_handover() || (self.phase.phase() >= Phase::Finish && self.queue.is_closed()) {
            return None;
        }
        tokio::select! {
            batch = self.queue.next() => batch,
            () = tokio::time::sleep_until(until.into()) => None,
            () = self.phase.handover_begins() => None,
        }
    }

    /// Retries until the body is accepted or permanently rejected.
    async fn deliver(&mut self) -> Result<(), Failure> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let failure = match self.sink.deliver().await {
                Ok(()) => {
                    self.requests.succeed(self.sink.sent());
                    if self.health.recovered(&self.id) {
                        tracing::info!(component = self.id, "log sink recovered");
                    }
                    return Ok(());
                }
                Err(failure) if !failure.retry => {
                    self.requests.reject();
                    return Err(failure);
                }
                Err(failure) => failure,
            };
            self.requests.retry();
            if self.health.fault(&self.id, failure.error.clone()) {
                tracing::warn!(component = self.id, error = failure.error, "delivery failed; retrying");
            }
            let delay = backoff.pause_at_least(failure.retry_after);
            let stopping = self.phase.phase() >= Phase::Finish;
            if stopping {
                tokio::time::sleep(delay.min(RETRY_MAX_STOPPING)).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    _ = self.phase.reached(Phase::Finish) => {}
                }
            }
        }
    }
}
