//! A worker's start, while it has one thread: it sends the plan to the supervisor, binds its listeners, drops every privilege
//! that the configuration does not require, and then runs. In: plans, and the state inherited from the supervisor. Out: an exit
//! code.

use crate::compose::Worker;
use crate::control::{AppFacts, Control};
use crate::grants;
use crate::plans::Plans;
use crate::reload::Reloader;
use crate::start_errors::report_errors;
use crate::telemetry::{AppMetrics, OwnProcesses};
use crate::watchdog::SelfCheck;
use base::runtime::lifecycle::Lifecycle;
use base::runtime::scope::Scope;
use base::system::listen::Sockets;
use base::telemetry::Telemetry;
use base::telemetry::logging;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox::Holds;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use supervisor::message::ToSupervisor;
use supervisor::restarts::{RestartReason, Restarts};
use supervisor::worker::{Crash, SavedConfig, WorkerSide};
use sys::ring::Ring;
use tokio::sync::watch;

/// Runs a worker on this thread until it exits; returns its exit code.
pub fn start(mut plans: Plans, side: WorkerSide, reloader: Reloader, level: logging::LevelHandle) -> i32 {
    sys::home::provide();
    // The only TLS provider; a second call in the same process would fail, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    plans.app.written = grants::written(&plans.needs);
    let saved = reloader.to_save(&std::mem::take(&mut plans.contents));
    let inherited = match Inherited::from(side, &mut plans, &saved) {
        Ok(inherited) => inherited,
        Err(error) => {
            eprintln!("error: cannot use the state inherited from the supervisor: {error}");
            return i32::from(crate::EXIT_ERROR);
        }
    };
    // Before the sandbox: a privileged port requires a capability that is dropped there, and the process that uses a port is
    // found in /proc.
    let mut errors = inherited.sockets.bind_early(&plans.needs.listen);
    let socket = admin::run::prepare(&plans.config.admin).map_err(|error| errors.push(error)).ok().flatten();
    if !errors.is_empty() {
        return inherited.cannot_start(&errors, reloader.text());
    }
    raise_oom_score();
    set_limits(&plans);
    // While this process has one thread: later threads inherit it.
    let granted = plans.config.sandbox.enabled.then(|| grants::grants(&plans));
    let marks = granted.as_ref().map(|granted| grants::marks(granted, &plans.needs)).unwrap_or_default();
    let enforced = granted.map(|granted| sandbox::enter(&granted));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(base::runtime::scope::BLOCKING_MAX + 2)
        .build_local(tokio::runtime::LocalOptions::default());
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(serve(plans, inherited, socket, (enforced, marks), level, Rc::new(reloader)));
            // A store that hangs in a system call must not block the exit.
            runtime.shutdown_timeout(Duration::from_millis(100));
            code
        }
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            i32::from(crate::EXIT_ERROR)
        }
    }
}

/// If memory runs out, the kernel should kill Outrigger and not the app (proc_pid_oom_score_adj(5)).
fn raise_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let current = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or(0);
    // Every process may raise its own score. A system without this file has no such setting.
    sys::process::set_readable_by_others(true);
    let _ = std::fs::write(FILE, current.saturating_add(OOM_ABOVE_APP).min(1000).to_string());
    sys::process::set_readable_by_others(false);
}

const OOM_ABOVE_APP: i32 = 200;

/// Raises the limit of file descriptors to the maximum, and limits memory (RLIMIT_DATA) for leaks faster than the self-checks: an
/// allocation beyond the limit fails, and the next worker takes over (getrlimit(2)).
fn set_limits(plans: &Plans) {
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    // A platform that kills a complete container at its memory limit must not do so because of Outrigger if the app is in it.
    let shared = plans.container.filter(|_| !plans.command.is_empty());
    let burst = shared.map_or(BURST, |limit| BURST.min((limit / BURST_SHARE).max(BURST_MIN)));
    let data = plans.memory.saturating_add(burst);
    let allowed = getrlimit(Resource::Data).maximum.map_or(data, |max| max.min(data));
    let _ = setrlimit(Resource::Data, Rlimit { current: Some(allowed), maximum: Some(allowed) });
}

/// The memory that one response of a store may use briefly, and stacks that are reserved and not used.
const BURST: u64 = 512 << 20;
const BURST_SHARE: u64 = 4;
const BURST_MIN: u64 = 24 << 20;

