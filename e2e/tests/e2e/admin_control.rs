//! How a user, a probe and a script control a running process: wait for it, probe it, stop it, upgrade it; and who may. In: the
//! product's own commands and raw requests. Out: compared exit codes and responses. Bounded by the harness's timeouts.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use crate::harness::outrigger::{binary, configuration, outrigger};
use crate::harness::process::{Running, Signal, is_alive, run_to_end, send_signal};
use crate::harness::wire::Reply;
use crate::harness::{Outrigger, PATIENCE, SECOND, Scene, Wait, Wire, python, until};

/// An app that accepts connections on its port once the file `go` exists, and every listener of Outrigger.
const LISTENERS: &str = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
admin: { listen: "127.0.0.1:@admin@", socket: "@dir@/run/admin.sock", probes_listen: "127.0.0.1:@probes@" }
"#;

fn scene_with_ports() -> Scene {
    let scene = Scene::new();
    for name in ["port", "front", "probes"] {
        scene.port(name);
    }
    scene
}

/// A server that starts once the file `go` exists.
fn late_server(scene: &Scene, python: &str) -> String {
    let (go, port) = (scene.text_path("go"), scene.value("port"));
    format!("while [ ! -e '{go}' ]; do sleep 0.05; done; exec '{python}' -m http.server --bind 127.0.0.1 {port}")
}

