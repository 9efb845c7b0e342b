//! The app's lifecycle under the supervisor: exit codes, the inherited environment, signals, the stop order and its one
//! deadline, pass-through of its output, and the restart of a killed worker. Commands come in, codes, times and output
//! go out. Bounded by the deadlines that each configuration sets.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::process::{Running, Signal, is_alive, run_to_end, send_signal};
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wait, Wire, assert_counts_up, fixture, get,
    ledger_balances, python, request, until,
};

const QUICK_STOP: &str = "app: { stop: { signal: SIGTERM, drain_timeout: 1s, grace_period: 2s, timeout: 6s } }\n";

/// Each kind of exit of an app gives the same exit code as without Outrigger.
/// Guarantee: exit-code-of-the-app
#[test]
fn exit_codes_are_the_same_as_without_outrigger() {
    let scene = Scene::new();
    let plain = scene.write("not-executable", "#!/bin/sh\nexit 0\n").display().to_string();
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).expect("the file is the test's");
    let cases: [(&[&str], i32); 9] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 1"], 1),
        (&["sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["sh", "-c", "kill -SEGV $$"], 139),
        (&[&plain], 126),
        (&["a-command-that-does-not-exist"], 127),
    ];
    for (command, expected) in cases {
        // A shell runs it as a user would without Outrigger; it also returns 126 and 127.
        let words = command.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let (alone, _, _) = run_to_end(&["sh", "-c", &words], PATIENCE);
        assert_eq!(alone, expected, "{command:?} alone");
        let outrigger = Outrigger::start_and(&scene, "", command, Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, expected, "{command:?} wrapped: {}", exit.stderr);
    }
}

/// The error names the command that cannot be run.
#[test]
fn missing_command_is_reported() {
    let scene = Scene::new();
    let outrigger = Outrigger::start_and(&scene, "", &["a-command-that-does-not-exist"], Wait::Nothing);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 127);
    assert!(exit.stderr.contains("a-command-that-does-not-exist"), "{}", exit.stderr);
}

/// Arguments, environment, directory, file descriptors, signal masks, limits and input are the same as without Outrigger.
/// Guarantee: app-surroundings-unchanged
#[test]
fn app_environment_is_the_same_when_wrapped() {
    let python = need!(python(), "python3 is not installed");
    let script = fixture("environment.py");
    let command = [python.as_str(), &script, "--flag", "two words", "", "ümlaut"];
    let scene = Scene::new();
    let surround = |command: &mut Command| {
        command.current_dir(scene.path(".")).env("E2E_MARK", "kept exactly = so");
    };
    let mut alone = Command::new(command[0]);
    alone.args(&command[1..]);
    surround(&mut alone);
    let mut alone = Running::spawn(alone);
    assert_eq!(alone.wait(PATIENCE), 0);
    let outrigger = Outrigger::start_with(&scene, "", &command, Wait::Nothing, surround);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("one line of JSON");
    let (alone, wrapped) = (parse(&alone.stdout.text()), parse(&exit.stdout));
    for (what, value) in alone.as_object().expect("an object") {
        match what.as_str() {
            // No descriptor of Outrigger may reach the app; those that the test inherited itself may or may not.
            "descriptors" => {
                let known = value.as_array().expect("a list");
                let leaked = wrapped[what].as_array().expect("a list").iter().filter(|number| !known.contains(number));
                assert_eq!(leaked.count(), 0, "descriptors: {} wrapped, {value} alone", wrapped[what]);
            }
            _ => assert_eq!(&wrapped[what], value, "{what}"),
        }
    }
}

/// Signals, identity and capabilities are the same as without Outrigger. Read by grep, which changes none of them itself.
/// Guarantee: app-surroundings-unchanged
#[test]
fn app_signals_and_capabilities_are_unchanged() {
    let names = "^(SigBlk|SigIgn|Uid|Gid|Groups|CapInh|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Cpus_allowed):";
    let command = ["grep", "-E", names, "/proc/self/status"];
    let (code, alone, _) = run_to_end(&command, PATIENCE);
    assert_eq!(code, 0);
    let scene = Scene::new();
    let exit = Outrigger::start_and(&scene, "", &command, Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.stdout, alone);
}

/// The app's bytes appear on Outrigger's stdout and stderr as written: binary, without a final newline, in order.
/// Guarantee: wrapped-app-unchanged
#[test]
fn output_is_passed_through_byte_by_byte() {
    let scene = Scene::new();
    let script = r"printf 'one\ntwo\r\n\000\377\376 three'; printf 'error line\nunfinished' >&2; exit 4";
    let mut alone = Running::start(&["sh", "-c", script]);
    assert_eq!(alone.wait(PATIENCE), 4);
    let body = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }";
    let outrigger = Outrigger::start_and(&scene, body, &["sh", "-c", script], Wait::Nothing);
    let stdout = outrigger.stdout.clone();
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 4);
    assert_eq!(stdout.bytes(), alone.stdout.bytes());
    assert!(exit.stderr.contains("error line\nunfinished"), "{}", exit.stderr);
}

