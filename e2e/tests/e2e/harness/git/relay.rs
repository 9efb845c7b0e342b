//! Relays between a git client and its server: one for TCP that stalls or throttles what the server sends, and one for HTTP that
//! modifies responses. In: connections. Out: connections to the server's address. Limits: the connections of one test; dropping
//! a relay closes them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::raw_app::{Next, Seen};
use crate::harness::server::Server;
use crate::harness::wire::{Wire, request};
use crate::harness::{PATIENCE, free_port, until};

/// The rate at which the client receives what the server sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Free,
    /// This number of bytes per second, a twentieth of them at a time.
    BytesPerSecond(usize),
    /// Nothing more after this number of bytes of a connection, which stays open.
    SilentAfter(usize),
}

pub struct Relay {
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    to: String,
    pace: Mutex<Pace>,
    over: AtomicBool,
    silent: AtomicUsize,
    passed: AtomicUsize,
}

impl Relay {
    pub fn start(to: &str, pace: Pace) -> Self {
        Self::start_on(free_port(), to, pace)
    }

    pub fn start_on(port: u16, to: &str, pace: Pace) -> Self {
        let shared = Shared {
            to: to.to_owned(),
            pace: Mutex::new(pace),
            over: AtomicBool::default(),
            silent: AtomicUsize::default(),
            passed: AtomicUsize::default(),
        };
        let shared = Arc::new(shared);
        let server = Server::start_on(port, {
            let shared = shared.clone();
            move |client| shared.relay(client)
        });
        Self { server, shared }
    }

    pub fn address(&self) -> String {
        self.server.address()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// How many bytes the server has sent, over all connections.
    pub fn passed(&self) -> usize {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Applies to all bytes from now on, also of open connections.
    pub fn pace(&self, pace: Pace) {
        *self.shared.pace.lock().expect("no holder panics") = pace;
    }

    /// Waits until this number of connections, of all so far, has stalled.
    #[track_caller]
    pub fn await_silent(&self, count: usize) {
        until(PATIENCE, "the relay stalls a connection", || self.silent() >= count);
    }

    pub fn silent(&self) -> usize {
        self.shared.silent.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

/// The interval at which a thread of the relay checks the pace.
const POLL: Duration = Duration::from_millis(50);

impl Shared {
    fn relay(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect(&self.to) else { return };
        server.set_nodelay(true).ok();
        server.set_read_timeout(Some(POLL)).expect("the timeout is not zero");
        let (Ok(mut from), Ok(mut into)) = (client.try_clone(), server.try_clone()) else { return };
        let closed = AtomicBool::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::io::copy(&mut from, &mut into).ok();
                into.shutdown(Shutdown::Write).ok();
                closed.store(true, Ordering::SeqCst);
            });
            self.pass(&server, &client, &closed);
            client.shutdown(Shutdown::Both).ok();
            server.shutdown(Shutdown::Both).ok();
        });
    }

    /// Passes the server's bytes to the client until one of the two closes the connection.
    fn pass(&self, mut server: &TcpStream, mut client: &TcpStream, closed: &AtomicBool) {
        let (mut passed, mut stalled) = (0, false);
        let mut block = [0; 64 * 1024];
        while !self.over.load(Ordering::SeqCst) {
            let most = match *self.pace.lock().expect("no holder panics") {
                Pace::Free => block.len(),
                Pace::BytesPerSecond(bytes) => {
                    // why: this is the pace that the test sets
                    std::thread::sleep(POLL);
                    (bytes / 20).clamp(1, block.len())
                }
                Pace::SilentAfter(bytes) => bytes.saturating_sub(passed).min(block.len()),
            };
            if most == 0 {
                self.silent.fetch_add(usize::from(!stalled), Ordering::SeqCst);
                stalled = true;
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                // why: no byte may be passed until the pace changes or the client has closed the connection
                std::thread::sleep(POLL);
                continue;
            }
            stalled = false;
            match server.read(&mut block[..most]) {
                Ok(0) => return,
                Ok(size) if client.write_all(&block[..size]).is_err() => return,
                Ok(size) => {
                    passed += size;
                    self.passed.fetch_add(size, Ordering::SeqCst);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }
}

/// Sends the client's request to the real server, and returns its response after a change. The headers are those of git over HTTP
/// (gitprotocol-http).
pub fn relay_http(to: &str, seen: &Seen, wire: &mut Wire<TcpStream>, change: impl FnOnce(&mut HttpAnswer)) -> Next {
    let wanted = ["accept", "content-type", "content-encoding", "git-protocol"];
    let headers: Vec<(&str, &str)> = wanted.iter().filter_map(|name| Some((*name, seen.head.header(name)?))).collect();
    // If the server is down, the connection is closed.
    let response = request(to, seen.head.method(), seen.head.target(), &headers, &seen.body.bytes);
    let Ok(reply) = response else { return Next::Close };
    let kind = reply.head.header("content-type").unwrap_or_default().to_owned();
    let mut answer = HttpAnswer { status: reply.status, kind, body: reply.body.bytes };
    change(&mut answer);
    answer.send(wire)
}

pub struct HttpAnswer {
    pub status: u16,
    pub kind: String,
    pub body: Vec<u8>,
}

impl HttpAnswer {
    fn send(&self, wire: &mut Wire<TcpStream>) -> Next {
        let Self { status, kind, body } = self;
        let head = format!("HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        wire.send([head.as_bytes(), body].concat()).map_or(Next::Close, |()| Next::Keep)
    }
}

/// A response without a body, with these lines in its head.
pub fn answer_head(wire: &mut Wire<TcpStream>, status: &str, lines: &str) -> Next {
    let head = format!("HTTP/1.1 {status}\r\n{lines}Content-Length: 0\r\n\r\n");
    wire.send(head).map_or(Next::Close, |()| Next::Keep)
}

/// What a server of protocol 0 accepts from its client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strictness {
    /// All that git itself accepts.
    Git,
    /// Only what gitprotocol-pack defines, and of the capabilities for shallow clones only the first.
    Grammar,
}

/// A server of protocol 0 in front of `git daemon`: it removes the client's request for another protocol, and checks the client's
/// request before it passes it on.
pub fn old_daemon(to: &str, strictness: Strictness) -> Server {
    let to = to.to_owned();
    Server::start(move |client| {
        let Ok(server) = TcpStream::connect(&to) else { return };
        let (Ok(mut from), Ok(mut into)) = (server.try_clone(), client.try_clone()) else { return };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if strictness == Strictness::Grammar {
                    let Some(first) = read_line(&mut from) else { return };
                    into.write_all(&pkt_line(&without_deepening(&first))).ok();
                }
                std::io::copy(&mut from, &mut into).ok();
            });
            if let Err(why) = pass_checked(&client, &server, strictness) {
                let line = pkt_line(format!("ERR upload-pack: protocol error, {why}\n").as_bytes());
                (&client).write_all(&line).ok();
            }
            client.shutdown(Shutdown::Both).ok();
            server.shutdown(Shutdown::Both).ok();
        });
    })
}

