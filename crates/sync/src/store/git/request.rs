//! An upload-request as servers of protocol 0 require it (gitprotocol-pack, "Packfile Negotiation"): `shallow` lines before the
//! depth, since strict servers reject the library's order, and without the capability `deepen-relative`, with which a depth
//! counts from the existing history, so that a first fetch has all of the history. In: what the library writes. Out: such a
//! request, corrected, and everything else unchanged. Limits: one buffered request, whose lines the library has in memory anyway.

use std::io::{self, Write};

/// Corrects a complete body, as sent over HTTP.
pub fn correct(body: Vec<u8>) -> Vec<u8> {
    let (mut lines, rest) = lines(&body);
    let Some(first) = lines.first().filter(|line| is(line, b"want ")).map(|line| without_relative_depth(line)) else {
        return body;
    };
    // The wants, the shallow commits, the depth.
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

/// A stream to a server that buffers a request until its flush.
pub struct Corrected<W> {
    inner: W,
    buffered: Vec<u8>,
}

impl<W: Write> Corrected<W> {
    pub fn new(inner: W) -> Corrected<W> {
        Corrected { inner, buffered: Vec::new() }
    }

    fn release(&mut self) -> io::Result<()> {
        self.inner.write_all(&correct(std::mem::take(&mut self.buffered)))
    }
}

impl<W: Write> Write for Corrected<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffered.extend_from_slice(bytes);
        if !is_incomplete(&self.buffered) {
            self.release()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.release()?;
        self.inner.flush()
    }
}

/// Whether these bytes are an upload-request, or its beginning, that is not complete yet.
fn is_incomplete(bytes: &[u8]) -> bool {
    let Some(text) = bytes.get(PKT_HEAD..) else { return true };
    // A flush and the other packets without a line are complete.
    let may_be = !bytes.starts_with(b"000") || bytes.get(3).is_some_and(|digit| *digit > b'4');
    let want = b"want ";
    may_be && text.iter().zip(want).all(|(byte, wanted)| byte == wanted) && !lines(bytes).1.starts_with(FLUSH)
}

/// The lines at the beginning of the bytes, and the rest.
fn lines(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut rest, mut lines) = (bytes, Vec::new());
    while let Some(line) = pkt_line(rest) {
        lines.push(line);
        rest = rest.get(line.len()..).unwrap_or(&[]);
    }
    (lines, rest)
}

/// The digits at the beginning of a line, which are its length (gitprotocol-common, "pkt-line").
const PKT_HEAD: usize = 4;
const FLUSH: &[u8] = b"0000";

/// A line of a request with its length; None at a flush and at anything that is not a line.
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

    /// Complete, and in chunks of each size.
    fn check(body: &str, expect: &str) {
        assert_eq!(String::from_utf8(correct(body.as_bytes().to_vec())).as_deref(), Ok(expect));
        for size in 1..=body.len() {
            let mut writer = Corrected::new(Vec::new());
            body.as_bytes().chunks(size).for_each(|part| writer.write_all(part).expect("memory"));
            writer.flush().expect("memory");
            assert_eq!(String::from_utf8(writer.inner).as_deref(), Ok(expect), "in chunks of {size}");
        }
    }

    #[test]
    fn requests_are_corrected_and_the_rest_unchanged() {
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

    /// Anything else is written immediately: the client may wait for the server.
    #[test]
    fn only_an_incomplete_request_is_buffered() {
        let mut writer = Corrected::new(Vec::new());
        for (bytes, buffered) in
            [("0033git-upload-pack /a", 0), ("000bwant a\n", 11), ("0000", 0), ("0009done\n", 0), ("0000", 0)]
        {
            writer.write_all(bytes.as_bytes()).expect("memory");
            assert_eq!(writer.buffered.len(), buffered, "{bytes}");
        }
    }
}
