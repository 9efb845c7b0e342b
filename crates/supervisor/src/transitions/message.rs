//! A worker sent a message: a plan, a request for another worker or a stop, or a report about the app.

use crate::app::App;
use crate::message::{PACKET_MAX, ToSupervisor, ToWorker};
use crate::plan::{PLAN_MAX, Plan};
use crate::restarts::RestartReason;
use crate::state::Supervisor;
use crate::worker::Proposal;
use crate::workers::{WORKER_SLOTS, WorkerSlot};
use rustix::process::Pid;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use sys::process::ExecPlan;

/// Messages of one worker in one turn.
const MESSAGES_PER_TURN: usize = 64;

/// How long the worker may take to start the app after `app.start.timeout`.
const GATE_SLACK: Duration = Duration::from_millis(500);

impl Supervisor {
    pub(crate) fn receive_from_workers(&mut self) {
        let mut packet = [0u8; PACKET_MAX];
        for slot in WORKER_SLOTS {
            let mut received = 0;
            while received < MESSAGES_PER_TURN
                && let Some(bytes) = self.workers.at_mut(slot).and_then(|worker| worker.recv(&mut packet))
            {
                received += 1;
                if let Some(message) = ToSupervisor::decode(bytes) {
                    self.apply_message(slot, message);
                }
            }
            while let Some(notification) =
                self.workers.at_mut(slot).and_then(|worker| self.store.receive(&worker.notify, &self.systemd))
            {
                if notification.ready {
                    self.worker_ready(slot, Instant::now());
                }
            }
        }
    }

    pub(crate) fn apply_message(&mut self, slot: WorkerSlot, message: ToSupervisor<'_>) {
        let now = Instant::now();
        // A worker that has been replaced, or does not serve yet, does not control the app.
        let accepted_from_any = matches!(
            message,
            ToSupervisor::Plan { .. }
                | ToSupervisor::Released
                | ToSupervisor::CountDescriptors { .. }
                | ToSupervisor::ExitAcknowledged
                | ToSupervisor::CannotStart { .. }
        );
        if slot != WorkerSlot::Active && !accepted_from_any {
            return;
        }
        match message {
            ToSupervisor::Plan { bytes } => self.take_plan(slot, bytes, now),
            ToSupervisor::StartApp => self.start_app(now),
            ToSupervisor::Drained => {
                if let Some(stop) = &mut self.stop {
                    stop.drain_until = now;
                    // The exit of an external app is not reported, unless that is configured.
                    if !self.plan.as_ref().is_some_and(|plan| plan.awaits_end) {
                        stop.external_until = now;
                    }
                }
            }
            ToSupervisor::SignalApp { signal } => self.app.signal(signal, false),
            ToSupervisor::Replace { reason } => self.workers.request_replacement(reason, now),
            ToSupervisor::Upgrade { binary } => {
                let binary = if binary.is_empty() { self.binary.clone() } else { binary.to_vec() };
                if let Err(reason) = self.check_binary(&binary) {
                    let reason = reason.as_bytes();
                    return self
                        .workers
                        .send_to_active(ToWorker::KeepServing { cause: RestartReason::Upgrade, reason });
                }
                if !self.workers.request_upgrade(binary, now) {
                    let reason = b"another handover is already in progress; try again";
                    self.workers.send_to_active(ToWorker::KeepServing { cause: RestartReason::Upgrade, reason });
                }
            }
            ToSupervisor::Released => self.workers.released(slot),
            ToSupervisor::ExitAcknowledged => self.app.exit_acknowledged = true,
            ToSupervisor::CannotStart { reason } => {
                if let Some(worker) = self.workers.at_mut(slot) {
                    worker.reason = Some(reason.to_vec());
                }
            }
            ToSupervisor::Serving => {
                if let Some(text) = self.workers.at_mut(slot).and_then(|worker| worker.text.take()) {
                    self.saved_config.last_good = text;
                }
            }
            ToSupervisor::Stop { within_ms, cause } => self.stop_requested(within_ms, cause, now),
            ToSupervisor::CountDescriptors { pid } => {
                let count = self.descriptors_of(pid);
                if let Some(worker) = self.workers.at_mut(slot) {
                    worker.send(ToWorker::Descriptors { pid, count });
                }
            }
            ToSupervisor::AppExited { code } => self.external_app_exited(code, now),
        }
    }

