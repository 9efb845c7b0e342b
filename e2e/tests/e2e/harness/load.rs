//! A steady load of requests on one address. In: an address, a pace, whether connections are kept. Out: how many were answered, each
//! that was not with its time, the slowest answer, and the longest time without one. Bound: `CLIENTS` requests at a time of each
//! load; a client waits `ANSWER_WITHIN` for its answer.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::wire::Wire;
use super::{PATIENCE, SECOND, until};

/// Requests of one load that are under way at a time.
pub const CLIENTS: usize = 3;

/// Longer than a hung worker may go unnoticed: such a request waits, and does not fail.
const ANSWER_WITHIN: Duration = Duration::from_secs(75);

/// An answer of an app that is at work takes less, by a long way: a client that waits longer has nobody to ask.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection for each request.
    Fresh,
    /// One connection for all of a client's requests. One that was closed between two requests is opened again, and the request sent
    /// again where no byte of an answer had come, as RFC 9110 (9.2.2) has it.
    Kept,
}

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "what happened is there to be printed")]
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
    answers: Mutex<Answers>,
}

/// What is known of the answers that came.
struct Answers {
    newest: Instant,
    /// The longest time between two, since somebody asked.
    longest_pause: Duration,
    slowest: Duration,
    /// What clients spent on requests that took longer than `PAUSE`, answered or not, all clients together.
    waited: Duration,
}

/// From the fault until the worker was seen to be gone.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    pub from: Instant,
    pub to: Instant,
}

