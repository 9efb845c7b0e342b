//! The supervisor's loop: wait for anything that can happen, apply it, look at the clock. In: nothing but what this process
//! inherited; the first worker reads the configuration and hands a plan over. Out: in the supervisor an exit code, in each
//! forked worker its `WorkerSide`. What happens to the app stands in `life.rs`, what happens to workers in `workers.rs`.

use crate::app::{App, State};
use crate::capture::{Step, Stream};
use crate::fdstore::Store;
use crate::life::Stop;
use crate::message::{PACKET_MAX, ToSupervisor, ToWorker};
use crate::plan::{PLAN_MAX, Plan, Rewrite};
use crate::systemd::Systemd;
use crate::terminal::Terminal;
use crate::worker::{Proposal, SavedConfig, WorkerEnds, WorkerSide};
use crate::workers::Workers;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, wait};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use sys::process::ExecPlan;
use sys::ring::Ring;
use sys::signal::{Arrived, SavedSignals};

/// How `run` ends: once in the supervisor, and once in each worker that it forks.
pub enum Outcome {
    Exit(i32),
    Worker(Box<WorkerSide>),
}

/// The worker's exit code for a mistake in the configuration or an address that is taken.
pub const EXIT_MISTAKE: i32 = 1;

/// A worker that could not become the binary that it was to be ends with this and the number of the error: above the codes of
/// signals, so that whoever asked can be told the reason.
pub const EXIT_NOT_EXECUTED: i32 = 192;

/// The worker's exit code when another has taken over from it.
pub const EXIT_YIELDED: i32 = 75;

pub(crate) struct Supervisor {
    /// None until the first worker has read the configuration.
    pub plan: Option<Plan>,
    pub exec: Option<ExecPlan>,
    /// The plan of a worker that is not ready yet, and perhaps never will be.
    pub next_plan: Option<(Plan, Option<ExecPlan>)>,
    pub signals: OwnedFd,
    pub saved: SavedSignals,
    /// Both ends of the pipe that tells the worker of new bytes: the reading end is for the next worker too.
    pub wake: OwnedFd,
    pub wake_read: OwnedFd,
    pub rings: (Ring, Ring),
    pub kept: SavedConfig,
    pub streams: Option<[Stream; 2]>,
    pub terminal: Terminal,
    pub app: App,
    pub workers: Workers,
    pub store: Store,
    pub manager: Systemd,
    pub gate_until: Option<Instant>,
    pub stop: Option<Stop>,
    pub exit: Option<i32>,
    /// Where we were started, which is where the app starts too; we ourselves stand at `/`.
    pub directory: Option<PathBuf>,
    /// When this process started, in seconds since 1970.
    pub since: i64,
    /// The start is over, and what it needed is given back.
    pub settled: bool,
    /// The file that this process was started from.
    pub binary: Vec<u8>,
}

/// Runs until the app and the worker have ended. Call with one thread. Errors: the system lacks something that we need.
pub fn run() -> io::Result<Outcome> {
    let (signals, saved) = sys::signal::block_all()?;
    let mut supervisor = match crate::reexec::resumed(&signals, saved)? {
        Some(supervisor) => {
            // It has a copy.
            drop(signals);
            supervisor
        }
        None => Supervisor::new(signals, saved)?,
    };
    loop {
        if let Some(ends) = supervisor.turn() {
            return supervisor.into_worker(ends);
        }
        if let Some(code) = supervisor.exit {
            supervisor.terminal.take_back(supervisor.app.pid());
            supervisor.app.log_unacknowledged_exit();
            return Ok(Outcome::Exit(code));
        }
        supervisor.sleep();
    }
}

