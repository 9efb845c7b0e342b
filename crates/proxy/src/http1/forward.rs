//! The life of one client connection: wait for a head → exchange → record, again and again. In: an accepted socket. Out:
//! answers, access records, counts. Bounds: `head_max`, `head_timeout`, `idle_timeout` of the listener; a closing connection is
//! read for `LINGER` so that the last answer arrives before a reset.

use super::exchange::{After, Client, Report, run};
use super::head::{self, Refusal, Request};
use crate::accept::{DRAIN_PATIENCE, ListenerState};
use crate::access::{PATH_MAX, Record};
use crate::buffer::{Buffer, Scratch, write_all};
use crate::patience::Patience;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long, and how much, a closing connection is read on (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// How long one direction of a tunnel (WebSocket) may be silent, and how much is moved at a time.
const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
const TUNNEL_CHUNK: usize = 128 << 10;

/// The part of a request head that is waited for where memory is short.
const HEAD_WHEN_TIGHT: usize = 8 << 10;

pub async fn serve(stream: TcpStream, peer: SocketAddr, listener: Rc<ListenerState>) {
    let mut buffer = Buffer::default();
    let mut patience = Patience::new(listener.plan.idle_timeout);
    loop {
        let mut out = Scratch::lend();
        let request = match next_request(&stream, &mut buffer, &mut patience, &listener, &mut out).await {
            Some(Ok(request)) => request,
            Some(Err(refusal)) => {
                let now = Instant::now();
                answer(&stream, refusal.status, refusal.reason).await;
                let refused = Exchanged { method: head::Method::Other, path: &[], took: now.elapsed(), peer };
                record(&listener, &refused, &refusal_report(refusal));
                return linger(&stream, &mut buffer).await;
            }
            None => return,
        };
        let started = Instant::now();
        let path = listener.access.as_ref().map(|_| {
            let path = buffer.filled().get(request.path.clone()).unwrap_or(&[]);
            path.get(..PATH_MAX).unwrap_or(path).to_vec()
        });
        let mut client = Client {
            stream: &stream,
            buffer: &mut buffer,
            patience: &mut patience,
            plan: &listener.plan,
            keep_alive: request.keep_alive && !listener.draining(),
        };
        let report = run(&mut client, &listener.cluster, &request, &mut out).await;
        drop(out);
        if let Some((status, why)) = &report.own_answer {
            answer(&stream, *status, why).await;
        }
        let path = path.as_deref().unwrap_or(&[]);
        record(&listener, &Exchanged { method: request.method, path, took: started.elapsed(), peer }, &report);
        match report.after {
            After::Next => {}
            After::Close => return linger(&stream, &mut buffer).await,
            After::Gone => return,
            After::Tunnel(lease, leftover) => return tunnel(stream, buffer, lease.stream, leftover).await,
        }
    }
}

/// Waits for the next request and parses it; None where the connection ends without one. `out` then holds the head for the endpoint.
async fn next_request(
    stream: &TcpStream,
    buffer: &mut Buffer,
    patience: &mut Patience,
    listener: &ListenerState,
    out: &mut Scratch,
) -> Option<Result<Request, Refusal>> {
    let plan = &listener.plan;
    if buffer.is_empty() {
        let idle = patience.within(plan.idle_timeout, listener.unless_draining(buffer.read(stream, plan.head_max)));
        let read = match idle.await {
            Ok(Some(read)) => Ok(read),
            Ok(None) => patience.within(DRAIN_PATIENCE, buffer.read(stream, plan.head_max)).await,
            Err(elapsed) => Err(elapsed),
        };
        match read {
            Ok(Ok(count)) if count > 0 => {}
            _ => return None,
        }
    }
    let mut begun: Option<Instant> = None;
    loop {
        match head::request(buffer.filled(), &mut out.0) {
            Ok(Some(request)) => return Some(Ok(request)),
            Ok(None) => {}
            Err(refusal) => return Some(Err(refusal)),
        }
        if buffer.filled().len() >= plan.head_max {
            return Some(Err(Refusal {
                status: 431,
                reason: "the request head is larger than this listener's head_max",
            }));
        }
        if buffer.filled().len() > HEAD_WHEN_TIGHT && listener.is_tight() {
            return Some(Err(Refusal { status: 503, reason: "memory is short, and no long request head is taken" }));
        }
        // The clock runs from the first byte, so that a byte now and then buys no time.
        let left = plan.head_timeout.saturating_sub(begun.get_or_insert_with(Instant::now).elapsed());
        match patience.within(left, buffer.read(stream, plan.head_max)).await {
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) => return None,
            Err(_) => {
                return Some(Err(Refusal { status: 408, reason: "the request head took longer than head_timeout" }));
            }
        }
    }
}

/// An answer of our own, which says in words what is wrong; the connection closes behind it.
async fn answer(stream: &TcpStream, status: u16, why: &str) {
    let title = match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    };
    let body = format!("outrigger: {why}\n");
    let head = format!(
        "HTTP/1.1 {status} {title}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that is gone needs no answer.
    let _ = write_all(stream, format!("{head}{body}").as_bytes()).await;
}

fn refusal_report(refusal: Refusal) -> Report {
    Report { status: refusal.status, endpoint: None, bytes_in: 0, bytes_out: 0, after: After::Close, own_answer: None }
}

/// What the record tells beside the report.
struct Exchanged<'a> {
    method: head::Method,
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
        method: done.method.text(),
        path: done.path,
        status: report.status,
        took: done.took,
        bytes_in: report.bytes_in,
        bytes_out: report.bytes_out,
    };
    listener.recorder.keep(listener.index, &record);
    if let Some(access) = &listener.access {
        access.record(&record);
    }
}

/// Ends our side and reads on for a moment: bytes that nobody read would turn our close into a reset, and the client
/// might lose the answer.
async fn linger(stream: &TcpStream, buffer: &mut Buffer) {
    if rustix::net::shutdown(stream, rustix::net::Shutdown::Write).is_err() {
        return;
    }
    let drain = async {
        let mut seen = buffer.filled().len();
        buffer.consume(seen);
        while seen < LINGER_BYTES {
            match buffer.read(stream, LINGER_BYTES).await {
                Ok(count) if count > 0 => {
                    seen += count;
                    buffer.consume(count);
                }
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Moves bytes both ways after a 101, each direction until its own end.
async fn tunnel(client: TcpStream, mut from_client: Buffer, endpoint: TcpStream, mut from_endpoint: Buffer) {
    let up = one_way(&client, &mut from_client, &endpoint);
    let down = one_way(&endpoint, &mut from_endpoint, &client);
    tokio::join!(up, down);
}

async fn one_way(from: &TcpStream, buffer: &mut Buffer, to: &TcpStream) {
    let mut patience = Patience::new(TUNNEL_IDLE);
    loop {
        if write_all(to, buffer.filled()).await.is_err() {
            return;
        }
        buffer.consume(usize::MAX);
        match patience.within(TUNNEL_IDLE, buffer.read(from, TUNNEL_CHUNK)).await {
            Ok(Ok(count)) if count > 0 => {}
            // The end of one direction is passed on; the other goes on (half-close).
            _ => {
                let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
                return;
            }
        }
    }
}
