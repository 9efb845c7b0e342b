//! How a line's bytes become a record: byte order marks, line endings, duplicate keys, and truncated lines. In: files
//! written by the test. Out: records of an http sink and of a JSON file. Bounded by some hundred lines.

use std::io::Write;

use crate::harness::log_files::{LogFiles, settle};
use crate::harness::{PATIENCE, SECOND, until, within};

const FAST: &str = "poll_interval: 50ms, scan_interval: 200ms";

/// A record has each key once, whatever the app wrote: if both `message` and `msg` are present, `message` is the message
/// and `msg` a field.
#[test]
fn a_record_has_each_key_once() {
    // A line, the message of its record, and another field with its value.
    let cases = [
        (r#"{"n":0,"msg":"a","message":"b"}"#, "b", Some(("msg", "a"))),
        (r#"{"n":1,"message":"b","msg":"a"}"#, "b", Some(("msg", "a"))),
        (r#"{"n":2,"msg":"a"}"#, "a", None),
        (r#"{"n":3,"message":"b"}"#, "b", None),
        (r#"{"n":4,"msg":"a","mess\u0061ge":"b"}"#, "b", Some(("msg", "a"))),
        (r#"{"n":5,"msg":"a","level":"info","message":"b","x":"y"}"#, "b", Some(("level", "info"))),
    ];
    // A duplicate key: RFC 8259, 4 does not define which value wins; the record must have exactly one.
    let doubled = [
        (r#"{"n":6,"message":"a","message":"b"}"#, "message"),
        (r#"{"n":7,"msg":"m","level":"info","level":"warn"}"#, "level"),
        (r#"{"n":8,"msg":"m","stream":"a","stream":"b"}"#, "stream"),
    ];
    let copy = "    copy: { file: { path: \"@dir@/out/copy\", format: json }, batch: { max_age: 50ms } }\n";
    let files = LogFiles::parsed(&["in", "out"], &["in/*.log"], FAST).and(copy);
    let lines: Vec<&str> = cases.iter().map(|case| case.0).chain(doubled.iter().map(|case| case.0)).collect();
    files.append("in/a.log", lines.join("\n") + "\n");
    let outrigger = files.start();
    let written = || std::fs::read_to_string(files.path("out/copy")).unwrap_or_default();
    until(PATIENCE, "all records are written", || written().lines().count() == lines.len());
    let written = written();
    let record = |n: usize| {
        let starts = format!("{{\"n\":{n},");
        written.lines().find(|line| line.starts_with(&starts)).unwrap_or_else(|| panic!("{n} in {written}"))
    };
    let mut wrong = Vec::new();
    for (n, (_, message, field)) in cases.iter().enumerate() {
        let text = record(n);
        let value: serde_json::Value = serde_json::from_str(text).expect("a line of JSON");
        let fits = value["message"] == **message && field.is_none_or(|(key, text)| value[key] == *text);
        if !fits || text.matches("\"message\":").count() != 1 || text.contains("\\u0061") {
            wrong.push(text);
        }
    }
    for (n, (_, key)) in (cases.len()..).zip(&doubled) {
        if record(n).matches(&format!("\"{key}\":")).count() != 1 {
            wrong.push(record(n));
        }
    }
    assert_eq!(wrong, [""; 0]);
    outrigger.finish();
}

/// A byte order mark before JSON is ignored (RFC 8259, 8.1): at the beginning of a file, of a rewritten file, and of a
/// line, as in concatenated files.
#[test]
fn a_byte_order_mark_before_json_is_ignored() {
    let files = LogFiles::parsed(&["in"], &["in/*.log"], FAST);
    files.append(
        "in/a.log",
        "\u{feff}{\"msg\":\"first\",\"n\":1}\n{\"msg\":\"second\",\"n\":2}\n\u{feff}{\"msg\":\"third\",\"n\":3}\n",
    );
    let outrigger = files.start();
    files.receiver.wait_for(3, PATIENCE);
    settle(&outrigger, "logs.sinks.main");
    files.scene.write("in/a.log", "\u{feff}{\"msg\":\"fourth\",\"n\":4}\n");
    files.receiver.wait_for(4, PATIENCE);
    let records = files.receiver.records();
    let read: Vec<(&str, Option<u64>)> = records
        .iter()
        .map(|record| (record.message.as_str(), record.fields.get("n").and_then(|n| n.as_u64())))
        .collect();
    assert_eq!(read, [("first", Some(1)), ("second", Some(2)), ("third", Some(3)), ("fourth", Some(4))]);
    outrigger.finish();
}

/// CR LF at the end of a line is removed; a CR within a line is kept.
#[test]
fn crlf_at_the_end_of_a_line_is_removed() {
    let files =
        LogFiles::parsed(&["in"], &["in/*.log"], "poll_interval: 50ms, scan_interval: 200ms, max_line_bytes: 16B");
    let long = "x".repeat(16);
    files.append("in/a.log", format!("one\r\n\r\ntwo\r\n10 %\r100 %\r\nplain\n{long}\r\n{{\"n\":1}}\r\nthree\r"));
    let outrigger = files.start();
    files.receiver.wait_for(7, PATIENCE);
    files.append("in/a.log", "\nfour\r\n");
    files.receiver.wait_for(9, PATIENCE);
    let records = files.receiver.records();
    let messages: Vec<&str> = records.iter().map(|record| record.message.as_str()).collect();
    assert_eq!(messages, ["one", "", "two", "10 %\r100 %", "plain", &long, "", "three", "four"]);
    assert_eq!(records[6].fields["n"], 1);
    assert_eq!(records[5].fields.get("truncated"), None, "a line of exactly max_line_bytes bytes is not truncated");
    outrigger.finish();
}

/// A line is truncated between two characters, whether its end was read with it or not.
#[test]
fn truncated_line_ends_at_a_character() {
    let files =
        LogFiles::new(&["in"], &["in/*.log"], "poll_interval: 50ms, scan_interval: 200ms, max_line_bytes: 1KiB");
    let mut expected = Vec::new();
    let mut text = String::new();
    let mut add = |plain: usize, character: &str, text: &mut String| {
        let line = format!("{}{}", "x".repeat(plain), character.repeat(400));
        let complete = (1024 - plain) / character.len();
        expected.push(format!("{}{}", "x".repeat(plain), character.repeat(complete)));
        text.push_str(&line);
    };
    for character in ["é", "€", "🦀"] {
        for plain in 1018..1024 {
            add(plain, character, &mut text);
            text.push('\n');
        }
    }
    let mut file = std::fs::File::create(files.path("in/a.log")).expect("the log can be written");
    file.write_all(text.as_bytes()).expect("the log can be written");
    // The last line is truncated before its end is written.
    let mut unended = String::new();
    add(1023, "🦀", &mut unended);
    file.write_all(unended.as_bytes()).expect("the log can be written");
    let outrigger = files.start();
    within(5 * SECOND, || files.receiver.len() >= expected.len());
    file.write_all(b" and more\nafter\n").expect("the log can be written");
    files.await_message("after");
    let messages = files.receiver.messages();
    let wrong: Vec<(&str, usize, bool)> = messages
        .iter()
        .zip(&expected)
        .filter(|(message, expected)| message != expected)
        .map(|(message, _)| (message.trim_start_matches('x'), message.len(), message.contains('\u{fffd}')))
        .collect();
    assert_eq!(wrong, [], "ends of messages, bytes, and whether U+FFFD is in them");
    assert_eq!(messages.len(), expected.len() + 1);
    let records = files.receiver.records();
    assert!(records[..expected.len()].iter().all(|record| record.fields["truncated"] == true), "each is marked");
    outrigger.finish();
}
