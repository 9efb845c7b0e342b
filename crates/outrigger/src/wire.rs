//! The worker: builds the subsystems, creates the feeds between them, and leads them through the stop. In: plans, and what the
//! supervisor handed down. Out: an exit code. The subsystems meet here and nowhere else:
//!
//! ```text
//! proxy ── access records ──→ logs        proxy ── counters ──→ metrics        telemetry ──→ metrics (self), admin
//! supervisor ── app started, ended ──→ metrics (process), sync (signal), ready      sync ── revisions ──→ admin
//! ```

use crate::black_box::BlackBox;
use crate::control::{AppFacts, Control, Order};
use crate::grants;
use crate::load::Plans;
use crate::pulse::Pulse;
use crate::reload::Reloader;
use crate::stop::lead;
use admin::run::Controls;
use base::family::Gather;
use base::listen::Sockets;
use base::oplog;
use base::revisions::Revisions;
use base::scope::Scope;
use base::state::StateDir;
use base::subsystem::Conductor;
use base::telemetry::Telemetry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox::Holds;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};
use supervisor::message::ToSupervisor;
use supervisor::worker::{Fell, Kept, WorkerSide};
use sys::ring::Ring;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tracing::level_filters::LevelFilter;

/// Runs a worker on this thread until its end; answers its exit code.
pub fn worker(mut plans: Plans, side: WorkerSide, reloader: Reloader) -> i32 {
    // The one TLS provider; a second call in one process would be refused, and there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let level = oplog::start(LevelFilter::INFO);
    let needs = grants::needs(&plans);
    plans.app.written = grants::written(&needs);
    let inherited = match Inherited::from(side, &mut plans) {
        Ok(inherited) => inherited,
        Err(error) => {
            eprintln!("error: the worker cannot use what it inherited: {error}");
            return i32::from(crate::EXIT_MISTAKE);
        }
    };
    // Before the sandbox: a low port takes a right that is dropped then, and who holds a port is found in /proc.
    let mut errors = inherited.sockets.bind_early(&needs.listen);
    let socket = admin::run::prepare(&plans.config.admin).map_err(|error| errors.push(error)).ok().flatten();
    if !errors.is_empty() {
        return inherited.cannot_start(&errors, reloader.text());
    }
    prefer_app();
    set_limits(plans.memory);
    // While this process has one thread: what comes later inherits it.
    let granted = plans.config.sandbox.enabled.then(|| grants::grants(&plans, &needs));
    let marks = granted.as_ref().map(grants::marks).unwrap_or_default();
    let holds = granted.map(|granted| sandbox::enter(&granted));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(base::scope::BLOCKING_MAX + 2)
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
            i32::from(crate::EXIT_MISTAKE)
        }
    }
}

/// Where memory runs out, the kernel shall take us and not the app (proc_pid_oom_score_adj(5)).
fn prefer_app() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let adjusted = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok()).unwrap_or(0);
    // Raising it is allowed to everybody. A system that shows no such file has no such choice.
    let _ = std::fs::write(FILE, adjusted.saturating_add(OOM_ABOVE_APP).min(1000).to_string());
}

const OOM_ABOVE_APP: i32 = 200;

/// As many descriptors as are allowed, and an end to a leak that is quicker than the looks at it: an allocation beyond fails, and
/// the next worker goes on (getrlimit(2)).
fn set_limits(memory: u64) {
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    let data = memory.saturating_add(BURST);
    let allowed = getrlimit(Resource::Data).maximum.map_or(data, |most| most.min(data));
    let _ = setrlimit(Resource::Data, Rlimit { current: Some(allowed), maximum: Some(allowed) });
}

/// What one answer of a store may take for a moment, and stacks that are reserved and not used.
const BURST: u64 = 512 << 20;

async fn serve(
    plans: Plans,
    inherited: Inherited,
    socket: Option<admin::Prepared>,
    (holds, marks): (Option<Holds>, Vec<grants::Mark>),
    level: oplog::LevelHandle,
    reloader: Rc<Reloader>,
) -> i32 {
    let started_at = Instant::now();
    let telemetry = Telemetry::default();
    let facts = AppFacts {
        pid: Arc::default(),
        runs: watch::channel(inherited.companion).0,
        health: telemetry.health("app"),
        restarts: Rc::default(),
        ended: Rc::default(),
    };
    let Inherited { control, sockets, rings, wake, kept, watchdog, generation, owns, fell, since, companion } =
        inherited;
    let (control, orders) = match Control::new(control, facts.clone(), owns) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("error: the supervisor cannot be heard: {error}");
            return i32::from(crate::EXIT_MISTAKE);
        }
    };
    let scope = Scope::new("worker", facts.health.clone());
    scope.spawn("control", control.clone().hear());
    report_sandbox(holds.as_ref(), &facts);
    let worker = Worker {
        conductor: Conductor::default(),
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
        fell,
        since,
        companion,
        started_at,
        level,
        reloader,
        pulse: Pulse::new(watchdog),
    };
    #[cfg(feature = "backdoor")]
    let door = crate::backdoor::Door::open(&plans.state_dir, &worker.telemetry);
    let run = worker.run(plans);
    #[cfg(feature = "backdoor")]
    let run = door.beside(run);
    run.await
}

