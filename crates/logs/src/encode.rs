//! Records as text: one JSON object a line, or the line itself. In: a batch and a record. Out: bytes appended to a body.
//! Fields are written in this order: the record's own, `message`, `timestamp` (RFC 3339, UTC), `stream`, `source`, `file`, and
//! those of `set`. A field that the app wrote under one of the last names overrides the built-in one; `set` overrides both. Bytes
//! that are not UTF-8 become U+FFFD, since JSON is UTF-8 (RFC 8259, 8.1).

use crate::batch::{Batch, Field, FieldValue, Record};
use std::io::Write as _;

/// Writes timestamps, and caches the text of the last second.
#[derive(Default)]
pub struct Encoder {
    second: i64,
    second_text: String,
}

impl Encoder {
    /// Appends one line of JSON.
    pub fn json_line(&mut self, batch: &Batch, record: &Record, out: &mut Vec<u8>) {
        out.push(b'{');
        let start = out.len();
        let message = message_of(batch, record);
        let is_set = |key: &[u8]| batch.common.iter().any(|(name, _)| name.as_bytes() == key);
        let mut own = Own::default();
        for field in batch.fields_of(record) {
            let key = batch.key(field);
            own.note(key);
            if message.is_some_and(|message| std::ptr::eq(message, field)) {
                continue;
            }
            if !is_set(key) {
                separate(out, start);
                name(key, matches!(field.key, crate::batch::Key::Range(..)), out);
                value(batch, &field.value, out);
            }
        }
        if !is_set(b"message") && (message.is_some() || !record.parsed) {
            separate(out, start);
            out.extend_from_slice(b"\"message\":");
            match message {
                Some(field) => value(batch, &field.value, out),
                None => string(batch.line(record), out),
            }
        }
        if !is_set(b"timestamp") && !own.timestamp {
            separate(out, start);
            out.extend_from_slice(b"\"timestamp\":\"");
            self.timestamp(record.time_ns, out);
            out.push(b'"');
        }
        let built_in = [
            ("stream", batch.stream.as_str(), own.stream),
            ("source", Some(&*batch.source), own.source),
            ("file", batch.file.as_deref(), own.file),
        ];
        for (key, text, overridden) in built_in {
            if let Some(text) = text.filter(|_| !overridden && !is_set(key.as_bytes())) {
                separate(out, start);
                name(key.as_bytes(), true, out);
                string(text.as_bytes(), out);
            }
        }
        if record.truncated && !is_set(b"truncated") {
            separate(out, start);
            out.extend_from_slice(b"\"truncated\":true");
        }
        for (key, text) in &batch.common {
            separate(out, start);
            name(key.as_bytes(), false, out);
            string(text.as_bytes(), out);
        }
        out.extend_from_slice(b"}\n");
    }

    /// Appends the line as it was written.
    pub fn raw_line(&mut self, batch: &Batch, record: &Record, out: &mut Vec<u8>) {
        out.extend_from_slice(batch.line(record));
        out.push(b'\n');
    }

    /// RFC 3339 with nanoseconds cut to microseconds, which is the precision of the clocks.
    fn timestamp(&mut self, time_ns: i64, out: &mut Vec<u8>) {
        let (second, rest) = (time_ns.div_euclid(1_000_000_000), time_ns.rem_euclid(1_000_000_000));
        if second != self.second || self.second_text.is_empty() {
            self.second = second;
            let time = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            self.second_text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        }
        out.extend_from_slice(self.second_text.as_bytes());
        // Writing to a Vec cannot fail.
        let _ = write!(out, ".{:06}Z", rest / 1000);
    }
}

/// The field that is the record's message: `message`, else `msg`.
fn message_of<'b>(batch: &'b Batch, record: &Record) -> Option<&'b Field> {
    let fields = batch.fields_of(record);
    let named = |name: &[u8]| fields.iter().find(|field| batch.key(field) == name);
    named(b"message").or_else(|| named(b"msg"))
}

/// Which built-in fields the record overrides.
#[derive(Default)]
struct Own {
    timestamp: bool,
    stream: bool,
    source: bool,
    file: bool,
}

impl Own {
    fn note(&mut self, key: &[u8]) {
        match key {
            b"timestamp" => self.timestamp = true,
            b"stream" => self.stream = true,
            b"source" => self.source = true,
            b"file" => self.file = true,
            _ => {}
        }
    }
}

fn separate(out: &mut Vec<u8>, start: usize) {
    if out.len() > start {
        out.push(b',');
    }
}

/// A key from JSON without escapes needs no escaping.
fn name(key: &[u8], plain: bool, out: &mut Vec<u8>) {
    if plain {
        out.push(b'"');
        out.extend_from_slice(key);
        out.push(b'"');
    } else {
        string(key, out);
    }
    out.push(b':');
}

fn value(batch: &Batch, value: &FieldValue, out: &mut Vec<u8>) {
    match value {
        FieldValue::Json(start, end) => out.extend_from_slice(batch.slice(*start, *end)),
        FieldValue::Text(text) => string(text.as_bytes(), out),
    }
}

/// A JSON string. Runs of plain characters are copied in one piece.
pub fn string(bytes: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(bytes);
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\') {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let byte = tail.first().copied().unwrap_or(b' ');
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            // Writing to a Vec cannot fail.
            control => drop(write!(out, "\\u{control:04x}")),
        }
        rest = tail.get(1..).unwrap_or(&[]);
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Stream;
    use crate::framer::Framer;
    use crate::stage::parse::parse_json;

    fn check(line: &[u8], parse: bool, common: &[(&str, &str)], expect: &str) {
        let mut framer = Framer::new("app".into(), None, Stream::Stdout, 10_000, 0);
        let mut batch = framer.take(&[line, b"\n"].concat()).expect("a line");
        batch.common = common.iter().map(|(key, text)| ((*key).into(), (*text).into())).collect();
        batch.records[0].time_ns = 1_700_000_000_123_456_789;
        if parse {
            assert!(parse_json(&mut batch, 0));
        }
        let mut out = Vec::new();
        Encoder::default().json_line(&batch, &batch.records[0], &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, format!("{expect}\n"));
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }

    const TIME: &str = r#""timestamp":"2023-11-14T22:13:20.123456Z""#;

    #[test]
    fn every_line_is_encoded_as_valid_json() {
        check(b"hello", false, &[], &format!(r#"{{"message":"hello",{TIME},"stream":"stdout","source":"app"}}"#));
        check(
            b"a\"b\\c\td\x01\xff",
            false,
            &[],
            &format!(r#"{{"message":"a\"b\\c\td\u0001{}",{TIME},"stream":"stdout","source":"app"}}"#, '\u{fffd}'),
        );
        check(
            br#"{"msg":"m","level":"info","source":"db"}"#,
            true,
            &[("service", "orders"), ("level", "debug")],
            &format!(r#"{{"source":"db","message":"m",{TIME},"stream":"stdout","service":"orders","level":"debug"}}"#),
        );
        check(
            br#"{"msg":"a","message":"b"}"#,
            true,
            &[],
            &format!(r#"{{"msg":"a","message":"b",{TIME},"stream":"stdout","source":"app"}}"#),
        );
        check(br#"{"n":1}"#, true, &[], &format!(r#"{{"n":1,{TIME},"stream":"stdout","source":"app"}}"#));
    }
}
