//! Many simultaneous connections: floods of partial heads, thousands that are idle, thousands that wait, and one that is busy.
//! In: raw connections next to real exchanges. Out: whether the exchanges complete, memory per connection, and system calls per
//! request. Bounded by 8,000 connections, one such test at a time.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::listen;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::process::{Running, Signal, anonymous_kib};
use crate::harness::proxied::Keys;
use crate::harness::raw_app::{Gate, answer_ok};
use crate::harness::{Next, PATIENCE, Proxied, RawApp, SECOND, Wire, free_port, request, until, within};

/// Runs one of these tests at a time, with the maximum of file descriptors of this process.
fn exclusive() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A failed test leaves no state that affects another test, so a poisoned lock is fine.
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let allowed = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: allowed.maximum, maximum: allowed.maximum })
        .expect("the soft limit may be raised to the hard limit");
    guard
}

/// Connections that each have completed one request and are idle.
fn open_idle(proxied: &Proxied, count: usize) -> Vec<Wire<TcpStream>> {
    let open = |_| {
        let mut wire = proxied.connect();
        wire.send("GET /idle HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
        assert_eq!(wire.reply("GET").expect("a response").status, 200);
        wire
    };
    (0..count).map(open).collect()
}

/// Responds to `/half` partially and to `/wait` not at all before the gate is open; `/tunnel` echoes what it receives.
fn gated_app(gate: &Gate) -> RawApp {
    let gate = gate.clone();
    RawApp::start(move |seen, wire| {
        let target = seen.head.target();
        if target.starts_with("/tunnel") {
            let key = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade";
            wire.send(format!("{head}\r\n{key}\r\n\r\n")).ok();
            while wire.exactly(4).is_ok_and(|body| body.whole && wire.send(body.bytes).is_ok()) {}
            return Next::Close;
        }
        if target.starts_with("/half") {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").ok();
            gate.wait();
            return wire.send("half").map_or(Next::Close, |()| Next::Keep);
        }
        if target.starts_with("/wait") {
            gate.wait();
        }
        answer_ok(wire, b"late")
    })
}

/// With all defaults, five thousand clients that each send a partial head affect no exchange that started before them:
/// neither a download, nor a waiting request, nor a tunnel.
/// Guarantee: flood-breaks-no-exchange
#[test]
fn partial_head_flood_spares_existing_exchanges() {
    const EACH: usize = 20;
    const FLOOD: usize = 5000;
    let _exclusive = exclusive();
    let gate = Gate::default();
    let app = gated_app(&gate);
    let proxied = Proxied::to(&app.address());
    let worker = proxied.outrigger.worker();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let kinds = [("/half", "", EACH), ("/wait", "", EACH), ("/tunnel", upgrade, EACH)];
    let mut in_flight: Vec<(String, Wire<TcpStream>)> = Vec::new();
    for (kind, fields, count) in kinds {
        for number in 0..count {
            let (path, mut wire) = (format!("{kind}/{number}"), proxied.connect());
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n{fields}\r\n")).expect("the proxy reads");
            in_flight.push((path, wire));
        }
    }
    until(PATIENCE, "all are in flight", || app.seen_count() == 3 * EACH);
    // Half of the flood is new connections, and half have completed a request before.
    let fresh = (0..FLOOD / 2).map(|_| proxied.connect());
    let mut flood: Vec<_> = open_idle(&proxied, FLOOD / 2).into_iter().chain(fresh).collect();
    for wire in &mut flood {
        // Exactly 33 bytes. The send fails on a connection that was already closed due to memory pressure.
        wire.send("GET /flood HTTP/1.1\r\nHost: app\r\nX").ok();
    }
    // `request_headers_timeout` expires after the self-checks that replace a worker over its memory limit.
    for wire in &mut flood {
        wire.wait_at_most(2 * PATIENCE);
        assert!(wire.until_closed().is_ok(), "a flooding connection is open after `request_headers_timeout`");
    }
    gate.open();
    let mut broken = Vec::new();
    for (path, wire) in &mut in_flight {
        let text = match path.split('/').nth(1) {
            Some("tunnel") => wire.head().and_then(|_| wire.send("ping")).and_then(|()| wire.exactly(4)),
            _ => wire.reply("GET").map(|reply| reply.body),
        };
        let text = text.map(|body| String::from_utf8_lossy(&body.bytes).into_owned());
        if !matches!(text.as_deref(), Ok("halfhalf" | "late" | "ping")) {
            broken.push(format!("{path}: {text:?}"));
        }
    }
    let count = broken.len();
    broken.truncate(6);
    assert!(broken.is_empty(), "{count} of {} were broken: {broken:#?}", in_flight.len());
    assert_eq!(proxied.outrigger.worker(), worker, "the worker was not replaced");
    let paths: Vec<String> = in_flight.drain(..).map(|(path, _)| path).collect();
    let recorded = || paths.iter().filter(|path| !proxied.records_of(path).is_empty()).count();
    until(PATIENCE, "a record of each exchange", || recorded() == paths.len());
    proxied.finish();
}

/// The memory limit of an idle connection: twice the goal, because other threads of the worker are measured too.
const IDLE_BYTES: u64 = 4 << 10;

/// Three thousand idle connections are small, and a hundred later clients are served immediately: with the memory per
/// connection that 6,100 connections have under the default limit.
#[test]
fn idle_connections_are_small_and_block_nothing() {
    const IDLE: usize = 3000;
    let _exclusive = exclusive();
    let app = RawApp::echoing_targets();
    let proxied = Proxied::with(&[&app.address()], Keys { limits: "memory: 28MiB", ..Keys::default() });
    drop(open_idle(&proxied, 50));
    let worker = proxied.outrigger.worker();
    let before = private_bytes(worker);
    let idle = open_idle(&proxied, IDLE);
    let each = private_bytes(worker).saturating_sub(before) / IDLE as u64;
    println!("an idle connection uses {each} bytes of the worker");
    let began = Instant::now();
    let took = std::thread::scope(|scope| {
        let get = || proxied.get("/new").status == 200;
        let clients: Vec<_> = (0..100).map(|_| scope.spawn(get)).collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap_or(false)), "a new client got no response");
        began.elapsed()
    });
    assert!(
        each <= IDLE_BYTES && took < 4 * SECOND,
        "{each} bytes per connection; a hundred new clients took {took:?}"
    );
    assert_eq!(proxied.outrigger.worker(), worker, "the worker was not replaced");
    drop(idle);
    proxied.finish();
}

