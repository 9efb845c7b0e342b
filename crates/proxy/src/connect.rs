//! Connections to the endpoints of one cluster, kept per data thread. In: a request that needs one. Out: an idle
//! connection that is still open, or a new one, or why there is none. Bounds: `pool_max_idle` idle ones per endpoint, each
//! unused for `pool_idle_timeout` at most; an endpoint that refuses is set aside for `EJECTION_TIME`.

use crate::balance::{EndpointState, Policy, pick};
use crate::plan::ClusterPlan;
use base::runtime::health::Health;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long an endpoint that refused a connection is passed over.
const EJECTION_TIME: Duration = Duration::from_secs(1);

/// Endpoints tried for one request.
const TRIES_MAX: usize = 3;

pub struct Cluster {
    pub plan: Arc<ClusterPlan>,
    policy: RefCell<Box<dyn Policy>>,
    loads: Vec<EndpointState>,
    idle: Vec<RefCell<Vec<Idle>>>,
    health: Arc<Health>,
    /// The last request found no endpoint.
    failing: Cell<bool>,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

/// A connection in use; its endpoint counts one request more until it is dropped.
pub struct Checkout {
    pub stream: TcpStream,
    /// It has carried a request before, so that its endpoint may be closing it at this moment.
    pub reused: bool,
    pub usage: InFlight,
}

/// The count of one request under way at an endpoint.
pub struct InFlight {
    pub endpoint: SocketAddr,
    pub cluster: Rc<Cluster>,
    index: usize,
}

impl Cluster {
    pub fn new(plan: Arc<ClusterPlan>, health: Arc<Health>) -> Rc<Cluster> {
        let policy = RefCell::new(plan.balance.build());
        let loads = plan.endpoints.iter().map(|_| EndpointState::default()).collect();
        let idle = plan.endpoints.iter().map(|_| RefCell::default()).collect();
        Rc::new(Cluster { plan, policy, loads, idle, health, failing: Cell::new(false) })
    }

    /// A connection to an endpoint. `fresh`: not one from the pool, since one of those has just failed.
    pub async fn checkout(self: &Rc<Cluster>, fresh: bool) -> Result<Checkout, String> {
        let mut failures = String::new();
        for _ in 0..TRIES_MAX.min(self.loads.len().max(1)) {
            let index = pick(self.policy.borrow_mut().as_mut(), &self.loads, Instant::now());
            let Some(endpoint) = self.plan.endpoints.get(index).copied() else { break };
            if let Some(stream) = (!fresh).then(|| self.idle(index)).flatten() {
                return Ok(self.lend(index, endpoint, stream, true));
            }
            match self.connect(endpoint).await {
                Ok(stream) => {
                    if self.failing.replace(false) && self.health.recovered(&self.plan.id) {
                        tracing::info!(
                            cluster = self.plan.name,
                            "cluster recovered: an endpoint accepts connections again"
                        );
                    }
                    return Ok(self.lend(index, endpoint, stream, false));
                }
                Err(error) => {
                    if let Some(load) = self.loads.get(index) {
                        load.ejected_until.set(Some(Instant::now() + EJECTION_TIME));
                    }
                    failures = if failures.is_empty() { String::new() } else { failures + "; " };
                    failures.push_str(&format!("{endpoint}: {error}"));
                }
            }
        }
        self.failing.set(true);
        if self.health.fault(&self.plan.id, format!("no healthy endpoint (upstream connect failed): {failures}")) {
            tracing::warn!(cluster = self.plan.name, error = failures, "no healthy endpoint in cluster");
        }
        Err(failures)
    }

    fn lend(self: &Rc<Cluster>, index: usize, endpoint: SocketAddr, stream: TcpStream, reused: bool) -> Checkout {
        if let Some(load) = self.loads.get(index) {
            load.active.set(load.active.get() + 1);
        }
        Checkout { stream, reused, usage: InFlight { endpoint, index, cluster: self.clone() } }
    }

    /// The idle connection that was used last, if it is still open.
    fn idle(&self, index: usize) -> Option<TcpStream> {
        let mut idle = self.idle.get(index)?.borrow_mut();
        while let Some(candidate) = idle.pop() {
            if candidate.since.elapsed() > self.plan.pool_idle_timeout {
                // What lies below was used even longer ago.
                idle.clear();
                return None;
            }
            // Costs no system call while the socket has told nothing. An end, or bytes that nobody asked for, close it.
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
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}")))??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Closes what has been idle for too long; called now and then.
    pub fn expire(&self) {
        for idle in &self.idle {
            idle.borrow_mut().retain(|idle| idle.since.elapsed() <= self.plan.pool_idle_timeout);
        }
    }
}

impl Checkout {
    /// Gives the connection back for the next request.
    pub fn keep(self) {
        let InFlight { index, cluster, .. } = &self.usage;
        let Some(idle) = cluster.idle.get(*index) else { return };
        let mut idle = idle.borrow_mut();
        if idle.len() < cluster.plan.pool_max_idle {
            idle.push(Idle { stream: self.stream, since: Instant::now() });
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(load) = self.cluster.loads.get(self.index) {
            load.active.set(load.active.get().saturating_sub(1));
        }
    }
}
