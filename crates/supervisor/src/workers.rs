//! The workers: one that serves, perhaps one that is to replace it, perhaps one that was replaced and drains. In: wishes for another
//! worker, notices that one is ready, ends. Out: forks, and messages about who owns the rings and the state. Bound: one worker in
//! each place; a failed one is started again after a pause that doubles up to `RESTART_MOST`.

use crate::app::State;
use crate::message::{PACKET_MAX, ToSupervisor, ToWorker};
use crate::plan::{RESTART_CALM, RESTART_FIRST, RESTART_MOST};
use crate::restarts::{RestartReason, Restarts};
use crate::run::{EXIT_MISTAKE, EXIT_NOT_EXECUTED, EXIT_YIELDED, SIGKILL, Supervisor, millis};
use crate::worker::{Crash, Started, Worker, WorkerEnds};
use rustix::process::WaitStatus;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerSlot {
    /// Serves.
    Active,
    /// Is to replace it, and is not ready yet.
    Starting,
    /// Was replaced, and drains.
    Draining,
}

pub(crate) const WORKER_SLOTS: [WorkerSlot; 3] = [WorkerSlot::Active, WorkerSlot::Starting, WorkerSlot::Draining];

/// Why another worker is wanted in the place of one that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Replacement {
    Replace(RestartReason),
    Upgrade(Vec<u8>),
}

pub(crate) struct Workers {
    slots: [Option<Worker>; WORKER_SLOTS.len()],
    /// The number of the next worker.
    generation: u32,
    wait: Duration,
    restart_at: Option<Instant>,
    replacement: Option<(Replacement, Instant)>,
    broken_at: Option<Instant>,
    crash: Option<Crash>,
    /// Replacements so far.
    pub restarts: Restarts,
    /// What the worker that is being forked at this moment is: its place, and its binary where that is another.
    starting: Option<(WorkerSlot, Option<Vec<u8>>, Option<RestartReason>)>,
    /// The binary that this process is to become, once the worker from the one before has left.
    successor: Option<Vec<u8>>,
    /// The worker has done everything that a stop wants.
    done: bool,
    /// No other worker is wanted any more.
    stopping: bool,
}

impl Workers {
    pub fn new(now: Instant) -> Workers {
        Workers {
            slots: [const { None }; WORKER_SLOTS.len()],
            generation: 0,
            wait: RESTART_FIRST,
            restart_at: Some(now),
            replacement: None,
            broken_at: None,
            crash: None,
            restarts: Restarts::default(),
            starting: None,
            successor: None,
            done: false,
            stopping: false,
        }
    }

    /// With the worker that served under the program before this one.
    pub fn resumed(current: Worker, restarts: Restarts) -> Workers {
        let generation = current.generation + 1;
        let slots = [Some(current), None, None];
        Workers { slots, generation, restarts, restart_at: None, ..Workers::new(Instant::now()) }
    }

    pub fn at(&self, place: WorkerSlot) -> Option<&Worker> {
        self.slots.get(place as usize).and_then(Option::as_ref)
    }

    pub fn at_mut(&mut self, place: WorkerSlot) -> Option<&mut Worker> {
        self.slots.get_mut(place as usize).and_then(Option::as_mut)
    }

    fn take(&mut self, place: WorkerSlot) -> Option<Worker> {
        self.slots.get_mut(place as usize).and_then(Option::take)
    }

    fn put(&mut self, place: WorkerSlot, worker: Worker) {
        if let Some(slot) = self.slots.get_mut(place as usize) {
            *slot = Some(worker);
        }
    }

    pub fn send_to_active(&self, message: ToWorker<'_>) {
        if let Some(worker) = self.at(WorkerSlot::Active) {
            worker.send(message);
        }
    }

    pub fn kill_all(&self) {
        self.slots.iter().flatten().for_each(Worker::kill);
    }

    /// The stop order is for the worker that serves; one that is not ready yet will not be needed.
    pub fn stop(&mut self, message: ToWorker<'_>) {
        (self.replacement, self.stopping) = (None, true);
        if let Some(next) = self.at(WorkerSlot::Starting) {
            next.kill();
        }
        self.send_to_active(message);
    }

