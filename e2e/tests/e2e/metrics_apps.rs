//! Apps that listen late, are short-lived, or change until they are stopped: the first sample arrives soon, and the last values
//! arrive too. In: apps and targets. Out: the samples that a remote-write receiver got. Bounded by one start of the program per
//! test.

use std::net::TcpStream;
use std::time::Duration;

use super::metrics_faults::written;
use crate::harness::{
    Findings, LogReceiver, Outrigger, PATIENCE, Page, Scene, Target, Wait, free_port, python, until, within,
};

/// An app that listens late and exits by itself. Arguments: port, seconds until it listens, seconds until it exits.
const LATE_APP: &str = "
import http.server, os, sys, threading, time
port, late, life = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'late_total 7\\n'
        self.send_response(200)
        self.send_header('Content-Type', 'text/plain; version=0.0.4')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
threading.Timer(life, lambda: os._exit(0)).start()
time.sleep(late)
http.server.ThreadingHTTPServer(('127.0.0.1', port), Page).serve_forever()
";

/// The longest time from a target's listen to its first sample, with one scrape per minute.
const SOON: Duration = Duration::from_secs(8);

/// The first scrape runs when the app accepts connections, and the scrape of a target that is not up yet is retried soon:
/// a first sample does not take a full interval, and an app that starts is not a fault.
#[test]
fn a_late_target_is_scraped_once_it_listens() {
    let python = need!(python(), "python3 is not installed");
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let (port, other) = (scene.port("port").to_string(), free_port());
    scene.set("other", other);
    scene.set("central", receiver.address());
    let body = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources:
    app:   { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 60s } }
    other: { scrape: { url: "http://127.0.0.1:@other@/metrics", interval: 60s } }
  sinks: { central: { remote_write: { url: "http://@central@/api/v1/write" } } }
"#;
    let command = [&python, "-c", LATE_APP, &port, "1.4", "300"];
    let outrigger = Outrigger::start_and(&scene, body, &command, Wait::Started);
    until(PATIENCE, "the app listens", || TcpStream::connect(format!("127.0.0.1:{port}")).is_ok());
    let target = Target::start_on(other, |_, _| Page::text("other_total 7\n"));
    let mut findings = Findings::default();
    for name in ["late_total", "other_total"] {
        let arrived = within(SOON, || written(&receiver, name).iter().any(|sample| sample.value == 7.0));
        findings.check(arrived, || format!("no sample of {name} within {SOON:?}"));
    }
    let warned: Vec<String> = outrigger
        .stderr
        .lines()
        .into_iter()
        .filter(|line| line.contains("WARN") && line.contains("\"metrics.sources.app\""))
        .collect();
    findings.check(warned.is_empty(), || format!("an app that starts is reported as a fault: {warned:?}"));
    drop(target);
    outrigger.finish();
}

/// An app with a lifetime below the interval is scraped anyway.
#[test]
fn short_lived_app_is_scraped() {
    let python = need!(python(), "python3 is not installed");
    let mut findings = Findings::default();
    for (late, life) in [("1.4", "4"), ("0.2", "1.5")] {
        let (scene, receiver) = (Scene::new(), LogReceiver::start());
        let port = scene.port("port").to_string();
        scene.set("central", receiver.address());
        let body = r#"
app: { port: @port@ }
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 15s } } }
  sinks: { central: { remote_write: { url: "http://@central@/api/v1/write" } } }
"#;
        let command = [&python, "-c", LATE_APP, &port, late, life];
        let outrigger = Outrigger::start_and(&scene, body, &command, Wait::Nothing);
        let exit = outrigger.wait(2 * PATIENCE);
        assert_eq!(exit.code, 0, "{}", exit.stderr);
        let arrived = written(&receiver, "late_total").iter().any(|sample| sample.value == 7.0);
        findings.check(arrived, || format!("no sample of an app that listens after {late} s and runs {life} s"));
    }
}

/// Changes after the last regular scrape are exported by one more scrape, at the start of the stop while the app still responds.
#[test]
fn stop_scrapes_the_last_values_of_the_app() {
    let receiver = LogReceiver::start();
    let scene = Scene::new();
    let target = Target::start(|_, round| Page::text(format!("work_total {round}\n")));
    scene.set("target", target.address());
    scene.set("central", receiver.address());
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources: { app: { scrape: { url: "http://@target@/metrics", interval: 60s } } }
  sinks: { central: { remote_write: { url: "http://@central@/api/v1/write" } } }
"#;
    let outrigger = Outrigger::start(&scene, body, &["sleep", "300"]);
    until(PATIENCE, "a first sample", || !written(&receiver, "work_total").is_empty());
    let before = target.rounds("/metrics");
    outrigger.terminate(PATIENCE);
    assert_eq!(target.rounds("/metrics"), before + 1);
    let last = written(&receiver, "work_total").into_iter().rfind(|sample| !sample.is_stale());
    assert_eq!(last.map(|sample| sample.value), Some(before as f64), "the value of the last scrape");
}
