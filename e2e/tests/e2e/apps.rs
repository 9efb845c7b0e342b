//! Real apps beside us, unmodified: nginx, Python, Node, Java. Each runs once alone and once under `outrigger run`, is
//! driven the same way both times, and has to show the same output, the same log file and the same exit code, while every
//! line of it reaches the receivers complete and in order. Bounded by some thousand lines an app.

use std::path::PathBuf;

use crate::harness::process::{Captured, Running, Signal};
use crate::harness::{
    Exit, LogReceiver, Outrigger, PATIENCE, Scene, assert_counts_up, fixture, get, number_after, python, until,
};

const LINES: usize = 2000;
const REQUESTS: usize = 100;

const BOTH_OUTPUTS: &str = r#"
app: { port: @port@ }
logs:
  sources:
    app:   { stdio: {} }
    files: { file: { include: ["@log@"], start: beginning } }
  sinks:
    out:  { http: { endpoint: "http://@out@/lines", compression: gzip }, from: [app], batch: { max: 1MiB, wait: 200ms } }
    file: { http: { endpoint: "http://@file@/lines", compression: zstd }, from: [files], batch: { max: 1MiB, wait: 200ms } }
"#;

/// One app at one place: how to start it, and where its log file is.
pub struct App {
    pub scene: Scene,
    pub command: Vec<String>,
    log: PathBuf,
}

impl App {
    fn place() -> (Scene, u16, String) {
        let scene = Scene::new();
        let port = scene.port("port");
        let log = scene.text_path("app.log");
        scene.set("log", &log);
        (scene, port, log)
    }

    fn new(scene: Scene, command: Vec<String>) -> Self {
        let log = scene.path("app.log");
        Self { scene, command, log }
    }

    pub fn python() -> Option<Self> {
        let (scene, port, log) = Self::place();
        let options = ["--port".into(), port.to_string(), "--log".into(), log, "--lines".into(), LINES.to_string()];
        let command = [vec![python()?, fixture("app.py")], options.to_vec()].concat();
        Some(Self::new(scene, command))
    }

    pub fn node() -> Option<Self> {
        let (scene, port, log) = Self::place();
        let node = crate::harness::peer("node")?.display().to_string();
        let command = vec![node, fixture("app.js"), port.to_string(), log, LINES.to_string()];
        Some(Self::new(scene, command))
    }

    pub fn java() -> Option<Self> {
        let (scene, port, log) = Self::place();
        let java = crate::harness::peer("java")?.display().to_string();
        let command = vec![java, fixture("App.java"), port.to_string(), log, LINES.to_string()];
        Some(Self::new(scene, command))
    }

    pub fn nginx() -> Option<Self> {
        let (scene, _, _) = Self::place();
        let nginx = crate::harness::peer("nginx")?.display().to_string();
        let template = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture is there");
        let config = scene.write("nginx.conf", scene.fill(&template)).display().to_string();
        let command = vec![nginx, "-e".into(), "stderr".into(), "-c".into(), config];
        Some(Self::new(scene, command))
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.scene.value("port"))
    }

    /// Waits until it serves, and sends it numbered requests one after the other.
    fn drive(&self, stdout: &Captured) {
        until(2 * PATIENCE, "the app serves", || {
            get(&self.address(), "/health").is_ok_and(|reply| reply.status == 200)
        });
        for number in 0..REQUESTS {
            let reply = get(&self.address(), &format!("/r={number:06}")).expect("the app answers");
            assert_eq!(reply.status, 200);
        }
        let last = format!("/r={:06}", REQUESTS - 1);
        until(PATIENCE, "the app's line about the last request", || stdout.contains(&last));
    }

    fn log_lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).expect("the app wrote its log file");
        text.lines().map(str::to_owned).collect()
    }

    /// Runs it without us, ends it by SIGTERM, and keeps what it showed.
    pub fn alone(&self) -> Shown {
        let mut running = Running::start(&self.command);
        self.drive(&running.stdout);
        running.signal(Signal::TERM);
        let code = running.wait(PATIENCE);
        Shown { code, stdout: running.stdout.lines(), file: self.log_lines() }
    }
}

/// What an app shows the world from its start to its end.
#[derive(Debug, PartialEq)]
pub struct Shown {
    pub code: i32,
    pub stdout: Vec<String>,
    pub file: Vec<String>,
}

impl Shown {
    /// The fixture did what the comparison relies on: every number, every request, then the exit code.
    pub fn assert_complete(&self, lines: usize, code: i32) {
        for shown in [&self.stdout, &self.file] {
            let numbers: Vec<usize> = shown.iter().filter_map(|line| number_after(line, "n=")).collect();
            assert_counts_up(&numbers, lines);
            let requests: Vec<usize> = shown.iter().filter_map(|line| number_after(line, "/r=")).collect();
            assert_counts_up(&requests, REQUESTS);
        }
        assert_eq!(self.code, code);
    }
}

/// Both runs, and every line of the second at the receivers.
fn check(alone: &App, beside: &App) {
    let expected = alone.alone();
    let (out, file) = (LogReceiver::start(), LogReceiver::start());
    beside.scene.set("out", out.address());
    beside.scene.set("file", file.address());
    let command: Vec<&str> = beside.command.iter().map(String::as_str).collect();
    let outrigger = Outrigger::start(&beside.scene, BOTH_OUTPUTS, &command);
    beside.drive(&outrigger.stdout);
    let Exit { code, stdout, .. } = outrigger.finish();
    let stdout = stdout.lines().map(str::to_owned).collect();
    let shown = Shown { code, stdout, file: beside.log_lines() };
    assert_eq!(shown, expected, "the app beside us shows what it shows alone");
    let received = out.records().into_iter().filter(|record| record.field("stream") == "stdout");
    let received: Vec<String> = received.map(|record| record.message).collect();
    assert_eq!(received, expected.stdout, "the lines of its output reach the receiver, complete and in order");
    assert_eq!(file.messages(), expected.file, "the lines of its file reach the receiver, complete and in order");
    out.assert_well_formed();
    file.assert_well_formed();
}

/// An unmodified nginx: output, log file, exit code and behaviour on SIGTERM as without us.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 11
#[test]
fn nginx_is_beside_us_what_it_is_alone() {
    let alone = need!(App::nginx(), "nginx is not installed");
    let beside = need!(App::nginx(), "nginx is not installed");
    check(&alone, &beside);
}

/// A Python app that handles SIGTERM and exits with 5.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 11
#[test]
fn a_python_app_is_beside_us_what_it_is_alone() {
    let alone = need!(App::python(), "python3 is not installed");
    let beside = need!(App::python(), "python3 is not installed");
    check(&alone, &beside);
}

/// A Node server that closes on SIGTERM and exits with 6.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 11
#[test]
fn a_node_server_is_beside_us_what_it_is_alone() {
    let alone = need!(App::node(), "node is not installed");
    let beside = need!(App::node(), "node is not installed");
    check(&alone, &beside);
}

/// A Java server in source-file mode, whose virtual machine turns SIGTERM into 143.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 11
#[test]
fn a_java_server_is_beside_us_what_it_is_alone() {
    let alone = need!(App::java(), "java is not installed");
    let beside = need!(App::java(), "java is not installed");
    check(&alone, &beside);
}
