//! One request and its response: lease → send → read head → relay body. In: a parsed request and its rewritten head. Out:
//! the response at the client, and what becomes of the connection. The request's body and the response travel at the same
//! time, so that an early answer arrives (RFC 9112, 9.5). A request is sent a second time only where a connection that had
//! been idle died before a byte of its response, and sending twice is harmless.

use super::body::Body;
use super::head::{self, Asked, Request};
use crate::buffer::{Buffer, Scratch, write_all};
use crate::connect::{Cluster, Lease};
use crate::patience::Patience;
use crate::plan::ListenerPlan;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long a body may make no progress.
pub const BODY_IDLE: Duration = Duration::from_secs(60);

/// One read or copy of a body at the most.
const BODY_CHUNK: usize = 128 << 10;

/// What the client's connection is good for afterwards.
pub enum After {
    Next,
    /// Close after what was written has been read.
    Close,
    /// Both sides now speak a protocol of their own.
    Tunnel(Box<Lease>, Buffer),
    /// Nothing more can be said to the client.
    Gone,
}

/// What is told of an exchange.
pub struct Report {
    pub status: u16,
    pub endpoint: Option<SocketAddr>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub after: After,
    /// The answer that is ours to give, where the endpoint gave none.
    pub own_answer: Option<(u16, String)>,
}

/// The client's side of an exchange.
pub struct Client<'a> {
    pub stream: &'a TcpStream,
    pub buffer: &'a mut Buffer,
    pub patience: &'a mut Patience,
    pub plan: &'a ListenerPlan,
    pub keep_alive: bool,
}

/// Why no response came.
enum Failure {
    /// The connection died before a byte of the response.
    Died(String),
    /// No usable response, and the client has not been told anything yet.
    Bad(u16, String),
    /// The response was under way, or the client is gone: it learns by the connection's end.
    Broken,
}

/// How a response ended.
enum End {
    /// The endpoint's connection is reusable, the client's must close.
    Message {
        reusable: bool,
        close: bool,
    },
    Tunnel,
}

pub async fn run(client: &mut Client<'_>, cluster: &Rc<Cluster>, request: &Request, out: &mut Scratch) -> Report {
    let head_length = out.0.len();
    let mut report =
        Report { status: 503, endpoint: None, bytes_in: 0, bytes_out: 0, after: After::Close, own_answer: None };
    let mut fresh = false;
    loop {
        let lease = match cluster.lease(fresh).await {
            Ok(lease) => lease,
            Err(why) => {
                report.own_answer = Some((503, format!("no endpoint of cluster {} answers: {why}", cluster.plan.name)));
                return report;
            }
        };
        report.endpoint = Some(lease.usage.endpoint);
        let repeatable =
            lease.reused && !fresh && request.method.is_idempotent() && body_is_buffered(client.buffer, request);
        let own_answer = match attempt(client, lease, request, out, &mut report).await {
            Ok(()) => return report,
            Err(Failure::Died(_)) if repeatable => {
                fresh = true;
                out.0.truncate(head_length);
                continue;
            }
            Err(Failure::Died(why)) => {
                (502, format!("an endpoint of cluster {} closed without an answer: {why}", cluster.plan.name))
            }
            Err(Failure::Bad(status, why)) => (status, format!("cluster {}: {why}", cluster.plan.name)),
            Err(Failure::Broken) => {
                report.after = After::Gone;
                return report;
            }
        };
        report.status = own_answer.0;
        report.own_answer = Some(own_answer);
        return report;
    }
}

fn body_is_buffered(buffer: &Buffer, request: &Request) -> bool {
    let mut body = request.body.clone();
    let rest = buffer.filled().get(request.length..).unwrap_or(&[]);
    body.take(rest, None).is_ok() && body.is_done()
}

