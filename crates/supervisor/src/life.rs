//! The app's life as the supervisor leads it: start after the gates, restart, and the order of a stop: tell the worker → inbound
//! drains → signal → grace → kill → read the pipes to their end → the worker delivers → exit with the app's code, all by one
//! deadline. In: what has happened, and the clock. Out: signals, messages, the exit code.

use crate::app::{AppEnds, State};
use crate::capture::Stream;
use crate::message::{Ended, ToWorker};
use crate::plan::{PIPE_LINGER, Plan};
use crate::run::{EXIT_MISTAKE, SIGKILL, SIGTERM, Supervisor, millis};
use crate::terminal::Terminal;
use rustix::process::WaitStatus;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};
use sys::process::ChildSetup;

/// A stop under way.
pub(crate) struct Stop {
    pub until: Instant,
    pub drain_until: Instant,
    /// How long an app that runs elsewhere is waited for.
    pub elsewhere_until: Instant,
    /// The signal that the app gets.
    signal: i32,
    kill_at: Option<Instant>,
    linger_until: Option<Instant>,
    pub told_end: bool,
}

/// The worker keeps the deadline itself; this much later it is ended.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);

/// What writing down takes after a second signal.
const KEEP: Duration = Duration::from_secs(1);

/// What is left of the deadline for delivering, after an app elsewhere was waited for.
const DELIVERY: Duration = Duration::from_secs(1);

/// A group that is being killed is signalled again, for children that were forked meanwhile.
const KILL_AGAIN: Duration = Duration::from_millis(200);

impl Supervisor {
    /// Prepares what the app writes to, once it is known whether that is captured.
    pub(crate) fn begin_output(&mut self, plan: &Plan, pty: bool, streams: bool) {
        if plan.app.is_none() {
            return;
        }
        if let Ok(terminal) = Terminal::new(pty) {
            self.terminal = terminal;
        }
        let sized = |ring: &sys::ring::Ring| plan.capture_bytes.and_then(|capacity| ring.sized(capacity).ok());
        if streams || pty {
            let [stdout, stderr] = [rustix::stdio::stdout(), rustix::stdio::stderr()];
            self.streams = Some([Stream::new(stdout, sized(&self.rings.0)), Stream::new(stderr, sized(&self.rings.1))]);
        }
    }

    pub(crate) fn start_app(&mut self, now: Instant) {
        let (Some(plan), Some(exec)) = (&self.plan, &self.exec) else { return };
        if !matches!(self.app.state, State::Waiting | State::Paused { .. }) || self.stop.is_some() {
            return;
        }
        let user = plan.app.as_ref().and_then(|app| app.user.as_ref());
        let mut ends = AppEnds::default();
        let theirs = self.terminal.pty_ref().and_then(|pty| pty.theirs(user).ok());
        if let (Some(pty), Some([output, _])) = (self.terminal.pty_ref(), &mut self.streams) {
            let copy = || theirs.as_ref().and_then(|fd| fd.try_clone().ok());
            ends = AppEnds { stdin: copy(), stdout: copy(), stderr: copy() };
            if let Ok(source) = pty.output() {
                let _ = output.read_from(source);
            }
        } else if let Some([stdout, stderr]) = &mut self.streams {
            // Without a pipe to be had the app writes to our own output, and lives.
            ends = AppEnds { stdin: None, stdout: stdout.attach(user).ok(), stderr: stderr.attach(user).ok() };
        }
        let setup = ChildSetup {
            stdin: ends.stdin.as_ref().map(|fd| fd.as_fd()),
            stdout: ends.stdout.as_ref().map(|fd| fd.as_fd()),
            stderr: ends.stderr.as_ref().map(|fd| fd.as_fd()),
            session: self.terminal.session(plan.group, theirs.as_ref()),
            signals: &self.saved,
        };
        self.app.start(plan, exec, &setup, now);
        match self.app.pid() {
            Some(pid) => self.workers.send_to_active(ToWorker::AppStarted { pid }),
            None if matches!(self.app.state, State::Paused { .. }) => {
                self.app.ended.into_iter().for_each(|ended| self.workers.send_to_active(ToWorker::AppEnded(ended)));
            }
            None => self.begin_stop(SIGTERM, None, now),
        }
        self.notify_systemd_ready();
    }

    pub(crate) fn app_ended(&mut self, status: WaitStatus, now: Instant) {
        let Some(plan) = &self.plan else { return };
        if plan.group {
            // What the app leaves behind in its group learns that it is over, as it would under an init. The app itself is reaped,
            // so that its number alone may be somebody else's already.
            if let Some(pid) = self.app.pid() {
                let _ = sys::process::kill(pid, SIGTERM, true);
            }
        }
        let pid = self.app.pid();
        if self.stop.is_none() {
            self.log_orphans(pid);
        }
        let ended = self.app.reaped(status, plan, self.stop.is_some(), now);
        self.terminal.take_back(pid);
        if ended.restarts {
            self.workers.send_to_active(ToWorker::AppEnded(ended));
        } else if self.stop.is_none() {
            self.begin_stop(SIGTERM, None, now);
        }
    }

    /// Processes of the app that have left its group, as of one that goes to the background: they live on without us.
    fn log_orphans(&self, app: Option<i32>) {
        let workers: Vec<i32> = crate::workers::WORKER_SLOTS
            .iter()
            .filter_map(|place| self.workers.at(*place))
            .map(|worker| worker.pid)
            .collect();
        let left = sys::process::children();
        let left = left.iter().filter(|(pid, _)| Some(*pid) != app && !workers.contains(pid));
        let names: Vec<String> = left.map(|(pid, name)| format!("{name} ({pid})")).collect();
        if !names.is_empty() {
            eprintln!(
                "outrigger: app exited but left processes running: {}; daemonizing apps are not supported: start it in the foreground",
                names.join(", ")
            );
        }
    }

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

    /// The app in the other container has ended.
    pub(crate) fn app_exited(&mut self, code: i32, now: Instant) {
        if self.app.state == State::Elsewhere {
            self.app.ended.get_or_insert(Ended::with_code(code));
            self.stop_requested(0, now);
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

    fn gate_over(&mut self, now: Instant) {
        if self.plan.as_ref().is_some_and(|plan| plan.gate_fails) {
            let text = b"outrigger: app not started: start gates did not open within app.start.timeout\n";
            let _ = rustix::io::write(rustix::stdio::stderr(), text);
            self.app.cancel();
            self.app.ended = Some(Ended::with_code(EXIT_MISTAKE));
            return self.begin_stop(SIGTERM, None, now);
        }
        self.start_app(now);
    }

    /// After the app's end: waits for its pipes to end, but not for ever, and then tells the worker.
    fn finish_output(&mut self, now: Instant) {
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

    pub(crate) fn app_moment(&self) -> Option<Instant> {
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
