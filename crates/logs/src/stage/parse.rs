//! Parses lines as JSON. In: lines. Out: fields as ranges over the same bytes; the timestamp moved into the record. A line that
//! is not a JSON object stays a plain message and is counted, never dropped; so does a line that receivers could not parse, since
//! they reject all lines of its body. Limits: `FIELDS_MAX` fields of a record, `DEPTH_MAX` levels of nesting.

use super::{Stage, StageConfig, StageOutput};
use crate::batch::{Batch, Field, FieldValue, Key};
use crate::time;
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

/// Parses each line as a format, and makes its fields the record's own. With `json: {}` a line that is one JSON object becomes
/// its top-level fields; nested values stay as they are, and of fields with one name the last one counts. `timestamp`, `time`,
/// `ts` and `@timestamp` set the record's time (RFC 3339, or seconds, milliseconds, microseconds or nanoseconds since the epoch);
/// a value that cannot be a time of this century stays a field. A line that does not match stays a plain message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// One JSON object per line (RFC 8259).
    pub json: Json,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Json {}

impl Kind for Config {
    fn example() -> &'static str {
        "parse: { json: {} }\n"
    }
}

/// A line with more top-level fields stays a plain message.
pub const FIELDS_MAX: usize = 512;

impl StageConfig for Config {
    fn build(&self) -> Box<dyn Stage> {
        let Json {} = self.json;
        Box::new(Parse {})
    }
}

struct Parse {}

impl Stage for Parse {
    fn apply(&self, batch: &mut Batch) -> StageOutput {
        let mut output = StageOutput::default();
        for index in 0..batch.records.len() {
            if !parse_json(batch, index) {
                output.skipped += 1;
            }
        }
        output
    }
}

/// Parses one record; false if it is unchanged.
pub fn parse_json(batch: &mut Batch, index: usize) -> bool {
    let Some(mut record) = batch.records.get(index).copied() else { return false };
    if record.parsed || record.truncated {
        return record.parsed;
    }
    let (bytes, first) = (batch.bytes.clone(), batch.fields.len());
    let line = bytes.get(record.start as usize..record.end as usize).unwrap_or(&[]);
    // RFC 8259, 8.1: a byte order mark may be ignored.
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    if line.trim_ascii_start().first() != Some(&b'{') {
        return false;
    }
    let mut scan = Scan { bytes: &bytes, base: bytes.as_ptr() as usize, fields: &mut batch.fields, time_ns: None };
    let mut reader = serde_json::Deserializer::from_slice(line);
    let is_valid = reader.deserialize_map(&mut scan).is_ok() && reader.end().is_ok();
    let time_ns = scan.time_ns;
    if !is_valid {
        batch.fields.truncate(first);
        return false;
    }
    record.parsed = true;
    record.fields_start = first as u32;
    record.fields_end = batch.fields.len() as u32;
    record.time_ns = time_ns.unwrap_or(record.time_ns);
    record.own_time = time_ns.is_some();
    if let Some(target) = batch.records.get_mut(index) {
        *target = record;
    }
    true
}

/// Collects the ranges of keys and values without building them.
struct Scan<'a> {
    /// The batch's bytes, and where they begin in memory.
    bytes: &'a [u8],
    base: usize,
    fields: &'a mut Vec<Field>,
    time_ns: Option<i64>,
}

impl<'de> Visitor<'de> for &mut Scan<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let first = self.fields.len();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            let value: &'de RawValue = map.next_value()?;
            if !is_readable(value.get()) {
                return Err(serde::de::Error::custom("a value that readers reject"));
            }
            if self.fields.len() - first >= FIELDS_MAX {
                return Err(serde::de::Error::custom("too many fields"));
            }
            if is_time_key(&key.0) && self.time_ns.is_none() {
                self.time_ns = time::read(value.get());
                if self.time_ns.is_some() {
                    continue;
                }
            }
            let key = match key.0 {
                Cow::Borrowed(text) => self.span(text, Key::Range),
                Cow::Owned(text) => Key::Name(text.into()),
            };
            let value = self.span(value.get(), FieldValue::Json);
            self.fields.push(Field { key, value });
        }
        self.keep_last(first);
        Ok(())
    }
}

