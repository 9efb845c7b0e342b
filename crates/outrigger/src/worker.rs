//! A worker's start, while it has one thread: it hands the plan over, binds what it listens on, gives up every right that the
//! configuration does not need, and then runs. In: plans, and what the supervisor handed down. Out: an exit code.

use crate::compose::Worker;
use crate::control::{AppFacts, Control};
use crate::grants;
use crate::plans::Plans;
use crate::reload::Reloader;
use crate::start_errors::report_errors;
use crate::telemetry::AppMetrics;
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
use std::time::{Duration, Instant};
use supervisor::message::ToSupervisor;
use supervisor::restarts::Restarts;
use supervisor::worker::{Crash, SavedConfig, WorkerSide};
use sys::ring::Ring;
use tokio::sync::watch;

/// Runs a worker on this thread until its end; answers its exit code.
pub fn start(mut plans: Plans, side: WorkerSide, reloader: Reloader, level: logging::LevelHandle) -> i32 {
    sys::home::provide();
    // The one TLS provider; a second call in one process would be refused, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    plans.app.written = grants::written(&plans.needs);
    let inherited = match Inherited::from(side, &mut plans, reloader.text()) {
        Ok(inherited) => inherited,
        Err(error) => {
            eprintln!("error: the worker cannot use what it inherited: {error}");
            return i32::from(crate::EXIT_ERROR);
        }
    };
    // Before the sandbox: a low port takes a right that is dropped then, and who holds a port is found in /proc.
    let mut errors = inherited.sockets.bind_early(&plans.needs.listen);
    let socket = admin::run::prepare(&plans.config.admin).map_err(|error| errors.push(error)).ok().flatten();
    if !errors.is_empty() {
        return inherited.cannot_start(&errors, reloader.text());
    }
    prefer_app();
    set_limits(&plans);
    // While this process has one thread: what comes later inherits it.
    let granted = plans.config.sandbox.enabled.then(|| grants::grants(&plans));
    let marks = granted.as_ref().map(|granted| grants::marks(granted, &plans.needs)).unwrap_or_default();
    let holds = granted.map(|granted| sandbox::enter(&granted));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(base::runtime::scope::BLOCKING_MAX + 2)
        .build_local(tokio::runtime::LocalOptions::default());
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(serve(plans, inherited, socket, (holds, marks), level, Rc::new(reloader)));
            // A store that hangs in a system call must not hold up the end.
            runtime.shutdown_timeout(Duration::from_millis(100));
            code
        }
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            i32::from(crate::EXIT_ERROR)
        }
    }
}

/// Where memory runs out, the kernel shall take us and not the app (proc_pid_oom_score_adj(5)).
fn prefer_app() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let adjusted = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or(0);
    // Raising it is allowed to everybody. A system that shows no such file has no such choice.
    sys::process::set_readable_by_others(true);
    let _ = std::fs::write(FILE, adjusted.saturating_add(OOM_ABOVE_APP).min(1000).to_string());
    sys::process::set_readable_by_others(false);
}

const OOM_ABOVE_APP: i32 = 200;

/// As many descriptors as are allowed, and an end to a leak that is quicker than the looks at it: an allocation beyond fails, and
/// the next worker goes on (getrlimit(2)).
fn set_limits(plans: &Plans) {
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    // A platform that ends all of a container for want of memory must not be given the reason by us, where the app is in it.
    let shared = plans.container.filter(|_| !plans.command.is_empty());
    let burst = shared.map_or(BURST, |limit| BURST.min((limit / BURST_SHARE).max(BURST_LEAST)));
    let data = plans.memory.saturating_add(burst);
    let allowed = getrlimit(Resource::Data).maximum.map_or(data, |most| most.min(data));
    let _ = setrlimit(Resource::Data, Rlimit { current: Some(allowed), maximum: Some(allowed) });
}

/// What one answer of a store may take for a moment, and stacks that are reserved and not used.
const BURST: u64 = 512 << 20;
const BURST_SHARE: u64 = 4;
const BURST_LEAST: u64 = 24 << 20;

