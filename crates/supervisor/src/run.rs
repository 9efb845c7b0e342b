//! The supervisor's loop: wait for anything that can happen, apply it, look at the clock. In: a `Plan`. Out: in the
//! supervisor an exit code, in each forked worker its `WorkerSide`. Order of a stop: tell the worker → inbound drains → signal
//! → grace → kill → read the pipes to their end → the worker delivers → exit with the app's code, all by one deadline.

use crate::app::{App, Output};
use crate::capture::{Step, Stream};
use crate::message::{ToSupervisor, ToWorker};
use crate::plan::{PIPE_LINGER, Plan, WATCHDOG};
use crate::store::Store;
use crate::worker::{Worker, WorkerEnds};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::ring::Ring;
use sys::signal::SavedMask;

/// What a worker inherits.
pub struct WorkerSide {
    /// Messages to and from the supervisor.
    pub control: OwnedFd,
    /// systemd's notify protocol, towards the supervisor.
    pub notify: OwnedFd,
    /// A pipe that becomes readable when the rings have new bytes or an end.
    pub wake: OwnedFd,
    /// stdout and stderr of the app, where they are captured.
    pub rings: Option<(Ring, Ring)>,
    /// Descriptors that the worker before this one stored, by name.
    pub stored: Vec<(String, OwnedFd)>,
    /// 0 for the first worker of this supervisor.
    pub generation: u32,
}

/// How `run` ends: once in the supervisor, and once in each worker that it forks.
pub enum Outcome {
    Exit(i32),
    Worker(Box<WorkerSide>),
}

/// The worker's exit code for a mistake in the configuration or an address that is taken.
pub const EXIT_MISTAKE: i32 = 1;

/// The worker's exit code when it makes room for one with a new configuration.
pub const EXIT_RELOAD: i32 = 75;

struct Supervisor {
    plan: Plan,
    mask: SavedMask,
    signals: OwnedFd,
    /// Both ends of the pipe that tells the worker of new bytes: the reading end is for the next worker too.
    wake: OwnedFd,
    wake_read: OwnedFd,
    output: Option<Output>,
    /// The app's ends of the pipes, until it has started.
    app_ends: Option<(OwnedFd, OwnedFd)>,
    app: App,
    /// Signals go to the app's group, which it has unless it shares our terminal.
    app_group: bool,
    worker: Worker,
    store: Store,
    gate_until: Instant,
    stop: Option<Stop>,
    exit: Option<i32>,
}

/// A stop under way.
struct Stop {
    until: Instant,
    drain_until: Instant,
    kill_at: Option<Instant>,
    linger_until: Option<Instant>,
    told_end: bool,
}

