//! Requests at a fixed pace, each on its own connection, whether or not previous ones got a response (open loop).
//!
//! In: a port and the time between two requests. Out: when each began and ended, and whether it returned 200. A client
//! that waits for its response before the next request would send one request during an outage, and the outage would
//! count as one request. At most 256 requests wait at a time, each at most 4 s; a beat above that limit is skipped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::running::status;

const WAITING_MAX: usize = 256;
const STACK_BYTES: usize = 128 * 1024;

#[derive(Clone, Copy)]
pub struct Request {
    pub begun: Instant,
    pub ended: Instant,
    pub answered: bool,
}

impl Request {
    pub fn took(&self) -> Duration {
        self.ended - self.begun
    }
}

pub struct Pace {
    going: Arc<AtomicBool>,
    ended: Arc<Mutex<Vec<Request>>>,
    pacer: Option<JoinHandle<()>>,
}

impl Pace {
    pub fn start(port: u16, interval: Duration) -> Self {
        let (going, ended) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<Vec<Request>>>::default());
        let pacer = {
            let (going, ended) = (going.clone(), ended.clone());
            std::thread::spawn(move || beat(port, interval, &going, &ended))
        };
        Self { going, ended, pacer: Some(pacer) }
    }

    /// The requests that have ended so far, ordered by their end.
    pub fn ended(&self) -> Vec<Request> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts no further request; returns all requests once the last has ended.
    pub fn stop(mut self) -> Vec<Request> {
        self.halt();
        self.ended()
    }

    fn halt(&mut self) {
        self.going.store(false, Ordering::Relaxed);
        if self.pacer.take().is_some_and(|pacer| pacer.join().is_err()) {
            eprintln!("bench: the thread that sets the pace has panicked");
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.halt();
    }
}

fn beat(port: u16, interval: Duration, going: &AtomicBool, ended: &Arc<Mutex<Vec<Request>>>) {
    let mut due = Instant::now();
    let mut waiting: Vec<JoinHandle<()>> = Vec::new();
    while going.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += interval;
        waiting.retain(|request| !request.is_finished());
        if waiting.len() == WAITING_MAX {
            continue;
        }
        let ended = ended.clone();
        let request = move || {
            let begun = Instant::now();
            let answered = status(port, "/") == Some(200);
            let request = Request { begun, ended: Instant::now(), answered };
            ended.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        };
        // If no thread can be started, this beat is skipped, as one above the limit.
        waiting.extend(std::thread::Builder::new().stack_size(STACK_BYTES).spawn(request));
    }
    for request in waiting {
        // A thread prints its own panic; its request is missing from the list.
        request.join().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::Receiver;

    #[test]
    fn a_hung_request_does_not_delay_later_ones() {
        // It accepts connections and sends no response.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let port = silent.local_addr().expect("a bound socket has an address").port();
        let pace = Pace::start(port, Duration::from_millis(1));
        let mut accepted = Vec::new();
        while accepted.len() < 5 {
            accepted.push(silent.accept().expect("requests continue"));
        }
        assert!(pace.ended().is_empty(), "none of them can have ended");
        drop((silent, accepted));
        assert!(pace.stop().iter().all(|request| !request.answered));
    }

    #[test]
    fn a_working_server_answers_every_request() {
        let receiver = Receiver::start().expect("a loopback port");
        let pace = Pace::start(receiver.port, Duration::from_millis(1));
        let limit = Instant::now() + Duration::from_secs(10);
        while pace.ended().len() < 20 && Instant::now() < limit {
            std::thread::yield_now();
        }
        let requests = pace.stop();
        assert!(requests.len() >= 20 && requests.iter().all(|request| request.answered));
        assert!(receiver.count("/") >= 20);
    }
}