async fn serve(
    plans: Plans,
    inherited: Inherited,
    socket: Option<admin::Prepared>,
    (holds, marks): (Option<Holds>, Vec<grants::Mark>),
    level: logging::LevelHandle,
    reloader: Rc<Reloader>,
) -> i32 {
    let started_at = Instant::now();
    let telemetry = Telemetry::default();
    let facts = app_facts(&plans, inherited.companion, &telemetry);
    let Inherited {
        control,
        sockets,
        rings,
        wake,
        kept,
        watchdog,
        generation,
        owns,
        crash,
        restarts,
        since,
        companion,
    } = inherited;
    let (control, orders) = match Control::new(control, facts.clone(), owns) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("error: cannot open the control socket: {error}");
            return i32::from(crate::EXIT_ERROR);
        }
    };
    let scope = Scope::new("worker", facts.health.clone());
    scope.spawn("control", control.clone().recv());
    report_sandbox(holds.as_ref(), &facts);
    let worker = Worker {
        lifecycle: Lifecycle::default(),
        sandbox: holds.as_ref().map_or(serde_json::Value::Null, |holds| serde_json::json!(holds)),
        marks,
        telemetry,
        scope,
        facts,
        control,
        orders,
        sockets,
        socket,
        rings,
        wake,
        kept,
        generation,
        crash,
        restarts,
        since,
        companion,
        started_at,
        level,
        reloader,
        self_check: SelfCheck::new(watchdog),
    };
    #[cfg(feature = "fault-injection")]
    let door = crate::faults::Door::open(&plans.state_dir, &worker.telemetry);
    let run = worker.run(plans);
    #[cfg(feature = "fault-injection")]
    let run = door.beside(run);
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

/// What does not hold is said once, and stays in the status.
fn report_sandbox(holds: Option<&Holds>, facts: &AppFacts) {
    let Some(holds) = holds else {
        return tracing::warn!("the sandbox is off by configuration");
    };
    if !holds.missing.is_empty() {
        let missing = holds.missing.join("; ");
        tracing::warn!(missing, "the sandbox is only partially enforced on this kernel");
    }
    if !holds.absent_paths.is_empty() {
        let absent: Vec<String> = holds.absent_paths.iter().map(|path| path.display().to_string()).collect();
        tracing::debug!(
            paths = absent.join(", "),
            "configured paths do not exist yet; a new worker is started once they do"
        );
    }
    facts.health.set_started();
}

/// What the supervisor handed down.
struct Inherited {
    control: OwnedFd,
    sockets: Sockets,
    rings: Option<(Ring, Ring)>,
    wake: OwnedFd,
    kept: SavedConfig,
    watchdog: OwnedFd,
    generation: u32,
    owns: bool,
    crash: Option<Crash>,
    restarts: Restarts,
    since: i64,
    companion: bool,
}

impl Inherited {
    /// Hands the plan over, and takes up what there is.
    fn from(side: WorkerSide, plans: &mut Plans, text: &str) -> std::io::Result<Inherited> {
        let bytes = plans.app.encode();
        SavedConfig::keep(&side.proposal.text, text.as_bytes())?;
        SavedConfig::keep(&side.proposal.plan, &bytes)?;
        supervisor::message::send(&side.control, &ToSupervisor::Plan { bytes: bytes.len() as u64 }.encode())?;
        // The first worker says whether there is a capture; for those after it, there is one or there is none.
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
            kept: side.kept,
            watchdog: side.watchdog,
            generation: side.generation,
            owns: side.owns,
            crash: side.crash,
            restarts: side.restarts,
            since: side.since,
            companion: plans.command.is_empty(),
        })
    }

    fn cannot_start(&self, errors: &[String], text: &str) -> i32 {
        // Where it does not arrive, the exit code says it as well.
        let send = |message: ToSupervisor<'_>| drop(supervisor::message::send(&self.control, &message.encode()));
        report_errors(errors, self.generation, &self.kept, text, send)
    }
}
