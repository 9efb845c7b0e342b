//! The supervisor's loop: wait for events, apply them, check what is due. In: only what this process inherited; the first
//! worker reads the configuration and sends a plan. Out: in the supervisor an exit code, in each forked worker its
//! `WorkerSide`. The state is in `state.rs`; what an event changes in it is in `transitions`.

use crate::capture::Step;
use crate::message::EXIT_NOT_EXECUTED;
use crate::reexec;
use crate::state::Supervisor;
use crate::worker::{NAME, WorkerEnds, WorkerSide};
use crate::workers::WORKER_SLOTS;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, wait};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How `run` ends: once in the supervisor, and once in each worker that it forks.
pub enum Outcome {
    Exit(i32),
    Worker(Box<WorkerSide>),
}

/// Runs until the app and the worker have exited. Call with one thread. Errors: the system is missing something required.
pub fn run() -> io::Result<Outcome> {
    let (signals, saved) = sys::signal::block_all()?;
    let mut supervisor = match reexec::resumed(&signals, saved)? {
        Some(supervisor) => {
            // The supervisor has a copy.
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
            supervisor.terminal.take_foreground(supervisor.app.pid());
            supervisor.app.log_unacknowledged_exit();
            return Ok(Outcome::Exit(code));
        }
        supervisor.sleep();
    }
}

impl Supervisor {
    /// Applies all events, then all expired deadlines. Returns, in a new worker, its ends.
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
        self.systemd.tick(now);
        if self.exit.is_some() {
            return None;
        }
        self.start_worker(now)
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            let pid = pid.as_raw_nonzero().get();
            if status.stopped() {
                if self.app.pid() == Some(pid) {
                    self.terminal.stop_with_app(pid);
                }
            } else if self.app.pid() == Some(pid) {
                self.app_reaped(status, Instant::now());
            } else {
                self.worker_ended(pid, status);
            }
        }
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

    /// Waits for a descriptor or the next deadline.
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
        let workers = WORKER_SLOTS.into_iter().filter_map(|slot| self.workers.at(slot));
        for (slots, worker) in rest.chunks_exact_mut(3).zip(workers) {
            let fds =
                [worker.control.as_ref().map(AsFd::as_fd), Some(worker.notify.as_fd()), Some(worker.watchdog.as_fd())];
            slots.iter_mut().zip(fds).for_each(|(slot, fd)| *slot = fd.map(|fd| (fd, PollFlags::IN)));
        }
        let unused = PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN);
        let mut polled = [const { None }; POLLED_MAX].map(|_: Option<()>| unused.clone());
        let mut terminal_at = None;
        for (at, slot) in polled.iter_mut().enumerate() {
            if let Some(Some((fd, flags))) = wanted.get(at).copied() {
                *slot = PollFd::from_borrowed_fd(fd, flags);
                terminal_at = (at == 3).then_some(at).or(terminal_at);
            }
        }
        let wait = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        // After an interrupted or failed poll, the next turn finds no event.
        let _ = poll(&mut polled, wait.as_ref());
        let typed = terminal_at.and_then(|at| polled.get(at)).is_some_and(|fd| !fd.revents().is_empty());
        if let Some(pty) = self.terminal.pty().filter(|_| typed) {
            pty.move_input(true);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.app_deadline(), self.workers.deadline(), self.systemd.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// In the child of a fork: keeps what a worker needs and closes the rest; a worker of another binary is executed.
    fn into_worker(self, ends: WorkerEnds) -> io::Result<Outcome> {
        let binary = self.workers.starting_binary();
        let Supervisor {
            saved,
            wake_read,
            rings,
            saved_config,
            store,
            workers,
            directory,
            since,
            systemd,
            terminal,
            ..
        } = self;
        saved.restore();
        // Its own group, so that Ctrl-C at a terminal does not reach the worker: the supervisor runs the stop.
        let _ = rustix::process::setpgid(None, None);
        let _ = rustix::thread::set_name(NAME);
        // Only the parent restores the settings of its terminal.
        terminal.abandon();
        let side = WorkerSide {
            control: ends.control,
            notify: ends.notify,
            watchdog: ends.watchdog,
            wake: wake_read,
            rings,
            proposal: ends.proposal,
            kept: saved_config,
            stored: store.into_named(),
            generation: workers.generation(),
            owns: workers.is_alone(),
            replaces: workers.replaces(),
            cause: workers.cause(),
            crash: workers.crash(),
            restarts: workers.restarts(),
            managed: systemd.is_present(),
            since,
            directory,
        };
        match binary {
            None => Ok(Outcome::Worker(Box::new(side))),
            Some(binary) => {
                let error = side.exec(&binary);
                eprintln!("error: cannot execute {}: {error}", String::from_utf8_lossy(&binary));
                sys::process::exit_now(EXIT_NOT_EXECUTED + error.raw_os_error().unwrap_or(0).min(63))
            }
        }
    }
}

/// Chunks of one stream in one turn.
const CHUNKS_PER_TURN: usize = 8;

/// Signals, two streams and a terminal; then three descriptors for each worker.
const FIXED: usize = 4;
const POLLED_MAX: usize = FIXED + 3 * WORKER_SLOTS.len();
