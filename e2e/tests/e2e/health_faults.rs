//! Health is accurate: a component whose last attempts failed or were rejected, whose file cannot be read, or whose state cannot
//! be written is `degraded` with the reason and since when, is `ok` again once the fault is fixed, and no other component is
//! affected; an app that has not been ready yet is not a fault; a stop reports what it leaves undelivered. In: rejecting peers
//! and files without permission. Out: components of `/status` and the last lines of the log. Bounded by a few requests each.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::SystemTime;

use serde_json::Value;

use crate::harness::faults;
use crate::harness::git::Repository;
use crate::harness::outrigger::outrigger as command;
use crate::harness::process::Signal;
use crate::harness::status::{await_health, component, components, own_log};
use crate::harness::{
    Answer, LogReceiver, Next, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, free_port, ledger_row, python, until,
    within,
};

/// Each component has a row under its path in the configuration, with its kind.
#[test]
fn status_has_a_row_for_each_component() {
    let scene = Scene::new();
    let _repository = need!(Repository::create(&scene), "git is not installed");
    for name in ["page", "front", "back"] {
        scene.port(name);
    }
    let body = r#"
logs:
  sources: { app: { stdio: {} }, access: { proxy: {} } }
  sinks: { main: { blackhole: {} }, copy: { file: { path: "@dir@/out/copy.log" } } }
metrics:
  sources: { process: { process: {} }, self: { self: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
sync:
  settings: { store: { git: { url: "file://@dir@/git/config.git", ref: main, path: orders/, interval: 1s } }, publish: { symlink: { path: "@dir@/settings" } } }
proxy:
  listeners: { front: { listen: "127.0.0.1:@front@", direction: outbound, cluster: back } }
  clusters: { back: { endpoints: ["127.0.0.1:@back@"] } }
"#;
    let began = SystemTime::now();
    let outrigger = Outrigger::start(&scene, body, &["sleep", "300"]);
    let all = components(&outrigger);
    let ids: BTreeSet<&str> = all.iter().map(|component| component.id.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "each once: {all:?}");
    for (id, kind) in [
        ("logs.sources.app", "stdio"),
        ("logs.sources.access", "proxy"),
        ("logs.sinks.main", "blackhole"),
        ("logs.sinks.copy", "file"),
        ("metrics.sources.process", "process"),
        ("metrics.sources.self", "self"),
        ("metrics.sinks.page", "prometheus"),
        ("sync.settings*", "git"),
    ] {
        let found = component(&outrigger, id);
        assert_eq!((found.kind.as_str(), found.health.as_str()), (kind, "ok"), "{found:?}");
        found.assert_began_since(began);
    }
    for id in ["proxy.listeners.front", "proxy.clusters.back"] {
        assert_eq!(component(&outrigger, id).health, "ok", "{all:?}");
    }
    let (code, table, _) = command(&["status", "--socket", &scene.text_path("run/admin.sock")]);
    assert!(code == 0 && table.contains("logs.sinks.copy"), "the table has the rows too: {table}");
    outrigger.finish();
}

const ONE_SINK: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { @sink@, batch: { max_bytes: 1MiB, max_age: 50ms } }, none: { blackhole: {} } }
"#;

/// An app that writes a line every 50 ms.
const WRITES: &str = "while :; do echo line; sleep 0.05; done";

/// One response status after another: each is the reason while it lasts, and all of them are one degraded period.
fn check_receiver(sink: &str, kind: &str) {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    let outrigger = Outrigger::start(&scene, &ONE_SINK.replace("@sink@", sink), &["sh", "-c", WRITES]);
    receiver.wait_for(1, PATIENCE);
    await_health(&outrigger, "logs.sinks.main", "ok", "");
    let began = SystemTime::now();
    receiver.answer(Answer::Status(503));
    let first = await_health(&outrigger, "logs.sinks.main", "degraded", "503");
    assert_eq!(first.kind, kind, "{first:?}");
    first.assert_began_since(began);
    let attempts = receiver.refused();
    receiver.wait_for_refused(attempts + 2, PATIENCE);
    let later = component(&outrigger, "logs.sinks.main");
    assert_eq!(
        (later.health.as_str(), later.since),
        ("degraded", first.since),
        "another attempt keeps `since`: {later:?}"
    );
    receiver.answer(Answer::Status(401));
    await_health(&outrigger, "logs.sinks.main", "degraded", "401");
    for healthy in ["logs.sinks.none", "logs.sources.app"] {
        assert_eq!(component(&outrigger, healthy).health, "ok", "{healthy} is unaffected");
    }
    let table = command(&["status", "--socket", &scene.text_path("run/admin.sock")]).1;
    let row = table.lines().find(|line| line.contains("degraded") && line.contains("401"));
    assert!(row.is_some(), "the table has the reason: {table}");
    let fixed = SystemTime::now();
    receiver.answer(Answer::Accept);
    await_health(&outrigger, "logs.sinks.main", "ok", "").assert_began_since(fixed);
    outrigger.finish();
}

/// Guarantee: failure-degrades-health
#[test]
fn http_sink_is_degraded_until_receiver_accepts() {
    check_receiver("http: { url: \"http://@receiver@/lines\" }", "http");
}

#[test]
fn loki_sink_is_degraded_until_receiver_accepts() {
    check_receiver("loki: { url: \"http://@receiver@\", labels: { service: orders } }", "loki");
}

/// Permanently rejected records are dropped, which is a fault as long as the last ones were rejected.
#[test]
fn permanently_rejected_records_degrade_the_sink() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(400)));
    scene.set("receiver", receiver.address());
    let body = ONE_SINK.replace("@sink@", "http: { url: \"http://@receiver@/lines\" }");
    let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", WRITES]);
    await_health(&outrigger, "logs.sinks.main", "degraded", "400");
    receiver.answer(Answer::Accept);
    await_health(&outrigger, "logs.sinks.main", "ok", "");
    outrigger.finish();
}

