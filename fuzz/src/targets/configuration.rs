//! The configuration's text: from the bytes of a file to all plans, or all errors. The system is not changed; placeholders are
//! interpolated from a lookup of this target. In: the file. Out: the same report and the same plans each time; findings at
//! locations of the text; no secret and no interpolated value is ever shown; the supervisor's plan survives encoding and
//! decoding.

use crate::attempt::{bucket, outline, shape};
use crate::config::Config;
use crate::load::Source;
use crate::plans::Plans;
use crate::scratch;
use config::diag::{Diagnostic, Report};
use config::interpolate::Lookup;
use config::tree::{self, Node, Value};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use supervisor::plan::{PLAN_MAX, Plan};

pub const WORDS: &[&str] = &[
    "\n",
    "\n  ",
    "\n    ",
    ": ",
    "- ",
    "{ ",
    " }",
    "[",
    "]",
    "#",
    "&a ",
    "*a",
    "<<: *a",
    "!!str ",
    "|\n  ",
    ">-\n  ",
    "---\n",
    "...\n",
    "? ",
    "\"",
    "'",
    "\\x41",
    "\t",
    "\r\n",
    "~",
    "null",
    "true",
    "${SECRET}",
    "${PORT}",
    "${EMPTY:-x}",
    "$PORT",
    "${NONE}",
    "${file:/secret}",
    "${file:/none}",
    "${",
    "$$",
    "shown-never",
    "app:",
    "command: [a]",
    "port: 8080",
    "user: root:root",
    "environment: { set: { A: b } }",
    "signals: { rewrite: { SIGHUP: none } }",
    "external: { exit_code_file: /x }",
    "stop: { drain_timeout: 1s, grace_period: 1s, timeout: 3s }",
    "stop: SIGTERM",
    "restart: { policy: always, max_restarts: 3 }",
    "start: { timeout: 1s, on_timeout: fail }",
    "tty: true",
    "success_exit_codes: [143]",
    "state: { dir: /x }",
    "limits: { memory: 64MiB }",
    "sandbox: { enabled: false }",
    "logs:",
    "sources:",
    "stages:",
    "sinks:",
    "stdio: {}",
    "file: { include: [/x/*.log] }",
    "proxy: {}",
    "parse: { json: {} }",
    "set: { a: b }",
    "http: { url: \"http://u:shown-never@h/\" }",
    "loki: { url: \"http://h\", labels: { a: b } }",
    "type: loki",
    "inputs: [a]",
    "stdout: {}",
    "blackhole: {}",
    "buffer: { max_bytes: 1MiB, when_full: block }",
    "buffer: 1MiB",
    "batch: { max_records: 9 }",
    "required: false",
    "metrics:",
    "scrape: { url: \"http://h/metrics\" }",
    "process: {}",
    "self: {}",
    "prometheus: { listen: \"127.0.0.1:1\" }",
    "remote_write: { url: \"http://h\" }",
    "auth: { basic: { username: u, password: shown-never } }",
    "auth: shown-never",
    "tls: { cert_file: /x }",
    "auth: { bearer: { token: shown-never } }",
    "sync:",
    "store: { git: { url: \"https://h/x\" } }",
    "publish: { symlink: { path: /x/y } }",
    "notify: [ { signal: SIGHUP } ]",
    "listeners:",
    "clusters:",
    "listen: \"127.0.0.1:1\"",
    "balance: round_robin",
    "balance: { least_request: {} }",
    "direction: inbound",
    "cluster: app",
    "endpoints: [\"127.0.0.1:1\"]",
    "threads: 2",
    "admin:",
    "socket: /x/s",
    "18446744073709551615",
    "9000000TiB",
    "213503982334d",
    "0s",
    "-1",
];

/// The value that the lookup returns. It is in no other text.
const FILLED: &str = "filled-in-9Xq7";

/// A value for a secret in the file, which is different from all other text.
const WRITTEN: &str = "shown-never";

thread_local! {
    static FILE: PathBuf = scratch::directory("configuration").join("outrigger.yaml");
}

pub fn run(input: &[u8]) {
    FILE.with(|path| {
        std::fs::write(path, input).expect("the scratch directory is writable");
        let source = match Source::read(path) {
            Ok(source) => source,
            Err(report) => return check_report(&report, ""),
        };
        // With a wrapped app or without a command, depending on the file's length: each costs a schema.
        let command = if input.len().is_multiple_of(2) { vec![OsString::from("./app")] } else { Vec::new() };
        let first = plans(&source, &command);
        if input.len() % 8 < 2 {
            assert_eq!(words(&first), words(&plans(&source, &command)), "the same text has the same plans");
        }
        check(&source.text, &first);
        if input.len() % 4 == 1
            && let Some(text) = with_one_interpolated(&source.text, input)
        {
            let mut other = source;
            other.text = text;
            check(&other.text, &plans(&other, &command));
        }
    });
}

/// The same text with one of its values interpolated from a variable; the input determines which one.
fn with_one_interpolated(text: &str, input: &[u8]) -> Option<String> {
    fn values<'t>(node: &'t Node, all: &mut Vec<&'t Node>) {
        match &node.value {
            Value::Scalar { .. } => all.push(node),
            Value::List(items) => items.iter().for_each(|item| values(item, all)),
            Value::Map(entries) => entries.iter().for_each(|entry| values(&entry.node, all)),
        }
    }
    let (tree, mut all) = (tree::parse(text).ok()?, Vec::new());
    values(&tree, &mut all);
    let place = all.get((sys::ring::fnv1a(input) % all.len().max(1) as u64) as usize)?.place;
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_string).collect();
    let line = lines.get_mut((place.line as usize).checked_sub(1)?)?;
    let at = |column: u32| line.char_indices().map(|(at, _)| at).chain([line.len()]).nth(column as usize);
    let (start, end) = (at(place.column.checked_sub(1)?)?, at(place.column - 1 + place.width)?);
    line.replace_range(start..end, "\"${SECRET}\"");
    Some(lines.concat())
}

