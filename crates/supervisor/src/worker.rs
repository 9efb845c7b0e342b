//! A worker as a child: forked from the supervisor, so that it shares the pages of the binary and starts without an exec, or
//! executed from another binary. In: what it inherits. Out: in the child, a `WorkerSide`; in the parent, its channels. Its
//! watchdog is a timer that both hold: the worker winds it up, and the supervisor wakes only where it did not.

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
    /// systemd's notify protocol, towards the supervisor.
    pub notify: OwnedFd,
    /// To be wound up for `plan::WATCHDOG`, again and again.
    pub watchdog: OwnedFd,
    /// A pipe that becomes readable when the rings have new bytes or an end.
    pub wake: OwnedFd,
    /// stdout and stderr of the app.
    pub rings: (Ring, Ring),
    pub proposal: Proposal,
    pub kept: SavedConfig,
    /// Descriptors that workers before this one stored, by name.
    pub stored: Vec<(String, OwnedFd)>,
    /// 0 for the first worker of this supervisor.
    pub generation: u32,
    /// Whether the rings and the state are this worker's from the start.
    pub owns: bool,
    /// Whether another serves, and goes on if this one cannot start.
    pub replaces: bool,
    /// How the worker before ended, where nobody asked it to.
    pub crash: Option<Crash>,
    /// How often workers were replaced, this one included.
    pub restarts: Restarts,
    /// Whether somebody keeps the listening sockets when all of us are gone: they must go on listening.
    pub managed: bool,
    /// When the supervisor started, in seconds since 1970.
    pub since: i64,
    /// The directory that we were started in.
    pub directory: Option<std::path::PathBuf>,
}

/// What a worker proposes before it is in its sandbox, in memory of its own: it holds nothing that a worker in its sandbox has
/// written, since a program or a configuration from there would be a way out.
pub struct Proposal {
    /// The plan of the app.
    pub plan: OwnedFd,
    /// The configuration that it is made from.
    pub text: OwnedFd,
}

/// What outlives every worker.
pub struct SavedConfig {
    /// The configuration that a worker last served: the sealed text of its proposal.
    pub last_good: OwnedFd,
    /// The configuration with which a later worker could not start.
    pub rejected: OwnedFd,
}

/// How a worker ended that nobody had asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Its exit code, or 128 + the signal that killed it.
    pub code: i32,
    /// It had not moved for `plan::WATCHDOG`.
    pub hung: bool,
    /// The kernel killed it for want of memory.
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
    /// Why it was started in the place of another one.
    pub replaces: Option<RestartReason>,
    /// The binary that it was executed from, where it was not forked.
    pub binary: Option<Vec<u8>>,
    /// When it is killed: one that is not ready in time, or does not leave in time.
    pub until: Option<Instant>,
    /// It was told to hand over, and has not yet.
    pub owns_state: bool,
    pub hung: bool,
    pub doubted_at: Option<Instant>,
    /// Until the plan in it has been read.
    pub proposal: Option<Proposal>,
    /// Its configuration, sealed, until it serves.
    pub text: Option<OwnedFd>,
    /// Why it could not start, as it said itself.
    pub reason: Option<Vec<u8>>,
}

/// The child's ends.
pub struct WorkerEnds {
    pub proposal: Proposal,
    pub control: OwnedFd,
    pub notify: OwnedFd,
    pub watchdog: OwnedFd,
}

/// What came of a start, in the parent or in the child.
pub enum Started {
    Parent(Worker),
    Child(WorkerEnds),
}

impl SavedConfig {
    pub fn new() -> io::Result<SavedConfig> {
        Ok(SavedConfig { last_good: sealed("outrigger-good", b"")?, rejected: memory("outrigger-refused")? })
    }

    /// A text that was kept; None where none was yet.
    pub fn text(memory: &OwnedFd) -> Option<String> {
        let size = usize::try_from(rustix::fs::fstat(memory).ok()?.st_size).ok().filter(|size| *size > 0)?;
        let mut bytes = vec![0; size.min(PLAN_MAX)];
        let read = rustix::io::pread(memory, &mut bytes[..], 0).ok()?;
        bytes.truncate(read);
        String::from_utf8(bytes).ok()
    }

