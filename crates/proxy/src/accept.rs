//! Accepts connections of one listener on one data thread. In: a listening socket. Out: a task per connection. Limits:
//! `max_connections`; beyond it, and under memory pressure, connections that wait for their client are closed, the oldest
//! first. A drain closes connections that send no request for `DRAIN_PATIENCE`.

use crate::access::Access;
use crate::connect::Cluster;
use crate::http1;
use crate::parked::Parked;
use crate::plan::ListenerPlan;
use crate::telemetry::Recorder;
use base::runtime::health::Health;
use base::runtime::pressure::Pressure;
use base::runtime::scope::Scope;
use rustix::net::SocketFlags;
use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// The delay after an accept that failed for lack of file descriptors or memory, before one under memory pressure, and
/// between two searches for a connection to close.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// How long a connection without a request stays open in a drain: a request may be in flight, and closing before it arrives
/// is a reset for the client. A client that sends its next request within this time still gets a response, with
/// `Connection: close`.
pub const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// So many more connections than at the last memory check trigger one now: a flood is faster than the periodic checks.
const CHECK_AFTER: u64 = 32;

/// Connections that are accepted after a delay under memory pressure if none can be closed.
const BURST: usize = 256;

/// Connections that are closed at a time under memory pressure, and the delay before the next ones, for their memory to be
/// released.
const EVICT_BATCH: usize = 64;
const EVICT_DELAY: Duration = Duration::from_millis(50);

/// Connections that are accepted under any memory pressure: something else may use the memory.
const CONNECTIONS_MIN: u64 = 128;

/// How long tunnels may take to write their records once closed.
const CUT_WAIT: Duration = Duration::from_millis(100);

/// One listener on one data thread.
pub struct ListenerState {
    pub plan: Arc<ListenerPlan>,
    /// Its index in the plan and in the counters.
    pub index: usize,
    pub cluster: Rc<Cluster>,
    pub recorder: Rc<Recorder>,
    pub access: Option<Rc<Access>>,
    /// Connections that wait for their client.
    pub parked: Rc<Parked>,
    /// Its name in `Via`: unique to this listener of this worker, so that no other hop is confused with it.
    pub via: String,
    pressure: Pressure,
    /// Connections that were open when a memory check was requested.
    checked_at: Cell<u64>,
    draining: Cell<bool>,
    drain: Notify,
    closed: Notify,
    /// The deadline of the drain has passed.
    cut: Notify,
}

impl ListenerState {
    pub fn new(
        plan: Arc<ListenerPlan>,
        index: usize,
        cluster: Rc<Cluster>,
        recorder: Rc<Recorder>,
        access: Option<Rc<Access>>,
        pressure: Pressure,
        via: String,
    ) -> Rc<ListenerState> {
        let (draining, drain, closed, cut) = (Cell::new(false), Notify::new(), Notify::new(), Notify::new());
        Rc::new(ListenerState {
            plan,
            index,
            cluster,
            recorder,
            access,
            parked: Rc::default(),
            via,
            pressure,
            checked_at: Cell::new(0),
            draining,
            drain,
            closed,
            cut,
        })
    }

    /// Whether there is memory pressure: what has not begun yet is then better rejected.
    pub fn has_pressure(&self) -> bool {
        self.pressure.has_pressure()
    }

    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Begins to drain: no connection is accepted, busy ones close after their response, idle ones after `DRAIN_PATIENCE`.
    pub fn start_drain(&self) {
        self.draining.set(true);
        self.drain.notify_waiters();
        self.parked.drain();
    }

    /// Waits until no connection is open.
    pub async fn drained(&self) {
        while self.recorder.open(self.index) > 0 {
            self.closed.notified().await;
        }
    }

    /// Closes tunnels, which do not end by themselves; they are recorded then.
    pub async fn cut_tunnels(&self) {
        self.cut.notify_waiters();
        let _ = tokio::time::timeout(CUT_WAIT, self.drained()).await;
    }

    /// Waits until tunnels must close.
    pub async fn cut(&self) {
        self.cut.notified().await;
    }

    /// Signals up to `count` connections that wait longest to close; returns how many there were.
    fn close_idle(&self, count: usize) -> usize {
        let closed = (0..count).take_while(|_| self.parked.close_oldest()).count();
        self.recorder.evicted(self.index, closed as u64);
        closed
    }

    /// The future's value, or None as soon as a drain begins.
    pub async fn unless_draining<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        if self.draining.get() {
            return None;
        }
        tokio::select! {
            biased;
            value = future => Some(value),
            () = self.drain.notified() => None,
        }
    }
}

