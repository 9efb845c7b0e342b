//! Many connections at once: floods of begun heads, thousands that are idle, thousands that wait, and one that is busy. In: raw
//! connections beside real exchanges. Out: whether those go on, memory for each connection, and system calls for each request.
//! Bounded by 8,000 connections, one such test at a time.

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

/// One of these tests at a time, with all descriptors that this process may have.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that another one could trip over.
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let allowed = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: allowed.maximum, maximum: allowed.maximum })
        .expect("up to the maximum");
    guard
}

/// Connections on each of which one request has been answered, and nothing more was said.
fn open_idle(proxied: &Proxied, count: usize) -> Vec<Wire<TcpStream>> {
    let open = |_| {
        let mut wire = proxied.connect();
        wire.send("GET /idle HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
        assert_eq!(wire.reply("GET").expect("an answer").status, 200);
        wire
    };
    (0..count).map(open).collect()
}

/// Answers `/half` in part and `/wait` not at all before the gate is open; `/tunnel` sends back what comes.
fn patient_app(gate: &Gate) -> RawApp {
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

/// With every default, five thousand clients that each send a piece of a head cost no exchange anything that was there before
/// them: neither a download, nor a request that waits, nor a tunnel.
/// covers: faults 5
#[test]
fn a_flood_of_begun_heads_costs_the_flooders_alone() {
    const EACH: usize = 20;
    const FLOOD: usize = 5000;
    let _alone = alone();
    let gate = Gate::default();
    let app = patient_app(&gate);
    let proxied = Proxied::to(&app.address());
    let worker = proxied.outrigger.worker();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let kinds = [("/half", "", EACH), ("/wait", "", EACH), ("/tunnel", upgrade, EACH)];
    let mut under_way: Vec<(String, Wire<TcpStream>)> = Vec::new();
    for (kind, fields, count) in kinds {
        for number in 0..count {
            let (path, mut wire) = (format!("{kind}/{number}"), proxied.connect());
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n{fields}\r\n")).expect("the proxy reads");
            under_way.push((path, wire));
        }
    }
    until(PATIENCE, "all are under way", || app.seen_count() == 3 * EACH);
    // Half of them are there for the first time, and half have been answered before.
    let fresh = (0..FLOOD / 2).map(|_| proxied.connect());
    let mut flood: Vec<_> = open_idle(&proxied, FLOOD / 2).into_iter().chain(fresh).collect();
    for wire in &mut flood {
        // Exactly 33 bytes. Who is closed already, for want of memory, has nothing to say.
        wire.send("GET /flood HTTP/1.1\r\nHost: app\r\nX").ok();
    }
    // `request_headers_timeout` comes after the looks at which a worker that is too large is replaced.
    for wire in &mut flood {
        wire.wait_at_most(2 * PATIENCE);
        assert!(wire.until_closed().is_ok(), "a flooder is open after `request_headers_timeout`");
    }
    gate.open();
    let mut cut = Vec::new();
    for (path, wire) in &mut under_way {
        let text = match path.split('/').nth(1) {
            Some("tunnel") => wire.head().and_then(|_| wire.send("ping")).and_then(|()| wire.exactly(4)),
            _ => wire.reply("GET").map(|reply| reply.body),
        };
        let text = text.map(|body| String::from_utf8_lossy(&body.bytes).into_owned());
        if !matches!(text.as_deref(), Ok("halfhalf" | "late" | "ping")) {
            cut.push(format!("{path}: {text:?}"));
        }
    }
    let cut_count = cut.len();
    cut.truncate(6);
    assert!(cut.is_empty(), "{cut_count} of {} were cut: {cut:#?}", under_way.len());
    assert_eq!(proxied.outrigger.worker(), worker, "the same worker serves");
    let paths: Vec<String> = under_way.drain(..).map(|(path, _)| path).collect();
    let recorded = || paths.iter().filter(|path| !proxied.records_of(path).is_empty()).count();
    until(PATIENCE, "a record of each exchange", || recorded() == paths.len());
    proxied.finish();
}

/// What an idle connection may take: twice the aim, as other threads of the worker are measured too.
const IDLE_BYTES: u64 = 4 << 10;

/// Three thousand idle connections are small, and a hundred clients that come after them are served at once: with the memory
/// for each connection that 6,100 have of the default limit.
/// covers: faults 5
#[test]
fn idle_connections_are_small_and_hold_nobody_up() {
    const IDLE: usize = 3000;
    let _alone = alone();
    let app = RawApp::echoing_targets();
    let proxied = Proxied::with(&[&app.address()], Keys { limits: "memory: 28MiB", ..Keys::default() });
    drop(open_idle(&proxied, 50));
    let worker = proxied.outrigger.worker();
    let before = proportional_bytes(worker);
    let idle = open_idle(&proxied, IDLE);
    let each = proportional_bytes(worker).saturating_sub(before) / IDLE as u64;
    println!("an idle connection takes {each} bytes of the worker (PSS)");
    let began = Instant::now();
    let took = std::thread::scope(|scope| {
        let get = || proxied.get("/new").status == 200;
        let clients: Vec<_> = (0..100).map(|_| scope.spawn(get)).collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap_or(false)), "a new client got no answer");
        began.elapsed()
    });
    assert!(each <= IDLE_BYTES && took < 4 * SECOND, "{each} bytes for each; a hundred new clients took {took:?}");
    assert_eq!(proxied.outrigger.worker(), worker, "the same worker serves");
    drop(idle);
    proxied.finish();
}