fn pass_checked(mut client: &TcpStream, mut server: &TcpStream, strictness: Strictness) -> Result<(), String> {
    let Some(first) = read_line(&mut client) else { return Ok(()) };
    // git-upload-pack PATH NUL host=HOST NUL, then after another NUL the request for another protocol.
    let parts: Vec<&[u8]> = first.split(|byte| *byte == 0).take(2).collect();
    let mut line = [parts.join(&0), vec![0]].concat();
    let mut request = UploadRequest::default();
    // If the server is down, the connection ends, which the client detects.
    while server.write_all(&pkt_line(&line)).is_ok() {
        let Some(next) = read_line(&mut client) else { break };
        if strictness == Strictness::Grammar {
            request.take(&next)?;
        }
        line = next;
    }
    Ok(())
}

/// The first line of the listing (gitprotocol-pack, "Reference Discovery") without capabilities that some servers do not have.
fn without_deepening(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line).into_owned();
    let Some((name, capabilities)) = text.trim_end().split_once('\0') else { return line.to_vec() };
    let retained: Vec<&str> = capabilities.split(' ').filter(|capability| !capability.starts_with("deepen")).collect();
    format!("{name}\0{}\n", retained.join(" ")).into_bytes()
}

/// The same for a listing over HTTP.
pub fn listing_without_deepening(body: &[u8]) -> Vec<u8> {
    lines_of(body).iter().flat_map(|line| pkt_line(&without_deepening(line))).collect()
}

/// The order of an upload-request (gitprotocol-pack, "Packfile Negotiation"): wants, then shallow lines, then at most one depth,
/// then a flush; then the commits that the client has.
#[derive(Default)]
pub struct UploadRequest {
    at: usize,
}

impl UploadRequest {
    pub fn take(&mut self, line: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(line);
        let stage = match text.split([' ', '\n']).next().unwrap_or_default() {
            "want" => 0,
            "shallow" => 1,
            "deepen" | "deepen-since" | "deepen-not" => 2,
            "" => 3,
            "have" | "done" => 4,
            other => return Err(format!("`{other}` is not a line of a request")),
        };
        if stage < self.at && self.at < 3 || stage < 3 && self.at >= 3 || stage == 2 && self.at == 2 {
            return Err(format!("expected no `{}` here", text.trim_end()));
        }
        self.at = self.at.max(stage);
        Ok(())
    }
}

/// A line of the protocol without its length (gitprotocol-common, pkt-line); a flush is empty. `None` at the end of the stream.
fn read_line(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let length = usize::from_str_radix(std::str::from_utf8(&length).ok()?, 16).ok()?;
    let mut line = vec![0; length.saturating_sub(4)];
    from.read_exact(&mut line).ok()?;
    Some(line)
}

fn pkt_line(line: &[u8]) -> Vec<u8> {
    let head = if line.is_empty() { "0000".to_owned() } else { format!("{:04x}", line.len() + 4) };
    [head.as_bytes(), line].concat()
}

/// The lines of a request over HTTP.
pub fn lines_of(mut body: &[u8]) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| read_line(&mut body)).collect()
}
