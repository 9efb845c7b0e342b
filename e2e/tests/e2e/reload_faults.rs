//! A changed configuration if the change is hard to detect or cannot be served: the same size and time, a file that became a
//! pipe, an address in use, an error while Outrigger's log is read by a machine. In: files and commands. Out: what serves,
//! exit codes and log lines. The file is polled every two seconds, so that each wait has four times that.

use std::fs::{File, FileTimes, Metadata};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::certificates::{Certificates, NO_OPENSSL};
use crate::harness::outrigger::{configuration, outrigger as command};
use crate::harness::process::{Signal, send_signal};
use crate::harness::status::{await_health, health_of_all, own_log};
use crate::harness::{Outrigger, PATIENCE, SECOND, Scene, Wait, until, within};

/// The poll interval of the file, and half of that again.
const POLL: Duration = Duration::from_secs(3);

/// Four polls.
const DETECTED: Duration = Duration::from_secs(8);

const BODY: &str = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";

fn with_grace(scene: &Scene, seconds: u32) -> String {
    configuration(scene, &BODY.replace("grace_period: 2s", &format!("grace_period: {seconds}s")))
}

fn serves_grace(outrigger: &Outrigger, seconds: u32) -> bool {
    outrigger.get_quietly("/config").contains(&format!("\"grace_period\":\"{seconds}s\""))
}

/// Sets the modification time of a file to that of another file.
fn set_times(path: &Path, of: &Metadata) {
    let modified = of.modified().expect("this file system stores times");
    let file = File::options().write(true).open(path).expect("the test owns the file");
    file.set_times(FileTimes::new().set_modified(modified)).expect("the test owns the file");
}

/// A change by `edit` that leaves size and modification time unchanged.
fn check_same_stamp(edit: impl Fn(&Scene, &str, &Metadata)) {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let path = scene.path("outrigger.yaml");
    // The first poll of the file must have finished: later polls are compared with its result.
    let worker = outrigger.worker();
    assert!(!within(POLL, || outrigger.find_worker() != Some(worker)), "nothing has changed yet");
    let before = std::fs::metadata(&path).expect("the configuration exists");
    edit(&scene, &with_grace(&scene, 3), &before);
    let after = std::fs::metadata(&path).expect("the configuration exists");
    assert_eq!(
        (after.len(), after.modified().ok()),
        (before.len(), before.modified().ok()),
        "size and time are the same"
    );
    until(DETECTED, "the change is detected", || serves_grace(&outrigger, 3));
    outrigger.finish();
}

/// As with files of Nix, ostree and `cp -p`: all have the same time, and here the same size.
#[test]
fn replaced_file_of_same_size_and_time_is_seen() {
    check_same_stamp(|scene, text, before| {
        let new = scene.write("outrigger.yaml.new", text);
        set_times(&new, before);
        std::fs::rename(new, scene.path("outrigger.yaml")).expect("same directory");
    });
}

/// As with a tool that writes in place and restores the time.
#[test]
fn rewritten_file_of_same_size_and_time_is_seen() {
    check_same_stamp(|scene, text, before| {
        let path = scene.write("outrigger.yaml", text);
        set_times(&path, before);
    });
}