/// Runs until the app and the worker have ended. Call with one thread.
pub fn run(plan: Plan) -> io::Result<Outcome> {
    if rustix::process::getpid() != Pid::INIT {
        // Orphans of the app come to us and are reaped, as PID 1 would.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    let (signals, mask) = sys::signal::block_all()?;
    let (wake_read, wake) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let (output, app_ends) = match plan.capture_bytes {
        None => (None, None),
        Some(capacity) => {
            let (stdout, out_end) =
                Stream::new(rustix::stdio::stdout(), Ring::in_memory("outrigger-stdout", capacity)?)?;
            let (stderr, err_end) =
                Stream::new(rustix::stdio::stderr(), Ring::in_memory("outrigger-stderr", capacity)?)?;
            (Some(Output { stdout, stderr }), Some((out_end, err_end)))
        }
    };
    let now = Instant::now();
    let mut supervisor = Supervisor {
        gate_until: now + plan.gate,
        app_group: !rustix::termios::isatty(rustix::stdio::stdin()),
        plan,
        mask,
        signals,
        wake,
        wake_read,
        output,
        app_ends,
        app: App::Waiting,
        worker: Worker::new(now),
        store: Store::new(),
        stop: None,
        exit: None,
    };
    loop {
        if let Some(ends) = supervisor.turn() {
            return Ok(Outcome::Worker(Box::new(supervisor.into_side(ends))));
        }
        if let Some(code) = supervisor.exit {
            return Ok(Outcome::Exit(code));
        }
        supervisor.sleep();
    }
}

impl Supervisor {
    /// Applies everything that has happened, then what the clock says. In a new worker: its ends.
    fn turn(&mut self) -> Option<WorkerEnds> {
        while let Some(signal) = sys::signal::next(&self.signals) {
            self.apply_signal(signal);
        }
        self.reap();
        self.hear_worker();
        self.move_output();
        let now = Instant::now();
        self.tick(now);
        if self.exit.is_none() && self.worker.restart_at.is_some_and(|at| at <= now) {
            match self.worker.start(now) {
                Ok(Some(ends)) => return Some(ends),
                Ok(None) => self.brief_worker(now),
                // No process or descriptor to be had: the app goes on, and so do we, until there is.
                Err(_) => self.worker.ended(now),
            }
        }
        None
    }

    fn apply_signal(&mut self, signal: i32) {
        match signal {
            SIGCHLD | SIGPIPE => {}
            SIGTERM | SIGINT => match &mut self.stop {
                None => {
                    self.begin_stop(Instant::now());
                    // At a terminal the app is in our group, and has got the Ctrl-C itself.
                    if let Some(stop) = self.stop.as_mut().filter(|_| signal == SIGINT && !self.app_group) {
                        stop.kill_at = Some((Instant::now() + self.plan.grace).min(stop.until));
                    }
                }
                // A second one is impatience: no more draining, and no more grace.
                Some(stop) => {
                    let now = Instant::now();
                    stop.drain_until = now;
                    stop.kill_at = stop.kill_at.map(|_| now);
                }
            },
            other => self.app.signal(other, self.app_group),
        }
    }

    fn begin_stop(&mut self, now: Instant) {
        let until = now + self.plan.deadline;
        let drain_until = now + self.plan.drain;
        self.stop = Some(Stop { until, drain_until, kill_at: None, linger_until: None, told_end: false });
        self.worker.tell(ToWorker::Stop { left_ms: millis(self.plan.deadline) });
        if self.app == App::Waiting {
            self.app = App::Ended { code: 0, signal: 0 };
            self.app_ends = None;
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            if self.app.pid() == Some(pid) {
                self.app = App::ended(status);
                if self.stop.is_none() {
                    self.begin_stop(Instant::now());
                }
            } else if self.worker.pid == Some(pid) {
                self.worker_ended(status);
            }
        }
    }

    fn worker_ended(&mut self, status: WaitStatus) {
        let code = status.exit_status();
        self.worker.ended(Instant::now());
        if code == Some(EXIT_RELOAD) {
            self.worker.restart_at = Some(Instant::now());
        }
        if self.app == App::Waiting && self.worker.generation == 1 && code == Some(EXIT_MISTAKE) {
            self.exit = Some(EXIT_MISTAKE);
        }
        // A worker that ends well during a stop has delivered or kept everything.
        if self.stop.as_ref().is_some_and(|stop| stop.told_end) && code == Some(0) {
            self.exit = Some(self.app_code());
        }
    }

    /// Tells a new worker what has happened before it.
    fn brief_worker(&mut self, now: Instant) {
        if let Some(pid) = self.app.pid() {
            self.worker.tell(ToWorker::AppStarted { pid });
        }
        if let Some(stop) = &mut self.stop {
            self.worker.tell(ToWorker::Stop { left_ms: millis(stop.until.saturating_duration_since(now)) });
            stop.told_end = false;
        }
    }

    fn hear_worker(&mut self) {
        while let Some(message) = self.worker.hear() {
            self.worker.last_sign = Instant::now();
            match message {
                ToSupervisor::StartApp => self.start_app(),
                ToSupervisor::Drained => {
                    if let Some(stop) = &mut self.stop {
                        stop.drain_until = Instant::now();
                    }
                }
                ToSupervisor::SignalApp { signal } => self.app.signal(signal, false),
            }
        }
        while let Some(notice) = self.worker.notify.as_ref().and_then(|socket| self.store.receive(socket)) {
            self.worker.last_sign = Instant::now();
            self.worker.ready |= notice.ready;
        }
    }

    fn start_app(&mut self) {
        if self.app != App::Waiting || self.stop.is_some() {
            return;
        }
        self.app = App::start(&self.plan, &self.mask, self.app_ends.take(), self.app_group);
        match self.app {
            App::Running { pid } => self.worker.tell(ToWorker::AppStarted { pid }),
            _ => self.begin_stop(Instant::now()),
        }
    }

    fn move_output(&mut self) {
        let Some(output) = &mut self.output else { return };
        let mut moved = false;
        for stream in [&mut output.stdout, &mut output.stderr] {
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

    fn wake_worker(&self) {
        // A full pipe has told enough.
        let _ = rustix::io::write(&self.wake, b"!");
    }

    /// What the clock says.
    fn tick(&mut self, now: Instant) {
        if self.app == App::Waiting && now >= self.gate_until {
            self.start_app();
        }
        if self.worker.pid.is_some() && now.saturating_duration_since(self.worker.last_sign) > WATCHDOG {
            self.worker.kill();
            self.worker.last_sign = now;
        }
        let Some(stop) = &mut self.stop else { return };
        if let App::Running { .. } = self.app {
            match stop.kill_at {
                None if now >= stop.drain_until => {
                    stop.kill_at = Some((now + self.plan.grace).min(stop.until));
                    self.app.signal(self.plan.stop_signal, self.app_group);
                }
                Some(at) if now >= at => {
                    stop.kill_at = Some(now + KILL_AGAIN);
                    self.app.signal(SIGKILL, self.app_group);
                }
                _ => {}
            }
        } else {
            self.finish_output(now);
        }
        if self.stop.as_ref().is_some_and(|stop| now >= stop.until + DEADLINE_SLACK) {
            self.worker.kill();
            self.app.signal(SIGKILL, self.app_group);
            self.exit = Some(self.app_code());
        }
    }

    /// After the app's end: waits for its pipes to end, but not for ever, and then tells the worker.
    fn finish_output(&mut self, now: Instant) {
        let (Some(stop), App::Ended { code, signal }) = (&mut self.stop, self.app) else { return };
        if stop.told_end {
            return;
        }
        let linger_until = *stop.linger_until.get_or_insert(now + PIPE_LINGER);
        let open = self.output.as_ref().is_some_and(|out| out.stdout.pipe().is_some() || out.stderr.pipe().is_some());
        if open && now < linger_until {
            return;
        }
        stop.told_end = true;
        if let Some(output) = &mut self.output {
            output.stdout.cut();
            output.stderr.cut();
        }
        self.wake_worker();
        self.worker.tell(ToWorker::AppEnded { code, signal });
    }

    fn app_code(&self) -> i32 {
        match self.app {
            App::Ended { code, .. } => code,
            App::Running { .. } => 128 + SIGKILL,
            App::Waiting => 0,
        }
    }

    /// Waits for a descriptor or the next moment that the clock names.
    fn sleep(&self) {
        const NOTHING: Option<BorrowedFd<'_>> = None;
        let (mut reads, mut writes) = ([NOTHING; 5], [NOTHING; 2]);
        reads[0] = Some(self.signals.as_fd());
        reads[1] = self.worker.control.as_ref().map(AsFd::as_fd);
        reads[2] = self.worker.notify.as_ref().map(AsFd::as_fd);
        if let Some(output) = &self.output {
            for (index, stream) in [&output.stdout, &output.stderr].into_iter().enumerate() {
                match stream.blocked_output() {
                    Some(blocked) => writes[index] = Some(blocked),
                    None => reads[3 + index] = stream.pipe(),
                }
            }
        }
        let unused = PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN);
        let mut polled = [const { None }; 7].map(|_: Option<()>| unused.clone());
        let wanted = reads.into_iter().flatten().map(|fd| (fd, PollFlags::IN));
        let wanted = wanted.chain(writes.into_iter().flatten().map(|fd| (fd, PollFlags::OUT)));
        for (place, (fd, flags)) in polled.iter_mut().zip(wanted) {
            *place = PollFd::from_borrowed_fd(fd, flags);
        }
        let wait = self.next_moment().map(|moment| {
            let left = moment.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        // An interrupted or failed poll is a turn that finds nothing.
        let _ = poll(&mut polled, wait.as_ref());
    }

    fn next_moment(&self) -> Option<Instant> {
        let stop = self.stop.as_ref();
        let app_runs = matches!(self.app, App::Running { .. });
        [
            (self.app == App::Waiting).then_some(self.gate_until),
            self.worker.restart_at,
            self.worker.pid.map(|_| self.worker.last_sign + WATCHDOG),
            stop.map(|stop| stop.until + DEADLINE_SLACK),
            stop.filter(|stop| app_runs && stop.kill_at.is_none()).map(|stop| stop.drain_until),
            stop.filter(|_| app_runs).and_then(|stop| stop.kill_at),
            stop.filter(|stop| !stop.told_end).and_then(|stop| stop.linger_until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// In the forked worker: keeps what is its own and closes the rest.
    fn into_side(self, ends: WorkerEnds) -> WorkerSide {
        self.mask.restore();
        // Its own group, so that Ctrl-C at a terminal reaches the supervisor alone, which knows the order of a stop.
        let _ = rustix::process::setpgid(None, None);
        let _ = rustix::thread::set_name(c"outrigger-worke");
        let rings = self.output.map(|output| (output.stdout.ring().clone(), output.stderr.ring().clone()));
        WorkerSide {
            control: ends.control,
            notify: ends.notify,
            wake: self.wake_read,
            rings,
            stored: self.store.into_named(),
            generation: ends.generation,
        }
    }
}

/// Chunks of one stream between two looks at everything else.
const CHUNKS_PER_TURN: usize = 8;

/// The worker keeps the deadline itself; this much later it is ended.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);

/// A group that is being killed is signalled again, for children that were forked meanwhile.
const KILL_AGAIN: Duration = Duration::from_millis(200);

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGPIPE: i32 = 13;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
