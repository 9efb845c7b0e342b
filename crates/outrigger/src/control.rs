//! The worker's end of the conversation with the supervisor. In: packets. Out: facts about the app, orders for the stop, answers to
//! whoever asked; and packets back. One task hears, so that nobody waits for another's answer.

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
use supervisor::message::{Ended, PACKET_MAX, ToSupervisor, ToWorker};
use supervisor::restarts::RestartReason;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot, watch};

/// What the app is doing, for whoever needs to know.
#[derive(Clone)]
pub struct AppFacts {
    pub pid: Arc<AtomicI32>,
    pub runs: watch::Sender<bool>,
    /// Whether it was ready once.
    pub was_ready: watch::Sender<bool>,
    pub health: Arc<Health>,
    /// Ends that were followed by another start.
    pub restarts: Rc<Cell<u32>>,
    /// How many there may be; 0 for any number.
    pub restarts_max: u32,
    pub ended: Rc<Cell<Option<Ended>>>,
    pub metrics: AppMetrics,
}

type OnEnded = Box<dyn Fn(Ended)>;

/// What we are told to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Stop {
        until: Instant,
    },
    /// Another worker takes over.
    Yield,
    AppEnded,
    /// The supervisor is gone.
    Gone,
}

/// Whose the rings and the state are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// The worker before us has not let go of them.
    Awaited,
    Ours,
    /// The supervisor is gone, and nobody will tell.
    Gone,
}

/// Orders that wait; there are at most a few in a worker's life.
const ORDERS_MAX: usize = 16;

/// How long an answer of the supervisor may take; it has one thread and answers at once.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

pub struct Control {
    /// A packet socket. tokio's datagram socket speaks to it, since both keep packets whole.
    socket: UnixDatagram,
    facts: AppFacts,
    orders: mpsc::Sender<Order>,
    ownership: watch::Sender<Ownership>,
    ordered: RefCell<Option<oneshot::Sender<Result<String, String>>>>,
    descriptors: RefCell<Vec<(i32, oneshot::Sender<u64>)>>,
    /// Hears of an abnormal end of the app, before anything else follows from it.
    on_ended: RefCell<Option<OnEnded>>,
    /// An end that we asked for is none to wonder about.
    stopping: Cell<bool>,
    /// Another worker has taken over.
    leaving: Cell<bool>,
    /// An abnormal end that came before anybody could hear of it: the state is not ours yet.
    untold: Cell<Option<Ended>>,
}

impl Control {
    /// `owns`: whether nobody before us holds the rings and the state.
    pub fn new(socket: OwnedFd, facts: AppFacts, owns: bool) -> io::Result<(Rc<Control>, mpsc::Receiver<Order>)> {
        let socket = StdDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let control = Control {
            socket: UnixDatagram::from_std(socket)?,
            facts,
            orders,
            ownership: watch::channel(if owns { Ownership::Ours } else { Ownership::Awaited }).0,
            ordered: RefCell::default(),
            descriptors: RefCell::default(),
            on_ended: RefCell::default(),
            stopping: Cell::new(false),
            leaving: Cell::new(false),
            untold: Cell::default(),
        };
        Ok((Rc::new(control), ordered))
    }