/// Like `upgrade`, the command reports the result, and its exit code is for scripts.
/// Guarantee: invalid-reload-changes-nothing
#[test]
fn reload_waits_for_the_worker_or_its_error() {
    let scene = Scene::new();
    let taken = TcpListener::bind(("127.0.0.1", scene.port("taken"))).expect("the port is free");
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let (worker, socket) = (outrigger.worker(), scene.text_path("run/admin.sock"));
    let page = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@taken@\" } } } }";
    let proxy = "proxy: { listeners: { a: { listen: \"127.0.0.1:@taken@\", direction: outbound, cluster: b } }, clusters: { b: { endpoints: [\"127.0.0.1:9\"] } } }";
    for more in [page, proxy] {
        scene.write("outrigger.yaml", configuration(&scene, &format!("{BODY}\n{more}\n")));
        let (code, stdout, stderr) = command(&["reload", "--socket", &socket]);
        assert_eq!(code, 1, "an address in use: {stdout}{stderr}");
        assert!(stderr.contains(&format!("127.0.0.1:{}", scene.value("taken"))), "the reason: {stderr}");
        assert_eq!(outrigger.find_worker(), Some(worker), "the old worker keeps serving");
    }
    drop(taken);
    scene.write("outrigger.yaml", with_grace(&scene, 3));
    let (code, stdout, stderr) = command(&["reload", "--socket", &socket]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    until(SECOND, "the new configuration is active when the command returns", || serves_grace(&outrigger, 3));
    outrigger.finish();
}

/// No worker responds in the middle of a handover, for at most a second; but the first response comes from the new worker.
#[test]
fn old_configuration_is_inactive_after_reload() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    for seconds in [3, 1, 3, 1] {
        scene.write("outrigger.yaml", with_grace(&scene, seconds));
        let (code, stdout, stderr) = command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        let mut first = String::new();
        until(PATIENCE, "a response", || {
            first = outrigger.get_quietly("/config");
            !first.is_empty()
        });
        assert!(first.contains(&format!("\"grace_period\":\"{seconds}s\"")), "{first}");
    }
    outrigger.finish();
}

/// Opening a pipe without a writer blocks forever: the worker's main thread must not block.
#[test]
fn pipe_as_configuration_is_an_error_not_a_hang() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let worker = outrigger.worker();
    let (pipe, path) = (scene.path("pipe"), scene.path("outrigger.yaml"));
    let created = Command::new("mkfifo").arg(&pipe).status();
    assert!(created.is_ok_and(|status| status.success()), "mkfifo creates a pipe");
    std::fs::rename(&pipe, &path).expect("same directory");
    until(DETECTED, "the error is reported", || {
        own_log(&outrigger.stderr.text()).iter().any(|line| line["level"] == "ERROR" || line["level"] == "WARN")
    });
    let began = Instant::now();
    assert_eq!(outrigger.status_of("/live"), 200, "the worker responds");
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    let (code, stdout, stderr) = command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert_eq!(outrigger.find_worker(), Some(worker), "the old worker keeps serving");
    std::fs::remove_file(&path).expect("the test owns the pipe");
    scene.write("outrigger.yaml", with_grace(&scene, 3));
    until(DETECTED, "a valid file is served again", || serves_grace(&outrigger, 3));
    outrigger.finish();
}

/// A collector parses each line of Outrigger's log: an error report with several lines is a field of one log line.
#[test]
fn error_in_a_changed_file_is_one_json_line() {
    let scene = Scene::new();
    let taken = TcpListener::bind(("127.0.0.1", scene.port("taken"))).expect("the port is free");
    let outrigger = Outrigger::start_and(&scene, BODY, &["sleep", "300"], Wait::Ready);
    let page = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@taken@\" } } } }";
    let address = scene.fill("127.0.0.1:@taken@");
    let cases = [
        (BODY.replace("drain_timeout:", "drian_timeout:"), "did you mean `drain_timeout`?"),
        (BODY.replace("grace_period:", "grace_peroid:"), "did you mean `grace_period`?"),
        (format!("{BODY}\n{page}\n"), address.as_str()),
    ];
    for (body, part) in cases {
        scene.write("outrigger.yaml", configuration(&scene, &body));
        let mut complete = String::new();
        until(DETECTED, &format!("`{part}` is reported"), || {
            complete = outrigger.stderr.text();
            complete.truncate(complete.rfind('\n').map_or(0, |end| end + 1));
            complete.contains(part)
        });
        for line in complete.lines() {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
            assert!(
                parsed.is_ok_and(|value| value.is_object()),
                "a line that is not a JSON object: {line}\n{complete}"
            );
        }
        assert!(own_log(&complete).iter().any(|line| line.to_string().contains(part)), "{complete}");
    }
    drop(taken);
    outrigger.finish();
}

