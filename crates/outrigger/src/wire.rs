//! The worker: builds the subsystems, creates the feeds between them, and leads them through the stop. In: plans, and what the
//! supervisor handed down. Out: an exit code. The subsystems meet here and nowhere else:
//!
//! ```text
//! proxy ── access records ──→ logs        proxy ── counters ──→ metrics        telemetry ──→ metrics (self), admin
//! supervisor ── app started, ended ──→ metrics (process), sync (signal), ready      sync ── revisions ──→ admin
//! ```

use crate::load::Plans;
use crate::reload::{LAST_GOOD, REFUSED, Reloader};
use crate::stop::{Control, lead};
use crate::supervise::Role;
use admin::run::Controls;
use base::family::Gather;
use base::listen::Sockets;
use base::oplog;
use base::revisions::Revisions;
use base::scope::Scope;
use base::state::StateDir;
use base::subsystem::{Conductor, Health};
use base::telemetry::Telemetry;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

/// Runs a worker on this thread until its end. Answers its exit code, and the sockets for a worker after it in this process.
pub fn worker(plans: Plans, role: Role, reloader: Reloader) -> (i32, Sockets) {
    // The one TLS provider; a second call in one process would be refused, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let level = oplog::start(LevelFilter::INFO);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(base::scope::BLOCKING_MAX + 2)
        .build_local(tokio::runtime::LocalOptions::default());
    match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(async {
                match Inherited::from(role) {
                    Ok(inherited) => {
                        let sockets = inherited.sockets.clone();
                        (serve(plans, inherited, level, Rc::new(reloader)).await, sockets)
                    }
                    Err(error) => {
                        tracing::error!(%error, "the worker cannot use what it inherited");
                        (i32::from(crate::EXIT_MISTAKE), Sockets::default())
                    }
                }
            });
            // A store that hangs in a system call must not hold up the end.
            runtime.shutdown_timeout(Duration::from_millis(100));
            ended
        }
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            (i32::from(crate::EXIT_MISTAKE), Sockets::default())
        }
    }
}

/// What the app is doing, for whoever needs to know.
#[derive(Clone)]
pub struct AppFacts {
    pub pid: Arc<AtomicI32>,
    pub runs: watch::Sender<bool>,
    pub health: Arc<Health>,
}

async fn serve(plans: Plans, inherited: Inherited, level: oplog::LevelHandle, reloader: Rc<Reloader>) -> i32 {
    let started_at = Instant::now();
    let stop = plans.config.app.stop.clone();
    let telemetry = Telemetry::default();
    let mut conductor = Conductor::default();
    let health = telemetry.health("app");
    let scope = Scope::new("worker", health.clone());
    let facts = AppFacts { pid: Arc::default(), runs: watch::channel(inherited.companion).0, health };
    let state = StateDir::open(&plans.state_dir, plans.config.state.max.0);
    if let Some(trouble) = state.trouble() {
        tracing::warn!(trouble, "running without durability");
        telemetry.count(NO_STATE, &[]).set(1);
    }
    let Inherited { control, sockets, rings, wake, generation, companion } = inherited;
    let control = Rc::new(control);
    let view = View { revisions: Revisions::default(), shown: plans.shown.clone(), started_at, generation };
    let port = plans.config.app.port;
    let again = reloader.clone();
    let reload: Rc<dyn Fn() -> Result<String, String>> = Rc::new(move || again.reload());
    let built = build(
        plans,
        &telemetry,
        &mut conductor,
        &scope,
        &sockets,
        &state,
        &facts,
        &control,
        (rings, wake),
        view,
        Controls { level, reload },
    );
    let mut gate = match built {
        Ok(gate) => gate,
        Err(errors) => {
            errors.iter().for_each(|error| eprintln!("error: {error}"));
            if generation > 0 {
                // The next worker then takes the last text that served. What cannot be written is tried again.
                let _ = state.write(REFUSED, reloader.text().as_bytes());
            }
            return i32::from(crate::EXIT_MISTAKE);
        }
    };
    sockets.forget_rest();
    sockets.notify("READY=1", None);
    scope.spawn("watchdog", watchdog(sockets.clone()));
    scope.spawn("readiness", readiness(port, facts.clone()));
    let opener = control.clone();
    scope.spawn("gate", async move {
        gate.open().await;
        opener.start_app();
    });
    if let Err(error) = state.write(LAST_GOOD, reloader.text().as_bytes()) {
        tracing::warn!(%error, "the configuration could not be kept as the last good one");
    }
    scope.spawn("reload", reloader.clone().watch(facts.health.clone()));
    if companion {
        scope.spawn("hangup", hangup(reloader.clone()));
    }
    lead(&control, &mut conductor, &facts, &stop, &reloader.wanted()).await
}