/// A receiver that does not exist, reported by its address, and a file that cannot be created.
#[test]
fn the_first_failed_attempt_degrades_a_sink() {
    let scene = Scene::new();
    scene.set("closed", free_port());
    scene.write("in-the-way", "a file where a directory is expected");
    let cases = [
        ("http: { url: \"http://127.0.0.1:@closed@/lines\" }", scene.fill("127.0.0.1:@closed@")),
        ("file: { path: \"@dir@/in-the-way/orders.log\" }", scene.text_path("in-the-way/orders.log")),
    ];
    for (sink, named) in cases {
        let body = ONE_SINK.replace("@sink@", sink);
        let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", WRITES]);
        await_health(&outrigger, "logs.sinks.main", "degraded", &named);
        outrigger.finish();
    }
}

/// Removes permissions. The worker has dropped root privileges, so this applies to it too.
fn lock(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the test owns it");
}

/// A directory that cannot be listed and a file that cannot be read are not missing files.
#[test]
fn a_file_source_is_degraded_while_unreadable() {
    for (locked, open_mode) in [("logs", 0o755), ("logs/app.log", 0o644)] {
        let scene = Scene::new();
        scene.write("logs/app.log", "first line\n");
        let path = scene.path(locked);
        lock(&path, 0o000);
        let body = r#"
logs:
  sources: { files: { file: { include: ["@dir@/logs/*.log"], scan_interval: 100ms } } }
  sinks: { copy: { file: { path: "@dir@/out/copy.log" } } }
"#;
        let began = SystemTime::now();
        let outrigger = Outrigger::start(&scene, body, &[]);
        let named = path.display().to_string();
        let found = await_health(&outrigger, "logs.sources.files", "degraded", &named);
        assert!(found.message.to_lowercase().contains("permission denied"), "the reason: {found:?}");
        found.assert_began_since(began);
        assert_eq!(found.kind, "file");
        lock(&path, open_mode);
        await_health(&outrigger, "logs.sources.files", "ok", "");
        let copied = || std::fs::read_to_string(scene.path("out/copy.log")).unwrap_or_default();
        until(PATIENCE, "the line is delivered", || copied().contains("first line"));
        outrigger.finish();
    }
}