    pub fn want_reload(&mut self, now: Instant) {
        self.want(RestartReason::Reload, now);
    }

    fn want(&mut self, reason: RestartReason, at: Instant) {
        if self.replacement.is_none() && !self.stopping {
            self.replacement = Some((Replacement::Replace(reason), at));
        }
    }

    /// One that says that something of its own is broken is replaced as often as one that crash, and no more.
    pub fn want_replaced(&mut self, reason: RestartReason, now: Instant) {
        if !reason.is_fault() {
            return self.want(reason, now);
        }
        if self.broken_at.is_some_and(|at| now.saturating_duration_since(at) > BROKEN_CALM) {
            self.wait = RESTART_FIRST;
        }
        self.broken_at = Some(now);
        let at = now + self.wait;
        self.wait = (self.wait * 2).min(RESTART_MOST);
        self.want(reason, at);
    }

    /// Answers whether there will be one: a signal that comes while another worker is taking over asks for nothing more.
    pub fn want_upgrade(&mut self, binary: Vec<u8>, now: Instant) -> bool {
        let busy = self.at(WorkerSlot::Starting).is_some()
            || self.at(WorkerSlot::Draining).is_some()
            || matches!(self.replacement, Some((Replacement::Upgrade(_), _)))
            || self.stopping;
        if !busy {
            self.replacement = Some((Replacement::Upgrade(binary), now));
        }
        !busy
    }

    /// The worker that was replaced has let go of the rings and the state.
    pub fn released(&mut self, place: WorkerSlot) {
        if let Some(worker) = self.at_mut(place).filter(|worker| worker.holds_on) {
            worker.holds_on = false;
            self.send_to_active(ToWorker::Acquire);
        }
    }

    /// Ends whoever is late or hangs.
    pub fn tick(&mut self, now: Instant) {
        for worker in self.slots.iter_mut().flatten() {
            worker.check_watchdog(now);
            if worker.until.is_some_and(|until| now >= until) {
                worker.until = None;
                worker.kill();
            }
        }
    }

    pub fn moment(&self) -> Option<Instant> {
        let replacement = self.replacement.as_ref().filter(|_| self.may_replace()).map(|(_, at)| *at);
        self.slots.iter().flatten().filter_map(|worker| worker.until).chain(self.restart_at).chain(replacement).min()
    }

    fn may_replace(&self) -> bool {
        self.at(WorkerSlot::Active).is_some_and(|worker| worker.ready)
            && self.at(WorkerSlot::Starting).is_none()
            && self.at(WorkerSlot::Draining).is_none()
    }

    /// The number of the worker that is being forked.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    pub fn starting_binary(&self) -> Option<Vec<u8>> {
        self.starting.as_ref().and_then(|(_, binary, _)| binary.clone())
    }

    /// Whether nobody before the worker that is being forked can still hold the rings and the state.
    pub fn is_alone(&self) -> bool {
        // One that has let go of them and drains will not tell so again.
        self.at(WorkerSlot::Active).is_none() && self.at(WorkerSlot::Draining).is_none_or(|old| !old.holds_on)
    }

    /// Whether the worker that is being forked is to replace one that serves.
    pub fn replaces(&self) -> bool {
        matches!(self.starting, Some((WorkerSlot::Starting, ..)))
    }

    pub fn crash(&self) -> Option<Crash> {
        self.crash
    }

    /// Replacements with that by the worker that is being forked.
    pub fn restarts(&self) -> Restarts {
        let reason = self.starting.as_ref().and_then(|(.., reason)| *reason);
        reason.map_or(self.restarts, |reason| self.restarts.with(reason))
    }
}

/// Codes above this are of workers that a signal ended.
const SIGNALLED: i32 = 128;

/// Workers that may be killed before one of them has read the configuration.
const FIRST_TRIES: u32 = 3;

