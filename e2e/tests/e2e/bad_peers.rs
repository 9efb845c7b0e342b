//! Receivers that misbehave: 500, 429, 400, silence, nobody there. What may succeed later is tried again until it does,
//! what never will is dropped and counted by its reason, and the end always comes within its deadline. A few thousand
//! lines each.

use std::io::Write;
use std::time::Duration;

use crate::harness::ledger::dropped;
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wait, assert_counts_up, free_port, get, ledger_row, until,
};

const LINES: usize = 3000;

/// Both kinds of source, whose lines have to survive whatever the receiver does.
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

/// Starts an app that writes all its lines at once, and its log file beside it.
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

/// While `answer` lasts nothing is dropped; once the receiver accepts, all of it arrives, once and in order.
fn check_recovery(sink: &str, answer: Answer, refusals: usize, patience: Duration) {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(answer));
    let outrigger = start(&scene, sink, &receiver.address());
    receiver.wait_for_refused(refusals, patience);
    assert_eq!(dropped(&ledger_row(&outrigger.admin, "logs.sinks.main")), 0, "nothing is given up");
    receiver.answer(Answer::Accept);
    assert_nothing_lost(&receiver);
    until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, "logs.sinks.main")["pending"] == 0);
    let row = ledger_row(&outrigger.admin, "logs.sinks.main");
    assert_eq!((&row["delivered"], dropped(&row)), (&(2 * LINES).into(), 0), "{row}");
    outrigger.finish();
    assert_eq!(receiver.len(), 2 * LINES, "nothing came twice");
}

/// 500 is tried again until it is not 500.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn a_receiver_that_answers_500_loses_nothing() {
    check_recovery(HTTP, Answer::Status(500), 3, PATIENCE);
}

/// The same for Loki.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn a_loki_that_answers_500_loses_nothing() {
    check_recovery(LOKI, Answer::Status(500), 3, PATIENCE);
}

/// 429 means later.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn a_receiver_that_answers_429_loses_nothing() {
    check_recovery(HTTP, Answer::Status(429), 2, PATIENCE);
}

/// Silence ends with our own time-out, after which the batch is tried again: the second request proves it.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn a_receiver_that_hangs_is_tried_again_after_a_time_out() {
    check_recovery(HTTP, Answer::Hang, 2, Duration::from_secs(45));
}

/// A receiver that is not there yet gets everything once it is.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn a_receiver_that_comes_late_gets_everything() {
    let (scene, port) = (Scene::new(), free_port());
    let address = format!("127.0.0.1:{port}");
    let outrigger = start(&scene, HTTP, &address);
    until(PATIENCE, "the status names the receiver", || outrigger.get("/status").text().contains(&address));
    let receiver = LogReceiver::start_on(port, Answer::Accept);
    assert_nothing_lost(&receiver);
    outrigger.finish();
}

/// 400 will never be anything else: the lines are dropped, counted by a reason, and said; the app and the end are unharmed.
fn check_refusal(sink: &str) {
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
    assert!(metrics.contains(&format!("reason=\"{reason}\"")), "the metrics name {reason}:\n{metrics}");
    assert!(outrigger.stderr.contains("400"), "our log says what the receiver answered");
    outrigger.finish();
}

/// For JSON lines.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn lines_refused_with_400_are_dropped_and_counted_by_reason() {
    check_refusal(HTTP);
}

/// For Loki.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn lines_that_loki_refuses_with_400_are_dropped_and_counted_by_reason() {
    check_refusal(LOKI);
}

/// One refused batch does not take the next one with it.
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn delivery_goes_on_after_a_refused_batch() {
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
    let mut file = std::fs::OpenOptions::new().append(true).open(scene.path("in.log")).expect("it is our file");
    file.write_all(b"n=000000\nn=000001\n").expect("the log can be written");
    receiver.wait_for(2, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 2);
    outrigger.finish();
}

/// With the receiver down until the end, the end comes within the deadline, and the next start delivers what was left:
/// the file's lines from their checkpoint, the app's from what was persisted.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn what_a_dead_receiver_left_is_delivered_after_a_restart() {
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
/// covers: foundation 5
/// covers: foundation 16
#[test]
fn a_dead_receiver_takes_nothing_else_with_it() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Hang));
    let outrigger = start(&scene, HTTP, &receiver.address());
    receiver.wait_for_refused(1, PATIENCE);
    until(PATIENCE, "ready all the same", || outrigger.status_of("/ready") == 200);
    for path in ["/live", "/started", "/metrics", "/status", "/ledger", "/config", "/"] {
        assert_eq!(get(&outrigger.admin, path).map(|reply| reply.status).ok(), Some(200), "{path}");
    }
    outrigger.finish();
}
