//! The way of a revision, readable here: ask → fetch → verify → publish → notify.
//!
//! ```text
//! follow → round → store::Store::fetch → staging::Staging::file → publish::Place::publish → tell → notify::http::send / signal
//! ```
//!
//! Runs on the worker's main thread; what blocks runs beside it, one at a time per entry. In: a Plan. Out: published
//! revisions, and a gate that opens when each entry has one. When a store is down, the revision that is there serves.

use crate::notify::{NotifyKind, http};
use crate::plan::{EntryPlan, Plan};
use crate::publish::Place;
use crate::store::{Failure, Fetched, Store};
use base::ledger::Row;
use base::limit::Backoff;
use base::revisions::{Revision, Revisions};
use base::scope::Scope;
use base::state::{Mark, Marked, StateDir};
use base::subsystem::{Conductor, Health, Phase, PhaseWatch, Station, counted};
use base::telemetry::{Count, Name, Telemetry};
use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const ASKED: Name = Name::counter("outrigger_sync_polls_total", "How often a store was asked, by how it ended.");

/// The longest pause of a store that fails, unless it is asked more rarely anyway.
const FAILED_MOST: Duration = Duration::from_secs(60);

/// How long an app may take to handle the signal that it is to be told with, and how often it is looked at.
const HANDLER_WAIT: Duration = Duration::from_secs(30);
const HANDLER_LOOK: Duration = Duration::from_millis(100);

/// Tries of one HTTP notice in a row, and the pauses between.
const NOTICE_TRIES: u32 = 6;
const NOTICE_FIRST: Duration = Duration::from_millis(250);
const NOTICE_MOST: Duration = Duration::from_secs(5);

/// What sync needs from the rest of the worker.
#[derive(Clone)]
pub struct Inputs {
    pub state: StateDir,
    pub revisions: Revisions,
    /// Whether the app runs; always true beside an app of its own container.
    pub app_runs: watch::Receiver<bool>,
    /// Sends a signal to the app, unless that would end it: false where the app does not handle it (yet).
    pub signal_app: Rc<dyn Fn(i32) -> bool>,
}

/// Opens when every entry has a published revision.
pub struct Gate {
    published: Vec<watch::Receiver<bool>>,
}

impl Gate {
    pub async fn open(&mut self) {
        for published in &mut self.published {
            // An entry whose task has ended holds nobody up.
            let _ = published.wait_for(|published| *published).await;
        }
    }
}

/// What stands in the way of a start, such as a certificate that is missing.
pub fn check(plan: &Plan) -> Vec<String> {
    let build = |entry: &EntryPlan| {
        let built = entry.store.build(PathBuf::new(), entry.limits.bytes_max);
        built.err().map(|error| format!("sync `{}`: {error}", entry.name))
    };
    plan.entries.iter().filter_map(build).collect()
}