/// Sends the request over one connection and relays the response. `out` begins with the head, and keeps it until a byte
/// of the response has come, so that the request can be sent again.
async fn attempt(
    client: &mut Client<'_>,
    lease: Lease,
    request: &Request,
    out: &mut Scratch,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut body = request.body.clone();
    let rest = client.buffer.filled().get(request.length..).unwrap_or(&[]);
    let taken = body.take(rest, None).map_err(|_| Failure::Bad(400, MALFORMED.into()))?;
    out.0.extend_from_slice(rest.get(..taken).unwrap_or(&[]));
    let used = request.length + taken;
    report.bytes_in = used as u64;
    write_all(&lease.stream, &out.0).await.map_err(|error| Failure::Died(error.to_string()))?;

    let uploaded_at = Cell::new(body.is_done().then(Instant::now));
    let shared = Shared { uploaded_at, status: Cell::new(0), bytes_out: Cell::new(0), ends_by_close: Cell::new(false) };
    let asked = Asked {
        method: request.method,
        http_10: request.http_10,
        keep_alive: client.keep_alive,
        upgrade: request.upgrade,
    };
    let mut download = Download {
        client: client.stream,
        endpoint: &lease.stream,
        buffer: Buffer::default(),
        patience: client.patience,
        head_max: client.plan.head_max,
        response_timeout: lease.usage.cluster.plan.response_timeout,
        asked,
        heard: false,
        shared: &shared,
    };
    let ended = if body.is_done() {
        let ended = download.run(out).await;
        // After a death the request may be sent again, from the same buffer.
        if !matches!(ended, Err(Failure::Died(_))) {
            client.buffer.consume(used);
        }
        ended
    } else {
        client.buffer.consume(used);
        let upload = upload(client.stream, client.buffer, &lease.stream, &mut body, &mut report.bytes_in);
        both(download.run(out), upload, &shared).await
    };
    let leftover = download.buffer;
    report.bytes_out = shared.bytes_out.get();
    if shared.status.get() != 0 {
        report.status = shared.status.get();
    }
    let uploaded = shared.uploaded_at.get().is_some();
    if matches!(ended, Err(Failure::Broken)) && shared.ends_by_close.get() {
        // A plain end would make a cut response look whole; a reset does not.
        let _ = rustix::net::sockopt::set_socket_linger(client.stream, Some(Duration::ZERO));
    }
    report.after = match ended? {
        End::Tunnel => After::Tunnel(Box::new(lease), leftover),
        End::Message { reusable, close } => {
            if reusable && uploaded && leftover.is_empty() {
                lease.keep();
            }
            if close || !uploaded { After::Close } else { After::Next }
        }
    };
    Ok(())
}

const MALFORMED: &str = "the framing of the request's body is malformed";

/// What both directions of an exchange know.
struct Shared {
    /// When the whole request had been sent.
    uploaded_at: Cell<Option<Instant>>,
    /// The status that the client was sent; 0 before.
    status: Cell<u16>,
    bytes_out: Cell<u64>,
    /// The client takes the connection's end for the end of the response.
    ends_by_close: Cell<bool>,
}

/// Why an upload ended early.
enum Stopped {
    ClientGone,
    Malformed,
    /// The endpoint takes no more; its answer may still come.
    EndpointClosed,
}

/// Runs both directions until the response has ended.
async fn both(
    download: impl Future<Output = Result<End, Failure>>,
    upload: impl Future<Output = Result<(), Stopped>>,
    shared: &Shared,
) -> Result<End, Failure> {
    let (mut download, mut upload) = (std::pin::pin!(download), std::pin::pin!(upload));
    let mut uploading = true;
    loop {
        tokio::select! {
            biased;
            end = &mut download => return end,
            sent = &mut upload, if uploading => {
                uploading = false;
                match sent {
                    Ok(()) => shared.uploaded_at.set(Some(Instant::now())),
                    Err(Stopped::EndpointClosed) => {}
                    Err(Stopped::Malformed) if shared.status.get() == 0 => return Err(Failure::Bad(400, MALFORMED.into())),
                    Err(Stopped::Malformed | Stopped::ClientGone) => return Err(Failure::Broken),
                }
            }
        }
    }
}

async fn upload(
    client: &TcpStream,
    buffer: &mut Buffer,
    endpoint: &TcpStream,
    body: &mut Body,
    bytes_in: &mut u64,
) -> Result<(), Stopped> {
    while !body.is_done() {
        if buffer.is_empty() {
            match tokio::time::timeout(BODY_IDLE, buffer.read(client, BODY_CHUNK)).await {
                Ok(Ok(count)) if count > 0 => {}
                _ => return Err(Stopped::ClientGone),
            }
        }
        let count = body.take(buffer.filled(), None).map_err(|_| Stopped::Malformed)?;
        let bytes = buffer.filled().get(..count).unwrap_or(&[]);
        write_all(endpoint, bytes).await.map_err(|_| Stopped::EndpointClosed)?;
        *bytes_in += count as u64;
        buffer.consume(count);
    }
    Ok(())
}

