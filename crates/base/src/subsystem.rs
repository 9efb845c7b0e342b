//! What the worker knows of a subsystem: its health (started, ready, live, and a sentence for people) and its part in
//! the stop order. In: what subsystems report. Out: the three probes' answers, and phases that all have passed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};

/// Locks even where a panicking thread held the lock: the data behind ours is always whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `1 sink`, `2 sinks`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Starting,
    Ok,
    /// Works with something missing, such as a receiver that does not answer.
    Degraded,
    Failed,
}

impl State {
    /// From the best to the worst.
    pub const ALL: [State; 4] = [State::Ok, State::Degraded, State::Starting, State::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Failed => "failed",
        }
    }

    /// The worst of several; `ok` where there are none.
    pub fn worst(states: impl Iterator<Item = State>) -> State {
        let rank = |state: &State| State::ALL.iter().position(|known| known == state);
        states.max_by_key(rank).unwrap_or(State::Ok)
    }
}

/// The health of one subsystem at one moment.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SubsystemHealth {
    pub name: &'static str,
    pub health: State,
    /// What is wrong, or what it does.
    pub message: String,
    /// When the present health began (RFC 3339).
    pub since: String,
}

/// One component's state: what a section of the configuration names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ComponentHealth {
    /// Its path in the configuration, such as `logs.sinks.main`.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub health: State,
    /// What is not well; empty where all is.
    pub message: String,
    /// When the present health began (RFC 3339).
    pub since: String,
}

/// The health of one subsystem: written by it, read by probes, page and status.
#[derive(Debug)]
pub struct Health {
    subsystem: &'static str,
    inner: Mutex<Inner>,
    /// Rings when something broke that a new worker would mend.
    alarm: Arc<Notify>,
    beats: Mutex<Vec<(String, Arc<AtomicU64>)>>,
}

#[derive(Debug)]
struct Inner {
    started: bool,
    ready: bool,
    panicked: Option<String>,
    /// One sentence per part that is not well, by the part's name; bounded by the parts configured. A part is a component's id,
    /// with a word behind it where several things of one component can be wrong.
    faults: Vec<(String, String)>,
    components: Vec<Component>,
    summary: String,
    health: State,
    since: SystemTime,
}

#[derive(Debug)]
struct Component {
    id: String,
    kind: &'static str,
    is_well: bool,
    since: SystemTime,
}

impl Component {
    /// `part`: of a fault.
    fn has(&self, part: &str) -> bool {
        part.strip_prefix(self.id.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }
}

impl Inner {
    fn current(&self) -> State {
        match (&self.panicked, self.faults.is_empty(), self.ready) {
            (Some(_), ..) => State::Failed,
            (None, true, true) => State::Ok,
            (None, true, false) => State::Starting,
            (None, false, _) => State::Degraded,
        }
    }

    /// Notes when the health of the subsystem and of each component changed.
    fn refresh(&mut self) {
        let health = self.current();
        if std::mem::replace(&mut self.health, health) != health {
            self.since = SystemTime::now();
        }
        for component in &mut self.components {
            let is_well = !self.faults.iter().any(|(part, _)| component.has(part));
            if std::mem::replace(&mut component.is_well, is_well) != is_well {
                component.since = SystemTime::now();
            }
        }
    }
}

impl Health {
    pub fn new(subsystem: &'static str) -> Arc<Health> {
        Health::with_alarm(subsystem, Arc::default())
    }

    pub fn with_alarm(subsystem: &'static str, alarm: Arc<Notify>) -> Arc<Health> {
        let inner = Inner {
            started: false,
            ready: false,
            panicked: None,
            faults: Vec::new(),
            components: Vec::new(),
            summary: String::new(),
            health: State::Starting,
            since: SystemTime::now(),
        };
        Arc::new(Health { subsystem, inner: Mutex::new(inner), alarm, beats: Mutex::default() })
    }