impl Supervisor {
    fn new(signals: OwnedFd, saved: SavedSignals) -> io::Result<Supervisor> {
        if rustix::process::getpid() != Pid::INIT {
            // Orphans of the app come to us and are reaped, as PID 1 would.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        // Without /proc it is not known; then an upgrade has to name its binary.
        let binary = std::env::current_exe().unwrap_or_default();
        let manager = Systemd::from_environment();
        let (wake_read, wake) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let directory = std::env::current_dir().ok();
        // A working directory keeps a volume from being unmounted for as long as we run.
        let _ = rustix::process::chdir(c"/");
        Ok(Supervisor {
            plan: None,
            exec: None,
            next_plan: None,
            signals,
            saved,
            wake,
            wake_read,
            rings: (Ring::in_memory("outrigger-stdout")?, Ring::in_memory("outrigger-stderr")?),
            kept: SavedConfig::new()?,
            streams: None,
            terminal: Terminal::None,
            app: App::new(false),
            workers: Workers::new(Instant::now()),
            store: Store::new(manager.stored()),
            manager,
            gate_until: None,
            stop: None,
            exit: None,
            directory,
            since: unix_now(),
            settled: false,
            binary: std::os::unix::ffi::OsStringExt::into_vec(binary.into_os_string()),
        })
    }

    /// Applies everything that has happened, then what the clock says. In a new worker: its ends.
    fn turn(&mut self) -> Option<WorkerEnds> {
        while let Some(arrived) = sys::signal::next(&self.signals) {
            self.apply_signal(arrived);
        }
        self.reap();
        self.receive_from_workers();
        self.move_output();
        let now = Instant::now();
        self.tick_app(now);
        self.workers.tick(now);
        self.manager.tick(now);
        if self.exit.is_some() {
            return None;
        }
        self.start_worker(now)
    }

    fn apply_signal(&mut self, arrived: Arrived) {
        let Arrived { number, from_kernel, sender } = arrived;
        let ourselves = sender == rustix::process::getpid().as_raw_nonzero().get().unsigned_abs() && !from_kernel;
        // A key at a terminal reaches the app in its foreground without us. That the line is lost reaches us alone.
        let key = matches!(number, SIGINT | SIGQUIT | SIGTSTP | SIGTTIN | SIGTTOU | SIGWINCH);
        // Where it reaches us, our own group has the foreground: an app with a group of its own has not heard of it.
        let told = self.terminal.has_reported()
            && self.app.pid().is_some()
            && self.plan.as_ref().is_some_and(|plan| !plan.group);
        if number == SIGCHLD || ourselves || (key && from_kernel && told) {
            return;
        }
        let now = Instant::now();
        let companion = self.app.state == State::Elsewhere;
        // Whoever had us ignore it, as `nohup` or a shell's `&`, did so for the app; what is configured for it holds all the same.
        let configured = self.plan.as_ref().is_some_and(|plan| plan.rewrites.has(number));
        if number != SIGTERM && self.saved.ignores(number) && !configured {
            return;
        }
        let rewrite = self.plan.as_ref().map_or(Rewrite::To(number), |plan| plan.rewrites.of(number));
        match (number, rewrite) {
            (_, Rewrite::Drop) => {}
            (_, Rewrite::Upgrade) => drop(self.workers.want_upgrade(self.binary.clone(), now)),
            (SIGUSR2, _) if companion => drop(self.workers.want_upgrade(self.binary.clone(), now)),
            (SIGHUP, _) if companion => self.workers.want_reload(now),
            (SIGTERM | SIGINT, Rewrite::To(signal)) => self.stop_signalled(signal, now),
            (SIGTSTP | SIGTTIN | SIGTTOU, Rewrite::To(signal)) => {
                // A group without a terminal ignores these three (POSIX.1-2024, 2.4.3), so that we do what they ask for. Whoever
                // waits for us, as a shell does, sees us stopped in any case.
                self.signal_app(if signal == number { SIGSTOP } else { signal });
                crate::terminal::stop_ourselves();
            }
            (_, Rewrite::To(signal)) => {
                if let (SIGWINCH, Some(pty)) = (number, self.terminal.pty_ref()) {
                    return pty.copy_size();
                }
                if let (SIGCONT, Some(app)) = (number, self.app.pid()) {
                    self.terminal.hand_over(app);
                }
                self.signal_app(signal);
            }
        }
    }

    pub(crate) fn signal_app(&self, signal: i32) {
        self.app.signal(signal, self.plan.as_ref().is_none_or(|plan| plan.group));
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            let pid = pid.as_raw_nonzero().get();
            if status.stopped() {
                if self.app.pid() == Some(pid) {
                    self.terminal.stop_with_app(pid);
                }
            } else if self.app.pid() == Some(pid) {
                self.app_ended(status, Instant::now());
            } else {
                self.worker_ended(pid, status);
            }
        }
    }