/// What does not hold is said once, and stays in the status.
fn report_sandbox(holds: Option<&Holds>, facts: &AppFacts) {
    let Some(holds) = holds else {
        return tracing::warn!("the sandbox is off by configuration");
    };
    if !holds.missing.is_empty() {
        let missing = holds.missing.join("; ");
        tracing::warn!(missing, "the sandbox is not whole on this system");
    }
    if !holds.absent.is_empty() {
        let absent: Vec<String> = holds.absent.iter().map(|path| path.display().to_string()).collect();
        tracing::debug!(paths = absent.join(", "), "not there yet; another worker takes over when they are");
    }
    facts.health.set_started();
}

/// What the supervisor handed down.
struct Inherited {
    control: OwnedFd,
    sockets: Sockets,
    rings: Option<(Ring, Ring)>,
    wake: OwnedFd,
    kept: Kept,
    watchdog: OwnedFd,
    generation: u32,
    owns: bool,
    fell: Option<Fell>,
    since: i64,
    companion: bool,
}

impl Inherited {
    /// Hands the plan over, and takes up what there is.
    fn from(side: WorkerSide, plans: &mut Plans) -> std::io::Result<Inherited> {
        let bytes = plans.app.encode();
        Kept::keep(&side.kept.plan, &bytes)?;
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
            fell: side.fell,
            since: side.since,
            companion: plans.command.is_empty(),
        })
    }

    fn cannot_start(&self, errors: &[String], text: &str) -> i32 {
        report_errors(errors, self.generation, &self.kept, text)
    }
}

/// Says why a worker cannot start. The next one then takes the last text that served.
fn report_errors(errors: &[String], generation: u32, kept: &Kept, text: &str) -> i32 {
    errors.iter().for_each(|error| eprintln!("error: {error}"));
    if generation > 0 {
        let _ = Kept::keep(&kept.refused, text.as_bytes());
    }
    i32::from(crate::EXIT_MISTAKE)
}

/// Everything of a worker that is not a subsystem.
struct Worker {
    conductor: Conductor,
    telemetry: Telemetry,
    scope: Scope,
    facts: AppFacts,
    control: Rc<Control>,
    orders: Receiver<Order>,
    sockets: Sockets,
    /// The admin socket, under a name that nobody knows yet.
    socket: Option<admin::Prepared>,
    rings: Option<(Ring, Ring)>,
    wake: OwnedFd,
    kept: Kept,
    generation: u32,
    fell: Option<Fell>,
    /// When the supervisor started, in seconds since 1970.
    since: i64,
    companion: bool,
    started_at: Instant,
    level: oplog::LevelHandle,
    reloader: Rc<Reloader>,
    sandbox: serde_json::Value,
    /// By which it is seen that a granted path is another one now.
    marks: Vec<grants::Mark>,
    pulse: Pulse,
}

