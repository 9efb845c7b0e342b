//! `outrigger detect` and `outrigger init` with real apps: Python, nginx, Node, an endpoint of the Prometheus client, and hostile
//! servers. In: apps. Out: a configuration that `outrigger validate` accepts unchanged and with all its examples enabled, that
//! reports what it found, and has no secret. Bounded by the time limit of each detection.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::outrigger::{binary, outrigger};
use crate::harness::process::{Running, Signal, is_alive, run_to_end};
use crate::harness::{PATIENCE, SECOND, Scene, fixture, get, python, until, workspace};

const SECRET: &str = "hunter2-never-shown";

/// The time of all probes together, with a margin for a loaded machine.
const DETECT_MAX: Duration = Duration::from_secs(10);

/// The output of `detect`, with the checks that apply to every output.
struct Proposal {
    text: String,
    stderr: String,
}

impl Proposal {
    #[track_caller]
    fn of(scene: &Scene, arguments: &[&str]) -> Self {
        let began = Instant::now();
        let mut command = Command::new(binary());
        command.arg("detect").args(arguments).current_dir(scene.path("."));
        command.env("E2E_DETECT_TOKEN", SECRET).env("PORT", scene.value("port"));
        let mut running = Running::spawn(command);
        let code = running.wait(PATIENCE);
        let proposal = Self { text: running.stdout.text(), stderr: running.stderr.text() };
        assert_eq!(code, 0, "{}", proposal.stderr);
        assert!(began.elapsed() < DETECT_MAX, "it took {:?}", began.elapsed());
        proposal.assert_sound(scene);
        proposal
    }

    /// Valid, also with every example enabled; each conclusion has its evidence; no secret in it.
    #[track_caller]
    fn assert_sound(&self, scene: &Scene) {
        let text = &self.text;
        assert!(!text.contains(SECRET), "{text}");
        assert_valid(scene, text);
        let enabled = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !is_prose(line) => rest.to_owned(),
            _ => line.to_owned(),
        };
        let with_examples: Vec<String> = text.lines().map(enabled).collect();
        assert_valid(scene, &with_examples.join("\n"));
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| is_active(line) && !line.ends_with(':')) {
            let above = lines[..number].iter().rev().take_while(|above| above.trim_start().starts_with('#'));
            let evidence = above.filter(|above| above.contains("# evidence: ")).count();
            assert!(evidence > 0, "{line} has no evidence in:\n{text}");
        }
    }

    #[track_caller]
    fn assert_has(&self, line: &str) {
        let found = self.active_lines().any(|known| known.trim() == line);
        assert!(found, "`{line}` in:\n{}", self.text);
    }

    /// Above an active line, or anywhere in the comments.
    #[track_caller]
    fn assert_reports(&self, parts: &[&str]) {
        let found = self.text.lines().any(|line| is_prose(line) && parts.iter().all(|part| line.contains(part)));
        assert!(found, "a comment with {parts:?} in:\n{}", self.text);
    }

    fn active_lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| is_active(line))
    }
}

fn is_active(line: &str) -> bool {
    !line.trim().is_empty() && !line.trim_start().starts_with('#')
}

/// Prose has a single space after the `#`; an example has none, or the spaces of its indentation.
fn is_prose(line: &str) -> bool {
    let Some(rest) = line.trim_start().strip_prefix('#') else { return false };
    rest.starts_with(' ') && !rest.starts_with("  ")
}

#[track_caller]
fn assert_valid(scene: &Scene, text: &str) {
    let path = scene.write("proposal.yaml", text).display().to_string();
    let (code, _, stderr) = outrigger(&["validate", "-c", &path]);
    assert_eq!(code, 0, "{stderr}\n{text}");
}

/// Starts an app with a secret and its port in its environment, and waits until it responds.
#[track_caller]
fn start(scene: &Scene, command: &[String]) -> Running {
    let mut built = Command::new(&command[0]);
    built.args(&command[1..]).env("E2E_DETECT_TOKEN", SECRET).env("PORT", scene.value("port"));
    built.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://me:{SECRET}@otel:4317/{SECRET}?key={SECRET}"));
    let running = Running::spawn(built);
    let address = format!("127.0.0.1:{}", scene.value("port"));
    until(PATIENCE, "the app serves", || get(&address, "/health").is_ok());
    running
}

