//! An app with byte-level control of HTTP/1.1, for proxy tests with messages that no library would produce. In: requests,
//! which are recorded as received. Out: for each the bytes that a function of the test sends. Limits: what one test sends.

use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};

use super::server::Server;
use super::wire::{Body, Head, Wire};
use super::{PATIENCE, free_port};

#[derive(Clone, Debug)]
pub struct Seen {
    pub head: Head,
    pub body: Body,
}

/// What the app does with the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    Keep,
    Close,
}

pub struct RawApp {
    server: Server,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl RawApp {
    /// Responds to every complete request by `answer`; sends 100 on `Expect: 100-continue` before it reads the body.
    pub fn start(answer: impl Fn(&Seen, &mut Wire<TcpStream>) -> Next + Send + Sync + 'static) -> Self {
        Self::start_on(free_port(), answer)
    }

    pub fn start_on(port: u16, answer: impl Fn(&Seen, &mut Wire<TcpStream>) -> Next + Send + Sync + 'static) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let server = Server::start_on(port, {
            let seen = seen.clone();
            move |stream| {
                let mut wire = Wire::new(stream);
                while let Some(request) = read_request(&mut wire) {
                    seen.lock().expect("no holder panics").push(request.clone());
                    if answer(&request, &mut wire) == Next::Close {
                        return;
                    }
                }
            }
        });
        Self { server, seen }
    }

    /// Responds to every request with 200 and the request's target as the body.
    pub fn echoing_targets() -> Self {
        Self::start(|request, wire| {
            let target = request.head.target();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", target.len());
            wire.send(head + target).map_or(Next::Close, |()| Next::Keep)
        })
    }

    /// Sends the bytes of each target in the table, and an empty 200 for any other; `next` keeps or closes the connection.
    pub fn answering(answers: &'static [(&'static str, &'static str)], next: Next) -> Self {
        Self::start(move |request, wire| {
            let found = answers.iter().find(|(target, _)| *target == request.head.target());
            match found {
                Some((_, answer)) => wire.send(answer).map_or(Next::Close, |()| next),
                None => answer_ok(wire, b""),
            }
        })
    }

    pub fn address(&self) -> String {
        self.server.address()
    }

    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// All complete requests so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no holder panics").clone()
    }

    pub fn seen_count(&self) -> usize {
        self.seen.lock().expect("no holder panics").len()
    }
}

/// Blocks the handlers of an app until the test opens it, or a multiple of `PATIENCE` has elapsed.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().expect("no holder panics") = true;
        self.0.1.notify_all();
    }

    pub fn wait(&self) {
        let open = self.0.0.lock().expect("no holder panics");
        let waited = self.0.1.wait_timeout_while(open, 4 * PATIENCE, |open| !*open);
        drop(waited.expect("no holder panics"));
    }
}

fn read_request(wire: &mut Wire<TcpStream>) -> Option<Seen> {
    let head = wire.head().ok()??;
    if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        wire.send("HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let body = wire.request_body(&head).ok()?;
    body.whole.then_some(Seen { head, body })
}

/// A plain 200 response with a body of known length.
pub fn answer_ok(wire: &mut Wire<TcpStream>, body: &[u8]) -> Next {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send([head.as_bytes(), body].concat()).map_or(Next::Close, |()| Next::Keep)
}
