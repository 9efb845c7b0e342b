//! Serves one client connection: wait for a head → exchange → record, in a loop. In: an accepted socket. Out: responses,
//! access records, counts. An idle connection is small: buffers and the exchange exist only while there is a request. Limits:
//! `max_header_bytes`, `request_headers_timeout`, `idle_timeout` of the listener; a closing connection is read for
//! `LINGER_MAX`, and `LINGER` between two reads, so that the last response arrives before a reset.

use super::exchange::{After, Client, Report, run};
use super::head::{self, Hop, Request};
use super::syntax::{Method, Refusal};
use crate::accept::{DRAIN_PATIENCE, ListenerState};
use crate::access::{PATH_MAX, Record};
use crate::buffer::{Buffer, Scratch, write_all};
use crate::lazy_timeout::LazyTimeout;
use crate::parked::{Interrupt, ParkedSlot, Waiting};
use crate::reason::Reason;
use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// How long a closing connection is still read (RFC 9112, 9.6), in total and without a byte: a client that writes its complete
/// body first reads the response after that.
const LINGER_MAX: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_secs(2);
const LINGER_CHUNK: usize = 128 << 10;

/// How long one direction of a tunnel (WebSocket) may be idle, and how much is copied at a time.
const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
const TUNNEL_CHUNK: usize = 128 << 10;

/// How long a peer may read nothing of Outrigger's own response, or of a tunnel.
const WRITE_IDLE: Duration = Duration::from_secs(60);

/// The largest incomplete request head under memory pressure.
const HEAD_UNDER_PRESSURE: usize = 8 << 10;

/// A client's connection.
struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    listener: Rc<ListenerState>,
    buffer: Buffer,
    timeout: LazyTimeout,
    slot: ParkedSlot,
}

/// The result of a wait for a request.
enum Head {
    Complete,
    Refused(Refusal),
    /// The connection closes without a request.
    End,
}

pub async fn serve(stream: TcpStream, peer: SocketAddr, listener: Rc<ListenerState>) {
    let (timeout, slot) = (LazyTimeout::new(listener.plan.idle_timeout), listener.parked.slot());
    let mut connection = Connection { stream, peer, listener, buffer: Buffer::default(), timeout, slot };
    loop {
        // A request's own state is large, and most connections have none most of the time.
        let keep_alive = match connection.next_head().await {
            Head::Complete => Box::pin(connection.request()).await,
            Head::Refused(refusal) => {
                Box::pin(connection.refuse(refusal)).await;
                false
            }
            Head::End => false,
        };
        if !keep_alive {
            return;
        }
    }
}

impl Connection {
    /// Waits until a request head is complete, or is rejected.
    async fn next_head(&mut self) -> Head {
        let Connection { stream, listener, buffer, timeout, slot, .. } = self;
        let (mut read, _) = stream.split();
        let plan = &listener.plan;
        let mut idle = plan.idle_timeout;
        let mut begun: Option<Instant> = None;
        loop {
            // RFC 9112, 2.2: an empty line before a request is ignored.
            let empty = buffer.filled().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            buffer.consume(if begun.is_none() { empty } else { 0 });
            let filled = buffer.filled();
            if !filled.is_empty() && head::is_complete(filled) {
                return Head::Complete;
            }
            if filled.len() >= plan.max_header_bytes {
                return Head::Refused(too_large(filled));
            }
            if filled.len() > HEAD_UNDER_PRESSURE && listener.has_pressure() {
                let reason = "memory pressure: large request headers are temporarily rejected";
                return Head::Refused(Refusal { status: 503, reason });
            }
            let (waiting, left) = match filled {
                [] => (Waiting::Idle, idle),
                // The timeout runs from the first byte, so that an occasional byte does not extend it.
                _ => {
                    let begun = begun.get_or_insert_with(Instant::now);
                    (Waiting::Head, plan.request_headers_timeout.saturating_sub(begun.elapsed()))
                }
            };
            match timeout.within(left, slot.wait(waiting, buffer.read(&mut read, plan.max_header_bytes))).await {
                Ok(Ok(Ok(count))) if count > 0 => {}
                Ok(Err(Interrupt::Drain)) => idle = DRAIN_PATIENCE,
                Ok(Err(Interrupt::Evicted)) if waiting == Waiting::Head => {
                    let reason = "memory pressure: request with slow headers aborted";
                    return Head::Refused(Refusal { status: 503, reason });
                }
                Err(_) if waiting == Waiting::Head => {
                    let reason = "the request head took longer than request_headers_timeout";
                    return Head::Refused(Refusal { status: 408, reason });
                }
                _ => return Head::End,
            }
        }
    }

