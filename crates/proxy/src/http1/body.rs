//! Where a message body ends (RFC 9112, 6 and 7). In: bytes as they arrive. Out: how many of them belong to the body, how many of
//! those are forwarded unchanged, and whether it is complete. Chunk framing is checked strictly and forwarded as it was written;
//! it is decoded only for HTTP/1.0 clients. Trailers are parsed as field lines; those with a meaning for framing, routing or
//! authentication are dropped (RFC 9110, 6.5.1). Limits: `LINE_MAX` bytes for a chunk-size line, `TRAILERS_MAX` for all trailers.

/// A chunk-size line with its extensions.
pub const LINE_MAX: u32 = 4 << 10;

/// All trailer lines together.
pub const TRAILERS_MAX: u32 = 64 << 10;

/// Significant digits of a chunk size: more than any file, and no overflow.
const DIGITS_MAX: u32 = 15;

/// Fields that must not be trailers: a recipient that merges them would interpret the message differently.
const NO_TRAILERS: [&str; 43] = [
    "transfer-encoding",
    "content-length",
    "host",
    "trailer",
    "te",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "http2-settings",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "content-encoding",
    "content-type",
    "content-range",
    "authorization",
    "proxy-authorization",
    "www-authenticate",
    "proxy-authenticate",
    "cookie",
    "set-cookie",
    "cache-control",
    "expect",
    "max-forwards",
    "pragma",
    "range",
    "age",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "if-range",
    "date",
    "expires",
    "location",
    "retry-after",
    "vary",
    "warning",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// No body, or none left.
    None,
    /// This many bytes are still expected.
    Length(u64),
    Chunked(Chunks),
    /// Until the endpoint closes.
    UntilClose,
}

/// Counts of the bytes that were given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Those that belong to the body.
    pub used: usize,
    /// Those of them, from the front, that are forwarded unchanged.
    pub passed: usize,
}

/// The position in the chunk framing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Bytes left of the chunk, or digits of the size so far.
    left: u64,
    /// Bytes of the line so far.
    line: u32,
    /// The trailers that replace the original ones.
    trailers: Option<Box<Trailers>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Trailers {
    /// Lines that are forwarded.
    forwarded: Vec<u8>,
    /// The line so far.
    line: Vec<u8>,
    /// Bytes of all lines.
    total: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    SizeFirst,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// The framing violates the RFC.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Body {
    pub fn chunked() -> Body {
        Body::Chunked(Chunks { state: State::SizeFirst, left: 0, line: 0, trailers: None })
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Body::None) || matches!(self, Body::Chunked(chunks) if chunks.state == State::Done)
    }

    /// Takes what belongs to the body from the front of `bytes`. With `data`, the content without framing is appended to it.
    pub fn take(&mut self, bytes: &[u8], data: Option<&mut Vec<u8>>) -> Result<Taken, Malformed> {
        let all = |count| Taken { used: count, passed: count };
        match self {
            Body::None => Ok(Taken::default()),
            Body::UntilClose => {
                data.into_iter().for_each(|data| data.extend_from_slice(bytes));
                Ok(all(bytes.len()))
            }
            Body::Length(left) => {
                let count = (*left).min(bytes.len() as u64) as usize;
                data.into_iter().for_each(|data| data.extend_from_slice(bytes.get(..count).unwrap_or(&[])));
                *left -= count as u64;
                if *left == 0 {
                    *self = Body::None;
                }
                Ok(all(count))
            }
            Body::Chunked(chunks) => chunks.take(bytes, data),
        }
    }

    /// Takes what belongs to the body, and appends it to `out` as it is forwarded. Returns how many bytes were taken.
    pub fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let taken = self.take(bytes, None)?;
        out.extend_from_slice(bytes.get(..taken.passed).unwrap_or(&[]));
        out.extend(self.trailers().unwrap_or_default());
        Ok(taken.used)
    }

    /// The replacement of the trailers, once the body is complete: lines and the empty line. None if nothing was replaced.
    pub fn trailers(&mut self) -> Option<Vec<u8>> {
        match self {
            Body::Chunked(chunks) if chunks.state == State::Done => {
                chunks.trailers.take().map(|trailers| [trailers.forwarded.as_slice(), b"\r\n"].concat())
            }
            _ => None,
        }
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8], mut data: Option<&mut Vec<u8>>) -> Result<Taken, Malformed> {
        let (mut at, mut passed) = (0, None);
        while self.state != State::Done {
            let Some(&byte) = bytes.get(at) else { break };
            if self.state == State::Data {
                let count = self.left.min((bytes.len() - at) as u64) as usize;
                if let Some(data) = data.as_deref_mut() {
                    data.extend_from_slice(bytes.get(at..at + count).unwrap_or(&[]));
                }
                self.left -= count as u64;
                at += count;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.next(byte)?;
            if self.trailers.is_some() {
                // From the first trailer on, nothing is forwarded unchanged.
                passed.get_or_insert(at);
            }
            at += 1;
        }
        Ok(Taken { used: at, passed: passed.unwrap_or(at) })
    }

    fn next(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::SizeFirst | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                // Leading zeros count only as part of the line (1*HEXDIG).
                if self.left >> (4 * (DIGITS_MAX - 1)) != 0 {
                    return Err(Malformed);
                }
                self.left = self.left * 16 + u64::from(digit);
                self.grow()?;
                State::Size
            }
            (State::Size, b';') => State::Extension,
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.grow()?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.line = 0;
                if self.left == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeFirst,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => {
                let trailers = self.trailers.get_or_insert_default();
                trailers.total += 1;
                if trailers.total > TRAILERS_MAX {
                    return Err(Malformed);
                }
                trailers.line.push(byte);
                State::Trailer
            }
            (State::TrailerLf, b'\n') => {
                self.trailers.as_mut().map_or(Err(Malformed), |trailers| trailers.end_line())?;
                State::TrailerStart
            }
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(Malformed),
        })
    }

    fn grow(&mut self) -> Result<(), Malformed> {
        self.line += 1;
        if self.line > LINE_MAX { Err(Malformed) } else { Ok(()) }
    }
}

