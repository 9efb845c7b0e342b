//! The way of a log line, readable here: source → stages → queues → sinks, and back as acknowledgements.
//!
//! ```text
//! source::{stdio,file,proxy}::run → split::Framer::take → Pipeline::push → stage::Stage::shape → queue::Queue::push
//!     → ship → sink::Sink::encode → sink::Sink::deliver → track::AckHandle::done → checkpoint::Checkpoints::set / Ring::acknowledge
//! ```
//!
//! One thread. In: a Plan, the rings, the feed. Out: health, ledger rows. Bounds: a queue per sink; a source reads only when
//! every blocking sink that it feeds has room.

use crate::ack::AckTracker;
use crate::batch::{Batch, Stream};
use crate::checkpoint::{self, Checkpoints};
use crate::plan::{BatchLimits, Plan, SinkPlan};
use crate::queue::Queue;
use crate::sink::{Failure, Sink};
use crate::source::stdio::Wake;
use crate::source::{SourceKind, file, proxy, stdio};
use crate::stage::{MeteredStage, apply, metered};
use crate::stop;
use crate::telemetry::{REMOVED_BYTES, REMOVED_FILES, TRUNCATED};
use base::feeds::{AccessBatch, FeedReceiver};
use base::runtime::backoff::Backoff;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Lifecycle, Participant, Phase, PhaseWatch};
use base::runtime::pressure::Pressure;
use base::runtime::scope::{self, Scope};
use base::runtime::state::StateDir;
use base::telemetry::component::Component;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use base::telemetry::{Counter, Gauge, MetricDesc, RECEIVED_BYTES, Requests, Telemetry};
use base::text::plural;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::ring::Ring;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The pauses between tries of one body.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// While stopping there is no time for long ones.
const RETRY_MOST_STOPPING: Duration = Duration::from_millis(500);

/// How long the first look for files may take before we are ready without it, as where a volume hangs.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// What the logs need from the rest of the worker.
pub struct Inputs {
    pub rings: Option<(Ring, Ring)>,
    pub wake: Option<OwnedFd>,
    pub access: Option<FeedReceiver<AccessBatch>>,
    pub state: StateDir,
}

/// What stands in the way of a start, such as a certificate that is missing: each sink is built once, and again on the thread.
pub fn check(plan: &Plan) -> Vec<String> {
    let build = |sink: &SinkPlan| sink.kind.build().err().map(|error| format!("log sink `{}`: {error}", sink.name));
    plan.sinks.iter().filter_map(build).collect()
}

/// Starts the thread. Call `check` before.
pub fn start(plan: Plan, inputs: Inputs, telemetry: &Telemetry, lifecycle: &mut Lifecycle) -> Result<(), Vec<String>> {
    let (health, telemetry, participant) = (telemetry.health("logs"), telemetry.clone(), lifecycle.participant("logs"));
    let thread_health = health.clone();
    scope::thread("logs", health, move || logs_thread(plan, inputs, telemetry, participant, thread_health))
        .map(drop)
        .map_err(|error| vec![format!("the logs thread cannot start: {error}")])
}

