//! Message framing and hop-by-hop fields: trailers, chunks, upgrades and responses that two readers could parse differently.
//! In: bytes on either side. Out: what the other side received. Bounded by a table for each case.

use crate::harness::proxied::Keys;
use crate::harness::raw_app::{Gate, answer_ok};
use crate::harness::wire::{Body, Head};
use crate::harness::{Next, Proxied, RawApp, free_port};

const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Listed in RFC 9110, 6.5.1, and its predecessor RFC 7230, 4.1.2: fields that a recipient needs before the body.
const FORBIDDEN: &str = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: evil\r\nAuthorization: Basic eA==\r\n\
                         Content-Encoding: gzip\r\nContent-Type: text/x\r\nContent-Range: bytes 0-1/2\r\nTrailer: X-A\r\n\
                         If-None-Match: \"a\"\r\nDate: now\r\nLocation: /x\r\nX-Forwarded-Proto: https\r\n";

/// RFC 9112, 7.1.1 and 7.1.2: trailers are field lines, and chunk extensions have no control bytes. A request hidden in
/// them never reaches the app.
#[test]
fn malformed_trailers_are_rejected() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::to(&app.address());
    let cases = [
        "0\r\nX: y\r\nGET /admin HTTP/1.1\r\nHost: internal\r\n\r\n",
        "5\r\nhello\r\n0\r\nno field\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\n: y\r\n\r\n",
        "0\r\nX: a\x01b\r\n\r\n",
        "0\r\nX\x7f: y\r\n\r\n",
        "5;a=\x01b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\x0b\"\r\nhello\r\n0\r\n\r\n",
        "0;\x7f\r\n\r\n",
    ];
    let mut wrong = Vec::new();
    for body in cases {
        for in_one_write in [true, false] {
            let seen_before = app.seen_count();
            let mut wire = proxied.connect();
            let pieces =
                if in_one_write { vec![[CHUNKED, body].concat()] } else { vec![CHUNKED.to_owned(), body.to_owned()] };
            let sent = pieces.iter().try_for_each(|piece| wire.send(piece));
            let status = sent
                .and_then(|()| wire.reply("POST"))
                .map_or_else(|error| error.to_string(), |reply| reply.status.to_string());
            let seen: Vec<_> =
                app.seen().into_iter().skip(seen_before).map(|seen| (seen.head.start, seen.body.trailers)).collect();
            if status != "400" || !seen.is_empty() {
                wrong.push(format!("{body:?}: {status}, and the app saw {seen:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(proxied.get("/after").status, 200);
    proxied.finish();
}

/// Trailers of an endpoint that are not field lines never look like the end of a complete response.
#[test]
fn response_with_bad_trailers_is_not_complete() {
    let app = RawApp::answering(
        &[
            (
                "/hidden",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\nHTTP/1.1 200 OK\r\n\r\n",
            ),
            ("/space", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX : y\r\n\r\n"),
            ("/control", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;\x01\r\nok\r\n0\r\n\r\n"),
        ],
        Next::Keep,
    );
    let proxied = Proxied::to(&app.address());
    let replies = ["/hidden", "/space", "/control"].map(|target| (target, proxied.get(target)));
    let complete = replies.iter().filter(|(_, reply)| reply.status != 502 && reply.body.whole);
    let complete: Vec<_> = complete.map(|(target, reply)| (target, reply.status, &reply.body.trailers)).collect();
    assert!(complete.is_empty(), "forwarded as if they were complete: {complete:#?}");
    proxied.finish();
}

/// RFC 9110, 6.5.1: a field that would change the message after it was read is dropped, and other trailers are forwarded.
#[test]
fn forbidden_trailers_are_dropped_both_ways() {
    let app = RawApp::start(|_, wire| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
        wire.send(format!("{head}X-First: 1\r\n{FORBIDDEN}X-Last: 2\r\n\r\n")).map_or(Next::Close, |()| Next::Keep)
    });
    let proxied = Proxied::to(&app.address());
    let (seen, reply) =
        proxied.pass(&app, format!("{CHUNKED}0\r\nX-First: 1\r\n{FORBIDDEN}X-Last: 2\r\n\r\n").as_bytes());
    let allowed = [("X-First".to_owned(), "1".to_owned()), ("X-Last".to_owned(), "2".to_owned())];
    let (seen, reply) = (seen.expect("the app got the request"), reply.expect("a response"));
    let trailers = (seen.body.trailers, reply.body.trailers);
    assert_eq!(trailers, (allowed.to_vec(), allowed.to_vec()), "what the app and the client received");
    assert!(reply.body.whole && reply.body.bytes == b"ok");
    proxied.finish();
}

/// A malformed response is 502, for the client and in the record, as long as none of it has been sent.
#[test]
fn response_with_a_malformed_first_chunk_is_502() {
    const RESPONSES: &[(&str, &str)] = &[
        ("/no-number", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ("/sign", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello"),
        ("/empty", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n"),
        ("/overflow", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello"),
        ("/too-long", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n"),
    ];
    let app = RawApp::answering(RESPONSES, Next::Keep);
    let proxied = Proxied::to(&app.address());
    let mut wrong = Vec::new();
    for (target, _) in RESPONSES {
        let mut wire = proxied.connect();
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the proxy reads");
        let status = wire.reply("GET").map_or_else(|error| error.to_string(), |reply| reply.status.to_string());
        let recorded = proxied.record_of(target)["status"].clone();
        if status != "502" || recorded != 502 {
            wrong.push(format!("{target}: {status} at the client, {recorded} in the record"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// RFC 9112, 7.1: a chunk size is 1*HEXDIG with any number of leading zeros, in responses and in requests.
#[test]
fn chunk_sizes_may_have_leading_zeros() {
    let app = RawApp::start(|seen, wire| {
        let zeros = "0".repeat(seen.head.target().len());
        let response =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{zeros}2;a=b\r\nok\r\n{zeros}0\r\n\r\n");
        wire.send(response).map_or(Next::Close, |()| Next::Keep)
    });
    let proxied = Proxied::to(&app.address());
    let mut wrong = Vec::new();
    // With its last digit the size has sixteen, seventeen and two hundred digits.
    for zeros in [15, 16, 199] {
        let (target, size) = (format!("/{}", "x".repeat(zeros - 1)), "0".repeat(zeros));
        let head = format!("POST {target} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n");
        let (seen, reply) = proxied.pass(&app, format!("{head}{size}5\r\nhello\r\n{size}0\r\n\r\n").as_bytes());
        let seen = seen.map(|seen| seen.body.bytes);
        if seen.as_deref() != Some(b"hello") {
            wrong.push(format!("{zeros} zeros in a request: {:?}", reply.map(|reply| (reply.status, reply.text()))));
        }
        let (_, reply) = proxied.pass(&app, format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n").as_bytes());
        let reply = reply.map(|reply| (reply.status, reply.text(), reply.body.whole));
        if !matches!(&reply, Ok((200, text, true)) if text == "ok") {
            wrong.push(format!("{zeros} zeros in a response: {reply:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// RFC 9113, 3.1 and RFC 9110, 7.8: `h2c` at any position of the list and its other fields are not forwarded, so that no
/// tunnel opens in which requests pass unseen.
#[test]
fn h2c_upgrade_never_opens_a_tunnel() {
    let app = RawApp::start(|seen, wire| {
        let has_h2c =
            seen.head.headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("upgrade") && value.contains("h2c"));
        match has_h2c {
            true => wire
                .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
                .map_or(Next::Close, |()| Next::Close),
            false => answer_ok(wire, b"plain"),
        }
    });
    let proxied = Proxied::to(&app.address());
    let upgrades = [
        "Upgrade: ,h2c",
        "Upgrade: h2c",
        "Upgrade: websocket, h2c",
        "Upgrade: h2c, websocket",
        "Upgrade: foo\r\nUpgrade: h2c",
        "Upgrade:\t, ,\th2c",
    ];
    let mut wrong = Vec::new();
    for upgrade in upgrades {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\n{upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        let (seen, reply) = proxied.pass(&app, head.as_bytes());
        let status = reply.map_or_else(|error| error.to_string(), |reply| reply.status.to_string());
        let seen = seen.map_or_else(Vec::new, |seen| seen.head.headers);
        let passed =
            seen.iter().any(|(name, value)| name.eq_ignore_ascii_case("http2-settings") || value.contains("h2c"));
        if status != "200" || passed {
            wrong.push(format!("{upgrade:?}: {status}, and the app saw {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// RFC 9110, 7.8: a server must not switch to a protocol that was not requested; such a 101 is 502 for the client.
#[test]
fn unrequested_101_is_502() {
    let app = RawApp::answering(
        &[
            ("/silent", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n"),
            ("/h2c", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
            ("/other", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket2\r\n\r\n"),
            ("/right", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n"),
        ],
        Next::Close,
    );
    let proxied = Proxied::to(&app.address());
    let status = |target: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        proxied.pass(&app, head.as_bytes()).1.map_or(0, |reply| reply.status)
    };
    let statuses = ["/silent", "/h2c", "/other", "/right"].map(|target| (target, status(target)));
    assert_eq!(statuses, [("/silent", 502), ("/h2c", 502), ("/other", 502), ("/right", 101)]);
    proxied.finish();
}

/// RFC 9112, 6.1: an HTTP/1.0 response with Transfer-Encoding counts as faulty framing, and its connection is not reused.
#[test]
fn http_1_0_chunked_response_is_not_kept_alive() {
    const RESPONSES: &[(&str, &str)] = &[
        (
            "/chunked",
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        ("/head", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("/304", "HTTP/1.0 304 Not Modified\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ];
    let mut reused = Vec::new();
    for (target, _) in RESPONSES {
        let app = RawApp::answering(RESPONSES, Next::Keep);
        let proxied = Proxied::to(&app.address());
        let method = if *target == "/head" { "HEAD" } else { "GET" };
        for _ in 0..3 {
            proxied.exchange(format!("{method} {target} HTTP/1.1\r\nHost: app\r\n\r\n"), method);
        }
        if app.connections() != 3 {
            reused.push(format!("{target}: {} connections for 3 responses", app.connections()));
        }
        proxied.finish();
    }
    assert!(reused.is_empty(), "{reused:#?}");
}

/// RFC 9112, 6.2: a message is never forwarded with both Content-Length and Transfer-Encoding, with a body or without.
#[test]
fn both_lengths_are_never_forwarded() {
    const RESPONSES: &[(&str, &str)] = &[
        ("/head", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("/304", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n"),
        ("/get", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    ];
    let app = RawApp::answering(RESPONSES, Next::Close);
    let proxied = Proxied::to(&app.address());
    let has_both = |head: &Head| head.header("content-length").is_some() && head.header("transfer-encoding").is_some();
    let heads = [("HEAD", "/head"), ("GET", "/304"), ("GET", "/get")].map(|(method, target)| {
        proxied.exchange(format!("{method} {target} HTTP/1.1\r\nHost: app\r\n\r\n"), method).head
    });
    let both: Vec<&Head> = heads.iter().filter(|head| has_both(head)).collect();
    assert!(both.is_empty(), "{both:#?}");
    proxied.finish();
}

/// RFC 9110, 9.3.2: a local response to HEAD has no body, whatever the error.
#[test]
fn local_responses_to_head_have_no_body() {
    let gate = Gate::default();
    let app = RawApp::start({
        let gate = gate.clone();
        move |seen, _| {
            if seen.head.target() == "/slow" {
                gate.wait();
            }
            Next::Close
        }
    });
    let keys = Keys {
        cluster: "response_headers_timeout: 500ms",
        listener: "request_headers_timeout: 500ms",
        ..Keys::default()
    };
    let alive = Proxied::with(&[&app.address()], keys);
    let dead = Proxied::to(&format!("127.0.0.1:{}", free_port()));
    let cases = [
        (&dead, "HEAD / HTTP/1.1\r\nHost: app\r\n\r\n", "503"),
        (&alive, "HEAD /close HTTP/1.1\r\nHost: app\r\n\r\n", "502"),
        (&alive, "HEAD /slow HTTP/1.1\r\nHost: app\r\n\r\n", "504"),
        (&alive, "HEAD / HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n", "400"),
        (&alive, &format!("HEAD / HTTP/1.1\r\nHost: app\r\nX: {}", "x".repeat(70_000)), "431"),
        (&alive, "HEAD / HTTP/1.1\r\nHost: app\r\n", "408"),
    ];
    let mut wrong = Vec::new();
    for (proxied, request, status) in cases {
        let mut wire = proxied.connect();
        wire.send(request).expect("the proxy reads");
        let head = wire.head().expect("a response").expect("the stream is open");
        let Body { bytes, .. } = wire.until_closed().expect("the proxy closes");
        if head.status().to_string() != status || !bytes.is_empty() {
            wrong.push(format!("{request:?}: {} with {:?}", head.start, String::from_utf8_lossy(&bytes)));
        }
    }
    gate.open();
    assert!(wrong.is_empty(), "{wrong:#?}");
    alive.finish();
    dead.finish();
}

/// RFC 9112, 2.2: an empty line after a body, as old clients send it, does not begin a request and gets no response.
#[test]
fn an_empty_line_between_requests_is_ignored() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::with(&[&app.address()], Keys { listener: "request_headers_timeout: 1s", ..Keys::default() });
    let cases = [
        "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody\r\n",
        "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app\r\n\r\n\r\n",
        "\r\n",
    ];
    let mut idle = cases.map(|bytes| {
        let mut wire = proxied.connect();
        wire.send(bytes).expect("the proxy reads");
        if bytes != "\r\n" {
            assert_eq!(wire.reply("POST").expect("a response").status, 200);
        }
        (bytes, wire)
    });
    // A head that begins later times out later than those lines would.
    let mut begun = proxied.connect();
    begun.send("GET /begun").expect("the proxy reads");
    assert_eq!(begun.reply("GET").expect("a response").status, 408);
    let mut wrong = Vec::new();
    for (bytes, wire) in &mut idle {
        let sent = wire.send("GET /next HTTP/1.1\r\nHost: app\r\n\r\n");
        let reply = sent.and_then(|()| wire.reply("GET")).map(|reply| reply.status);
        if !matches!(reply, Ok(200)) {
            wrong.push(format!("after {bytes:?}: {reply:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}

/// RFC 9110, 10.1.4: a sender of TE lists it in Connection, so that it ends at the next hop.
#[test]
fn te_is_forwarded_as_a_hop_by_hop_field() {
    let app = RawApp::answering(&[], Next::Keep);
    let proxied = Proxied::to(&app.address());
    let cases = [
        ("Connection: TE\r\nTE: trailers", true),
        ("TE: trailers", true),
        ("Connection: close, te\r\nte: Trailers", true),
        ("Connection: Upgrade, TE\r\nUpgrade: websocket\r\nTE: trailers", true),
        ("Connection: TE\r\nTE: trailers, deflate;q=0.5", false),
    ];
    let mut wrong = Vec::new();
    for (fields, expected) in cases {
        let (seen, _) = proxied.pass(&app, format!("GET / HTTP/1.1\r\nHost: app\r\n{fields}\r\n\r\n").as_bytes());
        let head = seen.expect("the app got the request").head;
        let connection = head.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
        let names_te =
            connection.flat_map(|(_, value)| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("te"));
        let has_te = head.header("te").is_some();
        if has_te != names_te || expected && !has_te {
            wrong.push(format!("{fields:?}: {:?}", head.headers));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    proxied.finish();
}
