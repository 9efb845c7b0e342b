//! Timestamps of records: which texts and numbers are timestamps, that none is off by a unit, and that no two records of
//! a Loki stream are the same to Loki, which keeps one entry per nanosecond and text. In: lines of an app and of files.
//! Out: fields from an http sink and nanoseconds from a Loki sink. Bounded by some thousand lines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::harness::log_files::{LogFiles, append};
use crate::harness::receiver::Record;
use crate::harness::{LogReceiver, Outrigger, PATIENCE, Scene};

/// How a member of a line's JSON object is expected to be handled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// The record's timestamp, as Unix time in nanoseconds, and not a field.
    Time(i128),
    /// An ordinary field; the timestamp is the time at which the line was read.
    Field,
}
use Expect::{Field, Time};

/// 2024-05-17T10:05:03Z.
const NOON_S: i128 = 1_715_940_303;
const NOON: i128 = NOON_S * 1_000_000_000;
/// The maximum shift of equal timestamps of a stream, which makes them unique.
const RISE: i128 = 1000;

const LOKI: &str = r#"    loki: { loki: { url: "http://@loki@" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
"#;

fn now() -> i128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is after the Unix epoch");
    i128::try_from(now.as_nanos()).expect("fewer than 10^38 ns")
}

/// Reads an object `{"n":…,KEY:VALUE}` for each case, and fails with those that differ from what is expected. Timestamps
/// are in a separate file and in order, so that none has to be shifted because of another one.
#[track_caller]
fn check(cases: &[(&str, &str, Expect)]) {
    let loki = LogReceiver::start();
    let files = LogFiles::parsed(&["in"], &["in/*.log"], "poll_interval: 50ms, scan_interval: 200ms").and(LOKI);
    files.scene.set("loki", loki.address());
    let mut cases = cases.to_vec();
    cases.sort_by_key(|(_, _, expect)| if let Time(time) = expect { *time } else { 0 });
    let line = |(number, (key, value, _)): (usize, &(&str, &str, Expect))| {
        format!("{{\"n\":{number},\"{key}\":{value},\"msg\":\"line\"}}\n")
    };
    let lines: Vec<String> = cases.iter().enumerate().map(line).collect();
    let (fields, times) = lines.split_at(cases.iter().filter(|case| case.2 == Field).count());
    files.append("in/fields.log", fields.concat());
    files.append("in/times.log", times.concat());
    let before = now();
    let outrigger = files.start();
    files.receiver.wait_for(cases.len(), PATIENCE);
    loki.wait_for(cases.len(), PATIENCE);
    let after = now();
    let nanos: BTreeMap<String, i128> = loki.records().into_iter().map(|entry| (entry.message, entry.nanos)).collect();
    let mut wrong = Vec::new();
    for record in files.receiver.records() {
        let number = record.fields["n"].as_u64().and_then(|number| usize::try_from(number).ok()).expect("a number");
        let (key, value, expect) = cases[number];
        let seen = nanos.get(lines[number].trim_end()).copied().unwrap_or(0);
        let field = record.fields.get(key).filter(|_| key != "timestamp" || expect == Field);
        let kept = field.map(ToString::to_string).as_deref() == Some(value);
        let right = match expect {
            Time(time) => field.is_none() && (time..time + RISE).contains(&seen),
            Field => kept && (before..=after).contains(&seen),
        };
        if !right {
            wrong.push(format!("{key}: {value} gives field {field:?} and {seen} ns, not {expect:?}"));
        }
    }
    let (count, shown) = (wrong.len(), wrong.iter().take(12).collect::<Vec<_>>());
    assert!(wrong.is_empty(), "{count} of {} are wrong, such as {shown:#?}", cases.len());
    outrigger.finish();
}

/// A number that cannot be a time of this century stays a field, and the record's timestamp is the time at which it was read.
#[test]
fn numbers_of_other_centuries_are_fields() {
    check(&[
        ("time", "0.123", Field),
        ("ts", "42", Field),
        ("time", "0", Field),
        ("ts", "-1715940303", Field),
        ("time", "915148800", Field),
        ("ts", "86400000", Field),
        ("time", "7289654401", Field),
        ("ts", "9999999999999999999", Field),
        ("@timestamp", "17", Field),
        ("timestamp", "12.5", Field),
        ("time", "true", Field),
        ("time", "null", Field),
        ("time", "\"1970-01-01T00:00:17Z\"", Field),
        ("time", "\"0001-01-01T00:00:00Z\"", Field),
        ("time", "1715940303", Time(NOON)),
        ("ts", "1715940303000", Time(NOON)),
    ]);
}

/// Integer milliseconds stay exact, and fractions of seconds keep the written digits.
#[test]
fn integer_milliseconds_stay_exact() {
    let value =
        |ms: i128| (format!("{}", NOON_S * 1000 + ms), format!("{NOON_S}.{ms:03}"), format!("{NOON_S}.{ms:03}777"));
    let values: Vec<_> = (0..1000).map(value).collect();
    let mut cases = Vec::new();
    for (ms, (integer, fraction, micros)) in (0..1000).zip(&values) {
        cases.push(("time", integer.as_str(), Time(NOON + ms * 1_000_000)));
        cases.push(("ts", fraction.as_str(), Time(NOON + ms * 1_000_000)));
        cases.push(("@timestamp", micros.as_str(), Time(NOON + ms * 1_000_000 + 777_000)));
    }
    check(&cases);
}

