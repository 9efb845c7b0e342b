//! How exchanges end where one side stalls, gives up or has said enough: time-outs with their answers, resets, early answers.
//! Clients and apps of the test do to the proxy what neither side should; out go answers and how long they took. Bounded by
//! uploads of 32 MiB and limits of one second, each of which has four.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::harness::proxied::Keys;
use crate::harness::raw_app::{Gate, answer_ok};
use crate::harness::server::Server;
use crate::harness::wire::Reply;
use crate::harness::{Next, PATIENCE, Proxied, RawApp, SECOND, Wire, free_port};

/// Every limit that a body which stands still could fall under.
const SHORT: Keys<'_> = Keys {
    listener: "request_headers_timeout: 1s, idle_timeout: 1s",
    cluster: "response_headers_timeout: 1s",
    limits: "",
};

/// A limit of one second on a machine that others use as well.
const SHORT_ENOUGH: Duration = Duration::from_secs(4);

/// An answer that we give ourselves, and how long it and the end of the connection took together.
#[track_caller]
fn last_answer(wire: &mut Wire<TcpStream>, method: &str) -> (Result<Reply, String>, Duration) {
    let began = Instant::now();
    wire.wait_at_most(2 * SHORT_ENOUGH);
    let reply = wire.reply(method).map_err(|error| error.to_string());
    if reply.is_ok() {
        wire.until_closed().expect("the connection is closed behind the answer");
    }
    (reply, began.elapsed())
}

/// An endpoint that takes the beginning of an upload and then nothing more is 504 for the client, and the connection closes:
/// with a length and with chunks.
/// covers: faults 5
#[test]
fn an_endpoint_that_stops_reading_an_upload_is_504() {
    let gate = Gate::default();
    let app = Server::start({
        let gate = gate.clone();
        move |stream| {
            Wire::new(stream.try_clone().expect("a descriptor is left")).exactly(64 << 10).ok();
            gate.wait();
        }
    });
    let proxied = Proxied::with(&[&app.address()], SHORT);
    const UPLOAD: usize = 32 << 20;
    let chunked = format!("POST /chunks HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n{UPLOAD:x}\r\n");
    let length = format!("POST /length HTTP/1.1\r\nHost: app\r\nContent-Length: {UPLOAD}\r\n\r\n");
    for (path, head) in [("/length", length), ("/chunks", chunked)] {
        let mut wire = proxied.connect();
        let mut body = Wire::new(wire.stream.try_clone().expect("a descriptor is left"));
        let sending = std::thread::spawn(move || drop(body.send(head).and_then(|()| body.send(vec![b'x'; UPLOAD]))));
        let (reply, took) = last_answer(&mut wire, "POST");
        let status = reply.map(|reply| reply.status);
        assert!(status == Ok(504) && took < SHORT_ENOUGH, "{path}: {status:?} after {took:?}");
        drop(wire);
        // Whether the rest was read on for a while or refused, it came to an end.
        sending.join().expect("no panic");
        assert_eq!(proxied.record_of(path)["status"], 504);
    }
    gate.open();
    proxied.finish();
}