/// Counts a connection as open until it is dropped, however its task ends.
struct Open(Rc<ListenerState>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.recorder.closed(self.0.index);
        self.0.closed.notify_waiters();
        self.0.closed.notify_one();
    }
}

/// Accepts until the listener drains.
pub async fn accept(socket: Rc<TcpListener>, state: Rc<ListenerState>, scope: Scope, health: Arc<Health>) {
    let mut burst = 0;
    loop {
        // If connections use the memory, waiting ones are closed for new ones. If none waits, new ones wait: in the kernel's
        // queue, and then at the client.
        if state.recorder.open(state.index) >= CONNECTIONS_MIN && state.has_pressure() && state.close_idle(2) == 0 {
            if burst == 0 {
                state.pressure.wait_for_relief_within(ACCEPT_DELAY).await;
                burst = BURST;
            }
            burst -= 1;
        }
        let (stream, peer) = match state.unless_draining(socket.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            // Out of file descriptors or memory: connections that close free some. Any other error concerns one connection.
            Some(Err(error)) => {
                tracing::debug!(component = state.plan.id, %error, "accept failed");
                tokio::time::sleep(ACCEPT_DELAY).await;
                continue;
            }
        };
        make_room(&state, &health).await;
        begin(stream, peer, &state, &scope);
    }
}

/// Closes connections that wait for their client until there is room for one more. A drain lets it in anyway.
async fn make_room(state: &ListenerState, health: &Health) {
    let most = state.plan.max_connections;
    let is_full = || state.recorder.open(state.index) >= most as u64 && !state.draining();
    if !is_full() {
        return;
    }
    let part = format!("{} max_connections", state.plan.id);
    while is_full() {
        if state.close_idle(1) == 0 {
            health.fault(
                &part,
                format!("max_connections = {most} reached, no idle connections to close; new connections are queued"),
            );
        }
        // A connection that has got its response by then can be closed.
        let _ = tokio::time::timeout(ACCEPT_DELAY, state.unless_draining(state.closed.notified())).await;
    }
    health.recovered(&part);
}

/// Accepts what waits in the kernel's queue, each a client that is already connected: the end of the listening would reset it.
pub fn accept_waiting(socket: &TcpListener, state: &Rc<ListenerState>, scope: &Scope) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    while state.recorder.open(state.index) < state.plan.max_connections as u64 {
        let Ok((stream, Some(peer))) = rustix::net::acceptfrom_with(socket, flags) else { return };
        let stream = TcpStream::from_std(std::net::TcpStream::from(stream));
        if let (Ok(stream), Ok(peer)) = (stream, SocketAddr::try_from(peer)) {
            begin(stream, peer, state, scope);
        }
    }
}

fn begin(stream: TcpStream, peer: SocketAddr, state: &Rc<ListenerState>, scope: &Scope) {
    // Small responses must not wait for acknowledgements of previous responses.
    let _ = stream.set_nodelay(true);
    state.recorder.opened(state.index);
    let count = state.recorder.open(state.index);
    state.checked_at.set(state.checked_at.get().min(count));
    if count >= state.checked_at.get() + CHECK_AFTER {
        state.checked_at.set(count);
        state.pressure.request_check();
    }
    let (open, state) = (Open(state.clone()), state.clone());
    scope.spawn_each("connection", async move {
        let _open = open;
        http1::forward::serve(stream, peer, state).await;
    });
}

/// Closes waiting connections as long as there is memory pressure and connections may be its cause; health reports it.
pub async fn close_idle_under_pressure(states: Vec<Rc<ListenerState>>, health: Arc<Health>, pressure: Pressure) {
    loop {
        pressure.begins().await;
        let open = || states.iter().map(|state| state.recorder.open(state.index)).sum::<u64>();
        let part = |state: &ListenerState| format!("{} memory", state.plan.id);
        let mut closed = vec![0; states.len()];
        while pressure.has_pressure() {
            if open() >= CONNECTIONS_MIN {
                for (state, closed) in states.iter().zip(&mut closed) {
                    *closed += state.close_idle(EVICT_BATCH);
                    if *closed > 0 {
                        let text = format!("memory pressure: closed {closed} idle connections");
                        health.fault(&part(state), text);
                    }
                }
                pressure.request_check();
            }
            tokio::time::sleep(EVICT_DELAY).await;
        }
        for state in &states {
            health.recovered(&part(state));
        }
    }
}