    /// Handles one request, from its head to its record; true if another may follow.
    async fn request(&mut self) -> bool {
        let started = Instant::now();
        let _in_flight = InFlight::new(&self.listener);
        let mut out = Scratch::lend();
        let hop = Hop { authority: &self.listener.cluster.plan.authority, via: &self.listener.via };
        let request = match head::request(self.buffer.filled(), &hop, &mut out.0) {
            Ok(Some(request)) => request,
            Ok(None) => {
                self.refuse(Refusal { status: 400, reason: "the request head is malformed" }).await;
                return false;
            }
            Err(refusal) => {
                self.refuse(refusal).await;
                return false;
            }
        };
        let path = self.listener.access.as_ref().map(|_| {
            let path = self.buffer.filled().get(request.path.clone()).unwrap_or(&[]);
            let path = if path.is_empty() { b"/" } else { path };
            path.get(..PATH_MAX).unwrap_or(path).to_vec()
        });
        let path = path.unwrap_or_default();
        let sent = sent_method(&request, self.buffer.filled());
        if request.last_hop {
            return self.last_hop(&request, &sent, &path, started).await;
        }
        let (mut read, write) = self.stream.split();
        let mut client = Client {
            read: &mut read,
            write: &write,
            buffer: &mut self.buffer,
            timeout: &mut self.timeout,
            plan: &self.listener.plan,
            keep_alive: request.keep_alive && !self.listener.draining(),
        };
        let mut report = run(&mut client, &self.listener.cluster, &request, out).await;
        if let Some((status, text)) = &report.own_response {
            let reason = report.reason.unwrap_or(Reason::HttpProtocolError);
            self.listener.recorder.local_response(self.listener.index, reason);
            respond(write.as_ref(), *status, reason, text, request.method).await;
        }
        let mut done =
            Exchanged { method: request.method, sent: &sent, path: &path, took: started.elapsed(), peer: self.peer };
        let after = std::mem::replace(&mut report.after, After::Abort);
        if let After::Tunnel(mut checkout, mut unread) = after {
            let (up, down) = (Cell::new(report.bytes_received), Cell::new(report.bytes_sent));
            let client = (read, write, &mut self.buffer);
            tokio::select! {
                () = tunnel(client, (&mut checkout.stream, &mut unread), &up, &down) => {}
                () = self.listener.cut() => {}
            }
            (report.bytes_received, report.bytes_sent) = (up.get(), down.get());
            done.took = started.elapsed();
            record(&self.listener, &done, &report);
            return false;
        }
        record(&self.listener, &done, &report);
        if matches!(after, After::Close) {
            self.linger().await;
        }
        matches!(after, After::Next)
    }

    /// Responds to a request that must not be forwarded, as its final recipient (RFC 9110, 7.6.2).
    async fn last_hop(&mut self, request: &Request, sent: &str, path: &[u8], started: Instant) -> bool {
        let head = self.buffer.filled().get(..request.length).unwrap_or(&[]);
        let (kind, body) = match request.method {
            Method::Trace => ("Content-Type: message/http\r\n", without_secrets(head)),
            _ => ("", Vec::new()),
        };
        let head = format!("HTTP/1.1 200 OK\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        self.listener.recorder.local_response(self.listener.index, Reason::DirectResponse);
        // A disconnected client needs no response.
        let _ = write_all(&self.stream, &[head.as_bytes(), &body].concat(), WRITE_IDLE).await;
        let mut report = Report { reason: Some(Reason::DirectResponse), ..Report::new(200) };
        (report.bytes_received, report.bytes_sent) = (request.length as u64, (head.len() + body.len()) as u64);
        let done = Exchanged { method: request.method, sent, path, took: started.elapsed(), peer: self.peer };
        record(&self.listener, &done, &report);
        self.linger().await;
        false
    }

    async fn refuse(&mut self, refusal: Refusal) {
        let began = Instant::now();
        let reason = Reason::of_status(refusal.status);
        self.listener.recorder.local_response(self.listener.index, reason);
        let method = method_of(self.buffer.filled());
        respond(&self.stream, refusal.status, reason, refusal.reason, method).await;
        let refused = Exchanged { method, sent: "", path: &[], took: began.elapsed(), peer: self.peer };
        let report = Report { reason: Some(reason), ..Report::new(refusal.status) };
        record(&self.listener, &refused, &report);
        self.linger().await;
    }

    /// Closes the write side and keeps reading for a while: unread bytes would turn the close into a reset, and the client
    /// might lose the response.
    async fn linger(&mut self) {
        if rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write).is_err() {
            return;
        }
        let until = Instant::now() + LINGER_MAX;
        let (mut read, _) = self.stream.split();
        loop {
            self.buffer.consume(usize::MAX);
            let left = LINGER.min(until.saturating_duration_since(Instant::now()));
            match self.timeout.within(left, self.buffer.read(&mut read, LINGER_CHUNK)).await {
                Ok(Ok(count)) if count > 0 && !left.is_zero() => {}
                _ => return,
            }
        }
    }
}