/// A /metrics endpoint, or a remote_write receiver, that returns this status.
fn answering(status: &Arc<AtomicU16>) -> RawApp {
    let status = status.clone();
    RawApp::start(move |_, wire| {
        let head = format!("HTTP/1.1 {} Answer\r\nContent-Length: 5\r\n\r\n", status.load(Ordering::SeqCst));
        wire.send(head + "up 1\n").map_or(Next::Close, |()| Next::Keep)
    })
}

/// Guarantee: failure-degrades-health
#[test]
fn failing_scrape_and_remote_write_are_degraded() {
    let scene = Scene::new();
    let (page, receiver) = (Arc::new(AtomicU16::new(404)), Arc::new(AtomicU16::new(503)));
    let servers = [answering(&page), answering(&receiver)];
    scene.set("page", servers[0].address());
    scene.set("receiver", servers[1].address());
    let body = r#"
metrics:
  sources: { app: { scrape: { url: "http://@page@/metrics", interval: 200ms } } }
  sinks: { central: { remote_write: { url: "http://@receiver@/api/v1/write" } } }
"#;
    let began = SystemTime::now();
    let outrigger = Outrigger::start(&scene, body, &[]);
    let found = await_health(&outrigger, "metrics.sources.app", "degraded", "404");
    assert_eq!(found.kind, "scrape");
    found.assert_began_since(began);
    page.store(200, Ordering::SeqCst);
    await_health(&outrigger, "metrics.sources.app", "ok", "");
    let found = await_health(&outrigger, "metrics.sinks.central", "degraded", "503");
    assert_eq!(found.kind, "remote_write");
    receiver.store(401, Ordering::SeqCst);
    await_health(&outrigger, "metrics.sinks.central", "degraded", "401");
    receiver.store(200, Ordering::SeqCst);
    await_health(&outrigger, "metrics.sinks.central", "ok", "");
    outrigger.finish();
}

