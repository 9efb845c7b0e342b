//! The worker's end of the control socket to the supervisor. In: packets. Out: state of the app, events for `stop.rs`, responses
//! to requests; and packets to the supervisor. One task receives, so that no request waits for another request's response.

use crate::telemetry::AppMetrics;
use base::runtime::health::Health;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};
use supervisor::message::{Ended, PACKET_MAX, StopCause, ToSupervisor, ToWorker};
use supervisor::restarts::RestartReason;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot, watch};

/// State of the app, shared with all subsystems.
#[derive(Clone)]
pub struct AppFacts {
    pub pid: Arc<AtomicI32>,
    pub runs: watch::Sender<bool>,
    /// Whether it was ready once.
    pub was_ready: watch::Sender<bool>,
    pub health: Arc<Health>,
    /// Exits that were followed by a restart.
    pub restarts: Rc<Cell<u32>>,
    /// Limit of restarts; 0 for no limit.
    pub restarts_max: u32,
    pub ended: Rc<Cell<Option<Ended>>>,
    pub metrics: AppMetrics,
}

type OnExit = Box<dyn Fn(Ended)>;
type OnStartTimeout = Box<dyn Fn()>;

/// An event that ends the worker.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Stop {
        until: Instant,
        cause: StopCause,
    },
    /// Another worker takes over.
    HandOver {
        cause: RestartReason,
    },
    AppExited,
    /// The supervisor has exited.
    Disconnected,
}

/// Ownership of the rings and the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// The previous worker has not released them.
    Awaited,
    Owned,
    /// The supervisor has exited, so no further message will arrive.
    Disconnected,
}

/// Queued events; a worker receives only a few.
const EVENTS_MAX: usize = 16;

/// How long a response of the supervisor may take; it has one thread and responds immediately.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Control {
    /// A packet socket. tokio's datagram socket can use it, since both preserve packet boundaries.
    socket: UnixDatagram,
    facts: AppFacts,
    events: mpsc::Sender<Event>,
    ownership: watch::Sender<Ownership>,
    replacement: RefCell<Option<oneshot::Sender<Result<(), String>>>>,
    descriptors: RefCell<Vec<(i32, oneshot::Sender<u64>)>>,
    /// Called on an abnormal exit of the app, before any other reaction to it.
    on_exit: RefCell<Option<OnExit>>,
    on_start_timeout: RefCell<Option<OnStartTimeout>>,
    /// An exit that Outrigger requested is not abnormal.
    stopping: Cell<bool>,
    /// Another worker has taken over.
    handing_over: Cell<bool>,
    /// An abnormal exit before `on_exit` was set: this worker does not own the state yet.
    unreported: Cell<Option<Ended>>,
    takeover_failed: Cell<bool>,
    failure: RefCell<String>,
    /// Why the app could not be started.
    start_error: RefCell<Option<String>>,
}

impl Control {
    /// `owns`: whether no previous worker owns the rings and the state.
    pub fn new(socket: OwnedFd, facts: AppFacts, owns: bool) -> io::Result<(Rc<Control>, mpsc::Receiver<Event>)> {
        let socket = StdDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let control = Control {
            socket: UnixDatagram::from_std(socket)?,
            facts,
            events,
            ownership: watch::channel(if owns { Ownership::Owned } else { Ownership::Awaited }).0,
            replacement: RefCell::default(),
            descriptors: RefCell::default(),
            on_exit: RefCell::default(),
            on_start_timeout: RefCell::default(),
            stopping: Cell::new(false),
            handing_over: Cell::new(false),
            unreported: Cell::default(),
            takeover_failed: Cell::new(false),
            failure: RefCell::default(),
            start_error: RefCell::default(),
        };
        Ok((Rc::new(control), receiver))
    }

    /// Waits until this worker owns the rings and the state. False if the supervisor has exited.
    pub async fn owns(&self) -> bool {
        let mut ownership = self.ownership.subscribe();
        let known = ownership.wait_for(|ownership| *ownership != Ownership::Awaited).await;
        known.is_ok_and(|ownership| *ownership == Ownership::Owned)
    }

    pub fn is_handing_over(&self) -> bool {
        self.handing_over.get()
    }

    pub fn on_exit(&self, handler: impl Fn(Ended) + 'static) {
        if let Some(exit) = self.unreported.take() {
            handler(exit);
            self.send(ToSupervisor::ExitAcknowledged);
        }
        *self.on_exit.borrow_mut() = Some(Box::new(handler));
    }

    /// Sets what is called when the start gates did not open in time, and the app is not started.
    pub fn on_start_timeout(&self, handler: impl Fn() + 'static) {
        *self.on_start_timeout.borrow_mut() = Some(Box::new(handler));
    }

