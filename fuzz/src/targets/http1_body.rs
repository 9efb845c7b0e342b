//! Chunked bodies with their trailers (RFC 9112, 7.1), and bodies of a known length. In: the bytes after a head, fed in pieces of
//! many sizes. Out: the same content, the same end and the same error for every fragmentation, equal to those of a second parser
//! that gets all bytes in one piece; the forwarded body has the same content, without trailers that would change the message.

use super::head_lines::is_token;
use super::same;
use crate::attempt::{bucket, shape};
use crate::mutate::Random;
use proxy::http1::body::{Body, LINE_MAX, TRAILERS_MAX, Taken};

pub const WORDS: &[&str] = &[
    "0\r\n\r\n",
    "0\r\n",
    "\r\n",
    "\n",
    "\r",
    "5\r\nhello\r\n",
    "a\r\n",
    "F",
    "000000000000001\r\nx\r\n",
    "ffffffffffffff",
    "fffffffffffffff\r\n",
    "7fffffffffffffff\r\n",
    ";",
    ";a=b",
    ";a=\"b;c\"",
    "; a",
    " ;",
    "0x5",
    "-1",
    "+5",
    "Trailer: x\r\n",
    "X: y\r\n",
    " folded\r\n",
    "\t",
    "\0",
    ": ",
    "GET / HTTP/1.1\r\n\r\n",
];

/// The result of parsing all bytes.
#[derive(Clone, Debug, PartialEq)]
enum Read {
    /// This many bytes belong to the body, and it has ended.
    Whole(usize),
    More,
    /// Already invalid, and rejected at the end of the line at the latest.
    Doomed,
    Malformed,
}

pub fn run(input: &[u8]) {
    let (expected, content) = second_reader(input);
    shape((std::mem::discriminant(&expected), bucket(content.len()), bucket(input.len())));
    for pattern in 0..5 {
        let (read, data, sent) = feed(Body::chunked(), input, pattern, true);
        let early = expected == Read::Doomed && matches!(read, Read::More | Read::Malformed);
        assert!(early || read == expected, "{read:?} in pieces of pattern {pattern}, and {expected:?} in one piece");
        if read != Read::Malformed {
            same(&data, &content, &format!("in pieces of pattern {pattern}"));
        }
        assert!(content.starts_with(&data), "only content is returned");
        if matches!(read, Read::Whole(_)) {
            assert_eq!(second_reader(&sent), (Read::Whole(sent.len()), content.clone()), "the forwarded body");
            check_trailers(&sent);
        }
        assert_eq!(feed(Body::chunked(), input, pattern, false).0, read, "with and without the content");
    }
    // A length of 0 is no body: the head determines it.
    let length = input.len() / 2;
    for pattern in (0..5).filter(|_| length > 0) {
        let (read, data, sent) = feed(Body::Length(length as u64), input, pattern, true);
        same(&sent, &data, "a body with a length is forwarded unchanged");
        assert_eq!(read, Read::Whole(length), "a length in pieces of pattern {pattern}");
        same(&data, input.get(..length).unwrap_or(&[]), "a length is that many bytes");
    }
}

/// RFC 9110, 6.5.1: fields of framing and routing are not allowed in trailers.
fn check_trailers(sent: &[u8]) {
    let start = sent.windows(2).rposition(|pair| pair == b"0\r").unwrap_or(0);
    let text = String::from_utf8_lossy(sent.get(start..).unwrap_or(&[])).to_ascii_lowercase();
    for name in ["content-length", "transfer-encoding", "host", "connection", "trailer"] {
        assert!(!text.split("\r\n").any(|line| line.starts_with(&format!("{name}:"))), "the trailer `{name}`: {text}");
    }
}

/// Feeds the bytes in pieces: all in one, one by one, or in sizes from a seed. Returns the result, the content, and the forwarded
/// bytes.
fn feed(mut body: Body, input: &[u8], pattern: u64, wanted: bool) -> (Read, Vec<u8>, Vec<u8>) {
    let (mut data, mut sent, mut taken, mut random) = (Vec::new(), Vec::new(), 0, Random::new(pattern));
    let mut rest = input;
    while !rest.is_empty() && !body.is_done() {
        let size = match pattern {
            0 => rest.len(),
            1 => 1,
            _ => (1 + random.below(if pattern == 2 { 4 } else { 40 })).min(rest.len()),
        };
        let (piece, after) = rest.split_at(size);
        match body.take(piece, wanted.then_some(&mut data)) {
            Ok(Taken { used, passed }) => {
                taken += used;
                assert!(passed <= used, "forwarded bytes belong to the body");
                assert!(used == piece.len() || body.is_done(), "unused bytes are after the body");
                sent.extend_from_slice(piece.get(..passed).unwrap_or(&[]));
                sent.extend(body.trailers().unwrap_or_default());
            }
            Err(_) => return (Read::Malformed, data, sent),
        }
        rest = after;
    }
    (if body.is_done() { Read::Whole(taken) } else { Read::More }, data, sent)
}

