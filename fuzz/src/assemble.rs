//! Binary inputs as text, so that they can be written and read by hand. In: words. Out: bytes. A decimal number is eight bytes,
//! little-endian; `"text"` is its bytes, `+"text"` its length and its bytes; `%` in a text and two hexadecimal digits is one
//! byte.
//! Bound: an input that does not begin with `MARK` is returned unchanged.

use std::borrow::Cow;

/// The first line of an input in this text form.
const MARK: &[u8] = b"words\n";

pub fn assemble(input: &[u8]) -> Cow<'_, [u8]> {
    let Some(mut rest) = input.strip_prefix(MARK) else { return Cow::Borrowed(input) };
    let mut out = Vec::new();
    while let Some(&first) = rest.first() {
        let counted = first == b'+' && rest.get(1) == Some(&b'"');
        if first == b'"' || counted {
            let text = rest.get(if counted { 2 } else { 1 }..).unwrap_or(&[]);
            let end = text.iter().position(|byte| *byte == b'"').unwrap_or(text.len());
            let bytes = unescape(text.get(..end).unwrap_or(&[]));
            if counted {
                out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            }
            out.extend_from_slice(&bytes);
            rest = text.get(end + 1..).unwrap_or(&[]);
        } else {
            let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
            let word = String::from_utf8_lossy(rest.get(..end).unwrap_or(&[]));
            let number =
                word.parse::<i64>().map(i64::to_le_bytes).or_else(|_| word.parse::<u64>().map(u64::to_le_bytes));
            out.extend(number.into_iter().flatten());
            rest = rest.get(end + 1..).unwrap_or(&[]);
        }
    }
    Cow::Owned(out)
}

/// `%0a` is a newline; a `%` without two hexadecimal digits is literal.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|byte| (*byte as char).to_digit(16));
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = tail.get(2..).unwrap_or(&[]);
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}
