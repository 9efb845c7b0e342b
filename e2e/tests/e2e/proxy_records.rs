//! Access records and metrics of exchanges that do not finish with a response: client aborts, tunnels, open connections.
//! In: clients that disconnect, and bytes through tunnels. Out: access records, and both metrics endpoints. Bounded by
//! tunnels of 16 MiB.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::proxied::Keys;
use crate::harness::raw_app::Gate;
use crate::harness::server::Server;
use crate::harness::status::await_health;
use crate::harness::{Exposition, Next, Outrigger, PATIENCE, Proxied, RawApp, SECOND, Scene, Wire, until, within};

/// The limit for an immediate report, with tolerance for a shared machine.
const SOON: Duration = Duration::from_secs(4);

/// An abort by the client is a fault neither of the app nor of Outrigger: no 5xx in record and metrics, and the record blames
/// the client.
#[test]
fn client_aborts_are_not_5xx() {
    let gate = Gate::default();
    let app = Server::start({
        let gate = gate.clone();
        move |stream| {
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head() else { return };
            // Reads none of the upload, so that the proxy waits only for the client.
            if head.target() == "/stuck" {
                gate.wait();
            }
            wire.until_closed().ok();
        }
    });
    let proxied = Proxied::to(&app.address());
    let cases = [
        ("/closed", "Content-Length: 100\r\n\r\nhello", false),
        ("/closed-immediately", "Content-Length: 100\r\n\r\n", false),
        ("/closed-in-chunks", "Transfer-Encoding: chunked\r\n\r\nff\r\nhello", false),
        ("/reset", "Content-Length: 100\r\n\r\nhello", true),
        ("/reset-waiting", "Content-Length: 5\r\n\r\nhello", true),
        ("/stuck", "Content-Length: 33554432\r\n\r\nhello", true),
    ];
    for (path, rest, by_reset) in cases {
        let mut wire = proxied.connect();
        let connections = app.connections();
        wire.send(format!("POST {path} HTTP/1.1\r\nHost: app\r\n{rest}")).expect("the proxy reads");
        until(PATIENCE, "the app gets the request", || app.connections() > connections);
        if path == "/stuck" {
            fill(&mut wire);
        }
        if by_reset {
            wire.reset();
        }
    }
    let mut wrong = Vec::new();
    for (path, ..) in cases {
        within(SOON, || !proxied.records_of(path).is_empty());
        match proxied.records_of(path).pop() {
            Some(record) if record["status"] == 499 && blames_the_client(&record) => {}
            record => wrong.push(format!("{path}: {record:?}")),
        }
    }
    gate.open();
    let page = Exposition::of(&proxied.page()).expect("the endpoint responds");
    let status = |labels: &std::collections::BTreeMap<String, String>| labels.get("http_response_status_code").cloned();
    let mut counted: Vec<String> = page.series.iter().filter_map(|series| status(&series.labels)).collect();
    counted.dedup();
    assert!(wrong.is_empty(), "counted as {counted:?}: {wrong:#?}");
    assert!(counted.iter().all(|status| !status.starts_with('5')), "{counted:?}");
    proxied.finish();
}

/// Writes until nothing has been read for half a second.
fn fill(wire: &mut Wire<TcpStream>) {
    wire.stream.set_write_timeout(Some(SECOND / 2)).expect("the limit is not zero");
    let piece = vec![b'x'; 64 << 10];
    while wire.send(&piece).is_ok() {}
}

/// Whether a field other than the client's address and the path blames the client.
fn blames_the_client(record: &Value) -> bool {
    let fields =
        record.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with("client") && *name != "path");
    fields.filter_map(|(_, value)| value.as_str()).any(|value| value.contains("client"))
}

