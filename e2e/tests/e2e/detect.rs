//! `outrigger detect` and `outrigger init` beside real apps: Python, nginx, Node, a page of the Prometheus client, and servers
//! that mean harm. Apps come in; out goes a configuration that `outrigger validate` accepts as it stands and with all its
//! examples switched on, says what is there, and holds no secret. Bounded by the time that each look may take.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::outrigger::{binary, outrigger};
use crate::harness::process::{Running, Signal, is_alive, run_to_end};
use crate::harness::{PATIENCE, SECOND, Scene, fixture, get, python, until, workspace};

const SECRET: &str = "hunter2-never-shown";

/// Every probe's time together, and some for a loaded machine.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What `detect` printed, checked for what holds for every answer.
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
        assert!(began.elapsed() < LOOK_MAX, "it took {:?}", began.elapsed());
        proposal.assert_sound(scene);
        proposal
    }

    /// Valid, also with every example in force; each conclusion has its evidence; nothing secret in it.
    #[track_caller]
    fn assert_sound(&self, scene: &Scene) {
        let text = &self.text;
        assert!(!text.contains(SECRET), "{text}");
        assert_valid(scene, text);
        let switched_on = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !is_prose(line) => rest.to_owned(),
            _ => line.to_owned(),
        };
        let with_examples: Vec<String> = text.lines().map(switched_on).collect();
        assert_valid(scene, &with_examples.join("\n"));
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| is_in_force(line) && !line.ends_with(':')) {
            let above = lines[..number].iter().rev().take_while(|above| above.trim_start().starts_with('#'));
            let reports = above.filter(|above| above.contains("# evidence: ")).count();
            assert!(reports > 0, "{line} has no evidence in:\n{text}");
        }
    }

    #[track_caller]
    fn assert_has(&self, line: &str) {
        let found = self.in_force().any(|known| known.trim() == line);
        assert!(found, "`{line}` in:\n{}", self.text);
    }

    /// Above a line in force, or anywhere in the comments.
    #[track_caller]
    fn assert_reports(&self, parts: &[&str]) {
        let found = self.text.lines().any(|line| is_prose(line) && parts.iter().all(|part| line.contains(part)));
        assert!(found, "a comment with {parts:?} in:\n{}", self.text);
    }

    fn in_force(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| is_in_force(line))
    }
}

fn is_in_force(line: &str) -> bool {
    !line.trim().is_empty() && !line.trim_start().starts_with('#')
}

/// Text for people: an example has no single space behind its sign, but none or the spaces of its place.
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

/// An app of a test, with a secret and its port in its environment, that answers already.
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

