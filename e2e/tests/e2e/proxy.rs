//! The proxy without faults: counts that agree everywhere, heads and bodies forwarded unchanged, keep-alive on both
//! sides, tunnels, streams. In: bytes to the proxy's front. Out: what an app of the test behind the proxy records.
//! Bounded by 200,000 small requests and bodies of 10 MB.

use std::time::{Duration, Instant};

use crate::harness::process::{resident_kib, run_to_end};
use crate::harness::raw_app::answer_ok;
use crate::harness::{
    Exposition, Next, Outrigger, PATIENCE, Proxied, RawApp, SECOND, Scene, fixture, get, ledger_row, number_after,
    until,
};

const LOAD: usize = 200_000;

/// 200,000 requests of h2load through the proxy to nginx: no error, and the client, the app's log, Outrigger's metrics, its
/// access records and the ledger agree exactly.
/// Guarantee: one-access-record-per-request, ledger-balances
#[test]
fn all_counts_agree_on_200_000_requests() {
    let scene = Scene::new();
    let nginx = need_peer!("nginx");
    let h2load = need_peer!("h2load");
    for name in ["port", "front", "page"] {
        scene.port(name);
    }
    scene.set("log", scene.text_path("app.log"));
    let template = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture exists");
    let config = scene.write("nginx.conf", scene.fill(&template)).display().to_string();
    let body = r#"
app: { port: @port@ }
logs: { sources: { access: { proxy: {} } }, sinks: { records: { file: { path: "@dir@/access.log" } } } }
metrics: { sources: { proxy: { proxy: {} } }, sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } } }
proxy: { threads: 1, listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
"#;
    let outrigger = Outrigger::start(&scene, body, &[&nginx, "-e", "stderr", "-c", &config]);
    let url = format!("http://127.0.0.1:{}/load", scene.value("front"));
    until(PATIENCE, "nginx serves", || get(&format!("127.0.0.1:{}", scene.value("port")), "/health").is_ok());
    let load = LOAD.to_string();
    let (code, client, stderr) = run_to_end(&[&h2load, "--h1", "-n", &load, "-c", "64", "-t", "1", &url], 50 * SECOND);
    assert_eq!(code, 0, "{stderr}");
    assert!(client.contains(&format!("{LOAD} succeeded, 0 failed, 0 errored, 0 timeout")), "the client:\n{client}");
    assert!(client.contains(&format!("status codes: {LOAD} 2xx")), "the client:\n{client}");
    let lines =
        |name: &str| std::fs::read(scene.path(name)).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    until(PATIENCE, "a line of nginx for each request", || lines("load.log") == LOAD);
    until(PATIENCE, "an access record for each request", || lines("access.log") >= LOAD);
    assert_eq!(lines("access.log"), LOAD, "exactly one access record per request");
    let page = format!("127.0.0.1:{}", scene.value("page"));
    until(PATIENCE, "as many requests in the metrics", || counted(&page) == Some(LOAD));
    let source = ledger_row(&outrigger.admin, "logs.sources.access");
    assert_eq!(source["received"], LOAD, "{source}");
    until(PATIENCE, "all records delivered", || {
        ledger_row(&outrigger.admin, "logs.sinks.records")["delivered"] == LOAD
    });
    assert_eq!(outrigger.finish().code, 0);
}

/// How many requests the exposed duration histograms of the proxy have counted.
fn counted(page: &str) -> Option<usize> {
    let page = Exposition::of(page)?;
    let sum = page.sum(|series| series.name.contains("request_duration") && series.name.ends_with("_count"))?;
    Some(sum as usize)
}

/// Names keep their case and order, and values their bytes, in both directions; the proxy inserts nothing between them.
/// Guarantee: headers-forwarded-unchanged
#[test]
fn headers_keep_their_case_and_order() {
    let names = ["X-Zulu", "x-alpha", "X-MiXeD-cAsE", "Cookie", "x-alpha", "ACCEPT", "X-Empty", "Authorization"];
    let values = ["1", "two  spaces", "\u{fc}", "a=b; c=d", "again", "*/*", "", "Bearer abc"];
    let written: Vec<(String, String)> =
        names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect();
    let lines: String = written.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let response = format!("HTTP/1.1 200 Very Well\r\n{lines}Content-Length: 2\r\n\r\nok");
    let app = RawApp::start(move |_, wire| wire.send(&response).map_or(Next::Close, |()| Next::Keep));
    let proxied = Proxied::to(&app.address());
    let reply = proxied.exchange(format!("GET /a%2Fb/../c?d=e&f HTTP/1.1\r\nHost: App.Example\r\n{lines}\r\n"), "GET");
    assert_eq!(reply.head.start, "HTTP/1.1 200 Very Well");
    let listed = |headers: &[(String, String)]| -> Vec<(String, String)> {
        let known = |name: &str| names.contains(&name);
        headers.iter().filter(|(name, _)| known(name)).cloned().collect()
    };
    assert_eq!(listed(&reply.head.headers), written, "the response's headers");
    let seen = app.seen().remove(0);
    assert_eq!(listed(&seen.head.headers), written, "the request's headers");
    assert_eq!(seen.head.start, "GET /a%2Fb/../c?d=e&f HTTP/1.1", "the target is unchanged");
    assert_eq!(seen.head.header("host"), Some("App.Example"));
    proxied.finish();
}

