//! The health of a subsystem: started, ready, live, and a message. In: what subsystems report, by component. Out: the responses of
//! the three probes, and one state with its message for `status`. A fault is reported once, until it has recovered.

use crate::sync::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::sync::Notify;

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
            let since = crate::telemetry::logging::rfc3339(component.since);
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
        let since = crate::telemetry::logging::rfc3339(inner.since);
        SubsystemHealth { name: self.subsystem, health: inner.current(), message, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
