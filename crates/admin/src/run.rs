//! The listeners: read only over TCP, everything over the socket, probes alone. In: a view. Out: answers. Whatever changes
//! something needs the socket, whose file says who may open it, and the token where one is set. Bounds: those of `net::serve`,
//! and `UPGRADE_MAX` for the one answer that waits.

use crate::authorize::{self, Token};
use crate::change::{change, not_allowed};
use crate::config::Config;
use crate::controls::Controls;
use crate::socket::{self, Rights, Taken};
use crate::view::{Probe, View, to_json};
use base::runtime::scope::Scope;
use base::system::listen::Sockets;
use net::serve::{Request, Response, Server};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, UnixListener};

pub use crate::socket::Prepared;

/// How long the answer to an upgrade may take.
pub const UPGRADE_MAX: Duration = Duration::from_secs(60);

/// How much a listener may show and do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Probes,
    Read,
    Everything,
}

/// What every listener answers from.
struct Context {
    view: Rc<View>,
    controls: Controls,
    token: Token,
    hosts: Vec<String>,
    upgrade_max: Duration,
    scope: Scope,
}

/// The pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a worker looks whether the one before it has left the socket, and after which time it says that it waits.
const SOCKET_LOOK: Duration = Duration::from_millis(20);
const SOCKET_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the socket, where one is configured. To be called before the sandbox closes: from within, no file can be given to a
/// group, and no group be looked up.
pub fn prepare(config: &Config) -> Result<Option<Prepared>, String> {
    let Some(path) = &config.socket else { return Ok(None) };
    let group = config.socket_group.as_deref().map(socket::group_number).transpose();
    let group = group.map_err(|error| format!("admin.socket_group: {error}; {}", socket::GROUP_HELP))?;
    let prepared = socket::prepare(path, Rights { mode: config.socket_mode.0, group });
    prepared.map(Some).map_err(|error| format!("admin.socket: {}: {error}", path.display()))
}

/// Binds what is configured. The listeners end with `scope`. Errors name each address or path that cannot be had.
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
        Taken::Ours(socket) => drop(scope.spawn("admin", unix(socket, context))),
        // The worker before us answers until it gives way; a worker that never gets that far leaves the socket to it.
        Taken::Held(prepared) if generation > 0 => {
            scope.spawn("admin", async move {
                if let Some(socket) = succeed(prepared).await {
                    unix(socket, context).await;
                }
            });
        }
        Taken::Held(_) => {
            return Err(format!("{path}: address already in use by another process; stop it or choose another path"));
        }
    }
    Ok(())
}