/// A tunnel is recorded at its end, with all bytes it carried and its total duration, however it ends.
#[test]
fn a_tunnel_is_recorded_at_its_end() {
    const SIZE: usize = 16 << 20;
    let app = RawApp::start(|seen, wire| {
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        let sent = wire.send(head);
        match seen.head.target() {
            "/up" => sent.and_then(|()| wire.exactly(SIZE)).and_then(|_| wire.send("done")).ok(),
            _ => sent.and_then(|()| wire.send(vec![b'x'; SIZE])).and_then(|()| wire.until_closed()).map(drop).ok(),
        };
        Next::Close
    });
    let proxied = Proxied::to(&app.address());
    let mut wrong = Vec::new();
    for path in ["/up", "/down", "/down-reset"] {
        let mut wire = proxied.connect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        wire.send(head).expect("the proxy reads");
        assert_eq!(wire.head().expect("a response").expect("the stream is open").status(), 101);
        let began = Instant::now();
        let bytes = if path == "/up" {
            wire.send(vec![b'x'; SIZE]).expect("the tunnel reads");
            assert_eq!(wire.exactly(4).expect("the app's last bytes").bytes, b"done");
            "bytes_received"
        } else {
            assert!(wire.exactly(SIZE).expect("the app's bytes").whole);
            "bytes_sent"
        };
        let took = began.elapsed();
        if path == "/down-reset" {
            wire.reset()
        } else {
            drop(wire)
        }
        let is_right = |record: &Value| {
            let number = |name: &str| record[name].as_f64().unwrap_or(0.0);
            record["status"] == 101
                && number(bytes) >= SIZE as f64
                && number("duration_ms") >= took.as_micros() as f64 / 1000.0
        };
        if !within(SOON, || proxied.records_of(path).last().is_some_and(is_right)) {
            wrong.push(format!("{path} of {took:?}: {:?}", proxied.records_of(path)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// An app that switches protocols and then reads.
fn tunnelling_app() -> RawApp {
    RawApp::start(|_, wire| {
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
        wire.send(head).and_then(|()| wire.until_closed()).ok();
        Next::Close
    })
}

/// A tunnel through the proxy that has carried 10,000 bytes.
#[track_caller]
fn open_tunnel(front: &str, path: &str) -> Wire<TcpStream> {
    let mut wire = Wire::connect(front).expect("the proxy accepts connections");
    let head = format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    wire.send(head).expect("the proxy reads");
    assert_eq!(wire.head().expect("a response").expect("the stream is open").status(), 101);
    wire.send(vec![b'x'; 10_000]).expect("the tunnel reads");
    wire
}

/// A tunnel has no end by itself: if a stop closes it, it is recorded with the bytes it has carried so far.
#[test]
fn tunnel_closed_by_a_stop_is_recorded() {
    let (app, scene) = (tunnelling_app(), Scene::new());
    scene.set("port", app.address().rsplit(':').next().expect("a port"));
    let front = format!("127.0.0.1:{}", scene.port("front"));
    let body = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs: { sources: { access: { proxy: {} } }, sinks: { records: { file: { path: "@dir@/access.log" } } } }
proxy: { listeners: { front: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
"#;
    let outrigger = Outrigger::start(&scene, body, &[]);
    let _tunnel = open_tunnel(&front, "/stop");
    let exit = outrigger.terminate(PATIENCE);
    let records = std::fs::read_to_string(scene.path("access.log")).unwrap_or_default();
    let record: Value = serde_json::from_str(records.lines().last().unwrap_or_default()).unwrap_or_default();
    assert!(
        record["path"] == "/stop" && record["bytes_received"].as_u64() >= Some(10_000),
        "{records}\n{}",
        exit.stderr
    );
}

/// The same if another worker takes over.
#[test]
fn tunnel_closed_by_a_handover_is_recorded() {
    let app = tunnelling_app();
    let proxied = Proxied::to(&app.address());
    let tunnel = open_tunnel(&proxied.front, "/reload");
    let (code, _) = crate::harness::outrigger::upgrade(&proxied.scene, None);
    assert_eq!(code, 0, "another worker takes over");
    assert!(proxied.record_of("/reload")["bytes_received"].as_u64() >= Some(10_000), "{}", proxied.records_text());
    drop(tunnel);
    proxied.finish();
}

/// With the maximum number of connections, each with a request, the next connection waits, and health reports the reason.
#[test]
fn full_listener_and_down_cluster_are_degraded() {
    let gate = Gate::default();
    let app = RawApp::start({
        let gate = gate.clone();
        move |_, wire| {
            gate.wait();
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").map_or(Next::Close, |()| Next::Keep)
        }
    });
    let proxied = Proxied::with(&[&app.address()], Keys { listener: "max_connections: 2", ..Keys::default() });
    let get = |_| {
        let mut wire = proxied.connect();
        wire.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy or the kernel reads");
        wire
    };
    // A connection without a request would be closed for the third.
    let mut busy: Vec<_> = (0..2).map(get).collect();
    until(PATIENCE, "both are in flight", || app.seen_count() == 2);
    busy.push(get(2));
    let began = std::time::SystemTime::now();
    let full = await_health(&proxied.outrigger, "proxy.listeners.front", "degraded", "max_connections = 2");
    full.assert_began_since(began - SECOND);
    gate.open();
    for wire in &mut busy {
        assert_eq!(wire.reply("GET").expect("a response").status, 200);
    }
    await_health(&proxied.outrigger, "proxy.listeners.front", "ok", "");
    drop(app);
    assert_eq!(proxied.get("/").status, 503);
    await_health(&proxied.outrigger, "proxy.clusters.back", "degraded", "127.0.0.1");
    proxied.finish();
}

/// The metric sink's endpoint and the admin listener both report how many connections of a listener are open, and 0 once they
/// are closed.
#[test]
fn open_connections_are_exposed() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::to(&app.address());
    let mut open: Vec<_> = (0..3).map(|_| proxied.connect()).collect();
    for wire in open.iter_mut().skip(1) {
        wire.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
        assert_eq!(wire.reply("GET").expect("a response").status, 200);
    }
    let open_connections = |address: &str| {
        let page = Exposition::of(address)?;
        page.sum(|series| {
            series.name == "outrigger_proxy_downstream_connections" && series.labels["listener"] == "front"
        })
    };
    let (page, admin) = (proxied.page(), proxied.outrigger.admin.clone());
    let both = || [open_connections(&page), open_connections(&admin)];
    let counted = within(SOON, || both() == [Some(3.0), Some(3.0)]);
    assert!(counted, "with three open: {:?} on the sink's endpoint and the admin listener", both());
    drop(open);
    let closed = within(SOON, || both() == [Some(0.0), Some(0.0)]);
    assert!(closed, "with none open: {:?}", both());
    proxied.finish();
}

/// The sum of the series with this name and these labels at the metrics endpoint.
fn metric(proxied: &Proxied, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let page = Exposition::parse(&proxied.outrigger.get("/metrics").text());
    let has = |series: &crate::harness::exposition::Series, (key, value): &(&str, &str)| {
        series.labels.get(*key).is_some_and(|found| found == value)
    };
    page.sum(|series| series.name == name && labels.iter().all(|label| has(series, label)))
}

/// An error response of Outrigger's own has its reason in the header, the access record and the metrics (RFC 9209), and a final
/// recipient's in the metrics.
#[test]
fn own_responses_have_a_reason() {
    let port = crate::harness::free_port();
    let proxied = Proxied::to(&format!("127.0.0.1:{port}"));
    let local = |reason: &str| metric(&proxied, "outrigger_proxy_local_responses_total", &[("reason", reason)]);
    let header = |reply: &crate::harness::wire::Reply| reply.head.header("proxy-status").unwrap_or_default().to_owned();

    let reply = proxied.get("/refused");
    assert_eq!((reply.status, header(&reply).as_str()), (503, "outrigger; error=connection_refused"));
    // An ejection lasts a second.
    let ejected = metric(&proxied, "outrigger_proxy_endpoints", &[("state", "ejected")]);
    assert_eq!(proxied.record_of("/refused")["reason"], "connection_refused");
    assert_eq!((ejected, local("connection_refused")), (Some(1.0), Some(1.0)));
    assert_eq!(metric(&proxied, "outrigger_proxy_upstream_connections_total", &[("result", "failure")]), Some(1.0));

    let reply = proxied.exchange("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "GET");
    assert_eq!((reply.status, header(&reply).as_str()), (400, "outrigger; error=http_request_error"));
    assert_eq!(local("http_request_error"), Some(1.0));
    let reply = proxied.exchange("OPTIONS * HTTP/1.1\r\nHost: app\r\nMax-Forwards: 0\r\n\r\n", "OPTIONS");
    assert_eq!(reply.status, 200);
    assert_eq!(local("direct_response"), Some(1.0));
    proxied.finish();
}

/// Connections, requests in flight and endpoints are counted while they last.
#[test]
fn connections_and_requests_are_counted() {
    let gate = Gate::default();
    let app = RawApp::start({
        let gate = gate.clone();
        move |seen, wire| {
            if seen.head.target() == "/slow" {
                gate.wait();
            }
            crate::harness::raw_app::answer_ok(wire, b"ok")
        }
    });
    let proxied = Proxied::to(&app.address());
    let gauge = |name: &str, labels: &[(&str, &str)]| metric(&proxied, name, labels);
    assert_eq!(gauge("outrigger_proxy_endpoints", &[("state", "healthy")]), Some(1.0));
    assert_eq!(gauge("outrigger_proxy_endpoints", &[("state", "ejected")]), Some(0.0));

    let mut waiting = proxied.connect();
    waiting.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    until(PATIENCE, "the request is in flight", || gauge("outrigger_proxy_requests_in_flight", &[]) == Some(1.0));
    until(PATIENCE, "its connection is active", || {
        gauge("outrigger_proxy_upstream_connections", &[("state", "active")]) == Some(1.0)
    });
    assert_eq!(gauge("outrigger_proxy_downstream_connections", &[]), Some(1.0));
    gate.open();
    assert_eq!(waiting.reply("GET").expect("the proxy responds").status, 200);
    until(PATIENCE, "nothing is in flight", || gauge("outrigger_proxy_requests_in_flight", &[]) == Some(0.0));
    until(PATIENCE, "its connection is idle", || {
        gauge("outrigger_proxy_upstream_connections", &[("state", "idle")]) == Some(1.0)
            && gauge("outrigger_proxy_upstream_connections", &[("state", "active")]) == Some(0.0)
    });
    assert_eq!(
        waiting
            .send("GET /again HTTP/1.1\r\nHost: app\r\n\r\n")
            .and_then(|()| waiting.reply("GET"))
            .map(|r| r.status)
            .ok(),
        Some(200)
    );
    assert_eq!(
        gauge("outrigger_proxy_upstream_connections_total", &[("result", "success")]),
        Some(1.0),
        "it was reused"
    );
    assert_eq!(gauge("outrigger_proxy_downstream_connections_total", &[("protocol", "http1")]), Some(1.0));
    drop(waiting);
    until(PATIENCE, "the client's connection is closed", || {
        gauge("outrigger_proxy_downstream_connections", &[]) == Some(0.0)
    });
    proxied.finish();
}