/// The last output of a short app is at the receiver before Outrigger exits, with and without a final newline.
/// Guarantee: last-lines-delivered
#[test]
fn last_output_is_delivered_before_the_exit() {
    let receiver = LogReceiver::start();
    let scene = Scene::new();
    scene.set("receiver", receiver.address());
    let body =
        "logs: { sources: { app: { stdio: {} } }, sinks: { out: { http: { url: \"http://@receiver@/lines\" } } } }";
    let script = "i=0; while [ $i -lt 1000 ]; do printf 'n=%06d\\n' $i; i=$((i+1)); done; printf n=001000; exit 9";
    let outrigger = Outrigger::start_and(&scene, body, &["sh", "-c", script], Wait::Nothing);
    let exit = outrigger.wait(40 * SECOND);
    assert_eq!(exit.code, 9);
    assert_counts_up(&receiver.numbers("n="), 1001);
}

/// A signal that Outrigger does not handle reaches the app.
#[test]
fn signals_are_forwarded_to_the_app() {
    let python = need!(python(), "python3 is not installed");
    let scene = Scene::new();
    let (port, log, script) = (scene.port("port").to_string(), scene.text_path("app.log"), fixture("app.py"));
    let command = [python.as_str(), &script, "--port", &port, "--log", &log];
    let outrigger = Outrigger::start(&scene, "app: { port: @port@ }", &command);
    until(PATIENCE, "the app serves", || get(&format!("127.0.0.1:{port}"), "/health").is_ok());
    outrigger.signal(Signal::USR1);
    until(PATIENCE, "the app got SIGUSR1", || outrigger.stdout.contains("app got SIGUSR1"));
    let exit = outrigger.finish();
    assert_eq!(exit.code, 5, "SIGTERM reached the app too: {}", exit.stdout);
}

/// The stop signal is the configured one.
#[test]
fn the_app_is_stopped_by_the_configured_signal() {
    let scene = Scene::new();
    let body = "app: { stop: { signal: SIGINT, drain_timeout: 1s, grace_period: 5s, timeout: 10s } }";
    let script = "trap 'echo interrupted; exit 11' INT; trap 'exit 12' TERM; echo set; while :; do sleep 0.05; done";
    let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
    until(PATIENCE, "the traps are set", || outrigger.stdout.contains("set"));
    let exit = outrigger.finish();
    assert_eq!((exit.code, exit.stdout.contains("interrupted")), (11, true));
}

/// An app that ignores the signal is killed with its process group after its grace period, within the deadline.
/// Guarantee: app-killed-after-grace-period
#[test]
fn app_ignoring_sigterm_is_killed_with_its_group() {
    let scene = Scene::new();
    let script = "trap '' TERM; sleep 300 & echo child=$!; while :; do sleep 0.1; done";
    let outrigger = Outrigger::start(&scene, QUICK_STOP, &["sh", "-c", script]);
    until(PATIENCE, "the app runs", || outrigger.stdout.contains("child="));
    let child = crate::harness::number_after(&outrigger.stdout.text(), "child=").expect("a number");
    let child = u32::try_from(child).expect("a process id");
    assert!(is_alive(child));
    let exit = outrigger.finish();
    assert_eq!(exit.code, 137, "killed by signal 9");
    assert!(exit.took >= 2 * SECOND - Duration::from_millis(100), "it got its grace period: {:?}", exit.took);
    assert!(exit.took < 7 * SECOND, "within the deadline: {:?}", exit.took);
    until(2 * SECOND, "the app's child has exited too", || !is_alive(child));
}

/// SIGTERM: immediately not ready, a request in flight gets its complete response, and only then does the app get its signal.
/// Guarantee: requests-drained-before-stop-signal
#[test]
fn request_in_flight_finishes_before_the_signal() {
    let python = need!(python(), "python3 is not installed");
    let scene = Scene::new();
    scene.port("front");
    let port = scene.port("port");
    let body = r#"
app: { port: @port@, stop: { drain_timeout: 10s, grace_period: 5s, timeout: 25s } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
"#;
    let script = scene.write("slow.py", SLOW_APP).display().to_string();
    let outrigger = Outrigger::start(&scene, body, &[&python, &script, &port.to_string()]);
    until(PATIENCE, "the app serves", || get(&format!("127.0.0.1:{port}"), "/fast").is_ok());
    let mut wire = Wire::connect(&format!("127.0.0.1:{}", scene.value("front"))).expect("the proxy listens");
    wire.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    until(PATIENCE, "the app got the request", || outrigger.stdout.contains("got /slow"));
    ledger_balances(&outrigger.admin);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "Outrigger is not ready", || outrigger.status_of("/ready") != 200);
    let reply = wire.reply("GET").expect("the request gets a response");
    assert_eq!((reply.status, reply.text().as_str(), reply.body.whole), (200, "slow but whole", true));
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let (answered, signalled) = (exit.stdout.find("answered /slow"), exit.stdout.find("got SIGTERM"));
    assert!(answered.is_some() && answered < signalled, "the response before the signal: {}", exit.stdout);
}

