//! Connections to the endpoints of one cluster, pooled per data thread. In: a request that needs one. Out: an idle
//! connection that is still open, or a new one, or why there is none. Limits: `pool_max_idle` idle ones per endpoint, each
//! unused for `pool_idle_timeout` at most; an endpoint that refuses a connection is ejected for `EJECTION_TIME`.

use crate::balance::{EndpointState, Policy, pick};
use crate::plan::ClusterPlan;
use crate::reason::Reason;
use crate::telemetry::{ClusterNumbers, add, subtract};
use base::runtime::health::Health;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long an endpoint that refused a connection is ejected.
const EJECTION_TIME: Duration = Duration::from_secs(1);

/// Endpoints tried for one request.
const ATTEMPTS_MAX: usize = 3;

pub struct Cluster {
    pub plan: Arc<ClusterPlan>,
    policy: RefCell<Box<dyn Policy>>,
    endpoints: Vec<EndpointState>,
    idle: Vec<RefCell<Vec<Idle>>>,
    numbers: Arc<ClusterNumbers>,
    health: Arc<Health>,
    /// The last request found no healthy endpoint.
    failing: Cell<bool>,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

/// A connection in use; its endpoint counts one request more until it is dropped.
pub struct Checkout {
    pub stream: TcpStream,
    /// It has carried a request before, so its endpoint may be closing it right now.
    pub reused: bool,
    pub usage: InFlight,
}

/// Why no endpoint accepted a connection: the last error, and all of them as text.
pub struct NoEndpoint {
    pub reason: Reason,
    pub text: String,
}

/// Counts one request in flight at an endpoint.
pub struct InFlight {
    pub endpoint: SocketAddr,
    pub cluster: Rc<Cluster>,
    index: usize,
}

impl Cluster {
    pub fn new(plan: Arc<ClusterPlan>, numbers: Arc<ClusterNumbers>, health: Arc<Health>) -> Rc<Cluster> {
        let policy = RefCell::new(plan.balance.build());
        let endpoints = plan.endpoints.iter().map(|_| EndpointState::default()).collect();
        let idle = plan.endpoints.iter().map(|_| RefCell::default()).collect();
        Rc::new(Cluster { plan, policy, endpoints, idle, numbers, health, failing: Cell::new(false) })
    }

    /// Returns a connection to an endpoint. `fresh`: not one from the pool, since one of those has just failed.
    pub async fn checkout(self: &Rc<Cluster>, fresh: bool) -> Result<Checkout, NoEndpoint> {
        let (mut failures, mut reason) = (String::new(), Reason::DestinationUnavailable);
        for _ in 0..ATTEMPTS_MAX.min(self.endpoints.len().max(1)) {
            let index = pick(self.policy.borrow_mut().as_mut(), &self.endpoints, Instant::now());
            let Some(endpoint) = self.plan.endpoints.get(index).copied() else { break };
            if let Some(stream) = (!fresh).then(|| self.idle(index)).flatten() {
                return Ok(self.lend(index, endpoint, stream, true));
            }
            match self.connect(endpoint).await {
                Ok(stream) => {
                    add(&self.numbers.connected, 1);
                    if self.failing.replace(false) && self.health.recovered(&self.plan.id) {
                        tracing::info!(
                            component = self.plan.id,
                            "cluster recovered: an endpoint accepts connections again"
                        );
                    }
                    return Ok(self.lend(index, endpoint, stream, false));
                }
                Err(error) => {
                    add(&self.numbers.failed, 1);
                    self.numbers.eject(index, EJECTION_TIME);
                    reason = Reason::of_connect(error.kind());
                    if let Some(state) = self.endpoints.get(index) {
                        state.ejected_until.set(Some(Instant::now() + EJECTION_TIME));
                    }
                    failures = if failures.is_empty() { String::new() } else { failures + "; " };
                    failures.push_str(&format!("{endpoint}: {error}"));
                }
            }
        }
        self.failing.set(true);
        if self.health.fault(&self.plan.id, format!("no healthy endpoint (upstream connect failed): {failures}")) {
            tracing::warn!(component = self.plan.id, error = failures, "no healthy endpoint in cluster");
        }
        Err(NoEndpoint { reason, text: failures })
    }

    fn lend(self: &Rc<Cluster>, index: usize, endpoint: SocketAddr, stream: TcpStream, reused: bool) -> Checkout {
        if let Some(state) = self.endpoints.get(index) {
            state.active.set(state.active.get() + 1);
        }
        add(&self.numbers.active, 1);
        Checkout { stream, reused, usage: InFlight { endpoint, index, cluster: self.clone() } }
    }

    /// The most recently used idle connection that is still open.
    fn idle(&self, index: usize) -> Option<TcpStream> {
        let mut idle = self.idle.get(index)?.borrow_mut();
        while let Some(candidate) = idle.pop() {
            subtract(&self.numbers.idle, 1);
            if candidate.since.elapsed() > self.plan.pool_idle_timeout {
                // Those below it were used even longer ago.
                subtract(&self.numbers.idle, idle.len() as u64);
                idle.clear();
                return None;
            }
            // Costs no system call while the socket is not readable. An end of stream, or bytes without a request, close it.
            match candidate.stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(candidate.stream),
                _ => {}
            }
        }
        None
    }

    async fn connect(&self, endpoint: SocketAddr) -> io::Result<TcpStream> {
        let limit = self.plan.connect_timeout;
        let stream = tokio::time::timeout(limit, TcpStream::connect(endpoint))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("connect timeout after {limit:?}")))??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Closes connections that have been idle for too long; called periodically.
    pub fn expire(&self) {
        for idle in &self.idle {
            let mut idle = idle.borrow_mut();
            let before = idle.len();
            idle.retain(|idle| idle.since.elapsed() <= self.plan.pool_idle_timeout);
            subtract(&self.numbers.idle, (before - idle.len()) as u64);
        }
    }
}

impl Checkout {
    /// Returns the connection to the pool for the next request.
    pub fn release(self) {
        let InFlight { index, cluster, .. } = &self.usage;
        let Some(idle) = cluster.idle.get(*index) else { return };
        let mut idle = idle.borrow_mut();
        if idle.len() < cluster.plan.pool_max_idle {
            add(&cluster.numbers.idle, 1);
            idle.push(Idle { stream: self.stream, since: Instant::now() });
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(state) = self.cluster.endpoints.get(self.index) {
            state.active.set(state.active.get().saturating_sub(1));
        }
        subtract(&self.cluster.numbers.active, 1);
    }
}
