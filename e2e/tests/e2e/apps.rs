//! Real, unmodified apps with Outrigger: Python, Node, Java, nginx and redis in C, a shell script. Each runs once alone and
//! once with Outrigger, is driven the same way both times, and must show the same output, the same log file and the same exit
//! code, while logs, metrics, configuration and requests pass through Outrigger completely. This file has the wrapped mode,
//! `apps_companion.rs` the companion mode, and `apps_table.rs` the properties of each app. Bounded by some thousand lines and
//! a hundred requests an app.

use crate::apps_table::{JAVA, Kind, NGINX, NODE, Notify, PYTHON, REDIS, SHELL, Sees, Speaks, Way};
use crate::harness::git::{Repository, published};
use crate::harness::process::{Captured, Running, Signal};
use crate::harness::{
    Exposition, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wire, assert_counts_up, fixture, get, ledger_row,
    number_after, peer, python, request, until,
};

const REQUESTS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Wrapped,
    Companion,
}

/// One app in its scene: how to start it, and how to drive it.
pub struct App {
    kind: &'static Kind,
    mode: Mode,
    pub scene: Scene,
    pub command: Vec<String>,
}

impl App {
    /// `None` if its program is not installed.
    pub fn place(kind: &'static Kind, mode: Mode) -> Option<Self> {
        let program = match kind.program {
            "python3" => python()?,
            name => peer(name)?.display().to_string(),
        };
        let scene = Scene::new();
        scene.port("port");
        let log = scene.text_path("app.log");
        let outside = kind.log_beside_output || mode == Mode::Companion;
        scene.set("redis_log", if outside { &log } else { "" });
        scene.set("log", log);
        scene.set("program", program);
        scene.set("fixtures", fixture("."));
        scene.set("lines", kind.lines);
        if let Some(name) = kind.config {
            let template = std::fs::read_to_string(fixture(name)).expect("the fixture exists");
            scene.set("config", scene.write(name, scene.fill(&template)).display());
        }
        let command = kind.command.iter().map(|word| scene.fill(word)).collect();
        Some(Self { kind, mode, scene, command })
    }

    pub fn python() -> Option<Self> {
        Self::place(&PYTHON, Mode::Wrapped)
    }

    pub fn node() -> Option<Self> {
        Self::place(&NODE, Mode::Wrapped)
    }

    pub fn java() -> Option<Self> {
        Self::place(&JAVA, Mode::Wrapped)
    }