    /// Registers a component by its path in the configuration and its kind.
    pub fn component(&self, id: impl Into<String>, kind: &'static str) {
        let component = Component { id: id.into(), kind, is_well: true, since: SystemTime::now() };
        let mut inner = lock(&self.inner);
        inner.components.push(component);
        inner.refresh();
    }

    /// How each component is.
    pub fn components(&self) -> Vec<ComponentHealth> {
        let inner = lock(&self.inner);
        let of = |component: &Component| {
            let faults = inner.faults.iter().filter(|(part, _)| component.has(part));
            let message = faults.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ");
            let health = match () {
                () if inner.panicked.is_some() => State::Failed,
                () if !component.is_well => State::Degraded,
                () => State::Ok,
            };
            let since = crate::logging::rfc3339(component.since);
            ComponentHealth { id: component.id.clone(), kind: component.kind.into(), health, message, since }
        };
        inner.components.iter().map(of).collect()
    }

    /// Configuration is there and outbound is open; never waits for the app.
    pub fn set_started(&self) {
        lock(&self.inner).started = true;
    }

    pub fn set_ready(&self, ready: bool) {
        let mut inner = lock(&self.inner);
        inner.started |= ready;
        inner.ready = ready;
        inner.refresh();
    }

    /// What the subsystem does when all is well, in a few words.
    pub fn set_summary(&self, text: impl Into<String>) {
        lock(&self.inner).summary = text.into();
    }

    /// Notes that a part is not well; answers whether that is news (so that it is logged once, not per try).
    pub fn fault(&self, part: &str, text: impl Into<String>) -> bool {
        let (mut inner, text) = (lock(&self.inner), text.into());
        match inner.faults.iter_mut().find(|(name, _)| name == part) {
            Some((_, old)) => std::mem::replace(old, text.clone()) != text,
            None => {
                inner.faults.push((part.to_string(), text));
                inner.refresh();
                true
            }
        }
    }

    /// Notes that a part is well again; answers whether it was not.
    pub fn recovered(&self, part: &str) -> bool {
        let mut inner = lock(&self.inner);
        let before = inner.faults.len();
        inner.faults.retain(|(name, _)| name != part);
        inner.refresh();
        inner.faults.len() != before
    }

    pub fn panicked(&self, text: &str) {
        let mut inner = lock(&self.inner);
        inner.panicked.get_or_insert_with(|| text.to_string());
        inner.refresh();
        drop(inner);
        self.alarm.notify_one();
    }

    /// A thread of the subsystem counts here as long as it moves.
    pub fn beat(&self, thread: &str) -> Arc<AtomicU64> {
        let beat = Arc::<AtomicU64>::default();
        lock(&self.beats).push((thread.to_string(), beat.clone()));
        beat
    }

    /// How far each thread has counted.
    pub fn beats(&self) -> Vec<(String, u64)> {
        lock(&self.beats).iter().map(|(thread, beat)| (thread.clone(), beat.load(Ordering::Relaxed))).collect()
    }

    pub fn started(&self) -> bool {
        lock(&self.inner).started
    }

    pub fn ready(&self) -> bool {
        lock(&self.inner).ready
    }

    /// False only where a restart would help.
    pub fn live(&self) -> bool {
        lock(&self.inner).panicked.is_none()
    }

    pub fn current(&self) -> SubsystemHealth {
        let inner = lock(&self.inner);
        let message = match (&inner.panicked, inner.faults.as_slice(), inner.ready) {
            (Some(text), ..) => text.clone(),
            (None, [], false) if inner.summary.is_empty() => "starting".into(),
            (None, [], _) => inner.summary.clone(),
            (None, faults, _) => {
                let parts: Vec<String> = faults.iter().map(|(part, text)| format!("{part}: {text}")).collect();
                parts.join("; ")
            }
        };
        let since = crate::logging::rfc3339(inner.since);
        SubsystemHealth { name: self.subsystem, health: inner.current(), message, since }
    }
}

/// The stop order, one step after the other. `Run` is everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Run,
    /// Not part of a stop: another worker takes over. Nothing more is taken in, what is under way may end, and then nothing that
    /// both would need is touched any more. The phases of a stop follow, for what is under way.
    Handover,
    /// Inbound takes no new connections and drains; the last scrape of the app is made now, while it still answers.
    Drain,
    /// The app has ended: read its output and files to their end, deliver or persist.
    Finish,
    /// Outbound closes; everything ends.
    Close,
}

