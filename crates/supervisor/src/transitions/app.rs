//! The app starts, exits and restarts.

use crate::app::{AppEnds, State};
use crate::capture::Stream;
use crate::message::{EXIT_ERROR, Ended, ToWorker};
use crate::plan::Plan;
use crate::signals::SIGTERM;
use crate::state::Supervisor;
use crate::terminal::Terminal;
use crate::workers::WORKER_SLOTS;
use rustix::process::WaitStatus;
use std::os::fd::AsFd as _;
use std::time::Instant;
use sys::process::ChildSetup;

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
    pub(crate) fn log_orphans(&self, app: Option<i32>) {
        let workers: Vec<i32> =
            WORKER_SLOTS.iter().filter_map(|place| self.workers.at(*place)).map(|worker| worker.pid).collect();
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

    /// The app in the other container has ended.
    pub(crate) fn app_exited(&mut self, code: i32, now: Instant) {
        if self.app.state == State::Elsewhere {
            self.app.ended.get_or_insert(Ended::with_code(code));
            self.stop_requested(0, now);
        }
    }

    pub(crate) fn gate_over(&mut self, now: Instant) {
        if self.plan.as_ref().is_some_and(|plan| plan.gate_fails) {
            let text = b"outrigger: app not started: start gates did not open within app.start.timeout\n";
            let _ = rustix::io::write(rustix::stdio::stderr(), text);
            self.app.cancel();
            self.app.ended = Some(Ended::with_code(EXIT_ERROR));
            return self.begin_stop(SIGTERM, None, now);
        }
        self.start_app(now);
    }
}
