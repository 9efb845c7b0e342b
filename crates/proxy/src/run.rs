//! The proxy from start to stop: bind → data threads → accept → forward, then drain. In: a Plan, sockets, the feed
//! for access records. Out: running threads and their counters.
//!
//! ```text
//! accept::accept → http1::forward::serve → head::request → exchange::run → connect::Cluster::checkout → balance::pick
//!                                                        ↘ Download::run → head::response → client
//!                                                        ↘ telemetry::Recorder::request, access::Access::record
//! ```

use crate::accept::{ListenerState, accept, accept_waiting, close_idle_under_pressure};
use crate::access::Access;
use crate::config::Direction;
use crate::connect::Cluster;
use crate::plan::Plan;
use crate::telemetry::{Counters, Recorder};
use base::feeds::{AccessBatch, FeedSender};
use base::runtime::health::Health;
use base::runtime::lifecycle::{Lifecycle, Participant, Phase};
use base::runtime::pressure::Pressure;
use base::runtime::scope::{self, Scope};
use base::system::listen::Sockets;
use base::telemetry::Telemetry;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// How often idle connections to endpoints are checked for expiry.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// Binds all listeners, then starts the data threads. Errors: every address that cannot be bound, with its holder.
pub fn start(
    plan: Plan,
    sockets: &Sockets,
    telemetry: &Telemetry,
    lifecycle: &mut Lifecycle,
    access: Option<FeedSender<AccessBatch>>,
) -> Result<Arc<Counters>, Vec<String>> {
    let health = telemetry.health("proxy");
    let plan = Arc::new(plan);
    let (mut per_thread, mut errors) = ((0..plan.threads).map(|_| Vec::new()).collect::<Vec<_>>(), Vec::new());
    for (index, listener) in plan.listeners.iter().enumerate() {
        match sockets.tcp(&format!("proxy/{}", listener.name), listener.address, plan.threads) {
            // A group that was larger before is adopted completely: an orphaned socket would swallow connections.
            Ok(group) => group.into_iter().enumerate().for_each(|(member, socket)| {
                if let Some(list) = per_thread.get_mut(member % plan.threads) {
                    list.push((index, socket));
                }
            }),
            Err(error) => errors.push(format!("proxy.listeners.{}: {error}", listener.name)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let (counters, outlive_us) = (Counters::new(&plan), sockets.outlive_us);
    let addresses: Vec<String> = plan.listeners.iter().map(|l| format!("{} on {}", l.name, l.address)).collect();
    let shared = Shared {
        plan,
        counters: counters.clone(),
        access,
        health: health.clone(),
        outlive_us,
        pressure: telemetry.pressure.clone(),
        token: token(),
    };
    for (thread, sockets) in per_thread.into_iter().enumerate() {
        let (shared, participant) = (shared.clone(), lifecycle.participant("proxy"));
        let spawned = scope::thread(&format!("proxy-{thread}"), health.clone(), move || {
            data_thread(thread, sockets, shared, participant)
        });
        spawned.map_err(|error| vec![format!("cannot start proxy thread {thread}: {error}")])?;
    }
    for listener in &shared.plan.listeners {
        health.component(listener.id.clone(), "listener");
    }
    for cluster in &shared.plan.clusters {
        health.component(cluster.id.clone(), "cluster");
    }
    health.set_summary(format!("listening: {}", addresses.join(", ")));
    health.set_ready(true);
    Ok(counters)
}

/// Distinguishes workers, of this instance and of others, by process id and time.
fn token() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.subsec_nanos() ^ std::process::id().rotate_left(16) ^ (now.as_secs() as u32)
}

/// Shared by all data threads.
#[derive(Clone)]
struct Shared {
    plan: Arc<Plan>,
    counters: Arc<Counters>,
    access: Option<FeedSender<AccessBatch>>,
    health: Arc<Health>,
    /// The sockets stay open after Outrigger exits.
    outlive_us: bool,
    pressure: Pressure,
    /// Distinguishes this worker from all other hops.
    token: u32,
}

async fn data_thread(
    thread: usize,
    sockets: Vec<(usize, std::net::TcpListener)>,
    shared: Shared,
    mut participant: Participant,
) {
    let Shared { plan, counters, access, health, outlive_us, pressure, token } = shared;
    let scope = Scope::new(format!("proxy-{thread}"), health.clone());
    let recorder = Rc::new(counters.recorder(thread));
    let clusters = clusters(&plan, &recorder, &health);
    let access = access.map(Access::new);
    if let Some(access) = &access {
        scope.spawn("access", access.clone().flush_periodically());
    }
    let (mut states, mut listening) = (Vec::new(), Vec::new());
    let accepting = Scope::new(format!("proxy-{thread}"), health.clone());
    for (index, socket) in sockets {
        let (Some(listener), Ok(socket)) = (plan.listeners.get(index), TcpListener::from_std(socket)) else {
            health.panicked("cannot use a listening socket");
            continue;
        };
        let Some(cluster) = clusters.get(listener.cluster) else { continue };
        let state = ListenerState::new(
            listener.clone(),
            index,
            cluster.clone(),
            recorder.clone(),
            access.clone(),
            pressure.clone(),
            format!("outrigger-{token:08x}-{index}"),
        );
        let socket = Rc::new(socket);
        accepting.spawn("accept", accept(socket.clone(), state.clone(), scope.clone(), health.clone()));
        listening.push((socket, state.clone()));
        states.push(state);
    }
    scope.spawn("expire", expire(clusters));
    scope.spawn("evict", close_idle_under_pressure(states.clone(), health.clone(), pressure));

    participant.reached(Phase::Handover).await;
    if participant.is_handover() {
        // From here on the next worker accepts, including the connections that wait in the sockets.
        states.iter().for_each(|state| state.start_drain());
        participant.done(Phase::Handover);
    }
    let until = participant.reached(Phase::Drain).await;
    // If the sockets stay open across a restart, clients wait in them for the next process.
    if !participant.is_handover() && !outlive_us {
        stop_listening(&listening, &scope);
    }
    drain(&states, Direction::Inbound, until).await;
    if participant.is_handover() {
        // The app keeps running and sending requests: no later phase drains them.
        drain(&states, Direction::Outbound, until).await;
    }
    if let Some(access) = &access {
        access.flush();
    }
    participant.done(Phase::Drain);
    participant.reached(Phase::Finish).await;
    if let Some(access) = &access {
        access.flush();
    }
    participant.done(Phase::Finish);
    let until = participant.reached(Phase::Close).await;
    drain(&states, Direction::Outbound, until).await;
    participant.done(Phase::Close);
}

fn clusters(plan: &Plan, recorder: &Recorder, health: &Arc<Health>) -> Vec<Rc<Cluster>> {
    let clusters = plan.clusters.iter().enumerate();
    clusters.map(|(index, plan)| Cluster::new(plan.clone(), recorder.cluster(index), health.clone())).collect()
}

/// The supervisor holds the sockets too: only shutdown(2) stops the listening, so that clients connect elsewhere.
fn stop_listening(listening: &[(Rc<TcpListener>, Rc<ListenerState>)], scope: &Scope) {
    for (socket, state) in listening.iter().filter(|(_, state)| state.plan.direction == Direction::Inbound) {
        state.start_drain();
        accept_waiting(socket, state, scope);
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
    }
}

/// Drains the listeners of one direction: no new connections, busy ones finish until the deadline, when tunnels are closed.
async fn drain(states: &[Rc<ListenerState>], direction: Direction, until: std::time::Instant) {
    let selected = || states.iter().filter(|state| state.plan.direction == direction);
    selected().for_each(|state| state.start_drain());
    for state in selected() {
        if tokio::time::timeout_at(until.into(), state.drained()).await.is_err() {
            state.cut_tunnels().await;
        }
    }
}

async fn expire(clusters: Vec<Rc<Cluster>>) {
    loop {
        tokio::time::sleep(EXPIRE_EVERY).await;
        clusters.iter().for_each(|cluster| cluster.expire());
    }
}
