//! How exchanges end if one side stalls, aborts or responds early: timeouts with their responses, resets, early responses.
//! In: misbehaving clients and apps of the test. Out: responses and their duration. Bounded by uploads of 32 MiB and limits
//! of one second, each of which is checked with four seconds.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::harness::proxied::Keys;
use crate::harness::raw_app::{Gate, answer_ok};
use crate::harness::server::Server;
use crate::harness::wire::Reply;
use crate::harness::{Next, PATIENCE, Proxied, RawApp, SECOND, Wire, free_port};

/// All limits that could apply to a stalled body.
const SHORT: Keys<'_> = Keys {
    listener: "request_headers_timeout: 1s, idle_timeout: 1s",
    cluster: "response_headers_timeout: 1s",
    limits: "",
};

/// A limit of one second, with tolerance for a shared machine.
const SHORT_ENOUGH: Duration = Duration::from_secs(4);

/// A local response of the proxy, and the time until the response and the close of the connection.
#[track_caller]
fn last_response(wire: &mut Wire<TcpStream>, method: &str) -> (Result<Reply, String>, Duration) {
    let began = Instant::now();
    wire.wait_at_most(2 * SHORT_ENOUGH);
    let reply = wire.reply(method).map_err(|error| error.to_string());
    if reply.is_ok() {
        wire.until_closed().expect("the connection is closed after the response");
    }
    (reply, began.elapsed())
}

/// An endpoint that stops reading after the beginning of an upload is 504 for the client, and the connection closes: with a
/// length and with chunks.
#[test]
fn endpoint_that_stops_reading_an_upload_is_504() {
    let gate = Gate::default();
    let app = Server::start({
        let gate = gate.clone();
        move |stream| {
            Wire::new(stream.try_clone().expect("a file descriptor is available")).exactly(64 << 10).ok();
            gate.wait();
        }
    });
    let proxied = Proxied::with(&[&app.address()], SHORT);
    const UPLOAD: usize = 32 << 20;
    let chunked = format!("POST /chunks HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n{UPLOAD:x}\r\n");
    let length = format!("POST /length HTTP/1.1\r\nHost: app\r\nContent-Length: {UPLOAD}\r\n\r\n");
    for (path, head) in [("/length", length), ("/chunks", chunked)] {
        let mut wire = proxied.connect();
        let mut body = Wire::new(wire.stream.try_clone().expect("a file descriptor is available"));
        let sending = std::thread::spawn(move || drop(body.send(head).and_then(|()| body.send(vec![b'x'; UPLOAD]))));
        let (reply, took) = last_response(&mut wire, "POST");
        let status = reply.map(|reply| reply.status);
        assert!(status == Ok(504) && took < SHORT_ENOUGH, "{path}: {status:?} after {took:?}");
        drop(wire);
        // The rest was either read for some time or reset; the upload finished.
        sending.join().expect("no panic");
        assert_eq!(proxied.record_of(path)["status"], 504);
    }
    gate.open();
    proxied.finish();
}

