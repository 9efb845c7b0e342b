//! Receivers that misbehave: 500, 429, 400, no response, no listener. What may succeed later is retried until it does, what
//! never will is dropped and counted by its reason, and the stop always finishes within its deadline. A few thousand lines
//! each.

use std::io::Write;
use std::time::Duration;

use crate::harness::ledger::dropped;
use crate::harness::process::Running;
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wait, assert_counts_up, free_port, get, ledger_row, until,
};

const LINES: usize = 3000;

/// Both kinds of source; their lines must survive any behaviour of the receiver.
const BOTH: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 8s } }
logs:
  sources:
    app:   { stdio: {} }
    files: { file: { include: ["@dir@/in.log"], read_from: beginning } }
  sinks: { main: { @sink@, batch: { max_bytes: 16KiB, max_age: 100ms } } }
"#;

const HTTP: &str = "http: { url: \"http://@receiver@/lines\" }";
const LOKI: &str = "loki: { url: \"http://@receiver@\", labels: { service: orders } }";

/// Starts an app that writes all its lines immediately, next to a complete log file.
fn start(scene: &Scene, sink: &str, address: &str) -> Outrigger {
    scene.set("receiver", address);
    scene.write("in.log", (0..LINES).map(|number| format!("file n={number:06}\n")).collect::<String>());
    let body = BOTH.replace("@sink@", sink);
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do printf 'app n=%06d\\n' $i; i=$((i+1)); done; exec sleep 300");
    Outrigger::start_and(scene, &body, &["sh", "-c", &script], Wait::Started)
}

/// All lines of both sources, each once and in order.
#[track_caller]
fn assert_nothing_lost(receiver: &LogReceiver) {
    receiver.wait_for(2 * LINES, 2 * PATIENCE);
    assert_counts_up(&receiver.numbers("app n="), LINES);
    assert_counts_up(&receiver.numbers("file n="), LINES);
    receiver.assert_well_formed();
}

/// While the receiver returns `answer` nothing is dropped; once it accepts, everything arrives, once and in order.
fn check_recovery(sink: &str, answer: Answer, refusals: usize, patience: Duration) {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(answer));
    let outrigger = start(&scene, sink, &receiver.address());
    receiver.wait_for_refused(refusals, patience);
    assert_eq!(dropped(&ledger_row(&outrigger.admin, "logs.sinks.main")), 0, "nothing is dropped");
    receiver.answer(Answer::Accept);
    assert_nothing_lost(&receiver);
    until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, "logs.sinks.main")["pending"] == 0);
    let row = ledger_row(&outrigger.admin, "logs.sinks.main");
    assert_eq!((&row["delivered"], dropped(&row)), (&(2 * LINES).into(), 0), "{row}");
    outrigger.finish();
    assert_eq!(receiver.len(), 2 * LINES, "nothing arrived twice");
}

/// 500 is retried until the status changes.
/// Guarantee: failed-delivery-retried
#[test]
fn http_500_loses_nothing() {
    check_recovery(HTTP, Answer::Status(500), 3, PATIENCE);
}

/// The same for Loki.
#[test]
fn loki_500_loses_nothing() {
    check_recovery(LOKI, Answer::Status(500), 3, PATIENCE);
}

/// 429 means retry later.
/// Guarantee: failed-delivery-retried
#[test]
fn http_429_loses_nothing() {
    check_recovery(HTTP, Answer::Status(429), 2, PATIENCE);
}

/// Credentials that are rotated and a path that does not exist yet are states of the receiver: the lines wait.
#[test]
fn rejected_credentials_and_paths_lose_nothing() {
    for status in [302, 401, 403, 404] {
        check_recovery(HTTP, Answer::Status(status), 3, PATIENCE);
    }
}

/// A line that the receiver rejects is dropped alone, not with the other lines of its body.
/// Guarantee: rejected-lines-counted
#[test]
fn a_rejected_line_is_dropped_alone() {
    for sink in [HTTP, LOKI] {
        let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Reject("app n=001234")));
        let outrigger = start(&scene, sink, &receiver.address());
        receiver.wait_for(2 * LINES - 1, 2 * PATIENCE);
        let expected: Vec<usize> = (0..LINES).filter(|number| *number != 1234).collect();
        assert_eq!(receiver.numbers("app n="), expected, "in order");
        assert_counts_up(&receiver.numbers("file n="), LINES);
        until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, "logs.sinks.main")["pending"] == 0);
        let row = ledger_row(&outrigger.admin, "logs.sinks.main");
        assert_eq!((dropped(&row), &row["dropped"]["rejected"]), (1, &1.into()), "{row}");
        outrigger.finish();
    }
}

/// A body that a real nginx rejects as too large (413) is sent in parts.
#[test]
fn bodies_over_the_limit_of_nginx_are_split() {
    let nginx = need_peer!("nginx");
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let front = format!("127.0.0.1:{}", scene.port("front"));
    scene.set("receiver", receiver.address());
    let config = scene.write("nginx.conf", scene.fill(NGINX)).display().to_string();
    let running = Running::start(&[nginx.as_str(), "-e", "stderr", "-c", &config]);
    until(PATIENCE, "nginx serves", || get(&front, "/").is_ok());
    let sink = "http: { url: \"http://@receiver@/lines\", compression: none }";
    let outrigger = start(&scene, sink, &front);
    assert_nothing_lost(&receiver);
    until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, "logs.sinks.main")["pending"] == 0);
    assert_eq!(dropped(&ledger_row(&outrigger.admin, "logs.sinks.main")), 0);
    outrigger.finish();
    running.stop();
}