    pub fn send(&self, message: ToSupervisor<'_>) {
        // Not tokio's `try_send`, which refuses until its driver has seen the socket once.
        if let Err(error) = supervisor::message::send(&self.socket, &message.encode()) {
            tracing::warn!(%error, packet = ?message, "cannot send to the supervisor");
        }
    }

    /// Requests a worker from a binary; returns when it is ready, or was abandoned.
    pub async fn upgrade(&self, binary: Option<&Path>) -> Result<String, String> {
        let path = binary.map_or(&[][..], |path| std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
        let shown = binary.map(|path| path.display().to_string());
        tracing::info!(component = "worker", binary = shown, "upgrade requested");
        match self.start_worker(ToSupervisor::Upgrade { binary: path }, "an upgrade is already in progress").await {
            Ok(()) => {
                let from = shown.map(|path| format!(" from {path}")).unwrap_or_default();
                Ok(format!("upgraded: a new worker{from} is ready and is taking over\n"))
            }
            Err(reason) => Err(format!("{reason}; keeping the current worker")),
        }
    }

    /// Requests a worker of this binary; returns when it is ready, or was abandoned.
    pub async fn replace(&self) -> Result<(), String> {
        let message = ToSupervisor::Replace { reason: RestartReason::Reload };
        self.start_worker(message, "a worker replacement is already in progress").await
    }

    /// Requests another worker and waits for the result; `busy` is the error if a request is already pending.
    async fn start_worker(&self, message: ToSupervisor<'_>, busy: &str) -> Result<(), String> {
        if self.replacement.borrow().is_some() {
            return Err(busy.into());
        }
        let (sender, receiver) = oneshot::channel();
        *self.replacement.borrow_mut() = Some(sender);
        self.send(message);
        let result = receiver.await;
        self.replacement.borrow_mut().take();
        result.unwrap_or_else(|_| Err("the supervisor has exited".into()))
    }

    /// Why the last requested worker could not take over.
    pub fn failure(&self) -> String {
        self.failure.borrow().clone()
    }

    /// Whether a worker could not take over since the last call, without a request that waits for it.
    pub fn take_failed_takeover(&self) -> bool {
        self.takeover_failed.take()
    }

    /// Whether a request for another worker is pending.
    pub fn is_requested(&self) -> bool {
        self.replacement.borrow().is_some()
    }

    /// The fault that prevented a handover has ended.
    pub fn no_fault(&self) {
        self.facts.health.recovered(TAKING_OVER);
    }

    /// A signal adds nothing to an upgrade that is already pending.
    pub fn upgrade_signalled(&self) {
        if self.replacement.borrow().is_none() {
            self.send(ToSupervisor::Upgrade { binary: b"" });
        }
    }

    /// How many file descriptors a process of the app has open.
    pub async fn descriptors(&self, pid: i32) -> Option<u64> {
        let (sender, receiver) = oneshot::channel();
        self.descriptors.borrow_mut().push((pid, sender));
        self.send(ToSupervisor::CountDescriptors { pid });
        let count = tokio::time::timeout(RESPONSE_TIMEOUT, receiver).await.ok()?.ok();
        self.descriptors.borrow_mut().retain(|(_, sender)| !sender.is_closed());
        count
    }

    /// Applies the supervisor's messages until the supervisor exits.
    pub async fn recv(self: Rc<Self>) {
        let mut packet = [0u8; PACKET_MAX];
        loop {
            match self.socket.recv(&mut packet).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if let Some(message) = packet.get(..count).and_then(ToWorker::decode) {
                        self.apply(message);
                    }
                }
            }
        }
        let _ = self.events.try_send(Event::Disconnected);
        self.ownership.send_replace(Ownership::Disconnected);
    }

    fn apply(&self, message: ToWorker<'_>) {
        let event = match message {
            ToWorker::AppStarted { pid, earlier } => {
                // The message is repeated when a worker takes over.
                if self.facts.pid.swap(pid, Ordering::Relaxed) != pid && !earlier {
                    tracing::info!(component = "app", pid, "app started");
                }
                self.facts.runs.send_replace(true);
                self.facts.metrics.up.set(1);
                return;
            }
            ToWorker::LastExit { ended, restarts } => {
                self.facts.ended.set(Some(ended));
                self.facts.restarts.set(restarts);
                self.facts.metrics.exited(ended, restarts);
                return;
            }
            ToWorker::AppEnded(ended) => {
                if self.app_exited(ended) {
                    self.send(ToSupervisor::ExitAcknowledged);
                }
                if ended.restarts {
                    return;
                }
                Event::AppExited
            }
            ToWorker::Stop { left_ms, cause } => {
                self.stop_began(cause);
                Event::Stop { until: Instant::now() + Duration::from_millis(left_ms), cause }
            }
            ToWorker::AppNotStarted { reason } => {
                self.start_error.replace(Some(String::from_utf8_lossy(reason).into_owned()));
                return;
            }
            ToWorker::ExternalAppOver => Event::AppExited,
            ToWorker::AppKilled => {
                let pid = self.facts.pid.load(Ordering::Relaxed);
                tracing::warn!(component = "app", pid, "app still running after its grace period; sent SIGKILL");
                return;
            }
            ToWorker::Acquire => {
                self.ownership.send_replace(Ownership::Owned);
                return;
            }
            ToWorker::HandOver { cause } => {
                self.handing_over.set(true);
                if let Some(sender) = self.replacement.borrow_mut().take() {
                    let _ = sender.send(Ok(()));
                }
                Event::HandOver { cause }
            }
            ToWorker::KeepServing { cause, reason } => {
                self.abandoned(cause, String::from_utf8_lossy(reason).into_owned());
                return;
            }
            ToWorker::Descriptors { pid, count } => {
                let mut pending = self.descriptors.borrow_mut();
                if let Some(at) = pending.iter().position(|(requested, _)| *requested == pid) {
                    let _ = pending.swap_remove(at).1.send(count);
                }
                return;
            }
        };
        if self.events.try_send(event).is_err() {
            tracing::warn!(?event, "unexpected message after shutdown");
        }
    }

    fn stop_began(&self, cause: StopCause) {
        if cause == StopCause::StartTimeout
            && let Some(handler) = self.on_start_timeout.borrow().as_ref()
        {
            handler();
        }
        self.stopping.set(!matches!(cause, StopCause::AppExit | StopCause::StartTimeout));
    }

    /// No worker takes over: the client that requested one gets the reason, and nothing has changed; without a client it is a fault.
    fn abandoned(&self, cause: RestartReason, reason: String) {
        self.failure.replace(reason.clone());
        match self.replacement.borrow_mut().take() {
            Some(sender) => {
                tracing::warn!(component = "worker", reason, "{} failed; keeping the current worker", act(cause));
                let _ = sender.send(Err(reason));
            }
            None => {
                tracing::error!(component = "worker", reason, "{} failed; keeping the current worker", act(cause));
                self.facts.health.fault(TAKING_OVER, reason);
                self.takeover_failed.set(true);
            }
        }
    }

    /// Returns whether the exit has been handled completely.
    fn app_exited(&self, ended: Ended) -> bool {
        let Ended { code, signal, core_dumped, out_of_memory, restarts, limit_reached, not_started } = ended;
        self.facts.runs.send_replace(false);
        if self.facts.pid.swap(0, Ordering::Relaxed) == 0 && self.facts.ended.get() == Some(ended) {
            return self.unreported.get().is_none();
        }
        self.facts.ended.set(Some(ended));
        self.facts.restarts.set(self.facts.restarts.get() + u32::from(restarts));
        self.facts.metrics.up.set(0);
        self.facts.metrics.exited(ended, self.facts.restarts.get());
        let killed_by = Some(signal).filter(|signal| *signal > 0);
        let next = match (restarts, limit_reached) {
            (true, _) => "; restarting",
            (_, true) => "; not restarted: app.restart.max_restarts is reached",
            _ => "",
        };
        let restarts = self.facts.restarts.get();
        if not_started {
            let error = self.start_error.take();
            tracing::error!(component = "app", code, error, "app not started{next}");
        } else if out_of_memory {
            tracing::error!(component = "app", code, signal = killed_by, restarts, "app OOM-killed{next}");
        } else if core_dumped {
            tracing::error!(
                component = "app",
                code,
                signal = killed_by,
                restarts,
                "app crashed and left a core dump{next}"
            );
        } else if limit_reached {
            tracing::error!(component = "app", code, signal = killed_by, restarts, "app exited{next}");
        } else {
            tracing::info!(component = "app", code, signal = killed_by, restarts, "app exited{next}");
        }
        let requested = self.stopping.get() && !core_dumped && !out_of_memory && signal != SIGKILL;
        let abnormal = (code != 0 || signal != 0) && !requested;
        match self.on_exit.borrow().as_ref() {
            _ if !abnormal => {}
            Some(handler) => handler(ended),
            None => self.unreported.set(Some(ended)),
        }
        self.unreported.get().is_none()
    }
}

/// What a worker was started for.
fn act(cause: RestartReason) -> &'static str {
    match cause {
        RestartReason::Upgrade => "upgrade",
        RestartReason::Reload => "reload",
        _ => "worker replacement",
    }
}

/// A process that was killed by it did not exit on its own.
const SIGKILL: i32 = 9;

/// The name in health for a worker that failed to take over.
pub const TAKING_OVER: &str = "worker handover";