/// More series than allowed, and more files than may be open: each reports its limit.
#[test]
fn an_exceeded_limit_degrades_and_is_reported() {
    let scene = Scene::new();
    let page = RawApp::start(|_, wire| {
        let text: String = (0..20).map(|number| format!("n{number} 1\n")).collect();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", text.len());
        wire.send(head + &text).map_or(Next::Close, |()| Next::Keep)
    });
    scene.set("page", page.address());
    let dead = LogReceiver::answering(Answer::Status(503));
    scene.set("receiver", dead.address());
    (0..6).for_each(|number| drop(scene.write(&format!("in/{number}.log"), "line\n".repeat(20_000))));
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { files: { file: { include: ["@dir@/in/*.log"], max_files: 2, scan_interval: 100ms } } }
  sinks: { main: { http: { url: "http://@receiver@/" }, buffer: { max_bytes: 64KiB }, batch: { max_bytes: 16KiB } } }
metrics:
  sources: { app: { scrape: { url: "http://@page@/metrics", interval: 200ms, max_series: 5 } } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@listen@" } } }
"#;
    scene.port("listen");
    let outrigger = Outrigger::start(&scene, body, &[]);
    await_health(&outrigger, "metrics.sources.app", "degraded", "max_series = 5");
    await_health(&outrigger, "logs.sources.files", "degraded", "max_files = 2");
    outrigger.terminate(PATIENCE);
}

/// Under memory pressure a scrape is skipped, and its source reports it until the next one succeeds.
#[test]
fn a_skipped_scrape_is_degraded() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let scene = Scene::new();
    let page = answering(&Arc::new(AtomicU16::new(200)));
    scene.set("page", page.address());
    scene.port("listen");
    let body = r#"
limits: { memory: 64MiB }
metrics:
  sources: { app: { scrape: { url: "http://@page@/metrics", interval: 200ms } } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@listen@" } } }
"#;
    let outrigger = Outrigger::start_binary(&binary, &scene, "outrigger.yaml", body, &[], Wait::Ready, |_| {});
    await_health(&outrigger, "metrics.sources.app", "ok", "");
    let (worker, began) = (outrigger.worker(), SystemTime::now());
    // Above three quarters of the limit, and below all of it.
    faults::inject(&scene, "leak 47");
    await_health(&outrigger, "metrics.sources.app", "degraded", "skipped under memory pressure")
        .assert_began_since(began);
    assert_eq!(outrigger.worker(), worker, "no worker is replaced for it");
    outrigger.finish();
}

/// Guarantee: revision-survives-store-outage, failure-degrades-health
#[test]
fn a_missing_store_degrades_its_entry() {
    let scene = Scene::new();
    let _repository = need!(Repository::create(&scene), "git is not installed");
    let body = "sync:\n  settings: { store: { git: { url: \"file://@dir@/git/config.git\", ref: main, path: orders/, interval: 200ms } }, \
                publish: { symlink: { path: \"@dir@/settings\" } } }\n";
    let outrigger = Outrigger::start(&scene, body, &[]);
    await_health(&outrigger, "sync.settings*", "ok", "");
    let (here, away) = (scene.path("git/config.git"), scene.path("git/away.git"));
    let began = SystemTime::now();
    std::fs::rename(&here, &away).expect("the repository can be moved");
    await_health(&outrigger, "sync.settings*", "degraded", "config.git").assert_began_since(began);
    assert!(scene.path("settings/a.conf").exists(), "the published revision still exists");
    std::fs::rename(&away, &here).expect("and moved back");
    await_health(&outrigger, "sync.settings*", "ok", "");
    outrigger.finish();
}

#[test]
fn an_unwritable_state_directory_is_degraded() {
    let scene = Scene::new();
    scene.write("in-the-way", "a file where a directory is expected");
    let locked = scene.path("locked");
    std::fs::create_dir(&locked).expect("the directory can be created");
    lock(&locked, 0o500);
    let as_root = rustix::process::geteuid().is_root();
    // Before it drops root privileges, it could write to a locked directory.
    let directories = [Some("in-the-way/state"), (!as_root).then_some("locked/state"), Some("in-the-way")];
    for directory in directories.into_iter().flatten() {
        let began = SystemTime::now();
        let body = format!("state: {{ dir: \"@dir@/{directory}\", max_bytes: 64MiB }}\n");
        let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
        let found = await_health(&outrigger, "state*", "degraded", &scene.text_path(directory));
        found.assert_began_since(began);
        assert_eq!(outrigger.status_of("/ready"), 200, "the app still runs and serves");
        outrigger.finish();
    }
}

/// A server that starts once the file `go` exists.
fn late_server(scene: &Scene, python: &str) -> [String; 3] {
    let (go, port) = (scene.text_path("go"), scene.value("port"));
    let server = format!("exec '{python}' -m http.server --bind 127.0.0.1 {port}");
    ["sh".into(), "-c".into(), format!("while [ ! -e '{go}' ]; do sleep 0.05; done; {server}")]
}

/// At every start the app needs some time, so a failed scrape is not a fault; once the app has been ready, it is one.
#[test]
fn a_failed_scrape_before_readiness_is_no_fault() {
    let python = need!(python(), "python3 is not installed");
    let scene = Scene::new();
    scene.port("port");
    let page = answering(&Arc::new(AtomicU16::new(503)));
    scene.set("page", page.address());
    let body = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources:
    app:   { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 200ms } }
    extra: { scrape: { url: "http://@page@/metrics", interval: 200ms } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@listen@" } } }
"#;
    scene.port("listen");
    let app = late_server(&scene, &python);
    let outrigger = Outrigger::start_and(&scene, body, &app.each_ref().map(String::as_str), Wait::Started);
    // Long enough for ten attempts.
    let mut status = String::new();
    let faulty = within(2 * SECOND, || {
        status = outrigger.get_quietly("/status");
        status.contains("degraded")
    });
    assert!(!faulty, "the app has not been ready yet: {status}");
    scene.write("go", "");
    until(PATIENCE, "ready", || outrigger.status_of("/ready") == 200);
    await_health(&outrigger, "metrics.sources.extra", "degraded", "503");
    await_health(&outrigger, "metrics.sources.app", "degraded", "404");
    outrigger.finish();
}

/// The log after the app's exit, a JSON value for each line.
#[track_caller]
fn log_after_exit(stderr: &str) -> Vec<Value> {
    let lines = own_log(stderr);
    let end = lines.iter().rposition(|line| line["message"] == "app exited" || line["message"] == "stopping");
    let end = end.unwrap_or_else(|| panic!("the stop is in the log: {stderr}"));
    lines[end + 1..].to_vec()
}

/// 37 app lines are pending for one dead receiver, 5 of a file for another; a third sink accepted all. `state` is the section.
fn stop_with_dead_receivers(state: &str) -> String {
    let (scene, dead) = (Scene::new(), LogReceiver::answering(Answer::Status(503)));
    scene.set("receiver", dead.address());
    let body = format!(
        "{state}\napp: {{ stop: {{ drain_timeout: 1s, grace_period: 1s, timeout: 4s }} }}\nlogs:\n  \
         sources: {{ app: {{ stdio: {{}} }}, files: {{ file: {{ include: [\"@dir@/in.log\"] }} }} }}\n  sinks:\n    \
         alpha: {{ http: {{ url: \"http://@receiver@/a\" }}, inputs: [app], batch: {{ max_bytes: 1MiB, max_age: 50ms }} }}\n    \
         beta:  {{ http: {{ url: \"http://@receiver@/b\" }}, inputs: [files], batch: {{ max_bytes: 1MiB, max_age: 50ms }} }}\n    \
         gamma: {{ blackhole: {{}} }}\n"
    );
    scene.write("in.log", "file\n".repeat(5));
    let script = "i=0; while [ $i -lt 37 ]; do echo line; i=$((i+1)); done; exec sleep 300";
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", script], Wait::Started);
    let pending = |sink: &str| ledger_row(&outrigger.admin, sink)["pending"].clone();
    until(PATIENCE, "all lines are pending", || {
        (pending("logs.sinks.alpha"), pending("logs.sinks.beta")) == (37.into(), 5.into())
    });
    dead.wait_for_refused(2, PATIENCE);
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 143, "the app's own exit code: {}", exit.stderr);
    exit.stderr
}

