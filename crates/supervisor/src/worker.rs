//! A worker as a child: forked from the supervisor, so that it shares the pages of the binary and starts without an exec, or
//! executed from another binary. In: what it inherits. Out: in the child, a `WorkerSide`; in the parent, its channels. Its
//! watchdog is a timer that both hold: the worker re-arms it, and the supervisor wakes only if it did not.

use crate::message::{self, PACKET_MAX, ToWorker};
use crate::plan::{LEAVE_MOST, PLAN_MAX, READY_MOST, WATCHDOG_DOUBT};
use crate::reexec_state::ReexecState;
use crate::restarts::{RestartReason, Restarts};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use sys::process::Fork;
use sys::ring::Ring;

/// What a worker inherits.
pub struct WorkerSide {
    /// Messages to and from the supervisor.
    pub control: OwnedFd,
    /// systemd's notify protocol, to the supervisor.
    pub notify: OwnedFd,
    /// To be re-armed with `plan::WATCHDOG` periodically.
    pub watchdog: OwnedFd,
    /// A pipe that becomes readable when the rings have new bytes or are closed.
    pub wake: OwnedFd,
    /// stdout and stderr of the app.
    pub rings: (Ring, Ring),
    pub proposal: Proposal,
    pub kept: SavedConfig,
    /// Descriptors that previous workers stored, by name.
    pub stored: Vec<(String, OwnedFd)>,
    /// 0 for the first worker of this supervisor.
    pub generation: u32,
    /// Whether this worker owns the rings and the state from the start.
    pub owns: bool,
    /// Whether another worker serves, and keeps serving if this one cannot start.
    pub replaces: bool,
    /// Why this worker was started; none for the first.
    pub cause: Option<RestartReason>,
    /// How the previous worker exited, if that was not requested.
    pub crash: Option<Crash>,
    /// How often workers were replaced, this one included.
    pub restarts: Restarts,
    /// Whether a service manager keeps the listening sockets after Outrigger has exited: they must keep listening.
    pub managed: bool,
    /// When the supervisor started (Unix time).
    pub since: i64,
    /// The directory that Outrigger was started in.
    pub directory: Option<std::path::PathBuf>,
}

/// What a worker proposes before it enters its sandbox, in separate memory: it contains nothing that a sandboxed worker has
/// written, since a program or a configuration from there would be a sandbox escape.
pub struct Proposal {
    /// The plan of the app.
    pub plan: OwnedFd,
    /// The configuration that the plan is built from.
    pub text: OwnedFd,
}

/// The configurations that outlive every worker.
pub struct SavedConfig {
    /// The configuration that a worker last served: the sealed text of its proposal.
    pub last_good: OwnedFd,
    /// The configuration with which a later worker could not start.
    pub rejected: OwnedFd,
}

/// How a worker exited without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Its exit code, or 128 + the signal that killed it.
    pub code: i32,
    /// It had made no progress for `plan::WATCHDOG`.
    pub hung: bool,
    /// The kernel OOM-killed it.
    pub out_of_memory: bool,
}

impl Crash {
    pub fn reason(&self) -> RestartReason {
        match self {
            Crash { out_of_memory: true, .. } => RestartReason::OomKilled,
            Crash { hung: true, .. } => RestartReason::Hung,
            Crash { .. } => RestartReason::Crash,
        }
    }
}

/// The parent's view of a worker.
pub struct Worker {
    pub pid: i32,
    pub control: Option<OwnedFd>,
    pub notify: OwnedFd,
    pub watchdog: OwnedFd,
    pub generation: u32,
    pub started: Instant,
    pub ready: bool,
    /// Why it was started to replace another one.
    pub replaces: Option<RestartReason>,
    /// The binary that it was executed from, if it was not only forked.
    pub binary: Option<Vec<u8>>,
    /// When it is killed, if it is not ready or has not exited in time.
    pub until: Option<Instant>,
    /// `HandOver` was sent to it, and it has not released the rings and the state yet.
    pub owns_state: bool,
    pub hung: bool,
    pub expired_at: Option<Instant>,
    /// Until the plan in it has been read.
    pub proposal: Option<Proposal>,
    /// Its configuration, sealed, until it serves.
    pub text: Option<OwnedFd>,
    /// Why it could not start, as it reported.
    pub reason: Option<Vec<u8>>,
}

/// The child's ends.
pub struct WorkerEnds {
    pub proposal: Proposal,
    pub control: OwnedFd,
    pub notify: OwnedFd,
    pub watchdog: OwnedFd,
}