/// A limit of a quarter of a body.
const NGINX: &str = r#"
daemon off;
worker_processes 1;
pid @dir@/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path @dir@/nginx-body;
    proxy_temp_path @dir@/nginx-proxy;
    fastcgi_temp_path @dir@/nginx-fastcgi;
    uwsgi_temp_path @dir@/nginx-uwsgi;
    scgi_temp_path @dir@/nginx-scgi;
    server {
        listen 127.0.0.1:@front@;
        client_max_body_size 4k;
        location / { proxy_pass http://@receiver@; }
    }
}
"#;

/// A request without a response times out, after which the batch is retried: the second request proves it.
/// Guarantee: failed-delivery-retried
#[test]
fn a_hung_receiver_is_retried_after_a_timeout() {
    check_recovery(HTTP, Answer::Hang, 2, Duration::from_secs(45));
}

/// A receiver that is not up yet gets everything once it is.
#[test]
fn a_late_receiver_gets_everything() {
    let (scene, port) = (Scene::new(), free_port());
    let address = format!("127.0.0.1:{port}");
    let outrigger = start(&scene, HTTP, &address);
    until(PATIENCE, "the status has the receiver", || outrigger.get("/status").text().contains(&address));
    let receiver = LogReceiver::start_on(port, Answer::Accept);
    assert_nothing_lost(&receiver);
    outrigger.finish();
}

/// 400 is not retried: the lines are dropped, counted by a reason, and logged; the app and the stop are unaffected.
fn check_rejection(sink: &str) {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(400)));
    let outrigger = start(&scene, sink, &receiver.address());
    let lost = u64::try_from(2 * LINES).expect("a small number");
    until(2 * PATIENCE, "all lines are dropped", || dropped(&ledger_row(&outrigger.admin, "logs.sinks.main")) == lost);
    let row = ledger_row(&outrigger.admin, "logs.sinks.main");
    let reasons = row["dropped"].as_object().expect("reasons");
    assert_eq!(reasons.len(), 1, "one named reason: {row}");
    assert!(reasons.keys().all(|reason| !reason.is_empty()));
    assert_eq!((&row["delivered"], &row["pending"]), (&0.into(), &0.into()), "{row}");
    let metrics = outrigger.get("/metrics").text();
    let reason = reasons.keys().next().expect("one reason");
    assert!(metrics.contains(&format!("reason=\"{reason}\"")), "the metrics have {reason}:\n{metrics}");
    assert!(outrigger.stderr.contains("400"), "the Outrigger log has the receiver's status");
    outrigger.finish();
}

/// For JSON lines.
/// Guarantee: rejected-lines-counted
#[test]
fn http_400_drops_and_counts_lines_by_reason() {
    check_rejection(HTTP);
}

/// For Loki.
/// Guarantee: rejected-lines-counted
#[test]
fn loki_400_drops_and_counts_lines_by_reason() {
    check_rejection(LOKI);
}

/// A rejected batch does not affect the next one.
#[test]
fn delivery_continues_after_a_rejected_batch() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(400)));
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { files: { file: { include: ["@dir@/in.log"], read_from: beginning } } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 16KiB, max_age: 100ms } } }
"#;
    scene.write("in.log", "n=000099\n");
    let outrigger = Outrigger::start(&scene, body, &[]);
    until(PATIENCE, "the first line is dropped", || dropped(&ledger_row(&outrigger.admin, "logs.sinks.main")) == 1);
    receiver.answer(Answer::Accept);
    let mut file = std::fs::OpenOptions::new().append(true).open(scene.path("in.log")).expect("the test owns the file");
    file.write_all(b"n=000000\nn=000001\n").expect("the log can be written");
    receiver.wait_for(2, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 2);
    outrigger.finish();
}

/// With the receiver down until the stop, the stop finishes within the deadline, and the next start delivers the rest: the
/// file's lines from their checkpoint, the app's from what was persisted.
/// Guarantee: undelivered-lines-survive-a-restart
#[test]
fn a_restart_delivers_the_undelivered_lines() {
    for answer in [Answer::Status(500), Answer::Hang] {
        let (scene, receiver) = (Scene::new(), LogReceiver::answering(answer));
        let outrigger = start(&scene, HTTP, &receiver.address());
        receiver.wait_for_refused(1, PATIENCE);
        let last = format!("app n={:06}", LINES - 1);
        until(PATIENCE, "the app wrote everything", || outrigger.stdout.contains(&last));
        let exit = outrigger.finish();
        assert!(exit.took < 10 * SECOND, "{answer:?}: {:?}", exit.took);
        assert_eq!(exit.code, 143);
        assert_eq!(receiver.len(), 0);
        receiver.answer(Answer::Accept);
        let body = BOTH.replace("@sink@", HTTP);
        let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
        assert_nothing_lost(&receiver);
        outrigger.finish();
    }
}

/// While the receiver is down everything else works: admin, readiness, and the app's own exit code.
#[test]
fn a_dead_receiver_affects_nothing_else() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Hang));
    let outrigger = start(&scene, HTTP, &receiver.address());
    receiver.wait_for_refused(1, PATIENCE);
    until(PATIENCE, "ready despite the receiver", || outrigger.status_of("/ready") == 200);
    for path in ["/live", "/started", "/metrics", "/status", "/ledger", "/config", "/"] {
        assert_eq!(get(&outrigger.admin, path).map(|reply| reply.status).ok(), Some(200), "{path}");
    }
    outrigger.finish();
}