    pub fn nginx() -> Option<Self> {
        Self::place(&NGINX, Mode::Wrapped)
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.scene.value("port"))
    }

    fn way(&self) -> Way {
        match self.mode {
            Mode::Wrapped => self.kind.wrapped,
            Mode::Companion => self.kind.companion,
        }
    }

    /// Whether it starts before the first configuration: an app that is notified must already run, an app that only reads
    /// must find files.
    pub fn starts_first(&self) -> bool {
        self.mode == Mode::Companion && self.way().notify == Notify::Http
    }

    /// Starts it without Outrigger, and writes its process id to a file, as its init script would.
    pub fn start(&self) -> Running {
        let running = Running::start(&self.command);
        if self.kind.pid_file.is_none() {
            self.scene.write("app.pid", format!("{}\n", running.pid()));
        }
        running
    }

    fn pid_file(&self) -> String {
        self.scene.text_path(self.kind.pid_file.unwrap_or("app.pid"))
    }

    pub fn await_served(&self) {
        until(2 * PATIENCE, "the app serves", || match self.kind.speaks {
            Speaks::Http(_) => get(&self.address(), "/health").is_ok_and(|reply| reply.status == 200),
            Speaks::Redis => self.redis(&["PING"]) == "+PONG\r\n",
            Speaks::Nothing => true,
        });
    }

    /// Waits until it serves and has its first configuration, sends numbered requests to `front` one after another, and then
    /// publishes a second configuration.
    pub fn drive(&self, stdout: &Captured, front: &str, publish: impl FnOnce()) {
        self.await_served();
        self.await_generation(stdout, 1);
        match self.kind.speaks {
            Speaks::Http(name) => {
                for number in 0..REQUESTS {
                    let path = format!("/r={number:06}");
                    let reply = get(front, &path).expect("the app responds");
                    assert_eq!((reply.status, reply.text()), (200, format!("hello from {name} {path}\n")));
                }
                let last = format!("/r={:06}", REQUESTS - 1);
                until(PATIENCE, "the app's line about the last request", || stdout.contains(&last));
            }
            Speaks::Redis => {
                let sets: Vec<String> = (0..REQUESTS).map(|number| format!("SET key={number:06} order")).collect();
                let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
                assert_eq!(self.redis(&sets), "+OK\r\n".repeat(REQUESTS));
            }
            Speaks::Nothing => {}
        }
        publish();
        self.await_generation(stdout, 2);
    }

    fn await_generation(&self, stdout: &Captured, generation: usize) {
        let text = format!("generation={generation:06}");
        until(PATIENCE, &format!("the app has {text}"), || match self.way().sees {
            Sees::Prints => stdout.contains(&format!(" with {text}\n")),
            Sees::Serves(path) => get(&self.address(), path).is_ok_and(|reply| reply.text().contains(&text)),
            Sees::Users => self.redis(&["ACL LOAD", "ACL USERS"]).contains(&text),
        });
    }

    /// The replies of redis to commands on one connection; empty while it does not listen.
    fn redis(&self, commands: &[&str]) -> String {
        let Ok(mut wire) = Wire::connect(&self.address()) else { return String::new() };
        let commands: String = commands.iter().chain(&["QUIT"]).map(|command| format!("{command}\r\n")).collect();
        let replies = wire.send(commands).and_then(|()| wire.until_closed());
        let bytes = replies.map(|body| body.bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.strip_suffix("+OK\r\n").unwrap_or(&text).to_owned()
    }

    /// The files of a revision for every app: two files of some size from the repository, and those that servers include.
    fn revision(&self, directory: &str, generation: usize) {
        let text = format!("generation={generation:06}");
        let location = format!("location = /generation {{ access_log off; return 200 \"{text}\\n\"; }}\n");
        self.scene.write(&format!("{directory}/site.nginx"), location);
        let users = format!("user default on nopass sanitize-payload ~* &* +@all\nuser {text} on nopass +ping\n");
        self.scene.write(&format!("{directory}/users.acl"), users);
    }

    /// The repository with the first generation; `None` if git is missing.
    pub fn repository(&self) -> Option<Repository> {
        self.revision("work/orders", 1);
        let repository = Repository::create(&self.scene)?;
        self.scene.set("repository", repository.file_url());
        Some(repository)
    }

    /// Pushes the second generation, and waits until it is published completely where the app reads it.
    pub fn push(&self, repository: &Repository) {
        self.revision("work/orders", 2);
        repository.push(2);
        until(PATIENCE, "the second generation", || published(&self.scene.path("settings")) == Ok(Some(2)));
    }

    /// Without Outrigger the test itself publishes the files and notifies the app.
    fn publish_by_hand(&self, generation: usize, app: Option<&Running>) {
        let directory = format!("revision-{generation}");
        self.revision(&directory, generation);
        for name in ["a.conf", "b.conf"] {
            let text = format!("generation={generation:06}\n");
            self.scene.write(&format!("{directory}/{name}"), text.repeat(2000));
        }
        let link = self.scene.path("settings.new");
        std::os::unix::fs::symlink(&directory, &link).expect("the link can be created");
        std::fs::rename(link, self.scene.path("settings")).expect("the link can be replaced");
        let Some(app) = app else { return };
        match self.way().notify {
            Notify::Hangup => app.signal(Signal::HUP),
            Notify::Http => {
                let reply = request(&self.address(), "POST", "/-/settings", &[], b"");
                assert_eq!(reply.expect("the app accepts notifications").status, 200);
            }
            Notify::Never => {}
        }
    }

    /// Runs it without Outrigger, stops it with SIGTERM, and returns its output.
    pub fn alone(&self) -> Shown {
        if !self.starts_first() {
            self.publish_by_hand(1, None);
        }
        let mut running = self.start();
        if self.starts_first() {
            self.await_served();
            self.publish_by_hand(1, Some(&running));
        }
        self.drive(&running.stdout, &self.address(), || self.publish_by_hand(2, Some(&running)));
        running.signal(Signal::TERM);
        let code = running.wait(PATIENCE);
        let shown = self.shown(code, &running.stdout.text(), &running.stderr.text());
        assert_eq!(shown.code, self.kind.code);
        for lines in [&shown.stdout, &shown.file].into_iter().filter(|lines| !lines.is_empty()) {
            let last = lines.last().expect("it is not empty");
            assert!(last.contains(self.kind.last), "it exits gracefully, not with {last}");
        }
        shown
    }

    pub fn shown(&self, code: i32, stdout: &str, stderr: &str) -> Shown {
        let file = std::fs::read_to_string(self.scene.path("app.log")).unwrap_or_default();
        Shown { code, stdout: lines_with_ends(stdout), stderr: lines_with_ends(stderr), file: lines_with_ends(&file) }
    }

    /// Outrigger's /metrics endpoint exposes what passed through: the app's processes, the app's own metrics, and the requests.
    pub fn assert_measured(&self) {
        let (wrapped, http) = (self.mode == Mode::Wrapped, self.is_http());
        let requests = REQUESTS as f64;
        let wanted = [
            (wrapped, "process_children_count", self.kind.processes - 1.0, f64::MAX),
            (wrapped, "process_memory_usage_bytes", 100_000.0, f64::MAX),
            (http, "http_server_request_duration_seconds_count", requests, requests),
            (self.kind.page, "shop_orders_total", requests, requests),
        ];
        let page = format!("127.0.0.1:{}", self.scene.value("page"));
        for (_, name, least, most) in wanted.into_iter().filter(|(expected, ..)| *expected) {
            until(PATIENCE, &format!("{name} is between {least} and {most}"), || {
                let value = Exposition::of(&page).and_then(|page| page.value(name));
                value.is_some_and(|value| (least..=most).contains(&value))
            });
        }
    }

    /// Redis saved its data when it exited.
    pub fn assert_saved(&self) {
        if self.kind.speaks == Speaks::Redis {
            let dump = std::fs::read(self.scene.path("dump.rdb")).expect("it saved its dump at SIGTERM");
            for number in 0..REQUESTS {
                let key = format!("key={number:06}");
                assert!(dump.windows(key.len()).any(|part| part == key.as_bytes()), "{key} is saved");
            }
        }
    }

    fn is_http(&self) -> bool {
        matches!(self.kind.speaks, Speaks::Http(_))
    }

    /// Outrigger's configuration for this app and mode: the lines that apply to it.
    pub fn configuration(&self) -> String {
        for name in ["front", "page"] {
            self.scene.port(name);
        }
        self.scene.set("pid_file", self.pid_file());
        let notify = match self.way().notify {
            Notify::Hangup => "{ signal: SIGHUP }".to_owned(),
            Notify::Http => format!("{{ http: {{ url: \"http://{}/-/settings\" }} }}", self.address()),
            Notify::Never => String::new(),
        };
        self.scene.set("notify", notify);
        let applies = |apps: &str| match apps.trim() {
            "all" => true,
            "wrapped" => self.mode == Mode::Wrapped,
            "companion" => self.mode == Mode::Companion,
            "listens" => self.kind.speaks != Speaks::Nothing,
            "http" => self.is_http(),
            "page" => self.kind.page,
            other => panic!("no such apps: {other}"),
        };
        let lines = CONFIGURATION.lines().filter_map(|line| line.split_once('|'));
        lines.filter(|(apps, _)| applies(apps)).map(|(_, line)| format!("{line}\n")).collect()
    }
}

