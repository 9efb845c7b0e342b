//! The only place that connects the subsystems: it starts them, creates the feeds between them, and runs their shutdown. In:
//! plans, and the state inherited from the supervisor. Out: an exit code.
//!
//! ```text
//! proxy ── access records ──→ logs        proxy ── counters ──→ metrics        telemetry ──→ metrics (self), admin
//! supervisor ── app started, exited ──→ metrics (process), sync (signal), ready      sync ── revisions ──→ admin
//! ```

use crate::app::OnTimeout;
use crate::app::ready::{readiness, signaller};
use crate::black_box::BlackBox;
use crate::control::{AppFacts, Control, Event};
use crate::grants;
use crate::plans::Plans;
use crate::reload::Reloader;
use crate::signals::signals;
use crate::start_errors::report_errors;
use crate::stop::{log_undelivered, run_until_exit};
use crate::telemetry::{ReloadMetrics, STATE_MAX, STATE_WRITABLE, WORKER_RESTARTS};
use crate::watchdog::SelfCheck;
use admin::controls::Controls;
use base::feeds::revisions::Revisions;
use base::runtime::lifecycle::Lifecycle;
use base::runtime::scope::Scope;
use base::runtime::state::StateDir;
use base::system::listen::Sockets;
use base::telemetry::Telemetry;
use base::telemetry::family::Gather;
use base::telemetry::logging;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use supervisor::message::{EXIT_HANDED_OVER, StopCause, ToSupervisor};
use supervisor::restarts::{RestartReason, Restarts};
use supervisor::worker::{Crash, SavedConfig};
use sys::ring::Ring;
use tokio::sync::mpsc::Receiver;

/// The parts of a worker other than its subsystems.
pub struct Worker {
    pub lifecycle: Lifecycle,
    pub telemetry: Telemetry,
    pub scope: Scope,
    pub facts: AppFacts,
    pub control: Rc<Control>,
    pub events: Receiver<Event>,
    pub sockets: Sockets,
    /// The admin socket, still under its temporary name.
    pub socket: Option<admin::Prepared>,
    pub rings: Option<(Ring, Ring)>,
    pub wake: OwnedFd,
    pub saved: SavedConfig,
    pub generation: u32,
    /// Why this worker was started; none for the first.
    pub cause: Option<RestartReason>,
    pub crash: Option<Crash>,
    pub restarts: Restarts,
    /// When the supervisor started, as Unix time in seconds.
    pub since: i64,
    pub companion: bool,
    pub level: logging::LevelHandle,
    pub reloader: Rc<Reloader>,
    pub sandbox: serde_json::Value,
    /// Marks that detect whether a granted path has been replaced.
    pub marks: Vec<grants::Mark>,
    pub self_check: SelfCheck,
}

impl Worker {
    /// Starts the proxy, reports readiness, waits for ownership of the rings and the state, and starts the other subsystems.
    pub async fn run(mut self, mut plans: Plans) -> i32 {
        let (times, start) = (plans.config.app.stop.clone(), plans.config.app.start.clone());
        let port = plans.config.app.port;
        self.register_components();
        let mut errors = plans.check();
        let records = plans.logs.as_ref().is_some_and(|plan| plan.reads_access());
        let (sender, receiver) = base::feeds::feed(logs::source::proxy::FEED_MAX);
        let mut counters = None;
        if let Some(plan) = plans.proxy.take().filter(|_| errors.is_empty()) {
            let sender = records.then_some(sender);
            match proxy::run::start(plan, &self.sockets, &self.telemetry, &mut self.lifecycle, sender) {
                Ok(counted) => counters = Some(counted),
                Err(found) => errors.extend(found),
            }
        }
        if !errors.is_empty() {
            return self.cannot_start(&errors);
        }
        self.scope.spawn(
            "self_check",
            self.self_check.clone().beat(self.telemetry.clone(), self.control.clone(), plans.memory),
        );
        self.sockets.ready();
        if !self.control.owns().await {
            return i32::from(crate::EXIT_ERROR);
        }
        let state = self.open_state(&plans);
        for (reason, count) in self.restarts.counts() {
            self.telemetry.counter(&WORKER_RESTARTS, &[reason.as_str()]).store(count);
        }
        let access = records.then_some(receiver);
        let listening = plans.listening();
        let (gate, admin) = match self.start_rest(plans, &state, access, counters) {
            Ok(started) => started,
            Err(errors) => return self.cannot_start(&errors),
        };
        self.sockets.forget_rest();
        self.scope.spawn("readiness", readiness(port, self.companion, self.facts.clone()));
        self.start_app_after(gate, start);
        self.control.send(ToSupervisor::Serving);
        self.log_start(listening);
        self.reloader.measure(ReloadMetrics::new(&self.telemetry, &self.restarts));
        let watch = self.reloader.clone().watch(self.control.clone(), self.facts.health.clone(), self.marks);
        self.scope.spawn("reload", watch);
        self.scope.spawn("signals", signals(self.control.clone(), self.reloader.clone(), self.companion));
        let code =
            run_until_exit(&self.control, &mut self.events, &mut self.lifecycle, &self.facts, &times, &state, admin)
                .await;
        if code != EXIT_HANDED_OVER {
            log_undelivered(&self.telemetry);
        }
        code
    }

