//! The product's own log of a day: its start, the app's starts and exits, a reload, an upgrade and a stop, each with its cause. In:
//! commands, signals and changes of the file. Out: log lines.

use serde_json::Value;

use crate::harness::outrigger::{binary, configuration, outrigger as command, upgrade};
use crate::harness::process::{Signal, send_signal};
use crate::harness::status::own_log;
use crate::harness::{Exit, Outrigger, PATIENCE, Scene, Wait, until};

const STOP: &str = "stop: { drain_timeout: 100ms, grace_period: 300ms, timeout: 5s }";

/// The line with a message that begins with this text.
#[track_caller]
fn line(exit: &Exit, message: &str) -> Value {
    let lines = own_log(&exit.stderr);
    let found = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.starts_with(message)));
    found.unwrap_or_else(|| panic!("`{message}` is in the log: {}", exit.stderr)).clone()
}

#[track_caller]
fn run(body: &str, app: &[&str]) -> Exit {
    Outrigger::start_and(&Scene::new(), body, app, Wait::Nothing).wait(PATIENCE)
}

#[test]
fn start_is_logged_with_version_and_addresses() {
    let scene = Scene::new();
    let exit = Outrigger::start(&scene, &format!("app: {{ {STOP} }}"), &["sleep", "300"]).terminate(PATIENCE);
    let started = line(&exit, "outrigger started");
    assert_eq!(started["version"], command(&["--version"]).1.trim().trim_start_matches("outrigger "), "{started}");
    assert_eq!((&started["mode"], &started["config"]), (&"app".into(), &scene.text_path("outrigger.yaml").into()));
    let address = format!("127.0.0.1:{} (admin.listen)", scene.value("admin"));
    assert!(started["listening"].as_str().is_some_and(|all| all.contains(&address)), "{started}");
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, &format!("app: {{ {STOP} }}"), &[]);
    let app = outrigger.get("/status").json()["app"].clone();
    assert_eq!((&app["pid"], &app["running"]), (&Value::Null, &Value::Null), "an external app is not observed");
    let (_, text, _) = command(&["status", "--socket", &scene.text_path("run/admin.sock")]);
    assert!(text.lines().any(|line| line.contains("app") && line.contains("external")), "{text}");
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!(line(&exit, "outrigger started")["mode"], "companion");
    assert!(!exit.stderr.contains("app exited"), "an exit that is not observed is not logged: {}", exit.stderr);
}

#[test]
fn stop_is_logged_with_its_cause() {
    let body = format!("app: {{ {STOP} }}");
    for (signal, cause) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let outrigger = Outrigger::start(&Scene::new(), &body, &["sleep", "300"]);
        outrigger.signal(signal);
        assert_eq!(line(&outrigger.wait(PATIENCE), "stopping")["cause"], cause);
    }
    // A stop of a complete control group signals the worker, too.
    let outrigger = Outrigger::start(&Scene::new(), &body, &["sleep", "300"]);
    send_signal(outrigger.worker(), Signal::TERM);
    assert_eq!(line(&outrigger.wait(PATIENCE), "stopping")["cause"], "SIGTERM");
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    let (code, _, stderr) = command(&["stop", "--socket", &scene.text_path("run/admin.sock")]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(line(&outrigger.wait(PATIENCE), "stopping")["cause"], "stop request");
    assert_eq!(line(&run(&body, &["true"]), "stopping")["cause"], "app exit");
}

#[test]
fn app_that_ignores_its_stop_signal_is_logged() {
    let body = format!("app: {{ {STOP} }}");
    let outrigger = Outrigger::start(&Scene::new(), &body, &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]);
    let app = outrigger.app();
    let exit = outrigger.terminate(PATIENCE);
    let killed = line(&exit, "app still running after its grace period; sent SIGKILL");
    assert_eq!((&killed["level"], &killed["pid"]), (&"WARN".into(), &app.into()), "{killed}");
    assert_eq!(exit.stderr.matches("sent SIGKILL").count(), 1, "{}", exit.stderr);
    assert_eq!(line(&exit, "app exited")["signal"], 9);
    let exit = Outrigger::start(&Scene::new(), &body, &["sleep", "300"]).terminate(PATIENCE);
    assert!(!exit.stderr.contains("SIGKILL"), "{}", exit.stderr);
}

