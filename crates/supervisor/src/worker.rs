//! The worker as a child: forked from the supervisor, so that it shares the pages of the binary and starts without an
//! exec; replaced when it fails. In: the store, the rings. Out: in the child, a `WorkerSide`; in the parent, its channels.

use crate::message::{self, ToSupervisor, ToWorker};
use crate::plan::{RESTART_CALM, RESTART_FIRST, RESTART_MOST};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use sys::process::Fork;

/// The parent's view of the worker that runs now, or of the pause before the next.
pub struct Worker {
    pub pid: Option<i32>,
    pub control: Option<OwnedFd>,
    pub notify: Option<OwnedFd>,
    pub generation: u32,
    pub ready: bool,
    pub last_sign: Instant,
    pub restart_at: Option<Instant>,
    started: Instant,
    wait: Duration,
}

/// The child's ends.
pub struct WorkerEnds {
    pub control: OwnedFd,
    pub notify: OwnedFd,
    pub generation: u32,
}

impl Worker {
    pub fn new(now: Instant) -> Worker {
        Worker {
            pid: None,
            control: None,
            notify: None,
            generation: 0,
            ready: false,
            last_sign: now,
            restart_at: Some(now),
            started: now,
            wait: RESTART_FIRST,
        }
    }

    /// Forks. In the child the answer is its ends; in the parent it is None.
    pub fn start(&mut self, now: Instant) -> io::Result<Option<WorkerEnds>> {
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (notify, their_notify) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        match sys::process::fork()? {
            Fork::Child => Ok(Some(WorkerEnds { control: theirs, notify: their_notify, generation: self.generation })),
            Fork::Parent { child } => {
                *self = Worker {
                    pid: Some(child),
                    control: Some(control),
                    notify: Some(notify),
                    generation: self.generation + 1,
                    ready: false,
                    last_sign: now,
                    restart_at: None,
                    started: now,
                    wait: self.wait,
                };
                Ok(None)
            }
        }
    }

    /// Notes that the worker is gone and when the next one starts.
    pub fn ended(&mut self, now: Instant) {
        if self.pid.is_some() && now.saturating_duration_since(self.started) >= RESTART_CALM {
            self.wait = RESTART_FIRST;
        }
        self.restart_at = Some(now + self.wait);
        self.wait = (self.wait * 2).min(RESTART_MOST);
        (self.pid, self.control, self.notify, self.ready) = (None, None, None, false);
    }

    pub fn tell(&self, message: ToWorker) {
        if let Some(control) = &self.control {
            // A worker that reads nothing is hung; the watchdog replaces it, and the next one is told anew.
            let _ = message::send(control, &message.encode());
        }
    }

    /// The next message that waits.
    pub fn hear(&mut self) -> Option<ToSupervisor> {
        let mut bytes = [0u8; message::BYTES];
        let (count, _) = rustix::net::recv(self.control.as_ref()?, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
        if count == 0 {
            // Its end is closed: the exit follows, and until then there is nothing to poll for.
            self.control = None;
        }
        ToSupervisor::decode(bytes.get(..count)?)
    }

    pub fn kill(&self) {
        if let Some(pid) = self.pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
