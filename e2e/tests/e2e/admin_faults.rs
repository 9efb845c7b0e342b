//! What unknown clients, scripts and probes do to the admin listeners and to the proxy: idle connections, rejected requests, a
//! missing body, a status for a script, requests that loop. In: requests and commands. Out: compared responses, exit codes,
//! health and file descriptors. Bounded by `CROWD` connections.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::busy::descriptors;
use crate::harness::outrigger::{binary, outrigger, upgrade};
use crate::harness::raw_app::answer_ok;
use crate::harness::status::{health_of_all, post};
use crate::harness::{Next, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, get, request, until, within};

/// A kubelet waits for one second (`timeoutSeconds`); here four, for a shared machine.
const PROBE: Duration = Duration::from_secs(4);

/// Idle connections of one client.
const CROWD: usize = 160;

/// The response status of a probe; 0 if none arrives in time.
fn probe(address: &str, path: &str) -> u16 {
    let began = Instant::now();
    let status = || -> std::io::Result<u16> {
        let mut wire = Wire::connect(address)?;
        wire.stream.set_read_timeout(Some(PROBE))?;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: kubelet\r\nConnection: close\r\n\r\n"))?;
        Ok(wire.reply("GET")?.status)
    };
    status().ok().filter(|_| began.elapsed() < PROBE).unwrap_or(0)
}

/// Sends probes one after another while `CROWD` connections, each of which has sent `bytes`, stay open.
fn check_crowd(bytes: &[u8]) {
    let scene = Scene::new();
    scene.port("probes");
    let admin = "admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/run/admin.sock\", probes_listen: \"127.0.0.1:@probes@\" }";
    let running = Outrigger::start(&scene, admin, &["sleep", "300"]);
    for (address, path) in [(scene.fill("127.0.0.1:@probes@"), "/live"), (running.admin.clone(), "/ready")] {
        let join = |_| {
            let mut stream = TcpStream::connect(&address).expect("the listener accepts connections");
            stream.write_all(bytes).expect("a few bytes");
            stream
        };
        let crowd: Vec<TcpStream> = (0..CROWD).map(join).collect();
        let statuses: Vec<u16> =
            (0..12).map_while(|_| Some(probe(&address, path)).filter(|status| *status == 200)).collect();
        assert_eq!(statuses.len(), 12, "successful probes of {address}{path} next to {CROWD} open connections");
        drop(crowd);
    }
    running.finish();
}

/// As a port scanner leaves them, or a client that opens its connection pool ahead.
#[test]
fn idle_connections_starve_no_probe() {
    check_crowd(b"");
}

/// An incomplete request is as cheap to send, and must not block a probe either.
#[test]
fn incomplete_requests_starve_no_probe() {
    check_crowd(b"GET /live HTTP/1.1\r\nHost: x");
}