/// One line, the last one, has the count of each of these sinks, and nothing about the sink that accepted all.
#[track_caller]
fn one_line_counts(stderr: &str, sinks: &[(&str, &str)]) -> Value {
    let lines = log_after_exit(stderr);
    let bad = |line: &&Value| line["level"] == "WARN" || line["level"] == "ERROR";
    let warnings: Vec<&Value> = lines.iter().filter(bad).collect();
    let [line] = warnings[..] else { panic!("one line reports what is undelivered: {warnings:#?}") };
    let text = line.to_string();
    for (sink, count) in sinks {
        let (before, after) = text.split_once(sink).unwrap_or_else(|| panic!("{sink} is in the line: {text}"));
        let numbers = |part: &str| -> Vec<String> {
            let digits = part.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
            digits.map(str::to_owned).collect()
        };
        let near = [numbers(before).last().cloned(), numbers(after).first().cloned()];
        assert!(near.iter().flatten().any(|number| number == count), "{count} next to {sink}: {text}");
    }
    assert!(!text.contains("gamma"), "nothing is pending for it: {text}");
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(serde_json::from_str::<Value>(last).ok().as_ref(), Some(line), "it is the last one: {stderr}");
    line.clone()
}

/// Lines of files are re-read, lines of the app are persisted: both are pending.
/// Guarantee: stop-reports-undelivered
#[test]
fn a_stop_reports_the_pending_lines_per_sink() {
    one_line_counts(&stop_with_dead_receivers(""), &[("alpha", "37"), ("beta", "5")]);
}

