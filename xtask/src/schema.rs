//! `cargo xtask schema`: the generated parts of docs/: the JSON Schema of the configuration, and the tables of keys, metrics and
//! reasons. In: `outrigger schema` and `outrigger explain`. Out: docs/outrigger.schema.json and the tables, or with `--check`
//! those that are out of date. Bound: the schema and the text between markers are never written by hand.

use crate::product;
use crate::shell::{self, Outcome};
use crate::{tables, tidy};
use std::fs;
use std::process::Command;

const FILE: &str = "docs/outrigger.schema.json";

pub fn run(arguments: &[String]) -> Outcome {
    match arguments {
        [] => write(),
        [word] if word == "--check" => check(),
        _ => Err("usage: cargo xtask schema [--check]".to_string()),
    }
}

/// For CI: a repository without a schema has nothing that can be out of date.
pub fn check_if_written() -> Outcome {
    match shell::root().join(FILE).exists() {
        true => check(),
        false => Ok(()),
    }
}

fn write() -> Outcome {
    for (path, _, current) in generated()?.iter().filter(|(_, kept, current)| kept != current) {
        println!("{path} rewritten");
        fs::write(shell::root().join(path), current).map_err(|error| format!("cannot write {path}: {error}"))?;
    }
    Ok(())
}

fn check() -> Outcome {
    let stale: Vec<String> =
        generated()?.into_iter().filter(|(_, kept, current)| kept != current).map(|(path, ..)| path).collect();
    match stale.is_empty() {
        true => Ok(()),
        false => Err(format!("{} is out of date. help: cargo xtask schema", stale.join(", "))),
    }
}

/// Each file with generated text: its path, its content and the expected content.
fn generated() -> Outcome<Vec<(String, String, String)>> {
    let root = shell::root();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let schema = current()?;
    let json =
        serde_json::from_str(&schema).map_err(|error| format!("`outrigger schema` printed invalid JSON: {error}"))?;
    let explain = |name: &str| shell::output(Command::new(product::for_tests()?).args(["explain", name]));
    let product = tables::Product { schema: &json, explain: &explain };
    let mut files = vec![(FILE.to_string(), read(FILE), schema)];
    for path in tidy::tracked_files(&root)?.into_iter().filter(|path| path.ends_with(".md")) {
        let kept = read(&path);
        let current = tables::fill(&kept, &product).map_err(|error| format!("{path}: {error}"))?;
        files.push((path, kept, current));
    }
    Ok(files)
}

fn current() -> Outcome<String> {
    let text = shell::output(Command::new(product::for_tests()?).arg("schema"))?;
    match text.trim().is_empty() {
        true => Err("`outrigger schema` printed nothing".to_string()),
        false => Ok(format!("{}\n", text.trim_end())),
    }
}