    /// The plan of a first worker starts everything; that of a later one takes effect once it is ready. After the start, the
    /// supervisor allocates only here and at an upgrade. A further plan of a worker that already serves is ignored.
    pub(crate) fn take_plan(&mut self, slot: WorkerSlot, bytes: u64, now: Instant) {
        let Some(worker) = self.workers.at_mut(slot).filter(|worker| !worker.ready) else { return };
        let mut text = vec![0u8; usize::try_from(bytes).unwrap_or(PLAN_MAX).min(PLAN_MAX)];
        let sealed = worker.proposal.take().filter(|proposal| proposal.seal().is_ok());
        let read = sealed.and_then(|Proposal { plan, text: configuration }| {
            worker.text = Some(configuration);
            rustix::io::pread(&plan, &mut text[..], 0).ok()
        });
        let plan = text.get(..read.unwrap_or(0)).and_then(Plan::decode);
        let exec = plan.as_ref().map(|plan| plan.app.as_ref().map(ExecPlan::new).transpose());
        let (Some(plan), Some(Ok(exec))) = (plan, exec) else {
            let text = b"outrigger: invalid plan from worker; keeping the previous plan\n";
            let _ = rustix::io::write(rustix::stdio::stderr(), text);
            return;
        };
        let is_first = self.plan.is_none();
        self.next_plan = Some((plan, exec));
        if slot == WorkerSlot::Active {
            self.commit_plan();
        }
        if let Some(plan) = self.plan.clone().filter(|_| is_first) {
            // A worker that continues without its gates logs them and starts the app itself; here that is only a fallback.
            let slack = if plan.gate_fails { Duration::ZERO } else { GATE_SLACK };
            self.gate_until = Some(now + plan.gate + slack);
            self.app = App::new(plan.app.is_none());
            self.app.kills.mark_seen(plan.oom_file.as_deref(), now);
            self.begin_output(&plan, plan.pty, plan.capture_bytes.is_some());
        }
    }

    /// The worker whose plan was pending serves now. A wrapped app cannot become an external one, or vice versa.
    pub(crate) fn commit_plan(&mut self) {
        let Some((plan, exec)) = self.next_plan.take() else { return };
        match &mut self.plan {
            Some(previous) if previous.app.is_some() != plan.app.is_some() => {
                *previous = Plan { app: previous.app.take(), ..plan };
            }
            _ => (self.plan, self.exec) = (Some(plan), exec),
        }
    }

    /// Rejects a path that does not exist, or that resolves to a directory where a worker may write: a program from there would be
    /// a sandbox escape.
    fn check_binary(&self, binary: &[u8]) -> Result<(), String> {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(binary));
        let resolved = path.canonicalize().map_err(|error| format!("cannot execute {}: {error}", path.display()))?;
        let written = self.plan.iter().flat_map(|plan| &plan.written);
        let mut written = written.map(|directory| std::path::Path::new(std::ffi::OsStr::from_bytes(directory)));
        match written.find(|directory| resolved.starts_with(directory)) {
            Some(directory) => {
                let directory = directory.display();
                Err(format!("binary rejected: the worker may write in {directory}; move the binary elsewhere"))
            }
            None => Ok(()),
        }
    }

    /// How many file descriptors a process of the app's session has open; 0 for any other.
    pub(crate) fn descriptors_of(&self, pid: i32) -> u64 {
        let (Some(app), Some(process)) = (self.app.pid(), Pid::from_raw(pid)) else { return 0 };
        let session = rustix::process::getsid(Some(process)).map(|session| session.as_raw_nonzero().get());
        if pid != app && session != Ok(app) {
            return 0;
        }
        let mut path = [0u8; 32];
        if io::Write::write_fmt(&mut &mut path[..], format_args!("/proc/{pid}/fd\0")).is_err() {
            return 0;
        }
        let Ok(path) = std::ffi::CStr::from_bytes_until_nul(&path) else { return 0 };
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) else { return 0 };
        // Since version 6.2 the kernel reports their number as the size of the directory.
        let size = rustix::fs::fstat(&directory).map_or(0, |stat| stat.st_size);
        if size > 0 {
            return size.unsigned_abs();
        }
        let mut space = [const { std::mem::MaybeUninit::uninit() }; 2048];
        let mut entries = rustix::fs::RawDir::new(directory, &mut space);
        let mut count: u64 = 0;
        while let Some(Ok(_)) = entries.next() {
            count += 1;
        }
        // Without `.` and `..`.
        count.saturating_sub(2)
    }
}
