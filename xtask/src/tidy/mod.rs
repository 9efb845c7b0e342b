//! `cargo xtask tidy`: the rules of the project that a program can check, with all findings in one run.
//! In: what git tracks or would track, and `cargo metadata`. Out: `path:line: what. help: next step`, exit code 1 if any.
//! Limits: it reads; only `--fix` writes, and then only xtask/size-ratchet.txt.

mod attributes;
mod circles;
mod guarantees;
mod headers;
mod imports;
mod keys;
mod kinds;
mod libraries;
mod manifest;
mod map;
mod metrics;
mod registries;
mod scratch_kinds;
mod sizes;
mod source;
mod words;
mod workspace;

use crate::shell::{self, Outcome};
use source::Source;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

pub use workspace::Workspace;

pub fn run(arguments: &[String]) -> Outcome {
    let (mut fix, mut quick) = (false, false);
    for word in arguments {
        match word.as_str() {
            "--fix" => fix = true,
            "--quick" => quick = true,
            _ => return Err("usage: cargo xtask tidy [--fix] [--quick]".to_string()),
        }
    }
    let root = shell::root();
    let paths = tracked_files(&root)?;
    let sources = read_sources(&root, &paths)?;
    let workspace = Workspace::load()?;

    let mut findings = imports::check(&workspace, &|path| read(&root, path));
    findings.extend(circles::check(&sources));
    findings.extend(headers::check(&sources));
    findings.extend(registries::check(&sources));
    findings.extend(map::check(&paths, &|path| read(&root, path)));
    findings.extend(libraries::check(&workspace.shipped));
    findings.extend(attributes::check(&sources));
    findings.extend(keys::check(keys::SCHEMA, &read(&root, keys::SCHEMA)));
    findings.extend(words::check(&sources, &documents(&root, &paths)));
    findings.extend(metrics::check(&sources));
    findings.extend(manifest::check("Cargo.toml", &read(&root, "Cargo.toml")));

    let sizes = sizes::check(&sources, &read(&root, sizes::RATCHET), fix);
    findings.extend(sizes.findings);
    findings.extend(guarantees::check(&sources, &read(&root, guarantees::TABLE)));
    if fix {
        write_if_changed(&root, sizes::RATCHET, &sizes.text)?;
    }
    if findings.is_empty() && !quick {
        findings.extend(kinds::check(&root, &paths)?);
    }
    report(findings)
}

fn report(mut findings: Vec<Finding>) -> Outcome {
    findings.sort();
    findings.dedup();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => Err("tidy: 1 finding".to_string()),
        many => Err(format!("tidy: {many} findings")),
    }
}

/// One violation of a rule, with the location of the fix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub what: String,
    pub help: String,
}

impl Finding {
    pub fn new(path: &str, line: usize, what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { path: path.to_string(), line, what: what.into(), help: help.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}. help: {}", self.path, self.line, self.what, self.help)
    }
}

/// The findings of a rule that writes a file, and the text of that file.
pub struct Ratchet {
    pub findings: Vec<Finding>,
    pub text: String,
}

/// Files that git tracks, and those it would track: a new file is judged before its first commit.
pub fn tracked_files(root: &Path) -> Outcome<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = shell::output(&mut git)?;
    let mut paths: Vec<String> =
        listed.split('\0').filter(|path| !path.is_empty() && root.join(path).is_file()).map(str::to_string).collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}

fn read_sources(root: &Path, paths: &[String]) -> Outcome<Vec<Source>> {
    let rust = paths.iter().filter(|path| path.ends_with(".rs"));
    rust.map(|path| {
        let text = fs::read_to_string(root.join(path)).map_err(|error| format!("cannot read {path}: {error}"))?;
        Ok(Source::new(path, &text))
    })
    .collect()
}

/// What people read beside the code: documents, and the page.
fn documents(root: &Path, paths: &[String]) -> Vec<(String, String)> {
    let read_by_people = paths.iter().filter(|path| path.ends_with(".md") || path.ends_with(".html"));
    read_by_people.map(|path| (path.clone(), read(root, path))).collect()
}

/// An absent file is an empty one: the rule that needs it then says what it misses.
fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

fn write_if_changed(root: &Path, path: &str, text: &str) -> Outcome {
    if read(root, path) == text {
        return Ok(());
    }
    println!("{path} rewritten");
    fs::write(root.join(path), text).map_err(|error| format!("cannot write {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_place_breach_and_next_step() {
        let finding = Finding::new("crates/a/src/lib.rs", 3, "no header", "write one");
        assert_eq!(finding.to_string(), "crates/a/src/lib.rs:3: no header. help: write one");
    }
}
