//! Response heads, for each kind of request that they may answer. In: the bytes of an endpoint's connection. Out: the same answer
//! however they arrive; the client reads the framing that we go by ourselves (RFC 9112, 6.3), fields pass in their order without
//! those of this hop, and an endpoint's connection is used again only where both sides know where the response ended.

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

/// What is told of a response, and the head that the client gets.
#[derive(Debug, PartialEq)]
struct Told {
    length: usize,
    status: u16,
    body: Body,
    keep_alive: bool,
    out: Vec<u8>,
}

fn parse(bytes: &[u8], asked: ResponseContext<'_>) -> Result<Option<Told>, &'static str> {
    let mut out = Vec::new();
    let response = head::response(bytes, asked, &mut out)?;
    let told =
        |r: head::Response| Told { length: r.length, status: r.status, body: r.body, keep_alive: r.keep_alive, out };
    Ok(response.map(told))
}

pub fn run(input: &[u8]) {
    for kind in 0..24 {
        let asked = ResponseContext {
            method: [Method::Get, Method::Head, Method::Post].into_iter().nth(kind / 8).unwrap_or(Method::Other),
            http_10: kind & 1 != 0,
            keep_alive: kind & 2 != 0,
            // A client of HTTP/1.0 cannot ask for it.
            upgrade: (kind & 4 != 0 && kind & 1 == 0).then_some(&b"websocket,h2c"[..]),
        };
        let whole = parse(input, asked);
        match &whole {
            Ok(None) => shape("partial"),
            Err(why) => shape(why),
            Ok(Some(told)) => {
                let body = std::mem::discriminant(&told.body);
                let status =
                    if matches!(told.status, 101 | 204 | 205 | 304 | 426) { told.status } else { told.status / 100 };
                shape((kind, status, body, told.keep_alive, bucket(told.out.len())));
                check(input.get(..told.length).expect("the head lies within the bytes"), asked, told);
            }
        }
        if kind == 2 {
            check_cuts(input, asked, &whole);
        }
    }
}

fn check_cuts(input: &[u8], asked: ResponseContext<'_>, whole: &Result<Option<Told>, &'static str>) {
    for cut in cuts(input.len()) {
        let part = parse(input.get(..cut).unwrap_or(&[]), asked);
        match (&part, whole) {
            (Ok(None), Ok(Some(told))) => assert!(cut < told.length, "a head was whole at {cut}, and was waited for"),
            (Ok(Some(part)), Ok(Some(told))) => assert_eq!(part, told, "the same head, with less behind it"),
            (Ok(None), _) | (Err(_), Err(_)) => {}
            _ => panic!("{cut} bytes of it lead to {part:?}, and all of it to {whole:?}"),
        }
    }
}

fn check(original: &[u8], asked: ResponseContext<'_>, told: &Told) {
    // A recipient may take a bare LF as the end of a line (RFC 9112, 2.2); what goes out has none.
    let lines = with_crlf(original);
    let before = Head::read(&lines).expect("an accepted head is one that can be read");
    let interim = (100..200).contains(&told.status) && told.status != 101;
    assert_eq!(
        number(before.start.get(9..12).unwrap_or(&[])),
        Some(u64::from(told.status)),
        "the status that was sent"
    );
    check_reuse(&before, told);
    if interim && asked.http_10 {
        assert!(told.out.is_empty(), "RFC 9110, 15.2: an HTTP/1.0 client knows no interim responses");
        return;
    }
    let after = Head::read(&told.out).expect("what goes out is a head");
    assert!(after.start.starts_with(format!("HTTP/1.1 {:03} ", told.status).as_bytes()), "the status line");
    check_fields(&before, &after, asked, told, interim);
    check_framing(&after, asked, told, interim);

    // With our own Connection it may have one field more than we take ourselves.
    if after.fields.len() > HEADERS_MAX {
        return;
    }
    let again = parse(&told.out, asked).expect("what goes out is not refused").expect("what goes out is whole");
    assert_eq!(again.length, told.out.len(), "nothing stands behind what goes out");
    same(&again.out, &told.out, "it is rewritten once and for all");
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

/// RFC 9112, 6.1, 6.3 and 9.3: what may carry another request.
fn check_reuse(before: &Head<'_>, told: &Told) {
    let (http_10, chunked) = (before.start.starts_with(b"HTTP/1.0"), !before.values("transfer-encoding").is_empty());
    if told.keep_alive && told.status >= 200 {
        assert!(told.body != Body::UntilClose, "its body ends with its connection");
        assert!(!before.asks_to("close"), "the endpoint closes");
        assert!(!http_10 || before.asks_to("keep-alive"), "HTTP/1.0 closes unless it says otherwise");
        assert!(!(http_10 && chunked), "RFC 9112, 6.1: Transfer-Encoding in HTTP/1.0 is faulty framing");
        assert!(!chunked || before.values("content-length").is_empty(), "two lengths");
    }
}

fn check_fields(before: &Head<'_>, after: &Head<'_>, asked: ResponseContext<'_>, told: &Told, interim: bool) {
    for name in ["keep-alive", "proxy-connection"] {
        assert!(after.values(name).is_empty(), "`{name}` is for one hop");
    }
    let options: Vec<String> = after.connection().iter().map(|o| String::from_utf8_lossy(o).into_owned()).collect();
    let unknown_end = told.body == Body::UntilClose || (asked.http_10 && matches!(told.body, Body::Chunked(_)));
    let expected: &[&str] = match () {
        _ if told.status == 101 => &["upgrade"],
        _ if interim => &[],
        _ if !asked.keep_alive || unknown_end => &["close"],
        _ if asked.http_10 => &["keep-alive"],
        _ => &[],
    };
    assert_eq!(options, expected, "our own Connection");
    assert!(told.status != 101 || asked.upgrade.is_some(), "nobody had asked for another protocol");

    // A field with the name of an option of ours ends at the next hop. Host means nothing in a response, and what names the host is never dropped.
    let but = ["content-length", "transfer-encoding", "host", "close"];
    assert_eq!(before.end_to_end(&but), after.end_to_end(&but), "end-to-end fields pass as they are");
}

/// What a client makes of the head (RFC 9112, 6.3), beside what we relay.
fn check_framing(after: &Head<'_>, asked: ResponseContext<'_>, told: &Told, interim: bool) {
    let (lengths, codings) = (after.values("content-length"), after.values("transfer-encoding"));
    assert!(lengths.len() <= 1 && codings.len() <= 1, "one framing: {lengths:?} {codings:?}");
    assert!(lengths.is_empty() || codings.is_empty(), "RFC 9112, 6.2: no Content-Length beside Transfer-Encoding");
    let without = interim || told.status == 101 || told.status == 204;
    assert!(!without || (lengths.is_empty() && codings.is_empty()), "RFC 9110, 8.6: no length in a {}", told.status);
    let length = lengths.first().map(|digits| number(digits).expect("a length in digits"));
    let empty = without || told.status == 304 || asked.method == Method::Head;
    match &told.body {
        Body::None => assert!(empty || length == Some(0), "nothing follows, and the client knows"),
        Body::Length(relayed) => {
            assert_eq!((length, empty), (Some(*relayed), false), "as many bytes as the client awaits")
        }
        Body::Chunked(_) if asked.http_10 => {
            assert!(!empty && length.is_none() && codings.is_empty(), "decoded, and ended by the connection");
        }
        Body::Chunked(_) => assert!(!empty && codings.len() == 1, "chunks as the client awaits them"),
        Body::UntilClose => assert!(!empty && length.is_none() && codings.is_empty(), "ended by the connection"),
    }
}