/// A text is a timestamp if RFC 3339 allows it: invalid offsets and dates are not, and a fraction has any number of
/// digits.
#[test]
fn only_rfc_3339_texts_are_timestamps() {
    check(&[
        ("time", "\"2024-05-17T12:05:03+25:00\"", Field),
        ("time", "\"2024-05-17T12:05:03+24:00\"", Field),
        ("time", "\"2024-05-17T12:05:03+02:60\"", Field),
        ("time", "\"2024-05-17T12:05:03-25:00\"", Field),
        ("ts", "\"2024-05-17T24:05:03Z\"", Field),
        ("ts", "\"2024-05-17T10:60:03Z\"", Field),
        ("ts", "\"2024-02-30T10:05:03Z\"", Field),
        ("ts", "\"2023-02-29T10:05:03Z\"", Field),
        ("time", "\"2024-05-17T10:05:03\"", Field),
        ("time", "\"2024-05-17\"", Field),
        ("time", "\"20240517T100503Z\"", Field),
        ("time", "\"2024-05-17T10:05:03.Z\"", Field),
        ("time", "\"2024-05-17T10:05Z\"", Field),
        ("time", "\"2024-05-17T10:05:03Z \"", Field),
        ("time", "\"2024-05-17T12:05:03+02:00\"", Time(NOON)),
        ("time", "\"2024-05-18T09:04:03+22:59\"", Time(NOON)),
        ("time", "\"2024-05-17T10:05:03-00:00\"", Time(NOON)),
        ("time", "\"2024-05-17t10:05:03z\"", Time(NOON)),
        ("time", "\"2024-05-17T10:05:03.1Z\"", Time(NOON + 100_000_000)),
        ("time", "\"2024-05-17T10:05:03.123456789Z\"", Time(NOON + 123_456_789)),
        ("time", "\"2024-05-17T10:05:03.1234567891Z\"", Time(NOON + 123_456_789)),
        ("time", "\"2024-05-17T10:05:03.00000000000000000001Z\"", Time(NOON)),
    ]);
}

/// The number of entries of one stream that are duplicates to Loki.
fn same_entries(receiver: &LogReceiver) -> usize {
    let records = receiver.records();
    let entries: BTreeSet<_> = records.iter().map(|entry| (&entry.labels, entry.nanos, &entry.message)).collect();
    records.len() - entries.len()
}

/// An app and files that write one text repeatedly, some lines with their own timestamps.
const REPEATING: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources:
    app: { stdio: {} }
    files: { file: { include: ["@dir@/in/*.log"], poll_interval: 50ms, scan_interval: 200ms } }
  stages: [ { parse: { json: {} } } ]
  sinks: { main: { loki: { url: "http://@receiver@", labels: @labels@ }, batch: { max_bytes: 64KiB, max_age: 50ms } } }
"#;

/// Starts the sources above, and waits for all lines; more copies of a known line come in another read and another request.
#[track_caller]
fn repeated(labels: &str) -> LogReceiver {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    scene.set("labels", labels);
    let parsed = "{\"time\":\"2024-05-17T10:05:03Z\",\"msg\":\"refused\"}\n";
    scene.write("in/plain.log", "connection refused\n".repeat(2000));
    scene.write("in/one.log", parsed.repeat(200));
    scene.write("in/two.log", parsed.repeat(200));
    let script = "i=0; while [ $i -lt 2000 ]; do echo connection refused; i=$((i+1)); done; \
                  echo connection refused >&2; exec sleep 300";
    let outrigger = Outrigger::start(&scene, REPEATING, &["sh", "-c", script]);
    let all = 2001 + 2000 + 400;
    receiver.wait_for(all, PATIENCE);
    append(&scene.path("in/two.log"), parsed.repeat(200));
    receiver.wait_for(all + 200, PATIENCE);
    receiver.assert_well_formed();
    outrigger.finish();
    receiver
}

/// No two records of a Loki stream have the same timestamp and text, whether it is from the clock or from the line. Timestamps
/// from the clock increase; those of lines are kept.
#[test]
fn records_of_a_loki_stream_are_unique() {
    let receiver = repeated("{}");
    let mut last: BTreeMap<String, i128> = BTreeMap::new();
    let mut not_rising = 0;
    for entry in receiver.records().into_iter().filter(|entry| entry.message == "connection refused") {
        not_rising += usize::from(last.insert(entry.labels, entry.nanos).is_some_and(|before| entry.nanos <= before));
    }
    let far = |entry: &Record| !(NOON..NOON + 1_000_000).contains(&entry.nanos);
    let moved = receiver.records().iter().filter(|entry| entry.message.starts_with('{') && far(entry)).count();
    let found = (same_entries(&receiver), not_rising, moved);
    assert_eq!(found, (0, 0, 0), "of {} records: duplicates, not increasing, shifted by a millisecond", receiver.len());
}

/// The same if the labels merge several files, and the app's two streams, into one Loki stream.
#[test]
fn sources_sharing_a_loki_stream_lose_no_record() {
    let receiver = repeated("{ source: all, stream: all, file: all }");
    assert_eq!(same_entries(&receiver), 0, "duplicates to Loki among {} records", receiver.len());
}