/// If even that is too much, the oldest idle connection is closed for new clients, the newest stays, and the status reports it.
/// Guarantee: flood-within-memory-limit
#[test]
fn low_memory_closes_the_oldest_idle_connections() {
    const MOST: usize = 8000;
    const HALF_THE_LIMIT_KIB: u64 = 4 << 10;
    let _exclusive = exclusive();
    let app = RawApp::echoing_targets();
    let proxied = Proxied::with(&[&app.address()], Keys { limits: "memory: 8MiB", ..Keys::default() });
    let worker = proxied.outrigger.worker();
    let (mut idle, mut degraded) = (Vec::new(), String::new());
    let evicted = within(PATIENCE, || {
        idle.append(&mut open_idle(&proxied, 100.min(MOST - idle.len())));
        let status =
            request(&proxied.outrigger.admin, "GET", "/status", &[], b"").expect("the admin listener responds").json();
        let subsystems = status["subsystems"].as_array().cloned().unwrap_or_default();
        let short = subsystems.iter().find(|one| one["health"] == "degraded");
        degraded = short.map_or(degraded.clone(), |one| one["message"].to_string());
        is_closed(&mut idle[0]) && !degraded.is_empty()
    });
    let oldest = is_closed(&mut idle[0]);
    assert!(evicted, "of {} idle connections the oldest is closed: {oldest}; degraded: {degraded:?}", idle.len());
    let newest = idle.last_mut().expect("many");
    newest.send("GET /newest HTTP/1.1\r\nHost: app\r\n\r\n").expect("the newest is open");
    assert_eq!(newest.reply("GET").expect("a response").text(), "/newest");
    assert_eq!(proxied.get("/new").text(), "/new");
    assert_eq!(proxied.outrigger.worker(), worker, "the worker was not replaced");
    drop(idle);
    let mut status = serde_json::Value::Null;
    let is_ok = within(PATIENCE, || {
        status = proxied.outrigger.get("/status").json();
        status["health"] == "ok"
    });
    assert!(is_ok, "the status recovers: {status:#}");
    // A new worker uses less than a quarter of the limit.
    let released = || anonymous_kib(worker) < HALF_THE_LIMIT_KIB;
    until(PATIENCE, "the memory of the connections is released", released);
    proxied.finish();
}

/// Whether the peer has closed, without waiting for it.
fn is_closed(wire: &mut Wire<TcpStream>) -> bool {
    wire.wait_at_most(Duration::from_millis(1));
    let closed = wire.until_closed().is_ok();
    wire.wait_at_most(PATIENCE);
    closed
}

/// Memory of the process alone: the share of a program's pages rises when another process with the same program exits.
fn private_bytes(pid: u32) -> u64 {
    anonymous_kib(pid) << 10
}