    /// Waits until the rings and the state are ours. False where the supervisor is gone.
    pub async fn owns(&self) -> bool {
        let mut ownership = self.ownership.subscribe();
        let known = ownership.wait_for(|ownership| *ownership != Ownership::Awaited).await;
        known.is_ok_and(|ownership| *ownership == Ownership::Ours)
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    pub fn on_ended(&self, recv: impl Fn(Ended) + 'static) {
        if let Some(ended) = self.untold.take() {
            recv(ended);
            self.send(ToSupervisor::ExitAcknowledged);
        }
        *self.on_ended.borrow_mut() = Some(Box::new(recv));
    }

    pub fn send(&self, message: ToSupervisor<'_>) {
        // Not tokio's `try_send`, which refuses until its driver has seen the socket once.
        if let Err(error) = supervisor::message::send(&self.socket, &message.encode()) {
            tracing::warn!(%error, what = ?message, "cannot send to the supervisor");
        }
    }

    /// Asks for a worker from a binary; answers when it is ready, or was given up.
    pub async fn upgrade(&self, binary: Option<&Path>) -> Result<String, String> {
        let path = binary.map_or(&[][..], |path| std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
        self.order(ToSupervisor::Upgrade { binary: path }, "an upgrade is under way already").await
    }

    /// Asks for a worker of this binary; answers when it is ready, or was given up.
    pub async fn replace(&self) -> Result<(), String> {
        let order = ToSupervisor::Replace { reason: RestartReason::Reload };
        self.order(order, "another worker is on its way already").await.map(drop)
    }

    /// Orders another worker and waits for what comes of it; `busy`: why not, where somebody waits for one already.
    async fn order(&self, message: ToSupervisor<'_>, busy: &str) -> Result<String, String> {
        if self.ordered.borrow().is_some() {
            return Err(busy.into());
        }
        let (answer, answered) = oneshot::channel();
        *self.ordered.borrow_mut() = Some(answer);
        self.send(message);
        let answer = answered.await;
        self.ordered.borrow_mut().take();
        answer.unwrap_or_else(|_| Err("the supervisor is gone".into()))
    }

    /// Whether somebody waits for another worker.
    pub fn is_requested(&self) -> bool {
        self.ordered.borrow().is_some()
    }

    /// What kept another worker from taking over is past.
    pub fn no_fault(&self) {
        self.facts.health.recovered(TAKING_OVER);
    }

    /// A signal asks for nothing more than the upgrade that somebody waits for already.
    pub fn upgrade_signalled(&self) {
        if self.ordered.borrow().is_none() {
            self.send(ToSupervisor::Upgrade { binary: b"" });
        }
    }

    /// How many descriptors a process of the app has open.
    pub async fn descriptors(&self, pid: i32) -> Option<u64> {
        let (answer, answered) = oneshot::channel();
        self.descriptors.borrow_mut().push((pid, answer));
        self.send(ToSupervisor::CountDescriptors { pid });
        let count = tokio::time::timeout(ANSWER_WAIT, answered).await.ok()?.ok();
        self.descriptors.borrow_mut().retain(|(_, waiting)| !waiting.is_closed());
        count
    }

    /// Applies what the supervisor says, until it is gone.
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
        let _ = self.orders.try_send(Order::Gone);
        self.ownership.send_replace(Ownership::Gone);
    }

    fn apply(&self, message: ToWorker<'_>) {
        let order = match message {
            ToWorker::AppStarted { pid } => {
                // A worker is told again when it takes over.
                if self.facts.pid.swap(pid, Ordering::Relaxed) != pid {
                    tracing::info!(pid, "app started");
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
                if self.app_ended(ended) {
                    self.send(ToSupervisor::ExitAcknowledged);
                }
                if ended.restarts {
                    return;
                }
                Order::AppEnded
            }
            ToWorker::Stop { left_ms, app_ended } => {
                self.stopping.set(!app_ended);
                Order::Stop { until: Instant::now() + Duration::from_millis(left_ms) }
            }
            ToWorker::Acquire => {
                self.ownership.send_replace(Ownership::Ours);
                return;
            }
            ToWorker::HandOver => {
                self.leaving.set(true);
                if let Some(answer) = self.ordered.borrow_mut().take() {
                    let _ = answer.send(Ok("the new worker is ready and takes over\n".into()));
                }
                Order::Yield
            }
            ToWorker::KeepServing { reason } => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                match self.ordered.borrow_mut().take() {
                    // Whoever asked has the answer, and nothing has changed.
                    Some(answer) => {
                        tracing::warn!(reason, "requested worker replacement failed");
                        let _ = answer.send(Err(reason));
                    }
                    None => {
                        tracing::error!(reason, "worker replacement failed");
                        self.facts.health.fault(TAKING_OVER, reason);
                    }
                }
                return;
            }
            ToWorker::Descriptors { pid, count } => {
                let mut waiting = self.descriptors.borrow_mut();
                if let Some(at) = waiting.iter().position(|(asked, _)| *asked == pid) {
                    let _ = waiting.swap_remove(at).1.send(count);
                }
                return;
            }
        };
        if self.orders.try_send(order).is_err() {
            tracing::warn!(?order, "unexpected message after shutdown");
        }
    }

    /// Answers whether everything that follows from it is done.
    fn app_ended(&self, ended: Ended) -> bool {
        let Ended { code, signal, core_dumped, out_of_memory, restarts } = ended;
        self.facts.runs.send_replace(false);
        if self.facts.pid.swap(0, Ordering::Relaxed) == 0 && self.facts.ended.get() == Some(ended) {
            return self.untold.get().is_none();
        }
        self.facts.ended.set(Some(ended));
        self.facts.restarts.set(self.facts.restarts.get() + u32::from(restarts));
        self.facts.metrics.up.set(0);
        self.facts.metrics.exited(ended, self.facts.restarts.get());
        if out_of_memory {
            tracing::error!(code, restarts, "app OOM-killed");
        } else if core_dumped {
            tracing::error!(code, signal, restarts, "app crashed and left a core dump");
        } else {
            tracing::info!(code, signal, restarts, "app exited");
        }
        let asked_for = self.stopping.get() && !core_dumped && !out_of_memory && signal != SIGKILL;
        let abnormal = (code != 0 || signal != 0) && !asked_for;
        match self.on_ended.borrow().as_ref() {
            _ if !abnormal => {}
            Some(recv) => recv(ended),
            None => self.untold.set(Some(ended)),
        }
        self.untold.get().is_none()
    }
}

/// Whoever gets it did not end by himself.
const SIGKILL: i32 = 9;

/// The part of health that tells of a worker which should have taken over.
pub const TAKING_OVER: &str = "worker hand-over";