/// Port, page of metrics, log file, runtime and hints of a process that runs; no value of its environment but these.
/// covers: attachment 5
#[test]
fn a_running_python_app_is_found_with_its_port_page_and_log() {
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

/// The same app as a command: it is started, its output passed on, looked at until nothing is new, and stopped.
/// covers: attachment 5
#[test]
fn a_command_is_started_looked_at_and_stopped() {
    let scene = Scene::new();
    let command = need!(python_app(&scene), "python3 is not installed");
    let (port, log) = (scene.value("port"), scene.text_path("app.log"));
    let mut arguments = vec!["--"];
    arguments.extend(command.iter().map(String::as_str));
    let proposal = Proposal::of(&scene, &arguments);
    let cells: Vec<String> = command.iter().map(|part| format!("{part:?}")).collect();
    proposal.assert_has(&format!("command: [{}]", cells.join(", ")));
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has("app: { stdio: {} }");
    proposal.assert_has(&format!("files: {{ file: {{ include: [\"{log}\"] }} }}"));
    proposal.assert_has(&format!("app: {{ scrape: {{ url: \"http://127.0.0.1:{port}/metrics\" }} }}"));
    proposal.assert_has("process: { process: {} }");
    let output: String = (0..50).map(|number| format!("app n={number:06}\n")).collect();
    assert!(proposal.stderr.contains(&output), "its output is passed on as it was:\n{}", proposal.stderr);
    assert!(proposal.stderr.contains("app stopping after"), "it got SIGTERM:\n{}", proposal.stderr);
    assert!(get(&format!("127.0.0.1:{port}"), "/health").is_err(), "it is gone");
}

/// Python's own file server: HTTP without a page of metrics, and nothing of its port is scraped.
/// covers: attachment 5
#[test]
fn a_server_without_metrics_is_a_port_and_no_scrape() {
    let scene = Scene::new();
    let port = scene.port("port").to_string();
    let python = need!(python(), "python3 is not installed");
    let folder = scene.path("empty");
    std::fs::create_dir(&folder).expect("a folder");
    let folder = folder.display().to_string();
    let command = [&python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", &folder, &port];
    let app = start(&scene, &texts(&command));
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_reports(&["Server: SimpleHTTP", "status 404"]);
    proposal.assert_reports(&["Python", "runs http.server"]);
    assert!(proposal.in_force().all(|line| !line.contains("scrape")), "{}", proposal.text);
    app.stop();
}

/// The official Prometheus client on a port of its own beside the app's port, on all addresses.
/// covers: attachment 5
#[test]
fn a_page_of_the_prometheus_client_is_scraped_on_its_own_port() {
    const APP: &str = r#"
import http.server, prometheus_client, sys
prometheus_client.start_http_server(int(sys.argv[2]))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"#;
    let python = workspace().join("target/peers/venv/bin/python3").display().to_string();
    let asked = Command::new(&python).args(["-c", "import prometheus_client"]).stderr(Stdio::null()).status();
    need!(asked.ok().filter(|status| status.success()), "prometheus-client is not installed");
    let scene = Scene::new();
    let (port, page) = (scene.port("port").to_string(), scene.port("page").to_string());
    let app = start(&scene, &texts(&[&python, "-c", APP, &port, &page]));
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_has(&format!("app-{page}: {{ scrape: {{ url: \"http://127.0.0.1:{page}/metrics\" }} }}"));
    assert_eq!(proposal.in_force().filter(|line| line.contains("scrape")).count(), 1, "{}", proposal.text);
    app.stop();
}

/// nginx: a master and workers, its access log in the combined format, for which there is no stage today.
/// covers: attachment 5
#[test]
fn nginx_is_found_with_its_access_log_and_no_stage_is_invented_for_it() {
    let scene = Scene::new();
    let nginx = need_peer!("nginx");
    let (port, log) = (scene.port("port"), scene.text_path("access.log"));
    scene.set("log", &log);
    let template = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture is there");
    let config =
        scene.fill(&template).replace(&format!("access_log {log} line;"), &format!("access_log {log} combined;"));
    assert!(config.contains("combined;"), "the fixture has an access log:\n{config}");
    let config = scene.write("nginx.conf", config).display().to_string();
    let app = start(&scene, &texts(&[&nginx, "-e", "stderr", "-c", &config]));
    for number in 0..5 {
        get(&format!("127.0.0.1:{port}"), &format!("/{number}")).expect("nginx answers");
    }
    let proposal = Proposal::of(&scene, &["--pid", &app.pid().to_string()]);
    proposal.assert_has(&format!("port: {port}"));
    proposal.assert_reports(&["Server: nginx"]);
    proposal.assert_reports(&["evidence", &log, "the combined log format in"]);
    proposal.assert_reports(&["no stage reads access logs yet"]);
    assert!(proposal.in_force().all(|line| !line.contains("parse")), "{}", proposal.text);
    app.stop();
}

/// Node as a command, with lines of JSON on its output and in its file, and a stack trace beside them.
/// covers: attachment 5
#[test]
fn json_lines_of_node_get_the_stage_that_reads_them() {
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

/// One process with servers that say nothing, never end their head, never end their body, and drip.
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

/// covers: attachment 5
#[test]
fn hostile_and_silent_servers_do_not_hold_it_up() {
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
        proposal.assert_reports(&[&format!("listens on port {port} "), "it gave no whole answer to GET"]);
    }
    proposal.assert_reports(&[&format!("listens on port {noise} "), "something that is not HTTP"]);
    // What came of it within the bound was a page.
    proposal.assert_reports(&[&format!("http://127.0.0.1:{body}/metrics"), "answered 200"]);
    app.stop();
}

/// Alone in a network of its own: everything that listens there, as a companion sees it.
/// covers: attachment 5
#[test]
fn without_a_process_the_network_namespace_is_looked_at() {
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
    need!(can.ok().filter(|status| status.success()), "a network namespace of its own cannot be had here");
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
    assert_eq!(proposal.text.matches("listens on port").count(), 2, "one port, told twice:\n{}", proposal.text);
}

/// `init` writes what `detect` prints, leaves a file that is there alone, and replaces it by force.
/// covers: attachment 5
#[test]
fn init_writes_a_valid_file_and_replaces_nothing_unasked() {
    let scene = Scene::new();
    let program = binary();
    let place = scene.path(".").display().to_string();
    let init = |arguments: &str| {
        let line = format!("cd '{place}' && exec '{program}' init {arguments}");
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
    assert!(stderr.contains("outrigger.yaml is there already") && stderr.contains("--force"), "{stderr}");
    assert!(!scene.path("started").exists(), "nothing was started for it");
    assert_eq!(std::fs::read_to_string(scene.path("outrigger.yaml")).expect("it is there"), "mine");
    let (code, _, stderr) = init("--force --timeout 1s -- true");
    assert_eq!(code, 0, "{stderr}");
    assert!(
        std::fs::read_to_string(scene.path("outrigger.yaml")).expect("it is there").contains("command: [\"true\"]")
    );
    let (code, _, stderr) = init("-o other.yaml --pid 1999999999");
    assert_eq!((code, scene.path("other.yaml").exists()), (1, false), "{stderr}");
}

/// What cannot be started is said as a shell says it; arguments that hold secrets become placeholders.
/// covers: attachment 5
#[test]
fn commands_that_fail_and_arguments_that_are_secret() {
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
    proposal.assert_reports(&["the command ended with code 0"]);
}

/// An app that does not listen to SIGTERM is killed, and so is what has left its session and group.
/// covers: attachment 5
#[test]
fn nothing_of_a_command_is_left_running() {
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
        until(PATIENCE, "its end", || !is_alive(pid));
    }
}

/// Ctrl-C ends the look and the app with it.
/// covers: attachment 5
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
    assert_eq!(running.stdout.text(), "", "half a look is no answer");
    until(PATIENCE, "the app's end", || app.is_some_and(|pid| !is_alive(pid)));
}
