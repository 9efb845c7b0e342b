//! A steady load of requests on one address. In: an address, a rate, whether connections are reused. Out: the number of
//! successful requests, each failed request with its time, the slowest response, and the longest time without one. Limits:
//! `CLIENTS` requests in flight for each load; a client waits `RESPONSE_WITHIN` for its response.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::wire::Wire;
use super::{PATIENCE, SECOND, until};

/// Requests of one load that are in flight at a time.
pub const CLIENTS: usize = 3;

/// Longer than a hung worker may remain undetected: such a request waits, and does not fail.
const RESPONSE_WITHIN: Duration = Duration::from_secs(75);

/// A working app responds much faster: a client that waits longer has no worker that serves it.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection for each request.
    Fresh,
    /// One connection for all of a client's requests. A connection that was closed between two requests is reopened, and the
    /// request retried if no byte of a response had arrived (RFC 9110, 9.2.2).
    Kept,
}

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "the fields are only printed")]
pub struct Failure {
    pub what: String,
    pub refused: bool,
    pub began: Instant,
    pub ended: Instant,
}

pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    kind: Kind,
    address: String,
    interval: Duration,
    stop: AtomicBool,
    answered: AtomicUsize,
    retried: AtomicUsize,
    failures: Mutex<Vec<Failure>>,
    began: Instant,
    responses: Mutex<Responses>,
}

/// Statistics of the responses so far.
struct Responses {
    newest: Instant,
    /// The longest time between two responses since the last `take_longest_pause`.
    longest_pause: Duration,
    slowest: Duration,
    /// The time that all clients together spent on requests that took longer than `PAUSE`, successful or not.
    waited: Duration,
}

/// The time from the fault until the worker's exit was detected.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    pub from: Instant,
    pub to: Instant,
}

/// The result of a load.
#[derive(Debug)]
pub struct Met {
    pub kind: Kind,
    pub answered: usize,
    /// The number of responses expected at this rate, without the time in which clients waited longer than `PAUSE`.
    pub due: usize,
    pub retried: usize,
    pub slowest: Duration,
    pub failures: Vec<Failure>,
}

impl Load {
    pub fn start(kind: Kind, address: &str, per_second: u32) -> Self {
        let began = Instant::now();
        let shared = Arc::new(Shared {
            kind,
            address: address.to_owned(),
            interval: SECOND * u32::try_from(CLIENTS).expect("a few") / per_second,
            stop: AtomicBool::default(),
            answered: AtomicUsize::default(),
            retried: AtomicUsize::default(),
            failures: Mutex::default(),
            began,
            responses: Mutex::new(Responses {
                newest: began,
                longest_pause: Duration::ZERO,
                slowest: Duration::ZERO,
                waited: Duration::ZERO,
            }),
        });
        let client = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || request_until_stopped(&shared))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { shared, clients }
    }

    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Waits for this number of further responses.
    #[track_caller]
    pub fn await_more(&self, count: usize, limit: Duration) {
        let before = self.answered();
        until(limit, "more responses", || self.answered() >= before + count);
    }

    /// The longest time without a response since the previous call.
    pub fn take_longest_pause(&self) -> Duration {
        let mut responses = self.shared.responses.lock().expect("no holder panics");
        std::mem::take(&mut responses.longest_pause)
    }

    pub fn finish(mut self) -> Met {
        self.stop();
        let failures = self.shared.failures.lock().expect("no holder panics").clone();
        let retried = self.shared.retried.load(Ordering::Relaxed);
        let responses = self.shared.responses.lock().expect("no holder panics");
        let at_work = (self.shared.began.elapsed() * CLIENTS as u32).saturating_sub(responses.waited);
        let due = (at_work.as_micros() / self.shared.interval.as_micros()) as usize;
        Met { kind: self.shared.kind, answered: self.answered(), due, retried, slowest: responses.slowest, failures }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().ok();
        }
    }
}

