//! Taking connections of one listener on one data thread. In: a listening socket. Out: a task per connection. Bound:
//! `max_connections`; over it, and where memory is short, connections that wait for their client give way, the oldest first. A drain
//! closes connections that ask nothing for a moment.

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

/// The pause after an accept that failed for want of descriptors or memory, before one where memory is short, and between two looks
/// for a connection that gives way.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection without a request is kept in a drain: a request may be on its way, and closing in front of it is a reset
/// for the client. Who asks more often than this is always answered, with the word that the connection closes.
pub const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// So many more connections than at the last look are a reason to look at the memory now: a flood is quicker than the regular looks.
const LOOK_AFTER: u64 = 32;

/// Connections that are accepted after a pause where memory is short and none gives way.
const BURST: usize = 256;

/// Connections that give way at a time where memory is short, and the pause before the next ones: what they held is given back.
const GIVE_WAY: usize = 64;
const GIVE_WAY_PAUSE: Duration = Duration::from_millis(50);

/// Connections that are accepted however short memory is: it may be somebody else who uses it.
const CONNECTIONS_MIN: u64 = 128;

/// How long the records of tunnels may take that were cut.
const CUT_WAIT: Duration = Duration::from_millis(100);

/// One listener on one data thread.
pub struct ListenerState {
    pub plan: Arc<ListenerPlan>,
    /// Its place in the plan, which is its place in the counters.
    pub index: usize,
    pub cluster: Rc<Cluster>,
    pub recorder: Rc<Recorder>,
    pub access: Option<Rc<Access>>,
    /// Connections that wait for their client.
    pub parked: Rc<Parked>,
    /// Our name in `Via`: of this listener of this worker alone, so that no other hop is taken for it.
    pub via: String,
    pressure: Pressure,
    /// Connections that were open when a look at the memory was asked for.
    looked_at: Cell<u64>,
    draining: Cell<bool>,
    drain: Notify,
    ended: Notify,
    /// The time for what is under way is over.
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
        let (draining, drain, ended, cut) = (Cell::new(false), Notify::new(), Notify::new(), Notify::new());
        Rc::new(ListenerState {
            plan,
            index,
            cluster,
            recorder,
            access,
            parked: Rc::default(),
            via,
            pressure,
            looked_at: Cell::new(0),
            draining,
            drain,
            ended,
            cut,
        })
    }

    /// Whether memory is so short that what is not begun yet is better refused.
    pub fn has_pressure(&self) -> bool {
        self.pressure.has_pressure()
    }

    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Begins to drain: no connection is accepted, busy ones end after their response, idle ones after a moment.
    pub fn start_drain(&self) {
        self.draining.set(true);
        self.drain.notify_waiters();
        self.parked.drain();
    }

    /// Waits until no connection is open.
    pub async fn drained(&self) {
        while self.recorder.open(self.index) > 0 {
            self.ended.notified().await;
        }
    }

    /// Ends tunnels, which have no end of their own; they are recorded then.
    pub async fn cut_tunnels(&self) {
        self.cut.notify_waiters();
        let _ = tokio::time::timeout(CUT_WAIT, self.drained()).await;
    }

    /// Waits until tunnels have to end.
    pub async fn cut(&self) {
        self.cut.notified().await;
    }

    /// Tells so many of those that wait longest to close; answers how many there were.
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

/// Counts a connection as open until it is dropped, whatever ends its task.
struct Open(Rc<ListenerState>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.recorder.closed(self.0.index);
        self.0.ended.notify_waiters();
        self.0.ended.notify_one();
    }
}

/// Accepts until the listener drains.
pub async fn accept(socket: Rc<TcpListener>, state: Rc<ListenerState>, scope: Scope, health: Arc<Health>) {
    let mut burst = 0;
    loop {
        // Where connections are what takes the memory, those that wait give way to new ones. Where none waits, new ones wait: in
        // the kernel's queue, and then at the client.
        if state.recorder.open(state.index) >= CONNECTIONS_MIN && state.has_pressure() && state.close_idle(2) == 0 {
            if burst == 0 {
                state.pressure.wait_for_relief_within(ACCEPT_PAUSE).await;
                burst = BURST;
            }
            burst -= 1;
        }
        let (stream, peer) = match state.unless_draining(socket.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            // Out of descriptors or memory: connections that end make room. Anything else concerns one connection.
            Some(Err(error)) => {
                tracing::debug!(listener = state.plan.name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        room(&state, &health).await;
        begin(stream, peer, &state, &scope);
    }
}

/// Waits until there is room for one more, which those that wait for their client make. A drain lets it in all the same.
async fn room(state: &ListenerState, health: &Health) {
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
        // One that has its answer meanwhile can give way.
        let _ = tokio::time::timeout(ACCEPT_PAUSE, state.unless_draining(state.ended.notified())).await;
    }
    health.recovered(&part);
}

/// Takes what waits in the kernel's queue, each a client that is connected already: to end the listening would reset it.
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
    // Small answers must not wait for acknowledgements of the answers before them.
    let _ = stream.set_nodelay(true);
    state.recorder.opened(state.index);
    let count = state.recorder.open(state.index);
    state.looked_at.set(state.looked_at.get().min(count));
    if count >= state.looked_at.get() + LOOK_AFTER {
        state.looked_at.set(count);
        state.pressure.request_check();
    }
    let (open, state) = (Open(state.clone()), state.clone());
    scope.spawn_each("connection", async move {
        let _open = open;
        http1::forward::serve(stream, peer, state).await;
    });
}

/// Lets connections give way as long as memory is short and connections may be what takes it; health says so.
pub async fn close_idle_under_pressure(states: Vec<Rc<ListenerState>>, health: Arc<Health>, pressure: Pressure) {
    loop {
        pressure.begins().await;
        let open = || states.iter().map(|state| state.recorder.open(state.index)).sum::<u64>();
        let part = |state: &ListenerState| format!("{} memory", state.plan.id);
        let mut closed = vec![0; states.len()];
        while pressure.has_pressure() {
            if open() >= CONNECTIONS_MIN {
                for (state, closed) in states.iter().zip(&mut closed) {
                    *closed += state.close_idle(GIVE_WAY);
                    if *closed > 0 {
                        let text = format!("memory pressure: closed {closed} idle connections");
                        health.fault(&part(state), text);
                    }
                }
                pressure.request_check();
            }
            tokio::time::sleep(GIVE_WAY_PAUSE).await;
        }
        for state in &states {
            health.recovered(&part(state));
        }
    }
}
