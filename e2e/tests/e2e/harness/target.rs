//! An HTTP server whose answers a function of the test writes anew for each round: a target of scrapes, or a receiver
//! that says no in its own way. A request and the number of its round come in, an answer goes out; heads and times are
//! kept. Bounded by what one test asks.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::raw_app::{Next, RawApp, Seen};
use super::wire::{Head, Wire};
use super::{free_port, until};

#[derive(Clone, Debug)]
pub struct Page {
    status: String,
    /// Whole header lines, each with its end.
    headers: String,
    body: Vec<u8>,
    hangs: Option<Hangs>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hangs {
    BeforeTheHead,
    /// With some of the body still to come.
    WithinTheBody,
}

impl Page {
    /// The text format as exporters answer it.
    pub fn text(body: impl Into<Vec<u8>>) -> Self {
        Self::typed("text/plain; version=0.0.4; charset=utf-8", body)
    }

    pub fn typed(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = format!("Content-Type: {content_type}\r\n");
        Self { status: "200 OK".to_owned(), headers, body: body.into(), hangs: None }
    }

    /// An answer of this status without a body, with one more header.
    pub fn status(status: &str, header: &str) -> Self {
        Self { status: status.to_owned(), headers: format!("{header}\r\n"), body: Vec::new(), hangs: None }
    }

    /// The same page, compressed (RFC 9110, 8.4.1.3).
    pub fn gzip(mut self) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&self.body).expect("memory takes bytes");
        self.body = encoder.finish().expect("memory takes bytes");
        self.headers.push_str("Content-Encoding: gzip\r\n");
        self
    }

    /// Never answers, and keeps the connection.
    pub fn hanging() -> Self {
        Self { hangs: Some(Hangs::BeforeTheHead), ..Self::text("") }
    }

    /// Answers with the beginning of a page, and keeps the connection.
    pub fn half(body: &str) -> Self {
        Self { hangs: Some(Hangs::WithinTheBody), ..Self::text(body) }
    }
}

#[derive(Clone, Debug)]
struct Received {
    head: Head,
    at: Instant,
}

pub struct Target {
    app: RawApp,
    asked: Arc<Mutex<BTreeMap<String, Vec<Received>>>>,
}

impl Target {
    /// `page` gets the request, and how often its path was asked for before.
    pub fn start(page: impl Fn(&Seen, usize) -> Page + Send + Sync + 'static) -> Self {
        Self::start_on(free_port(), page)
    }

    pub fn start_on(port: u16, page: impl Fn(&Seen, usize) -> Page + Send + Sync + 'static) -> Self {
        let asked: Arc<Mutex<BTreeMap<String, Vec<Received>>>> = Arc::default();
        let app = RawApp::start_on(port, {
            let asked = asked.clone();
            move |request, wire| {
                let round = {
                    let mut asked = asked.lock().expect("no holder panics");
                    let rounds = asked.entry(request.head.target().to_owned()).or_default();
                    rounds.push(Received { head: request.head.clone(), at: Instant::now() });
                    rounds.len() - 1
                };
                answer(&page(request, round), wire)
            }
        });
        Self { app, asked }
    }

    pub fn address(&self) -> String {
        self.app.address()
    }

    /// How often a path was asked for.
    pub fn rounds(&self, path: &str) -> usize {
        self.of(path).len()
    }

    pub fn heads(&self, path: &str) -> Vec<Head> {
        self.of(path).into_iter().map(|asked| asked.head).collect()
    }

    /// When a path was asked for.
    pub fn times(&self, path: &str) -> Vec<Instant> {
        self.of(path).into_iter().map(|asked| asked.at).collect()
    }

    #[track_caller]
    pub fn wait_for_rounds(&self, path: &str, rounds: usize, limit: Duration) {
        until(limit, &format!("{path} is asked for {rounds} times"), || self.rounds(path) >= rounds);
    }

    fn of(&self, path: &str) -> Vec<Received> {
        self.asked.lock().expect("no holder panics").get(path).cloned().unwrap_or_default()
    }
}

fn answer(page: &Page, wire: &mut Wire<TcpStream>) -> Next {
    let length = page.body.len() + usize::from(page.hangs.is_some());
    let head = format!("HTTP/1.1 {}\r\n{}Content-Length: {length}\r\n\r\n", page.status, page.headers);
    if page.hangs != Some(Hangs::BeforeTheHead) && wire.send([head.as_bytes(), &page.body].concat()).is_err() {
        return Next::Close;
    }
    if page.hangs.is_some() {
        // Until the client gives up, or the server ends with its test.
        wire.until_closed().ok();
        return Next::Close;
    }
    Next::Keep
}