/// The head arrives, but the body that it announces never does.
#[test]
fn requests_without_their_body_starve_no_probe() {
    check_crowd(b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n");
}

/// Each client has its response, and keeps the connection open for the next request.
#[test]
fn keep_alive_connections_starve_no_probe() {
    check_crowd(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n");
}

fn subsystems(running: &Outrigger) -> Value {
    let mut subsystems = running.get("/status").json()["subsystems"].clone();
    // Each worker counts `since` from its own start.
    let rows = subsystems.as_array_mut().into_iter().flatten();
    rows.filter_map(Value::as_object_mut).for_each(|row| drop(row.remove("since")));
    subsystems
}

/// The response reports what is wrong with a request; the health of the product does not change.
#[test]
fn a_rejected_upgrade_changes_no_health() {
    let scene = Scene::new();
    let running = Outrigger::start(&scene, "", &["sleep", "300"]);
    let before = subsystems(&running);
    let plain = scene.write("bin/plain", "no program\n").display().to_string();
    for path in [scene.text_path("bin/missing"), plain, scene.text_path("bin")] {
        let (code, output) = upgrade(&scene, Some(&path));
        assert!(code == 1 && output.contains(&path), "{output}");
        assert_eq!(subsystems(&running), before, "after an upgrade to {path}");
    }
    assert_eq!(post(&scene, "/upgrade", Some("relative/path")).status, 400);
    assert_eq!(subsystems(&running), before);
    running.finish();
}

/// While a worker still serves a slow request there is no slot for a third one: the upgrade is rejected, the health unchanged.
#[test]
fn an_upgrade_during_another_changes_no_health() {
    let scene = Scene::new();
    let (front, release) = (format!("127.0.0.1:{}", scene.port("front")), scene.path("release"));
    let app = RawApp::start({
        let release = release.clone();
        move |_, wire| {
            within(PATIENCE, || release.exists());
            answer_ok(wire, b"slow")
        }
    });
    scene.set("port", app.address().rsplit(':').next().expect("a port"));
    let body = "app: { port: @port@, stop: { drain_timeout: 15s, grace_period: 1s, timeout: 20s } }\n\
                proxy: { listeners: { inbound: { listen: \"127.0.0.1:@front@\", direction: inbound, cluster: app } } }";
    let running = Outrigger::start(&scene, body, &[]);
    let before = subsystems(&running);
    let mut slow = Wire::connect(&front).expect("the proxy accepts connections");
    slow.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    until(PATIENCE, "the slow request is in flight", || app.seen_count() == 1);
    let next = scene.program("bin/next", binary()).display().to_string();
    let (code, output) = upgrade(&scene, Some(&next));
    assert_eq!(code, 0, "{output}");
    until(PATIENCE, "ready, with unchanged health", || {
        running.status_of("/ready") == 200 && subsystems(&running) == before
    });
    for _ in 0..2 {
        let (code, output) = upgrade(&scene, Some(&next));
        assert_eq!(code, 1, "one worker still has a request in flight: {output}");
        assert_eq!(subsystems(&running), before, "{output}");
    }
    scene.write("release", "");
    let reply = slow.reply("GET").expect("the slow request gets its response");
    assert_eq!((reply.status, reply.text().as_str()), (200, "slow"));
    until(PATIENCE, "then the upgrade is accepted", || upgrade(&scene, Some(&next)).0 == 0);
    until(PATIENCE, "unchanged health after the second upgrade", || subsystems(&running) == before);
    running.finish();
}

/// No component becomes unhealthy, and none resets its `since`.
#[test]
fn rejected_requests_change_no_component_health() {
    let scene = Scene::new();
    let body = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }";
    let running = Outrigger::start(&scene, body, &["sleep", "300"]);
    let before = health_of_all(&running);
    assert!(before.iter().all(|(_, health, ..)| health == "ok"), "{before:?}");
    let missing = scene.text_path("no-such-binary");
    let refused = [
        ("/log-level", None),
        ("/log-level", Some("louder")),
        ("/stop", Some("soon")),
        ("/upgrade", Some("relative/path")),
        ("/upgrade", Some(missing.as_str())),
        ("/no-such-path", Some("")),
    ];
    for (path, body) in refused {
        let status = post(&scene, path, body).status;
        assert!((400..500).contains(&status), "{path} {body:?}: {status}");
        assert_eq!(health_of_all(&running), before, "{path} {body:?}");
    }
    let reply = request(&running.admin, "POST", "/stop", &[], b"").expect("the listener responds");
    assert!((400..500).contains(&reply.status), "{}", reply.status);
    assert_eq!(health_of_all(&running), before);
    running.finish();
}

/// A missing or unknown level is rejected: the previous level stays in effect.
#[test]
fn an_invalid_log_level_changes_nothing() {
    let scene = Scene::new();
    let running = Outrigger::start(&scene, "", &["sleep", "300"]);
    for body in [None, Some(""), Some("\n"), Some("  "), Some("louder"), Some("=")] {
        let reply = post(&scene, "/log-level", body);
        assert_eq!(reply.status, 400, "{body:?}: {}", reply.text());
        assert!(reply.text().contains("warn"), "the response lists the known levels: {}", reply.text());
    }
    assert_eq!(post(&scene, "/log-level", Some("info\n")).status, 200);
    let exit = running.finish();
    assert!(exit.stderr.contains("stopping"), "the level is still info: {}", exit.stderr);
}

/// The JSON is the complete response of the socket, and nothing else is on stdout; the table is the default.
#[test]
fn status_prints_json_or_a_table() {
    let scene = Scene::new();
    let body = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }";
    let running = Outrigger::start(&scene, body, &["sleep", "300"]);
    let socket = scene.text_path("run/admin.sock");
    let (code, json, stderr) = outrigger(&["status", "--format", "json", "--socket", &socket]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{json}");
    let printed: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("not JSON ({error}): {json}"));
    let served = running.get("/status").json();
    let keys = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
    assert_eq!(keys(&printed), keys(&served), "the same keys");
    for key in ["version", "subsystems", "ledger", "app"] {
        assert_eq!(printed[key], served[key], "{key}");
    }
    let table = outrigger(&["status", "--socket", &socket]);
    let text = outrigger(&["status", "--format", "text", "--socket", &socket]);
    assert_eq!((text.0, text.2.as_str()), (0, ""));
    let first_words =
        |text: &str| text.lines().map(|line| line.split_whitespace().next().map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(first_words(&text.1), first_words(&table.1), "{}", text.1);
    assert!(text.1.contains("logs") && serde_json::from_str::<Value>(&text.1).is_err(), "{}", text.1);
    let (code, stdout, stderr) = outrigger(&["status", "--format", "xml", "--socket", &socket]);
    assert!(code != 0 && stdout.is_empty() && stderr.contains("json"), "{stdout}{stderr}");
    running.finish();
    let (code, stdout, stderr) = outrigger(&["status", "--format", "json", "--socket", &socket]);
    assert!(code == 1 && stdout.is_empty() && stderr.contains(&socket), "{stdout}{stderr}");
}

/// A listener that routes to `@to@`, with few connections: a loop exhausts them instead of the machine's file descriptors.
const FRONT: &str = "\
app: { stop: { drain_timeout: 1s, grace_period: 1s, timeout: 4s } }
proxy:
  listeners: { front: { listen: \"127.0.0.1:@front@\", direction: outbound, cluster: back, max_connections: 64 } }
  clusters: { back: { endpoints: [\"127.0.0.1:@to@\"], response_headers_timeout: 3s } }
";

/// Two instances route to each other, like two services with each other's address: RFC 9110, 7.6.3 defines `Via` for this, and
/// RFC 5842, 7.2 the status.
#[test]
fn a_routing_loop_gets_508() {
    let scenes = [Scene::new(), Scene::new()];
    let ports = [scenes[0].port("front"), scenes[1].port("front")];
    scenes[0].set("to", ports[1]);
    scenes[1].set("to", ports[0]);
    let running = [0, 1].map(|number| Outrigger::start_and(&scenes[number], FRONT, &[], Wait::Started));
    let before = running.each_ref().map(|running| descriptors(running.worker()));
    for (port, via) in [(ports[0], ""), (ports[1], "Via: 1.0 fred, 1.1 p.example.net\r\n")] {
        let mut wire = Wire::connect(&format!("127.0.0.1:{port}")).expect("the proxy accepts connections");
        wire.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{via}\r\n")).expect("the proxy reads");
        let status = wire.reply("GET").map(|reply| reply.status).unwrap_or(0);
        let now = running.each_ref().map(|running| descriptors(running.worker()));
        assert_eq!(status, 508, "descriptors {before:?} before and {now:?} after");
        let most = before.iter().zip(now).map(|(before, now)| now.saturating_sub(*before)).max();
        assert!(most.is_some_and(|more| more <= 8), "descriptors {before:?} before and {now:?} after");
    }
    for running in running {
        running.finish();
    }
}

/// An app that is a proxy itself preserves `Via` and calls out through Outrigger: one request through two listeners is no loop.
#[test]
fn an_app_that_forwards_requests_is_no_loop() {
    let back = RawApp::start(|request, wire| answer_ok(wire, request.head.header("via").unwrap_or("none").as_bytes()));
    let scene = Scene::new();
    let (front, way) = (format!("127.0.0.1:{}", scene.port("front")), format!("127.0.0.1:{}", scene.port("way")));
    let app = RawApp::start(move |request, wire| {
        let vias = request.head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("via"));
        let vias: Vec<(&str, &str)> = vias.map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let reply = request_to(&way, request.head.target(), &vias);
        reply.map_or(Next::Close, |status| answer_ok(wire, status.to_string().as_bytes()))
    });
    scene.set("app", app.address().rsplit(':').next().expect("a port"));
    scene.set("back", back.address());
    let body = "app: { port: @app@, stop: { drain_timeout: 1s, grace_period: 1s, timeout: 4s } }\n\
                proxy:\n  listeners:\n    inbound: { listen: \"127.0.0.1:@front@\", direction: inbound, cluster: app }\n    \
                outbound: { listen: \"127.0.0.1:@way@\", direction: outbound, cluster: back }\n  \
                clusters: { back: { endpoints: [\"@back@\"] } }\n";
    let running = Outrigger::start(&scene, body, &[]);
    for _ in 0..2 {
        let reply = get(&front, "/orders").expect("the proxy responds");
        assert_eq!((reply.status, reply.text().as_str()), (200, "200"), "the app's own request got its response");
    }
    assert_eq!(back.seen_count(), 2);
    assert!(running.finish().took < 10 * SECOND);
}

fn request_to(address: &str, target: &str, headers: &[(&str, &str)]) -> Option<u16> {
    request(address, "GET", target, headers, b"").map(|reply| reply.status).ok()
}