/// The same for the warnings of a served configuration, and for the errors found by a worker that replaces a crashed one.
#[test]
fn later_workers_log_only_json() {
    let scene = Scene::new();
    let outrigger = Outrigger::start_and(&scene, BODY, &["sleep", "300"], Wait::Ready);
    let assert_only_json = |when: &str| {
        let text = outrigger.stderr.text();
        let complete = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let odd: Vec<&str> = complete.filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err()).collect();
        assert!(odd.is_empty(), "{when}: {odd:#?}");
    };
    let warned = BODY.replace("app: {", "app: { external: { exit_code_file: /nowhere/done },");
    scene.write("outrigger.yaml", configuration(&scene, &warned));
    until(DETECTED, "an error is reported", || outrigger.stderr.contains("`external` is for an app"));
    let worker = outrigger.worker();
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    until(DETECTED, "the next worker reports it too", || {
        outrigger.stderr.contains("continuing with the last good one")
    });
    assert_only_json("after the crash of a worker with an invalid file");
    outrigger.finish();
}

/// The rejection of a requested reload is only a response; a changed file that no worker can serve is a fault until it can be
/// served, or is reverted.
#[test]
fn health_reports_rejected_files_not_reloads() {
    let scene = Scene::new();
    let taken = TcpListener::bind(("127.0.0.1", scene.port("taken"))).expect("the port is free");
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let socket = scene.text_path("run/admin.sock");
    let page = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@taken@\" } } } }";
    let before = health_of_all(&outrigger);
    for body in [BODY.replace("drain_timeout:", "drian_timeout:"), format!("{BODY}\n{page}\n")] {
        // Before the next poll of the file, which finds the valid one again.
        scene.write("outrigger.yaml", configuration(&scene, &body));
        let (code, stdout, stderr) = command(&["reload", "--socket", &socket]);
        scene.write("outrigger.yaml", configuration(&scene, BODY));
        assert_eq!(code, 1, "{stdout}{stderr}");
    }
    assert!(!within(POLL, || health_of_all(&outrigger) != before), "{:?}", health_of_all(&outrigger));
    // A configuration that was rejected on request is not retried, and is not served.
    scene.write("outrigger.yaml", configuration(&scene, &format!("{BODY}\n{page}\n")));
    await_health(&outrigger, "configuration", "degraded", "no worker could start with the new configuration");
    let began = std::time::SystemTime::now();
    scene.write("outrigger.yaml", configuration(&scene, &format!("{BODY}\n{}\n", page.replace("page:", "other:"))));
    await_health(&outrigger, "worker", "degraded", &scene.fill("127.0.0.1:@taken@")).assert_began_since(began);
    scene.write("outrigger.yaml", configuration(&scene, &BODY.replace("drain_timeout:", "drian_timeout:")));
    await_health(&outrigger, "configuration", "degraded", "invalid configuration");
    scene.write("outrigger.yaml", configuration(&scene, BODY));
    await_health(&outrigger, "worker", "ok", "");
    await_health(&outrigger, "configuration", "ok", "");
    drop(taken);
    outrigger.finish();
}