impl Responses {
    fn note(&mut self, took: Duration, now: Instant) {
        self.longest_pause = self.longest_pause.max(now.saturating_duration_since(self.newest));
        self.slowest = self.slowest.max(took);
        self.newest = now;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Clients of a failed test may wait long for a response, and exit by themselves.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Met {
    /// Every request succeeded, every connection was accepted, and no idle connection was closed without notification.
    #[track_caller]
    pub fn assert_none_failed(&self) {
        assert_eq!(self.retried, 0, "requests sent on a closed connection");
        assert!(
            self.failures.is_empty(),
            "{:?}: {} of {} failed: {:#?}",
            self.kind,
            self.failures.len(),
            self.answered,
            self.failures
        );
    }

    /// Every failed request was in flight in a worker that crashed in one of these periods: at most as many as a load has in
    /// flight, and none that finished before or started later.
    #[track_caller]
    pub fn assert_only_inside(&self, deaths: &[Death]) {
        let (kind, failures) = (self.kind, &self.failures);
        assert!(!failures.iter().any(|failure| failure.refused), "{kind:?}, refused: {failures:#?}");
        assert!(failures.len() <= CLIENTS * deaths.len(), "{kind:?}: {failures:#?}, deaths {deaths:?}");
        for failure in failures {
            let inside = deaths.iter().any(|death| failure.began <= death.to && failure.ended >= death.from);
            assert!(inside, "{kind:?}: not in flight in a worker that crashed: {failure:?}, deaths {deaths:?}");
        }
    }
}

fn request_until_stopped(shared: &Shared) {
    let mut idle = None;
    let mut due = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        // why: the rate of the load is what the test sets
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // After a pause the rate is resumed; missed requests are not made up for.
        due = (due + shared.interval).max(Instant::now());
        let began = Instant::now();
        let result = get(shared, &mut idle);
        let took = began.elapsed();
        let mut responses = shared.responses.lock().expect("no holder panics");
        if took > PAUSE {
            responses.waited += took;
        }
        match result {
            Ok(()) => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
                responses.note(took, Instant::now());
            }
            Err((refused, what)) => {
                idle = None;
                let failure = Failure { what, refused, began, ended: Instant::now() };
                shared.failures.lock().expect("no holder panics").push(failure);
            }
        }
    }
}

fn get(shared: &Shared, idle: &mut Option<Wire<TcpStream>>) -> Result<(), (bool, String)> {
    if let Some(mut wire) = idle.take() {
        match exchange(&mut wire, "keep-alive") {
            Ok(stays) => {
                *idle = stays.then_some(wire);
                return Ok(());
            }
            // Closed before the first byte of a response: the request may be retried.
            Err((false, _)) => drop(shared.retried.fetch_add(1, Ordering::Relaxed)),
            Err((true, what)) => return Err((false, what)),
        }
    }
    let connected = TcpStream::connect(&shared.address).map_err(|error| (true, format!("connect: {error}")))?;
    connected.set_read_timeout(Some(RESPONSE_WITHIN)).ok();
    connected.set_nodelay(true).ok();
    let mut wire = Wire::new(connected);
    let connection = if shared.kind == Kind::Kept { "keep-alive" } else { "close" };
    let stays = exchange(&mut wire, connection).map_err(|(_, what)| (false, what))?;
    *idle = stays.then_some(wire);
    Ok(())
}

/// Returns whether the connection stays open; the error states whether a byte of a response had arrived.
fn exchange(wire: &mut Wire<TcpStream>, connection: &str) -> Result<bool, (bool, String)> {
    let request = format!("GET /quick HTTP/1.1\r\nHost: app\r\nConnection: {connection}\r\n\r\n");
    wire.send(request).map_err(|error| (false, format!("send: {error}")))?;
    let head = match wire.head() {
        Ok(Some(head)) => head,
        Ok(None) => return Err((false, "closed without a response".into())),
        Err(error) => return Err((error.kind() == ErrorKind::WouldBlock, format!("head: {error}"))),
    };
    let body = wire.response_body(&head, "GET").map_err(|error| (true, format!("body: {error}")))?;
    match (head.status(), body.whole) {
        (200, true) => Ok(connection != "close" && head.header("connection") != Some("close")),
        (status, complete) => {
            Err((true, format!("{status}, complete: {complete}, {}", String::from_utf8_lossy(&body.bytes))))
        }
    }
}

/// The size of an app's large response, and of an upload.
pub const BIG: usize = 24 << 20;

/// Starts an upload of `BIG` bytes that takes three seconds; returns the body of the app's response.
pub fn upload(address: String) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut wire = Wire::connect(&address).expect("connections are accepted");
        let head = format!("POST /upload HTTP/1.1\r\nHost: app\r\nContent-Length: {BIG}\r\n\r\n");
        wire.send(head).expect("the head is read");
        let piece = vec![b'x'; BIG / 30];
        for _ in 0..30 {
            wire.send(&piece).expect("the body is read");
            // why: an upload that takes three seconds
            std::thread::sleep(SECOND / 10);
        }
        wire.send(vec![b'x'; BIG - piece.len() * 30]).expect("the end is read");
        wire.reply("POST").expect("a response").text()
    })
}

/// Starts a request. Returns the response's status, whether its body was complete, and its size.
pub fn fetch(address: String, target: &'static str) -> JoinHandle<(u16, bool, usize)> {
    std::thread::spawn(move || {
        let mut wire = Wire::connect(&address).expect("connections are accepted");
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the request is read");
        let reply = wire.reply("GET").expect("a response");
        (reply.status, reply.body.whole, reply.body.bytes.len())
    })
}

/// Waits until a thread of the test has its result.
#[track_caller]
pub fn joined<T>(handle: JoinHandle<T>, what: &str) -> T {
    until(PATIENCE, what, || handle.is_finished());
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