const NO_STATE: base::telemetry::Name =
    base::telemetry::Name::gauge("outrigger_state_unwritable", "1 where progress is not kept over a restart.");

/// What the supervisor handed down, or what stands for it beside a container.
struct Inherited {
    control: Control,
    sockets: Sockets,
    rings: Option<(sys::ring::Ring, sys::ring::Ring)>,
    wake: Option<OwnedFd>,
    generation: u32,
    companion: bool,
}

impl Inherited {
    fn from(role: Role) -> std::io::Result<Inherited> {
        Ok(match role {
            Role::Companion(stored) => Inherited {
                control: Control::signals()?,
                sockets: Sockets::new(stored, None),
                rings: None,
                wake: None,
                generation: 0,
                companion: true,
            },
            Role::Wrapped(side) => Inherited {
                control: Control::supervisor(side.control)?,
                sockets: Sockets::new(side.stored, Some(Arc::new(side.notify))),
                rings: side.rings,
                wake: Some(side.wake),
                generation: side.generation,
                companion: false,
            },
        })
    }
}

struct View {
    revisions: Revisions,
    shown: serde_json::Value,
    started_at: Instant,
    generation: u32,
}

/// Starts every subsystem that is configured. Errors are all that stands in the way of any.
#[expect(clippy::too_many_arguments, reason = "this is where everything meets")]
fn build(
    plans: Plans,
    telemetry: &Telemetry,
    conductor: &mut Conductor,
    scope: &Scope,
    sockets: &Sockets,
    state: &StateDir,
    facts: &AppFacts,
    control: &Rc<Control>,
    (rings, wake): (Option<(sys::ring::Ring, sys::ring::Ring)>, Option<OwnedFd>),
    view: View,
    controls: Controls,
) -> Result<Gate, Vec<String>> {
    let mut errors = Vec::new();
    let records = plans.logs.as_ref().is_some_and(|plan| plan.reads_access());
    let (sender, receiver) = base::feed::feed(logs::source::proxy::FEED_MAX);
    let mut counters: Option<Arc<dyn Gather>> = None;
    if let Some(plan) = plans.proxy {
        match proxy::run::start(plan, sockets, telemetry, conductor, records.then_some(sender)) {
            Ok(counted) => counters = Some(counted),
            Err(found) => errors.extend(found),
        }
    }
    if let Some(plan) = plans.logs {
        let inputs = logs::run::Inputs { rings, wake, access: records.then_some(receiver), state: state.clone() };
        errors.extend(logs::run::start(plan, inputs, telemetry, conductor).err().unwrap_or_default());
    }
    let mut gate = Gate { sync: None, scopes: Vec::new() };
    if let Some(plan) = plans.metrics {
        let own: Arc<dyn Gather> = Arc::new(telemetry.clone());
        let apps = |counters| -> Arc<dyn Gather> { Arc::new(Part { counters, ours: false }) };
        let inputs = metrics::source::Inputs { app_pid: facts.pid.clone(), proxy: counters.clone().map(apps), own };
        match metrics::run::start(plan, &inputs, sockets, telemetry, conductor) {
            Ok(scope) => gate.scopes.push(scope),
            Err(found) => errors.extend(found),
        }
    }
    if !plans.sync.entries.is_empty() {
        let inputs = sync::run::Inputs {
            state: state.clone(),
            revisions: view.revisions.clone(),
            app_runs: facts.runs.subscribe(),
            signal_app: signaller(control.clone(), facts.pid.clone()),
        };
        match sync::run::start(plans.sync, &inputs, telemetry, conductor) {
            Ok((scope, opens)) => {
                gate.scopes.push(scope);
                gate.sync = Some(opens);
            }
            Err(found) => errors.extend(found),
        }
    }
    let shown = admin::view::View {
        telemetry: telemetry.clone(),
        revisions: view.revisions,
        state: state.clone(),
        config: view.shown,
        started_at: view.started_at,
        generation: view.generation,
    };
    errors.extend(
        admin::run::start(&plans.config.admin, Rc::new(shown), controls, sockets, scope).err().unwrap_or_default(),
    );
    if let Some(counters) = counters {
        telemetry.register(Arc::new(Part { counters, ours: true }));
    }
    if errors.is_empty() { Ok(gate) } else { Err(errors) }
}