/// Each line is preceded by the apps that it applies to.
const CONFIGURATION: &str = r#"
all      |app:
all      |  stop: { drain_timeout: 1s, grace_period: 10s, timeout: 20s }
listens  |  port: @port@
companion|  external: { pid_file: "@pid_file@" }
all      |logs:
all      |  sources:
all      |    files: { file: { include: ["@log@"], read_from: beginning } }
wrapped  |    app: { stdio: {} }
all      |  sinks:
all      |    file: { http: { url: "http://@file@/lines", compression: zstd }, inputs: [files], batch: { max_bytes: 1MiB, max_age: 200ms } }
wrapped  |    out: { http: { url: "http://@out@/lines", compression: gzip }, inputs: [app], batch: { max_bytes: 1MiB, max_age: 200ms } }
all      |metrics:
all      |  sources:
all      |    self: { self: {} }
wrapped  |    process: { process: {} }
http     |    proxy: { proxy: {} }
page     |    app: { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 500ms } }
all      |  sinks:
all      |    page: { prometheus: { listen: "127.0.0.1:@page@" } }
all      |sync:
all      |  settings:
all      |    store: { git: { url: "@repository@", ref: main, path: orders/, interval: 500ms } }
all      |    publish: { symlink: { path: "@dir@/settings" } }
all      |    notify: [ @notify@ ]
http     |proxy:
http     |  listeners:
http     |    inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app }
"#;

