//! A small HTTP server for metrics, probes and the admin interface. In: a listening socket and a function. Out: responses with
//! complete bodies. Limits: `CONNECTIONS_MAX` at a time, of which idle ones are closed for new ones, the oldest first;
//! `HEAD_TIMEOUT` for a head, `BODY_TIMEOUT` and `BODY_MAX` for a body.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub const CONNECTIONS_MAX: usize = 64;
pub const BODY_MAX: usize = 64 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that sends no request, or reads nothing, is closed after this.
const CONNECTION_MAX: Duration = Duration::from_secs(300);

/// The parts of a request that handlers need.
pub struct Request {
    pub method: http::Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A response.
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Response {
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
        Response { status, content_type, body: body.into(), headers: Vec::new() }
    }

    pub fn text(status: u16, body: impl Into<Bytes>) -> Response {
        Response::new(status, "text/plain; charset=utf-8", body)
    }
}

/// The open connections of one server.
#[derive(Clone)]
pub struct Server {
    slots: Arc<Semaphore>,
    /// The oldest first.
    open: Rc<RefCell<VecDeque<Rc<Open>>>>,
    one_is_idle: Rc<Notify>,
}

/// One connection.
#[derive(Default)]
struct Open {
    /// A complete request is being handled.
    is_busy: Cell<bool>,
    /// It was signalled to close, and will.
    is_closing: Cell<bool>,
    must_close: Notify,
}

/// A slot for one connection, acquired before it is accepted: one accepted without a slot would be dropped.
pub struct ConnectionSlot {
    open: Rc<Open>,
    server: Server,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.server.open.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.open));
    }
}

impl Default for Server {
    fn default() -> Server {
        Server { slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)), open: Rc::default(), one_is_idle: Rc::default() }
    }
}

impl Server {
    /// Waits for a slot. Idle connections are closed for it, so that probes get a response regardless of other clients.
    pub async fn slot(&self) -> ConnectionSlot {
        let permit = loop {
            if let Ok(permit) = self.slots.clone().try_acquire_owned() {
                break Some(permit);
            }
            self.close_oldest_idle();
            tokio::select! {
                // The semaphore is never closed.
                permit = self.slots.clone().acquire_owned() => break permit.ok(),
                () = self.one_is_idle.notified() => {}
            }
        };
        let open = Rc::new(Open::default());
        self.open.borrow_mut().push_back(open.clone());
        ConnectionSlot { open, server: self.clone(), _permit: permit }
    }

    fn close_oldest_idle(&self) {
        let open = self.open.borrow();
        if open.iter().any(|open| open.is_closing.get()) {
            return;
        }
        if let Some(oldest) = open.iter().find(|open| !open.is_busy.get()) {
            oldest.is_closing.set(true);
            oldest.must_close.notify_one();
        }
    }
}

impl ConnectionSlot {
    /// Serves one connection to its end.
    pub async fn serve<S, F, R>(self, stream: S, handler: F)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Request) -> R + 'static,
        R: Future<Output = Response> + 'static,
    {
        let handler = Rc::new(handler);
        let (open, one_is_idle) = (self.open.clone(), self.server.one_is_idle.clone());
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (handler, open, one_is_idle) = (handler.clone(), open.clone(), one_is_idle.clone());
            async move {
                let response = respond(request, handler, &open.is_busy).await;
                open.is_busy.set(false);
                one_is_idle.notify_one();
                Ok::<_, Infallible>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(Timer)
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(BODY_MAX)
            .serve_connection(crate::connect::Io(Box::new(stream)), service);
        tokio::select! {
            ended = tokio::time::timeout(CONNECTION_MAX, connection) => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "HTTP connection closed with an error");
                }
            }
            () = self.open.must_close.notified() => {}
        }
    }
}

async fn respond<F, R>(
    request: http::Request<Incoming>,
    handler: Rc<F>,
    is_busy: &Cell<bool>,
) -> http::Response<Full<Bytes>>
where
    F: Fn(Request) -> R,
    R: Future<Output = Response>,
{
    let (head, body) = request.into_parts();
    let response = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(body)) => {
            is_busy.set(true);
            let (path, query) = (head.uri.path().to_string(), head.uri.query().unwrap_or("").to_string());
            handler(Request { method: head.method, path, query, headers: head.headers, body: body.to_bytes() }).await
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Response::text(413, format!("the request body is larger than {BODY_MAX} bytes\n"))
        }
        Ok(Err(error)) => Response::text(400, format!("cannot read the request body: {error}\n")),
        Err(_) => Response::text(408, format!("the request body took longer than {BODY_TIMEOUT:?}\n")),
    };
    let mut builder = http::Response::builder().status(response.status).header(CONTENT_TYPE, response.content_type);
    for (name, value) in response.headers {
        builder = builder.header(name, value);
    }
    // Names and values are valid constants, so the builder cannot fail.
    builder.body(Full::new(response.body)).unwrap_or_default()
}

/// hyper's timer on tokio: without one its timeouts have no effect.
#[derive(Clone)]
struct Timer;

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> std::pin::Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(std::time::Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> std::pin::Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

struct Sleep(std::pin::Pin<Box<tokio::time::Sleep>>);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl hyper::rt::Sleep for Sleep {}
