//! The path of a log line: source → stages → queues → sinks, and back as acknowledgements.
//!
//! ```text
//! source::{stdio,file,proxy}::run → framer::Framer::take → Pipeline::push → stage::Stage::apply → delivery::Queue::push
//!     → delivery::Engine::run → sink::*::encode → sink::*::send → ack::AckHandle::done
//!     → checkpoint::Checkpoints::set / Ring::acknowledge
//! ```
//!
//! One thread. In: a Plan, the rings, the feed. Out: health, ledger rows. Limits: a queue per sink; a source reads only when
//! every blocking sink that it feeds has room.

use crate::batch::Batch;
use crate::checkpoint::{self, Checkpoints};
use crate::pipeline::{Branch, Pipeline};
use crate::plan::{Plan, SourcePlan};
use crate::source::{Inputs, Running, Start};
use crate::stage::metered;
use crate::stop;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Lifecycle, Participant, Phase, PhaseWatch};
use base::runtime::scope::{self, Scope};
use base::runtime::state::StateDir;
use base::telemetry::Telemetry;
use base::text::plural;
use delivery::engine::Engine;
use delivery::queue::Queue;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the logs wait for the first scan for files before they are ready without it, for example if a volume hangs.
const FIRST_SCAN: Duration = Duration::from_secs(10);

/// Starts the thread.
pub fn start(plan: Plan, inputs: Inputs, telemetry: &Telemetry, lifecycle: &mut Lifecycle) -> Result<(), Vec<String>> {
    let (health, telemetry, participant) = (telemetry.health("logs"), telemetry.clone(), lifecycle.participant("logs"));
    let thread_health = health.clone();
    scope::thread("logs", health, move || logs_thread(plan, inputs, telemetry, participant, thread_health))
        .map(drop)
        .map_err(|error| vec![format!("cannot start the logs thread: {error}")])
}

async fn logs_thread(
    plan: Plan,
    inputs: Inputs,
    telemetry: Telemetry,
    mut participant: Participant,
    health: Arc<Health>,
) {
    let scope = Scope::new("logs", health.clone());
    let checkpoints = open_checkpoints(&inputs.state, &health, &telemetry);
    checkpoints.prefer(plan.sources.iter().map(|source| source.name.as_str()));
    let builder = Builder { plan, telemetry, health: health.clone(), phase: participant.watch(), scope: scope.clone() };
    let (queues, engines) = builder.start_sinks();
    let (scanning, mut scanned) = mpsc::channel(1);
    let Running { readers, helpers, feeds, backlogs } = builder.start_sources(inputs, &queues, &checkpoints, &scanning);
    // Each source that scans for files has its own.
    drop(scanning);
    scope.spawn("sync", checkpoints.clone().sync_periodically());
    builder.list_components();
    let sources = plural(builder.plan.sources.len(), "source", "sources");
    health.set_summary(format!("{sources} to {}", plural(builder.plan.sinks.len(), "sink", "sinks")));
    let is_ready = health.clone();
    scope.spawn("ready", async move {
        // Once the logs are ready, new lines of a file are read, also if reading starts at the end of files.
        let _ = tokio::time::timeout(FIRST_SCAN, scanned.recv()).await;
        is_ready.set_ready(true);
    });

    let until = participant.reached(Phase::Handover).await;
    let readers = if participant.is_handover() {
        stop::hand_over(readers, &queues, until).await;
        helpers.iter().for_each(JoinHandle::abort);
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
        for engine in engines {
            let _ = engine.await;
        }
    };
    // Lines that are not delivered `PERSIST_RESERVE` before the deadline are persisted instead.
    let mut clock = participant.watch();
    let in_time = tokio::select! {
        () = finish => true,
        () = clock.is_over(stop::PERSIST_RESERVE) => false,
    };
    // A worker that hands over leaves the ring and all undelivered lines to the next worker.
    if !participant.is_handover() {
        let unpersisted = stop::persist(backlogs);
        if !in_time {
            stop::report_undelivered(&builder.plan.sinks, &builder.telemetry, &queues, &unpersisted);
        }
    }
    participant.done(Phase::Finish);
    participant.reached(Phase::Close).await;
    participant.done(Phase::Close);
}