fn lines_with_ends(text: &str) -> Vec<String> {
    text.split_inclusive('\n').map(str::to_owned).collect()
}

/// What an app outputs from its start to its exit; lines include their line ends.
#[derive(Debug)]
pub struct Shown {
    pub code: i32,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
    pub file: Vec<String>,
}

impl Shown {
    /// The fixture did what the comparison relies on: every number, every request, then the exit code.
    pub fn assert_complete(&self, lines: usize, code: i32) {
        for shown in [&self.stdout, &self.file] {
            let numbers: Vec<usize> = shown.iter().filter_map(|line| number_after(line, " n=")).collect();
            assert_counts_up(&numbers, lines);
            let requests: Vec<usize> = shown.iter().filter_map(|line| number_after(line, "/r=")).collect();
            assert_counts_up(&requests, REQUESTS);
        }
        assert_eq!(self.code, code);
    }

    /// With Outrigger it shows the same as alone, byte for byte except for times and noise.
    pub fn assert_same_as(&self, alone: &Self, kind: &Kind) {
        let outputs = [
            ("stdout", &self.stdout, &alone.stdout),
            ("stderr", &self.stderr, &alone.stderr),
            ("log file", &self.file, &alone.file),
        ];
        for (what, with_outrigger, alone) in outputs {
            let is_noise = |line: &&String| what == "stderr" && kind.noise.is_some_and(|noise| line.contains(noise));
            let plain = |lines: &[String]| -> Vec<String> {
                lines.iter().filter(|line| !is_noise(line)).map(|line| undated(kind, line)).collect()
            };
            assert_same_lines(what, &plain(with_outrigger), &plain(alone));
        }
        assert_eq!((self.code, alone.code), (kind.code, kind.code));
        let shown = self.stdout.len() + self.file.len();
        assert!(shown > kind.lines && shown > 10, "there was something to compare: {shown} lines");
    }
}

/// Replaces each run of digits by one `#`, for an app whose lines contain times and process ids.
fn undated(kind: &Kind, line: &str) -> String {
    if !kind.dated {
        return line.to_owned();
    }
    let mut plain = line.replace(|c: char| c.is_ascii_digit(), "#");
    while plain.contains("##") {
        plain = plain.replace("##", "#");
    }
    plain
}

/// Reports where two texts first differ, instead of printing thousands of lines.
#[track_caller]
fn assert_same_lines(what: &str, shown: &[String], expected: &[String]) {
    let differs = (0..shown.len().max(expected.len())).find(|at| shown.get(*at) != expected.get(*at));
    let place = differs.map(|at| (at, shown.get(at), expected.get(at)));
    assert_eq!(place, None, "{what}: the first line that differs, as (place, have, expected)");
}

