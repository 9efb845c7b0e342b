//! Response heads, for each kind of request. In: the bytes of an endpoint's connection. Out: the same result for every
//! fragmentation; the client gets the framing that the proxy uses (RFC 9112, 6.3), fields are forwarded in their order without
//! hop-by-hop fields, and an endpoint's connection is reused only if both sides know where the response ended.

use super::head_lines::Head;
use super::http1_request::{cuts, number};
use super::same;
use crate::attempt::{bucket, shape};
use proxy::http1::body::Body;
use proxy::http1::head::{self, HEADERS_MAX, ResponseContext};
use proxy::http1::syntax::Method;

pub const WORDS: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\n",
    "HTTP/1.1 103 Early Hints\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1 426 Upgrade Required\r\n",
    "HTTP/1.1 099 \r\n",
    "HTTP/1.1 999\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\n\n",
    "\r",
    "\r\n ",
    "Content-Length: 5\r\n",
    "content-length:",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "connection: upgrade, x, content-length, transfer-encoding",
    "Keep-Alive: timeout=5\r\n",
    "Proxy-Connection: close\r\n",
    "Upgrade: websocket\r\n",
    "Trailer: x\r\n",
    "Set-Cookie: a=b\r\n",
    "TE: trailers\r\n",
    "Host: h\r\n",
    ": ",
    " :",
    ",",
    "\t",
    "\0",
    "x: y\r\n",
];

/// The properties of a response, and the head that the client gets.
#[derive(Debug, PartialEq)]
struct Summary {
    length: usize,
    status: u16,
    body: Body,
    keep_alive: bool,
    out: Vec<u8>,
}