/// Without a usable file, log files are re-read after a restart.
fn open_checkpoints(state: &StateDir, health: &Arc<Health>, telemetry: &Telemetry) -> Checkpoints {
    let (checkpoints, error) = Checkpoints::open(state, Some(health.clone())).unwrap_or_else(|error| {
        health.fault(checkpoint::PART, format!("cannot persist checkpoints; a restart will re-read files: {error}"));
        (Checkpoints::default(), None)
    });
    if let Some(error) = error {
        telemetry.counter(&base::runtime::state::FILES_RESET, &["logs/checkpoints"]).add(1);
        tracing::warn!(error, "log files without a checkpoint are re-read from the beginning");
    }
    checkpoints
}

/// Builds all tasks of the thread.
pub struct Builder {
    pub plan: Plan,
    pub telemetry: Telemetry,
    health: Arc<Health>,
    phase: PhaseWatch,
    scope: Scope,
}

impl Builder {
    /// Registers each source and each sink as a component in health.
    fn list_components(&self) {
        for source in &self.plan.sources {
            self.health.component(source.component().id, source.kind.name());
        }
        for sink in &self.plan.sinks {
            self.health.component(sink.component().id, sink.kind.name());
        }
        self.health.component("logs.checkpoints", "file");
    }

    fn start_sinks(&self) -> (Vec<Rc<Queue<Batch>>>, Vec<JoinHandle<()>>) {
        let (mut queues, mut engines) = (Vec::new(), Vec::new());
        for (index, sink) in self.plan.sinks.iter().enumerate() {
            let component = sink.component();
            let row = self.telemetry.ledger.row(&component);
            let queue = Queue::new(index, sink.max_buffer_bytes, sink.when_full, row);
            match sink.kind.build() {
                Ok(built) => {
                    let (options, health) = (sink.options.clone(), self.health.clone());
                    let engine = Engine::new(
                        &component,
                        built,
                        queue.clone(),
                        options,
                        &self.telemetry,
                        health,
                        self.phase.clone(),
                    );
                    engines.push(self.scope.spawn("sink", engine.run()));
                }
                Err(error) => self.health.panicked(&format!("{}: {error}", component.id)),
            }
            queues.push(queue);
        }
        (queues, engines)
    }

    fn start_sources(
        &self,
        mut inputs: Inputs,
        queues: &[Rc<Queue<Batch>>],
        checkpoints: &Checkpoints,
        scanning: &mpsc::Sender<()>,
    ) -> Running {
        let mut running = Running::default();
        for source in &self.plan.sources {
            let start = Start {
                pipeline: Rc::new(self.pipeline(source, queues)),
                inputs: &mut inputs,
                checkpoints,
                health: &self.health,
                phase: &self.phase,
                scope: &self.scope,
                scanning,
                running: &mut running,
            };
            source.kind.start(start);
        }
        running
    }

    fn pipeline(&self, source: &SourcePlan, queues: &[Rc<Queue<Batch>>]) -> Pipeline {
        let component = source.component();
        let mut stages = metered(&source.stages, &component.id, &self.telemetry);
        stages.extend(metered(&self.plan.stages, "logs", &self.telemetry));
        let branches = source.sinks.iter().filter_map(|index| {
            let (sink, queue) = (self.plan.sinks.get(*index)?, queues.get(*index)?);
            Some(Branch {
                name: sink.name.clone(),
                required: sink.required,
                queue: queue.clone(),
                stages: metered(&sink.stages, &sink.component().id, &self.telemetry),
            })
        });
        Pipeline::new(&source.name, component, stages, branches.collect(), &self.telemetry, self.health.clone())
    }
}
