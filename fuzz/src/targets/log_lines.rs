//! An app's output up to a request body: framed into lines, parsed as JSON, encoded. In: the bytes of a stream, read in pieces of
//! many sizes. Out: the same records for every fragmentation, equal to those of a second parser that gets all bytes in one piece;
//! each encoded line is one JSON object that serde_json parses, without duplicate names, and with every field that the app wrote.

use super::same;
use crate::attempt::{bucket, outline, shape};
use crate::mutate::Random;
use logs::batch::{Batch, Stream};
use logs::fuzzing::{Encoder, Framer};
use logs::stage::{Stage, StageConfig as _, parse, set};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::HashSet;

pub const WORDS: &[&str] = &[
    "\n",
    "\r\n",
    "\n\n",
    "{",
    "}",
    "{}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u0041",
    "\\ud800",
    "\\ud83d\\ude00",
    "\\u0000",
    "\\n",
    "null",
    "true",
    "1e308",
    "1e309",
    "-0",
    "0.1",
    "\"msg\":\"m\",",
    "\"message\":\"m\",",
    "\"level\":\"info\",",
    "\"time\":1700000000123,",
    "\"ts\":1700000000.5,",
    "\"timestamp\":\"2023-11-14T22:13:20.5Z\",",
    "\"@timestamp\":\"2023-11-14T22:13:20+01:00\",",
    "\"time_ms\":",
    "\"stream\":1,",
    "\"source\":{},",
    "\"file\":[],",
    "\"truncated\":0,",
    "\"service\":2,",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
    "{\"a\":{\"b\":[1,2,{\"c\":null}]}}",
    "\u{feff}",
    "\u{2028}",
    "\u{fffd}",
    "é",
    "\0",
    "\u{1b}[31m",
    "\u{7f}",
];

/// The longest line, in three sizes: exceeded by every line, by some, and by none.
const LINE_MAX: [usize; 3] = [8, 500, 1 << 20];

/// Lines of one input that are checked one by one.
const LINES_CHECKED: usize = 16;

/// Records get the current time; for comparisons all get this time.
const TIME_NS: i64 = 1_700_000_000_123_456_789;

/// Where the stream begins: offsets do not begin at 0.
const BASE: u64 = 1000;

#[derive(Debug, PartialEq)]
struct Line {
    bytes: Vec<u8>,
    truncated: bool,
    /// Its offset in the stream.
    at: u64,
}

pub fn run(input: &[u8]) {
    for max_line_bytes in LINE_MAX {
        let expected = second_reader(input, max_line_bytes);
        let mut encoded: Option<Vec<u8>> = None;
        for pattern in 0..4 {
            let batches = split(input, max_line_bytes, pattern);
            assert_eq!(
                lines(&batches, input),
                expected,
                "lines of at most {max_line_bytes} in pieces of pattern {pattern}"
            );
            let now = encode(batches);
            match &encoded {
                None => encoded = Some(now),
                Some(before) => same(&now, before, "encoded, in pieces of another pattern"),
            }
        }
        shape((bucket(expected.len()), expected.iter().any(|line| line.truncated)));
    }
    let (stage, settings) = (json_stage(), settings());
    for line in second_reader(input, usize::MAX).iter().take(LINES_CHECKED) {
        if let Err(error) = serde_json::from_slice::<Map<String, Value>>(&line.bytes) {
            let words = error.to_string();
            shape((words.split([':', '`']).next().map(outline), line.bytes.first() == Some(&b'{')));
        }
        settings.iter().for_each(|setting| under(setting, &*stage, &line.bytes));
    }
}

/// A line ends at LF, CR LF or the end of the stream; a longer one is truncated at a character boundary.
fn second_reader(input: &[u8], max_line_bytes: usize) -> Vec<Line> {
    let mut at = BASE;
    let pieces = input.split_inclusive(|byte| *byte == b'\n');
    let line = |piece: &[u8]| {
        let text = piece.strip_suffix(b"\n").unwrap_or(piece);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let within = |at: &usize| text.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
        let end = (max_line_bytes.saturating_sub(3)..=max_line_bytes).rev().find(|at| !within(at)).filter(|at| *at > 0);
        let kept =
            text.get(..max_line_bytes).map_or(text, |cut| text.get(..end.unwrap_or(max_line_bytes)).unwrap_or(cut));
        let line = Line { bytes: kept.to_vec(), truncated: kept.len() < text.len(), at };
        at += piece.len() as u64;
        line
    };
    pieces.map(line).collect()
}

