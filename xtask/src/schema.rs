//! `cargo xtask schema`: the JSON Schema of the configuration, kept in docs/ for editors.
//! In: `outrigger schema`. Out: docs/outrigger.schema.json, or with `--check` a word on whether it is current.
//! Bound: the file is never written by hand.

use crate::product;
use crate::shell::{self, Outcome};
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

/// For CI: a repository that keeps no schema yet has nothing to go stale.
pub fn check_if_written() -> Outcome {
    match shell::root().join(FILE).exists() {
        true => check(),
        false => Ok(()),
    }
}

fn write() -> Outcome {
    let path = shell::root().join(FILE);
    fs::write(&path, current()?).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn check() -> Outcome {
    let kept = fs::read_to_string(shell::root().join(FILE)).unwrap_or_default();
    match kept == current()? {
        true => Ok(()),
        false => Err(format!("{FILE} is out of date. help: cargo xtask schema")),
    }
}

fn current() -> Outcome<String> {
    let text = shell::output(Command::new(product::for_tests()?).arg("schema"))?;
    match text.trim().is_empty() {
        true => Err("`outrigger schema` printed nothing".to_string()),
        false => Ok(format!("{}\n", text.trim_end())),
    }
}