    /// Requests the start of the app when the gates have opened, or after `app.start.timeout` if that is configured.
    fn start_app_after(&self, mut gate: Gate, start: crate::app::Start) {
        let (opener, telemetry, closed) = (self.control.clone(), self.telemetry.clone(), gate.sync.clone());
        let companion = self.companion;
        self.control.on_start_timeout(move || {
            let waiting_for = closed_entries(closed.as_ref());
            let timeout = start.timeout;
            tracing::error!(component = "app", %timeout, waiting_for, "start gates did not open within app.start.timeout");
        });
        self.scope.spawn("gate", async move {
            if tokio::time::timeout(start.timeout.0, gate.open()).await.is_err()
                && start.on_timeout == OnTimeout::Continue
            {
                // A platform that waits for `/started` before it starts the app of another container stops waiting, too.
                let waiting_for = closed_entries(gate.sync.as_ref());
                let next = if companion { "/started succeeds nevertheless" } else { "starting the app nevertheless" };
                tracing::warn!(component = "app", timeout = %start.timeout, waiting_for, "start gates did not open within app.start.timeout; {next}");
                telemetry.healths().iter().for_each(|health| health.set_started());
                opener.send(ToSupervisor::StartApp);
            }
            gate.open().await;
            opener.send(ToSupervisor::StartApp);
        });
    }

    /// One log line for what this worker is and why it was started.
    fn log_start(&self, listening: Option<String>) {
        let version = env!("CARGO_PKG_VERSION");
        match self.cause {
            None => {
                let mode = if self.companion { "companion" } else { "app" };
                let config = self.reloader.path().display().to_string();
                tracing::info!(version, mode, config, listening, "outrigger started");
            }
            Some(RestartReason::Reload) => tracing::info!(component = crate::reload::PART, listening, "reloaded"),
            Some(RestartReason::Upgrade) => tracing::info!(component = "worker", version, listening, "upgraded"),
            Some(reason) => tracing::info!(component = "worker", reason = reason.as_str(), "worker restarted"),
        }
    }

    /// A state directory that is not writable is reported, and everything runs without it.
    fn open_state(&self, plans: &Plans) -> StateDir {
        let state = StateDir::open(&plans.state_dir, plans.config.state.max_bytes.0);
        self.telemetry.gauge(&STATE_WRITABLE, &[]).set(u64::from(state.error().is_none()));
        self.telemetry.gauge(&STATE_MAX, &[]).set(plans.config.state.max_bytes.0);
        if let Some(error) = state.error() {
            tracing::warn!(
                component = "state.dir",
                error,
                "state directory not writable; checkpoints and buffers are not persisted"
            );
            let health = self.telemetry.health("state");
            health.component("state.dir", "directory");
            health.set_ready(true);
            health.fault("state.dir", error);
        }
        state
    }

    /// Registers the components in health that belong to no subsystem.
    fn register_components(&self) {
        let health = &self.facts.health;
        health.component(crate::reload::PART, "file");
        health.component("worker", "worker");
        health.component(crate::black_box::PART, "directory");
        if !self.companion {
            health.component("app", "process");
        }
    }

    fn cannot_start(&self, errors: &[String]) -> i32 {
        let send = |message: ToSupervisor<'_>| self.control.send(message);
        report_errors(errors, self.generation, &self.saved, self.reloader.text(), send)
    }