/// A worker that replaces a crashed one uses the content that a file had, and the configuration is degraded until it is readable.
#[test]
fn a_crash_without_a_file_keeps_its_content() {
    let scene = Scene::new();
    let secret = scene.write("secret", "GRACE\n").display().to_string();
    let body = format!("app: {{ environment: {{ set: {{ WORD: \"${{file:{secret}}}\" }} }} }}");
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    std::fs::remove_file(&secret).expect("the test owns the file");
    let worker = outrigger.worker();
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    until(PATIENCE, "the next worker serves", || outrigger.status_of("/ready") == 200);
    let lines = own_log(&outrigger.stderr.text());
    let kept = lines.iter().find(|line| line["message"].as_str().is_some_and(|text| text.contains("last good one")));
    let kept = kept.unwrap_or_else(|| panic!("the fault is in the log: {}", outrigger.stderr.text()));
    assert!(kept["report"].as_str().is_some_and(|report| report.contains(&secret)), "{kept}");
    assert!(!outrigger.stderr.contains("worker failed to start"), "{}", outrigger.stderr.text());
    await_health(&outrigger, "configuration", "degraded", "invalid configuration");
    scene.write("secret", "GRACE\n");
    await_health(&outrigger, "configuration", "ok", "");
    outrigger.finish();
}

/// Keys that a reload does not apply are named, with what applies them.
#[test]
fn keys_that_need_a_restart_are_named() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let reload = |body: &str| {
        scene.write("outrigger.yaml", configuration(&scene, body));
        let worker = outrigger.worker();
        let (code, stdout, stderr) = command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        outrigger.await_other(worker, PATIENCE);
        let lines = own_log(&outrigger.stderr.text());
        let named =
            lines.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.contains("take effect")));
        named.map(|line| format!("{}: {}", line["message"], line["keys"])).collect::<Vec<_>>()
    };
    assert_eq!(reload(&BODY.replace("timeout: 6s", "timeout: 7s")), Vec::<String>::new(), "applied immediately");
    let named = reload(&BODY.replace("app: {", "app: { tty: true, environment: { set: { A: b } },"));
    assert_eq!(named.len(), 2, "{named:?}");
    assert!(named[0].contains("next start of Outrigger") && named[0].contains("app.tty"), "{named:?}");
    assert!(named[1].contains("next start of the app") && named[1].contains("environment"), "{named:?}");
    outrigger.finish();
}

/// A reload on request reads interpolated files again, even if the text is the same.
#[test]
fn a_requested_reload_rereads_interpolated_files() {
    let scene = Scene::new();
    let word = scene.write("word", "3s\n").display().to_string();
    let body = format!("app: {{ stop: {{ drain_timeout: 1s, grace_period: \"${{file:{word}}}\", timeout: 6s }} }}");
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    let reload = || command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
    let (code, stdout, stderr) = reload();
    assert!(code == 0 && stdout.contains("has not changed"), "{stdout}{stderr}");
    scene.write("word", "4s\n");
    let worker = outrigger.worker();
    let (code, stdout, stderr) = reload();
    assert!(code == 0 && stdout.contains("a new worker has taken over"), "{stdout}{stderr}");
    outrigger.await_other(worker, PATIENCE);
    // A rejected request is logged once, also if the poll finds the same file.
    scene.write("word", "soon\n");
    scene.write("outrigger.yaml", configuration(&scene, &format!("{body} # changed")));
    assert_eq!(reload().0, 1);
    await_health(&outrigger, "configuration", "degraded", "invalid configuration");
    let logged = outrigger.stderr.text().matches("is not a duration").count();
    assert_eq!(logged, 1, "{}", outrigger.stderr.text());
    outrigger.finish();
}

/// If no worker can start, a stop does not wait for one.
#[test]
fn a_stop_without_a_worker_is_not_delayed() {
    let scene = Scene::new();
    need!(Certificates::new(&scene), NO_OPENSSL).authority("ca", "test");
    let ca = scene.text_path("ca.crt");
    let sink = format!("https: {{ http: {{ url: \"https://127.0.0.1:9/\", tls: {{ ca_file: \"{ca}\" }} }} }}");
    let body = format!(
        "app: {{ stop: {{ timeout: 60s }} }}\nlogs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ {sink} }} }}"
    );
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    std::fs::remove_file(&ca).expect("the test owns the file");
    send_signal(outrigger.worker(), Signal::KILL);
    until(PATIENCE, "a worker fails", || outrigger.stderr.contains("worker failed to start"));
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 143, "{}", exit.stderr);
}