/// The way of a response from the endpoint to the client.
struct Download<'a> {
    client: &'a TcpStream,
    endpoint: &'a TcpStream,
    buffer: Buffer,
    patience: &'a mut Patience,
    head_max: usize,
    response_timeout: Duration,
    asked: Asked,
    /// The endpoint has sent something: the request must not be repeated.
    heard: bool,
    shared: &'a Shared,
}

impl Download<'_> {
    async fn run(&mut self, out: &mut Scratch) -> Result<End, Failure> {
        loop {
            let response = self.head(out).await?;
            let interim = (100..200).contains(&response.status) && response.status != 101;
            if interim {
                self.send(&out.0).await?;
                out.0.clear();
                continue;
            }
            self.shared.status.set(response.status);
            if response.status == 101 {
                self.send(&out.0).await?;
                return Ok(End::Tunnel);
            }
            let ends_by_close = matches!(response.body, Body::UntilClose) || self.must_decode(&response.body);
            self.shared.ends_by_close.set(ends_by_close);
            let close = !self.asked.keep_alive || ends_by_close;
            self.body(response.body, out).await?;
            return Ok(End::Message { reusable: response.keep_alive, close });
        }
    }

    /// Reads a head; `out` then holds it as the client gets it.
    async fn head(&mut self, out: &mut Scratch) -> Result<head::Response, Failure> {
        loop {
            if !self.buffer.is_empty() {
                out.0.clear();
                match head::response(self.buffer.filled(), self.asked, &mut out.0) {
                    Ok(Some(response)) => {
                        self.buffer.consume(response.length);
                        return Ok(response);
                    }
                    Ok(None) if self.buffer.filled().len() >= self.head_max => {
                        return Err(Failure::Bad(
                            502,
                            format!("the response head is larger than {} bytes", self.head_max),
                        ));
                    }
                    Ok(None) => {}
                    Err(why) => return Err(Failure::Bad(502, format!("the endpoint answered, but {why}"))),
                }
            }
            let read =
                self.patience.within(self.response_timeout, self.buffer.read(self.endpoint, self.head_max)).await;
            match read {
                Ok(Ok(count)) if count > 0 => self.heard = true,
                Ok(_) if self.heard => {
                    return Err(Failure::Bad(502, "the endpoint closed within its response head".into()));
                }
                Ok(Ok(_)) => return Err(Failure::Died("end of stream".into())),
                Ok(Err(error)) => return Err(Failure::Died(error.to_string())),
                // The clock of the response starts when the request is complete.
                Err(_) if self.shared.uploaded_at.get().is_none_or(|at| at.elapsed() < self.response_timeout) => {}
                Err(_) => {
                    return Err(Failure::Bad(
                        504,
                        format!("the endpoint gave no response within {:?}", self.response_timeout),
                    ));
                }
            }
        }
    }

    /// An HTTP/1.0 client cannot read chunks.
    fn must_decode(&self, body: &Body) -> bool {
        self.asked.http_10 && matches!(body, Body::Chunked(_))
    }

    /// Sends the head in `out` with the body behind it.
    async fn body(&mut self, mut body: Body, out: &mut Scratch) -> Result<(), Failure> {
        let decode = self.must_decode(&body);
        let first = if decode {
            body.take(self.buffer.filled(), Some(&mut out.0)).map_err(|_| Failure::Broken)?
        } else {
            let first = body.take(self.buffer.filled(), None).map_err(|_| Failure::Broken)?;
            out.0.extend_from_slice(self.buffer.filled().get(..first).unwrap_or(&[]));
            first
        };
        self.buffer.consume(first);
        self.send(&out.0).await?;
        while !body.is_done() {
            if self.buffer.is_empty() {
                match self.patience.within(BODY_IDLE, self.buffer.read(self.endpoint, BODY_CHUNK)).await {
                    Ok(Ok(0)) if body == Body::UntilClose => return Ok(()),
                    Ok(Ok(count)) if count > 0 => {}
                    _ => return Err(Failure::Broken),
                }
            }
            out.0.clear();
            let count = body.take(self.buffer.filled(), decode.then_some(&mut out.0)).map_err(|_| Failure::Broken)?;
            if decode {
                self.send(&out.0).await?;
            } else {
                self.send(self.buffer.filled().get(..count).unwrap_or(&[])).await?;
            }
            self.buffer.consume(count);
        }
        Ok(())
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.shared.bytes_out.set(self.shared.bytes_out.get() + bytes.len() as u64);
        write_all(self.client, bytes).await.map_err(|_: io::Error| Failure::Broken)
    }
}