/// What came of a load.
#[derive(Debug)]
pub struct Met {
    pub kind: Kind,
    pub answered: usize,
    /// How many there would have been at the pace, but for the time in which clients waited longer than `PAUSE`.
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
            answers: Mutex::new(Answers {
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

    /// Waits until so many more were answered.
    #[track_caller]
    pub fn await_more(&self, count: usize, limit: Duration) {
        let before = self.answered();
        until(limit, "more answers", || self.answered() >= before + count);
    }

    /// The longest time without an answer since it was last asked.
    pub fn take_longest_pause(&self) -> Duration {
        let mut answers = self.shared.answers.lock().expect("no holder panics");
        std::mem::take(&mut answers.longest_pause)
    }

    pub fn finish(mut self) -> Met {
        self.stop();
        let failures = self.shared.failures.lock().expect("no holder panics").clone();
        let retried = self.shared.retried.load(Ordering::Relaxed);
        let answers = self.shared.answers.lock().expect("no holder panics");
        let at_work = (self.shared.began.elapsed() * CLIENTS as u32).saturating_sub(answers.waited);
        let due = (at_work.as_micros() / self.shared.interval.as_micros()) as usize;
        Met { kind: self.shared.kind, answered: self.answered(), due, retried, slowest: answers.slowest, failures }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().ok();
        }
    }
}

impl Answers {
    fn note(&mut self, took: Duration, now: Instant) {
        self.longest_pause = self.longest_pause.max(now.saturating_duration_since(self.newest));
        self.slowest = self.slowest.max(took);
        self.newest = now;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Clients of a test that failed may wait long for an answer, and end by themselves.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Met {
    /// Every request was answered, every connection taken, and none closed without a word before.
    #[track_caller]
    pub fn assert_none_failed(&self) {
        assert_eq!(self.retried, 0, "requests that met a closed connection");
        assert!(
            self.failures.is_empty(),
            "{:?}: {} of {} failed: {:#?}",
            self.kind,
            self.failures.len(),
            self.answered,
            self.failures
        );
    }

    /// What failed was under way in a worker that died in one of these times: at most what a load has under way, and nothing that
    /// was over before or began later.
    #[track_caller]
    pub fn assert_only_inside(&self, deaths: &[Death]) {
        let (kind, failures) = (self.kind, &self.failures);
        assert!(!failures.iter().any(|failure| failure.refused), "{kind:?}, refused: {failures:#?}");
        assert!(failures.len() <= CLIENTS * deaths.len(), "{kind:?}: {failures:#?}, deaths {deaths:?}");
        for failure in failures {
            let inside = deaths.iter().any(|death| failure.began <= death.to && failure.ended >= death.from);
            assert!(inside, "{kind:?}: it was in no worker that died: {failure:?}, deaths {deaths:?}");
        }
    }
}

fn request_until_stopped(shared: &Shared) {
    let mut kept = None;
    let mut due = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        // why: the pace of the load is what the test asks for
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // After a pause the pace is taken up again, without making good for what was missed.
        due = (due + shared.interval).max(Instant::now());
        let began = Instant::now();
        let asked = get(shared, &mut kept);
        let took = began.elapsed();
        let mut answers = shared.answers.lock().expect("no holder panics");
        if took > PAUSE {
            answers.waited += took;
        }
        match asked {
            Ok(()) => {
                shared.answered.fetch_add(1, Ordering::Relaxed);
                answers.note(took, Instant::now());
            }
            Err((refused, what)) => {
                kept = None;
                let failure = Failure { what, refused, began, ended: Instant::now() };
                shared.failures.lock().expect("no holder panics").push(failure);
            }
        }
    }
}

fn get(shared: &Shared, kept: &mut Option<Wire<TcpStream>>) -> Result<(), (bool, String)> {
    if let Some(mut wire) = kept.take() {
        match exchange(&mut wire, "keep-alive") {
            Ok(stays) => {
                *kept = stays.then_some(wire);
                return Ok(());
            }
            // Closed before the first byte of an answer: the request may be sent again.
            Err((false, _)) => drop(shared.retried.fetch_add(1, Ordering::Relaxed)),
            Err((true, what)) => return Err((false, what)),
        }
    }
    let connected = TcpStream::connect(&shared.address).map_err(|error| (true, format!("connect: {error}")))?;
    connected.set_read_timeout(Some(ANSWER_WITHIN)).ok();
    connected.set_nodelay(true).ok();
    let mut wire = Wire::new(connected);
    let connection = if shared.kind == Kind::Kept { "keep-alive" } else { "close" };
    let stays = exchange(&mut wire, connection).map_err(|(_, what)| (false, what))?;
    *kept = stays.then_some(wire);
    Ok(())
}

/// Answers whether the connection stays open; the error says whether a byte of an answer had come.
fn exchange(wire: &mut Wire<TcpStream>, connection: &str) -> Result<bool, (bool, String)> {
    let request = format!("GET /quick HTTP/1.1\r\nHost: app\r\nConnection: {connection}\r\n\r\n");
    wire.send(request).map_err(|error| (false, format!("send: {error}")))?;
    let head = match wire.head() {
        Ok(Some(head)) => head,
        Ok(None) => return Err((false, "closed without an answer".into())),
        Err(error) => return Err((error.kind() == ErrorKind::WouldBlock, format!("head: {error}"))),
    };
    let body = wire.response_body(&head, "GET").map_err(|error| (true, format!("body: {error}")))?;
    match (head.status(), body.whole) {
        (200, true) => Ok(connection != "close" && head.header("connection") != Some("close")),
        (status, whole) => Err((true, format!("{status}, whole: {whole}, {}", String::from_utf8_lossy(&body.bytes)))),
    }
}

/// The size of an app's large answer, and of an upload.
pub const BIG: usize = 24 << 20;

/// Begins an upload of `BIG` bytes that takes three seconds; answers the body that the app sends back.
pub fn upload(address: String) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut wire = Wire::connect(&address).expect("connections are taken");
        let head = format!("POST /upload HTTP/1.1\r\nHost: app\r\nContent-Length: {BIG}\r\n\r\n");
        wire.send(head).expect("the head is read");
        let piece = vec![b'x'; BIG / 30];
        for _ in 0..30 {
            wire.send(&piece).expect("the body is read");
            // why: an upload that takes three seconds
            std::thread::sleep(SECOND / 10);
        }
        wire.send(vec![b'x'; BIG - piece.len() * 30]).expect("the end is read");
        wire.reply("POST").expect("an answer").text()
    })
}

/// Begins a request, and answers what came: status, whether it was whole, and its size.
pub fn fetch(address: String, target: &'static str) -> JoinHandle<(u16, bool, usize)> {
    std::thread::spawn(move || {
        let mut wire = Wire::connect(&address).expect("connections are taken");
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the request is read");
        let reply = wire.reply("GET").expect("an answer");
        (reply.status, reply.body.whole, reply.body.bytes.len())
    })
}

/// Waits until a thread of the test has its result.
#[track_caller]
pub fn joined<T>(handle: JoinHandle<T>, what: &str) -> T {
    until(PATIENCE, what, || handle.is_finished());
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
