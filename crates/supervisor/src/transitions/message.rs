//! A worker sent a message: a plan, a request for another worker or a stop, or news of the app.

use crate::app::App;
use crate::message::{PACKET_MAX, ToSupervisor, ToWorker};
use crate::plan::{PLAN_MAX, Plan};
use crate::state::Supervisor;
use crate::worker::Proposal;
use crate::workers::{WORKER_SLOTS, WorkerSlot};
use rustix::process::Pid;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Instant;
use sys::process::ExecPlan;

/// Messages of one worker between two looks at everything else.
const MESSAGES_PER_TURN: usize = 64;

impl Supervisor {
    pub(crate) fn receive_from_workers(&mut self) {
        let mut packet = [0u8; PACKET_MAX];
        for place in WORKER_SLOTS {
            let mut heard = 0;
            while heard < MESSAGES_PER_TURN
                && let Some(bytes) = self.workers.at_mut(place).and_then(|worker| worker.recv(&mut packet))
            {
                heard += 1;
                if let Some(message) = ToSupervisor::decode(bytes) {
                    self.apply_message(place, message);
                }
            }
            while let Some(notice) =
                self.workers.at_mut(place).and_then(|worker| self.store.receive(&worker.notify, &self.manager))
            {
                if notice.ready {
                    self.worker_ready(place, Instant::now());
                }
            }
        }
    }

    pub(crate) fn apply_message(&mut self, place: WorkerSlot, message: ToSupervisor<'_>) {
        let now = Instant::now();
        // One that has been replaced, or does not serve yet, has no say in what becomes of the app.
        let of_any = matches!(
            message,
            ToSupervisor::Plan { .. }
                | ToSupervisor::Released
                | ToSupervisor::AskDescriptors { .. }
                | ToSupervisor::ExitAcknowledged
                | ToSupervisor::CannotStart { .. }
        );
        if place != WorkerSlot::Active && !of_any {
            return;
        }
        match message {
            ToSupervisor::Plan { bytes } => self.take_plan(place, bytes, now),
            ToSupervisor::StartApp => self.start_app(now),
            ToSupervisor::Drained => {
                if let Some(stop) = &mut self.stop {
                    stop.drain_until = now;
                    // Nobody tells of the end of an app elsewhere, unless that is configured.
                    if !self.plan.as_ref().is_some_and(|plan| plan.awaits_end) {
                        stop.elsewhere_until = now;
                    }
                }
            }
            ToSupervisor::SignalApp { signal } => self.app.signal(signal, false),
            ToSupervisor::Replace { reason } => self.workers.want_replaced(reason, now),
            ToSupervisor::Upgrade { binary } => {
                let binary = if binary.is_empty() { self.binary.clone() } else { binary.to_vec() };
                if self.is_written_by_workers(&binary) {
                    let reason = b"binary rejected: it is in a directory writable by the worker; move it elsewhere";
                    return self.workers.send_to_active(ToWorker::KeepServing { reason });
                }
                if !self.workers.want_upgrade(binary, now) {
                    let reason = b"another worker is already taking over; try again";
                    self.workers.send_to_active(ToWorker::KeepServing { reason });
                }
            }
            ToSupervisor::Released => self.workers.released(place),
            ToSupervisor::ExitAcknowledged => self.app.heard = true,
            ToSupervisor::CannotStart { reason } => {
                if let Some(worker) = self.workers.at_mut(place) {
                    worker.reason = Some(reason.to_vec());
                }
            }
            ToSupervisor::Serving => {
                if let Some(text) = self.workers.at_mut(place).and_then(|worker| worker.text.take()) {
                    self.kept.last_good = text;
                }
            }
            ToSupervisor::Stop { within_ms } => self.stop_requested(within_ms, now),
            ToSupervisor::AskDescriptors { pid } => {
                let count = self.descriptors_of(pid);
                if let Some(worker) = self.workers.at_mut(place) {
                    worker.send(ToWorker::Descriptors { pid, count });
                }
            }
            ToSupervisor::AppGone { code } => self.app_exited(code, now),
        }
    }

    /// The plan of a first worker starts everything; that of a later one holds once it is ready. This and an upgrade are the only
    /// moments after the start at which the supervisor allocates. A worker that serves already has said what it had to say.
    pub(crate) fn take_plan(&mut self, place: WorkerSlot, bytes: u64, now: Instant) {
        let Some(worker) = self.workers.at_mut(place).filter(|worker| !worker.ready) else { return };
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
        let begins = self.plan.is_none();
        self.next_plan = Some((plan, exec));
        if place == WorkerSlot::Active {
            self.commit_plan();
        }
        if let Some(plan) = self.plan.clone().filter(|_| begins) {
            self.gate_until = Some(now + plan.gate);
            self.app = App::new(plan.app.is_none());
            self.app.kills.tick(plan.oom_file.as_deref(), now);
            self.begin_output(&plan, plan.pty, plan.capture_bytes.is_some());
        }
    }

    /// The worker whose plan waited serves now. An app that is there cannot become one that is elsewhere, nor the other way round.
    pub(crate) fn commit_plan(&mut self) {
        let Some((plan, exec)) = self.next_plan.take() else { return };
        match &mut self.plan {
            Some(before) if before.app.is_some() != plan.app.is_some() => {
                *before = Plan { app: before.app.take(), ..plan };
            }
            _ => (self.plan, self.exec) = (Some(plan), exec),
        }
    }

    /// Whether a path leads to where a worker may write: a program from there would be a way out of its sandbox.
    pub(crate) fn is_written_by_workers(&self, binary: &[u8]) -> bool {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(binary));
        let path = path.canonicalize().unwrap_or(path);
        let written = self.plan.iter().flat_map(|plan| &plan.written);
        written.map(|folder| std::ffi::OsStr::from_bytes(folder)).any(|folder| path.starts_with(folder))
    }

    /// How many descriptors a process of the app's session has open; 0 for any other.
    pub(crate) fn descriptors_of(&self, pid: i32) -> u64 {
        let (Some(app), Some(asked)) = (self.app.pid(), Pid::from_raw(pid)) else { return 0 };
        let session = rustix::process::getsid(Some(asked)).map(|session| session.as_raw_nonzero().get());
        if pid != app && session != Ok(app) {
            return 0;
        }
        let mut path = [0u8; 32];
        if io::Write::write_fmt(&mut &mut path[..], format_args!("/proc/{pid}/fd\0")).is_err() {
            return 0;
        }
        let Ok(path) = std::ffi::CStr::from_bytes_until_nul(&path) else { return 0 };
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let Ok(folder) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) else { return 0 };
        // The kernel tells their number as the folder's size since version 6.2.
        let told = rustix::fs::fstat(&folder).map_or(0, |stat| stat.st_size);
        if told > 0 {
            return told.unsigned_abs();
        }
        let mut space = [const { std::mem::MaybeUninit::uninit() }; 2048];
        let mut entries = rustix::fs::RawDir::new(folder, &mut space);
        let mut count: u64 = 0;
        while let Some(Ok(_)) = entries.next() {
            count += 1;
        }
        // Without `.` and `..`.
        count.saturating_sub(2)
    }
}