/// The proxy counts two things: the app's requests, which belong on the app's page, and itself, which belongs on ours.
struct Part {
    counters: Arc<dyn Gather>,
    ours: bool,
}

impl Gather for Part {
    fn gather(&self, families: &mut Vec<base::family::Family>) {
        let mut all = Vec::new();
        self.counters.gather(&mut all);
        families.extend(all.into_iter().filter(|family| family.name.starts_with("outrigger_") == self.ours));
    }
}

/// Signals the app where it handles the signal.
fn signaller(control: Rc<Control>, pid: Arc<AtomicI32>) -> Rc<dyn Fn(i32) -> bool> {
    Rc::new(move |signal| {
        let handled = handles(pid.load(Ordering::Relaxed), signal);
        if handled {
            control.signal_app(signal);
        }
        handled
    })
}

/// Whether a process catches or ignores a signal (proc_pid_status(5): SigCgt, SigIgn). Where it cannot be told: yes.
fn handles(pid: i32, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let has = |line: &str| {
        let mask = line.split_once(':').and_then(|(_, mask)| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
    };
    status.lines().filter(|line| line.starts_with("SigCgt:") || line.starts_with("SigIgn:")).any(has)
}

/// What the app waits for, and the tasks on this thread, which end when it is dropped.
struct Gate {
    sync: Option<sync::run::Gate>,
    scopes: Vec<Scope>,
}

impl Gate {
    async fn open(&mut self) {
        if let Some(sync) = &mut self.sync {
            sync.open().await;
        }
        // The proxy listens since before the subsystems were started. The scopes live as long as the worker.
        std::mem::forget(std::mem::take(&mut self.scopes));
    }
}

/// SIGHUP reads the configuration again; in wrap mode it is the app's.
async fn hangup(reloader: Rc<Reloader>) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        if let Err(report) = reloader.reload() {
            eprint!("{report}");
        }
    }
}

async fn watchdog(sockets: Sockets) {
    loop {
        tokio::time::sleep(WATCHDOG_EVERY).await;
        sockets.notify("WATCHDOG=1", None);
    }
}

/// A sixth of the time after which the supervisor takes us for dead.
const WATCHDOG_EVERY: Duration = Duration::from_secs(5);

/// Ready needs an app that takes connections, where its port is known; where it is not, an app that runs.
async fn readiness(port: Option<u16>, facts: AppFacts) {
    facts.health.set_started();
    let mut runs = facts.runs.subscribe();
    let mut pause = READY_LOOK;
    loop {
        let up = *runs.borrow_and_update();
        let answers = match port {
            _ if !up => false,
            None => true,
            Some(port) => accepts(port).await,
        };
        facts.health.set_ready(answers);
        facts.health.set_summary(match (up, answers, port) {
            (false, ..) => "the app has not started".to_string(),
            (true, false, Some(port)) => format!("the app does not take connections on port {port}"),
            (true, true, Some(port)) => format!("the app takes connections on port {port}"),
            (true, ..) => "the app runs".to_string(),
        });
        if answers {
            // An app that takes connections is asked no more: each asking is a connection that it has to serve.
            let _ = runs.changed().await;
            continue;
        }
        let _ = tokio::time::timeout(pause, runs.changed()).await;
        pause = (pause * 2).min(READY_LOOK_MOST);
    }
}

const READY_LOOK: Duration = Duration::from_millis(50);
const READY_LOOK_MOST: Duration = Duration::from_secs(1);

async fn accepts(port: u16) -> bool {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connected = tokio::time::timeout(Duration::from_secs(1), tokio::net::TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}
