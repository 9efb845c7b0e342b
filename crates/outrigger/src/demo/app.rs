//! The demo's app: an ordinary web server that is unaware of Outrigger. It logs JSON to stdout, exposes metrics, and reloads its
//! greeting on SIGHUP.

use net::serve::{Request, Response, Server};
use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

struct App {
    dir: PathBuf,
    greeting: RefCell<String>,
    requests: Cell<u64>,
    reloads: Cell<u64>,
}

pub fn run(dir: &Path, port: u16) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    let served = runtime.and_then(|runtime| runtime.block_on(serve(dir.to_path_buf(), port)));
    match served {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cannot run the demo's app: {error}");
            1
        }
    }
}

async fn serve(dir: PathBuf, port: u16) -> std::io::Result<()> {
    let app = Rc::new(App { dir, greeting: RefCell::default(), requests: Cell::new(0), reloads: Cell::new(0) });
    let (mut reload, mut stop) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    app.load();
    let socket = TcpListener::bind(("127.0.0.1", port)).await?;
    log("info", "started", &format!(r#""port":{port}"#));
    let server = Server::default();
    loop {
        let next = async {
            let slot = server.slot().await;
            socket.accept().await.map(|(stream, _)| (slot, stream))
        };
        tokio::select! {
            accepted = next => {
                let (slot, stream) = accepted?;
                let app = app.clone();
                let handler = move |request: Request| std::future::ready(app.respond(&request));
                tokio::task::spawn_local(slot.serve(stream, handler));
            }
            _ = reload.recv() => app.load(),
            _ = stop.recv() => {
                log("info", "stopped", "");
                return Ok(());
            }
        }
    }
}

impl App {
    fn load(&self) {
        let text = std::fs::read_to_string(self.dir.join("greeting.txt"))
            .unwrap_or_else(|error| format!("no greeting: {error}"));
        *self.greeting.borrow_mut() = text.trim().to_string();
        self.reloads.set(self.reloads.get() + 1);
        log("info", "loaded the configuration", &format!(r#""greeting":{}"#, admin::view::to_json(&text.trim())));
    }

    fn respond(&self, request: &Request) -> Response {
        if request.path == "/metrics" {
            let (requests, reloads) = (self.requests.get(), self.reloads.get());
            return Response::text(
                200,
                format!(
                    "# HELP demo_requests_total Requests served.\n# TYPE demo_requests_total counter\ndemo_requests_total {requests}\n\
                     # HELP demo_loads_total Loads of the configuration.\n# TYPE demo_loads_total counter\ndemo_loads_total {reloads}\n"
                ),
            );
        }
        self.requests.set(self.requests.get() + 1);
        log(
            "info",
            "request",
            &format!(r#""number":{},"path":{}"#, self.requests.get(), admin::view::to_json(&request.path)),
        );
        Response::text(200, format!("{}\n", self.greeting.borrow()))
    }
}

/// One JSON object per line, as services log.
fn log(level: &str, message: &str, more: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let comma = if more.is_empty() { "" } else { "," };
    let line = format!(r#"{{"time":{:.3},"level":"{level}","message":"{message}"{comma}{more}}}"#, now.as_secs_f64());
    // An app whose stdout is closed keeps serving.
    let _ = writeln!(std::io::stdout(), "{line}");
}