    /// Replaces what was kept.
    pub fn keep(memory: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        // Cut to its length last: a writer that dies on the way leaves what can still be read, and not nothing.
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

    /// From here on nobody changes it, whoever has it open (fcntl(2), file seals).
    pub fn seal(&self) -> io::Result<()> {
        [&self.plan, &self.text].into_iter().try_for_each(seal)
    }
}

/// Memory with this in it, which nobody can change.
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
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (notify, their_notify) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let watchdog =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // Its first beat comes when everything is started.
        wind_up(&watchdog, READY_MOST)?;
        let proposal = Proposal::new()?;
        match sys::process::fork()? {
            Fork::Child => Ok(Started::Child(WorkerEnds { proposal, control: theirs, notify: their_notify, watchdog })),
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
                doubted_at: None,
                proposal: Some(proposal),
                text: None,
                reason: None,
            })),
        }
    }

    /// A worker that has become ready under the program before this one.
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
            doubted_at: None,
            proposal: None,
            text,
            reason: None,
        }
    }

    pub fn send(&self, message: ToWorker<'_>) {
        if let Some(control) = &self.control {
            // A worker that reads nothing is hung; the watchdog replaces it, and the next one is told anew.
            let _ = message::send(control, &message.encode());
        }
    }

    /// The next message that waits, as bytes.
    pub fn recv<'a>(&mut self, packet: &'a mut [u8; PACKET_MAX]) -> Option<&'a [u8]> {
        let (count, _) = rustix::net::recv(self.control.as_ref()?, &mut packet[..], RecvFlags::DONTWAIT).ok()?;
        if count == 0 {
            // Its end is closed: the exit follows, and until then there is nothing to poll for.
            self.control = None;
            return None;
        }
        packet.get(..count)
    }

    /// Asks it to make room for another.
    pub fn hand_over_to(&mut self, drain: Duration, now: Instant) {
        self.owns_state = true;
        self.until = Some(now + drain + LEAVE_MOST);
        self.send(ToWorker::HandOver);
    }

    /// Looks at the timer: one that has run out is wound up once more, shortly, since a machine that slept has a late timer. A
    /// worker that moves again winds it up itself, so that the next doubt is a new one.
    pub fn check_watchdog(&mut self, now: Instant) {
        let mut count = [0u8; 8];
        if rustix::io::read(&self.watchdog, &mut count).is_err() {
            return;
        }
        if self.doubted_at.is_some_and(|at| now.saturating_duration_since(at) < WATCHDOG_DOUBT * 2) {
            self.hung = true;
            self.kill();
        }
        self.doubted_at = Some(now);
        let _ = wind_up(&self.watchdog, WATCHDOG_DOUBT);
    }

    pub fn kill(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Sets the timer anew.
pub fn wind_up(watchdog: &OwnedFd, time: Duration) -> io::Result<()> {
    let value = Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    Ok(rustix::time::timerfd_settime(watchdog, TimerfdTimerFlags::empty(), &once).map(drop)?)
}

/// As which workers are seen in lists of processes; the kernel keeps 15 bytes.
pub(crate) const NAME: &std::ffi::CStr = c"outrigger-worke";

/// The environment variable by which an executed worker learns what it inherits.
pub const INHERIT: &str = "OUTRIGGER_INHERIT";

impl WorkerSide {
    /// Replaces this child by another binary with the same arguments, which finds everything under `INHERIT`. Returns only
    /// where it could not.
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
        saved.number("since", since);
        saved.number("managed", managed.into());
        restarts.hand_over(&mut saved);
        if let Some(crash) = crash {
            saved.number("fell", i64::from(crash.code));
            saved.number("hung", crash.hung.into());
            saved.number("out of memory", crash.out_of_memory.into());
        }
        if let Some(directory) = &directory {
            let _ = std::env::set_current_dir(directory);
        }
        saved.exec(binary, INHERIT)
    }

    /// What an executed worker inherits, where this process is one.
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
            since: saved.value("since").unwrap_or(0),
            managed: saved.value("managed") == Some(1),
            crash: saved.value("fell").and_then(|code| i32::try_from(code).ok()).map(|code| Crash {
                code,
                hung: saved.value("hung") == Some(1),
                out_of_memory: saved.value("out of memory") == Some(1),
            }),
            restarts: Restarts::inherited(&saved),
            directory: std::env::current_dir().ok(),
        })
    }
}
