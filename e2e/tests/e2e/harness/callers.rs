//! One of each kind of component that makes outgoing connections, each to its own host: two log sinks, a scrape, a remote
//! write, git over two protocols and a notification. (ssh is a program that connects by itself.) In: host names. Out: a
//! configuration and the servers of the names, and whether all of it works, or reports why it does not. Limits: some
//! hundred lines and a request each second.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::git::{Repository, published};
use super::ledger::dropped;
use super::process::Running;
use super::raw_app::{Next, answer_ok};
use super::server::Server;
use super::{
    Answer, LogReceiver, Outrigger, PATIENCE, RawApp, Scene, Wire, assert_counts_up, ledger_row, until, within,
};

pub const NO_CALLERS: &str = "git, git-daemon, git-http-backend or python3 is not installed";

/// Each kind by the name of its component; texts refer to its host as `@KIND_host@`.
pub const KINDS: [&str; 7] = ["lines", "loki", "page", "central", "web", "daemon", "notice"];

/// Lines of each round.
const LINES: usize = 200;

const BODY: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 8s } }
logs:
  sources: { files: { file: { include: ["@dir@/logs/in.log"], read_from: beginning } } }
  sinks:
    lines: { http: { url: "http://@lines_host@:@lines@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
    loki:
      loki: { url: "http://@loki_host@:@loki@", labels: { service: orders } }
      batch: { max_bytes: 64KiB, max_age: 50ms }
metrics:
  sources:
    page: { scrape: { url: "http://@page_host@:@page@/metrics", interval: 1s } }
    self: { self: { interval: 500ms } }
  sinks: { central: { remote_write: { url: "http://@central_host@:@central@/api/v1/write" } } }
sync:
  web:
    store: { git: { url: "http://@web_host@:@git_http@/config.git", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/web" } }
  daemon:
    store: { git: { url: "git://@daemon_host@:@git_daemon@/config.git", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/daemon" } }
  local:
    store: { git: { url: "@local_url@", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/local" } }
    notify: [ { http: { url: "http://@notice_host@:@notice@/-/reload" } } ]
"#;

pub struct Callers {
    lines: LogReceiver,
    loki: LogReceiver,
    central: LogReceiver,
    notice: RawApp,
    page: RawApp,
    repository: Repository,
    servers: Vec<Running>,
    rounds: usize,
    /// Scrapes and writes before the round started.
    before: (usize, usize),
}

impl Callers {
    /// All servers listen on 127.0.0.1. The host of each kind is its name followed by `domain`. `None` if a server is
    /// missing.
    pub fn start(scene: &Scene, domain: &str) -> Option<Self> {
        let repository = Repository::create(scene)?;
        let servers = vec![repository.http(scene)?.0, repository.daemon(scene)?.0];
        let receiver = |name| LogReceiver::start_on(scene.port(name), Answer::Accept);
        let (lines, loki, central) = (receiver("lines"), receiver("loki"), receiver("central"));
        let notice = RawApp::start_on(scene.port("notice"), |_, wire| answer_ok(wire, b"thank you"));
        let page = RawApp::start_on(scene.port("page"), |_, wire| answer_ok(wire, PAGE));
        scene.set("local_url", repository.file_url());
        for kind in KINDS {
            scene.set(&format!("{kind}_host"), format!("{kind}{domain}"));
        }
        std::fs::create_dir_all(scene.path("logs")).expect("the scene is writable");
        Some(Self { lines, loki, central, notice, page, repository, servers, rounds: 0, before: (0, 0) })
    }

    pub fn body() -> &'static str {
        BODY
    }

    /// The port of each host.
    pub fn ports(scene: &Scene) -> [(&'static str, String); 7] {
        KINDS.map(|kind| {
            let name = match kind {
                "web" => "git_http",
                "daemon" => "git_daemon",
                other => other,
            };
            (kind, scene.value(name))
        })
    }

    /// Adds new lines and a new commit.
    pub fn feed(&mut self, scene: &Scene) {
        let (first, path) = (self.rounds * LINES, scene.path("logs/in.log"));
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the test owns the file");
        let text: String = (first..first + LINES).map(|number| format!("n={number:06}\n")).collect();
        file.write_all(text.as_bytes()).expect("the log is writable");
        self.rounds += 1;
        self.before = (self.page.seen_count(), self.central.count());
        if self.rounds > 1 {
            self.repository.push(self.rounds);
        }
    }

    /// Every kind delivers all of its input so far: lines once and in order.
    #[track_caller]
    pub fn assert_all_work(&self, scene: &Scene, outrigger: &Outrigger) {
        self.assert_work(scene, outrigger, &KINDS);
        let lines = self.rounds * LINES;
        for (sink, receiver) in [("logs.sinks.lines", &self.lines), ("logs.sinks.loki", &self.loki)] {
            assert_counts_up(&receiver.numbers("n="), lines);
            receiver.assert_well_formed();
            assert_eq!(dropped(&ledger_row(&outrigger.admin, sink)), 0, "{sink} drops nothing");
        }
        self.central.assert_well_formed();
    }

    /// These kinds have delivered all of their input so far.
    #[track_caller]
    pub fn assert_work(&self, scene: &Scene, outrigger: &Outrigger, kinds: &[&str]) {
        let mut missing = Vec::new();
        let all_work = within(PATIENCE, || {
            missing = self.missing(scene);
            missing.retain(|kind| kinds.contains(kind));
            missing.is_empty()
        });
        let status = outrigger.get_quietly("/status");
        assert!(all_work, "{missing:?} do not work; status: {status}");
    }

    /// The kinds that have not delivered all of their input.
    pub fn missing(&self, scene: &Scene) -> Vec<&'static str> {
        let (lines, generation) = (self.rounds * LINES, self.rounds);
        let is_published = |name: &str| published(&scene.path(&format!("out/{name}"))) == Ok(Some(generation));
        let done = [
            self.lines.len() >= lines,
            self.loki.len() >= lines,
            self.page.seen_count() > self.before.0,
            self.central.count() > self.before.1,
            is_published("web"),
            is_published("daemon"),
            self.notice.seen_count() >= generation,
        ];
        KINDS.into_iter().zip(done).filter(|(_, done)| !done).map(|(kind, _)| kind).collect()
    }

    pub fn stop(self) {
        self.servers.into_iter().for_each(Running::stop);
    }
}

const PAGE: &[u8] = b"# TYPE shop_queue_depth gauge\nshop_queue_depth 3\n";

/// The status and Outrigger's log report all of these words about this host, in one sentence.
#[track_caller]
pub fn assert_said(outrigger: &Outrigger, host: &str, words: &[&str], limit: Duration) {
    let matches = |text: &str| text.contains(host) && words.iter().all(|word| text.contains(word));
    let mut status = Value::Null;
    let reported = within(limit, || {
        status = serde_json::from_str(&outrigger.get_quietly("/status")).unwrap_or_default();
        texts(&status).iter().flat_map(|text| text.split("; ")).any(matches)
    });
    assert!(reported, "the status reports {words:?} about {host}: {}", status["subsystems"]);
    until(PATIENCE, &format!("the log reports {words:?} about {host}"), || {
        outrigger.stderr.lines().iter().any(|line| matches(line))
    });
}

/// All strings of a JSON value, at any depth.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(map) => map.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// The servers of all seven kinds at one address.
pub struct Place {
    lines: LogReceiver,
    loki: LogReceiver,
    central: LogReceiver,
    notice: Server,
    scrapes: Server,
    web: Running,
    daemon: Running,
}

impl Place {
    pub const BODY: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 8s } }
logs:
  sources: { files: { file: { include: ["@dir@/logs/in.log"], read_from: beginning } } }
  sinks:
    lines: { http: { url: "http://lines.names.test:@lines@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
    loki:
      loki: { url: "http://loki.names.test:@loki@", labels: { service: orders } }
      batch: { max_bytes: 64KiB, max_age: 50ms }
metrics:
  sources: { page: { scrape: { url: "http://page.names.test:@page@/metrics", interval: 1s } } }
  sinks: { central: { remote_write: { url: "http://central.names.test:@central@/api/v1/write" } } }
sync:
  web:
    store: { git: { url: "http://web.names.test:@git_http@/config.git", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/web" } }
  daemon:
    store: { git: { url: "git://daemon.names.test:@git_daemon@/config.git", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/daemon" } }
    notify: [ { http: { url: "http://notice.names.test:@notice@/-/reload" } } ]
"#;

    pub const HOSTS: [&str; 7] = [
        "lines.names.test",
        "loki.names.test",
        "page.names.test",
        "central.names.test",
        "web.names.test",
        "daemon.names.test",
        "notice.names.test",
    ];

    /// The ports are the same at each address.
    pub fn ports(scene: &Scene) {
        for name in ["lines", "loki", "page", "central", "git_http", "git_daemon", "notice"] {
            scene.port(name);
        }
    }

    pub fn start(scene: &Scene, repository: &Repository, daemon: &str, address: &str) -> Self {
        let at = |name: &str| format!("{address}:{}", scene.value(name));
        let receiver = |name: &str| LogReceiver::start_at(at(name), Answer::Accept);
        let server = |name: &str| {
            Server::start_at(at(name), |stream| {
                let mut wire = Wire::new(stream);
                while let Ok(Some(_)) = wire.head() {
                    if answer_ok(&mut wire, PAGE) == Next::Close {
                        return;
                    }
                }
            })
        };
        let bare = repository.bare();
        let base = bare.parent().expect("the repository has a parent directory").display();
        let options = [
            "--export-all".to_owned(),
            "--reuseaddr".to_owned(),
            format!("--listen={}", address.trim_matches(['[', ']'])),
            format!("--port={}", scene.value("git_daemon")),
            format!("--base-path={base}"),
        ];
        let daemon = Running::start(&[&[daemon.to_owned()], options.as_slice()].concat());
        let web = repository
            .http_at(address, &scene.value("git_http"))
            .expect("git-http-backend is installed with git-daemon");
        let (lines, loki, central) = (receiver("lines"), receiver("loki"), receiver("central"));
        Self { lines, loki, central, notice: server("notice"), scrapes: server("page"), web, daemon }
    }

    #[track_caller]
    pub fn assert_works(&self, scene: &Scene, generation: usize, limit: Duration) {
        for entry in ["out/web", "out/daemon"] {
            until(limit, &format!("{entry} is updated"), || published(&scene.path(entry)) == Ok(Some(generation)));
        }
        until(limit, "all other servers are reached", || !self.reached().contains(&0));
    }

    /// What arrived at all servers but those of git, which count nothing.
    pub fn reached(&self) -> [usize; 5] {
        [self.lines.len(), self.loki.len(), self.central.count(), self.notice.connections(), self.scrapes.connections()]
    }

    pub fn numbers(&self) -> Vec<usize> {
        self.lines.numbers("n=")
    }

    pub fn stop(self) {
        self.web.stop();
        self.daemon.stop();
    }
}

/// git's own server, from the directory of git's programs.
pub fn git_daemon() -> Option<String> {
    let output = Command::new("git").arg("--exec-path").output().ok()?;
    let path = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("git-daemon");
    path.is_file().then(|| path.display().to_string())
}
