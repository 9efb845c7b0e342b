//! The path of a revision: poll → fetch → verify → publish → notify.
//!
//! ```text
//! Poller::poll → round → store::Store::fetch → candidate::Candidate::file → publish::Target::publish → Poller::notify
//! ```
//!
//! Runs on the worker's main thread; blocking work runs on other threads, one round at a time per entry. In: a Plan. Out:
//! published revisions, and a gate that opens when each entry has one. When a store is down, the last revision stays published.

use crate::notified::{Notified, Status};
use crate::notify::{self, Notification, NotifyConfig};
use crate::plan::{EntryPlan, Plan};
use crate::store::{Failure, Fetched, Store};
use crate::telemetry::{LAST_SUCCESS, NOTIFICATIONS, POLLS, PUBLICATIONS, PublishedRevisions};
use base::feeds::revisions::{Revision, Revisions};
use base::runtime::backoff::Backoff;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Lifecycle, Participant, Phase, PhaseWatch};
use base::runtime::scope::Scope;
use base::runtime::state::StateDir;
use base::telemetry::component::Component;
use base::telemetry::ledger::Row;
use base::telemetry::{Counter, Gauge, Telemetry, UP};
use base::text::plural;
use config::registry::Named;
use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The maximum backoff after failed polls, unless the interval is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What sync needs from the rest of the worker.
#[derive(Clone)]
pub struct Inputs {
    pub state: StateDir,
    pub revisions: Revisions,
    /// Whether the app runs; always true for an app in its own container.
    pub app_runs: watch::Receiver<bool>,
    /// Sends a signal to the app, unless that would terminate it: false if the app does not handle it (yet).
    pub signal_app: Rc<dyn Fn(i32) -> bool>,
}

/// Opens when every entry has a published revision.
#[derive(Clone)]
pub struct Gate {
    /// Each entry's path in the configuration, and whether it has published.
    published: Vec<(String, watch::Receiver<bool>)>,
}

impl Gate {
    pub async fn open(&mut self) {
        for (_, published) in &mut self.published {
            // An entry whose task has finished does not block the gate.
            let _ = published.wait_for(|published| *published).await;
        }
    }

    /// The entries that have not published.
    pub fn closed(&self) -> Vec<&str> {
        self.published.iter().filter(|(_, published)| !*published.borrow()).map(|(entry, _)| entry.as_str()).collect()
    }
}

