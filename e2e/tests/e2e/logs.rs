//! Log lines from the app's output to each kind of sink: encodings, parsing, fields, order, and sinks that must not block
//! each other. Lines come in from a shell, the receiver checks the batches. Bounded by some thousand lines.

use std::time::Duration;

use crate::harness::ledger::dropped;
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, Scene, assert_counts_up, ledger_row, number_after, until,
};

/// A shell that writes `n=000000` … and then waits for a signal.
fn counting(lines: usize) -> [String; 3] {
    let script = format!("i=0; while [ $i -lt {lines} ]; do printf 'n=%06d\\n' $i; i=$((i+1)); done; exec sleep 300");
    ["sh".to_owned(), "-c".to_owned(), script]
}

fn start(scene: &Scene, body: &str, command: &[String]) -> Outrigger {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    Outrigger::start(scene, body, &command)
}

/// Each compression of the http sink arrives with its `Content-Encoding`, as JSON lines with the canonical fields.
#[test]
fn http_sink_compresses_json_lines_as_configured() {
    for (compression, encoding) in [("none", None), ("gzip", Some("gzip")), ("zstd", Some("zstd"))] {
        let (scene, receiver) = (Scene::new(), LogReceiver::start());
        scene.set("receiver", receiver.address());
        scene.set("compression", compression);
        let body = r#"
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { http: { url: "http://@receiver@/lines", compression: @compression@ }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
"#;
        let outrigger = start(&scene, body, &counting(1000));
        receiver.wait_for(1000, PATIENCE);
        assert_counts_up(&receiver.numbers("n="), 1000);
        for batch in receiver.batches() {
            assert_eq!(batch.head.header("content-encoding"), encoding, "{compression}");
            assert_eq!(batch.head.header("content-type"), Some("application/x-ndjson"));
        }
        let record = &receiver.records()[7];
        assert_eq!(record.message, "n=000007");
        assert_eq!((record.field("stream"), record.field("source")), ("stdout", "app"));
        let time = record.field("timestamp");
        assert!(time.starts_with("20") && time.contains('T') && time.ends_with('Z'), "RFC 3339: {time}");
        until(PATIENCE, "the ledger counts all lines as delivered", || {
            ledger_row(&outrigger.admin, "logs.sinks.main")["delivered"] == 1000
        });
        receiver.assert_well_formed();
        outrigger.finish();
    }
}

/// The Loki sink sends its labels, the lines in order, and non-decreasing timestamps.
/// Guarantee: lines-in-order
#[test]
fn loki_sink_sends_labels_and_ordered_entries() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { loki: { url: "http://@receiver@", labels: { service: orders, team: blue } }, batch: { max_bytes: 64KiB, max_age: 100ms } } }
"#;
    let outrigger = start(&scene, body, &counting(3000));
    receiver.wait_for(3000, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 3000);
    let records = receiver.records();
    for label in ["service=\"orders\"", "team=\"blue\""] {
        assert!(records[0].labels.contains(label), "{label} in {}", records[0].labels);
    }
    assert!(records.windows(2).all(|pair| pair[0].nanos <= pair[1].nanos), "timestamps do not decrease");
    assert!(records[0].nanos > 1_600_000_000_000_000_000, "a timestamp of this century: {}", records[0].nanos);
    receiver.assert_well_formed();
    outrigger.finish();
}

/// JSON lines are parsed into fields, stages set their fields, and lines that are not JSON pass unchanged.
#[test]
fn json_lines_become_fields_others_are_unchanged() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { app: { stdio: {} } }
  stages: [ { parse: { json: {} } }, { set: { service: orders } } ]
  sinks: { main: { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
"#;
    let lines = [
        r#"{"level":"info","msg":"taken","order":17,"deep":{"a":[1,2]}}"#,
        r#"{"message":"both","level":"warn"}"#,
        "plain words, \"quoted\", with ünïcode",
        r#"{"half": "#,
    ];
    let input = scene.write("lines", lines.join("\n") + "\n").display().to_string();
    let outrigger = start(&scene, body, &["sh".into(), "-c".into(), format!("cat '{input}'; exec sleep 300")]);
    receiver.wait_for(4, PATIENCE);
    let records = receiver.records();
    assert_eq!((records[0].message.as_str(), records[0].field("level")), ("taken", "info"));
    assert_eq!(records[0].fields["order"], 17);
    assert_eq!(records[0].fields["deep"], serde_json::json!({ "a": [1, 2] }));
    assert_eq!((records[1].message.as_str(), records[1].field("level")), ("both", "warn"));
    assert_eq!(records[2].message, lines[2]);
    assert_eq!(records[3].message, lines[3]);
    assert!(records.iter().all(|record| record.field("service") == "orders"));
    outrigger.finish();
}

/// stdout and stderr are distinguished, and each keeps its order.
#[test]
fn stdout_and_stderr_are_distinguished() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
"#;
    let script = "i=0; while [ $i -lt 300 ]; do printf 'out n=%06d\\n' $i; printf 'err n=%06d\\n' $i >&2; i=$((i+1)); done; exec sleep 300";
    let outrigger = start(&scene, body, &["sh".into(), "-c".into(), script.into()]);
    receiver.wait_for(600, PATIENCE);
    for (stream, word) in [("stdout", "out n="), ("stderr", "err n=")] {
        let records = receiver.records().into_iter().filter(|record| record.field("stream") == stream);
        let numbers: Vec<usize> = records.filter_map(|record| number_after(&record.message, word)).collect();
        assert_counts_up(&numbers, 300);
    }
    outrigger.finish();
}