/// The receiver got every line, in order, and no other.
#[track_caller]
pub fn assert_received(what: &str, received: &[String], written: &[String], log: &str) {
    let written: Vec<String> = written.iter().map(|line| line.trim_end_matches('\n').to_owned()).collect();
    assert_same_lines(&format!("{what}, with the Outrigger log {log}"), received, &written);
}

/// The ledger counts both revisions; it is updated just after the link is replaced.
pub fn assert_both_in_the_ledger(outrigger: &Outrigger) {
    until(PATIENCE, "two revisions in the ledger", || ledger_row(&outrigger.admin, "sync.settings")["delivered"] == 2);
}

/// Wrapped mode: both runs, and all data of the second at its receivers. `None` if something is not installed.
fn check(kind: &'static Kind) -> Option<()> {
    let expected = App::place(kind, Mode::Wrapped)?.alone();
    let app = App::place(kind, Mode::Wrapped)?;
    let repository = app.repository()?;
    let (out, file) = (LogReceiver::start(), LogReceiver::start());
    app.scene.set("out", out.address());
    app.scene.set("file", file.address());
    let command: Vec<&str> = app.command.iter().map(String::as_str).collect();
    let outrigger = Outrigger::start(&app.scene, &app.configuration(), &command);
    let front = format!("127.0.0.1:{}", app.scene.value("front"));
    app.drive(&outrigger.stdout, &front, || app.push(&repository));
    app.assert_measured();
    assert_both_in_the_ledger(&outrigger);
    let exit = outrigger.finish();
    assert!(exit.took < 20 * SECOND, "it exits before its deadline: {:?}", exit.took);
    let lines_of = |stream: &str| -> Vec<String> {
        let records = out.records().into_iter().filter(|record| record.field("stream") == stream);
        records.map(|record| record.message).collect()
    };
    let stderr: String = lines_of("stderr").iter().map(|line| format!("{line}\n")).collect();
    let shown = app.shown(exit.code, &exit.stdout, &stderr);
    shown.assert_same_as(&expected, kind);
    assert_received("its output at the receiver", &lines_of("stdout"), &shown.stdout, &exit.stderr);
    assert_received("its file at the receiver", &file.messages(), &shown.file, &exit.stderr);
    assert_eq!(app.scene.path("app.log").exists(), kind.log_beside_output);
    app.assert_saved();
    out.assert_well_formed();
    file.assert_well_formed();
    Some(())
}

/// An unmodified nginx: output, log file, exit code and behaviour on SIGTERM as without Outrigger; SIGHUP loads the published
/// files.
/// Guarantee: wrapped-app-unchanged
#[test]
fn nginx_behaves_the_same_when_wrapped() {
    need!(check(&NGINX), "nginx or git is not installed");
}

/// A Python app that handles SIGTERM and exits with 5.
#[test]
fn python_app_behaves_the_same_when_wrapped() {
    need!(check(&PYTHON), "python3 or git is not installed");
}

/// A Node server that closes on SIGTERM and exits with 6.
#[test]
fn node_server_behaves_the_same_when_wrapped() {
    need!(check(&NODE), "node or git is not installed");
}

/// A Java server in source-file mode, whose virtual machine turns SIGTERM into 143.
/// Guarantee: wrapped-app-unchanged
#[test]
fn java_server_behaves_the_same_when_wrapped() {
    need!(check(&JAVA), "java or git is not installed");
}

/// A redis that responds while it is wrapped, and saves its dump on SIGTERM.
#[test]
fn redis_behaves_the_same_when_wrapped() {
    need!(check(&REDIS), "redis-server or git is not installed");
}

/// A shell script with a trap, background jobs and pipelines, which stops all of its jobs before it exits with 9.
#[test]
fn shell_script_behaves_the_same_when_wrapped() {
    need!(check(&SHELL), "sh or git is not installed");
}
