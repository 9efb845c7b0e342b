//! The listeners: read only over TCP, everything over the socket, probes alone. In: a view. Out: answers. Whatever changes
//! something needs the socket, whose file only its owner can open. Bounds: those of `net::serve`.

use crate::config::Config;
use crate::view::{Probe, View, to_json};
use base::listen::Sockets;
use base::oplog::LevelHandle;
use base::scope::Scope;
use net::serve::{Answer, Asked, Server};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

/// What may be changed while running.
#[derive(Clone)]
pub struct Controls {
    pub level: LevelHandle,
    /// Reads the configuration again; the error is the report of its mistakes.
    pub reload: Rc<dyn Fn() -> Result<String, String>>,
}

/// How much a listener may show and do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Probes,
    Read,
    Everything,
}

/// The pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds what is configured. Errors name each address or path that cannot be had.
pub fn start(
    config: &Config,
    view: Rc<View>,
    controls: Controls,
    sockets: &Sockets,
    scope: &Scope,
) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    for (name, address, access) in
        [("admin/listen", config.listen, Access::Read), ("admin/probes", config.probes, Access::Probes)]
    {
        let Some(address) = address else { continue };
        let bound = sockets.tcp(name, address.0, 1).and_then(|mut group| {
            let socket = group.pop().ok_or("no socket")?;
            TcpListener::from_std(socket).map_err(|error| error.to_string())
        });
        match bound {
            Ok(socket) => {
                drop(scope.spawn("admin", tcp(socket, access, view.clone(), controls.clone(), scope.clone())))
            }
            Err(error) => errors.push(format!("{}: {error}", name.replace('/', "."))),
        }
    }
    if let Some(path) = &config.socket {
        match bind_socket(path) {
            Ok(socket) => drop(scope.spawn("admin", unix(socket, view, controls, scope.clone()))),
            Err(error) => errors.push(format!("admin.socket: {}: {error}", path.display())),
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// A socket file that nobody answers on is left from a process that was killed, and is replaced.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::other("a file of another kind is there; remove it or choose another path"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::other("another process answers on it; stop it or choose another path"));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    // Made where only the owner can look, so that there is no moment at which others could connect.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    bound
}

async fn tcp(socket: TcpListener, access: Access, view: Rc<View>, controls: Controls, scope: Scope) {
    let server = Server::default();
    loop {
        server.place().await;
        match socket.accept().await {
            Ok((stream, _)) => {
                let answer = answerer(access, view.clone(), controls.clone());
                scope.spawn("admin connection", server.clone().connection(stream, answer));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn unix(socket: UnixListener, view: Rc<View>, controls: Controls, scope: Scope) {
    let server = Server::default();
    loop {
        server.place().await;
        match socket.accept().await {
            Ok((stream, _)) => {
                let answer = answerer(Access::Everything, view.clone(), controls.clone());
                scope.spawn("admin connection", server.clone().connection(stream, answer));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn answerer(access: Access, view: Rc<View>, controls: Controls) -> impl Fn(Asked) -> std::future::Ready<Answer> {
    move |asked| std::future::ready(answer(access, &asked, &view, &controls))
}

fn answer(access: Access, asked: &Asked, view: &View, controls: &Controls) -> Answer {
    let reads = asked.method == http::Method::GET || asked.method == http::Method::HEAD;
    let probe = |probe| {
        let (status, text) = view.probe(probe);
        Answer::text(status, text)
    };
    match asked.path.as_str() {
        "/started" if reads => return probe(Probe::Started),
        "/ready" if reads => return probe(Probe::Ready),
        "/live" if reads => return probe(Probe::Live),
        _ if access == Access::Probes => return Answer::text(404, "only /started, /ready and /live are here\n"),
        _ => {}
    }
    if !reads {
        if access != Access::Everything {
            return Answer::text(405, "this listener is read only; what changes something needs the admin socket\n");
        }
        return change(asked, controls);
    }
    match asked.path.as_str() {
        "/" => page(view),
        "/metrics" => Answer::new(200, "text/plain; version=0.0.4; charset=utf-8", view.metrics_text()),
        "/ledger" => json(view.ledger_json()),
        "/status" => json(to_json(&view.status())),
        "/config" => json(to_json(&view.config)),
        _ => Answer::text(404, "known here: / /started /ready /live /metrics /ledger /status /config\n"),
    }
}

fn change(asked: &Asked, controls: &Controls) -> Answer {
    match asked.path.as_str() {
        "/log-level" if asked.method == http::Method::POST => {
            let level = String::from_utf8_lossy(&asked.body);
            match controls.level.set(level.trim()) {
                Ok(()) => Answer::text(200, "done\n"),
                Err(error) => Answer::text(400, format!("{error}\n")),
            }
        }
        "/reload" if asked.method == http::Method::POST => match (controls.reload)() {
            Ok(done) => Answer::text(200, done),
            Err(report) => Answer::text(400, report),
        },
        _ => Answer::text(404, "known here: POST /reload, and POST /log-level with the level as body\n"),
    }
}

fn json(text: String) -> Answer {
    Answer { headers: vec![("cache-control", "no-store")], ..Answer::new(200, "application/json", text) }
}

/// One file without anything from elsewhere; scripts and styles are its own, and the first status is in it.
fn page(view: &View) -> Answer {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = vec![
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ];
    // Within a script element only `<` could end it (HTML, 13.2.5.4).
    let first = to_json(&view.status()).replace('<', "\\u003c");
    let html = include_str!("page.html").replace("FIRST_STATUS", &first);
    Answer { headers, ..Answer::new(200, "text/html; charset=utf-8", html) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::telemetry::Telemetry;
    use std::time::Instant;

    fn ask(access: Access, method: http::Method, path: &str) -> u16 {
        let view = View {
            telemetry: Telemetry::default(),
            revisions: base::revisions::Revisions::default(),
            state: base::state::StateDir::without(String::new()),
            config: serde_json::Value::Null,
            started_at: Instant::now(),
            generation: 0,
        };
        view.telemetry.health("logs").set_ready(true);
        let reload: Rc<dyn Fn() -> Result<String, String>> = Rc::new(|| Err("a mistake".into()));
        let controls = Controls { level: base::oplog::start(tracing::level_filters::LevelFilter::OFF), reload };
        let asked = Asked {
            method,
            path: path.into(),
            query: String::new(),
            headers: http::HeaderMap::new(),
            body: bytes_of("debug"),
        };
        answer(access, &asked, &view, &controls).status
    }

    fn bytes_of(text: &'static str) -> bytes::Bytes {
        bytes::Bytes::from_static(text.as_bytes())
    }

    /// covers: foundation 6
    #[test]
    fn each_listener_shows_and_does_what_it_should_and_no_more() {
        use http::Method;
        for path in ["/", "/ready", "/metrics", "/ledger", "/status", "/config"] {
            assert_eq!(ask(Access::Read, Method::GET, path), 200, "{path}");
            assert_eq!(ask(Access::Everything, Method::GET, path), 200, "{path}");
        }
        assert_eq!(ask(Access::Probes, Method::GET, "/live"), 200);
        assert_eq!(ask(Access::Probes, Method::GET, "/config"), 404);
        assert_eq!(ask(Access::Read, Method::POST, "/log-level"), 405);
        assert_eq!(ask(Access::Read, Method::POST, "/ready"), 405);
        assert_ne!(ask(Access::Everything, Method::POST, "/log-level"), 405);
        assert_eq!(ask(Access::Everything, Method::POST, "/nothing"), 404);
        assert_eq!(ask(Access::Everything, Method::POST, "/reload"), 400, "a configuration with a mistake is refused");
    }
}
