//! The order of a stop: the worker is notified, inbound drains, the app gets its signal, after its grace period SIGKILL; its
//! pipes are read to their end, the worker delivers, and the supervisor exits with the app's code. One deadline limits all of it.

use crate::app::State;
use crate::capture::Stream;
use crate::message::{StopCause, ToWorker, millis};
use crate::plan::PIPE_LINGER;
use crate::signals::{SIGKILL, SIGTERM};
use crate::state::{Stop, Supervisor};
use std::time::{Duration, Instant};

/// The worker enforces the deadline itself; this much later it is killed.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);

/// How long the worker may take to persist what is not delivered, after a second signal.
const PERSIST_TIME: Duration = Duration::from_secs(1);

/// How much of the deadline is left for delivery, after the wait for an external app.
const DELIVERY: Duration = Duration::from_secs(1);

/// A group that is being killed is signalled again, for children that were forked in the meantime.
const KILL_AGAIN: Duration = Duration::from_millis(200);

impl Supervisor {
    /// SIGTERM or SIGINT arrived, which is this signal to the app.
    pub(crate) fn stop_signalled(&mut self, rewritten: i32, now: Instant) {
        let configured = self.plan.as_ref().map_or(SIGTERM, |plan| plan.stop_signal);
        match &mut self.stop {
            None => {
                // Ctrl-C or a rewrite selects exactly that signal; SIGTERM selects the configured one.
                let signal = if rewritten == SIGTERM { configured } else { rewritten };
                self.begin_stop(signal, None, StopCause::Signal(rewritten), now);
            }
            // A second signal skips the remaining drain and grace period.
            Some(stop) => {
                (stop.drain_until, stop.external_until) = (now, now);
                stop.kill_at = stop.kill_at.map(|_| now);
                // After the app's exit nothing else is waited for either: what is not delivered is persisted.
                if self.app.pid().is_none() && (self.app.has_ended() || self.app.state == State::External) {
                    stop.until = stop.until.min(now + PERSIST_TIME);
                    stop.linger_until = stop.linger_until.map(|_| now);
                    let cause = stop.cause;
                    self.workers.send_to_active(ToWorker::Stop { left_ms: millis(PERSIST_TIME), cause });
                }
            }
        }
    }

    /// A request to stop, within its own time if it has one.
    pub(crate) fn stop_requested(&mut self, within_ms: u64, cause: StopCause, now: Instant) {
        let within = (within_ms > 0).then(|| Duration::from_millis(within_ms));
        match (&mut self.stop, within) {
            (None, _) => {
                let signal = self.plan.as_ref().map_or(SIGTERM, |plan| plan.stop_signal);
                self.begin_stop(signal, within, cause, now);
            }
            (Some(stop), Some(within)) => {
                stop.until = stop.until.min(now + within);
                stop.drain_until = stop.drain_until.min(now + within / 3);
                stop.external_until = stop.external_until.min(stop.until);
                stop.kill_at = stop.kill_at.map(|at| at.min(stop.until));
                let left_ms = millis(stop.until.saturating_duration_since(now));
                let cause = stop.cause;
                self.workers.send_to_active(ToWorker::Stop { left_ms, cause });
            }
            (Some(_), None) => {}
        }
    }

    pub(crate) fn begin_stop(&mut self, signal: i32, within: Option<Duration>, cause: StopCause, now: Instant) {
        let Some(plan) = &self.plan else {
            // The configuration has not been read yet: there is nothing to stop gracefully.
            self.exit = Some(128 + signal);
            return self.workers.kill_all();
        };
        let deadline = within.unwrap_or(plan.deadline);
        let until = now + deadline;
        // A requested time may be short: at most a third of it goes to the drain.
        let drain = if within.is_some() { plan.drain.min(deadline / 3) } else { plan.drain.min(deadline) };
        let wait = if plan.awaits_end { drain + plan.grace } else { drain };
        let external_until = (now + wait).min(until.checked_sub(DELIVERY).unwrap_or(now));
        self.stop = Some(Stop {
            cause,
            until,
            external_until,
            drain_until: now + drain,
            signal,
            kill_at: None,
            killed: false,
            linger_until: None,
            exit_sent: false,
        });
        self.app.cancel();
        self.systemd.stopping();
        self.workers.stop(ToWorker::Stop { left_ms: millis(deadline), cause });
    }