/// The result of a start, in the parent or in the child.
pub enum Started {
    Parent(Worker),
    Child(WorkerEnds),
}

impl SavedConfig {
    pub fn new() -> io::Result<SavedConfig> {
        Ok(SavedConfig { last_good: sealed("outrigger-good", b"")?, rejected: memory("outrigger-refused")? })
    }

    /// A saved text; None if none was saved yet.
    pub fn text(memory: &OwnedFd) -> Option<String> {
        let size = usize::try_from(rustix::fs::fstat(memory).ok()?.st_size).ok().filter(|size| *size > 0)?;
        let mut bytes = vec![0; size.min(PLAN_MAX)];
        let read = rustix::io::pread(memory, &mut bytes[..], 0).ok()?;
        bytes.truncate(read);
        String::from_utf8(bytes).ok()
    }

    /// Replaces the saved text.
    pub fn keep(memory: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        // Truncated to its length last: a writer that crashes before that leaves a text that can still be read, not an empty one.
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += rustix::io::pwrite(memory, rest, at as u64)?;
        }
        Ok(rustix::fs::ftruncate(memory, bytes.len() as u64)?)
    }
}

fn memory(name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?)
}

impl Proposal {
    fn new() -> io::Result<Proposal> {
        Ok(Proposal { plan: memory("outrigger-plan")?, text: memory("outrigger-text")? })
    }

    /// After this no process can change it, even one that has it open (fcntl(2), file seals).
    pub fn seal(&self) -> io::Result<()> {
        [&self.plan, &self.text].into_iter().try_for_each(seal)
    }
}

/// Memory with these bytes, which no process can change.
pub(crate) fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = memory(name)?;
    SavedConfig::keep(&memory, bytes)?;
    seal(&memory)?;
    Ok(memory)
}

fn seal(memory: &OwnedFd) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(memory, seals)?)
}

impl Worker {
    /// Forks.
    pub fn fork(generation: u32, replaces: bool, now: Instant) -> io::Result<Started> {
        let (control, worker_control) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (notify, worker_notify) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let watchdog =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // The worker re-arms it for the first time when everything is started.
        arm_watchdog(&watchdog, READY_MOST)?;
        let proposal = Proposal::new()?;
        match sys::process::fork()? {
            Fork::Child => {
                Ok(Started::Child(WorkerEnds { proposal, control: worker_control, notify: worker_notify, watchdog }))
            }
            Fork::Parent { child } => Ok(Started::Parent(Worker {
                pid: child,
                control: Some(control),
                notify,
                watchdog,
                generation,
                started: now,
                ready: false,
                replaces: None,
                binary: None,
                until: replaces.then(|| now + READY_MOST),
                owns_state: false,
                hung: false,
                expired_at: None,
                proposal: Some(proposal),
                text: None,
                reason: None,
            })),
        }
    }

    /// A worker that has become ready under the previous program.
    pub fn resumed(
        pid: i32,
        control: OwnedFd,
        notify: OwnedFd,
        watchdog: OwnedFd,
        generation: u32,
        text: Option<OwnedFd>,
        now: Instant,
    ) -> Worker {
        Worker {
            pid,
            control: Some(control),
            notify,
            watchdog,
            generation,
            started: now,
            ready: true,
            replaces: None,
            binary: None,
            until: None,
            owns_state: false,
            hung: false,
            expired_at: None,
            proposal: None,
            text,
            reason: None,
        }
    }

    pub fn send(&self, message: ToWorker<'_>) {
        if let Some(control) = &self.control {
            // A worker that reads nothing hangs; the watchdog has it replaced, and the next one gets the state again.
            let _ = message::send(control, &message.encode());
        }
    }