fn split(input: &[u8], max_line_bytes: usize, pattern: u64) -> Vec<Batch> {
    let mut framer = Framer::new("app".into(), None, Stream::Stdout, max_line_bytes, BASE);
    let (mut batches, mut rest, mut random) = (Vec::new(), input, Random::new(pattern));
    while !rest.is_empty() {
        let size = match pattern {
            0 => rest.len(),
            1 => 1,
            _ => (1 + random.below(if pattern == 2 { 5 } else { 60 })).min(rest.len()),
        };
        let (piece, after) = rest.split_at(size);
        batches.extend(framer.take(piece));
        rest = after;
    }
    batches.extend(framer.finish());
    batches
}

fn lines(batches: &[Batch], input: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut end = BASE;
    for batch in batches {
        assert!(batch.base >= end, "batches follow each other");
        end = batch.base + batch.bytes.len() as u64;
        let start = (batch.base - BASE) as usize;
        assert_eq!(
            input.get(start..start + batch.bytes.len()),
            Some(&batch.bytes[..]),
            "a batch is a piece of the stream"
        );
        lines.extend(batch.records.iter().map(|record| Line {
            bytes: batch.line(record).to_vec(),
            truncated: record.truncated,
            at: batch.base + u64::from(record.start),
        }));
    }
    lines
}

