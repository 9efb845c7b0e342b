//! An upload-request as servers of protocol 0 want it (gitprotocol-pack, "Packfile Negotiation"): `shallow` lines before the depth,
//! since strict ones refuse the library's order, and without the capability `deepen-relative`, with which a depth counts from what is
//! there, so that a first fetch has all of the history. In: what the library writes. Out: such a request put right, and all else as it
//! is. Bound: what is held back is one request, whose lines the library has in memory anyway.

use std::io::{self, Write};

/// A whole body, as over HTTP.
pub fn put_right(body: Vec<u8>) -> Vec<u8> {
    let (mut lines, rest) = lines(&body);
    let Some(first) = lines.first().filter(|line| is(line, b"want ")).map(|line| without_relative_depth(line)) else {
        return body;
    };
    // Wants, what is known to be cut off, the depth.
    lines.sort_by_key(|line| (is(line, b"deepen"), !is(line, b"want ")));
    let others = lines.get(1..).unwrap_or(&[]).concat();
    [&first, others.as_slice(), rest].concat()
}

/// The first line, which has the capabilities.
fn without_relative_depth(line: &[u8]) -> Vec<u8> {
    let text = line.get(PKT_HEAD..).unwrap_or(&[]);
    let words = text.split(|byte| *byte == b' ').filter(|word| word.trim_ascii_end() != b"deepen-relative");
    let mut text = words.collect::<Vec<_>>().join(&b' ');
    if line.ends_with(b"\n") && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    [format!("{:04x}", text.len() + PKT_HEAD).as_bytes(), &text].concat()
}

/// A stream to a server, on which a request is held back until its flush.
pub struct Corrected<W> {
    inner: W,
    held: Vec<u8>,
}

impl<W: Write> Corrected<W> {
    pub fn new(inner: W) -> Corrected<W> {
        Corrected { inner, held: Vec::new() }
    }

    fn release(&mut self) -> io::Result<()> {
        self.inner.write_all(&put_right(std::mem::take(&mut self.held)))
    }
}

impl<W: Write> Write for Corrected<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if !is_begun(&self.held) {
            self.release()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.release()?;
        self.inner.flush()
    }
}

/// Whether these bytes are an upload-request, or its beginning, and have no end yet.
fn is_begun(bytes: &[u8]) -> bool {
    let Some(text) = bytes.get(PKT_HEAD..) else { return true };
    // A flush and the other packets without a line are complete.
    let may_be = !bytes.starts_with(b"000") || bytes.get(3).is_some_and(|digit| *digit > b'4');
    let want = b"want ";
    may_be && text.iter().zip(want).all(|(byte, wanted)| byte == wanted) && !lines(bytes).1.starts_with(FLUSH)
}

/// The lines that bytes begin with, and what comes behind them.
fn lines(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut rest, mut lines) = (bytes, Vec::new());
    while let Some(line) = pkt_line(rest) {
        lines.push(line);
        rest = rest.get(line.len()..).unwrap_or(&[]);
    }
    (lines, rest)
}

/// The digits that a line begins with: its length (gitprotocol-common, "pkt-line").
const PKT_HEAD: usize = 4;
const FLUSH: &[u8] = b"0000";

/// A line of a request with its length; None at a flush and at whatever is no line.
fn pkt_line(bytes: &[u8]) -> Option<&[u8]> {
    let length = std::str::from_utf8(bytes.get(..PKT_HEAD)?).ok()?;
    let length = usize::from_str_radix(length, 16).ok().filter(|length| *length > PKT_HEAD)?;
    bytes.get(..length)
}

fn is(line: &[u8], word: &[u8]) -> bool {
    line.get(PKT_HEAD..).is_some_and(|text| text.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole, and in pieces of each size.
    fn check(body: &str, expect: &str) {
        assert_eq!(String::from_utf8(put_right(body.as_bytes().to_vec())).as_deref(), Ok(expect));
        for size in 1..=body.len() {
            let mut writer = Corrected::new(Vec::new());
            body.as_bytes().chunks(size).for_each(|part| writer.write_all(part).expect("memory"));
            writer.flush().expect("memory");
            assert_eq!(String::from_utf8(writer.inner).as_deref(), Ok(expect), "in pieces of {size}");
        }
    }

    #[test]
    fn a_request_is_put_right_and_all_else_stays() {
        check(
            "000bwant a\n000cdeepen 1000eshallow b\n0000000bhave c\n0009done\n",
            "000bwant a\n000eshallow b\n000cdeepen 10000000bhave c\n0009done\n",
        );
        check("0028want a ofs-delta deepen-relative x\n000cdeepen 10000", "0018want a ofs-delta x\n000cdeepen 10000");
        check("001bwant a deepen-relative\n0000", "000bwant a\n0000");
        for other in ["", "0000", "0013command=fetch\n00010000", "000bwant a\n0000", "zzzz", "00ffwant"] {
            check(other, other);
        }
    }

    /// What is no request, or has its end, waits for nothing: the server may be waited for.
    #[test]
    fn only_a_request_without_its_end_is_held_back() {
        let mut writer = Corrected::new(Vec::new());
        for (bytes, held) in
            [("0033git-upload-pack /a", 0), ("000bwant a\n", 11), ("0000", 0), ("0009done\n", 0), ("0000", 0)]
        {
            writer.write_all(bytes.as_bytes()).expect("memory");
            assert_eq!(writer.held.len(), held, "{bytes}");
        }
    }
}