fn parse(bytes: &[u8], context: ResponseContext<'_>) -> Result<Option<Summary>, &'static str> {
    let mut out = Vec::new();
    let response = head::response(bytes, context, &mut out)?;
    let summary =
        |r: head::Response| Summary { length: r.length, status: r.status, body: r.body, keep_alive: r.keep_alive, out };
    Ok(response.map(summary))
}

pub fn run(input: &[u8]) {
    for kind in 0..24 {
        let context = ResponseContext {
            method: [Method::Get, Method::Head, Method::Post].into_iter().nth(kind / 8).unwrap_or(Method::Other),
            http_10: kind & 1 != 0,
            keep_alive: kind & 2 != 0,
            // An HTTP/1.0 client cannot request it.
            upgrade: (kind & 4 != 0 && kind & 1 == 0).then_some(&b"websocket,h2c"[..]),
        };
        let whole = parse(input, context);
        match &whole {
            Ok(None) => shape("partial"),
            Err(why) => shape(why),
            Ok(Some(summary)) => {
                let body = std::mem::discriminant(&summary.body);
                let status = if matches!(summary.status, 101 | 204 | 205 | 304 | 426) {
                    summary.status
                } else {
                    summary.status / 100
                };
                shape((kind, status, body, summary.keep_alive, bucket(summary.out.len())));
                check(input.get(..summary.length).expect("the head is within the bytes"), context, summary);
            }
        }
        if kind == 2 {
            check_cuts(input, context, &whole);
        }
    }
}

fn check_cuts(input: &[u8], context: ResponseContext<'_>, whole: &Result<Option<Summary>, &'static str>) {
    for cut in cuts(input.len()) {
        let part = parse(input.get(..cut).unwrap_or(&[]), context);
        match (&part, whole) {
            (Ok(None), Ok(Some(summary))) => {
                assert!(cut < summary.length, "a head was complete at {cut}, and more was awaited")
            }
            (Ok(Some(part)), Ok(Some(summary))) => assert_eq!(part, summary, "the same head, with less after it"),
            (Ok(None), _) | (Err(_), Err(_)) => {}
            _ => panic!("{cut} bytes return {part:?}, and all of them {whole:?}"),
        }
    }
}

fn check(original: &[u8], context: ResponseContext<'_>, summary: &Summary) {
    // A recipient may accept a bare LF as the end of a line (RFC 9112, 2.2); the forwarded head has none.
    let lines = with_crlf(original);
    let before = Head::read(&lines).expect("an accepted head can be parsed");
    let interim = (100..200).contains(&summary.status) && summary.status != 101;
    assert_eq!(
        number(before.start.get(9..12).unwrap_or(&[])),
        Some(u64::from(summary.status)),
        "the status that was sent"
    );
    check_reuse(&before, summary);
    if interim && context.http_10 {
        assert!(summary.out.is_empty(), "RFC 9110, 15.2: an HTTP/1.0 client does not support interim responses");
        return;
    }
    let after = Head::read(&summary.out).expect("the forwarded head can be parsed");
    assert!(after.start.starts_with(format!("HTTP/1.1 {:03} ", summary.status).as_bytes()), "the status line");
    check_fields(&before, &after, context, summary, interim);
    check_framing(&after, context, summary, interim);

    // With the proxy's own Connection it may exceed its own limit by one field.
    if after.fields.len() > HEADERS_MAX {
        return;
    }
    let again =
        parse(&summary.out, context).expect("the forwarded head is accepted").expect("the forwarded head is complete");
    assert_eq!(again.length, summary.out.len(), "nothing follows the forwarded head");
    same(&again.out, &summary.out, "rewriting is idempotent");
}

fn with_crlf(head: &[u8]) -> Vec<u8> {
    let start = head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let mut out = Vec::with_capacity(head.len() + 16);
    for &byte in head.get(start..).unwrap_or(&[]) {
        if byte == b'\n' && out.last() != Some(&b'\r') {
            out.push(b'\r');
        }
        out.push(byte);
    }
    out
}

/// RFC 9112, 6.1, 6.3 and 9.3: the connections that may carry another request.
fn check_reuse(before: &Head<'_>, summary: &Summary) {
    let (http_10, chunked) = (before.start.starts_with(b"HTTP/1.0"), !before.values("transfer-encoding").is_empty());
    if summary.keep_alive && summary.status >= 200 {
        assert!(summary.body != Body::UntilClose, "its body ends with its connection");
        assert!(!before.has_option("close"), "the endpoint closes");
        assert!(!http_10 || before.has_option("keep-alive"), "HTTP/1.0 closes without keep-alive");
        assert!(!(http_10 && chunked), "RFC 9112, 6.1: Transfer-Encoding in HTTP/1.0 is faulty framing");
        assert!(!chunked || before.values("content-length").is_empty(), "two lengths");
    }
}

fn check_fields(before: &Head<'_>, after: &Head<'_>, context: ResponseContext<'_>, summary: &Summary, interim: bool) {
    for name in ["keep-alive", "proxy-connection"] {
        assert!(after.values(name).is_empty(), "`{name}` is hop-by-hop");
    }
    let options: Vec<String> = after.connection().iter().map(|o| String::from_utf8_lossy(o).into_owned()).collect();
    let unknown_end = summary.body == Body::UntilClose || (context.http_10 && matches!(summary.body, Body::Chunked(_)));
    let expected: &[&str] = match () {
        _ if summary.status == 101 => &["upgrade"],
        _ if interim => &[],
        _ if !context.keep_alive || unknown_end => &["close"],
        _ if context.http_10 => &["keep-alive"],
        _ => &[],
    };
    assert_eq!(options, expected, "the proxy's own Connection");
    assert!(summary.status != 101 || context.upgrade.is_some(), "no upgrade was requested");

    // A field with the name of an option of the proxy is hop-by-hop. Host has no meaning in a response, and a field that is named
    // Host is never dropped.
    let but = ["content-length", "transfer-encoding", "host", "close"];
    assert_eq!(before.end_to_end(&but), after.end_to_end(&but), "end-to-end fields are unchanged");
}

/// The client's framing by the head (RFC 9112, 6.3), compared with the relayed body.
fn check_framing(after: &Head<'_>, context: ResponseContext<'_>, summary: &Summary, interim: bool) {
    let (lengths, codings) = (after.values("content-length"), after.values("transfer-encoding"));
    assert!(lengths.len() <= 1 && codings.len() <= 1, "one framing: {lengths:?} {codings:?}");
    assert!(lengths.is_empty() || codings.is_empty(), "RFC 9112, 6.2: no Content-Length with Transfer-Encoding");
    let without = interim || summary.status == 101 || summary.status == 204;
    assert!(!without || (lengths.is_empty() && codings.is_empty()), "RFC 9110, 8.6: no length in a {}", summary.status);
    let length = lengths.first().map(|digits| number(digits).expect("a length in digits"));
    let empty = without || summary.status == 304 || context.method == Method::Head;
    match &summary.body {
        Body::None => assert!(empty || length == Some(0), "no body follows, by the client's framing too"),
        Body::Length(relayed) => {
            assert_eq!((length, empty), (Some(*relayed), false), "as many bytes as the client expects")
        }
        Body::Chunked(_) if context.http_10 => {
            assert!(!empty && length.is_none() && codings.is_empty(), "decoded, and ended by the connection");
        }
        Body::Chunked(_) => assert!(!empty && codings.len() == 1, "chunks as the client expects them"),
        Body::UntilClose => assert!(!empty && length.is_none() && codings.is_empty(), "ended by the connection"),
    }
}