    /// The next waiting message, as bytes.
    pub fn recv<'a>(&mut self, packet: &'a mut [u8; PACKET_MAX]) -> Option<&'a [u8]> {
        let (count, _) = rustix::net::recv(self.control.as_ref()?, &mut packet[..], RecvFlags::DONTWAIT).ok()?;
        if count == 0 {
            // The worker's end is closed: its exit follows, and until then there is nothing to poll.
            self.control = None;
            return None;
        }
        packet.get(..count)
    }

    /// Begins the handover to another worker.
    pub fn begin_handover(&mut self, cause: RestartReason, drain: Duration, now: Instant) {
        self.owns_state = true;
        self.until = Some(now + drain + LEAVE_MOST);
        self.send(ToWorker::HandOver { cause });
    }

    /// Checks the timer: an expired one is re-armed once more for a short time, since the timer is late after a suspend. A worker
    /// that makes progress again re-arms it itself, so that the next expiry counts as a first one.
    pub fn check_watchdog(&mut self, now: Instant) {
        let mut count = [0u8; 8];
        if rustix::io::read(&self.watchdog, &mut count).is_err() {
            return;
        }
        if self.expired_at.is_some_and(|at| now.saturating_duration_since(at) < WATCHDOG_DOUBT * 2) {
            self.hung = true;
            self.kill();
        }
        self.expired_at = Some(now);
        let _ = arm_watchdog(&self.watchdog, WATCHDOG_DOUBT);
    }

    pub fn kill(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Arms or re-arms the timer.
pub fn arm_watchdog(watchdog: &OwnedFd, time: Duration) -> io::Result<()> {
    let value = Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    Ok(rustix::time::timerfd_settime(watchdog, TimerfdTimerFlags::empty(), &once).map(drop)?)
}

/// The name of workers in process lists; the kernel stores 15 bytes.
pub(crate) const NAME: &std::ffi::CStr = c"outrigger-worke";

/// The environment variable that carries what an executed worker inherits.
pub const INHERIT: &str = "OUTRIGGER_INHERIT";

impl WorkerSide {
    /// Execs another binary in this child with the same arguments, which finds everything in `INHERIT`. Returns only if
    /// that failed.
    pub fn exec(self, binary: &[u8]) -> io::Error {
        let WorkerSide {
            control,
            notify,
            watchdog,
            wake,
            rings,
            proposal,
            kept,
            stored,
            generation,
            owns,
            replaces,
            cause,
            crash,
            restarts,
            managed,
            since,
            directory,
        } = self;
        let mut saved = ReexecState::default();
        for (key, fd) in [("control", &control), ("notify", &notify), ("watchdog", &watchdog), ("wake", &wake)] {
            saved.descriptor(key, fd);
        }
        for (key, fd) in
            [("plan", &proposal.plan), ("text", &proposal.text), ("good", &kept.last_good), ("refused", &kept.rejected)]
        {
            saved.descriptor(key, fd);
        }
        for (key, ring) in [("stdout", &rings.0), ("stderr", &rings.1)] {
            saved.descriptor(key, ring.file());
        }
        for (name, fd) in &stored {
            saved.descriptor(&format!("stored {name}"), fd);
        }
        saved.number("generation", generation.into());
        saved.number("owns", owns.into());
        saved.number("replaces", replaces.into());
        cause.into_iter().for_each(|cause| saved.number("cause", cause.number()));
        saved.number("since", since);
        saved.number("managed", managed.into());
        restarts.save_to(&mut saved);
        if let Some(crash) = crash {
            saved.number("crash", i64::from(crash.code));
            saved.number("hung", crash.hung.into());
            saved.number("out of memory", crash.out_of_memory.into());
        }
        if let Some(directory) = &directory {
            let _ = std::env::set_current_dir(directory);
        }
        saved.exec(binary, INHERIT)
    }

    /// What an executed worker inherits, if this process is one.
    pub fn inherited() -> Option<WorkerSide> {
        let mut saved = ReexecState::from_environment(INHERIT)?;
        // An exec named this process after its file.
        let _ = rustix::thread::set_name(NAME);
        let ring = |saved: &mut ReexecState, key| saved.claim(key).and_then(|fd| Ring::over(fd).ok());
        Some(WorkerSide {
            control: saved.claim("control")?,
            notify: saved.claim("notify")?,
            watchdog: saved.claim("watchdog")?,
            wake: saved.claim("wake")?,
            rings: (ring(&mut saved, "stdout")?, ring(&mut saved, "stderr")?),
            proposal: Proposal { plan: saved.claim("plan")?, text: saved.claim("text")? },
            kept: SavedConfig { last_good: saved.claim("good")?, rejected: saved.claim("refused")? },
            stored: saved.claim_named("stored "),
            generation: u32::try_from(saved.value("generation")?).ok()?,
            owns: saved.value("owns")? == 1,
            replaces: saved.value("replaces") == Some(1),
            cause: saved.value("cause").and_then(RestartReason::from_number),
            since: saved.value("since").unwrap_or(0),
            managed: saved.value("managed") == Some(1),
            crash: saved.value("crash").and_then(|code| i32::try_from(code).ok()).map(|code| Crash {
                code,
                hung: saved.value("hung") == Some(1),
                out_of_memory: saved.value("out of memory") == Some(1),
            }),
            restarts: Restarts::inherited(&saved),
            directory: std::env::current_dir().ok(),
        })
    }
}