/// Samples that no remote_write receiver accepted are counted in the same line.
#[test]
fn a_stop_reports_pending_remote_write_samples() {
    let scene = Scene::new();
    let (page, receiver) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(503)));
    let servers = [answering(&page), answering(&receiver)];
    scene.set("page", servers[0].address());
    scene.set("receiver", servers[1].address());
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 1s, timeout: 4s } }
metrics:
  sources: { app: { scrape: { url: "http://@page@/metrics", interval: 200ms } } }
  sinks: { central: { remote_write: { url: "http://@receiver@/api/v1/write" } } }
"#;
    let outrigger = Outrigger::start(&scene, body, &["sleep", "300"]);
    let pending = || ledger_row(&outrigger.admin, "metrics.sinks.central")["pending"].as_u64();
    until(PATIENCE, "samples are pending", || pending() >= Some(5));
    let exit = outrigger.terminate(PATIENCE);
    let lines = log_after_exit(&exit.stderr);
    let line = lines.last().unwrap_or_else(|| panic!("a last line: {}", exit.stderr)).to_string();
    assert!(line.contains("metrics.sinks.central") && line.chars().any(|c| c.is_ascii_digit()), "{line}");
}

/// The app's lines are lost, which is an error in the same line.
/// Guarantee: stop-reports-undelivered
#[test]
fn a_stop_without_state_reports_the_lost_lines() {
    let stderr = stop_with_dead_receivers("state: { dir: /proc/nowhere, max_bytes: 64MiB }");
    let line = one_line_counts(&stderr, &[("alpha", "37")]);
    assert_eq!(line["level"], "ERROR", "data was lost: {line}");
}

/// A duration with more than three decimals.
fn is_odd_duration(text: &str) -> bool {
    let Some((integer, rest)) = text.split_once('.') else { return false };
    let decimals = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    integer.chars().all(|c| c.is_ascii_digit()) && decimals > 3 && ["s", "ms", "µs"].contains(&&rest[decimals..])
}

/// The log has the deadline as configured, however long the message to the worker took.
#[test]
fn the_log_of_a_stop_has_readable_durations() {
    for (timeout, expected) in [(None, "6s"), (Some("2500ms"), "2.5s")] {
        let scene = Scene::new();
        let body = "app: { stop: { drain_timeout: 1s, grace_period: 1s, timeout: 6s } }";
        let outrigger = Outrigger::start(&scene, body, &["sleep", "300"]);
        match timeout {
            None => outrigger.signal(Signal::TERM),
            Some(time) => {
                let socket = scene.text_path("run/admin.sock");
                let (code, _, stderr) = command(&["stop", "--timeout", time, "--socket", &socket]);
                assert_eq!(code, 0, "{stderr}");
            }
        }
        let exit = outrigger.wait(PATIENCE);
        let lines = own_log(&exit.stderr);
        let stopping = lines.iter().find(|line| line["message"] == "stopping");
        let stopping = stopping.unwrap_or_else(|| panic!("the stop is in the log: {}", exit.stderr));
        assert_eq!(stopping["timeout"], expected, "{stopping}");
        let values = lines.iter().flat_map(|line| line.as_object().into_iter().flatten());
        let odd: Vec<_> = values.filter(|(_, value)| value.as_str().is_some_and(is_odd_duration)).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
}
