//! One request and its response: checkout → send → read head → relay body. In: a parsed request and its rewritten head. Out:
//! the response at the client, and whether the connection can be reused. The request's body and the response are relayed
//! concurrently, so that an early response arrives (RFC 9112, 9.5). A request is retried only if a pooled connection closed
//! before a byte of its response, and the request is idempotent. While nothing arrives, an exchange holds no buffer. Limits:
//! `response_headers_timeout` of the cluster for the endpoint's progress until its head is complete, `idle_timeout` of the
//! listener for the client's, `BODY_IDLE` for a response's body.

use super::body::Body;
use super::head::{self, Request, ResponseContext};
use crate::buffer::{Buffer, Scratch, write_all};
use crate::connect::{Checkout, Cluster};
use crate::lazy_timeout::LazyTimeout;
use crate::plan::ListenerPlan;
use crate::reason::Reason;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// How long a response's body may make no progress.
const BODY_IDLE: Duration = Duration::from_secs(60);

/// The largest read or copy of a body.
const BODY_CHUNK: usize = 128 << 10;

/// The status of nginx for a request that its client ended.
pub const CLIENT_CLOSED: u16 = 499;

/// What follows on the client's connection.
pub enum After {
    Next,
    /// Close once the client has read what was written.
    Close,
    /// Both sides have switched protocols.
    Tunnel(Box<Checkout>, Buffer),
    /// Nothing more can be sent to the client.
    Abort,
}

/// The side that ended an exchange early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Endpoint,
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Endpoint => "endpoint",
        }
    }
}

/// The outcome of an exchange.
pub struct Report {
    pub status: u16,
    pub endpoint: Option<SocketAddr>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub after: After,
    pub ended_by: Option<Side>,
    /// Why the exchange ended early, or Outrigger responded itself.
    pub reason: Option<Reason>,
    /// Status and text of Outrigger's own response, if the endpoint sent none.
    pub own_response: Option<(u16, String)>,
}

impl Report {
    pub fn new(status: u16) -> Report {
        Report {
            status,
            endpoint: None,
            bytes_received: 0,
            bytes_sent: 0,
            after: After::Close,
            ended_by: None,
            reason: None,
            own_response: None,
        }
    }

    fn respond(mut self, status: u16, reason: Reason, text: String) -> Report {
        (self.status, self.reason) = (status, Some(reason));
        self.own_response = Some((status, text));
        self
    }
}

/// The client's side of an exchange.
pub struct Client<'a, 's> {
    pub read: &'a mut ReadHalf<'s>,
    pub write: &'a WriteHalf<'s>,
    pub buffer: &'a mut Buffer,
    pub timeout: &'a mut LazyTimeout,
    pub plan: &'a ListenerPlan,
    pub keep_alive: bool,
}

