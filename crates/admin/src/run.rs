//! The listeners: read-only over TCP, full access over the socket, probes only. In: a view. Out: responses. A change requires the
//! socket, whose file mode controls access, and the token if one is set. Limits: those of `net::serve`, and `UPGRADE_MAX` for the
//! one response that waits.

use crate::authorize::{self, Token};
use crate::change::{change, not_allowed};
use crate::config::Config;
use crate::controls::Controls;
use crate::socket::{self, Permissions, Taken};
use crate::view::{Probe, View, to_json};
use base::runtime::scope::Scope;
use base::system::listen::Sockets;
use net::serve::{Request, Response, Server};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};

pub use crate::socket::Prepared;

/// Time limit of the response to an upgrade.
pub const UPGRADE_MAX: Duration = Duration::from_secs(60);

/// The access that a listener gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Probes,
    Read,
    Full,
}

/// Shared by all listeners.
struct Context {
    view: Rc<View>,
    controls: Controls,
    token: Token,
    hosts: Vec<String>,
    upgrade_max: Duration,
    scope: Scope,
}

/// Delay after an accept that failed because file descriptors ran out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How often a worker checks whether the previous worker has closed the socket, and after which time it logs that it still waits.
const SOCKET_POLL: Duration = Duration::from_millis(20);
const SOCKET_WARN_AFTER: Duration = Duration::from_secs(10);

/// Creates the socket, if one is configured. Must be called before the sandbox is entered, which allows neither chown nor a
/// lookup of groups.
pub fn prepare(config: &Config) -> Result<Option<Prepared>, String> {
    let Some(path) = &config.socket else { return Ok(None) };
    let group = config.socket_group.as_deref().map(socket::group_number).transpose();
    let group = group.map_err(|error| format!("admin.socket_group: {error}; {}", socket::GROUP_HELP))?;
    let prepared = socket::prepare(path, Permissions { mode: config.socket_mode.0, group });
    prepared.map(Some).map_err(|error| format!("admin.socket: {}: {error}", path.display()))
}