/// RFC 9110, 15.5.9: a client whose body stalls gets 408 before its connection closes, and the record agrees.
#[test]
fn stalled_request_body_is_408() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::with(&[&app.address()], SHORT);
    let cases = [
        ("/length", "Content-Length: 100\r\n\r\nhello"),
        ("/nothing", "Content-Length: 100\r\n\r\n"),
        ("/chunks", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ("/in-a-chunk", "Transfer-Encoding: chunked\r\n\r\nff\r\nhello"),
    ];
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let stalled = cases.map(|(path, rest)| {
            let mut wire = proxied.connect();
            wire.send(format!("POST {path} HTTP/1.1\r\nHost: app\r\n{rest}")).expect("the proxy reads");
            (path, scope.spawn(move || last_response(&mut wire, "POST")))
        });
        for (path, response) in stalled {
            let (reply, took) = response.join().expect("no panic");
            let received = reply.map(|reply| (reply.status, reply.head.header("connection").map(str::to_owned)));
            if received != Ok((408, Some("close".to_owned()))) || took > SHORT_ENOUGH {
                wrong.push(format!("{path}: {received:?} after {took:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (path, _) in cases {
        assert_eq!(proxied.record_of(path)["status"], 408, "{path}");
    }
    assert_eq!(app.seen_count(), 0, "the app has seen no complete request");
    proxied.finish();
}

/// RFC 9112, 9.6: a response of the app or the proxy before the end of the upload reaches a client that first writes all of
/// the upload.
#[test]
fn early_response_reaches_a_client_still_writing() {
    let app = Server::start(|stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(head)) = wire.head() {
            let (status, fields) = match head.target() {
                "/413" => ("413 Content Too Large", ""),
                _ => ("401 Unauthorized", "Connection: close\r\n"),
            };
            let sent = wire.send(format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n{fields}\r\nearly"));
            // The app keeps reading after its response, or closes immediately.
            if sent.is_err() || head.target() == "/401-closed" || wire.request_body(&head).is_err() {
                return;
            }
        }
    });
    let alive = Proxied::to(&app.address());
    let dead = Proxied::to(&format!("127.0.0.1:{}", free_port()));
    let (length, chunked) =
        (format!("Content-Length: {EARLY}"), format!("Transfer-Encoding: chunked\r\n\r\n{EARLY:x}"));
    let both = format!("Content-Length: {EARLY}\r\n{chunked}");
    let cases = [
        (&alive, "/413", format!("{length}\r\n\r\n"), 413),
        (&alive, "/401", format!("{chunked}\r\n"), 401),
        (&alive, "/401-closed", format!("{length}\r\n\r\n"), 401),
        (&alive, "/refused", format!("{both}\r\n"), 400),
        (&dead, "/dead", format!("{length}\r\n\r\n"), 503),
    ];
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let uploads: Vec<_> = [&cases, &cases]
            .into_iter()
            .flatten()
            .map(|(proxied, target, fields, status)| {
                let head = format!("POST {target} HTTP/1.1\r\nHost: app\r\n{fields}");
                let wire = proxied.connect();
                (target, status, scope.spawn(move || upload_and_read(wire, &head)))
            })
            .collect();
        for (target, status, upload) in uploads {
            let reply = upload.join().expect("no panic").map(|reply| (reply.status, reply.body.whole));
            if !matches!(&reply, Ok((received, true)) if received == status) {
                wrong.push(format!("{target}: {reply:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{} of 10: {wrong:#?}", wrong.len());
    alive.finish();
    dead.finish();
}

/// The size of an upload with an early response.
const EARLY: usize = 1 << 20;

/// Writes the complete upload at the pace of a network, and reads only after it.
fn upload_and_read(mut wire: Wire<TcpStream>, head: &str) -> io::Result<Reply> {
    wire.send(head)?;
    let piece = [b'x'; EARLY / 64];
    for _ in 0..64 {
        wire.send(piece)?;
        // why: the pace of an upload of less than a second
        std::thread::sleep(Duration::from_millis(10));
    }
    if head.contains("chunked") {
        wire.send("\r\n0\r\n\r\n")?;
    }
    wire.reply("POST")
}

/// One timer runs from the request to the end of the response head, however often the endpoint sends something before that.
#[test]
fn trickling_response_head_is_504() {
    let app = RawApp::start(|seen, wire| {
        let (first, piece) = match seen.head.target() {
            "/bytes" => ("HTTP/1.1 200 OK\r\nX-Slow: ", "x"),
            "/fields" => ("HTTP/1.1 200 OK\r\n", "X-Slow: x\r\n"),
            "/102" => ("", "HTTP/1.1 102 Processing\r\n\r\n"),
            _ => ("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
        };
        let mut sent = wire.send(first);
        let began = Instant::now();
        while sent.is_ok() && began.elapsed() < 2 * SHORT_ENOUGH {
            // why: the endpoint is slow
            std::thread::sleep(SECOND / 4);
            sent = wire.send(piece);
        }
        Next::Close
    });
    let proxied = Proxied::with(&[&app.address()], Keys { cluster: "response_headers_timeout: 1s", ..Keys::default() });
    let cases = [("/bytes", "GET", ""), ("/fields", "POST", "hello"), ("/102", "POST", "hello"), ("/103", "GET", "")];
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let pending = cases.map(|(path, method, body)| {
            let mut wire = proxied.connect();
            let length = body.len();
            let head = format!("{method} {path} HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n{body}");
            wire.send(head).expect("the proxy reads");
            (path, scope.spawn(move || last_response(&mut wire, method)))
        });
        for (path, response) in pending {
            let (reply, took) = response.join().expect("no panic");
            let status = reply.map(|reply| reply.status);
            if status != Ok(504) || took > SHORT_ENOUGH {
                wrong.push(format!("{path}: {status:?} after {took:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// An app that reports the target of each connection that a peer closes. It responds to `/begun` partially, and to
/// `/half` once the gate is open.
fn watchful_app(gate: Gate) -> (Server, Receiver<String>, Receiver<String>) {
    let ((requested, requested_rx), (closed, closed_rx)) = (channel(), channel());
    let app = Server::start(move |stream| {
        let mut wire = Wire::new(stream);
        let Ok(Some(head)) = wire.head() else { return };
        let target = head.target().to_owned();
        if wire.request_body(&head).is_err() {
            return;
        }
        if target == "/begun" {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello").ok();
        }
        // The test may have finished.
        requested.send(target.clone()).ok();
        if target == "/half" {
            gate.wait();
            answer_ok(&mut wire, b"whole");
        }
        wire.until_closed().ok();
        closed.send(target).ok();
    });
    (app, requested_rx, closed_rx)
}

/// A client's reset immediately ends the exchange with the endpoint, whatever its state.
#[test]
fn client_reset_reaches_the_endpoint() {
    let (app, requested, closed) = watchful_app(Gate::default());
    let proxied = Proxied::to(&app.address());
    let mut wrong = Vec::new();
    for (method, path) in [("GET", "/waiting"), ("POST", "/uploaded"), ("GET", "/begun")] {
        let mut wire = proxied.connect();
        wire.send(format!("{method} {path} HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"))
            .expect("the proxy reads");
        assert_eq!(requested.recv_timeout(PATIENCE).expect("the app gets the request"), path);
        if path == "/begun" {
            assert_eq!(wire.head().expect("a response").expect("the stream is open").status(), 200);
        }
        wire.reset();
        let reset = Instant::now();
        // The timeouts of the proxy are longer.
        match closed.recv_timeout(PATIENCE) {
            Ok(of) => assert_eq!(of, path),
            Err(_) => {
                wrong.push(format!("{path}: the endpoint's connection is still open {:?} later", reset.elapsed()))
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// A half-closed client connection is not a reset: the client has sent its complete request, and waits for the response.
#[test]
fn half_closed_client_gets_its_response() {
    let gate = Gate::default();
    let (app, requested, _closed) = watchful_app(gate.clone());
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    wire.send("GET /half HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    wire.finish_writing();
    requested.recv_timeout(PATIENCE).expect("the app gets the request");
    // The response to a later request on the same data thread shows that the half-close has been read.
    proxied.exchange("GET / HTTP/1.1\r\nHost: app\r\nHost: app\r\n\r\n", "GET");
    gate.open();
    let reply = wire.reply("GET").expect("a response");
    assert_eq!((reply.status, reply.text().as_str()), (200, "whole"));
    proxied.finish();
}
