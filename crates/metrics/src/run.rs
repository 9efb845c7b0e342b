//! The path of a sample: source → snapshot → sinks.
//!
//! ```text
//! collector → source::Source::collect → text::parse / series::snapshot_of → Sources::set → sink::prometheus::respond
//!                                                                         ↘ sink::Sink::push → RemoteWrite::send
//! ```
//!
//! Runs on the worker's main thread. In: a Plan. Out: health, ledger rows (in samples). Limits: one collection per
//! source at a time; each sink has its own.

use crate::plan::{Plan, SourcePlan};
use crate::series::Snapshot;
use crate::sink::{Context, Sink};
use crate::source::{Collected, Inputs};
use crate::sources::{Entry, Sources};
use crate::telemetry::SERIES;
use base::runtime::backoff::Backoff;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Lifecycle, Participant, Phase, PhaseWatch};
use base::runtime::pressure::Pressure;
use base::runtime::scope::Scope;
use base::system::listen::Sockets;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use base::telemetry::{Gauge, Telemetry, UP};
use base::text::plural;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The last scrape at a shutdown must not use up the time that the app has to stop.
const LAST_SCRAPE: Duration = Duration::from_secs(1);
/// Time for the last requests to a receiver at a shutdown. An exit in time matters more than samples.
const LAST_SENDING: Duration = Duration::from_secs(5);
/// Part of the phase's time that is reserved for counting unsent samples.
const CLOSE_RESERVE: Duration = Duration::from_millis(100);
/// The first backoff for a target that has not responded yet.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// A target that never responded is reported as a fault after this time.
const STARTING_MAX: Duration = Duration::from_secs(10);