/// Waits for a path that is still held.
async fn succeed(mut prepared: Prepared) -> Option<UnixListener> {
    let path = prepared.path().display().to_string();
    let (began, mut told) = (Instant::now(), false);
    loop {
        prepared = match prepared.take() {
            Ok(Taken::Ours(socket)) => return Some(socket),
            Ok(Taken::Held(prepared)) => prepared,
            Err(error) => {
                tracing::error!(path, error, "cannot bind the admin socket");
                return None;
            }
        };
        if began.elapsed() > SOCKET_PATIENCE && !std::mem::replace(&mut told, true) {
            tracing::warn!(path, "admin socket is still in use by another process; waiting for it to close");
        }
        tokio::time::sleep(SOCKET_LOOK).await;
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
                let answer = move |request| answer(access, request, context.clone());
                connections.spawn_each("admin connection", slot.serve(stream, answer));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
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
                let answer = move |request| answer(Access::Everything, request, context.clone());
                connections.spawn_each("admin connection", slot.serve(stream, answer));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn answer(access: Access, request: Request, context: Rc<Context>) -> Response {
    let view = &context.view;
    let reads = request.method == http::Method::GET || request.method == http::Method::HEAD;
    let probe = match request.path.as_str() {
        "/started" => Some(Probe::Started),
        "/ready" => Some(Probe::Ready),
        "/live" => Some(Probe::Live),
        _ => None,
    };
    // No page of a browser reaches a unix socket. Probers come by whatever name a service has.
    if access != Access::Everything
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
        Access::Everything if !reads && is_read => not_allowed("method not allowed: use GET\n", READS),
        Access::Everything if !reads => match authorize::without_token(&request.headers, &context.token).await {
            Some(refusal) => refusal,
            None => change(&request, &context.controls, context.upgrade_max, &context.scope).await,
        },
        Access::Read | Access::Everything if is_read => show(&request.path, view),
        Access::Everything if crate::change::PATHS.contains(&request.path.as_str()) => {
            not_allowed("this is a change, which takes POST\n", "POST")
        }
        Access::Read | Access::Everything => {
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

/// What is shown is for whoever asked, now, and no part of another page.
const HEADERS: [(&str, &str); 3] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// One file without anything from elsewhere; scripts and styles are its own, and the first status is in it.
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

    /// What the controls were told.
    type Heard = Rc<RefCell<Vec<String>>>;

    fn context(token: Option<&str>) -> (Rc<Context>, Heard) {
        let view = View::sample();
        let health = view.telemetry.health("logs");
        health.set_ready(true);
        let heard = Heard::default();
        let (upgrades, stops) = (heard.clone(), heard.clone());
        let controls = Controls {
            level: base::telemetry::logging::start(LevelFilter::OFF, base::telemetry::logging::Format::Auto),
            reload: Rc::new(|| Box::pin(async { Err("a mistake".into()) })),
            upgrade: Rc::new(move |to| {
                upgrades.borrow_mut().push(format!("upgrade {to:?}"));
                let never = to.as_ref().is_some_and(|path| path.ends_with("never"));
                Box::pin(async move {
                    if never {
                        std::future::pending::<()>().await;
                    }
                    match to {
                        Some(path) => Err(format!("{} is no program", path.display())),
                        None => Ok("the worker was replaced".into()),
                    }
                })
            }),
            stop: Rc::new(move |within| stops.borrow_mut().push(format!("stop {within:?}"))),
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
            heard,
        )
    }

    fn request(method: Method, path: &str, body: &'static str) -> Request {
        let (path, query, headers) = (path.into(), String::new(), HeaderMap::new());
        Request { method, path, query, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        let options = tokio::runtime::LocalOptions::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build_local(options);
        runtime.expect("a runtime").block_on(future)
    }

    fn ask(access: Access, method: Method, path: &str) -> u16 {
        now(answer(access, request(method, path, ""), context(None).0)).status
    }

    #[test]
    fn each_listener_shows_and_does_what_it_should_and_no_more() {
        let shown = ["/", "/metrics", "/ledger", "/status", "/config"];
        let probes = ["/started", "/ready", "/live"];
        let changes = ["/reload", "/log-level", "/upgrade", "/stop", "/quitquitquit"];
        let check = |access, name: &str, method: Method, paths: &[&str], expect: u16| {
            for path in paths {
                assert_eq!(ask(access, method.clone(), path), expect, "{method} {path} on {name}");
            }
        };
        for method in [Method::GET, Method::HEAD] {
            check(Access::Probes, "probes", method.clone(), &probes, 200);
            check(Access::Probes, "probes", method.clone(), &shown, 404);
            check(Access::Probes, "probes", method.clone(), &changes, 404);
            check(Access::Read, "listen", method.clone(), &[&probes[..], &shown].concat(), 200);
            check(Access::Read, "listen", method.clone(), &changes, 404);
            check(Access::Everything, "socket", method.clone(), &[&probes[..], &shown].concat(), 200);
            check(Access::Everything, "socket", method, &changes, 405);
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            check(Access::Probes, "probes", method.clone(), &[&probes[..], &shown].concat(), 405);
            check(Access::Probes, "probes", method.clone(), &changes, 404);
            let all = [&probes[..], &shown, &changes, &["/nothing"]].concat();
            check(Access::Read, "listen", method.clone(), &all, 405);
            check(Access::Everything, "socket", method.clone(), &[&probes[..], &shown].concat(), 405);
            check(Access::Everything, "socket", method.clone(), &["/nothing"], 404);
            if method != Method::POST {
                check(Access::Everything, "socket", method, &changes, 405);
            }
        }
        check(Access::Everything, "socket", Method::POST, &["/upgrade", "/stop", "/quitquitquit"], 200);
        check(Access::Everything, "socket", Method::POST, &["/reload", "/log-level"], 400);
    }

    fn post(path: &str, body: &'static str) -> (u16, String, Vec<String>) {
        let (context, heard) = context(None);
        let answer = now(answer(Access::Everything, request(Method::POST, path, body), context));
        let heard = heard.borrow().clone();
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned(), heard)
    }

    #[test]
    fn a_change_reaches_its_control_or_is_refused_with_a_reason() {
        let check = |path: &str, body: &'static str, status: u16, said: &str, told: &[&str]| {
            let (got, text, heard) = post(path, body);
            assert_eq!((got, heard.as_slice()), (status, &told.iter().map(|t| t.to_string()).collect::<Vec<_>>()[..]));
            assert!(text.contains(said) && text.ends_with('\n'), "{path} {body}: {text:?}");
        };
        check("/reload", "", 400, "a mistake", &[]);
        check("/log-level", "loud", 400, "loud", &[]);
        check("/upgrade", "", 200, "the worker was replaced", &["upgrade None"]);
        check("/upgrade", "\n", 200, "the worker was replaced", &["upgrade None"]);
        check("/upgrade", "/bin/new\n", 409, "/bin/new is no program", &["upgrade Some(\"/bin/new\")"]);
        check("/upgrade", "bin/new", 400, "absolute path", &[]);
        check("/upgrade", "/bin\0/new", 400, "zero byte", &[]);
        check("/upgrade", "/never", 504, "timed out after 20ms", &["upgrade Some(\"/never\")"]);
        check("/stop", "", 200, "stopping", &["stop None"]);
        check("/stop", "10s\n", 200, "stopping", &["stop Some(10s)"]);
        check("/quitquitquit", "", 200, "stopping", &["stop None"]);
        check("/stop", "soon", 400, "`soon` is not a duration", &[]);
    }

    #[test]
    fn with_a_token_everything_is_read_without_it_and_nothing_changes_without_it() {
        let (context, heard) = context(Some("open-sesame"));
        for path in ["/status", "/config", "/ready", "/"] {
            let got = now(answer(Access::Everything, request(Method::GET, path, ""), context.clone()));
            assert_eq!(got.status, 200, "{path}");
        }
        for path in crate::change::PATHS {
            let got = now(answer(Access::Everything, request(Method::POST, path, ""), context.clone()));
            assert_eq!(got.status, 401, "{path}");
        }
        assert!(heard.borrow().is_empty(), "{heard:?}");
        let mut with = request(Method::POST, "/stop", "");
        with.headers.insert("authorization", HeaderValue::from_static("Bearer open-sesame"));
        assert_eq!(now(answer(Access::Everything, with, context)).status, 200);
        assert_eq!(*heard.borrow(), ["stop None"]);
    }

    #[test]
    fn strangers_are_refused_over_tcp_and_a_name_does_not_stop_a_prober() {
        let check = |access, path: &str, name: &'static str, value: &'static str, expect: u16| {
            let mut request = request(Method::GET, path, "");
            request.headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(now(answer(access, request, context(None).0)).status, expect, "{path} with {name}: {value}");
        };
        check(Access::Read, "/status", "host", "evil.example:9900", 421);
        check(Access::Read, "/status", "host", "127.0.0.1:9900", 200);
        check(Access::Read, "/ready", "host", "orders.default.svc", 200);
        check(Access::Probes, "/ready", "host", "orders.default.svc", 200);
        check(Access::Read, "/status", "origin", "http://evil.example", 403);
        check(Access::Read, "/ready", "origin", "http://evil.example", 403);
        check(Access::Read, "/status", "sec-fetch-site", "cross-site", 403);
        check(Access::Everything, "/status", "host", "outrigger", 200);
    }

    #[test]
    fn a_worker_waits_for_the_socket_that_the_one_before_it_still_holds() {
        let path = std::env::temp_dir().join(format!("outrigger-succeed-{}.sock", std::process::id()));
        let rights = Rights { mode: 0o600, group: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let made = || socket::prepare(&path, rights).expect("made");
            let before = made().take().expect("taken");
            let waits = succeed(made());
            tokio::pin!(waits);
            let early = tokio::time::timeout(SOCKET_LOOK * 3, &mut waits).await;
            assert!(early.is_err(), "the one before it still answers");
            drop(before);
            let after = tokio::time::timeout(Duration::from_secs(10), waits).await.expect("the socket is free");
            assert!(after.is_some() && std::os::unix::net::UnixStream::connect(&path).is_ok());
        });
        std::fs::remove_file(&path).expect("the socket's file");
    }
}