/// Where even that is too much, the oldest idle connection gives way to new clients, the newest stays, and the status says so.
/// covers: faults 5
#[test]
fn the_oldest_idle_connections_give_way_where_memory_is_short() {
    const MOST: usize = 8000;
    const HALF_THE_LIMIT_KIB: u64 = 4 << 10;
    let _alone = alone();
    let app = RawApp::echoing_targets();
    let proxied = Proxied::with(&[&app.address()], Keys { limits: "memory: 8MiB", ..Keys::default() });
    let worker = proxied.outrigger.worker();
    let (mut idle, mut degraded) = (Vec::new(), String::new());
    let gave_way = within(PATIENCE, || {
        idle.append(&mut open_idle(&proxied, 100.min(MOST - idle.len())));
        let status = request(&proxied.outrigger.admin, "GET", "/status", &[], b"").expect("it answers").json();
        let subsystems = status["subsystems"].as_array().cloned().unwrap_or_default();
        let short = subsystems.iter().find(|one| one["health"] == "degraded");
        degraded = short.map_or(degraded.clone(), |one| one["message"].to_string());
        is_closed(&mut idle[0]) && !degraded.is_empty()
    });
    let oldest = is_closed(&mut idle[0]);
    assert!(gave_way, "of {} idle ones the oldest is closed: {oldest}; degraded: {degraded:?}", idle.len());
    let newest = idle.last_mut().expect("many");
    newest.send("GET /newest HTTP/1.1\r\nHost: app\r\n\r\n").expect("the newest is open");
    assert_eq!(newest.reply("GET").expect("an answer").text(), "/newest");
    assert_eq!(proxied.get("/new").text(), "/new");
    assert_eq!(proxied.outrigger.worker(), worker, "the same worker serves");
    drop(idle);
    let mut status = serde_json::Value::Null;
    let is_well = within(PATIENCE, || {
        status = proxied.outrigger.get("/status").json();
        status["health"] == "ok"
    });
    assert!(is_well, "the status is well again: {status:#}");
    // At first, the worker uses less than a quarter of the limit.
    let given_back = || anonymous_kib(worker) < HALF_THE_LIMIT_KIB;
    until(PATIENCE, "what the connections took is given back", given_back);
    proxied.finish();
}

/// Whether the other end has closed, without waiting for it.
fn is_closed(wire: &mut Wire<TcpStream>) -> bool {
    wire.wait_at_most(Duration::from_millis(1));
    let closed = wire.until_closed().is_ok();
    wire.wait_at_most(PATIENCE);
    closed
}

/// The memory of a process, with its part of what it shares (proc_pid_smaps(5), Pss).
fn proportional_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("root reads it of any process");
    let value = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("it has a line for it");
    value.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// An app that answers each connection's one request after a delay, with two threads however many wait.
struct Delayed {
    address: String,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Delayed {
    fn start(delay: Duration) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let listener = TcpListener::bind(&address).expect("the address is free");
        // All of them at once may wait to be accepted; the library asks for 128.
        listen(&listener, 4096).expect("it listens already");
        let stop = Arc::new(AtomicBool::default());
        let (waiting, due) = channel::<(Instant, Wire<TcpStream>)>();
        std::thread::spawn(move || {
            for (at, mut wire) in due {
                // why: the app is a slow one
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                // Whose client is gone needs no answer.
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
        // Wakes the accepting thread, which then sees that it should stop.
        TcpStream::connect(&self.address).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

/// Four thousand clients at once with an app that takes three seconds: the last answer comes hardly later than that, as the
/// memory of those that wait does not hold up who has not been accepted yet.
/// covers: faults 5
#[test]
fn thousands_that_wait_hold_nobody_up() {
    const CLIENTS: usize = 4000;
    const DELAY: Duration = Duration::from_secs(3);
    let _alone = alone();
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
    println!("the last of {CLIENTS} answers came after {took:?}");
    assert!(other.is_empty(), "{} of {CLIENTS} were not 200, the first {:?}", other.len(), other.first());
    // HAProxy takes 0.6 s more than the app.
    assert!(took < DELAY + Duration::from_millis(4 * 600), "the last answer came after {took:?}");
    assert_eq!(proxied.outrigger.worker(), worker, "the same worker serves");
    proxied.finish();
}

/// A request on a connection that is kept costs two reads and two writes, none of them in vain: the request's and the answer's.
/// covers: faults 5
#[test]
fn a_request_costs_two_reads_and_two_writes() {
    const REQUESTS: u64 = 2000;
    let strace = need_peer!("strace");
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let mut get = || {
        wire.send("GET /load HTTP/1.1\r\nHost: app\r\n\r\n").expect("the connection is kept");
        assert_eq!(wire.reply("GET").expect("an answer").status, 200);
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
    // Connections that are no client's are few: what else the worker reads and writes by these calls.
    let about = |count: u64| (2 * REQUESTS..2 * REQUESTS + REQUESTS / 20).contains(&count);
    let right = about(reads.0) && about(writes.0) && reads.1 + writes.1 <= REQUESTS / 20;
    assert!(right, "for {REQUESTS} requests (calls, of which in vain): reads {reads:?}, writes {writes:?}\n{table}");
    proxied.finish();
}

/// Whether strace has all threads of a process.
fn is_traced(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    states.all(|state| !state.contains("TracerPid:\t0\n"))
}

/// Of strace's table: `% time, seconds, usecs/call, calls, errors, syscall`, where errors may be blank.
fn calls(table: &str, name: &str) -> (u64, u64) {
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let columns = line.into_iter().find(|columns| columns.last() == Some(&name)).unwrap_or_default();
    let number = |place: usize| columns.get(place).and_then(|text| text.parse().ok()).unwrap_or(0);
    (number(3), number(4))
}
