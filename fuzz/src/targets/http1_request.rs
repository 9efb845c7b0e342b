//! Request heads: read, refused where two parsers could disagree, rewritten for the endpoint. In: the bytes of a connection. Out: the
//! same answer however they arrive; what goes out is a head that a second, strict reader reads alike, with the fields in their order,
//! those of this hop gone, one Host, and the framing that we go by ourselves (RFC 9112, 3.2 and 6.3).

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

/// The listener that a request comes to, and one behind it.
const FIRST: Hop<'static> = Hop { authority: "127.0.0.1:80", via: "o-first-7f3a" };
const SECOND: Hop<'static> = Hop { authority: "127.0.0.1:80", via: "o-second-91c2" };

type Parsed = Result<Option<Told>, Refusal>;

/// What is told of a request, and the head that goes out.
#[derive(Debug, PartialEq)]
struct Told {
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
    Ok(request.map(|r| Told {
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
        Ok(Some(told)) => {
            let sizes = (bucket(told.length), bucket(told.out.len()));
            shape((told.method.text(), told.keep_alive, told.http_10, told.upgrade.is_some(), told.last_hop, sizes));
            check(input.get(..told.length).expect("the head lies within the bytes"), input, told);
        }
    }
    for cut in cuts(input.len()) {
        let part = parse(input.get(..cut).unwrap_or(&[]), &FIRST);
        match (&part, &whole) {
            (Ok(None), Ok(Some(told))) => assert!(cut < told.length, "a head was whole at {cut}, and was waited for"),
            (Ok(Some(part)), Ok(Some(told))) => assert_eq!(part, told, "the same head, with less behind it"),
            (Ok(None), _) | (Err(_), Err(_)) => {}
            _ => panic!("{cut} bytes of it lead to {part:?}, and all of it to {whole:?}"),
        }
    }
}

/// Where reads may end: everywhere in a short input, else at places spread over it.
pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
    const CUTS_MAX: usize = 64;
    (0..length).step_by(length.div_ceil(CUTS_MAX).max(1))
}

fn check(original: &[u8], input: &[u8], told: &Told) {
    let blank_lines = original.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let before =
        Head::read(original.get(blank_lines..).unwrap_or(&[])).expect("an accepted head is one that can be read");
    let after = Head::read(&told.out).expect("what goes out is a head");
    check_start(&before, &after, input, told);
    check_fields(&before, &after, told);
    check_framing(&after, told);

    let again = parse(&told.out, &FIRST).err().map(|refusal| refusal.status);
    // With our own fields it may have more than are taken, which is found first.
    assert!(matches!(again, Some(508 | 431)), "our own request, come back: {again:?}");
    // Host, Via and Connection may be fields that we add, and too many for ourselves.
    if after.fields.len() > HEADERS_MAX {
        return;
    }
    let again = parse(&told.out, &SECOND).expect("what goes out is not refused").expect("what goes out is whole");
    assert_eq!(again.length, told.out.len(), "nothing stands behind what goes out");
    let (one, two) = ((told.method, &told.body, &told.upgrade), (again.method, &again.body, &again.upgrade));
    assert_eq!(one, two, "what goes out means what came in");
    let next = Head::read(&again.out).expect("what goes out is a head");
    same(next.start, after.start, "the request line is rewritten once and for all");
    let but = ["via", "max-forwards"];
    assert_eq!(next.end_to_end(&but), after.end_to_end(&but), "fields are rewritten once and for all");
}

fn check_start(before: &Head<'_>, after: &Head<'_>, input: &[u8], told: &Told) {
    let words = |start: &[u8]| start.split(|byte| *byte == b' ').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (came, goes) = (words(before.start), words(after.start));
    let ([method, target, version], [our_method, our_target, our_version]) = (&came[..], &goes[..]) else {
        panic!("a request line has three words: {came:?} {goes:?}");
    };
    assert_eq!(method, our_method);
    assert_eq!(our_version, b"HTTP/1.1");
    assert_eq!(told.http_10, version == b"HTTP/1.0");
    assert_ne!(method, b"CONNECT", "is not forwarded");
    assert!(!our_target.contains(&b'#'), "a target has no fragment");
    let asterisk = target == b"*" && method == b"OPTIONS";
    let absolute = [&b"http://"[..], b"https://"].iter().any(|scheme| has_prefix(target, scheme));
    assert!(
        asterisk || absolute || target.starts_with(b"/"),
        "RFC 9112, 3.2: `{}` is no target",
        target.escape_ascii()
    );

    let (host, expected) = origin_form(target, method == b"OPTIONS");
    same(our_target, &expected, "RFC 9112, 3.2.1: the target in its origin form");
    if let Some(host) = host {
        assert!(!host.is_empty(), "RFC 9110, 4.2.1: a URI without a host is refused");
        assert_eq!(after.values("host"), [host], "RFC 9112, 3.2.2: the authority is the host");
    } else if let Some(host) = before.values("host").first() {
        assert_eq!(after.values("host"), [*host]);
    }
    assert!(told.path.end <= told.length, "{:?} lies outside of a head of {} bytes", told.path, told.length);
    // `http://host` and `*` have no path to point at.
    let path = input.get(told.path.clone()).filter(|path| !path.is_empty()).unwrap_or(b"/");
    let expected = if expected == b"*" { &b"/"[..] } else { &expected };
    same(path, expected.split(|byte| *byte == b'?').next().unwrap_or(&[]), "the path of the record");
}

fn has_prefix(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
}

/// The host of an absolute target, and the target as it is asked of the host itself.
fn origin_form(target: &[u8], options: bool) -> (Option<&[u8]>, Vec<u8>) {
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| has_prefix(target, scheme));
    let Some(rest) = scheme.and_then(|scheme| target.get(scheme.len()..)) else { return (None, target.to_vec()) };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    assert!(!host.contains(&b'@'), "RFC 9110, 4.2.4: userinfo is refused");
    let path = match path {
        // RFC 9112, 3.2.4.
        b"" if options => b"*".to_vec(),
        [b'/', ..] => path.to_vec(),
        _ => [b"/", path].concat(),
    };
    (Some(host), path)
}

