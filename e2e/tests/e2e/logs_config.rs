//! Configurations of logs that can never work: `validate` rejects each with the invalid value in its message, and accepts
//! the valid counterpart. In: texts. Out: exit codes and messages. Bounded by one short process per case.

use crate::harness::Scene;
use crate::harness::outrigger::{configuration, outrigger};

/// The exit code and output of `validate` for a file source and a sink.
fn validate(scene: &Scene, source: &str, sink: &str) -> (i32, String) {
    let body = format!("logs:\n  sources: {{ f: {{ file: {source} }} }}\n  sinks: {{ s: {sink} }}\n");
    let config = scene.write("outrigger.yaml", configuration(scene, &body)).display().to_string();
    let (code, stdout, stderr) = outrigger(&["validate", "-c", &config]);
    (code, stdout + &stderr)
}

/// A source, a sink, and the parts of the error message, in lower case; empty if the configuration is valid.
type Case<'a> = (&'a str, &'a str, &'a [&'a str]);

#[track_caller]
fn check(cases: &[Case<'_>]) {
    let scene = Scene::new();
    let mut wrong = Vec::new();
    for (source, sink, parts) in cases {
        let (code, text) = validate(&scene, source, sink);
        let text = text.to_lowercase();
        let right = match parts {
            [] => code == 0,
            parts => code == 1 && parts.iter().all(|part| text.contains(&scene.fill(part).to_lowercase())),
        };
        if !right {
            wrong.push(format!("{source} to {sink} gives {code}, not {parts:?}: {text}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

const ANY: &str = r#"{ include: ["@dir@/in/*.log"] }"#;

/// Labels for which Loki rejects every push are rejected here, each with its name in the message. (Loki's labels are
/// Prometheus's: `[a-zA-Z_][a-zA-Z0-9_]*`.)
#[test]
fn labels_that_loki_rejects_are_rejected() {
    let labels = [
        (r#"{ my-label: x, "a.b": y, "": z }"#, &["my-label", "a.b", "label"][..]),
        (r#"{ my-label: x }"#, &["my-label"][..]),
        (r#"{ a.b: x }"#, &["a.b"][..]),
        (r#"{ "": x }"#, &["label"][..]),
        (r#"{ 1st: x }"#, &["1st"][..]),
        (r#"{ "two words": x }"#, &["two words"][..]),
        (r#"{ größe: x }"#, &["größe"][..]),
        (r#"{ "a\"b": x }"#, &["label"][..]),
        (r#"{ service: orders, _a1: x, B: y, service_name: z }"#, &[][..]),
    ];
    let sinks = labels.map(|(labels, _)| format!(r#"{{ loki: {{ url: "http://127.0.0.1:1", labels: {labels} }} }}"#));
    let cases = labels.iter().zip(&sinks).map(|((_, parts), sink)| (ANY, sink.as_str(), *parts));
    check(&cases.collect::<Vec<Case<'_>>>());
}

/// A sink that writes what a source reads would be an endless loop: rejected, by whichever path the file is reached,
/// its rotated files included.
#[test]
fn sink_that_feeds_its_source_is_rejected() {
    let file = |path: &str| format!(r#"{{ file: {{ path: "@dir@/{path}" }} }}"#);
    let (live, numbered, deep, dotted) =
        (file("in/copy.log"), file("in/copy"), file("in/deep/down/copy.log"), file("in/../in/./copy.log"));
    let other = file("out/copy.log");
    let one = r#"{ file: { path: "@dir@/in/copy.log" }, inputs: [f] }"#;
    check(&[
        (ANY, &live, &["copy.log"]),
        (ANY, one, &["copy.log"]),
        (ANY, &dotted, &["copy.log"]),
        (r#"{ include: ["@dir@/in/copy.[0-9]"] }"#, &numbered, &["in/copy"]),
        (r#"{ include: ["@dir@/in/cop*"] }"#, &numbered, &["in/copy"]),
        (r#"{ include: ["@dir@/in/**/*.log"] }"#, &deep, &["copy.log"]),
        (r#"{ include: ["@dir@/none/*.log", "@dir@/in/copy.log"] }"#, &live, &["copy.log"]),
        (ANY, &other, &[]),
        (r#"{ include: ["@dir@/in/*.log"], exclude: ["@dir@/in/copy.log*"] }"#, &live, &[]),
    ]);
}

/// A device or a file descriptor cannot be rotated as a file: rejected, and the message suggests the sink for stdout.
#[test]
fn file_sink_to_stdout_or_a_device_is_rejected() {
    let scene = Scene::new();
    let mut wrong = Vec::new();
    for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr", "/dev/null"] {
        let (code, text) = validate(&scene, ANY, &format!("{{ file: {{ path: {path} }} }}"));
        // The path itself does not count as a hint.
        let hinted = text.replace(path, "").contains("stdout") || ["/dev/stderr", "/dev/null"].contains(&path);
        if code != 1 || !text.contains(path) || !hinted {
            wrong.push(format!("{path} gives {code}: {text}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}