/// Hop-by-hop headers are not forwarded: fields listed in `Connection` do not reach the app.
#[test]
fn hop_by_hop_headers_are_not_forwarded() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let head = "GET / HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nX-Stays: 2\r\n\r\n";
    assert_eq!(proxied.exchange(head, "GET").status, 200);
    let seen = app.seen().remove(0);
    assert_eq!((seen.head.header("x-hop"), seen.head.header("keep-alive")), (None, None), "{:?}", seen.head);
    assert_eq!(seen.head.header("x-stays"), Some("2"));
    proxied.finish();
}

/// Chunked bodies keep their bytes and their trailers, to the app and back.
#[test]
fn chunked_bodies_and_trailers_pass_both_ways() {
    let app = RawApp::start(|seen, wire| {
        let size = seen.body.bytes.len();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        let chunk = [format!("{size:X};name=value\r\n").as_bytes(), &seen.body.bytes, b"\r\n"].concat();
        let sent = wire.send(head).and_then(|()| wire.send(chunk)).and_then(|()| wire.send("0\r\nX-Sum: 42\r\n\r\n"));
        sent.map_or(Next::Close, |()| Next::Keep)
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    for round in 0..3 {
        let head = "POST / HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n";
        wire.send(head).expect("the proxy reads");
        // Split within the chunk sizes and within the end, as a network may split it.
        for piece in ["5\r", "\nhello\r\n0", "A\r\n, chunked ", "\r\n0\r\nX-Ro", "und: 7\r\n\r", "\n"] {
            wire.send(piece).expect("the proxy reads");
        }
        let reply = wire.reply("POST").expect("a response");
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello, chunked "));
        assert!(reply.body.whole);
        assert_eq!(reply.body.trailers, [("X-Sum".to_owned(), "42".to_owned())]);
        let seen = app.seen().remove(round);
        assert_eq!(seen.body.bytes, b"hello, chunked ");
        assert_eq!(seen.body.trailers, [("X-Round".to_owned(), "7".to_owned())]);
    }
    proxied.finish();
}

/// A client that expects 100 gets it before it sends its body, and the response afterwards.
#[test]
fn expect_100_is_answered_before_the_body() {
    let app = RawApp::start(|seen, wire| answer_ok(wire, &seen.body.bytes));
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    wire.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .expect("the proxy reads");
    let interim = wire.head().expect("an interim response").expect("the stream is open");
    assert_eq!(interim.status(), 100);
    wire.send("body").expect("the proxy reads");
    let reply = wire.reply("POST").expect("the response");
    assert_eq!((reply.status, reply.text().as_str()), (200, "body"));
    proxied.finish();
}

/// HEAD, 204 and 304 have no body whatever their headers declare, and the connection remains usable after them.
#[test]
fn bodyless_responses_leave_connection_usable() {
    let app = RawApp::start(|seen, wire| {
        let response = match (seen.head.method(), seen.head.target()) {
            ("HEAD", _) => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            (_, "/204") => "HTTP/1.1 204 No Content\r\n\r\n",
            (_, "/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        };
        wire.send(response).map_or(Next::Close, |()| Next::Keep)
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let cases = [
        ("HEAD", "/", 200, ""),
        ("GET", "/", 200, "body"),
        ("GET", "/204", 204, ""),
        ("HEAD", "/other", 200, ""),
        ("GET", "/304", 304, ""),
        ("GET", "/", 200, "body"),
    ];
    for (method, target, status, body) in cases {
        wire.send(format!("{method} {target} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the proxy reads");
        let reply = wire.reply(method).unwrap_or_else(|error| panic!("{method} {target}: {error}"));
        assert_eq!((reply.status, reply.text().as_str()), (status, body), "{method} {target}");
    }
    assert_eq!(app.connections(), 1, "the app's connection is reused too");
    proxied.finish();
}

/// Pipelined requests are answered in their order.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let requests: String = (0..50).map(|n| format!("GET /n={n:06} HTTP/1.1\r\nHost: app\r\n\r\n")).collect();
    wire.send(requests).expect("the proxy reads");
    for number in 0..50 {
        let reply = wire.reply("GET").expect("a response");
        assert_eq!(number_after(&reply.text(), "n="), Some(number));
    }
    proxied.finish();
}

/// 10 MB go to the app and return complete, with a length and in chunks, while the proxy stays small.
#[test]
fn ten_megabytes_are_echoed_in_bounded_memory() {
    let app = RawApp::start(|seen, wire| answer_ok(wire, &seen.body.bytes));
    let proxied = Proxied::to(&app.address());
    let body: Vec<u8> = (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let length = format!("POST /length HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut chunked = b"POST /chunks HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(70_001) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let before = resident_kib(proxied.outrigger.worker());
    for request in [[length.as_bytes(), &body].concat(), chunked] {
        let reply = proxied.exchange(&request, "POST");
        assert_eq!(reply.status, 200);
        assert!(reply.body.bytes == body, "the same {} bytes, got {}", body.len(), reply.body.bytes.len());
    }
    let grown = resident_kib(proxied.outrigger.worker()).saturating_sub(before);
    assert!(grown < 8 * 1024, "memory grew by {grown} KiB");
    proxied.finish();
}

/// An upgrade becomes a tunnel: bytes pass both ways without delay, until either side closes.
#[test]
fn an_upgrade_becomes_a_tunnel() {
    let app = RawApp::start(|seen, wire| {
        assert_eq!(seen.head.header("upgrade"), Some("websocket"));
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x01first";
        wire.send(head).expect("the proxy reads");
        while let Ok(body) = wire.exactly(4) {
            if !body.whole || wire.send(body.bytes.to_ascii_uppercase()).is_err() {
                break;
            }
        }
        Next::Close
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let head = "GET /socket HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // Some clients send the first bytes of the new protocol together with the head.
    wire.send(format!("{head}zero")).expect("the proxy reads");
    let reply = wire.head().expect("a response").expect("the stream is open");
    assert_eq!((reply.status(), reply.header("upgrade")), (101, Some("websocket")));
    assert_eq!(wire.exactly(6).expect("bytes").bytes, b"\x01first");
    assert_eq!(wire.exactly(4).expect("bytes").bytes, b"ZERO");
    for word in ["ping", "pong", "\r\n\r\n", "GET "] {
        wire.send(word).expect("the tunnel reads");
        assert_eq!(wire.exactly(4).expect("bytes").bytes, word.to_ascii_uppercase().as_bytes());
    }
    wire.finish_writing();
    assert_eq!(
        wire.until_closed().expect("the tunnel closes").bytes,
        b"",
        "the tunnel closes when the client closes it"
    );
    proxied.finish();
}

/// What a slow app has written is forwarded immediately, not when the response is complete.
#[test]
fn a_slow_app_is_streamed() {
    let app = RawApp::start(|_, wire| {
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").expect("the proxy reads");
        for _ in 0..10 {
            wire.send("5\r\nevent\r\n").expect("the proxy reads");
            // why: the app is slow
            std::thread::sleep(Duration::from_millis(150));
        }
        wire.send("0\r\n\r\n").map_or(Next::Close, |()| Next::Keep)
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    wire.send("GET /events HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    let began = Instant::now();
    wire.head().expect("a response").expect("the stream is open");
    wire.exactly(10).expect("the first event");
    assert!(began.elapsed() < SECOND, "the first event arrived after {:?}", began.elapsed());
    let rest = wire.exactly(95).expect("the rest").bytes;
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    assert!(began.elapsed() > SECOND, "the app was slow");
    proxied.finish();
}

/// Connections are kept alive on both sides: many requests on one, and few to the app for many successive clients.
#[test]
fn connections_are_kept_alive_on_both_sides() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    for number in 0..500 {
        wire.send(format!("GET /n={number:06} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the connection is kept alive");
        assert_eq!(wire.reply("GET").expect("a response").status, 200);
    }
    drop(wire);
    for _ in 0..100 {
        assert_eq!(proxied.get("/").status, 200);
    }
    assert_eq!(app.seen_count(), 600);
    assert!(app.connections() <= 3, "{} connections to the app for 600 requests", app.connections());
    proxied.finish();
}

/// A client that sends `Connection: close`, or uses HTTP/1.0, gets a response and its connection is closed; the app's
/// connection is kept alive.
#[test]
fn connection_close_and_http_1_0_are_honoured() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    for head in
        ["GET /bye HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", "GET /bye HTTP/1.0\r\nHost: app\r\n\r\n"]
    {
        let mut wire = proxied.connect();
        wire.send(head).expect("the proxy reads");
        let reply = wire.reply("GET").expect("a response");
        assert_eq!((reply.status, reply.text().as_str()), (200, "/bye"));
        assert_eq!(wire.until_closed().expect("the proxy closes").bytes, b"");
    }
    assert!(app.connections() <= 1, "{} connections to the app", app.connections());
    proxied.finish();
}

/// Two equally busy endpoints get about the same share of requests.
#[test]
fn requests_are_balanced_between_endpoints() {
    let (one, two) = (RawApp::echoing_targets(), RawApp::echoing_targets());
    let proxied = Proxied::to_all(&[&one.address(), &two.address()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(proxied.get("/").status, 200)));
        }
    });
    let (first, second) = (one.seen_count(), two.seen_count());
    assert_eq!(first + second, 200);
    assert!(first >= 40 && second >= 40, "{first} and {second}");
    proxied.finish();
}
