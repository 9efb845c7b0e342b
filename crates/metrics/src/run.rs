//! The path of a sample: source → snapshot → sinks.
//!
//! ```text
//! collector → source::Source::collect → text::parse / series::snapshot_of → Sources::set → sink::prometheus::respond
//!                                                                         ↘ RemoteWrite::push → RemoteWrite::send
//! ```
//!
//! Runs on the worker's main thread. In: a Plan. Out: health, ledger rows (in samples). Limits: one collection per
//! source at a time; each sink has its own.

use crate::plan::{Plan, SinkPlan, SourcePlan};
use crate::series::Snapshot;
use crate::sink::remote_write::RemoteWrite;
use crate::sink::{SinkKind, prometheus};
use crate::source::{Collected, Inputs, SourceKind};
use crate::sources::{Entry, Sources};
use crate::telemetry::SERIES;
use base::runtime::backoff::Backoff;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Lifecycle, Participant, Phase, PhaseWatch};
use base::runtime::pressure::Pressure;
use base::runtime::scope::Scope;
use base::system::listen::Sockets;
use base::telemetry::component::Component;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use base::telemetry::{Gauge, Telemetry, UP};
use base::text::plural;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
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

/// Errors that prevent a start, such as a missing certificate.
pub fn check(plan: &Plan) -> Vec<String> {
    let sources = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Scrape(config) => Some((&source.name, "source", config.client())),
        _ => None,
    });
    let sinks = plan.sinks.iter().filter_map(|SinkPlan { name, kind, .. }| match kind {
        SinkKind::RemoteWrite(config) => Some((name, "sink", config.client())),
        SinkKind::Prometheus(_) => None,
    });
    let build = |(name, role, client): (&String, &str, net::ClientConfig)| {
        net::Client::new(client).err().map(|error| format!("metric {role} `{name}`: {error}"))
    };
    sources.chain(sinks).filter_map(build).collect()
}

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
    let (mut errors, mut entries, mut servers) = (Vec::new(), Vec::new(), Vec::new());
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
    let mut writers = Vec::new();
    for SinkPlan { name, kind, buffer } in &plan.sinks {
        let component = Component::sink(format!("metrics.sinks.{name}"), kind.name());
        health.component(component.id.clone(), component.type_name);
        let started = match kind {
            SinkKind::Prometheus(config) => listen(name, config, sockets).map(|socket| {
                let row = telemetry.ledger.row(&component);
                let server = prometheus::run(component.id, socket, sources.clone(), row, health.clone(), scope.clone());
                servers.push(scope.spawn("prometheus", server));
            }),
            SinkKind::RemoteWrite(config) => {
                let writer = RemoteWrite::new(&component, config, buffer, telemetry, health.clone());
                writer.map(|writer| writers.push(writer))
            }
        };
        if let Err(error) = started {
            errors.push(format!("metrics.sinks.{name}: {error}"));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let source_count = plural(plan.sources.len(), "source", "sources");
    health.set_summary(format!("{source_count} to {}", plural(plan.sinks.len(), "sink", "sinks")));
    let participant = lifecycle.participant("metrics");
    let running = Running { sources: sources.clone(), writers, servers, app_was_ready: inputs.app_was_ready.clone() };
    scope.spawn("lifecycle", follow_lifecycle(plan, running, telemetry.clone(), health, participant, scope.clone()));
    Ok((scope, sources))
}

fn listen(name: &str, config: &prometheus::Config, sockets: &Sockets) -> Result<TcpListener, String> {
    let mut group = sockets.tcp(&format!("metrics/{name}"), config.listen.0, 1)?;
    let socket = group.pop().ok_or("no socket")?;
    TcpListener::from_std(socket).map_err(|error| error.to_string())
}

/// What runs on this thread in addition to the collectors.
struct Running {
    sources: Rc<Sources>,
    writers: Vec<Rc<RemoteWrite>>,
    servers: Vec<JoinHandle<()>>,
    app_was_ready: watch::Receiver<bool>,
}

async fn follow_lifecycle(
    plan: Plan,
    Running { sources, writers, servers, app_was_ready }: Running,
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
            writers: writers.clone(),
            health: health.clone(),
            pressure: telemetry.pressure.clone(),
            app_was_ready: app_was_ready.clone(),
            began: Instant::now(),
        };
        collectors.push(scope.spawn("collector", collector.run(participant.watch())));
    }
    let sending: Vec<_> =
        writers.iter().map(|writer| scope.spawn("remote_write", writer.clone().run(participant.watch()))).collect();
    health.set_ready(true);

    participant.reached(Phase::Handover).await;
    if participant.is_handover() {
        servers.iter().for_each(JoinHandle::abort);
        participant.done(Phase::Handover);
    }
    participant.reached(Phase::Drain).await;
    // Collectors run their last round now, while the app still responds.
    for collector in collectors {
        let _ = collector.await;
    }
    participant.done(Phase::Drain);
    participant.reached(Phase::Finish).await;
    writers.iter().for_each(|writer| writer.close());
    let all_sent = async {
        for task in sending {
            let _ = task.await;
        }
    };
    let mut clock = participant.watch();
    tokio::select! {
        () = all_sent => {}
        () = tokio::time::sleep(LAST_SENDING) => {}
        () = clock.is_over(CLOSE_RESERVE) => {}
    }
    for writer in &writers {
        telemetry.leave_behind(writer.id.clone(), 0, writer.give_up());
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
    writers: Vec<Rc<RemoteWrite>>,
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
        self.writers.iter().for_each(|writer| writer.push(snapshot.clone()));
        self.row.deliver(samples);
    }
}