const SLOW_APP: &str = r#"
import http.server, os, signal, sys, time, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("got", self.path, flush=True)
        time.sleep(2 if self.path == "/slow" else 0)
        self.send_response(200)
        self.send_header("Content-Length", "14")
        self.end_headers()
        self.wfile.write(b"slow but whole")
        print("answered", self.path, flush=True)

    def log_message(self, *arguments):
        pass

def stop(*_):
    print("got SIGTERM", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// With no request in flight the drain takes no time.
#[test]
fn drain_without_requests_ends_immediately() {
    let scene = Scene::new();
    scene.port("front");
    scene.port("port");
    let body = r#"
app: { port: @port@, stop: { drain_timeout: 15s, grace_period: 5s, timeout: 30s } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
"#;
    let outrigger = Outrigger::start_and(&scene, body, &["sleep", "300"], Wait::Started);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 143);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
}

/// A receiver that never responds does not delay the exit beyond the deadline, nor the app before it.
/// Guarantee: stop-timeout-holds
#[test]
fn hanging_receiver_does_not_extend_the_deadline() {
    let receiver = LogReceiver::answering(Answer::Hang);
    let scene = Scene::new();
    scene.set("receiver", receiver.address());
    let body = format!(
        "{QUICK_STOP}logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ out: {{ http: {{ url: \"http://@receiver@/lines\" }} }} }} }}\n"
    );
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo hello; exec sleep 300"], Wait::Started);
    receiver.wait_for_refused(1, PATIENCE);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 143);
    assert!(exit.took < 7 * SECOND, "{:?}", exit.took);
}

/// An app that writes much more than any buffer of Outrigger, to a receiver that never responds, is neither blocked nor
/// stalled: tenet 1.
/// Guarantee: app-never-blocked-by-a-receiver
#[test]
fn hanging_receiver_never_blocks_the_app() {
    let receiver = LogReceiver::answering(Answer::Hang);
    let scene = Scene::new();
    scene.set("receiver", receiver.address());
    let body = format!(
        "{QUICK_STOP}logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ out: {{ http: {{ url: \"http://@receiver@/lines\" }} }} }} }}\n"
    );
    let command = ["sh", "-c", "seq 1 8000000; echo wrote-it-all >&2; exec sleep 300"];
    let began = Instant::now();
    let outrigger = Outrigger::start_and(&scene, &body, &command, Wait::Started);
    until(30 * SECOND, "the app wrote 60 MB", || outrigger.stderr.contains("wrote-it-all"));
    let took = began.elapsed();
    until(PATIENCE, "all output was passed through", || outrigger.stdout.len() == 62_888_896);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 143, "after {took:?}");
}

/// A killed worker is restarted; the app keeps its process and gets no signal.
#[test]
fn a_killed_worker_is_replaced_and_the_app_stays() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &["sh", "-c", "trap 'exit 8' TERM; while :; do sleep 0.05; done"]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    assert_eq!(outrigger.app(), app);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 8);
    assert_eq!(exit.stderr.matches("app started").count(), 1, "the next worker logs no start: {}", exit.stderr);
}

/// As a companion, without a command, Outrigger does its jobs without an app and exits with 0 on SIGTERM.
#[test]
fn a_companion_runs_without_an_app() {
    let scene = Scene::new();
    scene.port("page");
    let body = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@page@\" } } } }";
    let outrigger = Outrigger::start(&scene, body, &[]);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    let reply = request(&page, "GET", "/metrics", &[], b"").expect("the /metrics endpoint responds");
    assert_eq!(reply.status, 200);
    assert_eq!(outrigger.finish().code, 0);
}

/// During a shutdown the status is `stopping`, not that of an app that has not started.
#[test]
fn status_is_stopping_during_a_shutdown() {
    let scene = Scene::new();
    let outrigger =
        Outrigger::start(&scene, "", &["sh", "-c", "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.05; done"]);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "the status is stopping", || {
        let status = outrigger.get("/status").json();
        let app = status["subsystems"].as_array().into_iter().flatten().find(|subsystem| subsystem["name"] == "app");
        app.is_some_and(|app| app["health"] == "stopping" && app["message"] == "stopping")
            && status["health"] == "stopping"
    });
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}