/// An app that responds to one request per connection after a delay, with two threads for any number of requests.
struct Delayed {
    address: String,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Delayed {
    fn start(delay: Duration) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let listener = TcpListener::bind(&address).expect("the address is free");
        // All of them may wait for accept simultaneously; the standard library sets a backlog of 128.
        listen(&listener, 4096).expect("the backlog of a listener can be changed");
        let stop = Arc::new(AtomicBool::default());
        let (waiting, due) = channel::<(Instant, Wire<TcpStream>)>();
        std::thread::spawn(move || {
            for (at, mut wire) in due {
                // why: the app is slow
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                // A disconnected client needs no response.
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nslow").ok();
            }
        });
        let accepting = std::thread::spawn({
            let stop = stop.clone();
            move || {
                for stream in listener.incoming().flatten().take_while(|_| !stop.load(Ordering::SeqCst)) {
                    let mut wire = Wire::new(stream);
                    if wire.head().is_ok_and(|head| head.is_some()) {
                        waiting.send((Instant::now() + delay, wire)).ok();
                    }
                }
            }
        });
        Self { address, stop, accepting: Some(accepting) }
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then checks `stop`.
        TcpStream::connect(&self.address).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

/// Four thousand simultaneous clients of an app that takes three seconds: the last response arrives hardly later than that,
/// because the memory of waiting clients does not block those that have not been accepted yet.
#[test]
fn thousands_of_waiting_clients_block_no_client() {
    const CLIENTS: usize = 4000;
    const DELAY: Duration = Duration::from_secs(3);
    let _exclusive = exclusive();
    let app = Delayed::start(DELAY);
    let proxied = Proxied::to(&app.address);
    let worker = proxied.outrigger.worker();
    let began = Instant::now();
    let get = |_| {
        let mut wire = proxied.connect();
        wire.wait_at_most(2 * PATIENCE);
        wire.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
        wire
    };
    let clients: Vec<_> = (0..CLIENTS).map(get).collect();
    let statuses = clients.into_iter().map(|mut wire| wire.reply("GET").map_or(0, |reply| reply.status));
    let other: Vec<u16> = statuses.filter(|status| *status != 200).collect();
    let took = began.elapsed();
    println!("the last of {CLIENTS} responses arrived after {took:?}");
    assert!(other.is_empty(), "{} of {CLIENTS} were not 200, the first {:?}", other.len(), other.first());
    // HAProxy takes 0.6 s more than the app.
    assert!(took < DELAY + Duration::from_millis(4 * 600), "the last response arrived after {took:?}");
    assert_eq!(proxied.outrigger.worker(), worker, "the worker was not replaced");
    proxied.finish();
}

/// A request on a keep-alive connection costs two reads and two writes, none of them in vain: for the request and the response.
#[test]
fn a_request_costs_two_reads_and_two_writes() {
    const REQUESTS: u64 = 2000;
    let strace = need_peer!("strace");
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let mut get = || {
        wire.send("GET /load HTTP/1.1\r\nHost: app\r\n\r\n").expect("the connection is kept alive");
        assert_eq!(wire.reply("GET").expect("a response").status, 200);
    };
    get();
    let (worker, counts) = (proxied.outrigger.worker().to_string(), proxied.scene.text_path("calls"));
    let mut tracer =
        Running::start(&[strace.as_str(), "-f", "-c", "-e", "trace=recvfrom,sendto", "-o", &counts, "-p", &worker]);
    until(PATIENCE, "all threads of the worker are traced", || is_traced(&worker));
    (0..REQUESTS).for_each(|_| get());
    tracer.signal(Signal::INT);
    tracer.wait(PATIENCE);
    let table = std::fs::read_to_string(&counts).expect("strace has written its table");
    let [reads, writes] = ["recvfrom", "sendto"].map(|call| calls(&table, call));
    // The worker makes few of these calls for other purposes than client connections.
    let about = |count: u64| (2 * REQUESTS..2 * REQUESTS + REQUESTS / 20).contains(&count);
    let right = about(reads.0) && about(writes.0) && reads.1 + writes.1 <= REQUESTS / 20;
    assert!(right, "for {REQUESTS} requests (calls, of which in vain): reads {reads:?}, writes {writes:?}\n{table}");
    proxied.finish();
}

/// Whether strace is attached to all threads of a process.
fn is_traced(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    states.all(|state| !state.contains("TracerPid:\t0\n"))
}

/// Calls and errors from strace's table: `% time, seconds, usecs/call, calls, errors, syscall`, where errors may be blank.
fn calls(table: &str, name: &str) -> (u64, u64) {
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let columns = line.into_iter().find(|columns| columns.last() == Some(&name)).unwrap_or_default();
    let number = |index: usize| columns.get(index).and_then(|text| text.parse().ok()).unwrap_or(0);
    (number(3), number(4))
}
