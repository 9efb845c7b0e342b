//! Request heads: parsed, rejected if two parsers could disagree, rewritten for the endpoint. In: the bytes of a connection. Out:
//! the same result for every fragmentation; the forwarded head has the same meaning for a second, strict parser, with the fields
//! in their order, without hop-by-hop fields, with one Host, and with the framing that the proxy uses (RFC 9112, 3.2 and 6.3).

use super::head_lines::{Field, Head};
use super::same;
use crate::attempt::{bucket, shape};
use proxy::http1::body::Body;
use proxy::http1::head::{self, HEADERS_MAX, Hop};
use proxy::http1::syntax::{Method, Refusal};
use std::ops::Range;

pub const WORDS: &[&str] = &[
    "GET ",
    "POST ",
    "CONNECT ",
    "OPTIONS * ",
    "HEAD ",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "HTTP/1.2",
    "http://",
    "http://h",
    "HTTP://a@b:1",
    "https://h/",
    "//x/",
    "/a?b=c",
    "#f",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    "\r\n ",
    "Host: h\r\n",
    "Host:\r\n",
    "Content-Length: 5\r\n",
    "content-length:",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked",
    "TE: trailers\r\n",
    "te: gzip",
    "Connection: close\r\n",
    "connection: keep-alive, Upgrade",
    "Connection: x, host, content-length, te\r\n",
    "Keep-Alive: timeout=5\r\n",
    "Proxy-Connection: keep-alive\r\n",
    "Upgrade: websocket\r\n",
    "Upgrade: h2c\r\n",
    "HTTP2-Settings: AA\r\n",
    "Expect: 100-continue\r\n",
    ": ",
    " :",
    ",",
    "\t",
    "\0",
    "%00",
    "x: y\r\n",
    "Via: 1.1 o-first-7f3a\r\n",
    "Max-Forwards: 0\r\n",
    "TRACE ",
];

/// The listener that receives a request, and a second one after it.
const FIRST: Hop<'static> = Hop { authority: "127.0.0.1:80", via: "o-first-7f3a" };
const SECOND: Hop<'static> = Hop { authority: "127.0.0.1:80", via: "o-second-91c2" };

type Parsed = Result<Option<Summary>, Refusal>;

/// The properties of a request, and the forwarded head.
#[derive(Debug, PartialEq)]
struct Summary {
    length: usize,
    method: Method,
    path: Range<usize>,
    body: Body,
    keep_alive: bool,
    http_10: bool,
    upgrade: Option<Box<[u8]>>,
    last_hop: bool,
    out: Vec<u8>,
}

fn parse(bytes: &[u8], hop: &Hop<'_>) -> Parsed {
    let mut out = Vec::new();
    let request = head::request(bytes, hop, &mut out)?;
    Ok(request.map(|r| Summary {
        length: r.length,
        method: r.method,
        path: r.path,
        body: r.body,
        keep_alive: r.keep_alive,
        http_10: r.http_10,
        upgrade: r.upgrade,
        last_hop: r.last_hop,
        out,
    }))
}

pub fn run(input: &[u8]) {
    let whole = parse(input, &FIRST);
    match &whole {
        Ok(None) => shape("partial"),
        Err(refusal) => shape((refusal.status, refusal.reason)),
        Ok(Some(summary)) => {
            let sizes = (bucket(summary.length), bucket(summary.out.len()));
            shape((
                summary.method.as_str(),
                summary.keep_alive,
                summary.http_10,
                summary.upgrade.is_some(),
                summary.last_hop,
                sizes,
            ));
            check(input.get(..summary.length).expect("the head is within the bytes"), input, summary);
        }
    }
    for cut in cuts(input.len()) {
        let part = parse(input.get(..cut).unwrap_or(&[]), &FIRST);
        match (&part, &whole) {
            (Ok(None), Ok(Some(summary))) => {
                assert!(cut < summary.length, "a head was complete at {cut}, and more was awaited")
            }
            (Ok(Some(part)), Ok(Some(summary))) => assert_eq!(part, summary, "the same head, with less after it"),
            (Ok(None), _) | (Err(_), Err(_)) => {}
            _ => panic!("{cut} bytes return {part:?}, and all of them {whole:?}"),
        }
    }
}

/// The positions where reads end: everywhere in a short input, else spread over it.
pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
    const CUTS_MAX: usize = 64;
    (0..length).step_by(length.div_ceil(CUTS_MAX).max(1))
}

fn check(original: &[u8], input: &[u8], summary: &Summary) {
    let blank_lines = original.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let before = Head::read(original.get(blank_lines..).unwrap_or(&[])).expect("an accepted head can be parsed");
    let after = Head::read(&summary.out).expect("the forwarded head can be parsed");
    check_start(&before, &after, input, summary);
    check_fields(&before, &after, summary);
    check_framing(&after, summary);

    let again = parse(&summary.out, &FIRST).err().map(|refusal| refusal.status);
    // With the proxy's own fields it may have more than are accepted, which is detected first.
    assert!(matches!(again, Some(508 | 431)), "the proxy's own request is a loop: {again:?}");
    // The proxy may add Host, Via and Connection, and exceed its own limit.
    if after.fields.len() > HEADERS_MAX {
        return;
    }
    let again =
        parse(&summary.out, &SECOND).expect("the forwarded head is accepted").expect("the forwarded head is complete");
    assert_eq!(again.length, summary.out.len(), "nothing follows the forwarded head");
    let (one, two) = ((summary.method, &summary.body, &summary.upgrade), (again.method, &again.body, &again.upgrade));
    assert_eq!(one, two, "the forwarded head has the same meaning");
    let next = Head::read(&again.out).expect("the forwarded head can be parsed");
    same(next.start, after.start, "rewriting the request line is idempotent");
    let but = ["via", "max-forwards"];
    assert_eq!(next.end_to_end(&but), after.end_to_end(&but), "rewriting the fields is idempotent");
}

