//! The way of a sample, readable here: source → snapshot → sinks.
//!
//! ```text
//! collector → source::Source::collect → text::parse / series::snapshot_of → Sources::set → sink::prometheus::page
//!                                                                         ↘ RemoteWrite::push → RemoteWrite::send
//! ```
//!
//! Runs on the worker's main thread. In: a Plan. Out: health, ledger rows (in samples). Bounds: a source is asked once at a
//! time; each sink has its own.

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

/// The last scrape at a stop must not eat the time of the app.
const LAST_SCRAPE: Duration = Duration::from_secs(1);
/// What is left for a receiver at a stop. Samples are worth less than an end in time.
const LAST_SENDING: Duration = Duration::from_secs(5);
/// Left of the phase's time for counting what was not sent.
const CLOSE_RESERVE: Duration = Duration::from_millis(100);
/// The first pause of a target that has not answered yet.
const SOON: Duration = Duration::from_millis(100);
/// A target that was never there is a fault after this.
const STARTING: Duration = Duration::from_secs(10);

/// What stands in the way of a start, such as a certificate that is missing.
pub fn check(plan: &Plan) -> Vec<String> {
    let sources = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Scrape(config) => Some((&source.name, "source", config.client())),
        _ => None,
    });
    let sinks = plan.sinks.iter().filter_map(|SinkPlan { name, kind, .. }| match kind {
        SinkKind::RemoteWrite(config) => Some((name, "sink", config.client())),
        SinkKind::Prometheus(_) => None,
    });
    let build = |(name, what, client): (&String, &str, net::ClientConfig)| {
        net::Client::new(client).err().map(|error| format!("metric {what} `{name}`: {error}"))
    };
    sources.chain(sinks).filter_map(build).collect()
}

/// Binds the pages and starts all tasks on this thread. Errors name each part that cannot start.
pub fn start(
    plan: Plan,
    inputs: &Inputs,
    sockets: &Sockets,
    telemetry: &Telemetry,
    lifecycle: &mut Lifecycle,
) -> Result<(Scope, Rc<Sources>), Vec<String>> {
    let health = telemetry.health("metrics");
    let scope = Scope::new("metrics", health.clone());
    let (mut errors, mut entries, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    for source in &plan.sources {
        let built = source.kind.build(&source.name, inputs);
        match built.and_then(|built| Ok((built, source.kind.build(&source.name, inputs)?))) {
            Ok((built, for_page)) => {
                let component = source.component();
                let id = component.id;
                health.component(id.clone(), component.type_name);
                entries.push(Entry {
                    name: source.name.clone(),
                    id,
                    source: built,
                    for_page,
                    last: RefCell::default(),
                });
            }
            Err(error) => errors.push(format!("metric source `{}`: {error}", source.name)),
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
                let page = prometheus::run(component.id, socket, sources.clone(), row, health.clone(), scope.clone());
                pages.push(scope.spawn("prometheus", page));
            }),
            SinkKind::RemoteWrite(config) => {
                let writer = RemoteWrite::new(name, &component, config, buffer, telemetry, health.clone());
                writer.map(|writer| writers.push(writer))
            }
        };
        if let Err(error) = started {
            errors.push(format!("metric sink `{name}`: {error}"));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let told = plural(plan.sources.len(), "source", "sources");
    health.set_summary(format!("{told} to {}", plural(plan.sinks.len(), "sink", "sinks")));
    let participant = lifecycle.participant("metrics");
    let parts = Builder { sources: sources.clone(), writers, pages, app_was_ready: inputs.app_was_ready.clone() };
    scope.spawn("conduct", conduct(plan, parts, telemetry.clone(), health, participant, scope.clone()));
    Ok((scope, sources))
}

fn listen(name: &str, config: &prometheus::Config, sockets: &Sockets) -> Result<TcpListener, String> {
    let mut group = sockets.tcp(&format!("metrics/{name}"), config.listen.0, 1)?;
    let socket = group.pop().ok_or("no socket")?;
    TcpListener::from_std(socket).map_err(|error| error.to_string())
}

/// What runs on this thread beside the collectors.
struct Builder {
    sources: Rc<Sources>,
    writers: Vec<Rc<RemoteWrite>>,
    pages: Vec<JoinHandle<()>>,
    app_was_ready: watch::Receiver<bool>,
}

async fn conduct(
    plan: Plan,
    Builder { sources, writers, pages, app_was_ready }: Builder,
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
    if participant.yields() {
        pages.iter().for_each(JoinHandle::abort);
        participant.done(Phase::Handover);
    }
    participant.reached(Phase::Drain).await;
    // Collectors make their last round now, while the app still answers.
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

/// Asks one source again and again.
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
        // An app that starts to listen is not kept waiting for a whole interval.
        let mut soon = Backoff::new(SOON, self.plan.interval);
        let mut ready = self.app_was_ready.clone();
        let (mut answered, mut up) = (false, false);
        loop {
            let due = async {
                let known = answered || *ready.borrow_and_update();
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
            // A stop waits for no target that is slow to answer.
            up = tokio::select! {
                up = self.round(answered) => up,
                _ = phase.reached(Phase::Handover) => break,
            };
            answered |= up;
            // A slow target shifts nothing: the next round keeps the rhythm, unless it is past already.
            next = match answered {
                true => (next + self.plan.interval).max(Instant::now()),
                false => Instant::now() + soon.pause(),
            };
        }
        if !phase.yields() && up {
            let _ = tokio::time::timeout(LAST_SCRAPE, self.round(true)).await;
        }
    }

    /// Answers whether the target did. `answered`: it has done so before.
    async fn round(&self, answered: bool) -> bool {
        let Some(entry) = self.sources.entries.get(self.index) else { return false };
        if self.pressure.has_pressure() && !entry.source.is_local() {
            // A round that is left out is a gap that everybody sees; it is counted as one unit, since nobody knows its samples.
            self.row.drop_unseen(Reason::MemoryPressure, 1);
            self.judge(entry, Some("scrape skipped under memory pressure".into()));
            self.report(Rc::new(entry.source.end()));
            return false;
        }
        let Collected { snapshot, dropped, error, up } = entry.source.collect().await;
        self.up.set(u64::from(up));
        let starting = !answered && !up && (!*self.app_was_ready.borrow() || self.began.elapsed() < STARTING);
        match error {
            Some(text) if starting => tracing::debug!(source = entry.name, text, "scrape target not up yet"),
            error => self.judge(entry, error),
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

    fn judge(&self, entry: &Entry, error: Option<String>) {
        match error {
            Some(text) => {
                if self.health.fault(&entry.id, text.clone()) {
                    tracing::warn!(source = entry.name, error = text, "metric source failing (scrape failed)");
                }
            }
            None => {
                if self.health.recovered(&entry.id) {
                    tracing::info!(source = entry.name, "metric source recovered");
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
