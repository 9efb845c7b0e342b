//! Rule: ARCHITECTURE.md speaks only of what is there.
//! In: its text and the files of the repository. Out: a finding for each path, crate or function in backticks that is gone.
//! Bound: a word counts as a path when it contains `/` and ends in `.rs`, or names a folder under crates/; as a function
//! when `::name` follows such a path.

use super::{Finding, Source};

const MAP: &str = "ARCHITECTURE.md";

pub fn check(map: &str, files: &[String], read: &dyn Fn(&str) -> String) -> Vec<Finding> {
    if map.is_empty() {
        return vec![Finding::new(
            MAP,
            1,
            "the map of the house is missing",
            "write it: crates, invariants, four walks",
        )];
    }
    let mut findings = Vec::new();
    for (index, line) in map.lines().enumerate() {
        for word in in_backticks(line) {
            if let Some((what, help)) = judge(word, files, read) {
                findings.push(Finding::new(MAP, index + 1, what, help));
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
        let folder = path.trim_end_matches('/');
        let gone = folder.starts_with("crates/") && !files.iter().any(|file| file.starts_with(&format!("{folder}/")));
        return gone.then(|| (format!("`{folder}` does not exist"), "name the folder as it is called now"));
    }
    // Inside the map a crate's file may be named without the `crates/` that all share.
    let found = [path.to_string(), format!("crates/{path}")].into_iter().find(|path| files.contains(path));
    let Some(found) = found else {
        return Some((format!("`{path}` does not exist"), "name the file as it is called now"));
    };
    let name = item?.rsplit("::").next()?.trim_end_matches("()").trim_end_matches('!');
    match defines(&Source::new(&found, &read(&found)), name) {
        true => None,
        false => Some((format!("{found} defines no `{name}`"), "name the function as it is called now")),
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
        let files: Vec<String> = ["crates/logs/src/run.rs", "xtask/src/main.rs"].map(str::to_string).to_vec();
        let read = |_: &str| "//! x\npub async fn follow() {}\nstruct Batch;\n// fn gone() {}\n".to_string();
        let check = |map: &str, expect: &[&str]| {
            let seen: Vec<_> = super::check(map, &files, &read).into_iter().map(|finding| finding.what).collect();
            assert_eq!(seen, expect, "{map}");
        };
        check("`crates/logs/src/run.rs` and `logs/src/run.rs` and `crates/logs/` and `crates/logs`", &[]);
        check("`crates/logs/src/walk.rs`", &["`crates/logs/src/walk.rs` does not exist"]);
        check("`crates/diary/`", &["`crates/diary` does not exist"]);
        check("`logs/src/run.rs::follow` `logs/src/run.rs::Batch` `logs/src/run.rs::follow()`", &[]);
        check("`logs/src/run.rs::gone`", &["crates/logs/src/run.rs defines no `gone`"]);
        check("`logs/src/run.rs::follo`", &["crates/logs/src/run.rs defines no `follo`"]);
        check("`run.rs` `/var/lib/outrigger` `logs/src/*.rs` `a b/c.rs`, crates/diary/ without backticks", &[]);
        check("", &["the map of the house is missing"]);
    }
}