/// Unusual lines arrive: empty ones, carriage returns, invalid UTF-8, and a very long one in one piece.
#[test]
fn unusual_lines_arrive() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
"#;
    let long = "x".repeat(30_000);
    let mut bytes = b"first\n\ncarriage\r\nbroken \xff\xfe bytes\ntab\tand \x1b[31mcolour\x1b[0m\n".to_vec();
    bytes.extend_from_slice(long.as_bytes());
    bytes.extend_from_slice(b"\nlast\n");
    let input = scene.write("lines", bytes).display().to_string();
    let outrigger = start(&scene, body, &["sh".into(), "-c".into(), format!("cat '{input}'; exec sleep 300")]);
    until(PATIENCE, "the last line", || receiver.messages().iter().any(|message| message == "last"));
    let messages: Vec<String> = receiver.messages().into_iter().filter(|message| !message.is_empty()).collect();
    let expected =
        ["first", "carriage", "broken \u{fffd}\u{fffd} bytes", "tab\tand \u{1b}[31mcolour\u{1b}[0m", &long, "last"];
    assert_eq!(messages.iter().map(|message| message.trim_end_matches('\r')).collect::<Vec<_>>(), expected);
    receiver.assert_well_formed();
    outrigger.finish();
}

/// The file sink, the stdout sink and the blackhole sink get every line, each in order.
/// Guarantee: lines-in-order
#[test]
fn every_sink_gets_every_line_in_order() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    scene.write("in.log", (0..2000).map(|number| format!("n={number:06}\n")).collect::<String>());
    let body = r#"
logs:
  sources: { files: { file: { include: ["@dir@/in.log"], read_from: beginning } } }
  sinks:
    http: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 1MiB, max_age: 100ms } }
    file: { file: { path: "@dir@/archive/copy.log" } }
    out:  { stdout: {} }
    none: { blackhole: {} }
"#;
    let outrigger = start(&scene, body, &[]);
    receiver.wait_for(2000, PATIENCE);
    let in_text = |text: &str| text.lines().filter_map(|line| number_after(line, "n=")).collect::<Vec<usize>>();
    let copy = scene.path("archive/copy.log");
    until(PATIENCE, "the file has the last line", || {
        std::fs::read_to_string(&copy).is_ok_and(|text| in_text(&text).len() >= 2000)
    });
    until(PATIENCE, "stdout has the last line", || in_text(&outrigger.stdout.text()).len() >= 2000);
    assert_counts_up(&receiver.numbers("n="), 2000);
    assert_counts_up(&in_text(&std::fs::read_to_string(&copy).expect("just read")), 2000);
    assert_counts_up(&in_text(&outrigger.stdout.text()), 2000);
    for sink in ["logs.sinks.http", "logs.sinks.file", "logs.sinks.out", "logs.sinks.none"] {
        until(PATIENCE, sink, || ledger_row(&outrigger.admin, sink)["delivered"] == 2000);
    }
    outrigger.finish();
}

/// With `inputs` a sink gets only the lines of these sources.
#[test]
fn a_sink_gets_only_its_sources() {
    let (scene, one, all) = (Scene::new(), LogReceiver::start(), LogReceiver::start());
    scene.set("one", one.address());
    scene.set("all", all.address());
    scene.write("in.log", "from the file n=000001\n");
    let body = r#"
logs:
  sources: { app: { stdio: {} }, files: { file: { include: ["@dir@/*.log"], read_from: beginning } } }
  sinks:
    one: { http: { url: "http://@one@/lines" }, inputs: [files], batch: { max_bytes: 1MiB, max_age: 100ms } }
    all: { http: { url: "http://@all@/lines" }, batch: { max_bytes: 1MiB, max_age: 100ms } }
"#;
    let outrigger = start(&scene, body, &counting(10));
    all.wait_for(11, PATIENCE);
    one.wait_for(1, PATIENCE);
    let record = &one.records()[0];
    assert_eq!(record.field("source"), "files");
    assert_eq!(record.field("file"), scene.text_path("in.log"));
    outrigger.finish();
    assert_eq!((one.len(), all.len()), (1, 11), "nothing more arrived before the exit");
}

/// A sink that is not required and does not respond blocks no other sink, and its dropped lines are counted.
/// Guarantee: optional-sink-blocks-nothing
#[test]
fn hanging_optional_sink_blocks_no_other_sink() {
    let (scene, receiver, hanging) = (Scene::new(), LogReceiver::start(), LogReceiver::answering(Answer::Hang));
    scene.set("receiver", receiver.address());
    scene.set("hanging", hanging.address());
    let line = "x".repeat(500);
    let text: String = (0..20_000).map(|number| format!("n={number:06} {line}\n")).collect();
    scene.write("in.log", text);
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 5s } }
logs:
  sources: { files: { file: { include: ["@dir@/in.log"], read_from: beginning } } }
  sinks:
    main:  { http: { url: "http://@receiver@/lines", compression: zstd }, batch: { max_bytes: 1MiB, max_age: 100ms } }
    extra: { http: { url: "http://@hanging@/lines" }, required: false, buffer: { max_bytes: 1MiB, when_full: drop_oldest }, batch: { max_bytes: 256KiB, max_age: 100ms } }
"#;
    let outrigger = start(&scene, body, &[]);
    receiver.wait_for(20_000, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 20_000);
    until(PATIENCE, "the optional sink counts what it drops", || {
        dropped(&ledger_row(&outrigger.admin, "logs.sinks.extra")) > 10_000
    });
    outrigger.finish();
}

/// A batch is sent when it reaches `max_age`, not only when it is full.
#[test]
fn single_line_is_sent_within_max_age() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 1MiB, max_age: 1s } } }
"#;
    let outrigger = start(&scene, body, &counting(1));
    receiver.wait_for(1, Duration::from_secs(4));
    outrigger.finish();
}