/// A worker that ran this long before it broke is not of the row of those before.
const BROKEN_CALM: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Starts the worker that is due, if any. In the child: its ends.
    pub(crate) fn start_worker(&mut self, now: Instant) -> Option<WorkerEnds> {
        let becomes = self.workers.successor.is_some() && self.workers.at_rest() && crate::reexec::is_possible(self);
        if let Some(binary) = if becomes { self.workers.successor.take() } else { None } {
            // Returns only where it could not; then the old program goes on.
            crate::reexec::become_binary(self, &binary);
        }
        let (place, binary, reason) = if self.workers.restart_at.is_some_and(|at| at <= now) {
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
        self.workers.starting = Some((place, binary.clone(), reason));
        match Worker::fork(self.workers.generation, place == WorkerSlot::Starting, now) {
            Ok(Started::Child(ends)) => return Some(ends),
            Ok(Started::Parent(worker)) => {
                self.workers.generation += 1;
                self.workers.put(place, Worker { binary, replaces: reason, ..worker });
                if place == WorkerSlot::Starting {
                    self.manager.reloading();
                }
                if place == WorkerSlot::Active {
                    self.workers.restarts = self.workers.restarts();
                    (self.workers.restart_at, self.workers.crash) = (None, None);
                    self.catch_up(now);
                }
            }
            // Out of processes or descriptors: the app keeps running, and we try again.
            Err(_) if place == WorkerSlot::Active => self.workers.again_later(now),
            Err(_) => {
                self.workers.send_to_active(ToWorker::KeepServing { reason: b"out of processes or file descriptors" })
            }
        }
        None
    }

    /// Tells the worker that serves what has happened before it.
    fn catch_up(&mut self, now: Instant) {
        // An end that nothing followed yet is told when it is time, as to the worker that has seen it.
        if let Some(ended) = self.app.ended.filter(|ended| ended.restarts) {
            if !self.app.heard {
                self.workers.send_to_active(ToWorker::AppEnded(ended));
            }
            self.workers.send_to_active(ToWorker::LastExit { ended, restarts: self.app.restarts });
        }
        if let Some(pid) = self.app.pid() {
            self.workers.send_to_active(ToWorker::AppStarted { pid });
        }
        if let Some(stop) = &mut self.stop {
            self.workers.send_to_active(ToWorker::Stop {
                left_ms: millis(stop.until.saturating_duration_since(now)),
                app_ended: self.app.has_ended(),
            });
            stop.told_end = false;
        }
    }

    pub(crate) fn worker_ready(&mut self, place: WorkerSlot, now: Instant) {
        if place == WorkerSlot::Starting && self.stop.is_some() {
            // It was told to end, and its word is from before that.
            return;
        }
        let drain = self.plan.as_ref().map_or(Duration::ZERO, |plan| plan.drain);
        let Some(worker) = self.workers.at_mut(place) else { return };
        worker.ready = true;
        if place == WorkerSlot::Starting {
            let Some(mut next) = self.workers.take(WorkerSlot::Starting) else { return };
            self.commit_plan();
            next.until = None;
            self.workers.restarts =
                next.replaces.map_or(self.workers.restarts, |reason| self.workers.restarts.with(reason));
            self.workers.successor = next.binary.take();
            let before = self.workers.take(WorkerSlot::Active);
            self.workers.put(WorkerSlot::Active, next);
            match before {
                Some(mut old) => {
                    old.yield_to_next(drain, now);
                    self.workers.put(WorkerSlot::Draining, old);
                }
                None => self.workers.send_to_active(ToWorker::Acquire),
            }
            self.workers.restart_at = None;
            self.catch_up(now);
        }
        self.notify_systemd_ready();
    }

    /// A process has ended that is not the app: a worker, or an orphan that was ours to reap.
    pub(crate) fn worker_ended(&mut self, pid: i32, status: WaitStatus) {
        let is_here = |place: &WorkerSlot| self.workers.at(*place).is_some_and(|worker| worker.pid == pid);
        let found = WORKER_SLOTS.into_iter().find(is_here);
        let now = Instant::now();
        let oom_file = self.plan.as_ref().and_then(|plan| plan.oom_file.as_deref());
        // An orphan may have been the victim of a kill as well.
        let out_of_memory = status.terminating_signal() == Some(SIGKILL) && self.app.kills.of_one(oom_file, now);
        let Some(place) = found else { return };
        let Some(mut worker) = self.workers.take(place) else { return };
        let mut packet = [0u8; PACKET_MAX];
        let mut said = worker.reason.take();
        // Its last words come behind the news that it did not read ours, where it is so (ECONNRESET).
        for _ in 0..2 {
            while let Some(bytes) = worker.recv(&mut packet) {
                match ToSupervisor::decode(bytes) {
                    Some(ToSupervisor::ExitAcknowledged) => self.app.heard = true,
                    Some(ToSupervisor::CannotStart { reason }) => said = Some(reason.to_vec()),
                    _ => {}
                }
            }
        }
        let out_of_memory = out_of_memory && !worker.hung;
        let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1);
        match place {
            WorkerSlot::Draining => {
                if worker.holds_on {
                    self.workers.send_to_active(ToWorker::Acquire);
                }
            }
            WorkerSlot::Starting => {
                self.next_plan = None;
                let not_executed = (code > EXIT_NOT_EXECUTED).then(|| {
                    let error = std::io::Error::from_raw_os_error(code - EXIT_NOT_EXECUTED);
                    format!("cannot execute the binary: {error}; keeping the old worker")
                });
                let said =
                    said.map(|said| [&b"new worker failed to start; keeping the old worker: "[..], &said].concat());
                let reason: &[u8] = match code {
                    EXIT_MISTAKE if let Some(said) = &said => said,
                    _ if let Some(reason) = &not_executed => reason.as_bytes(),
                    EXIT_MISTAKE => {
                        b"new worker exited with a configuration error (see the log); keeping the old worker"
                    }
                    _ if now.saturating_duration_since(worker.started) >= crate::plan::READY_MOST => {
                        b"new worker was not ready within 20 s and was killed; keeping the old worker"
                    }
                    _ => b"new worker exited before it was ready; keeping the old worker",
                };
                self.workers.send_to_active(ToWorker::KeepServing { reason });
                self.notify_systemd_ready();
                if self.workers.at(WorkerSlot::Active).is_none() && !self.workers.done {
                    self.workers.restart_at = Some(now);
                }
            }
            WorkerSlot::Active => self.current_ended(&worker, Crash { code, hung: worker.hung, out_of_memory }, now),
        }
        self.exit_when_done();
    }

    fn current_ended(&mut self, worker: &Worker, crash: Crash, now: Instant) {
        let code = crash.code;
        // Before there is a plan a worker ends because of the command line or the configuration, and has said so.
        // One that was killed, as for want of memory, has said nothing, and another may have better luck.
        let first = matches!(self.app.state, State::Waiting | State::Elsewhere) && worker.generation == 0;
        let said = code <= SIGNALLED || worker.generation >= FIRST_TRIES;
        if (self.plan.is_none() && said) || (first && code == EXIT_MISTAKE) {
            self.exit = Some(code);
            return;
        }
        // A worker that ends well during a stop has delivered or kept everything.
        if self.stop.is_some() && code == 0 {
            self.workers.done = true;
            return;
        }
        if code != EXIT_YIELDED {
            // A binary whose worker falls at once is no binary to become.
            self.workers.successor = None;
            self.workers.crash = Some(crash);
        }
        if worker.ready && now.saturating_duration_since(worker.started) >= RESTART_CALM {
            self.workers.wait = RESTART_FIRST;
        }
        match self.workers.at(WorkerSlot::Starting) {
            // One that is not ready yet may never be, and nobody serves meanwhile: its end is followed by a start at once.
            Some(next) => next.kill(),
            None => self.workers.again_later(now),
        }
    }
}

impl Workers {
    fn again_later(&mut self, now: Instant) {
        self.restart_at = Some(now + self.wait);
        self.wait = (self.wait * 2).min(RESTART_MOST);
    }

    /// The worker has done what a stop wants, and nobody is left.
    pub fn is_done(&self) -> bool {
        self.done && self.slots.iter().all(Option::is_none)
    }

    /// One worker serves, and nobody comes or goes.
    fn at_rest(&self) -> bool {
        self.may_replace() && self.replacement.is_none()
    }
}