impl Trailers {
    /// RFC 9112, 7.1.2 and 5: `field-name ":" OWS field-value OWS`.
    fn end_line(&mut self) -> Result<(), Malformed> {
        let colon = memchr::memchr(b':', &self.line).ok_or(Malformed)?;
        let name = self.line.get(..colon).unwrap_or(&[]);
        if name.is_empty() || !name.iter().all(|byte| super::syntax::is_token(*byte)) {
            return Err(Malformed);
        }
        if !NO_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes())) {
            self.forwarded.extend_from_slice(&self.line);
            self.forwarded.extend_from_slice(b"\r\n");
        }
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits the text at every position; each split must give the same result: how many bytes belong to the body, its
    /// content, and what is sent in place of the text.
    fn check(text: &str, expect: Result<(usize, &str, &str), ()>) {
        for cut in 0..=text.len() {
            let (mut body, mut data, mut sent, mut used) = (Body::chunked(), Vec::new(), Vec::new(), 0);
            let (first, second) = text.as_bytes().split_at(cut);
            let mut taken = Ok(());
            for part in [first, second] {
                if taken.is_ok() && !body.is_done() {
                    taken = body.take(part, Some(&mut data)).map(|count| {
                        sent.extend_from_slice(&part[..count.passed]);
                        sent.extend(body.trailers().unwrap_or_default());
                        used += count.used;
                    });
                }
            }
            match (taken, expect) {
                (Ok(()), Ok((want, content, passed))) => {
                    let texts = [data, sent].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                    assert_eq!(
                        (used, texts[0].as_str(), texts[1].as_str()),
                        (want, content, passed),
                        "{text:?} at {cut}"
                    );
                    assert!(body.is_done(), "{text:?} cut at {cut}");
                }
                (Err(Malformed), Err(())) => {}
                (got, want) => panic!("{text:?} cut at {cut}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn chunked_body_end_follows_the_framing() {
        check("5\r\nhello\r\n0\r\n\r\n", Ok((15, "hello", "5\r\nhello\r\n0\r\n\r\n")));
        let text = "5;x=\"y\"\r\nhello\r\n000\r\nT: v\r\n\r\nGET";
        check(text, Ok((29, "hello", &text[..29])));
        let text = "A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n";
        check(text, Ok((26, "0123456789x", text)));
        let text = "0000000000000000000002\r\nab\r\n0\r\n\r\n";
        check(text, Ok((text.len(), "ab", text)));
    }

    #[test]
    fn trailers_that_change_the_message_are_dropped() {
        let text = "0\r\nX-A: 1\r\nContent-Length: 5\r\nx-b:2\r\nTRANSFER-encoding: chunked\r\n\r\n";
        check(text, Ok((text.len(), "", "0\r\nX-A: 1\r\nx-b:2\r\n\r\n")));
        check("0\r\nHost: x\r\n\r\n", Ok((14, "", "0\r\n\r\n")));
        for line in ["GET /admin HTTP/1.1", ": v", "a b: c", "a\u{1}: b", "a: b\u{0}", "a", "é: 1"] {
            check(&format!("0\r\nX: y\r\n{line}\r\n\r\n"), Err(()));
        }
        check("1;a\u{1}b\r\nx\r\n0\r\n\r\n", Err(()));
    }

    #[test]
    fn ambiguous_chunk_framing_is_rejected() {
        for text in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "5 \r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "-1\r\n",
            ";\r\n",
            "\r\n",
            "fffffffffffffffff\r\n",
            "0\r\nT: v\n\r\n",
            "0\r\n folded\r\n\r\n",
            "1;a\nb\r\nx\r\n0\r\n\r\n",
        ] {
            check(text, Err(()));
        }
        let long = format!("1;{}\r\n", "x".repeat(LINE_MAX as usize + 1));
        assert_eq!(Body::chunked().take(long.as_bytes(), None), Err(Malformed));
    }

    #[test]
    fn length_body_leaves_the_following_bytes() {
        let mut body = Body::Length(3);
        assert_eq!(body.take(b"ab", None), Ok(Taken { used: 2, passed: 2 }));
        assert_eq!(body.take(b"cdef", None), Ok(Taken { used: 1, passed: 1 }));
        assert!(body.is_done());
    }
}
