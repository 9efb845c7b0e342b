//! The proxy where something is wrong: requests that try to smuggle, apps that are down, slow, or close in the middle,
//! connections that went stale. Bytes go in at the front, an app of the test says what it saw. Bounded by one case each.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::raw_app::answer_ok;
use crate::harness::server::Server;
use crate::harness::{
    Next, PATIENCE, Proxied, RawApp, SECOND, Wire, assert_counts_up, free_port, get, number_after, until,
};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";

/// Heads that two readers could understand differently. Each is refused before anything of it reaches the app.
const AMBIGUOUS_HEADS: [(&str, &str); 21] = [
    (
        "both lengths",
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "both lengths, turned round",
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
    ("a zero byte in a value", "POST / HTTP/1.1\r\nHost: app\r\nX-A: b\0c\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nX-A: b\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n"),
    ("no version", "GET /\r\nHost: app\r\n\r\n"),
];

/// Bodies that break off what their head promised. The head may have passed; no second request may come of it.
const BROKEN_CHUNKS: [(&str, &str); 7] = [
    ("a bare line feed after the size", "5\nhello\r\n0\r\n\r\n"),
    ("a bare line feed after the data", "5\r\nhello\n0\r\n\r\n"),
    ("a size that is no number", "hello\r\n0\r\n\r\n"),
    ("a size too large for any number", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ("a size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
    ("data longer than its size", "3\r\nhello\r\n0\r\n\r\n"),
    ("a size with a space before it", " 5\r\nhello\r\n0\r\n\r\n"),
];

/// Sends a request that is not one, with a second one behind it. What is wrong with the way it is treated: anything but
/// a 400, more than that, a connection that stays open, or an app that saw a request.
fn refusal(proxied: &Proxied, app: &RawApp, request: &str) -> Result<(), String> {
    let seen_before = app.seen_count();
    let mut wire = proxied.connect();
    wire.send(format!("{request}{SMUGGLED}")).map_err(|error| format!("not read: {error}"))?;
    let reply = wire.reply("POST").map_err(|error| format!("no answer: {error}"))?;
    // For a coding that is merely unknown, RFC 9112 names 501 as well.
    if reply.status != 400 && !(reply.status == 501 && request.contains("xchunked")) {
        return Err(format!("answered with {}", reply.status));
    }
    let rest = wire.until_closed().map_err(|error| format!("still open: {error}"))?;
    if !rest.bytes.is_empty() {
        return Err(format!("after the refusal came {:?}", String::from_utf8_lossy(&rest.bytes)));
    }
    match app.seen().get(seen_before) {
        Some(seen) => Err(format!("the app saw {:?}", seen.head)),
        None => Ok(()),
    }
}

/// Each ambiguous head is refused with 400, the connection is closed, and the app never hears of it.
/// covers: foundation 5
#[test]
fn ambiguous_heads_are_refused_with_400() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    assert_eq!(proxied.get("/before").status, 200, "the way to the app is open");
    let wrong: Vec<String> = AMBIGUOUS_HEADS
        .iter()
        .filter_map(|(what, head)| Some(format!("{what}: {}", refusal(&proxied, &app, head).err()?)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(proxied.get("/after").status, 200);
    proxied.finish();
}

/// Each broken chunk is refused with 400, the connection is closed, and the app sees neither it nor what follows as a
/// request.
/// covers: foundation 5
#[test]
fn broken_chunks_are_refused_with_400() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    let head = "POST /broken HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
    let wrong: Vec<String> = BROKEN_CHUNKS
        .iter()
        .filter_map(|(what, body)| {
            Some(format!("{what}: {}", refusal(&proxied, &app, &format!("{head}{body}")).err()?))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(proxied.get("/after").status, 200, "the next request has a clean connection to the app");
    assert_eq!(app.seen().last().map(|seen| seen.head.target().to_owned()).as_deref(), Some("/after"));
    proxied.finish();
}

/// A head that never ends is refused, not stored.
/// covers: foundation 5
#[test]
fn a_head_without_end_is_refused() {
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
        // What is still unread when it closes makes the kernel reset the connection: refused as well.
        Err(error) => assert!(sent.is_err() || error.kind() != std::io::ErrorKind::WouldBlock, "{error}"),
    }
    assert_eq!(app.seen_count(), 0);
    assert_eq!(proxied.get("/after").status, 200);
    proxied.finish();
}

/// Lengths that an app's answer contradicts itself with are never handed on: the client gets 502.
/// covers: foundation 5
#[test]
fn ambiguous_answers_are_not_handed_on() {
    let app = RawApp::start(|seen, wire| {
        let answer = match seen.head.target() {
            "/two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 4\r\n\r\nabcd",
            "/nonsense" => "this is not HTTP\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nabcd",
        };
        wire.send(answer).map_or(Next::Close, |()| Next::Close)
    });
    let proxied = Proxied::to(&app.address());
    for target in ["/two-lengths", "/nonsense", "/negative"] {
        assert_eq!(proxied.get(target).status, 502, "{target}");
    }
    proxied.finish();
}

/// An app that closes in the middle of its answer is never made to look as if it had finished.
/// covers: foundation 5
#[test]
fn an_answer_that_is_cut_is_seen_as_cut() {
    let app = RawApp::start(|seen, wire| {
        let answer = match seen.head.target() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Len",
        };
        wire.send(answer).map_or(Next::Close, |()| Next::Close)
    });
    let proxied = Proxied::to(&app.address());
    for target in ["/length", "/chunks"] {
        let reply = proxied.get(target);
        assert_eq!((reply.status, reply.text().as_str(), reply.body.whole), (200, "half", false), "{target}");
    }
    assert_eq!(proxied.get("/head").status, 502, "an answer that is cut within its head");
    proxied.finish();
}

/// An app that is down is a 503 (or 502) whose body names the cluster; when it comes up, it is served without our restart.
/// covers: foundation 5
#[test]
fn an_app_that_is_down_is_an_answer_that_names_the_cluster() {
    let port = free_port();
    let proxied = Proxied::to(&format!("127.0.0.1:{port}"));
    for _ in 0..3 {
        let began = Instant::now();
        let reply = proxied.get("/");
        assert!(matches!(reply.status, 502 | 503), "{}", reply.status);
        assert!(reply.text().contains("back"), "the body names the cluster: {}", reply.text());
        assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    }
    let app = Server::start_on(port, |stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(_)) = wire.head() {
            answer_ok(&mut wire, b"up");
        }
    });
    until(PATIENCE, "the app is served once it is up", || proxied.get("/").status == 200);
    assert!(app.connections() > 0);
    proxied.finish();
}

/// One endpoint of two that refuses connections costs no request.
/// covers: foundation 5
#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let app = RawApp::echoing_targets();
    let down = format!("127.0.0.1:{}", free_port());
    let proxied = Proxied::to_all(&[&down, &app.address()]);
    for _ in 0..50 {
        assert_eq!(proxied.get("/").status, 200);
    }
    proxied.finish();
}