async fn serve(
    plans: Plans,
    inherited: Inherited,
    socket: Option<admin::Prepared>,
    (enforced, marks): (Option<Holds>, Vec<grants::Mark>),
    level: logging::LevelHandle,
    reloader: Rc<Reloader>,
) -> i32 {
    let telemetry = Telemetry::default();
    let facts = app_facts(&plans, inherited.companion, &telemetry);
    let Inherited {
        control,
        sockets,
        rings,
        wake,
        saved,
        watchdog,
        generation,
        owns,
        cause,
        crash,
        restarts,
        since,
        companion,
        processes,
    } = inherited;
    let (control, events) = match Control::new(control, facts.clone(), owns) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("error: cannot open the control socket: {error}");
            return i32::from(crate::EXIT_ERROR);
        }
    };
    let scope = Scope::new("worker", facts.health.clone());
    scope.spawn("control", control.clone().recv());
    telemetry.register(Arc::new(processes));
    report_sandbox(enforced.as_ref(), &facts);
    let worker = Worker {
        lifecycle: Lifecycle::default(),
        sandbox: enforced.as_ref().map_or(serde_json::Value::Null, |enforced| serde_json::json!(enforced)),
        marks,
        telemetry,
        scope,
        facts,
        control,
        events,
        sockets,
        socket,
        rings,
        wake,
        saved,
        generation,
        cause,
        crash,
        restarts,
        since,
        companion,
        level,
        reloader,
        self_check: SelfCheck::new(watchdog),
    };
    #[cfg(feature = "fault-injection")]
    let faults = crate::faults::FaultSocket::open(&plans.state_dir, &worker.telemetry);
    let run = worker.run(plans);
    #[cfg(feature = "fault-injection")]
    let run = faults.serve_during(run);
    run.await
}

fn app_facts(plans: &Plans, companion: bool, telemetry: &Telemetry) -> AppFacts {
    AppFacts {
        pid: Arc::default(),
        runs: watch::channel(companion).0,
        was_ready: watch::channel(false).0,
        health: telemetry.health("app"),
        restarts: Rc::default(),
        restarts_max: plans.config.app.restart.max_restarts.unwrap_or(0),
        ended: Rc::default(),
        metrics: AppMetrics::new(telemetry),
    }
}

/// Restrictions that are not enforced are logged once, and stay in the status.
fn report_sandbox(enforced: Option<&Holds>, facts: &AppFacts) {
    let Some(enforced) = enforced else {
        return tracing::warn!("the sandbox is off by configuration");
    };
    if !enforced.missing.is_empty() {
        let missing = enforced.missing.join("; ");
        tracing::warn!(missing, "the sandbox is only partially enforced on this kernel");
    }
    if !enforced.absent_paths.is_empty() {
        let absent: Vec<String> = enforced.absent_paths.iter().map(|path| path.display().to_string()).collect();
        tracing::debug!(
            paths = absent.join(", "),
            "configured paths do not exist yet; a new worker is started once they do"
        );
    }
    facts.health.set_started();
}

/// The state inherited from the supervisor.
struct Inherited {
    control: OwnedFd,
    sockets: Sockets,
    rings: Option<(Ring, Ring)>,
    wake: OwnedFd,
    saved: SavedConfig,
    watchdog: OwnedFd,
    generation: u32,
    owns: bool,
    cause: Option<RestartReason>,
    crash: Option<Crash>,
    restarts: Restarts,
    since: i64,
    companion: bool,
    processes: OwnProcesses,
}

impl Inherited {
    /// Sends the plan to the supervisor, and adopts the inherited state.
    fn from(side: WorkerSide, plans: &mut Plans, saved: &[u8]) -> std::io::Result<Inherited> {
        let bytes = plans.app.encode();
        SavedConfig::keep(&side.proposal.text, saved)?;
        SavedConfig::keep(&side.proposal.plan, &bytes)?;
        supervisor::message::send(&side.control, &ToSupervisor::Plan { bytes: bytes.len() as u64 }.encode())?;
        // The first worker decides whether output is captured; later workers cannot change that.
        let captured = side.rings.0.is_sized() || (side.generation == 0 && plans.app.capture_bytes.is_some());
        let rings = match plans.app.capture_bytes.filter(|_| captured) {
            Some(capacity) => Some((side.rings.0.sized(capacity)?, side.rings.1.sized(capacity)?)),
            None => None,
        };
        Ok(Inherited {
            control: side.control,
            sockets: Sockets::new(side.stored, Some(Arc::new(side.notify)), side.managed),
            rings,
            wake: side.wake,
            saved: side.kept,
            watchdog: side.watchdog,
            generation: side.generation,
            owns: side.owns,
            cause: side.cause,
            crash: side.crash,
            restarts: side.restarts,
            since: side.since,
            companion: plans.command.is_empty(),
            processes: OwnProcesses::open(),
        })
    }

    fn cannot_start(&self, errors: &[String], text: &str) -> i32 {
        // If the message is lost, the exit code still reports the failure.
        let send = |message: ToSupervisor<'_>| drop(supervisor::message::send(&self.control, &message.encode()));
        report_errors(errors, self.generation, &self.saved, text, send)
    }
}
