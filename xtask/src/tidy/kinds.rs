//! Rule: a kind is one file and one line (with its `mod`). In a copy of the project, a kind that does nothing is added to each
//! registry, and the built program must know it everywhere without another edit. In: the tracked files. Out: a finding per
//! registry and place where the kind is missing. Bound: the copy is in the target directory and shares its build of libraries; the
//! program runs for `RUN_LIMIT` at most.

use super::Finding;
use super::scratch_kinds::{MEMORY_MIB, REGISTRIES, Registry};
use crate::shell::{self, Outcome};
use crate::{product, tables};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The name of the program in the copy: the product of the same target directory is not overwritten.
const PROGRAM: &str = "outrigger-kinds";

const RUN_LIMIT: Duration = Duration::from_secs(30);

/// The page that lists all kinds.
const PAGE: &str = "docs/configuration.md";

/// An entry of every kind, with the ids of their components.
const CONFIGURATION: &str = r#"
admin: { socket: admin.sock }
state: { dir: state }
limits: { memory: 16MiB }
logs:
  sources: { a: { scratch: {} } }
  stages: [ { scratch: {} } ]
  sinks: { a: { scratch: {}, buffer: { max_bytes: 64KiB }, batch: { max_bytes: 64KiB }, max_concurrency: 1 } }
metrics:
  sources: { a: { scratch: {} } }
  sinks: { a: { scratch: {}, buffer: { max_bytes: 896KiB } } }
sync:
  a: { store: { scratch: {} }, publish: { scratch: {} }, notify: [ { scratch: {} } ] }
proxy:
  listeners: {}
  clusters: { a: { endpoints: ["127.0.0.1:9"], balance: { scratch: {} } } }
"#;
const IDS: [&str; 9] = [
    "logs.sources.a",
    "logs.stages.0",
    "logs.sinks.a",
    "metrics.sources.a",
    "metrics.sinks.a",
    "sync.a.store",
    "sync.a.publish",
    "sync.a.notify.0",
    "proxy.clusters.a.balance",
];
/// An idle worker, the buffers above, and a kind of each registry.
const BUDGET_MIB: u64 = 8 + 1 + MEMORY_MIB * REGISTRIES.len() as u64;

pub fn check(root: &Path, tracked: &[String]) -> Outcome<Vec<Finding>> {
    let copy = shell::target().join("kinds");
    copy_files(root, &copy, tracked)?;
    let program = build(&copy)?;
    let mut findings = Vec::new();
    let mut missing = |registry: &Registry, place: &str| {
        let what = format!("a kind added as one file and one line is not in {place}");
        let help = "derive it from the registry, without naming a kind";
        findings.push(Finding::new(&format!("{}/mod.rs", registry.directory), 1, what, help));
    };
    let run = |arguments: &[&str]| shell::output(Command::new(&program).args(arguments));
    let schema: Value =
        serde_json::from_str(&run(&["schema"])?).map_err(|error| format!("`outrigger schema`: {error}"))?;
    let explain = |name: &str| run(&["explain", name]);
    let page = fs::read_to_string(root.join(PAGE)).map_err(|error| format!("cannot read {PAGE}: {error}"))?;
    let page = tables::fill(&page, &tables::Product { schema: &schema, explain: &explain })?;
    let in_schema = places_in(&schema);
    if in_schema != REGISTRIES.len() {
        let what = format!("the kind is in {in_schema} of {} registries of the schema", REGISTRIES.len());
        findings.push(Finding::new("crates/config/src/registry.rs", 1, what, "the macro lists every kind"));
        return Ok(findings);
    }
    let (budget, absent) = at_run_time(&program, &copy)?;
    for (registry, id) in REGISTRIES.iter().zip(IDS) {
        let name = format!("{}.scratch", registry.path);
        if !explain(&name).is_ok_and(|text| text.contains("scratch: {}")) {
            missing(registry, "`outrigger explain`");
        }
        if !page.contains(&format!("`{name}`")) {
            missing(registry, PAGE);
        }
        if !absent.contains(&Registry::needed(id)) {
            missing(registry, "the grants of the sandbox");
        }
    }
    let expected = format!("may keep {BUDGET_MIB}MiB");
    if !budget.contains(&expected) {
        let what = format!("the memory of a kind is not in the budget: expected `{expected}` in:\n{budget}");
        findings.push(Finding::new("crates/outrigger/src/plans.rs", 1, what, "list it in `components` of its plan"));
    }
    Ok(findings)
}