/// Binds the listeners and starts all tasks on this thread. Each source and sink that cannot start has an error.
pub fn start(
    plan: Plan,
    inputs: &Inputs,
    sockets: &Sockets,
    telemetry: &Telemetry,
    lifecycle: &mut Lifecycle,
) -> Result<(Scope, Rc<Sources>), Vec<String>> {
    let health = telemetry.health("metrics");
    let scope = Scope::new("metrics", health.clone());
    let (mut errors, mut entries) = (Vec::new(), Vec::new());
    for source in &plan.sources {
        let built = source.kind.build(&source.name, inputs);
        match built.and_then(|built| Ok((built, source.kind.build(&source.name, inputs)?))) {
            Ok((built, for_scrapes)) => {
                let component = source.component();
                let id = component.id;
                health.component(id.clone(), component.type_name);
                entries.push(Entry {
                    name: source.name.clone(),
                    id,
                    source: built,
                    for_scrapes,
                    last: RefCell::default(),
                });
            }
            Err(error) => errors.push(format!("metrics.sources.{}: {error}", source.name)),
        }
    }
    let sources = Rc::new(Sources { entries });
    let mut sinks = Vec::new();
    for sink in &plan.sinks {
        let component = sink.component();
        health.component(component.id.clone(), component.type_name);
        let context = Context {
            component: &component,
            buffer: &sink.buffer,
            retry: &sink.retry,
            sockets,
            sources: &sources,
            telemetry,
            health: &health,
            scope: &scope,
        };
        match sink.kind.build(&context) {
            Ok(built) => sinks.push(RunningSink {
                id: component.id,
                type_name: component.type_name,
                is_pulled: sink.kind.is_pulled(),
                sink: built,
            }),
            Err(error) => errors.push(format!("{}: {error}", component.id)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let source_count = plural(plan.sources.len(), "source", "sources");
    health.set_summary(format!("{source_count} to {}", plural(plan.sinks.len(), "sink", "sinks")));
    let participant = lifecycle.participant("metrics");
    let running =
        Running { sources: sources.clone(), sinks: sinks.into(), app_was_ready: inputs.app_was_ready.clone() };
    scope.spawn("lifecycle", follow_lifecycle(plan, running, telemetry.clone(), health, participant, scope.clone()));
    Ok((scope, sources))
}

/// What runs on this thread in addition to the collectors.
struct Running {
    sources: Rc<Sources>,
    sinks: Rc<[RunningSink]>,
    app_was_ready: watch::Receiver<bool>,
}

struct RunningSink {
    /// Its path in the configuration.
    id: String,
    type_name: &'static str,
    is_pulled: bool,
    sink: Rc<dyn Sink>,
}

async fn follow_lifecycle(
    plan: Plan,
    Running { sources, sinks, app_was_ready }: Running,
    telemetry: Telemetry,
    health: Arc<Health>,
    mut participant: Participant,
    scope: Scope,
) {
    let mut collectors = Vec::new();
    for (index, source) in plan.sources.into_iter().enumerate() {
        let collector = Collector {
            index,
            row: telemetry.ledger.row(&source.component()),
            series: telemetry.gauge(&SERIES, &source.component().labels()),
            up: telemetry.gauge(&UP, &source.component().labels()),
            plan: source,
            sources: sources.clone(),
            sinks: sinks.clone(),
            health: health.clone(),
            pressure: telemetry.pressure.clone(),
            app_was_ready: app_was_ready.clone(),
            began: Instant::now(),
        };
        collectors.push(scope.spawn("collector", collector.run(participant.watch())));
    }
    let run = |sink: &RunningSink| scope.spawn(sink.type_name, sink.sink.clone().run(participant.watch()));
    let pulled: Vec<_> = sinks.iter().filter(|sink| sink.is_pulled).map(run).collect();
    let pushing: Vec<_> = sinks.iter().filter(|sink| !sink.is_pulled).map(run).collect();
    health.set_ready(true);

    participant.reached(Phase::Handover).await;
    if participant.is_handover() {
        pulled.iter().for_each(JoinHandle::abort);
        participant.done(Phase::Handover);
    }
    participant.reached(Phase::Drain).await;
    // Collectors run their last round now, while the app still responds.
    for collector in collectors {
        let _ = collector.await;
    }
    participant.done(Phase::Drain);
    participant.reached(Phase::Finish).await;
    sinks.iter().for_each(|sink| sink.sink.close());
    let all_sent = async {
        for task in pushing {
            let _ = task.await;
        }
    };
    let mut clock = participant.watch();
    tokio::select! {
        () = all_sent => {}
        () = tokio::time::sleep(LAST_SENDING) => {}
        () = clock.is_over(CLOSE_RESERVE) => {}
    }
    for RunningSink { id, sink, .. } in sinks.iter().filter(|sink| !sink.is_pulled) {
        telemetry.leave_behind(id.clone(), 0, sink.give_up());
    }
    participant.done(Phase::Finish);
    participant.reached(Phase::Close).await;
    participant.done(Phase::Close);
}

/// Collects the samples of one source at its interval.
struct Collector {
    index: usize,
    plan: SourcePlan,
    sources: Rc<Sources>,
    sinks: Rc<[RunningSink]>,
    row: Arc<Row>,
    series: Gauge,
    up: Gauge,
    health: Arc<Health>,
    pressure: Pressure,
    app_was_ready: watch::Receiver<bool>,
    began: Instant,
}

impl Collector {
    async fn run(self, mut phase: PhaseWatch) {
        let mut next = Instant::now();
        // An app that starts to listen is scraped soon, not only after a full interval.
        let mut backoff = Backoff::new(BACKOFF_FIRST, self.plan.interval);
        let mut ready = self.app_was_ready.clone();
        let (mut responded, mut up) = (false, false);
        loop {
            let due = async {
                let known = responded || *ready.borrow_and_update();
                let time = tokio::time::sleep_until(next.into());
                tokio::select! {
                    () = time => {}
                    Ok(()) = ready.changed(), if !known => {}
                }
            };
            tokio::select! {
                () = due => {}
                _ = phase.reached(Phase::Handover) => break,
            }
            // A slow target does not delay a shutdown.
            up = tokio::select! {
                up = self.round(responded) => up,
                _ = phase.reached(Phase::Handover) => break,
            };
            responded |= up;
            // A slow target does not shift the schedule: the next round is at its regular time, or now if that has passed.
            next = match responded {
                true => (next + self.plan.interval).max(Instant::now()),
                false => Instant::now() + backoff.pause(),
            };
        }
        if !phase.is_handover() && up {
            let _ = tokio::time::timeout(LAST_SCRAPE, self.round(true)).await;
        }
    }

    /// Returns whether the target responded. `responded`: it has responded before.
    async fn round(&self, responded: bool) -> bool {
        let Some(entry) = self.sources.entries.get(self.index) else { return false };
        if self.pressure.has_pressure() && !entry.source.is_local() {
            // A skipped round is a visible gap; it counts as one unit, since the number of its samples is unknown.
            self.row.drop_unseen(Reason::MemoryPressure, 1);
            self.update_health(entry, Some("scrape skipped under memory pressure".into()));
            self.report(Rc::new(entry.source.end()));
            return false;
        }
        let Collected { snapshot, dropped, error, up } = entry.source.collect().await;
        self.up.set(u64::from(up));
        let starting = !responded && !up && (!*self.app_was_ready.borrow() || self.began.elapsed() < STARTING_MAX);
        match error {
            Some(error) if starting => tracing::debug!(component = entry.id, error, "scrape target not up yet"),
            error => self.update_health(entry, error),
        }
        for (reason, samples) in dropped {
            if samples > 0 {
                self.row.drop_unseen(reason, samples);
            }
        }
        if let Some(snapshot) = snapshot {
            self.report(Rc::new(snapshot));
        }
        up
    }

    fn update_health(&self, entry: &Entry, error: Option<String>) {
        match error {
            Some(text) => {
                if self.health.fault(&entry.id, text.clone()) {
                    tracing::warn!(component = entry.id, error = text, "metric source failing; retrying");
                }
            }
            None => {
                if self.health.recovered(&entry.id) {
                    tracing::info!(component = entry.id, "metric source recovered");
                }
            }
        }
    }

    fn report(&self, snapshot: Rc<Snapshot>) {
        let samples = snapshot.samples() as u64;
        self.series.set(samples);
        self.row.receive(samples);
        self.sources.set(self.index, snapshot.clone());
        self.sinks.iter().for_each(|sink| sink.sink.push(&snapshot));
        self.row.deliver(samples);
    }
}
