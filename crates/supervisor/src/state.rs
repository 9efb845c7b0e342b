//! The state of the supervisor: the app, the workers, a stop, and what outlives a worker. The loop in `run.rs` collects events;
//! the files of `transitions` change this state.

use crate::app::App;
use crate::capture::Stream;
use crate::fdstore::Store;
use crate::message::StopCause;
use crate::plan::Plan;
use crate::systemd::Systemd;
use crate::terminal::Terminal;
use crate::worker::SavedConfig;
use crate::workers::Workers;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;
use sys::process::ExecPlan;
use sys::ring::Ring;
use sys::signal::SavedSignals;

pub(crate) struct Supervisor {
    /// None until the first worker has read the configuration.
    pub plan: Option<Plan>,
    pub exec: Option<ExecPlan>,
    /// The plan of a worker that is not ready yet, and perhaps never will be.
    pub next_plan: Option<(Plan, Option<ExecPlan>)>,
    pub signals: OwnedFd,
    pub saved: SavedSignals,
    /// Both ends of the pipe that notifies the worker of new bytes: the read end is for the next worker too.
    pub wake: OwnedFd,
    pub wake_read: OwnedFd,
    pub rings: (Ring, Ring),
    pub saved_config: SavedConfig,
    pub streams: Option<[Stream; 2]>,
    pub terminal: Terminal,
    pub app: App,
    pub workers: Workers,
    pub store: Store,
    pub systemd: Systemd,
    pub gate_until: Option<Instant>,
    pub stop: Option<Stop>,
    pub exit: Option<i32>,
    /// The directory that Outrigger was started in, in which the app starts too; the supervisor itself changes to `/`.
    pub directory: Option<PathBuf>,
    /// When this process started (Unix time).
    pub since: i64,
    /// The start is complete, and its memory is released.
    pub settled: bool,
    /// The file that this process was started from.
    pub binary: Vec<u8>,
}

/// A stop in progress.
pub(crate) struct Stop {
    pub cause: StopCause,
    pub until: Instant,
    pub drain_until: Instant,
    /// How long to wait for an external app.
    pub external_until: Instant,
    /// The signal that the app gets.
    pub signal: i32,
    pub kill_at: Option<Instant>,
    /// The app got SIGKILL.
    pub killed: bool,
    pub linger_until: Option<Instant>,
    pub exit_sent: bool,
}

impl Supervisor {
    pub(crate) fn new(signals: OwnedFd, saved: SavedSignals) -> io::Result<Supervisor> {
        if rustix::process::getpid() != Pid::INIT {
            // Orphans of the app become children of the supervisor and are reaped, as PID 1 would do.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        // Without /proc the path is not known; then an upgrade has to specify its binary.
        let binary = std::env::current_exe().unwrap_or_default();
        let systemd = Systemd::from_environment();
        let (wake_read, wake) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let directory = std::env::current_dir().ok();
        // A working directory prevents a volume from being unmounted while the supervisor runs.
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
            saved_config: SavedConfig::new()?,
            streams: None,
            terminal: Terminal::None,
            app: App::new(false),
            workers: Workers::new(Instant::now()),
            store: Store::new(systemd.stored()),
            systemd,
            gate_until: None,
            stop: None,
            exit: None,
            directory,
            since: unix_now(),
            settled: false,
            binary: std::os::unix::ffi::OsStringExt::into_vec(binary.into_os_string()),
        })
    }

    pub(crate) fn signal_app(&self, signal: i32) {
        self.app.signal(signal, self.plan.as_ref().is_none_or(|plan| plan.group));
    }

    pub(crate) fn wake_worker(&self) {
        // With a full pipe the worker is already notified.
        let _ = rustix::io::write(&self.wake, b"!");
    }
}

fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