/// Copies what has changed, with the kinds and the program's other name.
fn copy_files(root: &Path, copy: &Path, tracked: &[String]) -> Outcome {
    for path in tracked {
        let from = root.join(path);
        let failed = |error: std::io::Error| format!("cannot copy {path}: {error}");
        let mut content = fs::read(&from).map_err(failed)?;
        if let Some(registry) = REGISTRIES.iter().find(|registry| *path == format!("{}/mod.rs", registry.directory)) {
            content = with_kind(&String::from_utf8_lossy(&content), registry)?.into_bytes();
        } else if path == "crates/outrigger/Cargo.toml" {
            let name = format!("name = \"{}\"\npath = \"src/main.rs\"", product::NAME);
            let run = format!("default-run = \"{}\"", product::NAME);
            let text = String::from_utf8_lossy(&content);
            content = text.replace(&name, &name.replace(product::NAME, PROGRAM)).replace(&run, "").into_bytes();
        }
        write_changed(&copy.join(path), &content).map_err(failed)?;
    }
    for registry in &REGISTRIES {
        let path = copy.join(registry.directory).join("scratch.rs");
        write_changed(&path, registry.file().as_bytes()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// cargo compares times: what has not changed keeps its own.
fn write_changed(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if fs::read(path).is_ok_and(|kept| kept == content) {
        return Ok(());
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, content)
}

/// The registry with one more line, and the `mod` of its file.
fn with_kind(module: &str, registry: &Registry) -> Outcome<String> {
    let entry = module.find("    pub entry ").and_then(|at| Some(at + module[at..].find('\n')? + 1));
    let first = module.find("pub mod ");
    match (entry, first) {
        (Some(entry), Some(first)) if first < entry => {
            let (head, rest) = module.split_at(first);
            let (middle, kinds) = rest.split_at(entry - first);
            let line = "        /// Does nothing.\n        scratch => scratch::Config,\n";
            Ok(format!("{head}pub mod scratch;\n{middle}{line}{kinds}"))
        }
        _ => Err(format!("{}/mod.rs has no `pub mod` before its `registry!`", registry.directory)),
    }
}

fn build(copy: &Path) -> Outcome<PathBuf> {
    let words = ["build", "--profile", "ci", "-p", product::NAME, "--bin", PROGRAM];
    let mut command = shell::cargo(&words);
    command.args(["--message-format=json-render-diagnostics"]);
    command.current_dir(copy).env("CARGO_TARGET_DIR", shell::target());
    let programs = product::programs(&shell::output(&mut command)?);
    product::program(&programs, PROGRAM)
}

/// In how many registries of the schema the kind is.
fn places_in(schema: &Value) -> usize {
    let has_kind =
        |entry: &Value| entry["x-kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "scratch"));
    schema["$defs"].as_object().map_or(0, |entries| entries.values().filter(|entry| has_kind(entry)).count())
}

/// What `outrigger validate` says about the memory, and the granted paths that do not exist, in the status of a worker.
fn at_run_time(program: &Path, copy: &Path) -> Outcome<(String, Vec<String>)> {
    let directory = copy.join("run");
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    fs::write(directory.join("outrigger.yaml"), CONFIGURATION).map_err(|error| format!("a configuration: {error}"))?;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&directory).stdin(Stdio::null());
        command
    };
    let validated = command(&["validate"]).output().map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&validated.stderr).into_owned();
    if !validated.status.success() {
        return Err(format!("the configuration with every kind is not valid:\n{text}"));
    }
    let log = fs::File::create(directory.join("log")).map_err(|error| format!("a log: {error}"))?;
    let run = command(&["run"]).stderr(log).stdout(Stdio::null()).spawn();
    let child = run.map_err(|error| format!("{}: {error}", program.display()))?;
    let stop = || command(&["stop"]);
    let running = Running { child, stop: &stop };
    let start = Instant::now();
    let status = loop {
        let status = command(&["status", "--format", "json"]).stderr(Stdio::null()).output();
        let status: Option<Value> = status.ok().and_then(|status| serde_json::from_slice(&status.stdout).ok());
        match status {
            Some(status) => break status,
            None if start.elapsed() > RUN_LIMIT => return Err(format!("no status; see {}/log", directory.display())),
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    drop(running);
    let absent = status["sandbox"]["absent_paths"].as_array().into_iter().flatten();
    Ok((text, absent.filter_map(|path| Some(path.as_str()?.to_string())).collect()))
}

/// A program that is stopped when it is dropped: by its own command, so that its worker ends with it.
struct Running<'a> {
    child: Child,
    stop: &'a dyn Fn() -> Command,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !(self.stop)().stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
            // Without a request it would be waited for in vain.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
