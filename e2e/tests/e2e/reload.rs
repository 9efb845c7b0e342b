//! A changed configuration: an invalid one changes nothing, a valid one is served by the next worker, and the app, its
//! lines and its connections are not affected. Bounded by the harness's patience.

use crate::harness::outrigger::configuration;
use crate::harness::process::{Signal, is_alive};
use crate::harness::{LogReceiver, Outrigger, PATIENCE, Scene, Wait, assert_counts_up, get, python, request, until};

const BODY: &str = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 3s, timeout: 10s } }
logs:
  sources: { app: { stdio: {} } }
  stages: [ { set: { colour: red } } ]
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 1MiB, max_age: 50ms } } }
proxy:
  listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } }
"#;

const APP: &str = r#"
import http.server, sys, threading, time
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '3'); self.end_headers(); self.wfile.write(b'hi\n')
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Hello)
threading.Thread(target=server.serve_forever, daemon=True).start()
for number in range(100000):
    print(f'n={number:06d}', flush=True)
    time.sleep(0.002)
"#;

/// Guarantee: invalid-reload-changes-nothing
#[test]
fn changed_file_is_served_without_app_impact() {
    let python = need!(python(), "python3 is not installed");
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    scene.port("port");
    scene.port("front");
    let port = scene.value("port");
    let outrigger = Outrigger::start_and(&scene, BODY, &[&python, "-c", APP, &port], Wait::Ready);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    let front = format!("127.0.0.1:{}", scene.value("front"));
    receiver.wait_for(50, PATIENCE);

    scene.write("outrigger.yaml", configuration(&scene, &BODY.replace("set:", "sett:")));
    until(PATIENCE, "the error is reported", || outrigger.stderr.contains("did you mean `set`?"));
    until(PATIENCE, "the status reports it", || outrigger.get("/status").text().contains("invalid configuration"));
    assert_eq!(outrigger.find_worker(), Some(worker), "the old worker keeps serving");

    scene.write("outrigger.yaml", configuration(&scene, &BODY.replace("colour: red", "colour: blue")));
    until(PATIENCE, "the next worker", || {
        assert_eq!(get(&front, "/").map(|reply| reply.status).ok(), Some(200), "each new connection gets a response");
        outrigger.find_worker().is_some_and(|pid| pid != worker)
    });
    until(PATIENCE, "the new field arrives", || {
        receiver.records().iter().any(|record| record.fields["colour"] == "blue")
    });
    assert_eq!(outrigger.app(), app);
    assert!(is_alive(app));
    let exit = outrigger.finish();
    let written = exit.stdout.lines().filter(|line| line.starts_with("n=")).count();
    // Lines in flight at the change may be delivered twice.
    let mut numbers = receiver.numbers("n=");
    numbers.sort_unstable();
    numbers.dedup();
    assert_counts_up(&numbers, written);
}

#[test]
fn companion_reloads_on_sighup_and_keeps_sockets() {
    let scene = Scene::new();
    scene.port("page");
    let body = "metrics: { sources: { self: { self: { interval: 15s } } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@page@\" } } } }";
    let outrigger = Outrigger::start(&scene, body, &[]);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    scene.write("outrigger.yaml", configuration(&scene, &body.replace("15s", "14s")));
    outrigger.signal(Signal::HUP);
    until(PATIENCE, "the new configuration is served", || {
        let reply = request(&page, "GET", "/metrics", &[], b"");
        assert!(reply.is_ok_and(|reply| reply.status == 200), "the endpoint responds at any time");
        outrigger.get("/config").text().contains("14s")
    });
    assert_eq!(outrigger.finish().code, 0);
}
