//! The workers: one that serves, perhaps one that starts to replace it, perhaps one that was replaced and drains. In: requests
//! for another worker, notifications that one is ready, exits. Out: forks, and messages about which one owns the rings and the
//! state. Limits: one worker in each slot; a failed one is started again after a backoff that doubles up to `RESTART_MOST`.

use crate::message::ToWorker;
use crate::plan::{RESTART_FIRST, RESTART_MOST};
use crate::restarts::{RestartReason, Restarts};
use crate::worker::{Crash, Worker};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerSlot {
    /// Serves.
    Active,
    /// Is not ready yet; will replace the active one.
    Starting,
    /// Was replaced, and drains.
    Draining,
}

pub(crate) const WORKER_SLOTS: [WorkerSlot; 3] = [WorkerSlot::Active, WorkerSlot::Starting, WorkerSlot::Draining];

/// Why another worker is started to replace the active one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replacement {
    Replace(RestartReason),
    Upgrade(Vec<u8>),
}

pub(crate) struct Workers {
    pub slots: [Option<Worker>; WORKER_SLOTS.len()],
    /// The number of the next worker.
    pub generation: u32,
    pub wait: Duration,
    pub restart_at: Option<Instant>,
    pub replacement: Option<(Replacement, Instant)>,
    pub broken_at: Option<Instant>,
    pub crash: Option<Crash>,
    /// Replacements so far.
    pub restarts: Restarts,
    /// The worker that is being forked: its slot, its binary if that is another, and why it replaces the previous one.
    pub starting: Option<(WorkerSlot, Option<Vec<u8>>, Option<RestartReason>)>,
    /// The binary that this process execs once the worker of the previous binary has exited.
    pub successor: Option<Vec<u8>>,
    /// The worker has finished everything that a stop requires.
    pub done: bool,
    /// No handover begins any more.
    pub stopping: bool,
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

    /// With the worker that served under the previous program.
    pub fn resumed(current: Worker, restarts: Restarts) -> Workers {
        let generation = current.generation + 1;
        let slots = [Some(current), None, None];
        Workers { slots, generation, restarts, restart_at: None, ..Workers::new(Instant::now()) }
    }

    pub fn at(&self, slot: WorkerSlot) -> Option<&Worker> {
        self.slots.get(slot as usize).and_then(Option::as_ref)
    }

    pub fn at_mut(&mut self, slot: WorkerSlot) -> Option<&mut Worker> {
        self.slots.get_mut(slot as usize).and_then(Option::as_mut)
    }

    pub fn take(&mut self, slot: WorkerSlot) -> Option<Worker> {
        self.slots.get_mut(slot as usize).and_then(Option::take)
    }

    pub fn put(&mut self, slot: WorkerSlot, worker: Worker) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            *entry = Some(worker);
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

    /// The stop message is for the active worker; one that is not ready yet will not be needed.
    pub fn stop(&mut self, message: ToWorker<'_>) {
        (self.replacement, self.stopping) = (None, true);
        if let Some(next) = self.at(WorkerSlot::Starting) {
            next.kill();
        }
        self.send_to_active(message);
    }

    pub fn request_reload(&mut self, now: Instant) {
        self.request(RestartReason::Reload, now);
    }

    fn request(&mut self, reason: RestartReason, at: Instant) {
        if self.replacement.is_none() && !self.stopping {
            self.replacement = Some((Replacement::Replace(reason), at));
        }
    }

    /// A worker that reports itself broken is replaced with the same backoff as one that crashed.
    pub fn request_replacement(&mut self, reason: RestartReason, now: Instant) {
        if !reason.is_fault() {
            return self.request(reason, now);
        }
        if self.broken_at.is_some_and(|at| now.saturating_duration_since(at) > BROKEN_CALM) {
            self.wait = RESTART_FIRST;
        }
        self.broken_at = Some(now);
        let at = now + self.wait;
        self.wait = (self.wait * 2).min(RESTART_MOST);
        self.request(reason, at);
    }

    /// Returns whether an upgrade begins: a signal during a handover requests nothing more.
    pub fn request_upgrade(&mut self, binary: Vec<u8>, now: Instant) -> bool {
        let busy = self.at(WorkerSlot::Starting).is_some()
            || self.at(WorkerSlot::Draining).is_some()
            || matches!(self.replacement, Some((Replacement::Upgrade(_), _)))
            || self.stopping;
        if !busy {
            self.replacement = Some((Replacement::Upgrade(binary), now));
        }
        !busy
    }

    /// The worker that was replaced has released the rings and the state.
    pub fn released(&mut self, slot: WorkerSlot) {
        if let Some(worker) = self.at_mut(slot).filter(|worker| worker.owns_state) {
            worker.owns_state = false;
            self.send_to_active(ToWorker::Acquire);
        }
    }

    /// Kills workers that are late or hang.
    pub fn tick(&mut self, now: Instant) {
        for worker in self.slots.iter_mut().flatten() {
            worker.check_watchdog(now);
            if worker.until.is_some_and(|until| now >= until) {
                worker.until = None;
                worker.kill();
            }
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let replacement = self.replacement.as_ref().filter(|_| self.may_replace()).map(|(_, at)| *at);
        self.slots.iter().flatten().filter_map(|worker| worker.until).chain(self.restart_at).chain(replacement).min()
    }

    pub fn may_replace(&self) -> bool {
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

    /// Whether no worker before the one that is being forked can still own the rings and the state.
    pub fn is_alone(&self) -> bool {
        // A draining worker that has released them does not report that again.
        self.at(WorkerSlot::Active).is_none() && self.at(WorkerSlot::Draining).is_none_or(|old| !old.owns_state)
    }

    /// Whether the worker that is being forked replaces an active one.
    pub fn replaces(&self) -> bool {
        matches!(self.starting, Some((WorkerSlot::Starting, ..)))
    }

    /// Why the worker that is being forked is started.
    pub fn cause(&self) -> Option<RestartReason> {
        self.starting.as_ref().and_then(|(.., cause)| *cause)
    }

    pub fn crash(&self) -> Option<Crash> {
        self.crash
    }

    /// Replacements, including the one by the worker that is being forked.
    pub fn restarts(&self) -> Restarts {
        self.cause().map_or(self.restarts, |reason| self.restarts.with(reason))
    }
}

/// A worker that ran this long before it broke resets the backoff.
const BROKEN_CALM: Duration = Duration::from_secs(60);

impl Workers {
    pub fn schedule_restart(&mut self, now: Instant) {
        self.restart_at = Some(now + self.wait);
        self.wait = (self.wait * 2).min(RESTART_MOST);
    }

    /// The worker has finished what a stop requires, and no worker is left.
    pub fn is_done(&self) -> bool {
        self.done && self.slots.iter().all(Option::is_none)
    }

    /// One worker serves, and no handover is in progress or requested.
    pub fn at_rest(&self) -> bool {
        self.may_replace() && self.replacement.is_none()
    }
}
