//! The phases of a stop and of a handover, which all subsystems pass together. In: the phase that the worker begins, with its
//! timeout. Out: the participants that did not finish it in time.

use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The phases of a stop, in order. `Run` is the phase before a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Run,
    /// Not part of a stop: another worker takes over. No new work is accepted, work in flight may finish, and then resources that
    /// both workers need are no longer used. The phases of a stop follow, for work in flight.
    Handover,
    /// Inbound accepts no new connections and drains; the last scrape of the app happens now, while it still responds.
    Drain,
    /// The app has exited: read its output and files to their end, deliver or persist.
    Finish,
    /// Outbound closes; all tasks finish.
    Close,
}

/// The current phase.
#[derive(Clone, Copy, Debug)]
struct Now {
    phase: Phase,
    /// The deadline of the phase.
    until: Instant,
    /// Another worker takes over.
    is_handover: bool,
}

/// A subsystem's handle of the lifecycle: it watches the phase, and reports when its part is done.
pub struct Participant {
    watch: PhaseWatch,
    done: watch::Sender<Phase>,
}

impl Participant {
    /// Whether another worker takes over, so that nothing is read to its end.
    pub fn is_handover(&self) -> bool {
        self.watch.is_handover()
    }

    /// Waits until the phase is at least the given one; returns its deadline.
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

    /// A second view of the phases for another task than the one that calls `done`.
    pub fn watch(&self) -> PhaseWatch {
        self.watch.clone()
    }
}

/// A view of the phases that does not have to report `done`.
#[derive(Clone)]
pub struct PhaseWatch {
    now: watch::Receiver<Now>,
}

impl PhaseWatch {
    /// Waits until `reserve` before the deadline of the phase, also if the deadline is shortened while waiting.
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

    pub fn is_handover(&self) -> bool {
        self.now.borrow().is_handover
    }

    pub async fn reached(&mut self, phase: Phase) -> Instant {
        match self.now.wait_for(|now| now.phase >= phase).await {
            Ok(now) => now.until,
            // The lifecycle was dropped with its thread: this process exits, and no phase was requested.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until another worker takes over.
    pub async fn handover_begins(&mut self) {
        if self.now.wait_for(|now| now.is_handover).await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until another worker takes over, or the phase is reached.
    pub async fn handover_or_reached(&mut self, phase: Phase) {
        if self.now.wait_for(|now| now.is_handover || now.phase >= phase).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Runs all subsystems through the phases.
pub struct Lifecycle {
    now: watch::Sender<Now>,
    participants: Vec<(&'static str, watch::Receiver<Phase>)>,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        let now = Now { phase: Phase::Run, until: Instant::now(), is_handover: false };
        Lifecycle { now: watch::channel(now).0, participants: Vec::new() }
    }
}

impl Lifecycle {
    pub fn participant(&mut self, subsystem: &'static str) -> Participant {
        let (done, seen) = watch::channel(Phase::Run);
        self.participants.push((subsystem, seen));
        Participant { watch: PhaseWatch { now: self.now.subscribe() }, done }
    }

    /// A handle that shortens the current phase while `advance` waits for it.
    pub fn hurry(&self) -> Hurry {
        Hurry { now: self.now.clone() }
    }

    /// Begins a phase and waits until all participants have done it or the timeout expires; returns the late ones.
    pub async fn advance(&mut self, phase: Phase, within: Duration) -> Vec<&'static str> {
        let until = Instant::now() + within;
        let is_handover = phase == Phase::Handover || self.now.borrow().is_handover;
        let _ = self.now.send_replace(Now { phase, until, is_handover });
        let mut late = Vec::new();
        let mut clock = PhaseWatch { now: self.now.subscribe() };
        for (name, seen) in &mut self.participants {
            // A participant whose thread has finished is not late: its channel is closed.
            tokio::select! {
                biased;
                _ = seen.wait_for(|done| *done >= phase) => {}
                () = clock.is_over(Duration::ZERO) => late.push(*name),
            }
        }
        late
    }
}

/// Shortens the current phase.
pub struct Hurry {
    now: watch::Sender<Now>,
}

impl Hurry {
    /// Limits the deadline of the current phase.
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

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn running_phase_can_be_shortened() {
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

    #[tokio::test(flavor = "current_thread")]
    async fn phase_ends_when_all_are_done_or_on_timeout() {
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
            "a finished participant blocks no phase"
        );
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn dropped_lifecycle_starts_no_phase() {
        let mut lifecycle = Lifecycle::default();
        let mut participant = lifecycle.participant("proxy");
        let mut watch = participant.watch();
        drop(lifecycle);
        let long = Duration::from_secs(60);
        assert!(tokio::time::timeout(long, participant.reached(Phase::Handover)).await.is_err(), "sockets stay open");
        assert!(tokio::time::timeout(long, watch.handover_or_reached(Phase::Close)).await.is_err());
    }
}