/// Where the stop order stands.
#[derive(Clone, Copy, Debug)]
struct Now {
    phase: Phase,
    /// The moment by which the phase must have passed.
    until: Instant,
    /// Another worker takes over.
    yields: bool,
}

/// What a subsystem holds of the stop order: it watches the phase, and says when it has done its part.
pub struct Participant {
    watch: PhaseWatch,
    done: watch::Sender<Phase>,
}

impl Participant {
    /// Whether another worker takes over, so that nothing is read to its end.
    pub fn yields(&self) -> bool {
        self.watch.yields()
    }

    /// Waits until the phase is at least the given one; answers its deadline.
    pub async fn reached(&mut self, phase: Phase) -> Instant {
        self.watch.reached(phase).await
    }

    pub fn done(&self, phase: Phase) {
        self.done.send_if_modified(|done| {
            let newer = phase > *done;
            *done = phase.max(*done);
            newer
        });
    }

    /// A second view of the phases for a task beside the one that answers `done`.
    pub fn watch(&self) -> PhaseWatch {
        self.watch.clone()
    }
}

/// A view of the stop order without the duty to answer.
#[derive(Clone)]
pub struct PhaseWatch {
    now: watch::Receiver<Now>,
}

impl PhaseWatch {
    /// Waits until the phase's time is over but for `reserve`, also where it was shortened meanwhile.
    pub async fn is_over(&mut self, reserve: Duration) {
        loop {
            let until = self.now.borrow_and_update().until;
            let until = until.checked_sub(reserve).unwrap_or(until);
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return,
                changed = self.now.changed() => {
                    if changed.is_err() {
                        return tokio::time::sleep_until(until.into()).await;
                    }
                }
            }
        }
    }

    pub fn phase(&self) -> Phase {
        self.now.borrow().phase
    }

    pub fn yields(&self) -> bool {
        self.now.borrow().yields
    }

    pub async fn reached(&mut self, phase: Phase) -> Instant {
        match self.now.wait_for(|now| now.phase >= phase).await {
            Ok(now) => now.until,
            // The lifecycle is gone, and its thread with it: this process ends, and nobody has ordered to close anything.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until another worker takes over.
    pub async fn yielding(&mut self) {
        if self.now.wait_for(|now| now.yields).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until another worker takes over, or the phase is reached.
    pub async fn yields_or_reached(&mut self, phase: Phase) {
        if self.now.wait_for(|now| now.yields || now.phase >= phase).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Leads all subsystems through the stop order.
pub struct Lifecycle {
    now: watch::Sender<Now>,
    stations: Vec<(&'static str, watch::Receiver<Phase>)>,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        let now = Now { phase: Phase::Run, until: Instant::now(), yields: false };
        Lifecycle { now: watch::channel(now).0, stations: Vec::new() }
    }
}

impl Lifecycle {
    pub fn participant(&mut self, subsystem: &'static str) -> Participant {
        let (done, seen) = watch::channel(Phase::Run);
        self.stations.push((subsystem, seen));
        Participant { watch: PhaseWatch { now: self.now.subscribe() }, done }
    }

    /// A way to shorten the phase that is under way, while somebody waits for it.
    pub fn hurry(&self) -> Hurry {
        Hurry { now: self.now.clone() }
    }

    /// Begins a phase and waits until all stations have done it or the time is over; answers who did not.
    pub async fn advance(&mut self, phase: Phase, within: Duration) -> Vec<&'static str> {
        let until = Instant::now() + within;
        let yields = phase == Phase::Handover || self.now.borrow().yields;
        let _ = self.now.send_replace(Now { phase, until, yields });
        let mut late = Vec::new();
        let mut clock = PhaseWatch { now: self.now.subscribe() };
        for (name, seen) in &mut self.stations {
            // A participant whose thread has ended has nothing left to do.
            tokio::select! {
                biased;
                _ = seen.wait_for(|done| *done >= phase) => {}
                () = clock.is_over(Duration::ZERO) => late.push(*name),
            }
        }
        late
    }
}

/// Shortens a phase.
pub struct Hurry {
    now: watch::Sender<Now>,
}

impl Hurry {
    /// The phase under way has no more time than until then.
    pub fn by(&self, until: Instant) {
        self.now.send_if_modified(|now| {
            let sooner = until < now.until;
            now.until = now.until.min(until);
            sooner
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: faults 2
    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_phase_can_be_shortened_while_it_runs() {
        let mut lifecycle = Lifecycle::default();
        let slow = lifecycle.participant("slow");
        let (hurry, mut watch, began) = (lifecycle.hurry(), slow.watch(), tokio::time::Instant::now());
        let (late, (), ()) = tokio::join!(
            lifecycle.advance(Phase::Finish, Duration::from_secs(60)),
            async {
                watch.reached(Phase::Finish).await;
                watch.is_over(Duration::from_millis(100)).await;
                assert!(began.elapsed() < Duration::from_secs(2));
            },
            async {
                tokio::task::yield_now().await;
                hurry.by(Instant::now() + Duration::from_secs(1));
            }
        );
        assert_eq!(late, ["slow"]);
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    /// covers: foundation 2
    #[tokio::test(flavor = "current_thread")]
    async fn a_phase_ends_when_all_have_done_it_or_the_time_is_over() {
        let mut lifecycle = Lifecycle::default();
        let mut quick = lifecycle.participant("quick");
        let slow = lifecycle.participant("slow");
        let (late, ()) = tokio::join!(lifecycle.advance(Phase::Drain, Duration::from_millis(30)), async {
            quick.reached(Phase::Drain).await;
            quick.done(Phase::Drain);
        });
        assert_eq!(late, ["slow"]);
        slow.done(Phase::Finish);
        quick.done(Phase::Finish);
        assert!(lifecycle.advance(Phase::Finish, Duration::from_secs(5)).await.is_empty());
        drop((quick, slow));
        assert!(
            lifecycle.advance(Phase::Close, Duration::from_secs(5)).await.is_empty(),
            "who has ended holds nobody up"
        );
    }

    /// covers: attachment 2
    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_conductor_that_is_gone_has_ordered_nothing() {
        let mut lifecycle = Lifecycle::default();
        let mut participant = lifecycle.participant("proxy");
        let mut watch = participant.watch();
        drop(lifecycle);
        let long = Duration::from_secs(60);
        assert!(tokio::time::timeout(long, participant.reached(Phase::Handover)).await.is_err(), "sockets stay open");
        assert!(tokio::time::timeout(long, watch.yields_or_reached(Phase::Close)).await.is_err());
    }

    /// covers: foundation 2
    #[test]
    fn health_answers_started_ready_and_live_and_tells_faults_once() {
        let health = Health::new("logs");
        assert_eq!(health.current().health, State::Starting);
        health.set_ready(true);
        assert!(health.started() && health.ready() && health.live());
        assert!(health.fault("main", "refused"));
        assert!(!health.fault("main", "refused"), "the same fault is no news");
        assert_eq!(health.current().health, State::Degraded);
        assert!(health.ready(), "a sick receiver does not make the app unready");
        assert!(health.recovered("main"));
        assert_eq!(health.current().health, State::Ok);
        health.panicked("boom");
        assert!(!health.live());
        assert_eq!(health.current().health, State::Failed);
    }
}