/// Why there is no complete response.
enum Failure {
    /// The connection closed before a byte of the response.
    Closed(String),
    /// No usable response, and nothing was sent to the client yet.
    Bad(u16, Reason, String),
    /// The response was in progress, or the client disconnected: only closing its connection can signal the error.
    Broken(Side),
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

pub async fn run(client: &mut Client<'_, '_>, cluster: &Rc<Cluster>, request: &Request, mut out: Scratch) -> Report {
    let mut report = Report::new(503);
    let mut body = request.body.clone();
    let rest = client.buffer.filled().get(request.length..).unwrap_or(&[]);
    let Ok(used) = body.pass(rest, &mut out.0) else {
        return report.respond(400, Reason::HttpRequestError, MALFORMED.into());
    };
    client.buffer.consume(request.length + used);
    report.bytes_received = (request.length + used) as u64;

    let repeatable = body.is_done() && request.method.is_idempotent();
    let (mut first, mut retry) = (Some(out), None);
    loop {
        let checkout = match cluster.checkout(retry.is_some()).await {
            Ok(checkout) => checkout,
            Err(error) => {
                let text = format!("no healthy endpoint in cluster {}: {}", cluster.plan.name, error.text);
                return report.respond(503, error.reason, text);
            }
        };
        report.endpoint = Some(checkout.usage.endpoint);
        // A request that may be retried is copied at its exact size; the buffer is released before the response arrives.
        let may_retry = checkout.reused && retry.is_none() && repeatable;
        let bytes: &[u8] = match (&first, &retry) {
            (Some(out), _) => &out.0,
            (None, retry) => retry.as_deref().unwrap_or(&[]),
        };
        let sent = write_all(&checkout.stream, bytes, cluster.plan.response_headers_timeout).await;
        let copy = first.take().filter(|_| may_retry).map(|out| out.0.clone());
        let ended = match sent {
            Ok(()) => attempt(client, checkout, request, &mut body, &mut report).await,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(stalled()),
            Err(error) => Err(Failure::Closed(error.to_string())),
        };
        let (status, reason, text) = match ended {
            Ok(()) => return report,
            Err(Failure::Closed(_)) if copy.is_some() => {
                retry = copy;
                continue;
            }
            Err(Failure::Closed(error)) => {
                let text = format!("endpoint closed the connection before a response: {error}");
                (502, Reason::ConnectionTerminated, text)
            }
            Err(Failure::Bad(status, reason, text)) => (status, reason, text),
            Err(Failure::Broken(side)) => {
                (report.after, report.ended_by) = (After::Abort, Some(side));
                report.reason = Some(match side {
                    Side::Client => Reason::ClientDisconnected,
                    Side::Endpoint => Reason::HttpResponseIncomplete,
                });
                if side == Side::Client && report.bytes_sent == 0 {
                    report.status = CLIENT_CLOSED;
                }
                return report;
            }
        };
        if status == 408 {
            report.ended_by = Some(Side::Client);
        }
        return report.respond(status, reason, format!("cluster {}: {text}", cluster.plan.name));
    }
}

/// Sends the rest of the request over the connection that got its beginning, and relays the response.
async fn attempt(
    client: &mut Client<'_, '_>,
    mut checkout: Checkout,
    request: &Request,
    body: &mut Body,
    report: &mut Report,
) -> Result<(), Failure> {
    let cluster = checkout.usage.cluster.clone();
    let uploaded = body.is_done();
    let shared =
        Shared { clock: Cell::new(uploaded.then(Instant::now)), uploaded: Cell::new(uploaded), ..Shared::default() };
    let (mut endpoint, upstream) = checkout.stream.split();
    let mut download = Download {
        client: client.write.as_ref(),
        client_idle: client.plan.idle_timeout,
        endpoint: &mut endpoint,
        buffer: Buffer::default(),
        timeout: client.timeout,
        max_header_bytes: client.plan.max_header_bytes,
        response_headers_timeout: cluster.plan.response_headers_timeout,
        context: ResponseContext {
            method: request.method,
            http_10: request.http_10,
            keep_alive: client.keep_alive,
            upgrade: request.upgrade.as_deref(),
        },
        received: false,
        shared: &shared,
    };
    let upload = Upload {
        client: client.read,
        client_idle: client.plan.idle_timeout,
        buffer: client.buffer,
        endpoint: upstream.as_ref(),
        endpoint_idle: cluster.plan.response_headers_timeout,
        body,
        bytes_received: &mut report.bytes_received,
    };
    let ended = both(download.run(), upload.run(), reset(client.write.as_ref()), &shared).await;
    let unread = download.buffer;
    report.bytes_sent = shared.bytes_sent.get();
    if shared.status.get() != 0 {
        report.status = shared.status.get();
    }
    if matches!(ended, Err(Failure::Broken(_))) && shared.ends_by_close.get() {
        // A normal close would make a truncated response look complete; a reset does not.
        let _ = rustix::net::sockopt::set_socket_linger(client.write.as_ref(), Some(Duration::ZERO));
    }
    report.after = match ended? {
        End::Tunnel => After::Tunnel(Box::new(checkout), unread),
        End::Message { reusable, close } => {
            let uploaded = shared.uploaded.get();
            if reusable && uploaded && unread.is_empty() {
                checkout.release();
            }
            if close || !uploaded { After::Close } else { After::Next }
        }
    };
    Ok(())
}

fn stalled() -> Failure {
    let text = "timeout sending the request: the endpoint stopped reading (response_headers_timeout)".into();
    Failure::Bad(504, Reason::ConnectionWriteTimeout, text)
}

const MALFORMED: &str = "the framing of the request's body is malformed";

/// The state that both directions of an exchange share.
#[derive(Default)]
struct Shared {
    /// When the endpoint had all that it will get: the start of its response timeout.
    clock: Cell<Option<Instant>>,
    /// The complete request was sent.
    uploaded: Cell<bool>,
    /// The status that was sent to the client; 0 before.
    status: Cell<u16>,
    bytes_sent: Cell<u64>,
    /// The end of the connection is the end of the response for the client.
    ends_by_close: Cell<bool>,
}

/// Waits until the client has reset its connection. An end of stream may concern one direction only (half-close).
async fn reset(client: &TcpStream) {
    loop {
        match client.ready(Interest::ERROR).await {
            Ok(ready) if !ready.is_error() => tokio::task::yield_now().await,
            _ => return,
        }
    }
}

/// Why an upload ended early.
enum Stopped {
    ClientClosed,
    ClientStalled,
    Malformed,
    /// The endpoint reads no more; its response may still arrive.
    EndpointClosed,
    EndpointStalled,
}

/// Runs both directions until the response has ended.
async fn both(
    download: impl Future<Output = Result<End, Failure>>,
    upload: impl Future<Output = Result<(), Stopped>>,
    reset: impl Future<Output = ()>,
    shared: &Shared,
) -> Result<End, Failure> {
    let (mut download, mut upload) = (std::pin::pin!(download), std::pin::pin!(upload));
    let mut reset = std::pin::pin!(reset);
    let before_response = || shared.status.get() == 0;
    loop {
        tokio::select! {
            biased;
            end = &mut download => return end,
            sent = &mut upload, if shared.clock.get().is_none() => match sent {
                Ok(()) => {
                    shared.uploaded.set(true);
                    shared.clock.set(Some(Instant::now()));
                }
                Err(Stopped::EndpointClosed) => shared.clock.set(Some(Instant::now())),
                Err(Stopped::Malformed) if before_response() => {
                    return Err(Failure::Bad(400, Reason::HttpRequestError, MALFORMED.into()));
                }
                Err(Stopped::ClientStalled) if before_response() => {
                    let text = "timeout reading the request body (idle_timeout)".into();
                    return Err(Failure::Bad(408, Reason::RequestTimeout, text));
                }
                Err(Stopped::EndpointStalled) if before_response() => return Err(stalled()),
                Err(Stopped::EndpointStalled) => return Err(Failure::Broken(Side::Endpoint)),
                Err(_) => return Err(Failure::Broken(Side::Client)),
            },
            () = &mut reset => return Err(Failure::Broken(Side::Client)),
        }
    }
}

/// Relays a request's body from the client to the endpoint.
struct Upload<'a, 's> {
    client: &'a mut ReadHalf<'s>,
    client_idle: Duration,
    buffer: &'a mut Buffer,
    endpoint: &'a TcpStream,
    endpoint_idle: Duration,
    body: &'a mut Body,
    bytes_received: &'a mut u64,
}

impl Upload<'_, '_> {
    async fn run(self) -> Result<(), Stopped> {
        while !self.body.is_done() {
            if self.buffer.is_empty() {
                match tokio::time::timeout(self.client_idle, self.buffer.read(self.client, BODY_CHUNK)).await {
                    Ok(Ok(count)) if count > 0 => {}
                    Ok(_) => return Err(Stopped::ClientClosed),
                    Err(_) => return Err(Stopped::ClientStalled),
                }
            }
            let taken = self.body.take(self.buffer.filled(), None).map_err(|_| Stopped::Malformed)?;
            let trailers = self.body.trailers().unwrap_or_default();
            let passed = self.buffer.filled().get(..taken.passed).unwrap_or(&[]);
            for bytes in [passed, trailers.as_slice()] {
                write_all(self.endpoint, bytes, self.endpoint_idle).await.map_err(|error| match error.kind() {
                    io::ErrorKind::TimedOut => Stopped::EndpointStalled,
                    _ => Stopped::EndpointClosed,
                })?;
            }
            *self.bytes_received += taken.used as u64;
            self.buffer.consume(taken.used);
        }
        Ok(())
    }
}

/// Relays a response from the endpoint to the client.
struct Download<'a, 's> {
    client: &'a TcpStream,
    client_idle: Duration,
    endpoint: &'a mut ReadHalf<'s>,
    buffer: Buffer,
    timeout: &'a mut LazyTimeout,
    max_header_bytes: usize,
    response_headers_timeout: Duration,
    context: ResponseContext<'a>,
    /// The endpoint has sent something: the request must not be retried.
    received: bool,
    shared: &'a Shared,
}

impl Download<'_, '_> {
    async fn run(&mut self) -> Result<End, Failure> {
        loop {
            let (response, mut out) = self.head().await?;
            let interim = (100..200).contains(&response.status) && response.status != 101;
            if interim {
                self.send(&out.0).await?;
                continue;
            }
            if response.status == 101 {
                self.shared.status.set(response.status);
                self.send(&out.0).await?;
                return Ok(End::Tunnel);
            }
            let ends_by_close = matches!(response.body, Body::UntilClose) || self.must_decode(&response.body);
            self.shared.ends_by_close.set(ends_by_close);
            let close = !self.context.keep_alive || ends_by_close;
            let mut body = response.body;
            self.begin(response.status, &mut body, &mut out).await?;
            drop(out);
            self.body(body).await?;
            return Ok(End::Message { reusable: response.keep_alive, close });
        }
    }

