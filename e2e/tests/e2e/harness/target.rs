//! An HTTP server whose responses a function of the test generates for each round: a scrape target, or a receiver with its
//! own kind of rejection. In: a request and the number of its round. Out: a response; heads and times of requests are
//! recorded. Limits: what one test requests.

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
    /// Complete header lines, each with its CRLF.
    headers: String,
    body: Vec<u8>,
    hangs: Option<Hangs>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hangs {
    BeforeTheHead,
    /// With an incomplete body.
    WithinTheBody,
}

impl Page {
    /// The text format as exporters send it.
    pub fn text(body: impl Into<Vec<u8>>) -> Self {
        Self::typed("text/plain; version=0.0.4; charset=utf-8", body)
    }

    pub fn typed(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = format!("Content-Type: {content_type}\r\n");
        Self { status: "200 OK".to_owned(), headers, body: body.into(), hangs: None }
    }

    /// A response with this status and one more header, without a body.
    pub fn status(status: &str, header: &str) -> Self {
        Self { status: status.to_owned(), headers: format!("{header}\r\n"), body: Vec::new(), hangs: None }
    }

    /// The same response, compressed (RFC 9110, 8.4.1.3).
    pub fn gzip(mut self) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&self.body).expect("writing to memory does not fail");
        self.body = encoder.finish().expect("writing to memory does not fail");
        self.headers.push_str("Content-Encoding: gzip\r\n");
        self
    }

    /// Sends no response and keeps the connection open.
    pub fn hanging() -> Self {
        Self { hangs: Some(Hangs::BeforeTheHead), ..Self::text("") }
    }

    /// Sends the beginning of a response and keeps the connection open.
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
    received: Arc<Mutex<BTreeMap<String, Vec<Received>>>>,
}

impl Target {
    /// `page` gets the request, and how often its path was requested before.
    pub fn start(page: impl Fn(&Seen, usize) -> Page + Send + Sync + 'static) -> Self {
        Self::start_on(free_port(), page)
    }

    pub fn start_on(port: u16, page: impl Fn(&Seen, usize) -> Page + Send + Sync + 'static) -> Self {
        let received: Arc<Mutex<BTreeMap<String, Vec<Received>>>> = Arc::default();
        let app = RawApp::start_on(port, {
            let received = received.clone();
            move |request, wire| {
                let round = {
                    let mut received = received.lock().expect("no holder panics");
                    let rounds = received.entry(request.head.target().to_owned()).or_default();
                    rounds.push(Received { head: request.head.clone(), at: Instant::now() });
                    rounds.len() - 1
                };
                answer(&page(request, round), wire)
            }
        });
        Self { app, received }
    }

    pub fn address(&self) -> String {
        self.app.address()
    }

    /// How often a path was requested.
    pub fn rounds(&self, path: &str) -> usize {
        self.of(path).len()
    }

    pub fn heads(&self, path: &str) -> Vec<Head> {
        self.of(path).into_iter().map(|request| request.head).collect()
    }

    /// When a path was requested.
    pub fn times(&self, path: &str) -> Vec<Instant> {
        self.of(path).into_iter().map(|request| request.at).collect()
    }

    #[track_caller]
    pub fn wait_for_rounds(&self, path: &str, rounds: usize, limit: Duration) {
        until(limit, &format!("{path} is requested {rounds} times"), || self.rounds(path) >= rounds);
    }

    fn of(&self, path: &str) -> Vec<Received> {
        self.received.lock().expect("no holder panics").get(path).cloned().unwrap_or_default()
    }
}

fn answer(page: &Page, wire: &mut Wire<TcpStream>) -> Next {
    let length = page.body.len() + usize::from(page.hangs.is_some());
    let head = format!("HTTP/1.1 {}\r\n{}Content-Length: {length}\r\n\r\n", page.status, page.headers);
    if page.hangs != Some(Hangs::BeforeTheHead) && wire.send([head.as_bytes(), &page.body].concat()).is_err() {
        return Next::Close;
    }
    if page.hangs.is_some() {
        // Until the client closes the connection, or the server ends with its test.
        wire.until_closed().ok();
        return Next::Close;
    }
    Next::Keep
}
