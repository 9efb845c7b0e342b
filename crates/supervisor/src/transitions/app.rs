//! The app starts, exits and restarts.

use crate::app::{AppEnds, State};
use crate::capture::Stream;
use crate::message::{EXIT_ERROR, Ended, StopCause, ToWorker};
use crate::plan::Plan;
use crate::signals::SIGTERM;
use crate::state::Supervisor;
use crate::terminal::Terminal;
use crate::workers::{WORKER_SLOTS, WorkerSlot};
use rustix::process::WaitStatus;
use std::os::fd::AsFd as _;
use std::time::Instant;
use sys::process::ChildSetup;

impl Supervisor {
    /// Prepares the app's outputs, once it is known whether they are captured.
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
        if !matches!(self.app.state, State::Waiting | State::Backoff { .. }) || self.stop.is_some() {
            return;
        }
        let user = plan.app.as_ref().and_then(|app| app.user.as_ref());
        let mut ends = AppEnds::default();
        let app_side = self.terminal.pty_ref().and_then(|pty| pty.open_app_side(user).ok());
        if let (Some(pty), Some([output, _])) = (self.terminal.pty_ref(), &mut self.streams) {
            let copy = || app_side.as_ref().and_then(|fd| fd.try_clone().ok());
            ends = AppEnds { stdin: copy(), stdout: copy(), stderr: copy() };
            if let Ok(source) = pty.output() {
                let _ = output.read_from(source);
            }
        } else if let Some([stdout, stderr]) = &mut self.streams {
            // If no pipe can be created, the app writes to Outrigger's own output and keeps running.
            ends = AppEnds { stdin: None, stdout: stdout.attach(user).ok(), stderr: stderr.attach(user).ok() };
        }
        let setup = ChildSetup {
            stdin: ends.stdin.as_ref().map(|fd| fd.as_fd()),
            stdout: ends.stdout.as_ref().map(|fd| fd.as_fd()),
            stderr: ends.stderr.as_ref().map(|fd| fd.as_fd()),
            session: self.terminal.session(plan.group, app_side.as_ref()),
            signals: &self.saved,
        };
        if let Err(reason) = self.app.start(plan, exec, &setup, now) {
            // As an init or a shell writes it; the worker logs it with the exit.
            eprintln!("outrigger: {reason}");
            self.workers.send_to_active(ToWorker::AppNotStarted { reason: reason.as_bytes() });
        }
        match self.app.pid() {
            Some(pid) => self.workers.send_to_active(ToWorker::AppStarted { pid, earlier: false }),
            None if matches!(self.app.state, State::Backoff { .. }) => {
                self.app.ended.into_iter().for_each(|ended| self.workers.send_to_active(ToWorker::AppEnded(ended)));
            }
            None => self.begin_stop(SIGTERM, None, StopCause::AppExit, now),
        }
        self.notify_systemd_ready();
    }

    pub(crate) fn app_reaped(&mut self, status: WaitStatus, now: Instant) {
        let Some(plan) = &self.plan else { return };
        if plan.group {
            // Orphans in the app's group get SIGTERM, as they would under an init. The app itself is reaped, so that its pid,
            // without the group, may already belong to another process.
            if let Some(pid) = self.app.pid() {
                let _ = sys::process::kill(pid, SIGTERM, true);
            }
        }
        let pid = self.app.pid();
        if self.stop.is_none() {
            self.log_orphans(pid);
        }
        let ended = self.app.reaped(status, plan, self.stop.is_some(), now);
        self.terminal.take_foreground(pid);
        if ended.restarts {
            self.workers.send_to_active(ToWorker::AppEnded(ended));
        } else if self.stop.is_none() {
            self.begin_stop(SIGTERM, None, StopCause::AppExit, now);
        }
    }

    /// Processes of the app that have left its group, as a daemon does: they keep running without Outrigger.
    pub(crate) fn log_orphans(&self, app: Option<i32>) {
        let workers: Vec<i32> =
            WORKER_SLOTS.iter().filter_map(|slot| self.workers.at(*slot)).map(|worker| worker.pid).collect();
        let children = sys::process::children();
        let orphans = children.iter().filter(|(pid, _)| Some(*pid) != app && !workers.contains(pid));
        let names: Vec<String> = orphans.map(|(pid, name)| format!("{name} ({pid})")).collect();
        if !names.is_empty() {
            eprintln!(
                "outrigger: app exited but left processes running: {}; daemonizing apps are not supported: start it in the foreground",
                names.join(", ")
            );
        }
    }

    /// The app in the other container has exited.
    pub(crate) fn external_app_exited(&mut self, code: i32, now: Instant) {
        if self.app.state == State::External {
            self.app.ended.get_or_insert(Ended::with_code(code));
            self.stop_requested(0, StopCause::AppExit, now);
        }
    }

    pub(crate) fn gate_over(&mut self, now: Instant) {
        if self.plan.as_ref().is_some_and(|plan| plan.gate_fails) {
            // A serving worker logs which gates are closed.
            if self.workers.at(WorkerSlot::Active).is_none() {
                let text = b"outrigger: app not started: start gates did not open within app.start.timeout\n";
                let _ = rustix::io::write(rustix::stdio::stderr(), text);
            }
            self.app.cancel();
            self.app.ended = Some(Ended { not_started: true, ..Ended::with_code(EXIT_ERROR) });
            return self.begin_stop(SIGTERM, None, StopCause::StartTimeout, now);
        }
        self.start_app(now);
    }
}