#[test]
fn exit_is_logged_with_what_follows() {
    let restart = |keys: &str| format!("app: {{ {STOP}, restart: {{ {keys}, backoff: 20ms }} }}");
    let exit = run(&restart("policy: on_failure, max_restarts: 1"), &["sh", "-c", "exit 3"]);
    let first = line(&exit, "app exited; restarting");
    assert_eq!((&first["code"], &first["restarts"], &first["signal"]), (&3.into(), &1.into(), &Value::Null), "{first}");
    let last = line(&exit, "app exited; not restarted: app.restart.max_restarts is reached");
    assert_eq!((&last["level"], &last["restarts"]), (&"ERROR".into(), &1.into()), "{last}");
    let exit = run(&restart("policy: on_failure"), &["true"]);
    assert_eq!(line(&exit, "app exited")["message"], "app exited", "a success ends it");
    let exit = run(&restart("policy: never"), &["/nowhere/app"]);
    let failed = line(&exit, "app not started");
    assert_eq!((&failed["code"], &failed["level"]), (&127.into(), &"ERROR".into()), "{failed}");
    assert_eq!(failed["error"], "/nowhere/app: command not found", "{failed}");
    assert!(!exit.stderr.contains("app exited"), "{}", exit.stderr);
}

#[test]
fn closed_start_gate_is_logged_with_its_entry() {
    let sync = "sync: { orders: { store: { git: { url: \"http://127.0.0.1:@closed@/x.git\" } }, publish: { symlink: { path: \"@dir@/orders\" } } } }";
    for (on_timeout, message, code) in [
        ("fail", "start gates did not open within app.start.timeout", 1),
        ("continue", "start gates did not open within app.start.timeout; starting the app", 0),
    ] {
        let scene = Scene::new();
        scene.port("closed");
        let body = format!("app: {{ {STOP}, start: {{ timeout: 300ms, on_timeout: {on_timeout} }} }}\n{sync}");
        let exit = Outrigger::start_and(&scene, &body, &["true"], Wait::Nothing).wait(PATIENCE);
        assert_eq!((exit.code, &line(&exit, message)["waiting_for"]), (code, &"sync.orders".into()), "{}", exit.stderr);
    }
}

#[test]
fn reload_and_upgrade_are_logged_as_such() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP} }}");
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    let worker = outrigger.worker();
    scene.write("outrigger.yaml", configuration(&scene, &body.replace("300ms", "400ms")));
    let (code, stdout, stderr) = command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    outrigger.await_other(worker, PATIENCE);
    until(PATIENCE, "the reload is in the log", || outrigger.stderr.contains("\"reloaded\""));
    let (code, output) = upgrade(&scene, Some("/nowhere/outrigger"));
    assert!(code == 1 && output.contains("cannot execute /nowhere/outrigger"), "{output}");
    let next = scene.path("next");
    std::fs::copy(binary(), &next).expect("the scene is writable");
    let worker = outrigger.worker();
    let (code, output) = upgrade(&scene, Some(&next.display().to_string()));
    assert!(code == 0 && output.contains(&format!("upgraded: a new worker from {}", next.display())), "{output}");
    outrigger.await_other(worker, PATIENCE);
    until(PATIENCE, "the upgrade is in the log", || outrigger.stderr.contains("\"upgraded\""));
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!(line(&exit, "handing over to a new worker")["reason"], "reload");
    let failed = line(&exit, "upgrade failed; keeping the current worker");
    assert!(failed["reason"].as_str().is_some_and(|reason| reason.contains("/nowhere/outrigger")), "{failed}");
    assert!(line(&exit, "upgraded")["version"].is_string(), "{}", exit.stderr);
    assert_eq!(exit.stderr.matches("\"outrigger started\"").count(), 1, "{}", exit.stderr);
}