    /// Reads a head; the scratch then contains the head for the client.
    async fn head(&mut self) -> Result<(head::Response, Scratch), Failure> {
        loop {
            if !self.buffer.is_empty() {
                let mut out = Scratch::lend();
                match head::response(self.buffer.filled(), self.context, &mut out.0) {
                    Ok(Some(response)) => {
                        self.buffer.consume(response.length);
                        return Ok((response, out));
                    }
                    Ok(None) if self.buffer.filled().len() >= self.max_header_bytes => {
                        let text = format!("the response head is larger than {} bytes", self.max_header_bytes);
                        return Err(Failure::Bad(502, Reason::HttpResponseHeaderSectionSize, text));
                    }
                    Ok(None) => {}
                    Err(reason) => {
                        let text = format!("invalid response from the endpoint: {reason}");
                        return Err(Failure::Bad(502, Reason::HttpProtocolError, text));
                    }
                }
            }
            // One timeout, from the complete request to the complete head, whatever arrives in between.
            let elapsed = self.shared.clock.get().map_or(Duration::ZERO, |since| since.elapsed());
            let left = self.response_headers_timeout.saturating_sub(elapsed);
            let late = || {
                let text = format!("upstream response timeout after {:?}", self.response_headers_timeout);
                Failure::Bad(504, Reason::HttpResponseTimeout, text)
            };
            if left.is_zero() {
                return Err(late());
            }
            match self.timeout.within(left, self.buffer.read(self.endpoint, self.max_header_bytes)).await {
                Ok(Ok(count)) if count > 0 => self.received = true,
                Ok(_) if self.received => {
                    let text = "the endpoint closed the connection within its response head".into();
                    return Err(Failure::Bad(502, Reason::HttpResponseIncomplete, text));
                }
                Ok(Ok(_)) => return Err(Failure::Closed("end of stream".into())),
                Ok(Err(error)) => return Err(Failure::Closed(error.to_string())),
                // Before that, only the progress of the upload counts.
                Err(_) if self.shared.clock.get().is_none() => {}
                Err(_) => return Err(late()),
            }
        }
    }