fn check_fields(before: &Head<'_>, after: &Head<'_>, told: &Told) {
    for name in ["keep-alive", "proxy-connection"] {
        assert!(after.values(name).is_empty(), "`{name}` is for one hop");
    }
    let te = after.values("te");
    assert!(te.iter().all(|value| value.eq_ignore_ascii_case(b"trailers")), "TE is for one hop");
    let ours = [(told.upgrade.is_some(), &b"upgrade"[..]), (!te.is_empty(), b"te")];
    let ours: Vec<Vec<u8>> = ours.into_iter().filter(|(told, _)| *told).map(|(_, option)| option.to_vec()).collect();
    assert_eq!(after.connection(), ours, "our own Connection");
    assert_eq!(!after.values("upgrade").is_empty(), told.upgrade.is_some(), "Upgrade goes with its option");
    let via: Vec<&[u8]> = before.values("via").into_iter().chain([&b"1.1 o-first-7f3a"[..]]).collect();
    let named = before.asks_to("via");
    assert!(named || after.values("via") == via, "RFC 9110, 7.6.3: ours stands last");
    assert_eq!(after.values("host").len(), 1, "one Host");
    let keeps = !before.asks_to("close") && (!told.http_10 || before.asks_to("keep-alive"));
    assert_eq!(told.keep_alive, keeps, "RFC 9112, 9.3");

    // What says where the message ends is never dropped, whatever Connection names.
    let but = ["te", "host", "content-length", "transfer-encoding", "via", "max-forwards", "http2-settings"];
    let (came, goes): (Vec<Field<'_>>, Vec<Field<'_>>) = (before.end_to_end(&but), after.end_to_end(&but));
    assert_eq!(came, goes, "end-to-end fields pass as they are");
}

fn check_framing(after: &Head<'_>, told: &Told) {
    let (lengths, codings) = (after.values("content-length"), after.values("transfer-encoding"));
    match &told.body {
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
        Body::UntilClose => panic!("no request ends with its connection"),
    }
}

pub fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
