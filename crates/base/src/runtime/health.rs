//! The health of a subsystem: started, ready, live, and a message. In: reports of subsystems, by component. Out: the results of
//! the three probes, and one state with a message for `status`. A fault is reported once, until it has recovered.

use crate::sync::lock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Starting,
    Ok,
    /// Works partially, such as with a sink whose endpoint does not respond.
    Degraded,
    /// Outrigger is shutting down.
    Stopping,
    Failed,
}

impl State {
    /// From best to worst.
    pub const ALL: [State; 5] = [State::Ok, State::Degraded, State::Starting, State::Stopping, State::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ok => "ok",
            State::Degraded => "degraded",
            State::Stopping => "stopping",
            State::Failed => "failed",
        }
    }

    /// The worst of several; `ok` if there are none.
    pub fn worst(states: impl Iterator<Item = State>) -> State {
        let rank = |state: &State| State::ALL.iter().position(|known| known == state);
        states.max_by_key(rank).unwrap_or(State::Ok)
    }
}

/// A snapshot of the health of one subsystem.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SubsystemHealth {
    pub name: &'static str,
    pub health: State,
    /// Its faults, or its activity.
    pub message: String,
    /// When the current health began (RFC 3339).
    pub since: String,
}

/// The state of one component, which a section of the configuration defines.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ComponentHealth {
    /// Its path in the configuration, such as `logs.sinks.main`.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub health: State,
    /// Its faults; empty if there are none.
    pub message: String,
    /// When the current health began (RFC 3339).
    pub since: String,
}

/// The health of one subsystem: written by it, read by probes, the page and status.
#[derive(Debug)]
pub struct Health {
    subsystem: &'static str,
    inner: Mutex<Inner>,
    /// Notified of a failure that a new worker would fix.
    alarm: Arc<Notify>,
    beats: Mutex<Vec<(String, Arc<AtomicU64>)>>,
}

#[derive(Debug)]
struct Inner {
    started: bool,
    ready: bool,
    stopping: bool,
    panicked: Option<String>,
    /// Limited by the configured parts.
    faults: Vec<Fault>,
    components: Vec<Component>,
    summary: String,
    health: State,
    since: SystemTime,
}

#[derive(Debug)]
struct Fault {
    /// A component's id, followed by a word if one component can have several faults.
    part: String,
    /// The causes since the fault began, each in one sentence, newest last; at most `CAUSES_MAX`.
    causes: VecDeque<String>,
}

impl Fault {
    /// The newest cause.
    fn text(&self) -> &str {
        self.causes.back().map_or("", String::as_str)
    }
}

/// Causes of a fault that are not reported as new when they alternate.
const CAUSES_MAX: usize = 8;

#[derive(Debug)]
struct Component {
    id: String,
    kind: &'static str,
    is_healthy: bool,
    since: SystemTime,
}

impl Component {
    /// `part`: the part of a fault.
    fn has(&self, part: &str) -> bool {
        part.strip_prefix(self.id.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }
}

impl Inner {
    fn current(&self) -> State {
        match (&self.panicked, self.faults.is_empty(), self.ready) {
            (Some(_), ..) => State::Failed,
            (None, ..) if self.stopping => State::Stopping,
            (None, true, true) => State::Ok,
            (None, true, false) => State::Starting,
            (None, false, _) => State::Degraded,
        }
    }

