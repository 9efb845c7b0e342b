//! The order of a stop: the worker is notified, inbound drains, the app gets its signal, after its grace period SIGKILL; its pipes are
//! read to their end, the worker delivers, and the supervisor exits with the app's code. One deadline limits all of it.

use crate::app::State;
use crate::capture::Stream;
use crate::message::{Ended, ToWorker, millis};
use crate::plan::PIPE_LINGER;
use crate::signals::{SIGKILL, SIGTERM};
use crate::state::{Stop, Supervisor};
use std::time::{Duration, Instant};

/// The worker keeps the deadline itself; this much later it is ended.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);

/// What writing down takes after a second signal.
const KEEP: Duration = Duration::from_secs(1);

/// What is left of the deadline for delivering, after an app elsewhere was waited for.
const DELIVERY: Duration = Duration::from_secs(1);

/// A group that is being killed is signalled again, for children that were forked meanwhile.
const KILL_AGAIN: Duration = Duration::from_millis(200);

impl Supervisor {
    /// SIGTERM or SIGINT came, which is this signal to the app.
    pub(crate) fn stop_signalled(&mut self, rewritten: i32, now: Instant) {
        let configured = self.plan.as_ref().map_or(SIGTERM, |plan| plan.stop_signal);
        match &mut self.stop {
            None => {
                // Whoever presses Ctrl-C or rewrites a signal means that one; SIGTERM means the configured one.
                let signal = if rewritten == SIGTERM { configured } else { rewritten };
                self.begin_stop(signal, None, now);
            }
            // A second one is impatience: no more draining, and no more grace.
            Some(stop) => {
                (stop.drain_until, stop.elsewhere_until) = (now, now);
                stop.kill_at = stop.kill_at.map(|_| now);
                // Nor is anybody waited for once the app has ended: what is not delivered is kept.
                if self.app.pid().is_none() && (self.app.has_ended() || self.app.state == State::Elsewhere) {
                    stop.until = stop.until.min(now + KEEP);
                    stop.linger_until = stop.linger_until.map(|_| now);
                    self.workers.send_to_active(ToWorker::Stop { left_ms: millis(KEEP), app_ended: true });
                }
            }
        }
    }

    /// A request to stop, by its own time where it gives one.
    pub(crate) fn stop_requested(&mut self, within_ms: u64, now: Instant) {
        let within = (within_ms > 0).then(|| Duration::from_millis(within_ms));
        match (&mut self.stop, within) {
            (None, _) => {
                let signal = self.plan.as_ref().map_or(SIGTERM, |plan| plan.stop_signal);
                self.begin_stop(signal, within, now);
            }
            (Some(stop), Some(within)) => {
                stop.until = stop.until.min(now + within);
                stop.drain_until = stop.drain_until.min(now + within / 3);
                stop.elsewhere_until = stop.elsewhere_until.min(stop.until);
                stop.kill_at = stop.kill_at.map(|at| at.min(stop.until));
                let left_ms = millis(stop.until.saturating_duration_since(now));
                self.workers.send_to_active(ToWorker::Stop { left_ms, app_ended: false });
            }
            (Some(_), None) => {}
        }
    }

    pub(crate) fn begin_stop(&mut self, signal: i32, within: Option<Duration>, now: Instant) {
        let Some(plan) = &self.plan else {
            // Nobody has read the configuration yet: there is nothing to stop in order.
            self.exit = Some(128 + signal);
            return self.workers.kill_all();
        };
        let deadline = within.unwrap_or(plan.deadline);
        let until = now + deadline;
        // Little time is shared between the requests and the app.
        let drain = if within.is_some() { plan.drain.min(deadline / 3) } else { plan.drain.min(deadline) };
        let wait = if plan.awaits_end { drain + plan.grace } else { drain };
        let elsewhere_until = (now + wait).min(until.checked_sub(DELIVERY).unwrap_or(now));
        self.stop = Some(Stop {
            until,
            elsewhere_until,
            drain_until: now + drain,
            signal,
            kill_at: None,
            linger_until: None,
            told_end: false,
        });
        self.app.cancel();
        self.manager.stopping();
        let app_ended = self.app.has_ended();
        self.workers.stop(ToWorker::Stop { left_ms: millis(deadline), app_ended });
    }

    /// What the clock says about the app.
    pub(crate) fn tick_app(&mut self, now: Instant) {
        match self.app.state {
            State::Waiting if self.gate_until.is_some_and(|until| now >= until) => self.gate_over(now),
            State::Paused { until } if now >= until => self.start_app(now),
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
                    self.app.kills.tick(plan.oom_file.as_deref(), now);
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

    /// After the app's end: waits for its pipes to end, but not for ever, and then tells the worker.
    pub(crate) fn finish_output(&mut self, now: Instant) {
        let Some(stop) = &mut self.stop else { return };
        if stop.told_end {
            return;
        }
        // An app beside us gets its own signal from whoever runs it; its last requests are served while it drains, and its last
        // lines are read where its end can be seen.
        if self.app.state == State::Elsewhere && self.app.ended.is_none() && now < stop.elsewhere_until {
            return;
        }
        // What the app wrote goes to our output even where that has a slow reader; only a pipe that somebody else holds open,
        // and in which nothing moves, is given up.
        let moving = self.streams.iter().flatten().any(|stream| stream.blocked_output().is_some());
        if moving {
            stop.linger_until = None;
        }
        let linger_until = *stop.linger_until.get_or_insert(now + PIPE_LINGER);
        let open = self.streams.iter().flatten().any(|stream| stream.pipe().is_some());
        if open && (now < linger_until || moving) && now < stop.until {
            return;
        }
        stop.told_end = true;
        self.streams.iter_mut().flatten().for_each(Stream::finish);
        self.rings.0.close();
        self.rings.1.close();
        self.wake_worker();
        self.workers.send_to_active(ToWorker::AppEnded(self.app.ended.unwrap_or(Ended::with_code(0))));
        self.exit_when_done();
    }

    /// The end of a stop: the worker has delivered or kept everything, and so has one that it replaced.
    pub(crate) fn exit_when_done(&mut self) {
        if self.stop.as_ref().is_some_and(|stop| stop.told_end) && self.workers.is_done() {
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
            State::Paused { until } => Some(until),
            State::Elsewhere => stop.filter(|stop| !stop.told_end).map(|stop| stop.elsewhere_until),
            _ => None,
        };
        [
            of_app,
            stop.map(|stop| stop.until + DEADLINE_SLACK),
            stop.filter(|stop| runs && stop.kill_at.is_none()).map(|stop| stop.drain_until),
            stop.filter(|_| runs).and_then(|stop| stop.kill_at),
            stop.filter(|stop| !stop.told_end).and_then(|stop| stop.linger_until),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