impl Worker {
    /// Starts the proxy, says that we are ready, waits until the rings and the state are ours, and starts the rest.
    async fn run(mut self, mut plans: Plans) -> i32 {
        let times = plans.config.app.stop.clone();
        let port = plans.config.app.port;
        let mut errors = check(&plans);
        let records = plans.logs.as_ref().is_some_and(|plan| plan.reads_access());
        let (sender, receiver) = base::feed::feed(logs::source::proxy::FEED_MAX);
        let mut counters = None;
        if let Some(plan) = plans.proxy.take().filter(|_| errors.is_empty()) {
            let sender = records.then_some(sender);
            match proxy::run::start(plan, &self.sockets, &self.telemetry, &mut self.conductor, sender) {
                Ok(counted) => counters = Some(counted),
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            return report_errors(&errors, self.generation, &self.kept, self.reloader.text());
        }
        self.scope.spawn("pulse", self.pulse.clone().beat(self.telemetry.clone(), self.control.clone(), plans.memory));
        self.sockets.ready();
        if !self.control.owns().await {
            return i32::from(crate::EXIT_MISTAKE);
        }
        let state = StateDir::open(&plans.state_dir, plans.config.state.max.0);
        if let Some(trouble) = state.trouble() {
            tracing::warn!(trouble, "running without durability");
            self.telemetry.count(NO_STATE, &[]).set(1);
        }
        let access = records.then_some(receiver);
        let (mut gate, pages) = match self.start_rest(plans, &state, access, counters) {
            Ok(started) => started,
            Err(errors) => return report_errors(&errors, self.generation, &self.kept, self.reloader.text()),
        };
        self.sockets.forget_rest();
        self.scope.spawn("readiness", readiness(port, self.facts.clone()));
        let opener = self.control.clone();
        self.scope.spawn("gate", async move {
            gate.open().await;
            opener.send(ToSupervisor::StartApp);
        });
        if let Err(error) = Kept::keep(&self.kept.good, self.reloader.text().as_bytes()) {
            tracing::warn!(%error, "the configuration could not be kept as the last good one");
        }
        let watch = self.reloader.clone().watch(self.control.clone(), self.facts.health.clone(), self.marks);
        self.scope.spawn("reload", watch);
        self.scope.spawn("signals", signals(self.control.clone(), self.reloader.clone(), self.companion));
        lead(&self.control, &mut self.orders, &mut self.conductor, &self.facts, &times, &state, pages).await
    }

    /// Starts what reads the rings and writes the state. Answers what the app waits for, and the scope of our own pages.
    fn start_rest(
        &mut self,
        plans: Plans,
        state: &StateDir,
        access: Option<base::feed::FeedReceiver<base::feed::AccessBatch>>,
        counters: Option<Arc<proxy::Counters>>,
    ) -> Result<(Gate, Scope), Vec<String>> {
        let (telemetry, conductor) = (&self.telemetry.clone(), &mut self.conductor);
        let mut errors = Vec::new();
        let mut gate = Gate { sync: None, scopes: Vec::new() };
        if let Some(plan) = plans.logs {
            let wake = self.wake.try_clone().ok();
            let inputs = logs::run::Inputs { rings: self.rings.clone(), wake, access, state: state.clone() };
            errors.extend(logs::run::start(plan, inputs, telemetry, conductor).err().unwrap_or_default());
        }
        let gathered: Option<Arc<dyn Gather>> = counters.clone().map(|counters| counters as Arc<dyn Gather>);
        let mut samples: Rc<dyn Fn() -> String> = Rc::new(String::new);
        if let Some(plan) = plans.metrics {
            let own: Arc<dyn Gather> = Arc::new(telemetry.clone());
            let apps = |counters| -> Arc<dyn Gather> { Arc::new(Part { counters, ours: false }) };
            let inputs = metrics::source::Inputs {
                app_pid: self.facts.pid.clone(),
                descriptors: descriptors(self.control.clone()),
                proxy: gathered.clone().map(apps),
                own,
            };
            match metrics::run::start(plan, &inputs, &self.sockets, telemetry, conductor) {
                Ok((scope, sources)) => {
                    gate.scopes.push(scope);
                    samples = Rc::new(move || sources.last_page());
                }
                Err(found) => errors.extend(found),
            }
        }
        let revisions = Revisions::default();
        if !plans.sync.entries.is_empty() {
            let inputs = sync::run::Inputs {
                state: state.clone(),
                revisions: revisions.clone(),
                app_runs: self.facts.runs.subscribe(),
                signal_app: signaller(self.control.clone(), self.facts.pid.clone()),
            };
            match sync::run::start(plans.sync, &inputs, telemetry, conductor) {
                Ok((scope, opens)) => {
                    gate.scopes.push(scope);
                    gate.sync = Some(opens);
                }
                Err(found) => errors.extend(found),
            }
        }
        if let Some(end) = plans.config.app.end.clone() {
            let control = self.control.clone();
            let gone =
                crate::app::end::watch(end, self.since, move |code| control.send(ToSupervisor::AppGone { code }));
            self.scope.spawn("end", gone);
        }
        let requests: Rc<dyn Fn() -> Vec<serde_json::Value>> = match counters {
            Some(counters) => Rc::new(move || counters.recent()),
            None => Rc::new(Vec::new),
        };
        let (rings, generation) = (self.rings.clone(), self.generation);
        self.keep_black_box(BlackBox { state: state.clone(), rings, samples, requests, generation });
        let shown = admin::view::View {
            telemetry: telemetry.clone(),
            revisions,
            state: state.clone(),
            config: plans.shown,
            started_at: self.started_at,
            generation: self.generation,
            app: shown_app(self.facts.clone()),
            sandbox: self.sandbox.clone(),
        };
        let pages = Scope::new("admin", self.facts.health.clone());
        let controls = self.controls();
        let socket = self.socket.take();
        let started = admin::run::start(
            &plans.config.admin,
            socket,
            Rc::new(shown),
            controls,
            &self.sockets,
            &pages,
            &self.scope,
        );
        errors.extend(started.err().unwrap_or_default());
        if let Some(counters) = gathered {
            telemetry.register(Arc::new(Part { counters, ours: true }));
        }
        if errors.is_empty() { Ok((gate, pages)) } else { Err(errors) }
    }

    /// Writes down what was going on when the app ends abnormally from now on, and what is left of a worker that fell.
    fn keep_black_box(&mut self, black_box: BlackBox) {
        if let Some(fell) = self.fell.take() {
            let Fell { code, hung } = fell;
            tracing::error!(
                code,
                hung,
                generation = self.generation,
                "the worker before this one fell; this one goes on"
            );
            self.telemetry.count(FALLEN, &[]).add(1);
            black_box.worker_fell(fell);
        }
        self.control.on_ended(move |ended| black_box.app_ended(ended));
    }

    fn controls(&self) -> Controls {
        let (again, control) = (self.reloader.clone(), self.control.clone());
        let (upgrader, stopper) = (self.control.clone(), self.control.clone());
        Controls {
            level: self.level.clone(),
            reload: Rc::new(move || again.reload(&control)),
            upgrade: Rc::new(move |binary| {
                let control = upgrader.clone();
                Box::pin(async move { control.upgrade(binary.as_deref()).await })
            }),
            stop: Rc::new(move |within| {
                let within_ms = within.map_or(0, |time| u64::try_from(time.as_millis().max(1)).unwrap_or(u64::MAX));
                stopper.send(ToSupervisor::Stop { within_ms });
            }),
        }
    }
}

const NO_STATE: base::telemetry::Name =
    base::telemetry::Name::gauge("outrigger_state_unwritable", "1 where progress is not kept over a restart.");
const FALLEN: base::telemetry::Name =
    base::telemetry::Name::counter("outrigger_worker_fallen_total", "Workers that ended without having been asked to.");

/// What can be found out about a configuration before anything of it is started: certificates, credentials.
fn check(plans: &Plans) -> Vec<String> {
    let mut errors = Vec::new();
    errors.extend(plans.logs.iter().flat_map(logs::run::check));
    errors.extend(plans.metrics.iter().flat_map(metrics::run::check));
    errors.extend(sync::run::check(&plans.sync));
    errors
}

fn shown_app(facts: AppFacts) -> Rc<dyn Fn() -> serde_json::Value> {
    Rc::new(move || {
        let pid = Some(facts.pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0);
        let ended = facts.ended.get().map(|ended| {
            serde_json::json!({
                "code": ended.code, "signal": ended.signal,
                "core_dumped": ended.core_dumped, "oom_killed": ended.out_of_memory,
            })
        });
        let (runs, restarts) = (*facts.runs.borrow(), facts.restarts.get());
        serde_json::json!({ "pid": pid, "runs": runs, "restarts": restarts, "ended": ended })
    })
}

fn descriptors(control: Rc<Control>) -> metrics::source::CountDescriptors {
    Rc::new(move |pid| {
        let control = control.clone();
        Box::pin(async move { control.descriptors(pid).await })
    })
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
            control.send(ToSupervisor::SignalApp { signal });
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

/// Signals to this process itself. Whoever stops a whole control group sends SIGTERM to each process in it: the order of a stop is
/// the supervisor's, so that it is told. SIGHUP reads the configuration again where there is no app of ours to get it.
async fn signals(control: Rc<Control>, reloader: Rc<Reloader>, companion: bool) {
    let listen = |kind| signal(kind).ok();
    let (Some(mut terminate), Some(mut interrupt), Some(mut hangup), Some(mut upgrade)) = (
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
        listen(SignalKind::hangup()),
        listen(SignalKind::user_defined2()),
    ) else {
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => control.send(ToSupervisor::Stop { within_ms: 0 }),
            _ = interrupt.recv() => control.send(ToSupervisor::Stop { within_ms: 0 }),
            _ = upgrade.recv() => control.upgrade_signalled(),
            _ = hangup.recv(), if companion => {
                if let Err(report) = reloader.reload(&control) {
                    eprint!("{report}");
                }
            }
        }
    }
}

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