/// The same with all bytes in one piece, with the content before the end or the error.
fn second_reader(input: &[u8]) -> (Read, Vec<u8>) {
    let mut content = Vec::new();
    let mut rest = input;
    loop {
        let size = match size_line(rest) {
            Line::Is(size, behind) => {
                rest = behind;
                size
            }
            Line::More => return (Read::More, content),
            Line::Doomed => return (Read::Doomed, content),
            Line::Wrong => return (Read::Malformed, content),
        };
        if size == 0 {
            return match trailers(rest) {
                Line::Is((), behind) => (Read::Whole(input.len() - behind.len()), content),
                Line::More => (Read::More, content),
                Line::Doomed => (Read::Doomed, content),
                Line::Wrong => (Read::Malformed, content),
            };
        }
        let here = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        let (data, behind) = rest.split_at(here);
        content.extend_from_slice(data);
        rest = match behind {
            [] => return (Read::More, content),
            [b'\r'] if here as u64 == size => return (Read::More, content),
            [b'\r', b'\n', behind @ ..] => behind,
            _ => return (Read::Malformed, content),
        };
    }
}

enum Line<'a, T> {
    Is(T, &'a [u8]),
    More,
    Doomed,
    Wrong,
}

const DIGITS_MAX: usize = 15;

/// Ends a line, valid or not: neither an extension nor a field contains it (RFC 9112, 7.1.1; RFC 9110, 5.5).
fn is_control(byte: &u8) -> bool {
    byte.is_ascii_control() && *byte != b'\t'
}

fn size_line(input: &[u8]) -> Line<'_, u64> {
    let digits = input.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, mut rest) = input.split_at(digits);
    // Leading zeros do not count as digits (1*HEXDIG), only as part of the line.
    let zeros = number.iter().take_while(|byte| **byte == b'0').count();
    if digits - zeros > DIGITS_MAX || digits > LINE_MAX as usize {
        return Line::Wrong;
    }
    if rest.is_empty() {
        return Line::More;
    }
    let text = String::from_utf8_lossy(number);
    let Ok(size) = u64::from_str_radix(&text, 16) else { return Line::Wrong };
    if let Some(extension) = rest.strip_prefix(b";") {
        let end = extension.iter().position(is_control);
        if end.unwrap_or(extension.len()) + digits > LINE_MAX as usize {
            return Line::Wrong;
        }
        let Some(end) = end else { return Line::More };
        rest = extension.get(end..).unwrap_or(&[]);
    }
    match rest {
        [b'\r', b'\n', behind @ ..] => Line::Is(size, behind),
        [b'\r'] => Line::More,
        _ => Line::Wrong,
    }
}

/// Each is a field: a token, a colon, and no control characters (RFC 9112, 7.1.2 and 5).
fn trailers(input: &[u8]) -> Line<'_, ()> {
    let (mut rest, mut bytes) = (input, 0);
    loop {
        match rest {
            [] | [b'\r'] => return Line::More,
            [b'\r', b'\n', behind @ ..] => return Line::Is((), behind),
            [b'\r', ..] => return Line::Wrong,
            _ => {}
        }
        let end = rest.iter().position(is_control);
        bytes += end.unwrap_or(rest.len());
        if bytes > TRAILERS_MAX as usize {
            return Line::Wrong;
        }
        let line = rest.get(..end.unwrap_or(rest.len())).unwrap_or(&[]);
        let name = line.iter().take_while(|byte| is_token(**byte)).count();
        let is_field = name > 0 && line.get(name) == Some(&b':');
        let may_be = name > 0 && name == line.len() && end.is_none();
        match end.and_then(|end| rest.get(end..)).unwrap_or(&[]) {
            [] if is_field || may_be => return Line::More,
            [] => return Line::Doomed,
            [b'\r', b'\n', behind @ ..] if is_field => rest = behind,
            [b'\r'] if is_field => return Line::More,
            [b'\r'] => return Line::Doomed,
            _ => return Line::Wrong,
        }
    }
}
