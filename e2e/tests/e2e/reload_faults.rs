//! A changed configuration where the change is hard to see or cannot be served: the same size and time, a file that became a
//! pipe, an address that is taken, a mistake while our log is read by a machine. Files and commands come in; what serves, exit
//! codes and log lines go out. The file is looked at every two seconds, so that each wait has four times that.

use std::fs::{File, FileTimes, Metadata};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::outrigger::{configuration, outrigger as command};
use crate::harness::process::{Signal, send_signal};
use crate::harness::status::{await_health, health_of_all, own_log};
use crate::harness::{Outrigger, PATIENCE, SECOND, Scene, Wait, until, within};

/// How often the file is looked at, and half of that again.
const LOOK: Duration = Duration::from_secs(3);

/// Four looks.
const NOTICED: Duration = Duration::from_secs(8);

const BODY: &str = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";

fn with_grace(scene: &Scene, seconds: u32) -> String {
    configuration(scene, &BODY.replace("grace_period: 2s", &format!("grace_period: {seconds}s")))
}

fn serves_grace(outrigger: &Outrigger, seconds: u32) -> bool {
    outrigger.get_quietly("/config").contains(&format!("\"grace_period\":\"{seconds}s\""))
}

/// Gives a file the times that another one had.
fn set_times(path: &Path, of: &Metadata) {
    let modified = of.modified().expect("this file system keeps times");
    let file = File::options().write(true).open(path).expect("it is our file");
    file.set_times(FileTimes::new().set_modified(modified)).expect("it is our file");
}

/// A change by `edit` after which size and time of modification are what they were.
fn check_same_stamp(edit: impl Fn(&Scene, &str, &Metadata)) {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let path = scene.path("outrigger.yaml");
    // The first look at the file has to be over: what it finds is what later ones are compared with.
    let worker = outrigger.worker();
    assert!(!within(LOOK, || outrigger.find_worker() != Some(worker)), "nothing has changed yet");
    let before = std::fs::metadata(&path).expect("the configuration is there");
    edit(&scene, &with_grace(&scene, 3), &before);
    let after = std::fs::metadata(&path).expect("the configuration is there");
    assert_eq!((after.len(), after.modified().ok()), (before.len(), before.modified().ok()), "the stamp is the same");
    until(NOTICED, "the change is noticed", || serves_grace(&outrigger, 3));
    outrigger.finish();
}

/// As Nix, ostree and `cp -p` leave files behind: all of one time, and here of one size.
/// covers: faults 2
#[test]
fn a_file_replaced_by_one_of_the_same_size_and_time_is_noticed() {
    check_same_stamp(|scene, text, before| {
        let beside = scene.write("outrigger.yaml.new", text);
        set_times(&beside, before);
        std::fs::rename(beside, scene.path("outrigger.yaml")).expect("one folder");
    });
}

/// As a tool does that writes in place and sets the time back.
/// covers: faults 2
#[test]
fn a_file_rewritten_in_place_with_the_same_size_and_time_is_noticed() {
    check_same_stamp(|scene, text, before| {
        let path = scene.write("outrigger.yaml", text);
        set_times(&path, before);
    });
}

/// As `upgrade` does: the command says what became of it, and its exit code is for scripts.
/// covers: faults 2
#[test]
fn reload_waits_for_the_new_worker_and_fails_with_its_reason() {
    let scene = Scene::new();
    let taken = TcpListener::bind(("127.0.0.1", scene.port("taken"))).expect("the port is free");
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let (worker, socket) = (outrigger.worker(), scene.text_path("run/admin.sock"));
    let page = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@taken@\" } } } }";
    let proxy = "proxy: { listeners: { a: { listen: \"127.0.0.1:@taken@\", direction: outbound, cluster: b } }, clusters: { b: { endpoints: [\"127.0.0.1:9\"] } } }";
    for more in [page, proxy] {
        scene.write("outrigger.yaml", configuration(&scene, &format!("{BODY}\n{more}\n")));
        let (code, stdout, stderr) = command(&["reload", "--socket", &socket]);
        assert_eq!(code, 1, "an address that is taken: {stdout}{stderr}");
        assert!(stderr.contains(&format!("127.0.0.1:{}", scene.value("taken"))), "the reason: {stderr}");
        assert_eq!(outrigger.find_worker(), Some(worker), "the old worker serves");
    }
    drop(taken);
    scene.write("outrigger.yaml", with_grace(&scene, 3));
    let (code, stdout, stderr) = command(&["reload", "--socket", &socket]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    until(SECOND, "when it returns, the new configuration serves", || serves_grace(&outrigger, 3));
    outrigger.finish();
}

/// Nobody answers in the middle of a hand-over, at most for a second; but what answers is the new worker, from the first answer on.
/// covers: faults 2
#[test]
fn after_a_reload_has_returned_the_old_configuration_answers_nothing() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    for seconds in [3, 1, 3, 1] {
        scene.write("outrigger.yaml", with_grace(&scene, seconds));
        let (code, stdout, stderr) = command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
        assert_eq!(code, 0, "{stdout}{stderr}");
        let mut first = String::new();
        until(PATIENCE, "an answer", || {
            first = outrigger.get_quietly("/config");
            !first.is_empty()
        });
        assert!(first.contains(&format!("\"grace_period\":\"{seconds}s\"")), "{first}");
    }
    outrigger.finish();
}