/// Starts a task per entry. Errors name the entry and what stands in its way.
pub fn start(
    plan: Plan,
    inputs: &Inputs,
    telemetry: &Telemetry,
    conductor: &mut Conductor,
) -> Result<(Scope, Gate), Vec<String>> {
    let health = telemetry.health("sync");
    let scope = Scope::new("sync", health.clone());
    let (mut errors, mut published) = (Vec::new(), Vec::new());
    let count = plan.entries.len();
    let station = conductor.station("sync");
    let mut followers = Vec::new();
    let unpublished = Rc::new(Cell::new(count));
    errors.extend(same_places(&plan.entries));
    for entry in plan.entries {
        let cache = inputs.state.path(&format!("sync.{}.git", entry.name));
        let cache = cache.unwrap_or_else(|| crate::publish::cache_of(&entry.to));
        match entry.store.build(cache.clone(), entry.limits.bytes_max) {
            Ok(store) => {
                let (sender, receiver) = watch::channel(false);
                published.push(receiver);
                let id = format!("sync.{}", entry.name);
                health.component(id.clone(), entry.store.name());
                let follower = Follower {
                    id,
                    cache,
                    row: telemetry.ledger.row("source", format!("sync/{}", entry.name)),
                    same: telemetry.count(ASKED, &[("entry", &entry.name), ("result", "same")]),
                    new: telemetry.count(ASKED, &[("entry", &entry.name), ("result", "new")]),
                    begun_anew: telemetry.count(base::state::BEGUN_ANEW, &[("file", "sync.told")]),
                    failed: telemetry.count(ASKED, &[("entry", &entry.name), ("result", "failed")]),
                    entry: Arc::new(entry),
                    inputs: inputs.clone(),
                    health: health.clone(),
                    published: sender,
                    unpublished: unpublished.clone(),
                };
                followers.push(scope.spawn("follow", follower.follow(store, station.watch())));
            }
            Err(error) => errors.push(format!("sync `{}`: {error}", entry.name)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    health.set_summary(counted(count, "directory follows its store", "directories follow their stores"));
    scope.spawn("conduct", conduct(station, followers));
    Ok((scope, Gate { published }))
}

/// Entries that publish to one place by different ways, which the file system alone knows: each would undo what the other does.
fn same_places(entries: &[EntryPlan]) -> Vec<String> {
    let mut places: HashMap<PathBuf, &str> = HashMap::new();
    let place = |entry: &EntryPlan| Some(entry.to.parent()?.canonicalize().ok()?.join(entry.to.file_name()?));
    let found = entries.iter().filter_map(|entry| Some((place(entry)?, entry)));
    found
        .filter_map(|(place, entry)| {
            let other = places.insert(place, &entry.name)?;
            let to = entry.to.display();
            Some(format!(
                "sync `{}`: {to} is where `{other}` publishes, by another way; give each a place of its own",
                entry.name
            ))
        })
        .collect()
}

/// Nothing of sync holds up a stop: a publication is atomic at any moment. A worker that takes over must not meet a round that is
/// still under way here.
async fn conduct(mut station: Station, followers: Vec<JoinHandle<()>>) {
    station.reached(Phase::Yield).await;
    if station.yields() {
        for follower in followers {
            let _ = follower.await;
        }
        station.done(Phase::Yield);
    }
    for phase in [Phase::Drain, Phase::Finish, Phase::Close] {
        station.reached(phase).await;
        station.done(phase);
    }
}

/// One entry's task.
struct Follower {
    entry: Arc<EntryPlan>,
    /// Its path in the configuration, which health calls it by.
    id: String,
    /// The folder of the store's own.
    cache: PathBuf,
    inputs: Inputs,
    health: Arc<Health>,
    row: Arc<Row>,
    same: Count,
    new: Count,
    begun_anew: Count,
    failed: Count,
    published: watch::Sender<bool>,
    /// Entries of all followers that have no revision yet: ready waits for them.
    unpublished: Rc<Cell<usize>>,
}

/// Who has not heard of a revision yet: places in the entry's list of notices.
#[derive(Default)]
struct Owed {
    revision: String,
    notices: Vec<usize>,
}

/// The first line of the file of notices: its version. The first version had none.
const MARK: Mark = Mark { what: "told", version: 2 };

/// What one round led to.
struct Round {
    store: Box<dyn Store>,
    result: Result<Option<String>, Failure>,
    present: Option<String>,
}

impl Follower {
    async fn follow(self, mut store: Box<dyn Store>, mut phase: PhaseWatch) {
        let mut backoff = Backoff::new(self.entry.every, self.entry.every.max(FAILED_MOST));
        let mut owed = Owed::default();
        let mut present = None;
        loop {
            let entry = self.entry.clone();
            let round = tokio::task::spawn_blocking(move || round(&entry, store)).await;
            let Ok(round) = round else {
                // A fault of ours that this content brings out: the other entries and the revision that is there go on.
                self.failed("the store panicked, which is a fault of outrigger", present.as_deref());
                self.discard_cache().await;
                store = match self.entry.store.build(self.cache.clone(), self.entry.limits.bytes_max) {
                    Ok(store) => store,
                    Err(error) => return self.failed(&error, present.as_deref()),
                };
                tokio::select! {
                    () = tokio::time::sleep(backoff.pause().max(self.entry.every)) => continue,
                    _ = phase.reached(Phase::Yield) => return,
                }
            };
            store = round.store;
            present = round.present;
            let pause = match round.result {
                Ok(news) => {
                    self.succeeded(news);
                    backoff.reset();
                    self.entry.every
                }
                Err(failure) => {
                    self.failed(&failure.text, present.as_deref());
                    backoff.pause_at_least(failure.wait).max(self.entry.every)
                }
            };
            if present.is_some() {
                if !self.published.send_replace(true) {
                    self.unpublished.set(self.unpublished.get().saturating_sub(1));
                }
                if self.unpublished.get() == 0 {
                    self.health.set_ready(true);
                }
            }
            self.show(present.as_deref());
            let told = async {
                if let Some(revision) = &present {
                    self.tell(revision, &mut owed).await;
                }
                tokio::time::sleep(pause).await;
            };
            // Whoever comes after us tells what was not told.
            tokio::select! {
                () = told => {}
                _ = phase.reached(Phase::Yield) => return,
            }
        }
    }

    /// What a store keeps beside us may be what made it panic, and holds nothing that is not at its source.
    async fn discard_cache(&self) {
        let cache = self.cache.clone();
        let removed = tokio::task::spawn_blocking(move || crate::publish::remove(&cache)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(entry = self.entry.name, %error, "the store's cache cannot be removed");
        }
    }

    fn succeeded(&self, news: Option<String>) {
        if self.health.recovered(&self.id) {
            tracing::info!(entry = self.entry.name, "the store answers again");
        }
        match news {
            Some(revision) => {
                self.new.add(1);
                self.row.receive(1);
                self.row.deliver(1);
                let revision = shown(&revision);
                tracing::info!(entry = self.entry.name, revision, to = %self.entry.to.display(), "published a new revision");
            }
            None => self.same.add(1),
        }
    }

    fn failed(&self, error: &str, present: Option<&str>) {
        self.failed.add(1);
        let serves = present
            .map_or("nothing is published yet".into(), |revision| format!("{} goes on serving", shown(revision)));
        let text = format!("{}: {error}; {serves}", self.entry.store.describe());
        if self.health.fault(&self.id, text.clone()) {
            tracing::warn!(entry = self.entry.name, error = text, "a revision could not be fetched or published");
        }
    }

    fn show(&self, present: Option<&str>) {
        let revision = Revision {
            entry: self.entry.name.clone(),
            store: self.entry.store.describe(),
            to: self.entry.to.display().to_string(),
            revision: present.map(|revision| shown(revision).to_string()),
        };
        self.inputs.revisions.set(revision);
    }

    /// Tells those who have not heard of this revision. Who was told is written down, so that a crash between publication and notice
    /// costs no notice, and nobody is told again because somebody else was not there.
    async fn tell(&self, revision: &str, owed: &mut Owed) {
        let again = owed.revision == revision;
        if !again {
            *owed = Owed { revision: revision.to_string(), notices: Vec::new() };
            let Some(heard) = self.heard(revision) else { return };
            // An app that starts later reads the new revision anyway.
            let everybody = if *self.inputs.app_runs.borrow() { self.entry.notify.len() } else { 0 };
            owed.notices.extend((0..everybody).filter(|index| !heard.contains(index)));
        }
        let due = std::mem::take(&mut owed.notices);
        for index in &due {
            let Some(kind) = self.entry.notify.get(*index) else { continue };
            if !self.tell_one(*index, kind, revision, again).await {
                owed.notices.push(*index);
            }
        }
        let is_news = due.len() > owed.notices.len() || (due.is_empty() && !again);
        if is_news {
            self.note_state(self.note_heard(owed));
        }
    }

    /// Says whether the file of notices can be read and written.
    fn note_state(&self, outcome: std::io::Result<()>) {
        let part = format!("{} told", self.id);
        match outcome {
            Ok(()) => drop(self.health.recovered(&part)),
            Err(error) => {
                if self.health.fault(&part, format!("{error}; a restart tells again what was told")) {
                    tracing::warn!(%error, "who was told is not kept; a restart tells it again");
                }
            }
        }
    }

    fn told_file(&self) -> String {
        format!("sync.{}.told", self.entry.name)
    }

    /// Who has heard of this revision while others have not, by places; None where nobody is left to be told.
    fn heard(&self, revision: &str) -> Option<Vec<usize>> {
        let text = self.inputs.state.read(&self.told_file()).unwrap_or_else(|error| {
            self.note_state(Err(error));
            None
        });
        let text = text.unwrap_or_default();
        let told = match MARK.of(&text) {
            Marked::Ours(told) => told,
            Marked::None => &text,
            Marked::Other(_) => {
                tracing::warn!(file = self.told_file(), "it is of a newer version, and everybody is told again");
                self.begun_anew.add(1);
                &[]
            }
        };
        let told = String::from_utf8_lossy(told);
        let Some(places) = told.strip_prefix(revision) else { return Some(Vec::new()) };
        (!places.is_empty()).then(|| places.split_whitespace().filter_map(|place| place.parse().ok()).collect())
    }

    fn note_heard(&self, owed: &Owed) -> std::io::Result<()> {
        let heard =
            (0..self.entry.notify.len()).filter(|index| !owed.notices.is_empty() && !owed.notices.contains(index));
        let text = heard.fold(owed.revision.clone(), |text, index| format!("{text} {index}"));
        let text = format!("{}{text}", MARK.line());
        self.inputs.state.write(&self.told_file(), text.as_bytes())
    }

    /// False where it is to be tried again after the next look at the store: an app beside us may start to listen at any time.
    async fn tell_one(&self, index: usize, kind: &NotifyKind, revision: &str, again: bool) -> bool {
        let part = format!("{} notify {index}", self.id);
        let failed = |error: String| {
            if self.health.fault(&part, format!("{}: {error}", kind.describe())) {
                tracing::error!(entry = self.entry.name, error, "the app was not told of a new revision");
            }
        };
        match kind {
            NotifyKind::Signal(signal) => {
                let until = Instant::now() + HANDLER_WAIT;
                // An app that is starting has no handler yet, and the signal would end it.
                while !(self.inputs.signal_app)(signal.number()) {
                    if Instant::now() > until {
                        failed(format!("the app does not handle {}, which would end it", signal.name()));
                        return true;
                    }
                    tokio::time::sleep(HANDLER_LOOK).await;
                }
            }
            NotifyKind::Http(config) => {
                let mut backoff = Backoff::new(NOTICE_FIRST, NOTICE_MOST);
                while let Err(error) = http::send(config, shown(revision)).await {
                    if again || backoff.tries() + 1 >= NOTICE_TRIES {
                        failed(error);
                        return false;
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
        self.health.recovered(&part);
        tracing::info!(
            entry = self.entry.name,
            notice = kind.describe(),
            revision = shown(revision),
            "told of the new revision"
        );
        true
    }
}

/// The store's own name for a revision, without what is selected of it.
fn shown(revision: &str) -> &str {
    revision.rsplit('/').next().unwrap_or(revision)
}

/// One round, on a thread that may block.
fn round(entry: &EntryPlan, mut store: Box<dyn Store>) -> Round {
    let place = match Place::open(&entry.to) {
        Ok(place) => place,
        Err(error) => return Round { store, result: Err(error.to_string().into()), present: None },
    };
    let published = place.published();
    let mut stage = || place.staging(entry.limits).map_err(|error| error.to_string());
    let result = match store.fetch(published.as_deref(), &mut stage) {
        Ok((Fetched::New { revision }, Some(candidate))) => {
            place.publish(candidate, &revision).map(|()| Some(revision)).map_err(|error| error.to_string().into())
        }
        Ok(_) => Ok(None),
        // The store is silent: what is there serves, even where its link was lost.
        Err(failure) => Err(match place.restore() {
            Ok(_) => failure,
            Err(worse) => Failure {
                text: format!("{}; and the last revision cannot be put back: {worse}", failure.text),
                ..failure
            },
        }),
    };
    Round { store, result, present: place.published() }
}