    /// An HTTP/1.0 client cannot read chunks.
    fn must_decode(&self, body: &Body) -> bool {
        self.context.http_10 && matches!(body, Body::Chunked(_))
    }

    /// Sends the head in `out` with the available part of the body. Until then a malformed response can be replaced with
    /// Outrigger's own.
    async fn begin(&mut self, status: u16, body: &mut Body, out: &mut Scratch) -> Result<(), Failure> {
        let malformed = |_| {
            let text = "the framing of the endpoint's response is malformed".into();
            Failure::Bad(502, Reason::HttpProtocolError, text)
        };
        let used = if self.must_decode(body) {
            body.take(self.buffer.filled(), Some(&mut out.0)).map_err(malformed)?.used
        } else {
            body.pass(self.buffer.filled(), &mut out.0).map_err(malformed)?
        };
        self.buffer.consume(used);
        self.shared.status.set(status);
        self.send(&out.0).await
    }

    async fn body(&mut self, mut body: Body) -> Result<(), Failure> {
        let decode = self.must_decode(&body);
        while !body.is_done() {
            if self.buffer.is_empty() {
                match self.timeout.within(BODY_IDLE, self.buffer.read(self.endpoint, BODY_CHUNK)).await {
                    Ok(Ok(0)) if body == Body::UntilClose => return Ok(()),
                    Ok(Ok(count)) if count > 0 => {}
                    _ => return Err(Failure::Broken(Side::Endpoint)),
                }
            }
            let malformed = |_| Failure::Broken(Side::Endpoint);
            let used = if decode {
                let mut out = Scratch::lend();
                let taken = body.take(self.buffer.filled(), Some(&mut out.0)).map_err(malformed)?;
                self.send(&out.0).await?;
                taken.used
            } else {
                let taken = body.take(self.buffer.filled(), None).map_err(malformed)?;
                self.send(self.buffer.filled().get(..taken.passed).unwrap_or(&[])).await?;
                self.send(&body.trailers().unwrap_or_default()).await?;
                taken.used
            };
            self.buffer.consume(used);
        }
        Ok(())
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.shared.bytes_sent.set(self.shared.bytes_sent.get() + bytes.len() as u64);
        write_all(self.client, bytes, self.client_idle).await.map_err(|_: io::Error| Failure::Broken(Side::Client))
    }
}