async fn logs_thread(
    plan: Plan,
    inputs: Inputs,
    telemetry: Telemetry,
    mut participant: Participant,
    health: Arc<Health>,
) {
    let scope = Scope::new("logs", health.clone());
    let opened = Checkpoints::open(&inputs.state, Some(health.clone())).unwrap_or_else(|error| {
        health
            .fault(checkpoint::PART, format!("checkpoints cannot be persisted; a restart will re-read files: {error}"));
        (Checkpoints::default(), None)
    });
    let (checkpoints, trouble) = opened;
    if let Some(trouble) = trouble {
        telemetry.counter(&base::runtime::state::FILES_RESET, &["logs/checkpoints"]).add(1);
        tracing::warn!("{trouble}; log files without a checkpoint are re-read from the beginning");
    }
    checkpoints.prefer(plan.sources.iter().map(|source| source.name.as_str()));
    let parts = Builder { plan, telemetry, health: health.clone(), phase: participant.watch(), scope: scope.clone() };
    let (queues, shippers) = parts.start_sinks();
    let (looking, mut looked) = mpsc::channel(1);
    let RunningSources { readers, wake, feeds, leftovers } =
        parts.start_sources(inputs, &queues, &checkpoints, looking);
    scope.spawn("sync", checkpoints.clone().sync_periodically());
    parts.list_components();
    let sources = plural(parts.plan.sources.len(), "source", "sources");
    health.set_summary(format!("{sources} to {}", plural(parts.plan.sinks.len(), "sink", "sinks")));
    let is_ready = health.clone();
    scope.spawn("ready", async move {
        // Once we are ready, what is written to a file is read, also where files are begun at their end.
        let _ = tokio::time::timeout(FIRST_LOOK, looked.recv()).await;
        is_ready.set_ready(true);
    });

    let until = participant.reached(Phase::Handover).await;
    let readers = if participant.yields() {
        stop::hand_over(readers, &queues, until).await;
        wake.iter().for_each(JoinHandle::abort);
        checkpoints.release();
        participant.done(Phase::Handover);
        Vec::new()
    } else {
        readers
    };
    participant.reached(Phase::Drain).await;
    participant.done(Phase::Drain);
    participant.reached(Phase::Finish).await;
    let finish = async {
        for reader in readers.into_iter().chain(feeds) {
            let _ = reader.await;
        }
        queues.iter().for_each(|queue| queue.close());
        for shipper in shippers {
            let _ = shipper.await;
        }
    };
    // What is not delivered a moment before the deadline is written down instead.
    let mut clock = participant.watch();
    let in_time = tokio::select! {
        () = finish => true,
        () = clock.is_over(stop::KEEP_RESERVE) => false,
    };
    // A worker that makes room for the next one leaves the ring to it, and everything before its end.
    if !participant.yields() {
        let unkept = stop::keep(leftovers);
        if !in_time {
            stop::leave_behind(&parts, &queues, &unkept);
        }
    }
    participant.done(Phase::Finish);
    participant.reached(Phase::Close).await;
    participant.done(Phase::Close);
}

/// What all tasks of the thread are made from.
pub struct Builder {
    pub plan: Plan,
    pub telemetry: Telemetry,
    health: Arc<Health>,
    phase: PhaseWatch,
    scope: Scope,
}

/// What may be left in a ring, and the source that reads it.
pub type BacklogOf = (stdio::Backlog, Ring, Rc<Pipeline>);

/// The sources at work, and what may be left of the app's output at the end.
#[derive(Default)]
struct RunningSources {
    /// Of streams that another worker can read on.
    readers: Vec<JoinHandle<()>>,
    /// Empties the pipe that the worker which takes over will empty.
    wake: Option<JoinHandle<()>>,
    /// Of what comes from this worker itself.
    feeds: Vec<JoinHandle<()>>,
    leftovers: Vec<BacklogOf>,
}

impl Builder {
    /// Gives each source and each sink its row among the components.
    fn list_components(&self) {
        for source in &self.plan.sources {
            self.health.component(source.component().id, source.kind.name());
        }
        for sink in &self.plan.sinks {
            self.health.component(sink.component().id, sink.kind.name());
        }
        self.health.component("state", "state");
    }

    fn start_sinks(&self) -> (Vec<Rc<Queue>>, Vec<JoinHandle<()>>) {
        let (mut queues, mut shippers) = (Vec::new(), Vec::new());
        for (index, sink) in self.plan.sinks.iter().enumerate() {
            let row = self.telemetry.ledger.row(&sink.component());
            let queue = Queue::new(index, sink.max_buffer_bytes, sink.when_full, row);
            match Shipper::new(sink, queue.clone(), &self.telemetry, self.health.clone(), self.phase.clone()) {
                Ok(shipper) => shippers.push(self.scope.spawn("sink", shipper.run())),
                Err(error) => self.health.panicked(&error),
            }
            queues.push(queue);
        }
        (queues, shippers)
    }