    fn receive_from_workers(&mut self) {
        let mut packet = [0u8; PACKET_MAX];
        for place in crate::workers::WORKER_SLOTS {
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

    fn apply_message(&mut self, place: crate::workers::WorkerSlot, message: ToSupervisor<'_>) {
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
        if place != crate::workers::WorkerSlot::Active && !of_any {
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
    fn take_plan(&mut self, place: crate::workers::WorkerSlot, bytes: u64, now: Instant) {
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
        if place == crate::workers::WorkerSlot::Active {
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
    fn is_written_by_workers(&self, binary: &[u8]) -> bool {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(binary));
        let path = path.canonicalize().unwrap_or(path);
        let written = self.plan.iter().flat_map(|plan| &plan.written);
        written.map(|folder| std::ffi::OsStr::from_bytes(folder)).any(|folder| path.starts_with(folder))
    }

    /// How many descriptors a process of the app's session has open; 0 for any other.
    fn descriptors_of(&self, pid: i32) -> u64 {
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

    fn move_output(&mut self) {
        let Some(streams) = &mut self.streams else { return };
        let mut moved = false;
        for stream in streams {
            // A few chunks each, so that a flood on one stream does not starve the signals.
            for _ in 0..CHUNKS_PER_TURN {
                if stream.pipe().is_none() {
                    break;
                }
                let step = stream.step();
                moved |= step != Step::Blocked;
                if step != Step::Moved {
                    break;
                }
            }
        }
        if moved {
            self.wake_worker();
        }
    }

    pub(crate) fn wake_worker(&self) {
        // A full pipe has told enough.
        let _ = rustix::io::write(&self.wake, b"!");
    }

    /// Waits for a descriptor or the next moment that the clock names.
    fn sleep(&mut self) {
        const NOTHING: Option<(BorrowedFd<'_>, PollFlags)> = None;
        let mut wanted = [NOTHING; POLLED_MAX];
        let (first, rest) = wanted.split_at_mut(FIXED);
        first[0] = Some((self.signals.as_fd(), PollFlags::IN));
        for (index, stream) in self.streams.iter().flatten().enumerate() {
            first[1 + index] = match stream.blocked_output() {
                Some(blocked) => Some((blocked, PollFlags::OUT)),
                None => stream.pipe().map(|pipe| (pipe, PollFlags::IN)),
            };
        }
        if let Some(pty) = self.terminal.pty_ref() {
            let input = pty.input().map(|input| (input, PollFlags::IN));
            first[3] = input.or_else(|| pty.blocked().map(|blocked| (blocked, PollFlags::OUT)));
        }
        let workers = crate::workers::WORKER_SLOTS.into_iter().filter_map(|place| self.workers.at(place));
        for (places, worker) in rest.chunks_exact_mut(3).zip(workers) {
            let fds =
                [worker.control.as_ref().map(AsFd::as_fd), Some(worker.notify.as_fd()), Some(worker.watchdog.as_fd())];
            places.iter_mut().zip(fds).for_each(|(place, fd)| *place = fd.map(|fd| (fd, PollFlags::IN)));
        }
        let unused = PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN);
        let mut polled = [const { None }; POLLED_MAX].map(|_: Option<()>| unused.clone());
        let mut terminal_at = None;
        for (at, place) in polled.iter_mut().enumerate() {
            if let Some(Some((fd, flags))) = wanted.get(at).copied() {
                *place = PollFd::from_borrowed_fd(fd, flags);
                terminal_at = (at == 3).then_some(at).or(terminal_at);
            }
        }
        let wait = self.next_moment().map(|moment| {
            let left = moment.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        // An interrupted or failed poll is a turn that finds nothing.
        let _ = poll(&mut polled, wait.as_ref());
        let typed = terminal_at.and_then(|at| polled.get(at)).is_some_and(|fd| !fd.revents().is_empty());
        if let Some(pty) = self.terminal.pty().filter(|_| typed) {
            pty.move_input(true);
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let moments = [self.app_moment(), self.workers.moment(), self.manager.moment()];
        moments.into_iter().flatten().min()
    }

    /// In the child of a fork: keeps what is a worker's and closes the rest; one of another binary is executed.
    fn into_worker(self, ends: WorkerEnds) -> io::Result<Outcome> {
        let binary = self.workers.starting_binary();
        let Supervisor { saved, wake_read, rings, kept, store, workers, directory, since, manager, terminal, .. } =
            self;
        saved.restore();
        // Its own group, so that Ctrl-C at a terminal reaches the supervisor alone, which knows the order of a stop.
        let _ = rustix::process::setpgid(None, None);
        let _ = rustix::thread::set_name(crate::worker::NAME);
        // The parent's terminal is not ours to put back as it was.
        terminal.abandon();
        let side = WorkerSide {
            control: ends.control,
            notify: ends.notify,
            watchdog: ends.watchdog,
            wake: wake_read,
            rings,
            proposal: ends.proposal,
            kept,
            stored: store.into_named(),
            generation: workers.generation(),
            owns: workers.is_alone(),
            replaces: workers.replaces(),
            crash: workers.crash(),
            restarts: workers.restarts(),
            managed: manager.is_there(),
            since,
            directory,
        };
        match binary {
            None => Ok(Outcome::Worker(Box::new(side))),
            Some(binary) => {
                let error = side.exec(&binary);
                eprintln!("error: {} cannot be executed: {error}", String::from_utf8_lossy(&binary));
                sys::process::exit_now(EXIT_NOT_EXECUTED + error.raw_os_error().unwrap_or(0).min(63))
            }
        }
    }
}

/// Chunks of one stream between two looks at everything else.
const CHUNKS_PER_TURN: usize = 8;

/// Messages of one worker between two looks at everything else.
const MESSAGES_PER_TURN: usize = 64;

/// Signals, two streams and a terminal; then three descriptors for each worker.
const FIXED: usize = 4;
const POLLED_MAX: usize = FIXED + 3 * crate::workers::WORKER_SLOTS.len();

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
pub(crate) const SIGKILL: i32 = 9;
const SIGUSR2: i32 = 12;
pub(crate) const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;
const SIGWINCH: i32 = 28;

fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