/// Opening a pipe without a writer waits for ever: the worker's main thread must not.
/// covers: faults 2
#[test]
fn a_configuration_that_becomes_a_pipe_is_a_mistake_and_blocks_nothing() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let worker = outrigger.worker();
    let (pipe, path) = (scene.path("pipe"), scene.path("outrigger.yaml"));
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo makes a pipe");
    std::fs::rename(&pipe, &path).expect("one folder");
    until(NOTICED, "the mistake is said", || {
        own_log(&outrigger.stderr.text()).iter().any(|line| line["level"] == "ERROR" || line["level"] == "WARN")
    });
    let began = Instant::now();
    assert_eq!(outrigger.status_of("/live"), 200, "it answers");
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    let (code, stdout, stderr) = command(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert_eq!(outrigger.find_worker(), Some(worker), "the old worker serves");
    std::fs::remove_file(&path).expect("it is our pipe");
    scene.write("outrigger.yaml", with_grace(&scene, 3));
    until(NOTICED, "a right file is served again", || serves_grace(&outrigger, 3));
    outrigger.finish();
}

/// A collector parses each line of our log: the report of a mistake is a field of one line, with its lines inside.
/// covers: faults 2
#[test]
fn a_mistake_in_a_changed_file_is_one_line_of_json() {
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
        until(NOTICED, &format!("`{part}` is reported"), || {
            complete = outrigger.stderr.text();
            complete.truncate(complete.rfind('\n').map_or(0, |end| end + 1));
            complete.contains(part)
        });
        for line in complete.lines() {
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
            assert!(parsed.is_ok_and(|value| value.is_object()), "a line that is no JSON object: {line}\n{complete}");
        }
        assert!(own_log(&complete).iter().any(|line| line.to_string().contains(part)), "{complete}");
    }
    drop(taken);
    outrigger.finish();
}

/// So are the warnings of a text that is served, and the mistakes that a worker finds which follows one that fell.
/// covers: faults 2
#[test]
fn later_workers_log_json_alone() {
    let scene = Scene::new();
    let outrigger = Outrigger::start_and(&scene, BODY, &["sleep", "300"], Wait::Ready);
    let json_alone = |when: &str| {
        let text = outrigger.stderr.text();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let odd: Vec<&str> = whole.filter(|line| serde_json::from_str::<serde_json::Value>(line).is_err()).collect();
        assert!(odd.is_empty(), "{when}: {odd:#?}");
    };
    let warned = BODY.replace("app: {", "app: { external: { exit_code_file: /nowhere/done },");
    scene.write("outrigger.yaml", configuration(&scene, &warned));
    until(NOTICED, "a mistake is reported", || outrigger.stderr.contains("`external` is for an app"));
    let worker = outrigger.worker();
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    until(NOTICED, "the next worker says it too", || outrigger.stderr.contains("continuing with the last good one"));
    json_alone("after a worker fell beside a wrong file");
    outrigger.finish();
}

/// What was asked for and refused is an answer; a changed file that nobody can serve is a fault until it can be, or is taken back.
/// covers: faults 7
#[test]
fn a_refused_reload_changes_no_health_and_a_refused_change_does() {
    let scene = Scene::new();
    let taken = TcpListener::bind(("127.0.0.1", scene.port("taken"))).expect("the port is free");
    let outrigger = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let socket = scene.text_path("run/admin.sock");
    let page = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@taken@\" } } } }";
    let before = health_of_all(&outrigger);
    for body in [BODY.replace("drain_timeout:", "drian_timeout:"), format!("{BODY}\n{page}\n")] {
        // Before the next look at the file, which finds the right one again.
        scene.write("outrigger.yaml", configuration(&scene, &body));
        let (code, stdout, stderr) = command(&["reload", "--socket", &socket]);
        scene.write("outrigger.yaml", configuration(&scene, BODY));
        assert_eq!(code, 1, "{stdout}{stderr}");
    }
    assert!(!within(LOOK, || health_of_all(&outrigger) != before), "{:?}", health_of_all(&outrigger));
    // What was refused to somebody is not tried again, and is not served.
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