/// An app that closes a kept connection when the next request arrives on it: the request is sent again on a new one, and
/// the client notices nothing.
/// covers: foundation 5
#[test]
fn a_get_on_a_stale_connection_is_sent_again() {
    let stale = std::sync::Arc::new(AtomicUsize::new(0));
    let app = Server::start({
        let stale = stale.clone();
        move |stream| {
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head() else { return };
            answer_ok(&mut wire, head.target().as_bytes());
            // The second request on any connection is read and thrown away, as by an app that had just decided to close.
            if let Ok(Some(_)) = wire.head() {
                stale.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    let mut numbers = Vec::new();
    for number in 0..40 {
        wire.send(format!("GET /n={number:06} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the connection is kept");
        let reply = wire.reply("GET").expect("an answer");
        assert_eq!(reply.status, 200, "request {number}");
        numbers.extend(number_after(&reply.text(), "n="));
    }
    assert_counts_up(&numbers, 40);
    assert!(stale.load(Ordering::SeqCst) > 10, "connections did go stale: {}", stale.load(Ordering::SeqCst));
    proxied.finish();
}

/// A PUT with its body, and requests that were sent without waiting, survive connections that went stale: each is sent again
/// whole, from its own beginning, and what follows it is still the next request.
/// covers: foundation 5
#[test]
fn bodies_and_pipelined_requests_survive_stale_connections() {
    let stale = std::sync::Arc::new(AtomicUsize::new(0));
    let app = Server::start({
        let stale = stale.clone();
        move |stream| {
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head() else { return };
            let length = head.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let Ok(body) = wire.exactly(length) else { return };
            let reports = format!("{} {}", head.target(), String::from_utf8_lossy(&body.bytes));
            answer_ok(&mut wire, reports.as_bytes());
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
        wire.send(format!("{put}{get}{get}")).expect("the connection is kept");
        let expected = [format!("/put/{number} hello"), format!("/get/{number} "), format!("/get/{number} ")];
        for (method, expected) in ["PUT", "GET", "GET"].into_iter().zip(expected) {
            let reply = wire.reply(method).expect("an answer");
            assert_eq!((reply.status, reply.text()), (200, expected));
        }
    }
    assert!(stale.load(Ordering::SeqCst) > 10, "connections did go stale: {}", stale.load(Ordering::SeqCst));
    proxied.finish();
}

/// A POST that the app may have seen is never sent a second time; the client is told.
/// covers: foundation 5
#[test]
fn a_post_that_the_app_may_have_seen_is_not_sent_again() {
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

/// An app that is slow to answer one client does not keep the others waiting.
/// covers: foundation 5
#[test]
fn a_slow_answer_holds_nobody_else_up() {
    let app = RawApp::start(|seen, wire| {
        if seen.head.target() == "/slow" {
            // why: the app is a slow one
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
        for answer in slow {
            assert_eq!(answer.join().expect("no panic"), 200);
        }
    });
    proxied.finish();
}

/// A client that goes away in the middle of an answer costs only that answer: the next request is served cleanly.
/// covers: foundation 5
#[test]
fn a_client_that_goes_away_leaves_no_trace() {
    let app = RawApp::start(|seen, wire| match seen.head.target() {
        "/big" => answer_ok(wire, &vec![b'x'; 5_000_000]),
        other => answer_ok(wire, other.as_bytes()),
    });
    let proxied = Proxied::to(&app.address());
    for number in 0..10 {
        let mut wire = proxied.connect();
        wire.send("GET /big HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
        wire.exactly(1000).expect("some of the answer");
        drop(wire);
        let target = format!("/after-{number}");
        assert_eq!(proxied.get(&target).text(), target, "its own answer, not the rest of another one");
    }
    proxied.finish();
}

/// Every request leaves one access record, those that we answer ourselves included, and the counter says the same.
/// covers: foundation 5
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

/// A port that the kernel gave to nobody else stays with the listener while we run.
/// covers: foundation 5
#[test]
fn the_listener_holds_its_address() {
    let app = RawApp::echoing_targets();
    let proxied = Proxied::to(&app.address());
    assert!(TcpListener::bind(&proxied.front).is_err(), "{} is held", proxied.front);
    let front = proxied.front.clone();
    proxied.finish();
    until(PATIENCE, "the listener's port is free after the end", || TcpListener::bind(&front).is_ok());
}
