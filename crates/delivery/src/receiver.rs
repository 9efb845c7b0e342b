//! The state of one receiver, which all bodies to it share. In: bodies. Out: their final outcome; health, requests. While the
//! receiver fails, one body at a time is tried after a growing delay, so that the rate of requests does not depend on the number of
//! waiting bodies. Limits: `retry` of the sink; a stop shortens delays to `DELAY_MAX_STOPPING`.

use crate::batch::{Body, Transport};
use crate::options::RetryConfig;
use crate::outcome::Outcome;
use base::runtime::backoff::Backoff;
use base::runtime::health::Health;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::telemetry::component::Component;
use base::telemetry::{Requests, Telemetry};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// A shutdown leaves no time for longer delays.
const DELAY_MAX_STOPPING: Duration = Duration::from_millis(500);

pub struct Receiver {
    /// The component's id.
    id: String,
    retry: RetryConfig,
    requests: Requests,
    health: Arc<Health>,
    phase: PhaseWatch,
    state: RefCell<State>,
    /// Held by the one attempt that is made while the receiver fails.
    probe: Mutex<()>,
}

struct State {
    backoff: Backoff,
    /// The time of the next attempt, while the receiver fails.
    next: Option<Instant>,
    /// Failures so far: attempts that began at the same time count once.
    failures: u64,
}

/// The final outcome of a body.
#[derive(Debug)]
pub enum Settled {
    Delivered,
    TooLarge { error: String },
    Rejected { error: String },
    Expired { error: String },
}

impl Receiver {
    pub fn new(
        component: &Component,
        retry: RetryConfig,
        telemetry: &Telemetry,
        health: Arc<Health>,
        phase: PhaseWatch,
    ) -> Receiver {
        let backoff = Backoff::new(retry.backoff.0, retry.max_backoff.0);
        Receiver {
            id: component.id.clone(),
            retry,
            requests: Requests::new(telemetry, component),
            health,
            phase,
            state: RefCell::new(State { backoff, next: None, failures: 0 }),
            probe: Mutex::new(()),
        }
    }

    /// Attempts until the receiver accepts or rejects the body, or it expires.
    pub async fn deliver(&self, transport: &dyn Transport, body: &Body) -> Settled {
        let (began, mut retries) = (Instant::now(), 0);
        loop {
            let probe = self.turn().await;
            let failures = self.state.borrow().failures;
            let outcome = transport.send(body).await;
            let (error, after) = match outcome {
                Outcome::Delivered => {
                    self.requests.succeed(body.sent);
                    self.responded();
                    if self.health.recovered(&self.id) {
                        tracing::info!(component = self.id, "receiver recovered");
                    }
                    return Settled::Delivered;
                }
                Outcome::TooLarge { error } => {
                    self.requests.reject();
                    self.responded();
                    return Settled::TooLarge { error };
                }
                Outcome::Rejected { error } => {
                    self.requests.reject();
                    self.responded();
                    return Settled::Rejected { error };
                }
                Outcome::Retry { error, after } => (error, after),
            };
            self.requests.retry();
            self.failed(failures, &error, after);
            drop(probe);
            retries += 1;
            let is_over = self.retry.max_retries.is_some_and(|max| retries > max)
                || self.retry.max_age.is_some_and(|max| began.elapsed() >= max.0);
            if is_over {
                return Settled::Expired { error };
            }
        }
    }

    /// Waits until an attempt may be made; while the receiver fails, the attempt is the only one as long as the guard is held.
    async fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.state.borrow().next?;
        let probe = self.probe.lock().await;
        let next = self.state.borrow().next?;
        let mut phase = self.phase.clone();
        if phase.phase() < Phase::Finish {
            tokio::select! {
                () = tokio::time::sleep_until(next) => return Some(probe),
                _ = phase.reached(Phase::Finish) => {}
            }
        }
        let soon = Instant::now() + DELAY_MAX_STOPPING;
        tokio::time::sleep_until(next.min(soon)).await;
        Some(probe)
    }

    /// The receiver has accepted or rejected a body: it works.
    fn responded(&self) {
        let mut state = self.state.borrow_mut();
        state.next = None;
        state.backoff.reset();
    }

    /// `before`: the failures when the attempt began.
    fn failed(&self, before: u64, error: &str, after: Option<Duration>) {
        {
            let mut state = self.state.borrow_mut();
            if state.failures == before {
                state.failures += 1;
                let delay = state.backoff.pause_at_least(after);
                state.next = Some(Instant::now() + delay);
            }
        }
        if self.health.fault(&self.id, error.to_string()) {
            tracing::warn!(component = self.id, error, "delivery failed; retrying");
        }
    }
}