/// RFC 9110, 15.5.9: a client whose body stands still is told so before its connection closes, and the record agrees.
/// covers: faults 5
#[test]
fn a_body_that_stands_still_is_408() {
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
            (path, scope.spawn(move || last_answer(&mut wire, "POST")))
        });
        for (path, answer) in stalled {
            let (reply, took) = answer.join().expect("no panic");
            let reports = reply.map(|reply| (reply.status, reply.head.header("connection").map(str::to_owned)));
            if reports != Ok((408, Some("close".to_owned()))) || took > SHORT_ENOUGH {
                wrong.push(format!("{path}: {reports:?} after {took:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (path, _) in cases {
        assert_eq!(proxied.record_of(path)["status"], 408, "{path}");
    }
    assert_eq!(app.seen_count(), 0, "the app has seen no whole request");
    proxied.finish();
}

/// RFC 9112, 9.6: an answer that comes before the upload has ended reaches a client that first writes all of it, be it the
/// app's or ours.
/// covers: faults 5
#[test]
fn an_early_answer_reaches_a_client_that_writes_on() {
    let app = Server::start(|stream| {
        let mut wire = Wire::new(stream);
        while let Ok(Some(head)) = wire.head() {
            let (status, fields) = match head.target() {
                "/413" => ("413 Content Too Large", ""),
                _ => ("401 Unauthorized", "Connection: close\r\n"),
            };
            let sent = wire.send(format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n{fields}\r\nearly"));
            // It reads on after its answer, or closes at once.
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
            if !matches!(&reply, Ok((reports, true)) if reports == status) {
                wrong.push(format!("{target}: {reply:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{} of 10: {wrong:#?}", wrong.len());
    alive.finish();
    dead.finish();
}

/// The size of an upload that is answered early.
const EARLY: usize = 1 << 20;

/// Writes the upload to its end at the pace of a network, and reads only then.
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

/// One clock runs from the request to the end of the response's head, however often the endpoint says something meanwhile.
/// covers: faults 5
#[test]
fn a_head_that_trickles_is_504() {
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
            // why: the endpoint is a slow one
            std::thread::sleep(SECOND / 4);
            sent = wire.send(piece);
        }
        Next::Close
    });
    let proxied = Proxied::with(&[&app.address()], Keys { cluster: "response_headers_timeout: 1s", ..Keys::default() });
    let cases = [("/bytes", "GET", ""), ("/fields", "POST", "hello"), ("/102", "POST", "hello"), ("/103", "GET", "")];
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let asked = cases.map(|(path, method, body)| {
            let mut wire = proxied.connect();
            let length = body.len();
            let head = format!("{method} {path} HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n{body}");
            wire.send(head).expect("the proxy reads");
            (path, scope.spawn(move || last_answer(&mut wire, method)))
        });
        for (path, answer) in asked {
            let (reply, took) = answer.join().expect("no panic");
            let status = reply.map(|reply| reply.status);
            if status != Ok(504) || took > SHORT_ENOUGH {
                wrong.push(format!("{path}: {status:?} after {took:?}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// An app that tells when the other end of a connection went away: the target, and when. It answers `/begun` in part, and
/// `/half` once the gate is open.
fn watchful_app(gate: Gate) -> (Server, Receiver<String>, Receiver<(String, Instant)>) {
    let ((asked, asked_rx), (gone, gone_rx)) = (channel(), channel());
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
        // A test that has ended listens no more.
        asked.send(target.clone()).ok();
        if target == "/half" {
            gate.wait();
            answer_ok(&mut wire, b"whole");
        }
        wire.until_closed().ok();
        gone.send((target, Instant::now())).ok();
    });
    (app, asked_rx, gone_rx)
}

/// A client's reset ends the exchange at the endpoint at once, whatever it was at.
/// covers: faults 5
#[test]
fn a_reset_of_the_client_reaches_the_endpoint() {
    let (app, asked, gone) = watchful_app(Gate::default());
    let proxied = Proxied::to(&app.address());
    let mut wrong = Vec::new();
    for (method, path) in [("GET", "/waiting"), ("POST", "/uploaded"), ("GET", "/begun")] {
        let mut wire = proxied.connect();
        wire.send(format!("{method} {path} HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"))
            .expect("the proxy reads");
        assert_eq!(asked.recv_timeout(PATIENCE).expect("the app is asked"), path);
        if path == "/begun" {
            assert_eq!(wire.head().expect("an answer").expect("the stream is open").status(), 200);
        }
        wire.reset();
        let reset = Instant::now();
        match gone.recv_timeout(SHORT_ENOUGH) {
            Ok((of, at)) => assert!(of == path && at.duration_since(reset) < SHORT_ENOUGH, "{of} for {path}"),
            Err(_) => {
                wrong.push(format!("{path}: the endpoint's connection is still open {:?} later", reset.elapsed()))
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// The end of the client's stream alone is no reset: it has said all it had to say, and waits for the answer.
/// covers: faults 5
#[test]
fn a_client_that_has_finished_writing_is_answered() {
    let gate = Gate::default();
    let (app, asked, _gone) = watchful_app(gate.clone());
    let proxied = Proxied::to(&app.address());
    let mut wire = proxied.connect();
    wire.send("GET /half HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    wire.finish_writing();
    asked.recv_timeout(PATIENCE).expect("the app is asked");
    // What comes later on the same data thread has been read and answered by then.
    proxied.exchange("GET / HTTP/1.1\r\nHost: app\r\nHost: app\r\n\r\n", "GET");
    gate.open();
    let reply = wire.reply("GET").expect("an answer");
    assert_eq!((reply.status, reply.text().as_str()), (200, "whole"));
    proxied.finish();
}