fn json_stage() -> Box<dyn Stage> {
    let config: parse::Config = serde_json::from_str(r#"{"json":{}}"#).expect("the stage's own example");
    config.build()
}

fn encode(batches: Vec<Batch>) -> Vec<u8> {
    let (stage, mut encoder, mut encoded) = (json_stage(), Encoder::default(), Vec::new());
    for mut batch in batches {
        batch.records.iter_mut().for_each(|record| record.time_ns = TIME_NS);
        let (count, skipped) = (batch.records.len() as u64, stage.apply(&mut batch).skipped);
        let parsed = batch.records.iter().filter(|record| record.parsed).count() as u64;
        assert_eq!(parsed + skipped, count, "a record is parsed or skipped");
        for record in &batch.records {
            let mut raw = Vec::new();
            encoder.raw_line(&batch, record, &mut raw);
            assert_eq!(raw, [batch.line(record), b"\n"].concat(), "the line is unchanged");
            encoder.json_line(&batch, record, &mut encoded);
        }
    }
    encoded
}

/// Whether lines are parsed as JSON, the fields of `set`, and its stage.
type Setting = (bool, Map<String, Value>, Box<dyn Stage>);

fn settings() -> Vec<Setting> {
    let setting = |(parses, given): (bool, &str)| {
        let given: Map<String, Value> = serde_json::from_str(given).expect("texts by name");
        let config: set::Config = serde_json::from_value(Value::Object(given.clone())).expect("texts by name");
        (parses, given, config.build())
    };
    let reserved = r#"{"message":"\"\n","msg":"","time":"t","truncated":"no"}"#;
    [(false, "{}"), (true, "{}"), (true, r#"{"service":"orders","level":"x","source":"y"}"#), (true, reserved)]
        .map(setting)
        .into()
}

fn under((parses, common, set): &Setting, stage: &dyn Stage, line: &[u8]) {
    // A longest line of 500 cuts some, as a real one does.
    let mut framer = Framer::new("app".into(), Some("/f".into()), Stream::None, LINE_MAX[1], 0);
    let Some(mut batch) = framer.take(&[line, b"\n"].concat()) else { return };
    batch.records.iter_mut().for_each(|record| record.time_ns = TIME_NS);
    if *parses {
        stage.apply(&mut batch);
    }
    set.apply(&mut batch);
    for record in &batch.records {
        let mut json = Vec::new();
        Encoder::default().json_line(&batch, record, &mut json);
        let written =
            if record.parsed { fields(batch.line(record)).filter(|fields| is_once(fields)) } else { Some(Vec::new()) };
        let object = object_of(&json, written.is_some());
        shape((record.parsed, record.truncated, bucket(object.len()), bucket(json.len())));
        match written {
            Some(written) if record.parsed => check_parsed(&written, &object, common),
            Some(_) => check_plain(batch.line(record), record.truncated, &object, common),
            // A name that the app wrote twice is ambiguous.
            None => {}
        }
        for (name, value) in common {
            assert_eq!(object.get(name), Some(value), "a field of `set` wins");
        }
    }
}

/// The object of an encoded line: one line, one object, and no duplicate name if the app wrote none.
fn object_of(json: &[u8], once: bool) -> Map<String, Value> {
    let shown = json.escape_ascii();
    assert_eq!(json.iter().filter(|byte| **byte == b'\n').count(), 1, "one line: {shown}");
    let value: Value = serde_json::from_slice(json).unwrap_or_else(|error| panic!("{error}: {shown}"));
    let Value::Object(object) = value else { panic!("an object: {shown}") };
    let fields = fields(json).expect("it was just parsed");
    assert!(!once || is_once(&fields), "duplicate name: {shown}");
    object
}

fn check_plain(line: &[u8], truncated: bool, object: &Map<String, Value>, common: &Map<String, Value>) {
    let own = |name: &str| object.get(name).filter(|_| !common.contains_key(name));
    let text = Value::String(String::from_utf8_lossy(line).into_owned());
    assert!(common.contains_key("message") || own("message") == Some(&text), "the line is the message");
    assert_eq!(own("timestamp").is_some(), !common.contains_key("timestamp"));
    assert_eq!(own("truncated").is_some(), truncated && !common.contains_key("truncated"));
}

fn check_parsed(written: &[(String, Value)], object: &Map<String, Value>, common: &Map<String, Value>) {
    let has = |wanted: &str| written.iter().any(|(name, _)| name == wanted);
    for (name, value) in written {
        // `msg` is written as `message`, unless the app wrote `message`.
        let shown = if name == "msg" && !has("message") { "message" } else { name };
        if common.contains_key(shown) || common.contains_key(name) {
            continue;
        }
        match object.get(shown) {
            // A parsed time is the record's own, and written as `timestamp`.
            None if parse::is_time_key(name) => {}
            Some(_) if name == "timestamp" => {}
            written => assert_eq!(written, Some(value), "the field `{name}`, written as `{shown}`"),
        }
    }
    check_milliseconds(written, object, common);
}

/// Integer milliseconds are written exactly, not as the nearest floating-point number.
fn check_milliseconds(written: &[(String, Value)], object: &Map<String, Value>, common: &Map<String, Value>) {
    let first = written.iter().find(|(name, _)| parse::is_time_key(name));
    let Some((name, Value::Number(number))) = first else { return };
    let Some(milliseconds) = number.as_u64().filter(|number| MILLISECONDS.contains(number)) else { return };
    let others = written.iter().filter(|(name, _)| parse::is_time_key(name)).count() > 1;
    if let Some(Value::String(text)) = object.get("timestamp").filter(|_| !others && !common.contains_key("timestamp"))
    {
        let tail = format!(".{:03}000Z", milliseconds % 1000);
        assert!(text.ends_with(&tail), "`{name}` is {milliseconds}, and became {text}");
    }
}

/// From the year 2000 up to 2099: numbers that are parsed as milliseconds.
const MILLISECONDS: std::ops::Range<u64> = 946_684_800_000..4_070_908_800_000;

fn is_once(fields: &[(String, Value)]) -> bool {
    let names: HashSet<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    names.len() == fields.len()
}

/// The fields of an object in their order, including those of the same name.
fn fields(line: &[u8]) -> Option<Vec<(String, Value)>> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = Vec<(String, Value)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(fields)
        }
    }
    serde_json::Deserializer::from_slice(line).deserialize_map(Fields).ok()
}