fn texts(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

fn python_app(scene: &Scene) -> Option<Vec<String>> {
    let (port, log) = (scene.port("port").to_string(), scene.text_path("app.log"));
    Some(texts(&[&python()?, &fixture("app.py"), "--port", &port, "--log", &log, "--lines", "50"]))
}

/// Port, /metrics endpoint, log file, runtime and hints of a running process; no other value of its environment.
#[test]
fn a_running_python_app_is_detected() {
    let scene = Scene::new();
    let command = need!(python_app(&scene), "python3 is not installed");
    let app = start(&scene, &command);
    let (port, log) = (scene.value("port"), scene.text_path("app.log"));
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has(&format!("app: {{ scrape: {{ url: \"http://127.0.0.1:{port}/metrics\" }} }}"));
    proposal.assert_has(&format!("files: {{ file: {{ include: [\"{log}\"] }} }}"));
    proposal.assert_reports(&["Python", "app.py", &format!("pid {}", app.pid())]);
    proposal.assert_reports(&["evidence", "Server: BaseHTTP", &format!("PORT={port}")]);
    proposal.assert_reports(&["OTEL_EXPORTER_OTLP_ENDPOINT=http://otel:4317"]);
    assert!(!proposal.text.contains("stdio") && !proposal.text.contains("process: {"), "{}", proposal.text);
    app.stop();
}

/// The same app as a command: it is started, its output is forwarded, it is probed until nothing is new, and it is stopped.
#[test]
fn a_command_is_started_probed_and_stopped() {
    let scene = Scene::new();
    let command = need!(python_app(&scene), "python3 is not installed");
    let (port, log) = (scene.value("port"), scene.text_path("app.log"));
    let mut arguments = vec!["--"];
    arguments.extend(command.iter().map(String::as_str));
    let proposal = Proposal::of(&scene, &arguments);
    let quoted: Vec<String> = command.iter().map(|part| format!("{part:?}")).collect();
    proposal.assert_has(&format!("command: [{}]", quoted.join(", ")));
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has("app: { stdio: {} }");
    proposal.assert_has(&format!("files: {{ file: {{ include: [\"{log}\"] }} }}"));
    proposal.assert_has(&format!("app: {{ scrape: {{ url: \"http://127.0.0.1:{port}/metrics\" }} }}"));
    proposal.assert_has("process: { process: {} }");
    let output: String = (0..50).map(|number| format!("app n={number:06}\n")).collect();
    assert!(proposal.stderr.contains(&output), "its output is forwarded unchanged:\n{}", proposal.stderr);
    assert!(proposal.stderr.contains("app stopping after"), "it got SIGTERM:\n{}", proposal.stderr);
    assert!(get(&format!("127.0.0.1:{port}"), "/health").is_err(), "it has exited");
}

/// Python's own file server: HTTP without a /metrics endpoint, so its port is not scraped.
#[test]
fn a_server_without_metrics_is_not_scraped() {
    let scene = Scene::new();
    let port = scene.port("port").to_string();
    let python = need!(python(), "python3 is not installed");
    let directory = scene.path("empty");
    std::fs::create_dir(&directory).expect("a directory");
    let directory = directory.display().to_string();
    let command = [&python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", &directory, &port];
    let app = start(&scene, &texts(&command));
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_reports(&["Server: SimpleHTTP", "status 404"]);
    proposal.assert_reports(&["Python", "runs http.server"]);
    assert!(proposal.active_lines().all(|line| !line.contains("scrape")), "{}", proposal.text);
    app.stop();
}

/// The official Prometheus client on a separate port next to the app's port, on all addresses.
#[test]
fn prometheus_client_is_scraped_on_its_own_port() {
    const APP: &str = r#"
import http.server, prometheus_client, sys
prometheus_client.start_http_server(int(sys.argv[2]))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"#;
    let python = workspace().join("target/peers/venv/bin/python3").display().to_string();
    let found = Command::new(&python).args(["-c", "import prometheus_client"]).stderr(Stdio::null()).status();
    need!(found.ok().filter(|status| status.success()), "prometheus-client is not installed");
    let scene = Scene::new();
    let (port, page) = (scene.port("port").to_string(), scene.port("page").to_string());
    let app = start(&scene, &texts(&[&python, "-c", APP, &port, &page]));
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has(&format!("app-{page}: {{ scrape: {{ url: \"http://127.0.0.1:{page}/metrics\" }} }}"));
    assert_eq!(proposal.active_lines().filter(|line| line.contains("scrape")).count(), 1, "{}", proposal.text);
    app.stop();
}

/// nginx: a master and workers, its access log in the combined format, for which there is no stage today.
#[test]
fn nginx_access_log_is_found_and_gets_no_stage() {
    let scene = Scene::new();
    let nginx = need_peer!("nginx");
    let (port, log) = (scene.port("port"), scene.text_path("access.log"));
    scene.set("log", &log);
    let template = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture exists");
    let config =
        scene.fill(&template).replace(&format!("access_log {log} line;"), &format!("access_log {log} combined;"));
    assert!(config.contains("combined;"), "the fixture has an access log:\n{config}");
    let config = scene.write("nginx.conf", config).display().to_string();
    let app = start(&scene, &texts(&[&nginx, "-e", "stderr", "-c", &config]));
    for number in 0..5 {
        get(&format!("127.0.0.1:{port}"), &format!("/{number}")).expect("nginx responds");
    }
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_reports(&["Server: nginx"]);
    proposal.assert_reports(&["evidence", &log, "the combined log format in"]);
    proposal.assert_reports(&["no stage parses access logs yet"]);
    assert!(proposal.active_lines().all(|line| !line.contains("parse")), "{}", proposal.text);
    app.stop();
}

/// Node as a command, with JSON lines on its output and in its file, and a stack trace next to them.
#[test]
fn json_lines_of_node_get_the_json_stage() {
    const APP: &str = r#"
const fs = require("node:fs"), http = require("node:http");
const log = fs.openSync(process.argv[2], "a");
for (let n = 0; n < 40; n++) {
  console.log(JSON.stringify({ level: "info", n, text: "a } \" b" }));
  fs.writeSync(log, JSON.stringify({ level: "info", n }) + "\n");
}
http.createServer((request, response) => response.end("hello\n")).listen(Number(process.argv[3]), "127.0.0.1");
"#;
    let scene = Scene::new();
    let node = need_peer!("node");
    let port = scene.port("port").to_string();
    let script = scene.write("orders.js", APP).display().to_string();
    let log = scene.text_path("orders.log");
    let proposal = Proposal::of(&scene, &["--timeout", "10s", "--", &node, &script, &log, &port]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has("app: { stdio: {}, stages: [ { parse: { json: {} } } ] }");
    let file = format!("json-files: {{ file: {{ include: [\"{log}\"] }}, stages: [ {{ parse: {{ json: {{}} }} }} ] }}");
    proposal.assert_has(&file);
    proposal.assert_reports(&["Node", "orders.js"]);
    proposal.assert_reports(&[&log, "JSON in 40 of 40 lines"]);
}

/// One process with servers that send nothing, an endless head, an endless body, and single bytes slowly.
const HOSTILE: &str = r#"
import socket, sys, threading, time

def endless(first, block, pause):
    def talk(connection):
        try:
            connection.sendall(first)
            while True:
                connection.sendall(block)
                time.sleep(pause)
        except OSError:
            pass
    return talk

head = b"HTTP/1.1 200 OK\r\n"
talks = [
    lambda connection: time.sleep(600),
    endless(head, b"X-Filler: " + b"a" * 1000 + b"\r\n", 0),
    endless(head + b"Content-Type: text/plain; version=0.0.4\r\n\r\n", b"endless_total 1\n" * 100, 0),
    endless(head, b"X", 0.05),
    endless(b"\0\xff" * 50, b"\n", 0.05),
]
for port, talk in zip(sys.argv[1:], talks):
    listener = socket.create_server(("127.0.0.1", int(port)))
    def serve(listener=listener, talk=talk):
        while True:
            threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
print("listening", flush=True)
time.sleep(600)
"#;

#[test]
fn hostile_and_silent_servers_do_not_block_it() {
    let scene = Scene::new();
    let python = need!(python(), "python3 is not installed");
    let ports = ["port", "head", "body", "drip", "noise"].map(|name| scene.port(name).to_string());
    let command: Vec<&str> =
        [python.as_str(), "-c", HOSTILE].into_iter().chain(ports.iter().map(String::as_str)).collect();
    let app = Running::start(&command);
    until(PATIENCE, "all of them listen", || app.stdout.contains("listening"));
    let began = Instant::now();
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    assert!(began.elapsed() < 8 * SECOND, "it took {:?}", began.elapsed());
    let [mute, head, body, drip, noise] = &ports;
    for port in [mute, head, drip] {
        proposal.assert_reports(&[&format!("listens on port {port} "), "no complete response to GET"]);
    }
    proposal.assert_reports(&[&format!("listens on port {noise} "), "something that is not HTTP"]);
    // What arrived within the limit is a /metrics response.
    proposal.assert_reports(&[&format!("http://127.0.0.1:{body}/metrics"), "returned 200"]);
    app.stop();
}

/// In a separate network namespace: everything that listens there, as a companion sees it.
#[test]
fn without_a_process_the_namespace_is_scanned() {
    const NETWORK: &str = r#"
import fcntl, socket, struct, subprocess, sys
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))
app = subprocess.Popen([sys.executable, *sys.argv[2:]], stdout=subprocess.DEVNULL)
import time, urllib.request
for _ in range(400):
    try:
        urllib.request.urlopen("http://127.0.0.1:" + sys.argv[4] + "/health").read()
        break
    except OSError:
        time.sleep(0.05)
try:
    sys.exit(subprocess.run([sys.argv[1], "detect"], stdin=subprocess.DEVNULL).returncode)
finally:
    app.kill()
"#;
    let scene = Scene::new();
    let command = need!(python_app(&scene), "python3 is not installed");
    let can = Command::new("unshare").args(["-rn", "true"]).stderr(Stdio::null()).status();
    need!(can.ok().filter(|status| status.success()), "a network namespace cannot be created here");
    let program = binary();
    let mut outer = vec!["unshare", "-rn", &command[0], "-c", NETWORK, &program];
    outer.extend(command[1..].iter().map(String::as_str));
    let (code, text, stderr) = run_to_end(&outer, PATIENCE);
    assert_eq!(code, 0, "{stderr}");
    let proposal = Proposal { text, stderr };
    proposal.assert_sound(&scene);
    let port = scene.value("port");
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has(&format!("app: {{ scrape: {{ url: \"http://127.0.0.1:{port}/metrics\" }} }}"));
    assert_eq!(proposal.text.matches("listens on port").count(), 2, "one port, reported twice:\n{}", proposal.text);
}

/// `init` writes what `detect` prints, leaves an existing file unchanged, and replaces it with `--force`.
#[test]
fn init_overwrites_a_file_only_with_force() {
    let scene = Scene::new();
    let program = binary();
    let directory = scene.path(".").display().to_string();
    let init = |arguments: &str| {
        let line = format!("cd '{directory}' && exec '{program}' init {arguments}");
        run_to_end(&["sh", "-c", &line], PATIENCE)
    };
    let (code, stdout, stderr) = init("--timeout 1s -- sh -c 'echo hello; exec sleep 60'");
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    let written = std::fs::read_to_string(scene.path("outrigger.yaml")).expect("the default name");
    assert!(written.contains("command: [\"sh\", \"-c\", \"echo hello; exec sleep 60\"]"), "{written}");
    assert_valid(&scene, &written);
    scene.write("outrigger.yaml", "mine");
    let (code, _, stderr) = init("--timeout 1s -- touch started");
    assert_eq!(code, 1);
    assert!(stderr.contains("outrigger.yaml already exists") && stderr.contains("--force"), "{stderr}");
    assert!(!scene.path("started").exists(), "no command was started for it");
    assert_eq!(std::fs::read_to_string(scene.path("outrigger.yaml")).expect("the file exists"), "mine");
    let (code, _, stderr) = init("--force --timeout 1s -- true");
    assert_eq!(code, 0, "{stderr}");
    assert!(
        std::fs::read_to_string(scene.path("outrigger.yaml")).expect("the file exists").contains("command: [\"true\"]")
    );
    let (code, _, stderr) = init("-o other.yaml --pid 1999999999");
    assert_eq!((code, scene.path("other.yaml").exists()), (1, false), "{stderr}");
}

/// A command that cannot be started is reported as by a shell; arguments with secrets become placeholders.
#[test]
fn failing_commands_and_secret_arguments() {
    let (code, stdout, stderr) = outrigger(&["detect", "--", "./nothing"]);
    assert_eq!((code, stdout.as_str()), (127, ""));
    assert!(stderr.contains("outrigger: ./nothing: command not found"), "{stderr}");
    assert_eq!(outrigger(&["detect", "--", "/etc/hostname"]).0, 126);
    let (code, _, stderr) = outrigger(&["detect", "--pid", "1999999999"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("no process 1999999999"), "{stderr}");
    let scene = Scene::new();
    scene.port("port");
    let url = format!("http://me:{SECRET}@127.0.0.1:1/");
    let proposal = Proposal::of(&scene, &["--timeout", "1s", "--", "true", "--api-token", SECRET, &url, "${HOME}"]);
    proposal.assert_has(
        "command: [\"true\", \"--api-token\", \"${API_TOKEN:-unset}\", \"${ARGUMENT_4:-unset}\", \"$${HOME}\"]",
    );
    proposal.assert_reports(&["the command exited with code 0"]);
}

/// An app that ignores SIGTERM is killed, and so are processes that left its session and group.
#[test]
fn a_command_leaves_no_process_running() {
    let scene = Scene::new();
    scene.port("port");
    scene.write("stubborn.sh", "trap '' TERM\necho $$ > \"$1\"\nwhile :; do sleep 0.1; done\n");
    let line = "setsid sh stubborn.sh away & sh stubborn.sh here & exec sh stubborn.sh root";
    let mut command = Command::new(binary());
    command.args(["detect", "--timeout", "1s", "--", "sh", "-c", line]).current_dir(scene.path("."));
    let mut running = Running::spawn(command);
    assert_eq!(running.wait(PATIENCE), 0, "{}", running.stderr.text());
    for name in ["away", "here", "root"] {
        let pid = std::fs::read_to_string(scene.path(name)).expect("it wrote its id");
        let pid: u32 = pid.trim().parse().expect("a number");
        until(PATIENCE, "its exit", || !is_alive(pid));
    }
}

/// Ctrl-C stops the detection and the app.
#[test]
fn an_interrupt_stops_the_app_too() {
    let scene = Scene::new();
    let mut command = Command::new(binary());
    let line = "echo $$ > pid; exec sleep 60";
    command.args(["detect", "--timeout", "30s", "--", "sh", "-c", line]).current_dir(scene.path("."));
    let mut running = Running::spawn(command);
    let mut app = None;
    until(PATIENCE, "the app's id", || {
        let text = std::fs::read_to_string(scene.path("pid")).unwrap_or_default();
        app = text.trim().parse().ok();
        app.is_some()
    });
    running.signal(Signal::INT);
    assert_eq!(running.wait(PATIENCE), 130);
    assert_eq!(running.stdout.text(), "", "an interrupted detection prints nothing");
    until(PATIENCE, "the app's exit", || app.is_some_and(|pid| !is_alive(pid)));
}