    /// Starts everything that reads the rings and writes the state. Returns the start gates of the app, and the scope of the
    /// admin listeners.
    fn start_rest(
        &mut self,
        plans: Plans,
        state: &StateDir,
        access: Option<base::feeds::FeedReceiver<base::feeds::AccessBatch>>,
        counters: Option<Arc<proxy::Counters>>,
    ) -> Result<(Gate, Scope), Vec<String>> {
        let telemetry = self.telemetry.clone();
        let mut errors = Vec::new();
        let mut gate = Gate { sync: None, scopes: Vec::new() };
        if let Some(plan) = plans.logs {
            let wake = self.wake.try_clone().ok();
            let inputs = logs::source::Inputs { rings: self.rings.clone(), wake, access, state: state.clone() };
            errors.extend(logs::run::start(plan, inputs, &telemetry, &mut self.lifecycle).err().unwrap_or_default());
        }
        let gathered: Option<Arc<dyn Gather>> = counters.clone().map(|counters| counters as Arc<dyn Gather>);
        let samples = match plans.metrics.map(|plan| self.start_metrics(plan, gathered.clone(), &mut gate)) {
            Some(Ok(samples)) => samples,
            Some(Err(found)) => {
                errors.extend(found);
                Rc::new(String::new)
            }
            None => Rc::new(String::new),
        };
        let revisions = Revisions::default();
        errors.extend(self.start_sync(plans.sync, state, &revisions, &mut gate).err().unwrap_or_default());
        if let Some(end) = plans.config.app.external.clone() {
            let control = self.control.clone();
            let watch = crate::app::end::watch(end, self.since, self.facts.health.clone(), move |code| {
                control.send(ToSupervisor::AppExited { code });
            });
            self.scope.spawn("end", watch);
        }
        let requests: Rc<dyn Fn() -> Vec<serde_json::Value>> = match counters {
            Some(counters) => Rc::new(move || counters.recent()),
            None => Rc::new(Vec::new),
        };
        self.start_black_box(state.clone(), samples, requests);
        let limit_bytes = plans.memory;
        let shown = admin::view::View {
            telemetry: telemetry.clone(),
            revisions,
            state: state.clone(),
            config: plans.shown,
            since: self.since,
            restarts: self.restarts.counts().map(|(_, count)| count).sum(),
            generation: self.generation,
            app: shown_app(self.facts.clone(), self.companion),
            sandbox: self.sandbox.clone(),
            memory: Rc::new(move || admin::view::Memory { used_bytes: sys::memory::private_bytes(), limit_bytes }),
        };
        let listeners = Scope::new("admin", self.facts.health.clone());
        let controls = self.controls(plans.config.app.stop.timeout.0);
        let socket = self.socket.take();
        let started = admin::run::start(
            &plans.config.admin,
            socket,
            Rc::new(shown),
            controls,
            &self.sockets,
            &listeners,
            &self.scope,
        );
        errors.extend(started.err().unwrap_or_default());
        if let Some(counters) = gathered {
            telemetry.register(Arc::new(ProxyMetrics { counters, own_only: true }));
        }
        if errors.is_empty() { Ok((gate, listeners)) } else { Err(errors) }
    }

    /// Returns a function for the newest samples.
    fn start_metrics(
        &mut self,
        plan: metrics::plan::Plan,
        counters: Option<Arc<dyn Gather>>,
        gate: &mut Gate,
    ) -> Result<Rc<dyn Fn() -> String>, Vec<String>> {
        let own: Arc<dyn Gather> = Arc::new(self.telemetry.clone());
        let all = |counters| -> Arc<dyn Gather> { Arc::new(ProxyMetrics { counters, own_only: false }) };
        let inputs = metrics::source::Inputs {
            app_pid: self.facts.pid.clone(),
            descriptors: descriptors(self.control.clone()),
            proxy: counters.map(all),
            own,
            app_was_ready: self.facts.was_ready.subscribe(),
        };
        let (scope, sources) = metrics::run::start(plan, &inputs, &self.sockets, &self.telemetry, &mut self.lifecycle)?;
        gate.scopes.push(scope);
        Ok(Rc::new(move || sources.last_exposition()))
    }

    fn start_sync(
        &mut self,
        plan: sync::plan::Plan,
        state: &StateDir,
        revisions: &Revisions,
        gate: &mut Gate,
    ) -> Result<(), Vec<String>> {
        if plan.entries.is_empty() {
            return Ok(());
        }
        let inputs = sync::run::Inputs {
            state: state.clone(),
            revisions: revisions.clone(),
            app_runs: self.facts.runs.subscribe(),
            signal_app: signaller(self.control.clone(), self.facts.pid.clone()),
        };
        let (scope, opens) = sync::run::start(plan, &inputs, &self.telemetry, &mut self.lifecycle)?;
        gate.scopes.push(scope);
        gate.sync = Some(opens);
        Ok(())
    }