    /// Records when the health of the subsystem and of each component changed.
    fn refresh(&mut self) {
        let health = self.current();
        if std::mem::replace(&mut self.health, health) != health {
            self.since = SystemTime::now();
        }
        for component in &mut self.components {
            let is_healthy = !self.faults.iter().any(|fault| component.has(&fault.part));
            if std::mem::replace(&mut component.is_healthy, is_healthy) != is_healthy {
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
            stopping: false,
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
        let component = Component { id: id.into(), kind, is_healthy: true, since: SystemTime::now() };
        let mut inner = lock(&self.inner);
        inner.components.push(component);
        inner.refresh();
    }

    /// The health of each component.
    pub fn components(&self) -> Vec<ComponentHealth> {
        let inner = lock(&self.inner);
        let of = |component: &Component| {
            let faults = inner.faults.iter().filter(|fault| component.has(&fault.part));
            let message = faults.map(Fault::text).collect::<Vec<_>>().join("; ");
            let health = match () {
                () if inner.panicked.is_some() => State::Failed,
                () if !component.is_healthy => State::Degraded,
                () => State::Ok,
            };
            let since = crate::text::rfc3339(component.since);
            ComponentHealth { id: component.id.clone(), kind: component.kind.into(), health, message, since }
        };
        inner.components.iter().map(of).collect()
    }

    /// Configuration is loaded and outbound is open; never waits for the app.
    pub fn set_started(&self) {
        lock(&self.inner).started = true;
    }

    pub fn set_ready(&self, ready: bool) {
        let mut inner = lock(&self.inner);
        inner.started |= ready;
        inner.ready = ready;
        inner.refresh();
    }

    /// From here on, what has ended is no fault.
    pub fn set_stopping(&self) {
        let mut inner = lock(&self.inner);
        inner.stopping = true;
        inner.refresh();
    }

    /// A short description of what the healthy subsystem does.
    pub fn set_summary(&self, text: impl Into<String>) {
        lock(&self.inner).summary = text.into();
    }

    /// Records a fault of a part; returns whether its cause is new since the fault began, so that each is logged once and not per
    /// attempt.
    pub fn fault(&self, part: &str, text: impl Into<String>) -> bool {
        let (mut inner, text) = (lock(&self.inner), text.into());
        let Some(fault) = inner.faults.iter_mut().find(|fault| fault.part == part) else {
            inner.faults.push(Fault { part: part.to_string(), causes: VecDeque::from([text]) });
            inner.refresh();
            return true;
        };
        let known = fault.causes.iter().position(|cause| *cause == text);
        known.into_iter().for_each(|index| drop(fault.causes.remove(index)));
        fault.causes.push_back(text);
        if fault.causes.len() > CAUSES_MAX {
            fault.causes.pop_front();
        }
        known.is_none()
    }

    /// Records that a part has recovered; returns whether it had a fault.
    pub fn recovered(&self, part: &str) -> bool {
        let mut inner = lock(&self.inner);
        let before = inner.faults.len();
        inner.faults.retain(|fault| fault.part != part);
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

    /// A heartbeat counter for a thread of the subsystem: it increments while the thread makes progress.
    pub fn beat(&self, thread: &str) -> Arc<AtomicU64> {
        let beat = Arc::<AtomicU64>::default();
        lock(&self.beats).push((thread.to_string(), beat.clone()));
        beat
    }

    /// The heartbeat count of each thread.
    pub fn beats(&self) -> Vec<(String, u64)> {
        lock(&self.beats).iter().map(|(thread, beat)| (thread.clone(), beat.load(Ordering::Relaxed))).collect()
    }

    pub fn started(&self) -> bool {
        lock(&self.inner).started
    }

    pub fn ready(&self) -> bool {
        lock(&self.inner).ready
    }

    /// False only if a restart would help.
    pub fn live(&self) -> bool {
        lock(&self.inner).panicked.is_none()
    }

    pub fn current(&self) -> SubsystemHealth {
        let inner = lock(&self.inner);
        let message = match (&inner.panicked, inner.faults.as_slice(), inner.ready) {
            (Some(text), ..) => text.clone(),
            (None, [], _) if inner.stopping => "stopping".into(),
            (None, [], false) if inner.summary.is_empty() => "starting".into(),
            (None, [], _) => inner.summary.clone(),
            (None, faults, _) => {
                let parts: Vec<String> =
                    faults.iter().map(|fault| format!("{}: {}", fault.part, fault.text())).collect();
                parts.join("; ")
            }
        };
        let since = crate::text::rfc3339(inner.since);
        SubsystemHealth { name: self.subsystem, health: inner.current(), message, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_has_probes_and_reports_faults_once() {
        let health = Health::new("logs");
        assert_eq!(health.current().health, State::Starting);
        health.set_ready(true);
        assert!(health.started() && health.ready() && health.live());
        assert!(health.fault("main", "rejected"));
        assert!(!health.fault("main", "rejected"), "the same fault is not new");
        assert!(
            health.fault("main", "closed") && !health.fault("main", "rejected"),
            "causes that alternate are not new"
        );
        assert_eq!(health.current().message, "main: rejected", "the status has the newest");
        assert_eq!(health.current().health, State::Degraded);
        assert!(health.ready(), "a failing endpoint does not make the app unready");
        assert!(health.recovered("main"));
        assert_eq!(health.current().health, State::Ok);
        health.set_stopping();
        assert_eq!((health.current().health, health.current().message.as_str()), (State::Stopping, "stopping"));
        health.panicked("boom");
        assert!(!health.live());
        assert_eq!(health.current().health, State::Failed);
    }
}