fn check_start(before: &Head<'_>, after: &Head<'_>, input: &[u8], summary: &Summary) {
    let words = |start: &[u8]| start.split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (received, sent) = (words(before.start), words(after.start));
    let ([method, target, version], [sent_method, sent_target, sent_version]) = (&received[..], &sent[..]) else {
        panic!("a request line has three words: {received:?} {sent:?}");
    };
    assert_eq!(method, sent_method);
    assert_eq!(sent_version, b"HTTP/1.1");
    assert_eq!(summary.http_10, version == b"HTTP/1.0");
    assert_ne!(method, b"CONNECT", "CONNECT is not forwarded");
    assert!(!sent_target.contains(&b'#'), "a target has no fragment");
    let asterisk = target == b"*" && method == b"OPTIONS";
    let absolute = [&b"http://"[..], b"https://"].iter().any(|scheme| has_prefix(target, scheme));
    assert!(
        asterisk || absolute || target.starts_with(b"/"),
        "RFC 9112, 3.2: `{}` is not a target",
        target.escape_ascii()
    );

    let (host, expected) = origin_form(target, method == b"OPTIONS");
    same(sent_target, &expected, "RFC 9112, 3.2.1: the target in its origin form");
    if let Some(host) = host {
        assert!(!host.is_empty(), "RFC 9110, 4.2.1: a URI without a host is rejected");
        assert_eq!(after.values("host"), [host], "RFC 9112, 3.2.2: the authority is the host");
    } else if let Some(host) = before.values("host").first() {
        assert_eq!(after.values("host"), [*host]);
    }
    assert!(summary.path.end <= summary.length, "{:?} is outside of a head of {} bytes", summary.path, summary.length);
    // `http://host` and `*` have no path.
    let path = input.get(summary.path.clone()).filter(|path| !path.is_empty()).unwrap_or(b"/");
    let expected = if expected == b"*" { &b"/"[..] } else { &expected };
    same(path, expected.split(|byte| *byte == b'?').next().unwrap_or(&[]), "the path of the access record");
}

fn has_prefix(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
}

/// The host of an absolute target, and the target in origin form.
fn origin_form(target: &[u8], options: bool) -> (Option<&[u8]>, Vec<u8>) {
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| has_prefix(target, scheme));
    let Some(rest) = scheme.and_then(|scheme| target.get(scheme.len()..)) else { return (None, target.to_vec()) };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    assert!(!host.contains(&b'@'), "RFC 9110, 4.2.4: userinfo is rejected");
    let path = match path {
        // RFC 9112, 3.2.4.
        b"" if options => b"*".to_vec(),
        [b'/', ..] => path.to_vec(),
        _ => [b"/", path].concat(),
    };
    (Some(host), path)
}

fn check_fields(before: &Head<'_>, after: &Head<'_>, summary: &Summary) {
    for name in ["keep-alive", "proxy-connection"] {
        assert!(after.values(name).is_empty(), "`{name}` is for one hop");
    }
    let te = after.values("te");
    assert!(te.iter().all(|value| value.eq_ignore_ascii_case(b"trailers")), "TE is for one hop");
    let options = [(summary.upgrade.is_some(), &b"upgrade"[..]), (!te.is_empty(), b"te")];
    let set = options.into_iter().filter(|(is_set, _)| *is_set);
    let options: Vec<Vec<u8>> = set.map(|(_, option)| option.to_vec()).collect();
    assert_eq!(after.connection(), options, "the proxy's own Connection");
    assert_eq!(!after.values("upgrade").is_empty(), summary.upgrade.is_some(), "Upgrade goes with its option");
    let via: Vec<&[u8]> = before.values("via").into_iter().chain([&b"1.1 o-first-7f3a"[..]]).collect();
    let is_option = before.has_option("via");
    assert!(is_option || after.values("via") == via, "RFC 9110, 7.6.3: the proxy's own is last");
    assert_eq!(after.values("host").len(), 1, "one Host");
    let keep_alive = !before.has_option("close") && (!summary.http_10 || before.has_option("keep-alive"));
    assert_eq!(summary.keep_alive, keep_alive, "RFC 9112, 9.3");

    // Framing fields are never dropped, even if Connection lists them.
    let but = ["te", "host", "content-length", "transfer-encoding", "via", "max-forwards", "http2-settings"];
    let (received, sent): (Vec<Field<'_>>, Vec<Field<'_>>) = (before.end_to_end(&but), after.end_to_end(&but));
    assert_eq!(received, sent, "end-to-end fields are unchanged");
}

fn check_framing(after: &Head<'_>, summary: &Summary) {
    let (lengths, codings) = (after.values("content-length"), after.values("transfer-encoding"));
    match &summary.body {
        Body::Chunked(_) => {
            assert!(lengths.is_empty() && codings.len() == 1, "one framing: {lengths:?} {codings:?}");
            assert!(codings.iter().all(|coding| coding.eq_ignore_ascii_case(b"chunked")));
        }
        Body::Length(length) => {
            assert!(codings.is_empty(), "one framing");
            assert_eq!(lengths.iter().map(|digits| number(digits)).collect::<Vec<_>>(), [Some(*length)]);
        }
        Body::None => {
            assert!(codings.is_empty() && lengths.iter().all(|digits| number(digits) == Some(0)), "no body");
        }
        Body::UntilClose => panic!("no request body ends with its connection"),
    }
}

pub fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
