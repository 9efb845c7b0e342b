//! Rule: ARCHITECTURE.md and the decisions refer to existing files and functions only.
//! In: their text and the files of the repository. Out: a finding for each path, crate or function in backticks that does not exist.
//! Limits: a word is a path if it contains `/` and ends in `.rs`, or is a directory under crates/; it is a function if `::name`
//! follows such a path.

use super::{Finding, Source};

pub const MAP: &str = "ARCHITECTURE.md";

/// Documents that refer to the code beside it. The list of words quotes texts of the past.
const DECISIONS: &str = "docs/decisions/";
const LIST_OF_WORDS: &str = "docs/decisions/001-words.md";

pub fn check(files: &[String], read: &dyn Fn(&str) -> String) -> Vec<Finding> {
    let decisions = files.iter().filter(|file| file.starts_with(DECISIONS) && *file != LIST_OF_WORDS);
    let mut findings: Vec<Finding> =
        decisions.flat_map(|file| check_document(file, &read(file), files, read)).collect();
    let map = read(MAP);
    if map.is_empty() {
        findings.push(Finding::new(
            MAP,
            1,
            "the map of the code is missing",
            "write it: crates, invariants, data flows",
        ));
    }
    findings.extend(check_document(MAP, &map, files, read));
    findings
}

fn check_document(path: &str, text: &str, files: &[String], read: &dyn Fn(&str) -> String) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in in_backticks(line) {
            if let Some((what, help)) = judge(word, files, read) {
                findings.push(Finding::new(path, index + 1, what, help));
            }
        }
    }
    findings
}

fn in_backticks(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).map(str::trim)
}

fn judge(word: &str, files: &[String], read: &dyn Fn(&str) -> String) -> Option<(String, &'static str)> {
    let (path, item) = match word.split_once("::") {
        Some((path, item)) => (path, Some(item)),
        None => (word, None),
    };
    if path.contains([' ', '*', '{', '<', '…']) || !path.contains('/') {
        return None;
    }
    if !path.ends_with(".rs") {
        let directory = path.trim_end_matches('/');
        let exists = files.iter().any(|file| file.starts_with(&format!("{directory}/")));
        let is_missing = directory.starts_with("crates/") && !exists;
        return is_missing.then(|| (format!("`{directory}` does not exist"), "use the present name of the directory"));
    }
    // Inside the map a crate's file may be named without the `crates/` that all share.
    let found = [path.to_string(), format!("crates/{path}")].into_iter().find(|path| files.contains(path));
    let Some(found) = found else {
        return Some((format!("`{path}` does not exist"), "use the present name of the file"));
    };
    let name = item?.rsplit("::").next()?.trim_end_matches("()").trim_end_matches('!');
    match defines(&Source::new(&found, &read(&found)), name) {
        true => None,
        false => Some((format!("{found} defines no `{name}`"), "use the present name of the function")),
    }
}

fn defines(source: &Source, name: &str) -> bool {
    let keywords = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "macro_rules!"];
    let follows = |rest: &str| {
        let rest = rest.trim_start();
        rest.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    keywords.iter().any(|word| source.words(word).any(|offset| follows(&source.code[offset + word.len()..])))
}

#[cfg(test)]
mod tests {

    #[test]
    fn every_name_in_backticks_must_exist() {
        let files: Vec<String> =
            ["crates/logs/src/run.rs", "xtask/src/main.rs", "docs/decisions/002-a.md"].map(str::to_string).to_vec();
        let code = "//! x\npub async fn follow() {}\nstruct Batch;\n// fn absent() {}\n";
        let check = |map: &str, expect: &[&str]| {
            let read = |path: &str| if path.ends_with(".md") { map.to_string() } else { code.to_string() };
            let found = super::check(&files, &read);
            for document in [super::MAP, "docs/decisions/002-a.md"] {
                let of_document = found.iter().filter(|finding| finding.path == document && !map.is_empty());
                let of_document: Vec<_> = of_document.map(|finding| finding.what.as_str()).collect();
                assert_eq!(of_document, expect, "{document}: {map}");
            }
        };
        check("`crates/logs/src/run.rs` and `logs/src/run.rs` and `crates/logs/` and `crates/logs`", &[]);
        check("`crates/logs/src/walk.rs`", &["`crates/logs/src/walk.rs` does not exist"]);
        check("`crates/diary/`", &["`crates/diary` does not exist"]);
        check("`logs/src/run.rs::follow` `logs/src/run.rs::Batch` `logs/src/run.rs::follow()`", &[]);
        check("`logs/src/run.rs::absent`", &["crates/logs/src/run.rs defines no `absent`"]);
        check("`logs/src/run.rs::follo`", &["crates/logs/src/run.rs defines no `follo`"]);
        check("`run.rs` `/var/lib/outrigger` `logs/src/*.rs` `a b/c.rs`, crates/diary/ without backticks", &[]);
        assert_eq!(super::check(&files, &|_| String::new()).len(), 1, "a missing map is a finding");
    }
}