/// An incomplete head: its first line shows what is too long (RFC 9110, 15.5.15).
fn too_large(head: &[u8]) -> Refusal {
    match memchr::memchr(b'\n', head) {
        Some(_) => Refusal { status: 431, reason: "the request head is larger than this listener's max_header_bytes" },
        None => Refusal { status: 414, reason: "the target is larger than this listener's max_header_bytes" },
    }
}

/// The method of a rejected head, for its metric; a response to HEAD has no body, whatever the error.
fn method_of(head: &[u8]) -> Method {
    let name = head.split(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(name).map_or(Method::Other, Method::of)
}

/// A request as received, without sensitive fields (RFC 9110, 9.3.8).
fn without_secrets(head: &[u8]) -> Vec<u8> {
    let secret = |line: &&[u8]| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or(line);
        [&b"authorization"[..], b"proxy-authorization", b"cookie"]
            .iter()
            .any(|secret| name.eq_ignore_ascii_case(secret))
    };
    head.split_inclusive(|byte| *byte == b'\n').filter(|line| !secret(line)).flatten().copied().collect()
}

/// Sends Outrigger's own response with a text and its reason (RFC 9209, 2); the connection closes after it.
async fn respond(stream: &TcpStream, status: u16, reason: Reason, text: &str, method: Method) {
    let title = match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        414 => "URI Too Long",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Error",
    };
    let (body, reason) = (format!("outrigger: {text}\n"), reason.as_str());
    let head = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nProxy-Status: outrigger; error={reason}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // RFC 9110, 9.3.2.
    let body = if method == Method::Head { "" } else { &body };
    // A disconnected client needs no response.
    let _ = write_all(stream, format!("{head}{body}").as_bytes(), WRITE_IDLE).await;
}

/// The longest method that a record shows in full.
const METHOD_MAX: usize = 32;

/// The method as the client sent it; metrics have one label for all unknown ones.
fn sent_method(request: &Request, head: &[u8]) -> Cow<'static, str> {
    if request.method != Method::Other {
        return Cow::Borrowed(request.method.as_str());
    }
    // Empty lines may precede the request line (RFC 9112, 2.2). A method consists of ASCII (RFC 9110, 5.6.2).
    let line = head.trim_ascii_start();
    let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    Cow::Owned(String::from_utf8_lossy(method.get(..METHOD_MAX).unwrap_or(method)).into_owned())
}

/// Counts a request as in flight until it is dropped, however its task ends.
struct InFlight(Rc<ListenerState>);

impl InFlight {
    fn new(listener: &Rc<ListenerState>) -> InFlight {
        listener.recorder.begun(listener.index);
        InFlight(listener.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.recorder.ended(self.0.index);
    }
}

/// What the record contains in addition to the report.
struct Exchanged<'a> {
    method: Method,
    /// The method as it was sent.
    sent: &'a str,
    path: &'a [u8],
    took: Duration,
    peer: SocketAddr,
}

fn record(listener: &ListenerState, done: &Exchanged<'_>, report: &Report) {
    listener.recorder.request(listener.index, done.method, report.status, done.took);
    let record = Record {
        listener: &listener.plan.name,
        cluster: &listener.cluster.plan.name,
        client: done.peer,
        endpoint: report.endpoint,
        method: done.sent,
        path: done.path,
        status: report.status,
        took: done.took,
        bytes_received: report.bytes_received,
        bytes_sent: report.bytes_sent,
        ended_by: report.ended_by.map(super::exchange::Side::as_str),
        reason: report.reason.map(Reason::as_str),
    };
    listener.recorder.keep(listener.index, &record);
    if let Some(access) = &listener.access {
        access.record(&record);
    }
}

/// Copies bytes in both directions after a 101, each until its own end; counts the bytes of each direction.
async fn tunnel(
    (mut client, to_client, from_client): (ReadHalf<'_>, WriteHalf<'_>, &mut Buffer),
    (endpoint, from_endpoint): (&mut TcpStream, &mut Buffer),
    up: &Cell<u64>,
    down: &Cell<u64>,
) {
    let (mut endpoint, to_endpoint) = endpoint.split();
    let up = one_way(&mut client, from_client, to_endpoint.as_ref(), up);
    let down = one_way(&mut endpoint, from_endpoint, to_client.as_ref(), down);
    tokio::join!(up, down);
}

async fn one_way(from: &mut ReadHalf<'_>, buffer: &mut Buffer, to: &TcpStream, copied: &Cell<u64>) {
    let mut timeout = LazyTimeout::new(TUNNEL_IDLE);
    loop {
        if write_all(to, buffer.filled(), WRITE_IDLE).await.is_err() {
            return;
        }
        copied.set(copied.get() + buffer.filled().len() as u64);
        buffer.consume(usize::MAX);
        match timeout.within(TUNNEL_IDLE, buffer.read(from, TUNNEL_CHUNK)).await {
            Ok(Ok(count)) if count > 0 => {}
            // The end of one direction is forwarded; the opposite direction continues (half-close).
            _ => {
                let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
                return;
            }
        }
    }
}
