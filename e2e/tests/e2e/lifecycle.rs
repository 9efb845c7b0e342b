//! The app's life under the supervisor: exit codes, what it sees of its surroundings, signals, the stop order and its one
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

/// Each way an app can end gives the exit code that it gives without us.
/// covers: foundation 4
#[test]
fn exit_codes_are_the_apps_own() {
    let scene = Scene::new();
    let plain = scene.write("not-executable", "#!/bin/sh\nexit 0\n").display().to_string();
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).expect("it is our file");
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
        // A shell runs it as a person would without us; it also knows 126 and 127.
        let words = command.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        let (alone, _, _) = run_to_end(&["sh", "-c", &words], PATIENCE);
        assert_eq!(alone, expected, "{command:?} alone");
        let outrigger = Outrigger::start_and(&scene, "", command, Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, expected, "{command:?} beside us: {}", exit.stderr);
    }
}

/// A command that cannot be run is named in the message.
/// covers: foundation 4
#[test]
fn a_command_that_is_not_found_is_named() {
    let scene = Scene::new();
    let outrigger = Outrigger::start_and(&scene, "", &["a-command-that-does-not-exist"], Wait::Nothing);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 127);
    assert!(exit.stderr.contains("a-command-that-does-not-exist"), "{}", exit.stderr);
}

/// Arguments, environment, directory, descriptors, signal masks, limits and input are those of a start without us.
/// covers: foundation 4
#[test]
fn the_app_sees_the_surroundings_that_it_sees_alone() {
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
    let (alone, beside) = (parse(&alone.stdout.text()), parse(&exit.stdout));
    for (what, value) in alone.as_object().expect("an object") {
        match what.as_str() {
            // None of ours may reach it; those that the test inherited itself may or may not.
            "descriptors" => {
                let known = value.as_array().expect("a list");
                let leaked = beside[what].as_array().expect("a list").iter().filter(|number| !known.contains(number));
                assert_eq!(leaked.count(), 0, "descriptors: {} beside {value} alone", beside[what]);
            }
            _ => assert_eq!(&beside[what], value, "{what}"),
        }
    }
}

/// Signals, identity and rights are those of a start without us. Read by grep, which changes none of them itself.
/// covers: foundation 4
#[test]
fn the_app_has_the_signals_and_rights_that_it_has_alone() {
    let names = "^(SigBlk|SigIgn|Uid|Gid|Groups|CapInh|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Cpus_allowed):";
    let command = ["grep", "-E", names, "/proc/self/status"];
    let (code, alone, _) = run_to_end(&command, PATIENCE);
    assert_eq!(code, 0);
    let scene = Scene::new();
    let exit = Outrigger::start_and(&scene, "", &command, Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.stdout, alone);
}

/// The app's bytes leave on our stdout and stderr as they were written: binary, without a line's end, in order.
/// covers: foundation 4
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

/// What a short app prints last is at the receiver before we exit, with and without a line's end.
/// covers: foundation 4
/// covers: foundation 5
#[test]
fn the_last_words_of_a_short_app_are_delivered_before_the_exit() {
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

/// A signal that has no meaning for us reaches the app.
/// covers: foundation 4
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
    assert_eq!(exit.code, 5, "SIGTERM came too: {}", exit.stdout);
}

/// The stop signal is the configured one.
/// covers: foundation 4
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

/// An app that ignores the signal is killed with its whole group once its grace is over, within the deadline.
/// covers: foundation 4
#[test]
fn an_app_that_ignores_the_signal_is_killed_with_its_group_after_its_grace() {
    let scene = Scene::new();
    let script = "trap '' TERM; sleep 300 & echo child=$!; while :; do sleep 0.1; done";
    let outrigger = Outrigger::start(&scene, QUICK_STOP, &["sh", "-c", script]);
    until(PATIENCE, "the app runs", || outrigger.stdout.contains("child="));
    let child = crate::harness::number_after(&outrigger.stdout.text(), "child=").expect("a number");
    let child = u32::try_from(child).expect("a process id");
    assert!(is_alive(child));
    let exit = outrigger.finish();
    assert_eq!(exit.code, 137, "killed by signal 9");
    assert!(exit.took >= 2 * SECOND - Duration::from_millis(100), "its grace was kept: {:?}", exit.took);
    assert!(exit.took < 7 * SECOND, "within the deadline: {:?}", exit.took);
    until(2 * SECOND, "the app's child is gone too", || !is_alive(child));
}

/// SIGTERM: unready at once, a request in flight is answered to its end, and only then does the app get its signal.
/// covers: foundation 4
#[test]
fn a_request_in_flight_is_answered_before_the_app_is_told_to_stop() {
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
    until(PATIENCE, "unready", || outrigger.status_of("/ready") != 200);
    let reply = wire.reply("GET").expect("the request is answered");
    assert_eq!((reply.status, reply.text().as_str(), reply.body.whole), (200, "slow but whole", true));
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let (answered, reports) = (exit.stdout.find("answered /slow"), exit.stdout.find("got SIGTERM"));
    assert!(answered.is_some() && answered < reports, "first the answer, then the signal: {}", exit.stdout);
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
/// covers: foundation 4
#[test]
fn the_drain_ends_at_once_when_no_request_is_live() {
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

/// A receiver that never answers does not hold up the end longer than the deadline, nor the app before it.
/// covers: foundation 4
#[test]
fn a_hanging_receiver_does_not_stretch_the_deadline() {
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

/// An app that writes much more than any buffer of ours, to a receiver that never answers, is neither blocked nor slowed
/// to a stop: tenet 1.
/// covers: foundation 4
#[test]
fn a_dead_receiver_never_blocks_the_app() {
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
    until(PATIENCE, "all of it was passed through", || outrigger.stdout.len() == 62_888_896);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 143, "after {took:?}");
}

/// Killing the worker restarts it; the app keeps its process and never hears of it.
/// covers: foundation 4
#[test]
fn a_killed_worker_is_replaced_and_the_app_stays() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &["sh", "-c", "trap 'exit 8' TERM; while :; do sleep 0.05; done"]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    assert_eq!(outrigger.app(), app);
    assert_eq!(outrigger.finish().code, 8);
}

/// As a companion, without a command, it does its jobs alone and ends with 0 on SIGTERM.
/// covers: foundation 4
#[test]
fn a_companion_runs_without_an_app() {
    let scene = Scene::new();
    scene.port("page");
    let body = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@page@\" } } } }";
    let outrigger = Outrigger::start(&scene, body, &[]);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    let reply = request(&page, "GET", "/metrics", &[], b"").expect("the page answers");
    assert_eq!(reply.status, 200);
    assert_eq!(outrigger.finish().code, 0);
}
