//! Heads: parse, reject ambiguity, rewrite. In: bytes of a connection. Out: what the forwarder must know, and the head for
//! the other side, appended to a buffer: same headers in the same case and order, without the hop-by-hop ones
//! (RFC 9110, 7.6.1). Limits: `HEADERS_MAX` headers; the caller limits the bytes.

use super::body::Body;
use super::fields::{Facts, Known, known};
use super::syntax::{Method, Refusal, refuse};
use super::target::{Target, is_host, split_target};
use httparse::{Header, Status};
use std::mem::MaybeUninit;

pub const HEADERS_MAX: usize = 128;

/// The parts of a request that forwarding needs.
#[derive(Debug)]
pub struct Request {
    /// Bytes of the head in the read buffer.
    pub length: usize,
    pub method: Method,
    /// The range of the path in the read buffer, for the access record.
    pub path: std::ops::Range<usize>,
    pub body: Body,
    pub keep_alive: bool,
    pub http_10: bool,
    /// The protocols that the client offers to switch to; None if it offers none that is forwarded.
    pub upgrade: Option<Box<[u8]>>,
    /// The request must not be forwarded, since its Max-Forwards is 0 (RFC 9110, 7.6.2).
    pub last_hop: bool,
}

/// What a listener inserts into the heads that it forwards.
pub struct Hop<'a> {
    /// The endpoint's authority, for a request without a host.
    pub authority: &'a str,
    /// The listener's name in `Via`, which detects a request that already passed through it.
    pub via: &'a str,
}

/// The parts of a response that forwarding needs.
#[derive(Debug)]
pub struct Response {
    pub length: usize,
    pub status: u16,
    pub body: Body,
    /// Whether the endpoint's connection can carry another request.
    pub keep_alive: bool,
}

/// Whether the head is complete, or cannot become valid: a check without a parse.
pub fn is_complete(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n\r\n")
        || memchr::memchr_iter(b'\n', bytes).any(|at| {
            let rest = bytes.get(at + 1..).unwrap_or(&[]);
            rest.starts_with(b"\r\n") || rest.starts_with(b"\n") || (at > 0 && bytes.get(at - 1) != Some(&b'\r'))
        })
}