    /// Writes a black box file for each abnormal exit of the app from now on, and one for a previous worker that crashed.
    fn start_black_box(
        &mut self,
        state: StateDir,
        samples: Rc<dyn Fn() -> String>,
        requests: Rc<dyn Fn() -> Vec<serde_json::Value>>,
    ) {
        let (rings, generation, health) = (self.rings.clone(), self.generation, self.facts.health.clone());
        let black_box = BlackBox { state, rings, samples, requests, generation, health };
        if let Some(crash) = self.crash.take() {
            let Crash { code, hung, out_of_memory } = crash;
            tracing::error!(
                component = "worker",
                code,
                hung,
                oom_killed = out_of_memory,
                generation = self.generation,
                "the previous worker crashed; this worker has taken over"
            );
            black_box.worker_crashed(crash);
        }
        self.control.on_exit(move |ended| black_box.app_exited(ended));
    }

    /// `stop_timeout`: how long a stop may take.
    fn controls(&self, stop_timeout: Duration) -> Controls {
        let (reloader, control) = (self.reloader.clone(), self.control.clone());
        let (upgrader, stopper) = (self.control.clone(), self.control.clone());
        Controls {
            level: self.level.clone(),
            reload: Rc::new(move || {
                let (reloader, control) = (reloader.clone(), control.clone());
                Box::pin(async move { reloader.reload(&control).await })
            }),
            upgrade: Rc::new(move |binary| {
                let control = upgrader.clone();
                Box::pin(async move { control.upgrade(binary.as_deref()).await })
            }),
            stop: Rc::new(move |within| {
                let within_ms = within.map_or(0, |time| u64::try_from(time.as_millis().max(1)).unwrap_or(u64::MAX));
                stopper.send(ToSupervisor::Stop { within_ms, cause: StopCause::Request });
                within.unwrap_or(stop_timeout)
            }),
        }
    }
}

fn shown_app(facts: AppFacts, companion: bool) -> Rc<dyn Fn() -> serde_json::Value> {
    Rc::new(move || {
        let pid = Some(facts.pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0);
        let last_exit = facts.ended.get().map(|ended| {
            serde_json::json!({
                "code": ended.code, "signal": Some(ended.signal).filter(|signal| *signal > 0),
                "core_dumped": ended.core_dumped, "oom_killed": ended.out_of_memory,
            })
        });
        let restarts = facts.restarts.get();
        // Whether an external app runs is not observed.
        let running = Some(*facts.runs.borrow()).filter(|runs| !companion || !runs);
        serde_json::json!({ "pid": pid, "running": running, "restarts": restarts, "last_exit": last_exit })
    })
}

fn descriptors(control: Rc<Control>) -> metrics::source::CountDescriptors {
    Rc::new(move |pid| {
        let control = control.clone();
        Box::pin(async move { control.descriptors(pid).await })
    })
}

/// The proxy counts the app's requests, which are exposed only with the app's metrics, and its own metrics, which are exposed
/// with both.
struct ProxyMetrics {
    counters: Arc<dyn Gather>,
    /// Only the proxy's own metrics.
    own_only: bool,
}

impl Gather for ProxyMetrics {
    fn gather(&self, families: &mut Vec<base::telemetry::family::Family>) {
        let mut all = Vec::new();
        self.counters.gather(&mut all);
        families.extend(all.into_iter().filter(|family| !self.own_only || family.name.starts_with("outrigger_")));
    }
}

/// The start gates of the app, and the tasks on this thread, which end when it is dropped.
struct Gate {
    sync: Option<sync::run::Gate>,
    scopes: Vec<Scope>,
}

impl Gate {
    async fn open(&mut self) {
        if let Some(sync) = &mut self.sync {
            sync.open().await;
        }
        // The proxy already listens before the subsystems start. The scopes live as long as the worker.
        std::mem::forget(std::mem::take(&mut self.scopes));
    }
}

/// The sync entries that have not published.
fn closed_entries(gate: Option<&sync::run::Gate>) -> String {
    gate.map(sync::run::Gate::closed).unwrap_or_default().join(", ")
}
