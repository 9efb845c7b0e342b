//! An app that speaks HTTP/1.1 byte by byte, for the cases of the proxy that no library would produce. Requests come in
//! and are kept as they were written; a function of the test answers each with the bytes it likes. Bounded by what one
//! test sends.

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

/// What the app does with the connection after an answer.
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
    /// Answers every complete request by `answer`; an expectation is met with 100 before the body is read.
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

    /// Answers everything with 200 and the request's target as the body.
    pub fn echoing_targets() -> Self {
        Self::start(|request, wire| {
            let target = request.head.target();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", target.len());
            wire.send(head + target).map_or(Next::Close, |()| Next::Keep)
        })
    }

    /// Answers each target of the table with its bytes, and any other with an empty 200; then the connection is kept or closed.
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

    /// All complete requests so far, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no holder panics").clone()
    }

    pub fn seen_count(&self) -> usize {
        self.seen.lock().expect("no holder panics").len()
    }
}

/// What handlers of an app wait for until the test says so, or its patience is over several times.
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

/// A plain answer with a body of known length.
pub fn answer_ok(wire: &mut Wire<TcpStream>, body: &[u8]) -> Next {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send([head.as_bytes(), body].concat()).map_or(Next::Close, |()| Next::Keep)
}
