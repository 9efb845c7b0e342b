//! Where a message body ends (RFC 9112, 6 and 7). In: bytes as they arrive. Out: how many of them belong to the body, and
//! whether it is complete. Chunk framing is checked strictly and passed on as it was written; it is decoded only for
//! HTTP/1.0 clients. Bounds: `LINE_MAX` bytes for a chunk-size line, `TRAILERS_MAX` for all trailers.

/// A chunk-size line with its extensions.
pub const LINE_MAX: u32 = 4 << 10;

/// All trailer lines together.
pub const TRAILERS_MAX: u32 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// No body, or none left.
    None,
    /// This many bytes are still to come.
    Length(u64),
    Chunked(Chunks),
    /// Until the endpoint closes.
    UntilClose,
}

/// Where in the chunk framing we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Bytes left of the chunk, or digits of the size so far.
    left: u64,
    /// Bytes of the line or the trailers so far.
    line: u32,
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

/// The framing is not what the RFC allows.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Body {
    pub fn chunked() -> Body {
        Body::Chunked(Chunks { state: State::SizeFirst, left: 0, line: 0 })
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Body::None) || matches!(self, Body::Chunked(chunks) if chunks.state == State::Done)
    }

    /// Takes what belongs to the body from the front of `bytes`; answers how many bytes that is. With `data`, the content
    /// without framing is appended to it.
    pub fn take(&mut self, bytes: &[u8], data: Option<&mut Vec<u8>>) -> Result<usize, Malformed> {
        match self {
            Body::None => Ok(0),
            Body::UntilClose => {
                data.into_iter().for_each(|data| data.extend_from_slice(bytes));
                Ok(bytes.len())
            }
            Body::Length(left) => {
                let count = (*left).min(bytes.len() as u64) as usize;
                data.into_iter().for_each(|data| data.extend_from_slice(bytes.get(..count).unwrap_or(&[])));
                *left -= count as u64;
                if *left == 0 {
                    *self = Body::None;
                }
                Ok(count)
            }
            Body::Chunked(chunks) => chunks.take(bytes, data),
        }
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8], mut data: Option<&mut Vec<u8>>) -> Result<usize, Malformed> {
        let mut at = 0;
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
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::SizeFirst | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                // 15 digits are more than any file, and cannot overflow.
                if self.line >= 15 {
                    return Err(Malformed);
                }
                self.left = self.left * 16 + u64::from(digit);
                self.line += 1;
                State::Size
            }
            (State::Size, b';') => State::Extension,
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\n' | 0) => return Err(Malformed),
            (State::Extension, _) => {
                self.grow(LINE_MAX)?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.line = 0;
                if self.left == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeFirst,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::Trailer, b'\n' | 0) => return Err(Malformed),
            (State::TrailerStart, b' ' | b'\t') => return Err(Malformed),
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, _) => {
                self.grow(TRAILERS_MAX)?;
                State::Trailer
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(Malformed),
        })
    }

    fn grow(&mut self, most: u32) -> Result<(), Malformed> {
        self.line += 1;
        if self.line > most { Err(Malformed) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the text in every way to cut it in two, and answers what one way and all others agree on.
    fn check(text: &str, expect: Result<(usize, &str), ()>) {
        for cut in 0..=text.len() {
            let (mut body, mut data) = (Body::chunked(), Vec::new());
            let (first, second) = text.as_bytes().split_at(cut);
            let taken = body.take(first, Some(&mut data)).and_then(|count| {
                if count < first.len() {
                    return Ok(count);
                }
                body.take(second, Some(&mut data)).map(|more| count + more)
            });
            match (&taken, expect) {
                (Ok(count), Ok((want, content))) => {
                    assert_eq!(
                        (*count, String::from_utf8_lossy(&data).as_ref()),
                        (want, content),
                        "{text:?} cut at {cut}"
                    );
                    assert!(body.is_done(), "{text:?} cut at {cut}");
                }
                (Err(Malformed), Err(())) => {}
                (got, want) => panic!("{text:?} cut at {cut}: {got:?}, wanted {want:?}"),
            }
        }
    }

    /// covers: foundation 5
    #[test]
    fn chunks_end_where_the_framing_says() {
        check("5\r\nhello\r\n0\r\n\r\n", Ok((15, "hello")));
        check("5;x=\"y\"\r\nhello\r\n000\r\nT: v\r\n\r\nGET", Ok((29, "hello")));
        check("A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", Ok((26, "0123456789x")));
    }

    /// covers: foundation 5
    #[test]
    fn framing_that_two_parsers_could_read_differently_is_refused() {
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

    /// covers: foundation 5
    #[test]
    fn a_length_leaves_what_follows() {
        let mut body = Body::Length(3);
        assert_eq!(body.take(b"ab", None), Ok(2));
        assert_eq!(body.take(b"cdef", None), Ok(1));
        assert!(body.is_done());
    }
}