/// Parses a request head and writes the one for the endpoint. `Ok(None)`: more bytes are needed.
pub fn request(bytes: &[u8], hop: &Hop<'_>, out: &mut Vec<u8>) -> Result<Option<Request>, Refusal> {
    let mut space = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(bytes, &mut space) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(refuse(431, "too many headers")),
        // RFC 9110, 15.6.6: an unsupported major version, as in HTTP/2's preface.
        Err(httparse::Error::Version) if is_other_version(bytes) => {
            return Err(refuse(505, "only HTTP/1.0 and HTTP/1.1 are supported"));
        }
        Err(_) => return Err(refuse(400, "the request head is malformed")),
    };
    // RFC 9112, 2.2 lets a recipient accept a bare LF; the endpoint might then see the head end elsewhere.
    if has_bare_lf(bytes.get(..length).unwrap_or(&[])) {
        return Err(refuse(400, "a line of the head ends in a bare LF"));
    }
    let (Some(method_text), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(refuse(400, "the request line is malformed"));
    };
    let method = Method::of(method_text);
    if method == Method::Connect {
        return Err(refuse(501, "CONNECT is not supported"));
    }
    let facts = Facts::of(parsed.headers)?;
    let http_10 = minor == 0;
    let body = facts.request_body(http_10)?;
    let (host, target) = split_target(method, target)?;
    if !http_10 && facts.hosts == 0 {
        return Err(refuse(400, "HTTP/1.1 requires a Host header"));
    }
    if !host.or(facts.host).is_none_or(is_host) {
        return Err(refuse(400, "invalid host: expected a name or address, with an optional port"));
    }
    if !facts.via.is_empty() && facts.via.iter().any(|via| memchr::memmem::find(via, hop.via.as_bytes()).is_some()) {
        return Err(refuse(508, "loop detected: the request already passed through this listener"));
    }
    let upgrade = (facts.connection_upgrade && !facts.h2c && !http_10).then(|| facts.upgrade.join(&b","[..]));
    let upgrade = upgrade.filter(|protocols| !protocols.is_empty()).map(Vec::into_boxed_slice);
    let traced = matches!(method, Method::Options | Method::Trace);
    let path = match target {
        Target::Written(text) => {
            let start = (text.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
            start..start + text.find('?').unwrap_or(text.len())
        }
        Target::Root(_) | Target::Asterisk => 0..0,
    };
    out.extend_from_slice(method_text.as_bytes());
    match target {
        Target::Written(text) => [" ", text].iter().for_each(|part| out.extend_from_slice(part.as_bytes())),
        Target::Root(query) => [" /", query].iter().for_each(|part| out.extend_from_slice(part.as_bytes())),
        Target::Asterisk => out.extend_from_slice(b" *"),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    request_headers(bytes, parsed.headers, &facts, hop, (host, upgrade.is_some(), traced), out);
    Ok(Some(Request {
        length,
        method,
        path,
        body,
        keep_alive: facts.persists(http_10),
        http_10,
        upgrade,
        last_hop: traced && facts.max_forwards == Some(0),
    }))
}

fn is_other_version(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\r' || *byte == b'\n').find(|line| !line.is_empty()).unwrap_or(&[]);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or(&[]);
    let other =
        |version: &[u8]| version.first().is_some_and(u8::is_ascii_digit) && version != b"1.0" && version != b"1.1";
    version.strip_prefix(b"HTTP/").is_some_and(other)
}

/// Writes the headers that the endpoint gets, and the empty line.
fn request_headers(
    bytes: &[u8],
    headers: &[Header<'_>],
    facts: &Facts<'_>,
    hop: &Hop<'_>,
    (host, upgrade, traced): (Option<&str>, bool, bool),
    out: &mut Vec<u8>,
) {
    if let Some(host) = host {
        // RFC 9112, 3.2.2: the authority of an absolute target replaces Host.
        for part in [&b"Host: "[..], host.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    let mut te = false;
    for header in headers {
        let forwarded = match known(header.name) {
            Some(Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Http2Settings) => false,
            Some(Known::Upgrade) => upgrade,
            Some(Known::Te) => {
                let trailers = header.value.eq_ignore_ascii_case(b"trailers");
                te |= trailers;
                trailers
            }
            Some(Known::Host) => host.is_none(),
            Some(Known::MaxForwards) if traced => {
                let left = facts.max_forwards.unwrap_or(0).saturating_sub(1);
                out.extend_from_slice(format!("Max-Forwards: {left}\r\n").as_bytes());
                false
            }
            _ => !facts.is_connection_option(header.name),
        };
        if forwarded {
            copy_header(bytes, header, out);
        }
    }
    if facts.hosts == 0 && host.is_none() {
        for part in [&b"Host: "[..], hop.authority.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    // RFC 9110, 7.6.3.
    for part in [&b"Via: 1.1 "[..], hop.via.as_bytes(), b"\r\n"] {
        out.extend_from_slice(part);
    }
    // RFC 9110, 10.1.4: TE is hop-by-hop, and Connection must list it.
    out.extend_from_slice(match (upgrade, te) {
        (true, true) => b"Connection: upgrade, TE\r\n",
        (true, false) => b"Connection: upgrade\r\n",
        (false, true) => b"Connection: TE\r\n",
        (false, false) => b"",
    });
    out.extend_from_slice(b"\r\n");
}

/// The request of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseContext<'a> {
    pub method: Method,
    pub http_10: bool,
    /// Whether the client's connection stays open after this response, as far as the request determines it.
    pub keep_alive: bool,
    pub upgrade: Option<&'a [u8]>,
}

/// Parses a response head and writes the one for the client. `Ok(None)`: more bytes are needed.
pub fn response(
    bytes: &[u8],
    context: ResponseContext<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Response>, &'static str> {
    let mut space = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut space) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("too many response headers"),
        Err(_) => return Err("malformed response head"),
    };
    let (Some(status), Some(minor)) = (parsed.code, parsed.version) else { return Err("malformed status line") };
    let facts = Facts::of(parsed.headers).map_err(|refusal| refusal.reason)?;
    let switching = status == 101;
    if switching && !is_offered(context.upgrade, &facts.upgrade) {
        // RFC 9110, 7.8: a server must not switch to a protocol that the client did not offer.
        return Err("unexpected 101 Switching Protocols");
    }
    let body = facts.response_body(status, context.method)?;
    let interim = (100..200).contains(&status);
    if interim && context.http_10 && !switching {
        // RFC 9110, 15.2: an HTTP/1.0 client does not know interim responses.
        return Ok(Some(Response { length, status, body: Body::None, keep_alive: true }));
    }
    let head_start = out.len();
    out.extend_from_slice(b"HTTP/1.1 ");
    let number = [b'0' + (status / 100) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8, b' '];
    out.extend_from_slice(&number);
    out.extend_from_slice(parsed.reason.unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
    let unchunk = context.http_10 && matches!(body, Body::Chunked(_));
    for header in parsed.headers.iter() {
        let forwarded = match known(header.name) {
            Some(Known::Connection | Known::KeepAlive | Known::ProxyConnection) => false,
            Some(Known::Upgrade) => switching || status == 426,
            // RFC 9110, 8.6 and RFC 9112, 6.1: neither is allowed in a 1xx or a 204.
            Some(Known::TransferEncoding | Known::ContentLength) if interim || status == 204 => false,
            Some(Known::TransferEncoding) => !unchunk,
            // RFC 9112, 6.3: with both, Transfer-Encoding defines the length, and Content-Length must not be forwarded.
            Some(Known::ContentLength) => !facts.chunked,
            _ => !facts.is_connection_option(header.name),
        };
        if forwarded {
            copy_header(bytes, header, out);
        }
    }
    let length_known = !unchunk && !matches!(body, Body::UntilClose);
    if switching {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    } else if interim {
        // An interim response does not affect the connection.
    } else if !context.keep_alive || !length_known {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if context.http_10 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
    debug_assert!(out.len() > head_start);
    let keep_alive = facts.persists(minor == 0) && !matches!(body, Body::UntilClose);
    // A connection with ambiguous framing must not be reused, nor one with chunks in HTTP/1.0 (RFC 9112, 6.1).
    let keep_alive = keep_alive && !(facts.chunked && (facts.content_length.is_some() || minor == 0));
    Ok(Some(Response { length, status, body, keep_alive }))
}

/// Whether all protocols of a response are among those of its request.
fn is_offered(offered: Option<&[u8]>, selected: &[&[u8]]) -> bool {
    let Some(offered) = offered else { return false };
    let is_known = |protocol: &&[u8]| offered.split(|byte| *byte == b',').any(|one| one.eq_ignore_ascii_case(protocol));
    !selected.is_empty() && selected.iter().all(is_known)
}

/// Copies a header line as it was written: the range from its name to the end of its value.
fn copy_header(bytes: &[u8], header: &Header<'_>, out: &mut Vec<u8>) {
    let base = bytes.as_ptr() as usize;
    let start = (header.name.as_ptr() as usize).wrapping_sub(base);
    let end = (header.value.as_ptr() as usize + header.value.len()).wrapping_sub(base);
    match bytes.get(start..end) {
        Some(line) if !header.value.is_empty() => out.extend_from_slice(line),
        // An empty value may point anywhere.
        _ => {
            out.extend_from_slice(header.name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(header.value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn has_bare_lf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head.get(at - 1) != Some(&b'\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: Hop<'static> = Hop { authority: "127.0.0.1:80", via: "o-1" };

    fn check_request(head: &str, expect: Result<&str, u16>) {
        let mut out = Vec::new();
        let parsed = request(head.as_bytes(), &HOP, &mut out);
        // The added line follows all forwarded ones.
        let text = String::from_utf8_lossy(&out).replace("Via: 1.1 o-1\r\n", "");
        match (parsed, expect) {
            (Ok(Some(parsed)), Ok(want)) => {
                assert_eq!(parsed.length, head.len());
                assert_eq!(text, want, "{head}");
                assert!(is_complete(head.as_bytes()), "{head}");
            }
            (Err(refusal), Err(status)) => assert_eq!(refusal.status, status, "{head}"),
            (got, want) => panic!("{head}: {got:?}, wanted {want:?}"),
        }
    }

    #[test]
    fn head_keeps_case_and_order_drops_hop_by_hop() {
        check_request(
            "GET /a?b HTTP/1.1\r\nhOsT: x\r\nX-Two:  2 \r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nA:\r\n\r\n",
            Ok("GET /a?b HTTP/1.1\r\nhOsT: x\r\nX-Two:  2\r\nA: \r\n\r\n"),
        );
        check_request("GET http://y:1/p HTTP/1.1\r\nHost: x\r\n\r\n", Ok("GET /p HTTP/1.1\r\nHost: y:1\r\n\r\n"));
        check_request("GET / HTTP/1.0\r\n\r\n", Ok("GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n"));
        check_request(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            Ok("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
        );
        check_request(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n",
            Ok("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        );
        check_request(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: Content-Length\r\nContent-Length: 3\r\n\r\n",
            Ok("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"),
        );
    }

    #[test]
    fn ambiguous_requests_are_rejected() {
        for (lines, status) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
            ("Content-Length: 5, 5\r\n", 400),
            ("Content-Length: +5\r\n", 400),
            ("Content-Length: 99999999999999999999\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked, identity\r\n", 400),
            ("Transfer-Encoding: xchunked\r\n", 501),
            ("Transfer-Encoding : chunked\r\n", 400),
            ("X: a\r\n folded\r\n", 400),
            ("X: a\nY: b\r\n", 400),
            ("Host: y\r\n", 400),
            ("X: a\0b\r\n", 400),
        ] {
            check_request(&format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n"), Err(status));
        }
        check_request("GET / HTTP/1.1\r\n\r\n", Err(400));
        check_request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400));
        check_request("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", Err(501));
        check_request("GET /\r\nHost: x\r\n\r\n", Err(400));
        check_request("GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", Err(400));
        let many = "X: 1\r\n".repeat(HEADERS_MAX);
        check_request(&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"), Err(431));
    }

    #[test]
    fn absolute_target_sets_host_or_is_rejected() {
        let host = |target: &str, method: &str| format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        for (target, method, want) in [
            ("http://y?id=7", "GET", "GET /?id=7 HTTP/1.1\r\nHost: y\r\n\r\n"),
            ("http://y", "OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: y\r\n\r\n"),
            ("*", "OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("HTTPS://y:8/g", "GET", "GET /g HTTP/1.1\r\nHost: y:8\r\n\r\n"),
            ("http://[::1]:8", "GET", "GET / HTTP/1.1\r\nHost: [::1]:8\r\n\r\n"),
        ] {
            check_request(&host(target, method), Ok(want));
        }
        for target in ["@evil/", "evil", "*", "ftp://y/", "https://u:p@y/g", "http:///g", "http://a b/", "http://y:z/"]
        {
            check_request(&host(target, "GET"), Err(400));
        }
        for value in ["a b", "a/b", "a@b", "a,b\u{7f}", "[::1", "a:b", "a:99999"] {
            check_request(&format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n"), Err(400));
        }
        check_request("GET / HTTP/1.1\r\nHost:\r\n\r\n", Ok("GET / HTTP/1.1\r\nHost: \r\n\r\n"));
        check_request("PRI * HTTP/2.0\r\n\r\n", Err(505));
        check_request("GET / HTTX/1.1\r\nHost: x\r\n\r\n", Err(400));
        check_request("GET / HTTP/1.1\r\nHost: x\r\nVia: 1.0 a, 1.1 o-1\r\n\r\n", Err(508));
    }

    #[test]
    fn hop_by_hop_fields_are_rewritten() {
        check_request(
            "GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n",
            Ok("GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE\r\n\r\n"),
        );
        check_request(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: ,h2c\r\nHTTP2-Settings: A\r\n\r\n",
            Ok("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        );
        check_request(
            "TRACE / HTTP/1.1\r\nHost: x\r\nMax-Forwards: 5\r\n\r\n",
            Ok("TRACE / HTTP/1.1\r\nHost: x\r\nMax-Forwards: 4\r\n\r\n"),
        );
        let context = ResponseContext { upgrade: Some(b"websocket,chat"), ..GET };
        let switch = "HTTP/1.1 101 S\r\nUpgrade: Chat\r\nConnection: upgrade\r\n\r\n";
        check_response(switch, context, Ok((switch, true)));
        check_response("HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n", context, Err("unexpected 101"));
        check_response("HTTP/1.1 101 S\r\n\r\n", context, Err("unexpected 101"));
        let old = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n";
        check_response(old, GET, Ok(("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false)));
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n";
        let head = ResponseContext { method: Method::Head, ..GET };
        check_response(both, head, Ok(("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false)));
    }

    fn check_response(head: &str, context: ResponseContext<'_>, expect: Result<(&str, bool), &str>) {
        let mut out = Vec::new();
        match (response(head.as_bytes(), context, &mut out), expect) {
            (Ok(Some(parsed)), Ok((want, keep_alive))) => {
                assert_eq!(String::from_utf8_lossy(&out), want, "{head}");
                assert_eq!(parsed.keep_alive, keep_alive, "{head}");
            }
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (got, want) => panic!("{head}: {got:?}, wanted {want:?}"),
        }
    }

    const GET: ResponseContext<'static> =
        ResponseContext { method: Method::Get, http_10: false, keep_alive: true, upgrade: None };

    #[test]
    fn responses_state_whether_connection_persists() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        check_response(ok, GET, Ok((ok, true)));
        check_response(
            ok,
            ResponseContext { keep_alive: false, ..GET },
            Ok(("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n", true)),
        );
        let old = "HTTP/1.0 200 Fine\r\nContent-Length: 2\r\n\r\n";
        check_response(old, GET, Ok(("HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\n", false)));
        for (option, stays) in [("keep-alive", true), ("keep-alive, close", false), ("close, keep-alive", false)] {
            let old = format!("HTTP/1.0 200 OK\r\nConnection: {option}\r\nContent-Length: 2\r\n\r\n");
            check_response(&old, GET, Ok(("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", stays)));
        }
        let open = "HTTP/1.1 200 OK\r\n\r\n";
        check_response(open, GET, Ok(("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", false)));
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n";
        check_response(both, GET, Ok(("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false)));
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
        check_response(head, ResponseContext { method: Method::Head, ..GET }, Ok((head, true)));
        check_response(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            ResponseContext { http_10: true, ..GET },
            Ok(("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", true)),
        );
        check_response("HTTP/1.1 101 Switching\r\n\r\n", GET, Err("unexpected 101"));
        check_response("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", GET, Err("Content-Length"));
        check_response("ICY 200 OK\r\n\r\n", GET, Err("malformed"));
    }

    #[test]
    fn too_many_response_headers_is_a_separate_error() {
        let context = ResponseContext { method: Method::Get, http_10: false, keep_alive: true, upgrade: None };
        let rejected = |head: &str| response(head.as_bytes(), context, &mut Vec::new()).err();
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "Set-Cookie: a=b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(rejected(&many), Some("too many response headers"));
        assert_eq!(rejected("HTTP/1.1 two hundred\r\n\r\n"), Some("malformed response head"));
    }
}
