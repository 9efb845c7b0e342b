//! The proxy under faults: requests that try to smuggle, apps that are down, slow, or close in the middle of a response,
//! stale connections. In: bytes to the front. Out: what an app of the test saw. Bounded by one case each.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::raw_app::answer_ok;
use crate::harness::server::Server;
use crate::harness::{
    Next, PATIENCE, Proxied, RawApp, SECOND, Wire, assert_counts_up, free_port, get, number_after, until,
};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";

/// Heads that two readers could parse differently. Each is rejected before any of it reaches the app.
const AMBIGUOUS_HEADS: [(&str, &str); 21] = [
    (
        "both lengths",
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "both lengths, reversed",
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n"),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0, 44\r\n\r\n"),
    ("a length with a sign", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: +0\r\n\r\n"),
    ("a negative length", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: -1\r\n\r\n"),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0x0\r\n\r\n"),
    (
        "a length too large for any number",
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    ),
    ("an empty length", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: \r\n\r\n"),
    ("a folded header", "POST / HTTP/1.1\r\nHost: app\r\nX-Folded: a\r\n Content-Length: 44\r\n\r\n"),
    ("a folded first header", "POST / HTTP/1.1\r\n Host: app\r\nContent-Length: 0\r\n\r\n"),
    ("chunked, then identity", "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("an unknown coding", "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a space before the colon", "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("a tab before the colon", "POST / HTTP/1.1\r\nHost: app\r\nContent-Length\t: 44\r\n\r\n"),
    ("a bare carriage return in a value", "POST / HTTP/1.1\r\nHost: app\r\nX-A: b\rContent-Length: 44\r\n\r\n"),
    ("a NUL byte in a value", "POST / HTTP/1.1\r\nHost: app\r\nX-A: b\0c\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nX-A: b\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n"),
    ("no version", "GET /\r\nHost: app\r\n\r\n"),
];

/// Bodies with malformed chunks. The head may have been forwarded; the app must not get a second request.
const MALFORMED_CHUNKS: [(&str, &str); 7] = [
    ("a bare line feed after the size", "5\nhello\r\n0\r\n\r\n"),
    ("a bare line feed after the data", "5\r\nhello\n0\r\n\r\n"),
    ("a size that is not a number", "hello\r\n0\r\n\r\n"),
    ("a size too large for any number", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("a size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
    ("data longer than its size", "3\r\nhello\r\n0\r\n\r\n"),
    ("a size with a space before it", " 5\r\nhello\r\n0\r\n\r\n"),
];

/// Sends a malformed request followed by a second request. The error says what is wrong with the result: any status but
/// 400, bytes after the response, a connection that stays open, or an app that saw a request.
fn check_rejection(proxied: &Proxied, app: &RawApp, request: &str) -> Result<(), String> {
    let seen_before = app.seen_count();
    let mut wire = proxied.connect();
    wire.send(format!("{request}{SMUGGLED}")).map_err(|error| format!("not read: {error}"))?;
    let reply = wire.reply("POST").map_err(|error| format!("no response: {error}"))?;
    // For a coding that is merely unknown, RFC 9112 allows 501 too.
    if reply.status != 400 && !(reply.status == 501 && request.contains("xchunked")) {
        return Err(format!("the status is {}", reply.status));
    }
    let rest = wire.until_closed().map_err(|error| format!("still open: {error}"))?;
    if !rest.bytes.is_empty() {
        return Err(format!("after the response came {:?}", String::from_utf8_lossy(&rest.bytes)));
    }
    match app.seen().get(seen_before) {
        Some(seen) => Err(format!("the app saw {:?}", seen.head)),
        None => Ok(()),
    }
}

/// Each ambiguous head is rejected with 400, the connection is closed, and the app never gets it.
/// Guarantee: ambiguous-requests-rejected
#[test]
fn ambiguous_heads_are_rejected_with_400() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    assert_eq!(proxied.get("/before").status, 200, "the app is reachable");
    let wrong: Vec<String> = AMBIGUOUS_HEADS
        .iter()
        .filter_map(|(what, head)| Some(format!("{what}: {}", check_rejection(&proxied, &app, head).err()?)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(proxied.get("/after").status, 200);
    proxied.finish();
}

/// Each malformed chunk is rejected with 400, the connection is closed, and the app sees neither the chunk nor the bytes
/// after it as a request.
#[test]
fn malformed_chunks_are_rejected_with_400() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let head = "POST /malformed HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
    let wrong: Vec<String> = MALFORMED_CHUNKS
        .iter()
        .filter_map(|(what, body)| {
            Some(format!("{what}: {}", check_rejection(&proxied, &app, &format!("{head}{body}")).err()?))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(proxied.get("/after").status, 200, "the next request has a clean connection to the app");
    assert_eq!(app.seen().last().map(|seen| seen.head.target().to_owned()).as_deref(), Some("/after"));
    proxied.finish();
}

/// An endless head is rejected, not buffered.
#[test]
fn endless_head_is_rejected() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let line = format!("X-Long: {}\r\n", "x".repeat(1000));
    let mut sent = wire.send("GET / HTTP/1.1\r\nHost: app\r\n");
    for _ in 0..4000 {
        sent = sent.and_then(|()| wire.send(&line));
    }
    match wire.reply("GET") {
        Ok(reply) => assert!(matches!(reply.status, 400 | 413 | 431), "{}", reply.status),
        // Unread bytes at the close make the kernel reset the connection, which is a rejection too.
        Err(error) => assert!(sent.is_err() || error.kind() != std::io::ErrorKind::WouldBlock, "{error}"),
    }
    assert_eq!(app.seen_count(), 0);
    assert_eq!(proxied.get("/after").status, 200);
    proxied.finish();
}

/// A response of the app with contradictory lengths is never forwarded: the client gets 502.
#[test]
fn ambiguous_responses_are_not_forwarded() {
    let app = RawApp::start(|seen, wire| {
        let response = match seen.head.target() {
            "/two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nabcd",
            "/nonsense" => "this is not HTTP\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nabcd",
        };
        wire.send(response).map_or(Next::Close, |()| Next::Close)
    });
    let proxied = Proxied::to(&app.address());
    for target in ["/two-lengths", "/nonsense", "/negative"] {
        assert_eq!(proxied.get(target).status, 502, "{target}");
    }
    proxied.finish();
}

/// A response of an app that closes in the middle of it never looks complete to the client.
/// Guarantee: truncated-responses-visible
#[test]
fn truncated_response_never_looks_complete() {
    let app = RawApp::start(|seen, wire| {
        let response = match seen.head.target() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Len",
        };
        wire.send(response).map_or(Next::Close, |()| Next::Close)
    });
    let proxied = Proxied::to(&app.address());
    for target in ["/length", "/chunks"] {
        let reply = proxied.get(target);
        assert_eq!((reply.status, reply.text().as_str(), reply.body.whole), (200, "half", false), "{target}");
    }
    assert_eq!(proxied.get("/head").status, 502, "a response that is truncated within its head");
    proxied.finish();
}

/// An app that is down is a 503 (or 502) whose body contains the cluster; once the app is up, requests reach it without a
/// restart of Outrigger.
#[test]
fn error_for_a_down_app_contains_the_cluster() {
    let port = free_port();
    let proxied = Proxied::to(&format!("127.0.0.1:{port}"));
    for _ in 0..3 {
        let began = Instant::now();
        let reply = proxied.get("/");
        assert!(matches!(reply.status, 502 | 503), "{}", reply.status);
        assert!(reply.text().contains("back"), "the body contains the cluster: {}", reply.text());
        assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    }
    let app = Server::start_on(port, |stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(_)) = wire.head() {
            answer_ok(&mut wire, b"up");
        }
    });
    until(PATIENCE, "requests reach the app once it is up", || proxied.get("/").status == 200);
    assert!(app.connections() > 0);
    proxied.finish();
}

/// If one of two endpoints refuses connections, no request fails.
#[test]
fn endpoint_that_refuses_connections_is_skipped() {
    let app = RawApp::echoing_targets();
    let down = format!("127.0.0.1:{}", free_port());
    let proxied = Proxied::to_all(&[&down, &app.address()]);
    for _ in 0..50 {
        assert_eq!(proxied.get("/").status, 200);
    }
    proxied.finish();
}

/// If an app closes an idle keep-alive connection when the next request arrives on it, the request is retried on a new
/// connection, and the client sees no error.
#[test]
fn get_on_a_stale_connection_is_retried() {
    let stale = std::sync::Arc::new(AtomicUsize::new(0));
    let app = Server::start({
        let stale = stale.clone();
        move |stream| {
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head() else { return };
            answer_ok(&mut wire, head.target().as_bytes());
            // The second request on any connection is read and discarded, as by an app that is about to close.
            if let Ok(Some(_)) = wire.head() {
                stale.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let mut numbers = Vec::new();
    for number in 0..40 {
        wire.send(format!("GET /n={number:06} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the connection is kept alive");
        let reply = wire.reply("GET").expect("a response");
        assert_eq!(reply.status, 200, "request {number}");
        numbers.extend(number_after(&reply.text(), "n="));
    }
    assert_counts_up(&numbers, 40);
    assert!(stale.load(Ordering::SeqCst) > 10, "stale connections occurred: {}", stale.load(Ordering::SeqCst));
    proxied.finish();
}

/// A PUT with its body, and pipelined requests, survive stale connections: each is retried completely, from its own first
/// byte, and what follows it is still the next request.
#[test]
fn put_and_pipelining_survive_stale_connections() {
    let stale = std::sync::Arc::new(AtomicUsize::new(0));
    let app = Server::start({
        let stale = stale.clone();
        move |stream| {
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head() else { return };
            let length = head.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let Ok(body) = wire.exactly(length) else { return };
            let seen = format!("{} {}", head.target(), String::from_utf8_lossy(&body.bytes));
            answer_ok(&mut wire, seen.as_bytes());
            if let Ok(Some(_)) = wire.head() {
                stale.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    for number in 0..20 {
        let put = format!("PUT /put/{number} HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello");
        let get = format!("GET /get/{number} HTTP/1.1\r\nHost: app\r\n\r\n");
        wire.send(format!("{put}{get}{get}")).expect("the connection is kept alive");
        let expected = [format!("/put/{number} hello"), format!("/get/{number} "), format!("/get/{number} ")];
        for (method, expected) in ["PUT", "GET", "GET"].into_iter().zip(expected) {
            let reply = wire.reply(method).expect("a response");
            assert_eq!((reply.status, reply.text()), (200, expected));
        }
    }
    assert!(stale.load(Ordering::SeqCst) > 10, "stale connections occurred: {}", stale.load(Ordering::SeqCst));
    proxied.finish();
}

/// A POST that the app may have seen is never retried; the client gets an error.
/// Guarantee: non-idempotent-requests-sent-once
#[test]
fn post_that_may_have_been_seen_is_not_retried() {
    let posts = std::sync::Arc::new(AtomicUsize::new(0));
    let app = RawApp::start({
        let posts = posts.clone();
        move |seen, wire| match seen.head.method() {
            "POST" => {
                posts.fetch_add(1, Ordering::SeqCst);
                Next::Close
            }
            _ => answer_ok(wire, b"warm"),
        }
    });
    let proxied = Proxied::to(&app.address());
    for number in 1..=10 {
        assert_eq!(proxied.get("/warm").status, 200);
        let reply = proxied.exchange("POST /order HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbook", "POST");
        assert!(matches!(reply.status, 502..=504), "{}", reply.status);
        assert_eq!(posts.load(Ordering::SeqCst), number, "sent once");
    }
    proxied.finish();
}

/// A slow response to one client does not delay other clients.
#[test]
fn slow_response_does_not_delay_other_clients() {
    let app = RawApp::start(|seen, wire| {
        if seen.head.target() == "/slow" {
            // why: the app is slow
            std::thread::sleep(Duration::from_secs(3));
        }
        answer_ok(wire, b"done")
    });
    let proxied = Proxied::to(&app.address());
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..4).map(|_| scope.spawn(|| proxied.get("/slow").status)).collect();
        until(PATIENCE, "the slow requests arrived", || app.seen_count() == 4);
        let began = Instant::now();
        for _ in 0..100 {
            assert_eq!(proxied.get("/fast").status, 200);
        }
        assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
        for response in slow {
            assert_eq!(response.join().expect("no panic"), 200);
        }
    });
    proxied.finish();
}

/// A client that disconnects in the middle of a response loses only that response: the next request is served correctly.
#[test]
fn client_disconnect_loses_only_its_response() {
    let app = RawApp::start(|seen, wire| match seen.head.target() {
        "/big" => answer_ok(wire, &vec![b'x'; 5_000_000]),
        other => answer_ok(wire, other.as_bytes()),
    });
    let proxied = Proxied::to(&app.address());
    for number in 0..10 {
        let mut wire = proxied.connect();
        wire.send("GET /big HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
        wire.exactly(1000).expect("some of the response");
        drop(wire);
        let target = format!("/after-{number}");
        assert_eq!(proxied.get(&target).text(), target, "its own response, not the rest of another");
    }
    proxied.finish();
}

/// Every request has one access record, including those with a local response, and the counter agrees.
/// Guarantee: one-access-record-per-request
#[test]
fn every_request_leaves_one_access_record() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    for number in 0..20 {
        assert_eq!(proxied.get(&format!("/n={number:06}")).status, 200);
    }
    let records = proxied.scene.path("access.log");
    let text = || std::fs::read_to_string(&records).unwrap_or_default();
    until(PATIENCE, "twenty records", || text().lines().count() >= 20);
    let numbers: Vec<usize> = text().lines().filter_map(|line| number_after(line, "/n=")).collect();
    assert_counts_up(&numbers, 20);
    assert!(text().lines().all(|line| line.contains("GET") && line.contains("200")), "{}", text());
    drop(app);
    assert!(matches!(proxied.get("/down").status, 502 | 503));
    until(PATIENCE, "a record of the failure", || text().lines().any(|line| line.contains("/down")));
    assert!(get(&proxied.outrigger.admin, "/metrics").is_ok_and(|reply| reply.text().contains("outrigger_")));
    proxied.finish();
}

/// No other process can bind the port of the listener while Outrigger runs.
#[test]
fn listener_keeps_its_port_bound() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    assert!(TcpListener::bind(&proxied.front).is_err(), "{} is bound", proxied.front);
    let front = proxied.front.clone();
    proxied.finish();
    until(PATIENCE, "the listener's port is free after the exit", || TcpListener::bind(&front).is_ok());
}