    /// `looking` is dropped by each source that has looked for its files.
    fn start_sources(
        &self,
        mut inputs: Inputs,
        queues: &[Rc<Queue>],
        checkpoints: &Checkpoints,
        looking: mpsc::Sender<()>,
    ) -> RunningSources {
        let failed = |error| self.health.panicked(&format!("the wake pipe: {error}"));
        let wake = inputs.wake.take().and_then(|fd| Wake::new(fd).map_err(failed).ok());
        let mut reading = RunningSources::default();
        if let Some(wake) = wake.clone() {
            reading.wake = Some(self.scope.spawn("wake", wake.ring()));
        }
        for source in &self.plan.sources {
            let pipeline = Rc::new(Pipeline::new(source, &self.plan, queues, &self.telemetry, self.health.clone()));
            let phase = self.phase.clone();
            match (&source.kind, &inputs.rings, &wake) {
                (SourceKind::Stdio(config), Some((stdout, stderr)), Some(wake)) => {
                    for (ring, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
                        let left = stdio::Backlog::new(&inputs.state, &source.name, stream);
                        let shared = stdio::Shared {
                            ring: ring.clone(),
                            stream,
                            wake: wake.clone(),
                            config: config.clone(),
                            checkpoints: checkpoints.clone(),
                            left: left.clone(),
                        };
                        reading.leftovers.push((left, ring.clone(), pipeline.clone()));
                        reading.readers.push(
                            self.scope.spawn(
                                "stdio",
                                stdio::run(shared, pipeline.clone(), self.scope.clone(), phase.clone()),
                            ),
                        );
                    }
                }
                (SourceKind::File(config), ..) => {
                    let (config, checkpoints) = (config.clone(), checkpoints.clone());
                    let run = file::run(config, pipeline, checkpoints, self.scope.clone(), phase, looking.clone());
                    reading.readers.push(self.scope.spawn("file", run));
                }
                (SourceKind::Proxy(_), ..) => {
                    if let Some(feed) = inputs.access.take() {
                        reading.feeds.push(self.scope.spawn("proxy", proxy::run(feed, pipeline, phase)));
                    }
                }
                // The plan refuses `stdio` without a wrapped app; here the app runs since before the source was configured.
                (SourceKind::Stdio(_), ..) => {
                    let text =
                        "stdout/stderr capture was not enabled when the app started; restart Outrigger to enable it";
                    self.health.fault(pipeline.id(), text);
                }
            }
        }
        reading
    }
}