impl Scan<'_> {
    /// RFC 8259, 4: receivers differ in how they treat two fields of one name; for most the last one counts.
    fn keep_last(&mut self, first: usize) {
        let fields = self.fields.get(first..).unwrap_or(&[]);
        let name = |field: &Field| field.key.text(self.bytes).to_vec();
        let has_duplicate = match fields.len() {
            // Most lengths differ, so comparing all pairs is cheaper than a table.
            ..=PAIRS_MAX => fields.iter().enumerate().any(|(index, field)| {
                let text = field.key.text(self.bytes);
                fields.iter().skip(index + 1).any(|other| other.key.text(self.bytes) == text)
            }),
            _ => fields.iter().map(name).collect::<HashSet<_>>().len() < fields.len(),
        };
        if has_duplicate {
            let mut names: HashSet<Vec<u8>> = HashSet::new();
            let mut last: Vec<Field> = fields.iter().rev().filter(|field| names.insert(name(field))).cloned().collect();
            last.reverse();
            self.fields.truncate(first);
            self.fields.append(&mut last);
        }
    }

    fn span<T>(&self, text: &str, make: fn(u32, u32) -> T) -> T {
        let start = (text.as_ptr() as usize).saturating_sub(self.base);
        make(start as u32, (start + text.len()) as u32)
    }
}

/// Levels of nested arrays and objects. Readers stop at 128 or earlier (RFC 8259, 9), and a body may add one.
pub const DEPTH_MAX: usize = 100;

/// Whether readers accept a value that the grammar allows: RFC 8259 leaves a lone surrogate (8.2), a number beyond IEEE 754 (6)
/// and deep nesting (9) to them, and many reject the complete body.
fn is_readable(value: &str) -> bool {
    let may_be_rejected = match value.as_bytes().first() {
        Some(b'"') => has_surrogate(value),
        Some(b'{' | b'[') => {
            let deep = value.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() > DEPTH_MAX;
            if deep && depth(value) > DEPTH_MAX {
                return false;
            }
            has_surrogate(value) || may_hold_large_number(value.as_bytes())
        }
        _ => may_hold_large_number(value.as_bytes()),
    };
    !may_be_rejected || serde_json::from_str::<serde_json::Value>(value).is_ok()
}

/// Whether the value has an escape such as `\ud8xx`; also true for a complete pair.
fn has_surrogate(value: &str) -> bool {
    memchr::memchr(b'\\', value.as_bytes()).is_some_and(|first| {
        let rest = value.as_bytes().get(first..).unwrap_or(&[]);
        rest.windows(3).any(|part| matches!(part, [b'\\', b'u', b'd' | b'D']))
    })
}

/// The largest number of IEEE 754 has 309 digits.
const DIGITS_MAX: usize = 300;

/// Whether there may be a number with an exponent, or with that many digits. Text that looks like one is enough.
fn may_hold_large_number(value: &[u8]) -> bool {
    let exponent = memchr::memchr2_iter(b'e', b'E', value)
        .any(|at| at > 0 && value.get(at - 1).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.'));
    exponent || value.len() > DIGITS_MAX && longest_digits(value) > DIGITS_MAX
}

fn longest_digits(value: &[u8]) -> usize {
    value.split(|byte| !byte.is_ascii_digit()).map(<[u8]>::len).max().unwrap_or(0)
}

/// The depth of nested arrays and objects of a valid value.
fn depth(value: &str) -> usize {
    let (mut open, mut most, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in value.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => {
                open += 1;
                most = most.max(open);
            }
            b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Up to this many fields are compared in pairs.
const PAIRS_MAX: usize = 32;

/// A key, borrowed if it has no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_string())))
            }
        }
        from.deserialize_str(Borrow)
    }
}