    /// Applies the expired deadlines of the app.
    pub(crate) fn tick_app(&mut self, now: Instant) {
        match self.app.state {
            State::Waiting if self.gate_until.is_some_and(|until| now >= until) => self.gate_over(now),
            State::Backoff { until } if now >= until => self.start_app(now),
            _ => {}
        }
        let Some(stop) = &mut self.stop else { return };
        let Some(plan) = &self.plan else { return };
        if let State::Running { .. } = self.app.state {
            match stop.kill_at {
                None if now >= stop.drain_until => {
                    stop.kill_at = Some((now + plan.grace).min(stop.until));
                    let signal = stop.signal;
                    self.signal_app(signal);
                }
                Some(at) if now >= at => {
                    stop.kill_at = Some(now + KILL_AGAIN);
                    if !std::mem::replace(&mut stop.killed, true) {
                        self.workers.send_to_active(ToWorker::AppKilled);
                    }
                    self.app.kills.mark_seen(plan.oom_file.as_deref(), now);
                    self.signal_app(SIGKILL);
                }
                _ => {}
            }
        } else {
            self.finish_output(now);
        }
        if self.stop.as_ref().is_some_and(|stop| now >= stop.until + DEADLINE_SLACK) {
            self.workers.kill_all();
            self.signal_app(SIGKILL);
            self.exit = Some(self.app_code());
        }
    }

    /// After the app's exit: waits for its pipes to end, but not forever, and then notifies the worker.
    pub(crate) fn finish_output(&mut self, now: Instant) {
        let Some(stop) = &mut self.stop else { return };
        if stop.exit_sent {
            return;
        }
        // An external app gets its own signal from its platform; its last requests are served while it drains, and its last
        // lines are read if its exit can be detected.
        if self.app.state == State::External && self.app.ended.is_none() && now < stop.external_until {
            return;
        }
        // What the app wrote goes to Outrigger's output even if that has a slow reader; only a pipe that another process holds
        // open, and in which no bytes move, is abandoned.
        let has_waiting_bytes = self.streams.iter().flatten().any(|stream| stream.blocked_output().is_some());
        if has_waiting_bytes {
            stop.linger_until = None;
        }
        let linger_until = *stop.linger_until.get_or_insert(now + PIPE_LINGER);
        let open = self.streams.iter().flatten().any(|stream| stream.pipe().is_some());
        if open && (now < linger_until || has_waiting_bytes) && now < stop.until {
            return;
        }
        stop.exit_sent = true;
        self.streams.iter_mut().flatten().for_each(Stream::finish);
        self.rings.0.close();
        self.rings.1.close();
        self.wake_worker();
        self.workers.send_to_active(self.app.ended.map_or(ToWorker::ExternalAppOver, ToWorker::AppEnded));
        self.exit_when_done();
    }

    /// The end of a stop: the worker has delivered or persisted everything, and so has the worker that it replaced.
    pub(crate) fn exit_when_done(&mut self) {
        if self.stop.as_ref().is_some_and(|stop| stop.exit_sent) && self.workers.is_done() {
            self.exit = Some(self.app_code());
        }
    }

    pub(crate) fn app_code(&self) -> i32 {
        self.plan.as_ref().map_or(0, |plan| self.app.code(plan))
    }

    pub(crate) fn app_deadline(&self) -> Option<Instant> {
        let stop = self.stop.as_ref();
        let runs = self.app.pid().is_some();
        let of_app = match self.app.state {
            State::Waiting => self.gate_until,
            State::Backoff { until } => Some(until),
            State::External => stop.filter(|stop| !stop.exit_sent).map(|stop| stop.external_until),
            _ => None,
        };
        [
            of_app,
            stop.map(|stop| stop.until + DEADLINE_SLACK),
            stop.filter(|stop| runs && stop.kill_at.is_none()).map(|stop| stop.drain_until),
            stop.filter(|_| runs).and_then(|stop| stop.kill_at),
            stop.filter(|stop| !stop.exit_sent).and_then(|stop| stop.linger_until),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