type Planned = Result<(Plans, Report), Report>;

fn plans(source: &Source, command: &[OsString]) -> Planned {
    let variable = |name: &str| match name {
        "SECRET" => Some(FILLED.to_string()),
        "PORT" => Some("8080".to_string()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    let file = |path: &Path| match path.to_str() {
        Some("/secret") => Ok(format!("{FILLED}\n")),
        Some("/port") => Ok("8081".to_string()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    source.plans_with(command, &Lookup { variable: &variable, file: &file })
}

/// All text that is shown.
fn words(planned: &Planned) -> String {
    match planned {
        Ok((plans, report)) => format!("{}{}{:?}", report.render(), plans.shown, plans.app),
        Err(report) => report.render(),
    }
}

fn check(text: &str, planned: &Planned) {
    let (report, shown) = match planned {
        Ok((plans, report)) => (report, plans.shown.to_string()),
        Err(report) => (report, String::new()),
    };
    check_report(report, text);
    let rendered = report.render();
    assert!(!rendered.contains(FILLED), "a message shows an interpolated value: {rendered}");
    assert!(!shown.contains(FILLED), "the shown configuration has an interpolated value: {shown}");
    // The name of a file in a placeholder is no secret.
    let is_named =
        |finding: &Diagnostic| finding.message.starts_with("cannot read `${") && finding.message.contains(WRITTEN);
    if written_in_secrets_only(text) && !report.findings().iter().any(is_named) {
        assert!(!rendered.contains(WRITTEN), "a message shows a secret: {rendered}");
        assert!(!shown.contains(WRITTEN), "the shown configuration has a secret: {shown}");
    }
    let Ok((plans, report)) = planned else {
        assert!(report.has_errors(), "an invalid configuration has an error");
        return;
    };
    assert!(!report.has_errors(), "a valid configuration has no error");
    let parts = (plans.logs.is_some(), plans.metrics.is_some(), plans.proxy.is_some(), plans.sync.entries.len());
    shape((
        "valid",
        parts,
        plans.command.len(),
        plans.needs.listen.len(),
        plans.needs.connect.len(),
        bucket(shown.len()),
    ));
    let bytes = plans.app.encode();
    assert!(bytes.len() <= PLAN_MAX, "a plan of {} bytes", bytes.len());
    assert!(
        Plan::decode(&bytes).as_ref() == Some(&plans.app),
        "the supervisor decodes another plan than the worker encoded"
    );
}

fn check_report(report: &Report, text: &str) {
    // A CR also ends a line (YAML 1.2.2, 5.4).
    let unix = text.replace("\r\n", "\n").replace('\r', "\n");
    let (lines, rendered) = (unix.lines().collect::<Vec<_>>(), report.render());
    for finding in report.findings() {
        shape((finding.severity == config::diag::Severity::Error, outline(&finding.message)));
        let first = finding.message.chars().next();
        assert!(first.is_some_and(|c| !c.is_uppercase()), "a finding begins in lower case: {}", finding.message);
        let Some(place) = finding.place else { continue };
        let line = lines.get((place.line as usize).saturating_sub(1)).copied().unwrap_or("");
        assert!((1..=lines.len().max(1) + 1).contains(&(place.line as usize)), "{place:?} in {} lines", lines.len());
        let columns = line.chars().count() + 1;
        assert!((1..=columns).contains(&(place.column as usize)), "{place:?} in `{line}`: {}", finding.message);
        let shown =
            line.chars().count() >= SHOWN_MAX || rendered.lines().any(|other| is_excerpt(other, place.line, line));
        assert!(shown, "the line of a finding is shown, line {}: {line}\nin {rendered}", place.line);
    }
    assert!(rendered.is_empty() == report.findings().is_empty(), "every finding is rendered");
}

/// A longer line is truncated.
const SHOWN_MAX: usize = 200;

/// A line as a report shows it: with its number, and `*` for hidden characters.
fn is_excerpt(shown: &str, number: u32, line: &str) -> bool {
    let Some(shown) = shown.strip_prefix(&format!("{number} | ")) else { return false };
    let alike = shown.chars().zip(line.chars()).all(|(shown, written)| shown == written || shown == '*');
    alike && shown.chars().count() == line.chars().count()
}

/// Whether the text contains `WRITTEN`, and only in values of secrets.
fn written_in_secrets_only(text: &str) -> bool {
    let all = text.matches(WRITTEN).count();
    let Some(tree) = tree::parse(text).ok().filter(|_| all > 0) else { return false };
    let secrets = config::schema::check(&tree, &config::load::schema_of::<Config>()).secrets;
    in_secrets(&tree, &secrets) == all
}

fn in_secrets(node: &Node, secrets: &[config::diag::Location]) -> usize {
    match &node.value {
        Value::Scalar { text, .. } if secrets.contains(&node.place) => text.matches(WRITTEN).count(),
        Value::Scalar { .. } => 0,
        Value::List(items) => items.iter().map(|item| in_secrets(item, secrets)).sum(),
        Value::Map(entries) => entries.iter().map(|entry| in_secrets(&entry.node, secrets)).sum(),
    }
}