/// Starts a task per entry. Each error has the entry and the reason.
pub fn start(
    plan: Plan,
    inputs: &Inputs,
    telemetry: &Telemetry,
    lifecycle: &mut Lifecycle,
) -> Result<(Scope, Gate), Vec<String>> {
    let health = telemetry.health("sync");
    let scope = Scope::new("sync", health.clone());
    let (mut errors, mut published) = (Vec::new(), Vec::new());
    let count = plan.entries.len();
    let participant = lifecycle.participant("sync");
    let mut pollers = Vec::new();
    let unpublished = Rc::new(Cell::new(count));
    errors.extend(same_targets(&plan.entries));
    for entry in plan.entries {
        let cache = inputs.state.path(&format!("sync/{}/{}", entry.name, entry.store.name()));
        let cache = cache.unwrap_or_else(|| entry.publish.cache());
        match entry.store.build(cache.clone(), entry.limits.max_bytes) {
            Ok(store) => {
                let (sender, receiver) = watch::channel(false);
                let component = entry.component();
                published.push((component.id.clone(), receiver));
                health.component(component.id.clone(), component.type_name);
                let poller = Poller {
                    cache,
                    counts: Counts::new(&entry, &component, telemetry),
                    notified: Notified::new(inputs.state.clone(), &entry.name, telemetry),
                    id: component.id,
                    entry: Arc::new(entry),
                    inputs: inputs.clone(),
                    health: health.clone(),
                    published: sender,
                    unpublished: unpublished.clone(),
                };
                pollers.push(scope.spawn("poll", poller.poll(store, participant.watch())));
            }
            Err(error) => errors.push(format!("sync.{}: {error}", entry.name)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    health.set_summary(plural(
        count,
        "directory synchronized from its store",
        "directories synchronized from their stores",
    ));
    telemetry.register(Arc::new(PublishedRevisions(inputs.revisions.clone())));
    scope.spawn("lifecycle", follow_lifecycle(participant, pollers));
    Ok((scope, Gate { published }))
}

/// Entries whose paths resolve to one target, which only the file system shows: each would undo the publications of the other.
fn same_targets(entries: &[EntryPlan]) -> Vec<String> {
    let mut targets: HashMap<PathBuf, &str> = HashMap::new();
    let target = |entry: &EntryPlan| Some(entry.to.parent()?.canonicalize().ok()?.join(entry.to.file_name()?));
    let found = entries.iter().filter_map(|entry| Some((target(entry)?, entry)));
    found
        .filter_map(|(target, entry)| {
            let other = targets.insert(target, &entry.name)?;
            let to = entry.to.display();
            Some(format!(
                "sync.{}: {to} resolves to the path of sync.{other}; give each entry its own path",
                entry.name
            ))
        })
        .collect()
}

/// Sync does not delay a shutdown: a publication is atomic at any moment. A handover waits for the round in progress, which must
/// not overlap with the next worker.
async fn follow_lifecycle(mut participant: Participant, pollers: Vec<JoinHandle<()>>) {
    participant.reached(Phase::Handover).await;
    if participant.is_handover() {
        for poller in pollers {
            let _ = poller.await;
        }
        participant.done(Phase::Handover);
    }
    for phase in [Phase::Drain, Phase::Finish, Phase::Close] {
        participant.reached(phase).await;
        participant.done(phase);
    }
}

/// One entry's task.
struct Poller {
    entry: Arc<EntryPlan>,
    /// Its path in the configuration, its id in health and log.
    id: String,
    /// The store's own directory.
    cache: PathBuf,
    inputs: Inputs,
    health: Arc<Health>,
    counts: Counts,
    notified: Notified,
    published: watch::Sender<bool>,
    /// Entries of all pollers that have no revision yet: readiness waits for them.
    unpublished: Rc<Cell<usize>>,
}

/// The counters of an entry.
struct Counts {
    row: Arc<Row>,
    unchanged: Counter,
    changed: Counter,
    failure: Counter,
    up: Gauge,
    last_success: Gauge,
    publications: Counter,
    failed_publications: Counter,
    telemetry: Telemetry,
}

impl Counts {
    fn new(entry: &EntryPlan, component: &Component, telemetry: &Telemetry) -> Counts {
        let polls = |result| telemetry.counter(&POLLS, &[&entry.name, entry.store.name(), result]);
        let publications = |result| telemetry.counter(&PUBLICATIONS, &[&entry.name, result]);
        Counts {
            row: telemetry.ledger.row(component),
            unchanged: polls("unchanged"),
            changed: polls("changed"),
            failure: polls("failure"),
            up: telemetry.gauge(&UP, &component.labels()),
            last_success: telemetry.gauge(&LAST_SUCCESS, &[&entry.name, entry.store.name()]),
            publications: publications("success"),
            failed_publications: publications("failure"),
            telemetry: telemetry.clone(),
        }
    }

    fn notification(&self, entry: &EntryPlan, kind: &str, result: &str) {
        self.telemetry.counter(&NOTIFICATIONS, &[&entry.name, kind, result]).add(1);
    }
}

/// Unsent notifications of a revision: indexes in the entry's list.
#[derive(Default)]
struct Pending {
    revision: String,
    notifications: Vec<usize>,
}

/// The result of one round.
struct Round {
    store: Box<dyn Store>,
    result: Result<Option<String>, Failed>,
    current: Option<Published>,
}

/// Which part of a round failed.
enum Failed {
    Poll(Failure),
    Publication(String),
}

/// What the link points to.
struct Published {
    revision: String,
    at: Option<SystemTime>,
}

impl Poller {
    async fn poll(self, mut store: Box<dyn Store>, mut phase: PhaseWatch) {
        let mut backoff = Backoff::new(self.entry.interval, self.entry.interval.max(BACKOFF_MAX));
        let mut pending = Pending::default();
        let mut current: Option<Published> = None;
        loop {
            let entry = self.entry.clone();
            let round = tokio::task::spawn_blocking(move || round(&entry, store)).await;
            let Ok(round) = round else {
                // A bug that this content triggers: the other entries keep running, and the published revision stays.
                let bug = Failure::from("the store panicked; this is a bug in Outrigger".to_string());
                self.failed(&Failed::Poll(bug), current.as_ref());
                self.discard_cache().await;
                store = match self.entry.store.build(self.cache.clone(), self.entry.limits.max_bytes) {
                    Ok(store) => store,
                    Err(error) => return self.failed(&Failed::Poll(error.into()), current.as_ref()),
                };
                tokio::select! {
                    () = tokio::time::sleep(backoff.pause().max(self.entry.interval)) => continue,
                    _ = phase.reached(Phase::Handover) => return,
                }
            };
            store = round.store;
            current = round.current;
            let pause = match round.result {
                Ok(changed) => {
                    self.succeeded(changed);
                    backoff.reset();
                    self.entry.interval
                }
                Err(failed) => {
                    self.failed(&failed, current.as_ref());
                    let wait = if let Failed::Poll(failure) = &failed { failure.wait } else { None };
                    backoff.pause_at_least(wait).max(self.entry.interval)
                }
            };
            if current.is_some() {
                if !self.published.send_replace(true) {
                    self.unpublished.set(self.unpublished.get().saturating_sub(1));
                }
                if self.unpublished.get() == 0 {
                    self.health.set_ready(true);
                }
            }
            self.show(current.as_ref());
            let notified = async {
                if let Some(published) = &current {
                    self.notify(&published.revision, &mut pending).await;
                }
                tokio::time::sleep(pause).await;
            };
            // The next worker sends the unsent notifications.
            tokio::select! {
                () = notified => {}
                _ = phase.reached(Phase::Handover) => return,
            }
        }
    }

    /// The cache of a store may have caused the panic, and contains nothing that the store does not have.
    async fn discard_cache(&self) {
        let cache = self.cache.clone();
        let removed = tokio::task::spawn_blocking(move || crate::files::remove(&cache)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(component = self.id, %error, "cannot remove the cache of the store");
        }
    }

    fn succeeded(&self, changed: Option<String>) {
        self.counts.up.set(1);
        self.counts.last_success.set_now();
        if self.health.recovered(&self.id) {
            tracing::info!(component = self.id, "store recovered");
        }
        match changed {
            Some(revision) => {
                self.counts.changed.add(1);
                self.counts.publications.add(1);
                self.counts.row.receive(1);
                self.counts.row.deliver(1);
                let revision = shown(&revision);
                tracing::info!(component = self.id, revision, path = %self.entry.to.display(), "published a new revision");
            }
            None => self.counts.unchanged.add(1),
        }
    }

    fn failed(&self, failed: &Failed, current: Option<&Published>) {
        let error = match failed {
            Failed::Poll(failure) => {
                self.counts.up.set(0);
                self.counts.failure.add(1);
                &failure.text
            }
            Failed::Publication(error) => {
                self.counts.up.set(1);
                self.counts.changed.add(1);
                self.counts.failed_publications.add(1);
                error
            }
        };
        let published = current.map_or("no revision is published yet".into(), |published| {
            format!("revision {} stays published", shown(&published.revision))
        });
        let text = format!("{}: {error}; {published}", self.entry.store.describe());
        if self.health.fault(&self.id, text.clone()) {
            tracing::warn!(component = self.id, error = text, "cannot fetch or publish a revision");
        }
    }

    fn show(&self, current: Option<&Published>) {
        let revision = Revision {
            entry: self.entry.name.clone(),
            store: self.entry.store.describe(),
            path: self.entry.to.display().to_string(),
            revision: current.map(|published| shown(&published.revision).to_string()),
            published_at: current.and_then(|published| published.at),
        };
        self.inputs.revisions.set(revision);
    }

    /// Sends the notifications of this revision that were not sent yet, and records each one.
    async fn notify(&self, revision: &str, pending: &mut Pending) {
        let again = pending.revision == revision;
        if !again {
            *pending = Pending { revision: revision.to_string(), notifications: Vec::new() };
            let (status, read) = self.notified.of(revision);
            if read.is_err() {
                self.note_state(read);
            }
            let Status::Partial(already_notified) = status else { return };
            // An app that starts later reads the new revision anyway.
            let count = if *self.inputs.app_runs.borrow() { self.entry.notify.len() } else { 0 };
            pending.notifications.extend((0..count).filter(|index| !already_notified.contains(index)));
        }
        let due = pending.notifications.clone();
        for index in &due {
            let Some(kind) = self.entry.notify.get(*index) else { continue };
            if self.send(*index, kind, revision, again).await {
                pending.notifications.retain(|other| other != index);
                // Recorded immediately: retries of the next notification may take seconds, and a crash must not repeat this one.
                self.record(revision, pending);
            }
        }
        if due.is_empty() && !again {
            self.record(revision, pending);
        }
    }

    fn record(&self, revision: &str, pending: &Pending) {
        let status = match pending.notifications.is_empty() {
            true => Status::Complete,
            false => {
                let indexes = 0..self.entry.notify.len();
                Status::Partial(indexes.filter(|index| !pending.notifications.contains(index)).collect())
            }
        };
        self.note_state(self.notified.write(revision, status));
    }

    /// Reports whether the state file can be read and written.
    fn note_state(&self, outcome: std::io::Result<()>) {
        let part = format!("{} state", self.id);
        match outcome {
            Ok(()) => drop(self.health.recovered(&part)),
            Err(error) => {
                if self.health.fault(&part, format!("{error}; a restart notifies the app again")) {
                    tracing::warn!(component = self.id, %error, "cannot record the notification; a restart notifies the app again");
                }
            }
        }
    }

    /// False if it is to be retried after the next poll: an app in another container may start to listen at any time.
    async fn send(&self, index: usize, kind: &Named<dyn NotifyConfig>, revision: &str, again: bool) -> bool {
        let part = format!("{} notify {index}", self.id);
        let signal_app = &*self.inputs.signal_app;
        let sent = kind.send(Notification { revision: shown(revision), again, signal_app }).await;
        let notification = kind.describe();
        if let Err(notify::Failure { error, retry }) = sent {
            self.counts.notification(&self.entry, kind.name(), "failure");
            if self.health.fault(&part, format!("{notification}: {error}")) {
                tracing::error!(component = self.id, notification, error, "notification failed");
            }
            return !retry;
        }
        self.counts.notification(&self.entry, kind.name(), "success");
        self.health.recovered(&part);
        tracing::info!(component = self.id, notification, revision = shown(revision), "notified the app of a revision");
        true
    }
}

/// The store's own name for a revision, without the selection.
fn shown(revision: &str) -> &str {
    revision.rsplit('/').next().unwrap_or(revision)
}

/// One round, on a thread that may block.
fn round(entry: &EntryPlan, mut store: Box<dyn Store>) -> Round {
    let target = match entry.publish.open() {
        Ok(target) => target,
        Err(error) => return Round { store, result: Err(Failed::Publication(error.to_string())), current: None },
    };
    let published = target.published();
    let mut stage = || target.candidate(entry.limits).map_err(|error| error.to_string());
    let result = match store.fetch(published.as_deref(), &mut stage) {
        Ok((Fetched::New { revision }, Some(candidate))) => {
            let published = target.publish(candidate, &revision);
            published.map(|()| Some(revision)).map_err(|error| Failed::Publication(error.to_string()))
        }
        Ok(_) => Ok(None),
        // The last revision stays published, even if its link was lost.
        Err(failure) => Err(Failed::Poll(match target.restore() {
            Ok(_) => failure,
            Err(error) => Failure {
                text: format!("{}; and cannot restore the link to the last revision: {error}", failure.text),
                ..failure
            },
        })),
    };
    let current = target.published().map(|revision| Published { revision, at: target.published_at() });
    Round { store, result, current }
}