fn post(socket: &Path, path: &str, headers: &str, body: &str) -> Reply {
    let stream = UnixStream::connect(socket).expect("the socket accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let mut wire = Wire::new(stream);
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: outrigger\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    wire.send(head).expect("a request can be sent");
    wire.reply("POST").expect("the socket responds")
}

/// A GET over TCP with the given headers, including Host.
fn get_with(address: &str, path: &str, headers: &str) -> u16 {
    let mut wire = Wire::connect(address).expect("the listener accepts connections");
    wire.send(format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")).expect("a request can be sent");
    wire.reply("GET").expect("the listener responds").status
}

/// `outrigger wait` distinguishes started from ready, over the socket and the probes listener, and times out with the reason.
#[test]
fn wait_succeeds_or_times_out_with_the_reason() {
    let python = need!(python(), "python3 is not installed");
    let scene = scene_with_ports();
    let server = late_server(&scene, &python);
    let running = Outrigger::start_and(&scene, LISTENERS, &["sh", "-c", &server], Wait::Started);
    let (socket, config) = (scene.text_path("run/admin.sock"), scene.text_path("outrigger.yaml"));
    let url = format!("http://127.0.0.1:{}", scene.value("probes"));
    let ways = [["--socket", &socket], ["-c", &config], ["--url", &url]];
    for way in ways {
        let (code, _, stderr) = outrigger(&["wait", "--for", "started", way[0], way[1]]);
        assert_eq!(code, 0, "{way:?}: {stderr}");
        let (code, _, stderr) = outrigger(&["wait", "--for", "ready", "--timeout", "300ms", way[0], way[1]]);
        assert!(code == 1 && stderr.contains("not ready within 300ms: not ready: app"), "{way:?}: {code} {stderr}");
    }
    scene.write("go", "");
    for way in ways {
        let (code, _, stderr) = outrigger(&["wait", "--for", "ready", "--timeout", "20s", way[0], way[1]]);
        assert_eq!(code, 0, "{way:?}: {stderr}");
    }
    running.finish();
}

/// A program that starts before Outrigger waits until Outrigger is up; `wait` then execs it in the same process.
#[test]
fn wait_before_the_start_execs_the_command() {
    let scene = scene_with_ports();
    let (binary, socket) = (binary(), scene.text_path("run/admin.sock"));
    let wait = ["wait", "--for", "started", "--timeout", "20s", "--socket", &socket];
    let command: Vec<&str> = [binary.as_str()].into_iter().chain(wait).collect();
    let shell = ["--", "sh", "-c", "echo became $$; exit 7"];
    let mut waiting = Running::start(&[&command[..], &shell].concat());
    let pid = waiting.pid();
    assert!(waiting.ended().is_none(), "Outrigger is not running yet");
    let body = LISTENERS.replace("port: @port@, ", "");
    let body = body.lines().filter(|line| !line.starts_with("proxy:")).collect::<Vec<_>>().join("\n");
    let running = Outrigger::start_and(&scene, &body, &["sleep", "300"], Wait::Started);
    assert_eq!(waiting.wait(PATIENCE), 7, "the exit code of the command");
    assert_eq!(waiting.stdout.text(), format!("became {pid}\n"), "in the same process");
    let (code, _, stderr) = run_to_end(&[&command[..], &["--", "./no-such-program"]].concat(), PATIENCE);
    assert_eq!((code, stderr.as_str()), (127, "outrigger: ./no-such-program: command not found\n"));
    running.finish();
    let late = ["wait", "--timeout", "200ms", "--socket", &socket, "--", "echo", "became"];
    let (code, stdout, stderr) = outrigger(&late);
    assert!(code == 1 && stdout.is_empty() && stderr.contains(&socket), "{code} {stdout} {stderr}");
}

/// `outrigger probe` needs neither HTTP nor a shell; with a hung worker it fails in time.
#[test]
fn probe_succeeds_or_fails_in_time() {
    let scene = scene_with_ports();
    let running = Outrigger::start_and(&scene, LISTENERS, &["sleep", "300"], Wait::Started);
    let socket = scene.text_path("run/admin.sock");
    let probe = |which: &str| {
        let began = Instant::now();
        let (code, stdout, stderr) = outrigger(&["probe", which, "--socket", &socket]);
        assert!(began.elapsed() < 3 * SECOND && stdout.is_empty(), "{which}: {:?} {stdout}", began.elapsed());
        (code, stderr)
    };
    assert_eq!(probe("started"), (0, String::new()));
    assert_eq!(probe("live"), (0, String::new()));
    let (code, reason) = probe("ready");
    assert!(code == 1 && reason.starts_with("not ready: ") && reason.contains("app"), "{code} {reason}");
    let worker = running.worker();
    send_signal(worker, Signal::STOP);
    let (code, reason) = probe("live");
    send_signal(worker, Signal::CONT);
    assert!(code == 1 && reason.contains("no response within 1s"), "{code} {reason}");
    until(PATIENCE, "the worker responds again", || probe("live").0 == 0);
    running.finish();
    let (code, reason) = probe("live");
    assert!(code == 1 && reason.contains(&socket), "{code} {reason}");
}

/// `outrigger stop` runs the stop sequence in both modes, and returns when everything has stopped.
#[test]
fn stop_runs_the_stop_sequence_and_waits_for_it() {
    let app = ["sh", "-c", "trap 'exit 5' TERM; echo up; sleep 300 & wait"];
    for (command, expect) in [(&app[..], 5), (&[], 0)] {
        let scene = scene_with_ports();
        let running = Outrigger::start_and(&scene, LISTENERS, command, Wait::Started);
        until(PATIENCE, "the app runs", || command.is_empty() || running.stdout.contains("up"));
        let socket = scene.text_path("run/admin.sock");
        let (code, stdout, stderr) = outrigger(&["stop", "--timeout", "5s", "--socket", &socket]);
        assert_eq!((code, stdout.as_str()), (0, "stopped\n"), "{command:?}: {stderr}");
        assert_eq!(running.wait(2 * SECOND).code, expect, "{command:?}: Outrigger exits with the app's code");
        let (code, _, stderr) = outrigger(&["stop", "--socket", &socket]);
        assert!(code == 1 && stderr.contains(&socket) && stderr.contains("help:"), "{code} {stderr}");
    }
}

/// An upgrade to a missing binary changes nothing and reports the error.
#[test]
fn upgrade_to_a_missing_binary_changes_nothing() {
    let scene = scene_with_ports();
    let running = Outrigger::start_and(&scene, LISTENERS, &["sleep", "300"], Wait::Started);
    let (worker, app) = (running.worker(), running.app());
    let (socket, missing) = (scene.text_path("run/admin.sock"), scene.text_path("no-such-binary"));
    let (code, stdout, stderr) = outrigger(&["upgrade", "--binary", &missing, "--socket", &socket]);
    assert!(code == 1 && stdout.is_empty() && stderr.contains(&missing), "{code} {stdout} {stderr}");
    assert_eq!(post(&scene.path("run/admin.sock"), "/upgrade", "", "relative/path").status, 400);
    assert!(is_alive(worker) && is_alive(app));
    assert_eq!((running.find_worker(), running.status_of("/live")), (Some(worker), 200));
    running.finish();
}

/// With a token, access to the socket file is not enough for a change, and the token is never shown.
/// Guarantee: changes-only-by-socket
#[test]
fn a_change_requires_the_configured_token() {
    let scene = scene_with_ports();
    let token = "open-sesame-73";
    scene.write("token", format!("{token}\n"));
    scene.write("wrong", "close-sesame-73\n");
    let body = LISTENERS.replace("probes_listen:", "token: \"${file:@dir@/token}\", probes_listen:");
    let running = Outrigger::start_and(&scene, &body, &["sleep", "300"], Wait::Started);
    let (socket, socket_text) = (scene.path("run/admin.sock"), scene.text_path("run/admin.sock"));
    let worker = running.worker();
    for path in ["/reload", "/log-level", "/upgrade", "/stop", "/quitquitquit"] {
        for header in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic open-sesame-73\r\n"] {
            let reply = post(&socket, path, header, "");
            assert_eq!(reply.status, 401, "{path} {header}");
            assert!(reply.text().contains("admin.token") && !reply.text().contains(token), "{}", reply.text());
        }
    }
    let header = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(post(&socket, "/log-level", &header, "debug").status, 200);
    let (config, right, wrong) =
        (scene.text_path("outrigger.yaml"), scene.text_path("token"), scene.text_path("wrong"));
    for (arguments, expect) in [
        (&["--socket", &socket_text][..], 1),
        (&["--socket", &socket_text, "--token-file", &wrong], 1),
        (&["--socket", &socket_text, "--token-file", &right], 0),
        (&["-c", &config], 0),
    ] {
        let (code, _, stderr) = outrigger(&[&["reload"], arguments].concat());
        assert_eq!(code, expect, "{arguments:?}: {stderr}");
        assert!(expect == 0 || stderr.contains("--token-file"), "{stderr}");
    }
    // Read-only requests need no token.
    assert_eq!(outrigger(&["status", "--socket", &socket_text]).0, 0);
    assert_eq!(running.find_worker(), Some(worker), "nothing was stopped or upgraded");
    let mut shown: Vec<String> = ["/config", "/status", "/"].map(|path| running.get(path).text()).into();
    assert!(shown[0].contains("(secret)"), "{}", shown[0]);
    shown.push(running.finish().stderr);
    assert!(!shown.iter().any(|text| text.contains(token)), "the token is never shown: {shown:?}");
}

/// The socket file gets the configured mode and group; an unknown group fails the start.
#[test]
fn socket_gets_the_configured_mode_and_group() {
    let own_group = |option: &str| {
        let (code, stdout, _) = run_to_end(&["id", option], PATIENCE);
        (code == 0).then(|| stdout.trim().to_owned())
    };
    let number = need!(own_group("-g"), "id is not installed");
    let groups = [Some(number.clone()), own_group("-gn")];
    for group in groups.into_iter().flatten() {
        let scene = scene_with_ports();
        let body =
            LISTENERS.replace("probes_listen:", &format!("socket_mode: 0660, socket_group: {group}, probes_listen:"));
        let running = Outrigger::start_and(&scene, &body, &["sleep", "300"], Wait::Started);
        let meta = std::fs::metadata(scene.path("run/admin.sock")).expect("the socket exists");
        assert_eq!((meta.permissions().mode() & 0o777, meta.gid().to_string()), (0o660, number.clone()), "{group}");
        running.finish();
    }
    let scene = scene_with_ports();
    for (wrong, named) in [("socket_group: no-such-group", "no-such-group"), ("socket_mode: rw-rw----", "rw-rw----")] {
        let body = LISTENERS.replace("probes_listen:", &format!("{wrong}, probes_listen:"));
        let config = scene.write("outrigger.yaml", configuration(&scene, &body)).display().to_string();
        let (code, stdout, stderr) = outrigger(&["run", "-c", &config, "--", "echo", "started"]);
        assert!(code == 1 && stdout.is_empty() && stderr.contains(named), "{code} {stdout} {stderr}");
    }
}

/// Unknown hosts (DNS rebinding) and cross-origin pages get nothing over TCP; probes may use any host name.
#[test]
fn tcp_rejects_unknown_hosts_and_origins() {
    let scene = scene_with_ports();
    let body = LISTENERS.replace("probes_listen:", "allowed_hosts: [outrigger.example], probes_listen:");
    let running = Outrigger::start_and(&scene, &body, &["sleep", "300"], Wait::Started);
    let (admin, probes) = (running.admin.clone(), format!("127.0.0.1:{}", scene.value("probes")));
    let here = format!("Host: {admin}\r\n");
    let cross = "Sec-Fetch-Site: cross-site\r\n";
    for (path, headers, expect) in [
        ("/status", here.clone(), 200),
        ("/status", "Host: localhost\r\n".into(), 200),
        ("/status", "Host: outrigger.example:9900\r\n".into(), 200),
        ("/status", "Host: evil.example\r\n".into(), 421),
        ("/", "Host: evil.example\r\n".into(), 421),
        ("/live", "Host: evil.example\r\n".into(), 200),
        ("/status", format!("{here}Origin: http://{admin}\r\n"), 200),
        ("/status", format!("{here}Origin: http://evil.example\r\n"), 403),
        ("/status", format!("{here}Origin: null\r\n"), 403),
        ("/status", format!("{here}{cross}Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: script\r\n"), 403),
        ("/", format!("{here}{cross}Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"), 200),
    ] {
        assert_eq!(get_with(&admin, path, &headers), expect, "{path} {headers}");
    }
    assert_eq!(get_with(&probes, "/live", "Host: orders.default.svc.cluster.local\r\n"), 200);
    assert_eq!(get_with(&probes, "/live", "Host: x\r\nOrigin: http://evil.example\r\n"), 403);
    running.finish();
}

/// The status reports the app's state and the sandbox, as JSON and as text, and nothing of the environment.
#[test]
fn status_reports_the_app_and_the_sandbox() {
    let scene = scene_with_ports();
    let body = LISTENERS.replace("port: @port@, ", "").replace("proxy:", "# proxy:");
    let running = Outrigger::start_with(&scene, &body, &["sleep", "300"], Wait::Ready, |command| {
        command.env("E2E_PASSWORD", "hunter2secret");
    });
    let app = running.app();
    let status = running.get("/status").json();
    assert_eq!(status["app"]["pid"], app, "{status}");
    assert_eq!((&status["app"]["running"], &status["app"]["restarts"]), (&true.into(), &0.into()), "{status}");
    assert!(status["worker_generation"].is_u64() && status.get("sandbox").is_some(), "{status}");
    let socket = scene.text_path("run/admin.sock");
    let (code, shown, _) = outrigger(&["status", "--socket", &socket]);
    assert!(
        code == 0 && shown.contains(&format!("app: running, pid {app}\n")) && shown.contains("sandbox: "),
        "{shown}"
    );
    for text in [status.to_string(), shown, running.get("/").text(), running.get("/config").text()] {
        assert!(!text.contains("hunter2secret"), "the environment is never shown: {text}");
    }
    running.finish();
}

/// Idle connections and incomplete requests block no other client.
#[test]
fn a_stalled_socket_client_blocks_no_other() {
    let scene = scene_with_ports();
    let running = Outrigger::start_and(&scene, LISTENERS, &["sleep", "300"], Wait::Started);
    let socket = scene.path("run/admin.sock");
    let mut silent = UnixStream::connect(&socket).expect("the socket accepts connections");
    silent.write_all(b"POST /stop HTTP/1.1\r\nHost: x\r\nContent-Le").expect("half a request");
    let (code, _, stderr) = outrigger(&["probe", "live", "--socket", &scene.text_path("run/admin.sock")]);
    assert_eq!(code, 0, "{stderr}");
    running.finish();
}