/// The way from one source to its sinks.
pub struct Pipeline {
    name: String,
    component: Component,
    stages: Vec<MeteredStage>,
    branchs: Vec<Branch>,
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

/// One sink of a pipeline.
struct Branch {
    name: String,
    required: bool,
    queue: Rc<Queue>,
    stages: Vec<MeteredStage>,
}

impl Pipeline {
    fn new(
        source: &crate::plan::SourcePlan,
        plan: &Plan,
        queues: &[Rc<Queue>],
        telemetry: &Telemetry,
        health: Arc<Health>,
    ) -> Pipeline {
        let component = source.component();
        let mut stages = metered(&source.stages, &component.id, telemetry);
        stages.extend(metered(&plan.stages, "logs", telemetry));
        let branchs = source.sinks.iter().filter_map(|index| {
            let (sink, queue) = (plan.sinks.get(*index)?, queues.get(*index)?);
            Some(Branch {
                name: sink.name.clone(),
                required: sink.required,
                queue: queue.clone(),
                stages: metered(&sink.stages, &sink.component().id, telemetry),
            })
        });
        Pipeline {
            branchs: branchs.collect(),
            sink_count: plan.sinks.len(),
            stages,
            row: telemetry.ledger.row(&component),
            bytes: telemetry.counter(&RECEIVED_BYTES, &component.labels()),
            truncated: telemetry.counter(&TRUNCATED, &component.labels()),
            removed_files: telemetry.counter(&REMOVED_FILES, &component.labels()),
            removed_bytes: telemetry.counter(&REMOVED_BYTES, &component.labels()),
            health,
            pressure: telemetry.pressure.clone(),
            telemetry: telemetry.clone(),
            name: source.name.clone(),
            component,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What health calls it.
    pub fn id(&self) -> &str {
        &self.component.id
    }

    /// A gauge of the source.
    pub fn gauge(&self, desc: &'static MetricDesc) -> Gauge {
        self.telemetry.gauge(desc, &self.component.labels())
    }

    /// The index in tracks and the name of each sink.
    pub fn sinks(&self) -> impl Iterator<Item = (usize, &str)> {
        self.branchs.iter().map(|branch| (branch.queue.sink, branch.name.as_str()))
    }

    /// Names of the sinks that records must reach.
    pub fn required_sinks(&self) -> Vec<String> {
        self.branchs.iter().filter(|branch| branch.required).map(|branch| branch.name.clone()).collect()
    }

    /// How long a track's list of sinks is.
    pub fn sink_count(&self) -> usize {
        self.sink_count
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Hands a batch to all sinks; waits while one that blocks is full. Records before `read_before` were read by a worker
    /// before this one. A sink that has acknowledged records already does not get them again.
    pub async fn push(&self, mut batch: Batch, track: &Rc<AckTracker>, read_before: u64) {
        // What is not read stays where it is, in the file or the ring, until there is memory for it.
        if self.branchs.iter().any(|branch| branch.queue.holds_much()) {
            self.pressure.wait_for_relief().await;
        }
        let end = batch.base + batch.bytes.len() as u64;
        let replayed = batch.records.iter().filter(|record| batch.base + u64::from(record.end) < read_before).count();
        batch.ticket = Some(track.ticket(end));
        self.row.receive(batch.records.len() as u64);
        self.row.replay(replayed as u64);
        let skip = |sink: usize| track.acknowledged(sink);
        self.fan_out(batch, &skip, replayed > 0).await;
    }

    /// The same for records that cannot be read again.
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
        for branch in &self.branchs {
            let sink = branch.queue.sink;
            let seen = acknowledged(sink);
            let mut theirs = batch.clone();
            if seen > batch.base {
                // Whole records before the sink's own position are left out.
                let records: Vec<_> =
                    batch.records.iter().filter(|r| batch.base + u64::from(r.end) >= seen).copied().collect();
                if records.is_empty() {
                    continue;
                }
                theirs = Rc::new(Batch { records, ..(*batch).clone() });
            }
            if !branch.stages.is_empty() {
                apply(&branch.stages, Rc::make_mut(&mut theirs));
            }
            branch.queue.room(cost).await;
            theirs.ticket.iter().for_each(|ticket| ticket.open(sink));
            branch.queue.push(theirs, replayed);
        }
        self.row.deliver(count);
    }

    /// Records that were lost before they could be read.
    pub fn lost(&self, reason: Reason, records: u64) {
        if records > 0 {
            self.row.drop_unseen(reason, records);
            tracing::error!(
                source = self.name,
                records,
                reason = reason.as_str(),
                "log records dropped before they could be read"
            );
        }
    }

    /// A file of the state directory is of a newer version than ours.
    pub fn restarted(&self, file: &str) {
        self.telemetry.counter(&base::runtime::state::FILES_RESET, &[file]).add(1);
    }

    /// A file that went away before all sinks had it; zero bytes are an unknown number.
    pub fn missed_file(&self, path: &std::path::Path, bytes: u64) {
        self.removed_files.add(1);
        self.removed_bytes.add(bytes);
        let (source, file) = (&self.name, path.display());
        tracing::error!(source, %file, bytes, "log file removed before it was fully delivered");
    }

    pub fn failed(&self, why: &str) {
        self.health.panicked(&format!("log source {}: {why}", self.name));
    }
}

/// One sink's task.
struct Shipper {
    name: String,
    /// What health calls it.
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

/// What is in a body: how many records of which batch, and whether they are its last.
struct Part {
    batch: Rc<Batch>,
    records: u64,
    complete: bool,
}

impl Shipper {
    fn new(
        plan: &SinkPlan,
        queue: Rc<Queue>,
        telemetry: &Telemetry,
        health: Arc<Health>,
        phase: PhaseWatch,
    ) -> Result<Shipper, String> {
        let component = plan.component();
        Ok(Shipper {
            name: plan.name.clone(),
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

    async fn run(mut self) {
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
                        .fault(&self.id, format!("records rejected by the receiver and dropped: {}", failure.text));
                    tracing::error!(
                        sink = self.name,
                        records,
                        reason = Reason::Rejected.as_str(),
                        error = failure.text,
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

    /// Puts a body together: full, or as old as its limit. Empty when nothing more will come.
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
        // Neither a stop nor a worker that takes over waits for company.
        if self.phase.yields() || (self.phase.phase() >= Phase::Finish && self.queue.is_closed()) {
            return None;
        }
        tokio::select! {
            batch = self.queue.next() => batch,
            () = tokio::time::sleep_until(until.into()) => None,
            () = self.phase.yielding() => None,
        }
    }

    /// Tries until the body is taken, or refused for good.
    async fn deliver(&mut self) -> Result<(), Failure> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            let failure = match self.sink.deliver().await {
                Ok(()) => {
                    self.requests.succeed(self.sink.sent());
                    if self.health.recovered(&self.id) {
                        tracing::info!(sink = self.name, "log sink recovered");
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
            if self.health.fault(&self.id, failure.text.clone()) {
                tracing::warn!(sink = self.name, error = failure.text, "delivery failed; retrying");
            }
            let pause = backoff.pause_at_least(failure.wait);
            let stopping = self.phase.phase() >= Phase::Finish;
            if stopping {
                tokio::time::sleep(pause.min(RETRY_MOST_STOPPING)).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = self.phase.reached(Phase::Finish) => {}
                }
            }
        }
    }
}
