//! A worker is due, ready, or has exited.

use crate::app::State;
use crate::message::{EXIT_ERROR, EXIT_HANDED_OVER, EXIT_NOT_EXECUTED, PACKET_MAX, ToSupervisor, ToWorker, millis};
use crate::plan::{READY_MOST, RESTART_CALM, RESTART_FIRST};
use crate::reexec;
use crate::restarts::RestartReason;
use crate::signals::SIGKILL;
use crate::state::Supervisor;
use crate::worker::{Crash, Started, Worker, WorkerEnds};
use crate::workers::{Replacement, WORKER_SLOTS, WorkerSlot};
use rustix::process::WaitStatus;
use std::time::{Duration, Instant};

/// Codes above this are those of workers that a signal killed.
const SIGNALLED: i32 = 128;

/// Workers that may be killed before one of them has read the configuration.
const FIRST_TRIES: u32 = 3;

impl Supervisor {
    /// Starts the worker that is due, if any. Returns, in the child, its ends.
    pub(crate) fn start_worker(&mut self, now: Instant) -> Option<WorkerEnds> {
        let may_exec = self.workers.successor.is_some() && self.workers.at_rest() && reexec::is_possible(self);
        if let Some(binary) = if may_exec { self.workers.successor.take() } else { None } {
            // Returns only if that failed; then the old program keeps running.
            reexec::become_binary(self, &binary);
        }
        let (slot, binary, reason) = if self.workers.restart_at.is_some_and(|at| at <= now) {
            (WorkerSlot::Active, None, self.workers.crash.map(|crash| crash.reason()))
        } else if self.stop.is_none() && self.workers.may_replace() {
            let (replacement, _) = self.workers.replacement.take_if(|(_, at)| *at <= now)?;
            match replacement {
                Replacement::Replace(reason) => (WorkerSlot::Starting, None, Some(reason)),
                Replacement::Upgrade(binary) => (WorkerSlot::Starting, Some(binary), Some(RestartReason::Upgrade)),
            }
        } else {
            return None;
        };
        self.workers.starting = Some((slot, binary.clone(), reason));
        match Worker::fork(self.workers.generation, slot == WorkerSlot::Starting, now) {
            Ok(Started::Child(ends)) => return Some(ends),
            Ok(Started::Parent(worker)) => {
                self.workers.generation += 1;
                self.workers.put(slot, Worker { binary, replaces: reason, ..worker });
                if slot == WorkerSlot::Starting {
                    self.systemd.reloading();
                }
                if slot == WorkerSlot::Active {
                    self.workers.restarts = self.workers.restarts();
                    (self.workers.restart_at, self.workers.crash) = (None, None);
                    self.catch_up(now);
                }
            }
            // Out of processes or descriptors: the app keeps running, and the fork is retried.
            Err(_) if slot == WorkerSlot::Active => self.workers.schedule_restart(now),
            Err(_) => {
                let cause = reason.unwrap_or(RestartReason::Reload);
                let reason = b"out of processes or file descriptors";
                self.workers.send_to_active(ToWorker::KeepServing { cause, reason });
            }
        }
        None
    }