/// Binds the configured listeners, which end with `scope`. There is one error for each address or path that cannot be bound.
pub fn start(
    config: &Config,
    socket: Option<Prepared>,
    view: Rc<View>,
    controls: Controls,
    sockets: &Sockets,
    scope: &Scope,
    connections: &Scope,
) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    let generation = view.generation;
    let context = Rc::new(Context {
        view,
        controls,
        token: match &config.token_file {
            Some(file) => Token::File(file.clone()),
            None => config.token.clone().map_or(Token::None, Token::Given),
        },
        hosts: config.allowed_hosts.clone(),
        upgrade_max: UPGRADE_MAX,
        scope: connections.clone(),
    });
    for (name, address, access) in
        [("admin/listen", config.listen, Access::Read), ("admin/probes", config.probes_listen, Access::Probes)]
    {
        let Some(address) = address else { continue };
        let bound = sockets.tcp(name, address.0, 1).and_then(|mut group| {
            let socket = group.pop().ok_or("no socket")?;
            TcpListener::from_std(socket).map_err(|error| error.to_string())
        });
        match bound {
            Ok(socket) => drop(scope.spawn("admin", tcp(socket, access, context.clone()))),
            Err(error) => errors.push(format!("{}: {error}", name.replace('/', "."))),
        }
    }
    if let Some(prepared) = socket
        && let Err(error) = start_socket(prepared, generation, context, scope)
    {
        errors.push(format!("admin.socket: {error}"));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn start_socket(prepared: Prepared, generation: u32, context: Rc<Context>, scope: &Scope) -> Result<(), String> {
    let path = prepared.path().display().to_string();
    match prepared.take().map_err(|error| format!("{path}: {error}"))? {
        Taken::Bound(socket) => drop(scope.spawn("admin", unix(socket, context))),
        // The previous worker serves until it hands over; if this worker never becomes ready, the socket stays with the previous
        // one.
        Taken::InUse(prepared) if generation > 0 => {
            scope.spawn("admin", async move {
                if let Some(socket) = await_socket(prepared).await {
                    unix(socket, context).await;
                }
            });
        }
        Taken::InUse(_) => {
            return Err(format!("{path}: address already in use by another process; stop it or choose another path"));
        }
    }
    Ok(())
}

/// Waits for a path that is still in use.
async fn await_socket(mut prepared: Prepared) -> Option<UnixListener> {
    let path = prepared.path().display().to_string();
    let (began, mut warned) = (Instant::now(), false);
    loop {
        prepared = match prepared.take() {
            Ok(Taken::Bound(socket)) => return Some(socket),
            Ok(Taken::InUse(prepared)) => prepared,
            Err(error) => {
                tracing::error!(component = "admin", path, error, "cannot bind the admin socket");
                return None;
            }
        };
        if began.elapsed() > SOCKET_WARN_AFTER && !std::mem::replace(&mut warned, true) {
            tracing::warn!(
                component = "admin",
                path,
                "admin socket is still in use by another process; waiting for it to close"
            );
        }
        tokio::time::sleep(SOCKET_POLL).await;
    }
}

async fn tcp(socket: TcpListener, access: Access, context: Rc<Context>) {
    let server = Server::default();
    loop {
        let slot = server.slot().await;
        match socket.accept().await {
            Ok((stream, _)) => {
                let connections = context.scope.clone();
                let context = context.clone();
                let handler = move |request| respond(access, request, context.clone());
                connections.spawn_each("admin connection", slot.serve(stream, handler));
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

async fn unix(socket: UnixListener, context: Rc<Context>) {
    let server = Server::default();
    loop {
        let slot = server.slot().await;
        match socket.accept().await {
            Ok((stream, _)) => {
                let connections = context.scope.clone();
                let context = context.clone();
                let handler = move |request| respond(Access::Full, request, context.clone());
                connections.spawn_each("admin connection", slot.serve(stream, handler));
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

async fn respond(access: Access, request: Request, context: Rc<Context>) -> Response {
    let view = &context.view;
    let reads = request.method == http::Method::GET || request.method == http::Method::HEAD;
    let probe = match request.path.as_str() {
        "/started" => Some(Probe::Started),
        "/ready" => Some(Probe::Ready),
        "/live" => Some(Probe::Live),
        _ => None,
    };
    // Browsers cannot reach a Unix socket. Probes may use any name of the service.
    if access != Access::Full
        && let Some(refusal) = authorize::check_origin(&request, &context.hosts, probe.is_some())
    {
        return refusal;
    }
    if let Some(probe) = probe.filter(|_| reads) {
        let (status, text) = view.probe(probe);
        return Response::text(status, text);
    }
    let is_read = probe.is_some() || SHOWN.contains(&request.path.as_str());
    match access {
        Access::Probes if is_read && !reads => not_allowed("method not allowed: use GET\n", READS),
        Access::Probes => Response::text(404, "not found; available endpoints: /started /ready /live\n"),
        Access::Read if !reads => not_allowed("read-only listener; use the admin socket for changes\n", READS),
        Access::Full if !reads && is_read => not_allowed("method not allowed: use GET\n", READS),
        Access::Full if !reads => match authorize::check_token(&request.headers, &context.token).await {
            Some(refusal) => refusal,
            None => change(&request, &context.controls, context.upgrade_max, &context.scope).await,
        },
        Access::Read | Access::Full if is_read => show(&request.path, view),
        Access::Full if crate::change::PATHS.contains(&request.path.as_str()) => {
            not_allowed("method not allowed: use POST\n", "POST")
        }
        Access::Read | Access::Full => {
            Response::text(404, format!("not found; available endpoints: {} /started /ready /live\n", SHOWN.join(" ")))
        }
    }
}

const READS: &str = "GET, HEAD";
const SHOWN: [&str; 5] = ["/", "/metrics", "/ledger", "/status", "/config"];

fn show(path: &str, view: &View) -> Response {
    match path {
        "/" => page(view),
        "/metrics" => Response {
            headers: HEADERS.to_vec(),
            ..Response::new(200, "text/plain; version=0.0.4; charset=utf-8", view.metrics_text())
        },
        "/ledger" => json(view.ledger_json()),
        "/status" => json(to_json(&view.status())),
        _ => json(to_json(&view.config)),
    }
}

fn json(text: String) -> Response {
    Response { headers: HEADERS.to_vec(), ..Response::new(200, "application/json", text) }
}

/// A response is only for its client, must not be cached, and must not be embedded in another page.
const HEADERS: [(&str, &str); 3] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// One file without external resources: scripts and styles are inline, and so is the first status.
fn page(view: &View) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut headers = HEADERS.to_vec();
    headers.extend([
        ("content-security-policy", policy),
        ("cross-origin-opener-policy", "same-origin"),
        ("referrer-policy", "no-referrer"),
    ]);
    // Within a script element only `<` could end it (HTML, 13.2.5.4).
    let first = to_json(&view.status()).replace('<', "\\u003c");
    let html = include_str!("page.html").replace("FIRST_STATUS", &first);
    Response { headers, ..Response::new(200, "text/html; charset=utf-8", html) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};
    use std::cell::RefCell;
    use tracing::level_filters::LevelFilter;

    /// The calls that the controls received.
    type Calls = Rc<RefCell<Vec<String>>>;

    fn context(token: Option<&str>) -> (Rc<Context>, Calls) {
        let view = View::sample();
        let health = view.telemetry.health("logs");
        health.set_ready(true);
        let calls = Calls::default();
        let (upgrades, stops) = (calls.clone(), calls.clone());
        let controls = Controls {
            level: base::telemetry::logging::start(LevelFilter::OFF, base::telemetry::logging::Format::Auto),
            reload: Rc::new(|| Box::pin(async { Err("an invalid configuration".into()) })),
            upgrade: Rc::new(move |to| {
                upgrades.borrow_mut().push(format!("upgrade {to:?}"));
                let never = to.as_ref().is_some_and(|path| path.ends_with("never"));
                Box::pin(async move {
                    if never {
                        std::future::pending::<()>().await;
                    }
                    match to {
                        Some(path) => Err(format!("{} is not a program", path.display())),
                        None => Ok("the worker was replaced".into()),
                    }
                })
            }),
            stop: Rc::new(move |within| {
                stops.borrow_mut().push(format!("stop {within:?}"));
                within.unwrap_or(Duration::from_secs(30))
            }),
        };
        let token = token.map_or(Token::None, |token| Token::Given(config::unit::Secret::new(token)));
        let scope = Scope::new("test", health);
        (
            Rc::new(Context {
                view: Rc::new(view),
                controls,
                token,
                hosts: Vec::new(),
                upgrade_max: Duration::from_millis(20),
                scope,
            }),
            calls,
        )
    }

    fn request(method: Method, path: &str, body: &'static str) -> Request {
        let (path, query, headers) = (path.into(), String::new(), HeaderMap::new());
        Request { method, path, query, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let options = tokio::runtime::LocalOptions::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build_local(options);
        runtime.expect("a runtime").block_on(future)
    }

    fn status(access: Access, method: Method, path: &str) -> u16 {
        block_on(respond(access, request(method, path, ""), context(None).0)).status
    }

    #[test]
    fn each_listener_serves_exactly_its_endpoints() {
        let shown = ["/", "/metrics", "/ledger", "/status", "/config"];
        let probes = ["/started", "/ready", "/live"];
        let changes = ["/reload", "/log-level", "/upgrade", "/stop", "/quitquitquit"];
        let check = |access, name: &str, method: Method, paths: &[&str], expect: u16| {
            for path in paths {
                assert_eq!(status(access, method.clone(), path), expect, "{method} {path} on {name}");
            }
        };
        for method in [Method::GET, Method::HEAD] {
            check(Access::Probes, "probes", method.clone(), &probes, 200);
            check(Access::Probes, "probes", method.clone(), &shown, 404);
            check(Access::Probes, "probes", method.clone(), &changes, 404);
            check(Access::Read, "listen", method.clone(), &[&probes[..], &shown].concat(), 200);
            check(Access::Read, "listen", method.clone(), &changes, 404);
            check(Access::Full, "socket", method.clone(), &[&probes[..], &shown].concat(), 200);
            check(Access::Full, "socket", method, &changes, 405);
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            check(Access::Probes, "probes", method.clone(), &[&probes[..], &shown].concat(), 405);
            check(Access::Probes, "probes", method.clone(), &changes, 404);
            let all = [&probes[..], &shown, &changes, &["/nothing"]].concat();
            check(Access::Read, "listen", method.clone(), &all, 405);
            check(Access::Full, "socket", method.clone(), &[&probes[..], &shown].concat(), 405);
            check(Access::Full, "socket", method.clone(), &["/nothing"], 404);
            if method != Method::POST {
                check(Access::Full, "socket", method, &changes, 405);
            }
        }
        check(Access::Full, "socket", Method::POST, &["/upgrade", "/stop", "/quitquitquit"], 200);
        check(Access::Full, "socket", Method::POST, &["/reload", "/log-level"], 400);
    }

    fn post(path: &str, body: &'static str) -> (u16, String, Vec<String>) {
        let (context, calls) = context(None);
        let response = block_on(respond(Access::Full, request(Method::POST, path, body), context));
        let calls = calls.borrow().clone();
        (response.status, String::from_utf8_lossy(&response.body).into_owned(), calls)
    }

    #[test]
    fn a_change_calls_its_control_or_is_rejected() {
        let check = |path: &str, body: &'static str, status: u16, part: &str, expect: &[&str]| {
            let (got, text, calls) = post(path, body);
            assert_eq!(
                (got, calls.as_slice()),
                (status, &expect.iter().map(|t| t.to_string()).collect::<Vec<_>>()[..])
            );
            assert!(text.contains(part) && text.ends_with('\n'), "{path} {body}: {text:?}");
        };
        check("/reload", "", 400, "an invalid configuration", &[]);
        check("/log-level", "loud", 400, "loud", &[]);
        check("/upgrade", "", 200, "the worker was replaced", &["upgrade None"]);
        check("/upgrade", "\n", 200, "the worker was replaced", &["upgrade None"]);
        check("/upgrade", "/bin/new\n", 409, "/bin/new is not a program", &["upgrade Some(\"/bin/new\")"]);
        check("/upgrade", "bin/new", 400, "absolute path", &[]);
        check("/upgrade", "/bin\0/new", 400, "NUL byte", &[]);
        check("/upgrade", "/never", 504, "timed out after 20ms", &["upgrade Some(\"/never\")"]);
        check("/stop", "", 200, "stopping within 30s", &["stop None"]);
        check("/stop", "10s\n", 200, "stopping within 10s", &["stop Some(10s)"]);
        check("/quitquitquit", "", 200, "stopping within 30s", &["stop None"]);
        check("/stop", "soon", 400, "`soon` is not a duration", &[]);
    }

    #[test]
    fn changes_require_the_token_and_reads_do_not() {
        let (context, calls) = context(Some("open-sesame"));
        for path in ["/status", "/config", "/ready", "/"] {
            let got = block_on(respond(Access::Full, request(Method::GET, path, ""), context.clone()));
            assert_eq!(got.status, 200, "{path}");
        }
        for path in crate::change::PATHS {
            let got = block_on(respond(Access::Full, request(Method::POST, path, ""), context.clone()));
            assert_eq!(got.status, 401, "{path}");
        }
        assert!(calls.borrow().is_empty(), "{calls:?}");
        let mut with = request(Method::POST, "/stop", "");
        with.headers.insert("authorization", HeaderValue::from_static("Bearer open-sesame"));
        assert_eq!(block_on(respond(Access::Full, with, context)).status, 200);
        assert_eq!(*calls.borrow(), ["stop None"]);
    }

    #[test]
    fn tcp_rejects_other_origins_and_probes_any_host() {
        let check = |access, path: &str, name: &'static str, value: &'static str, expect: u16| {
            let mut request = request(Method::GET, path, "");
            request.headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(
                block_on(respond(access, request, context(None).0)).status,
                expect,
                "{path} with {name}: {value}"
            );
        };
        check(Access::Read, "/status", "host", "evil.example:9900", 421);
        check(Access::Read, "/status", "host", "127.0.0.1:9900", 200);
        check(Access::Read, "/ready", "host", "orders.default.svc", 200);
        check(Access::Probes, "/ready", "host", "orders.default.svc", 200);
        check(Access::Read, "/status", "origin", "http://evil.example", 403);
        check(Access::Read, "/ready", "origin", "http://evil.example", 403);
        check(Access::Read, "/status", "sec-fetch-site", "cross-site", 403);
        check(Access::Full, "/status", "host", "outrigger", 200);
    }

    #[test]
    fn a_worker_waits_until_its_predecessor_unbinds() {
        let path = std::env::temp_dir().join(format!("outrigger-await-socket-{}.sock", std::process::id()));
        let permissions = Permissions { mode: 0o600, group: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let prepared = || socket::prepare(&path, permissions).expect("the socket is created");
            let previous = prepared().take().expect("the path is bound");
            let waits = await_socket(prepared());
            tokio::pin!(waits);
            let early = tokio::time::timeout(SOCKET_POLL * 3, &mut waits).await;
            assert!(early.is_err(), "the previous worker still listens");
            drop(previous);
            let bound = tokio::time::timeout(Duration::from_secs(10), waits).await.expect("the socket is free");
            assert!(bound.is_some() && std::os::unix::net::UnixStream::connect(&path).is_ok());
        });
        std::fs::remove_file(&path).expect("the socket's file");
    }
}
