//! How Kubernetes ends a companion whose app has used up the Pod's grace period: SIGTERM, and two seconds later SIGKILL for every
//! process. A file of the app, requests and a receiver that is down come in; what the next start delivers goes out. Bounded by
//! some ten thousand lines and two starts per case.

use std::io::Write;
use std::time::Instant;

use crate::harness::process::{Signal, is_alive};
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, RawApp, SECOND, Scene, assert_counts_up, get, ledger_row, until,
};

const COMPANION: &str = r#"
app: { port: @port@, stop: { drain_timeout: 5s, grace_period: 20s, timeout: 30s } }
logs:
  sources:
    files:  { file: { include: ["@dir@/app.log"], read_from: beginning } }
    access: { proxy: {} }
  sinks: { out: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 64KiB, max_age: 100ms } } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
"#;

const REQUESTS: usize = 50;

fn append(scene: &Scene, numbers: std::ops::Range<usize>) {
    let text: String = numbers.map(|number| format!("a line of the app, n={number:06}\n")).collect();
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(scene.path("app.log"))
        .expect("the log can be opened");
    file.write_all(text.as_bytes()).expect("the log can be written");
}

/// SIGTERM while the receiver is down and the app keeps writing, and two seconds later SIGKILL.
fn stop_as_kubernetes_does(scene: &Scene, outrigger: Outrigger) {
    let signalled_at = Instant::now();
    outrigger.signal(Signal::TERM);
    append(scene, 10_000..11_000);
    until(PATIENCE, "the remaining two seconds", || signalled_at.elapsed() >= 2 * SECOND);
    assert!(is_alive(outrigger.pid()), "the companion is killed while it still tries to deliver");
    outrigger.kill_all();
}

/// Guarantee: undelivered-lines-survive-a-restart
#[test]
fn next_start_delivers_a_killed_companions_lines() {
    for outage in [Outage::Absent, Outage::Silent] {
        let scene = Scene::new();
        let app = RawApp::echoing_targets();
        scene.set("port", app.address().rsplit(':').next().expect("a port"));
        let front = format!("127.0.0.1:{}", scene.port("front"));
        let port = crate::harness::free_port();
        scene.set("receiver", format!("127.0.0.1:{port}"));
        let silent = (outage == Outage::Silent).then(|| LogReceiver::start_on(port, Answer::Hang));
        append(&scene, 0..10_000);
        let outrigger = Outrigger::start(&scene, COMPANION, &[]);
        for _ in 0..REQUESTS {
            assert_eq!(get(&front, "/").expect("the app responds").status, 200);
        }
        if let Some(silent) = &silent {
            silent.wait_for_refused(1, PATIENCE);
        }
        stop_as_kubernetes_does(&scene, outrigger);
        append(&scene, 11_000..12_000);
        let receiver = silent.unwrap_or_else(|| LogReceiver::start_on(port, Answer::Accept));
        receiver.answer(Answer::Accept);
        let outrigger = Outrigger::start(&scene, COMPANION, &[]);
        receiver.wait_for(12_000, PATIENCE);
        until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, "logs.sinks.out")["pending"] == 0);
        outrigger.finish();
        assert_counts_up(&receiver.numbers("n="), 12_000);
        let access = receiver.records().iter().filter(|record| record.field("source") == "access").count();
        eprintln!("{outage:?}: the next start delivered {access} of {REQUESTS} access records");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    /// Refuses connections.
    Absent,
    /// Reads, and never responds.
    Silent,
}