    /// Sends the active worker what happened before its start.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        // A final exit is sent by `finish_output`, also to a new worker.
        if let Some(ended) = self.app.ended.filter(|ended| ended.restarts) {
            if !self.app.exit_acknowledged {
                self.workers.send_to_active(ToWorker::AppEnded(ended));
            }
            self.workers.send_to_active(ToWorker::LastExit { ended, restarts: self.app.restarts });
        }
        if let Some(pid) = self.app.pid() {
            self.workers.send_to_active(ToWorker::AppStarted { pid, earlier: true });
        }
        if let Some(stop) = &mut self.stop {
            let left_ms = millis(stop.until.saturating_duration_since(now));
            self.workers.send_to_active(ToWorker::Stop { left_ms, cause: stop.cause });
            stop.exit_sent = false;
        }
    }

    pub(crate) fn worker_ready(&mut self, slot: WorkerSlot, now: Instant) {
        if slot == WorkerSlot::Starting && self.stop.is_some() {
            // It was already killed, and this notification is from before that.
            return;
        }
        let drain = self.plan.as_ref().map_or(Duration::ZERO, |plan| plan.drain);
        let Some(worker) = self.workers.at_mut(slot) else { return };
        worker.ready = true;
        if slot == WorkerSlot::Starting {
            let Some(mut next) = self.workers.take(WorkerSlot::Starting) else { return };
            self.commit_plan();
            next.until = None;
            let cause = next.replaces;
            self.workers.restarts = cause.map_or(self.workers.restarts, |cause| self.workers.restarts.with(cause));
            self.workers.successor = next.binary.take();
            let previous = self.workers.take(WorkerSlot::Active);
            self.workers.put(WorkerSlot::Active, next);
            match previous {
                Some(mut old) => {
                    old.begin_handover(cause.unwrap_or(RestartReason::Reload), drain, now);
                    self.workers.put(WorkerSlot::Draining, old);
                }
                None => self.workers.send_to_active(ToWorker::Acquire),
            }
            self.workers.restart_at = None;
            self.catch_up(now);
        }
        self.notify_systemd_ready();
    }

    /// A process other than the app has exited: a worker, or an orphan that the supervisor reaps.
    pub(crate) fn worker_ended(&mut self, pid: i32, status: WaitStatus) {
        let is_here = |slot: &WorkerSlot| self.workers.at(*slot).is_some_and(|worker| worker.pid == pid);
        let found = WORKER_SLOTS.into_iter().find(is_here);
        let now = Instant::now();
        let oom_file = self.plan.as_ref().and_then(|plan| plan.oom_file.as_deref());
        // An orphan may have been the victim of a kill as well.
        let out_of_memory = status.terminating_signal() == Some(SIGKILL) && self.app.kills.is_victim(oom_file, now);
        let Some(slot) = found else { return };
        let Some(mut worker) = self.workers.take(slot) else { return };
        let mut packet = [0u8; PACKET_MAX];
        let mut reported = worker.reason.take();
        // If it did not read all messages, its own last messages follow an error (ECONNRESET).
        for _ in 0..2 {
            while let Some(bytes) = worker.recv(&mut packet) {
                match ToSupervisor::decode(bytes) {
                    Some(ToSupervisor::ExitAcknowledged) => self.app.exit_acknowledged = true,
                    Some(ToSupervisor::CannotStart { reason }) => reported = Some(reason.to_vec()),
                    _ => {}
                }
            }
        }
        let out_of_memory = out_of_memory && !worker.hung;
        let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1);
        match slot {
            WorkerSlot::Draining => {
                if worker.owns_state {
                    self.workers.send_to_active(ToWorker::Acquire);
                }
            }
            WorkerSlot::Starting => {
                self.next_plan = None;
                let not_executed = (code > EXIT_NOT_EXECUTED).then(|| {
                    let error = std::io::Error::from_raw_os_error(code - EXIT_NOT_EXECUTED);
                    let binary = String::from_utf8_lossy(worker.binary.as_deref().unwrap_or_default());
                    format!("cannot execute {binary}: {error}")
                });
                let ended = match status.terminating_signal() {
                    Some(signal) => format!("new worker was killed by signal {signal} before it was ready"),
                    None => format!("new worker exited with code {code} before it was ready"),
                };
                let reason: &[u8] = match code {
                    EXIT_ERROR if let Some(reported) = &reported => reported,
                    _ if let Some(reason) = &not_executed => reason.as_bytes(),
                    EXIT_ERROR => b"new worker exited with a configuration error (see the log)",
                    _ if now.saturating_duration_since(worker.started) >= READY_MOST => {
                        b"new worker was not ready within 20 s and was killed"
                    }
                    _ => ended.as_bytes(),
                };
                let cause = worker.replaces.unwrap_or(RestartReason::Reload);
                self.workers.send_to_active(ToWorker::KeepServing { cause, reason });
                self.notify_systemd_ready();
                if self.workers.at(WorkerSlot::Active).is_none() && !self.workers.done {
                    self.workers.restart_at = Some(now);
                }
            }
            WorkerSlot::Active => self.current_ended(&worker, Crash { code, hung: worker.hung, out_of_memory }, now),
        }
        self.exit_when_done();
    }

    pub(crate) fn current_ended(&mut self, worker: &Worker, crash: Crash, now: Instant) {
        let code = crash.code;
        // Before there is a plan a worker exits because of the command line or the configuration, and has reported that.
        // One that was killed, as by the OOM killer, has reported nothing, and another may succeed.
        let first = matches!(self.app.state, State::Waiting | State::External) && worker.generation == 0;
        let reported = code <= SIGNALLED || worker.generation >= FIRST_TRIES;
        if (self.plan.is_none() && reported) || (first && code == EXIT_ERROR) {
            self.exit = Some(code);
            return;
        }
        // A worker that exits with 0 during a stop has delivered or persisted everything; one that cannot start never will.
        if self.stop.is_some() && (code == 0 || (code == EXIT_ERROR && !worker.ready)) {
            self.workers.done = true;
            return;
        }
        if code != EXIT_HANDED_OVER {
            // The supervisor does not exec a binary whose worker crashes immediately.
            self.workers.successor = None;
            self.workers.crash = Some(crash);
        }
        if worker.ready && now.saturating_duration_since(worker.started) >= RESTART_CALM {
            self.workers.wait = RESTART_FIRST;
        }
        match self.workers.at(WorkerSlot::Starting) {
            // One that is not ready yet may never be, and no worker serves until then: after its exit another starts immediately.
            Some(next) => next.kill(),
            None => self.workers.schedule_restart(now),
        }
    }

    /// Outrigger serves if a worker is ready and the app, if there is one to start, has been started.
    pub(crate) fn notify_systemd_ready(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let served = self.workers.at(WorkerSlot::Active).is_some_and(|worker| worker.ready);
        if served && self.app.state != State::Waiting {
            self.systemd.ready();
            if !std::mem::replace(&mut self.settled, true) {
                sys::memory::release_startup_pages();
            }
        }
    }
}