pub fn is_time_key(key: &str) -> bool {
    matches!(key, "timestamp" | "time" | "ts" | "@timestamp" | "time_ms")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Stream;
    use crate::framer::Framer;

    fn parsed(line: &str) -> (Batch, bool) {
        let mut batch = Framer::new("s".into(), None, Stream::None, 10_000, 0)
            .take(format!("{line}\n").as_bytes())
            .expect("a line");
        let is_parsed = parse_json(&mut batch, 0);
        (batch, is_parsed)
    }

    fn check(line: &str, expect: &[(&str, &str)], time_ns: Option<i64>) {
        let (batch, is_parsed) = parsed(line);
        assert!(is_parsed, "{line}");
        let record = batch.records[0];
        let fields: Vec<(String, String)> = batch
            .fields_of(&record)
            .iter()
            .map(|field| {
                let FieldValue::Json(start, end) = field.value else { panic!("a JSON value") };
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (text(batch.key(field)), text(batch.slice(start, end)))
            })
            .collect();
        let fields: Vec<(&str, &str)> = fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(fields, expect);
        if let Some(time_ns) = time_ns {
            assert_eq!(record.time_ns, time_ns);
        }
    }

    #[test]
    fn fields_are_ranges_and_set_the_time() {
        check(
            r#"{"level":"info","n":1.50,"o":{"a":[1]}}"#,
            &[("level", "\"info\""), ("n", "1.50"), ("o", r#"{"a":[1]}"#)],
            None,
        );
        check(r#"{"ts":1700000000.5,"m":"x"}"#, &[("m", "\"x\"")], Some(1_700_000_000_500_000_000));
        check(r#"{"time":"2023-11-14T22:13:20Z"}"#, &[], Some(1_700_000_000_000_000_000));
        check(r#"{"time_ms":1700000000500}"#, &[], Some(1_700_000_000_500_000_000));
        check(r#"{"time":"noon"}"#, &[("time", "\"noon\"")], None);
        check(r#"{"ts":42,"time":0.123}"#, &[("ts", "42"), ("time", "0.123")], None);
        check(r#"{"a":1,"b":2,"a":3}"#, &[("b", "2"), ("a", "3")], None);
        check("{\"a\":1,\"\\u0061\":2}", &[("a", "2")], None);
        let many = (0..40).map(|n| format!("\"k{}\":{n}", n % 39)).collect::<Vec<_>>().join(",");
        let (batch, is_parsed) = parsed(&format!("{{{many}}}"));
        assert!(is_parsed && batch.fields.len() == 39, "{}", batch.fields.len());
        check("\u{feff}{\"a\":1}", &[("a", "1")], None);
        check(r#"{"a\nb":1}"#, &[("a\nb", "1")], None);
        check("{}", &[], None);
    }

    #[test]
    fn lines_that_are_not_objects_stay_messages() {
        for line in ["plain", "[1]", "{\"a\":1", "{\"a\":1} tail", "{\"a\":}", "", "\"text\""] {
            let (batch, is_parsed) = parsed(line);
            assert!(!is_parsed && batch.fields.is_empty() && !batch.records[0].parsed, "{line}");
        }
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        for rejected in
            [r#"{"a":"\ud800"}"#, r#"{"a":{"b":["\uDC00"]}}"#, r#"{"a":1e309}"#, r#"{"a":[-1E+999]}"#, &nested(101)]
        {
            assert!(!parsed(rejected).1, "{rejected}");
        }
        assert!(!parsed(&format!("{{\"a\":{}}}", "9".repeat(400))).1);
        for valid in [r#"{"a":"\ud83d\ude00 1e309"}"#, r#"{"a":1e308,"b":[1e-400]}"#, &nested(100)] {
            assert!(parsed(valid).1, "{valid}");
        }
        let many = (0..=FIELDS_MAX).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(",");
        assert!(!parsed(&format!("{{{many}}}")).1);
    }
}
