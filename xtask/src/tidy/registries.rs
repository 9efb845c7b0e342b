//! Rule: the kinds in a directory and the kinds in its registry are the same.
//! In: the sources. Out: a finding for a kind file that is in no registry, and for a listed kind that has no file.
//! Bound: it checks the directories below, each with its `registry!` in its mod.rs; a missing directory is fine.

use super::source::end_of_brackets;
use super::{Finding, Source};
use std::collections::BTreeSet;

const DIRECTORIES: [&str; 10] = [
    "crates/logs/src/source",
    "crates/logs/src/stage",
    "crates/logs/src/sink",
    "crates/metrics/src/source",
    "crates/metrics/src/stage",
    "crates/metrics/src/sink",
    "crates/sync/src/store",
    "crates/sync/src/publish",
    "crates/sync/src/notify",
    "crates/proxy/src/balance",
];

/// First words of paths that are not kinds.
const NOT_KINDS: [&str; 8] = ["crate", "self", "super", "std", "core", "base", "serde", "schemars"];

pub fn check(sources: &[Source]) -> Vec<Finding> {
    DIRECTORIES.iter().flat_map(|directory| check_directory(directory, sources)).collect()
}

fn check_directory(directory: &str, sources: &[Source]) -> Vec<Finding> {
    let files: BTreeSet<&str> = sources.iter().filter_map(|source| kind_of(directory, &source.path)).collect();
    let home = format!("{directory}/mod.rs");
    let Some(module) = sources.iter().find(|source| source.path == home) else {
        let orphan = files.iter().next();
        let finding = |_| Finding::new(&home, 1, "the directory has kinds but no mod.rs", "add one with a `registry!`");
        return orphan.map(finding).into_iter().collect();
    };
    let Some((line, listing)) = listing(module) else {
        let help = "list the kinds of this directory in one `registry!`";
        return vec![Finding::new(&home, 1, "the module has no `registry!`", help)];
    };
    let listed = names(listing);
    let kinds = kinds(listing);
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| !listed.contains(*file)) {
        let what = format!("`{file}` is not in the registry");
        findings.push(Finding::new(
            &path_of(directory, file, sources),
            1,
            what,
            format!("list it in {home}, or move it out"),
        ));
    }
    for kind in kinds.iter().filter(|kind| !files.contains(*kind)) {
        let what = format!("the registry lists `{kind}`, which has no file here");
        findings.push(Finding::new(&home, line, what, format!("add {directory}/{kind}.rs, or remove the line")));
    }
    findings
}

/// `x` for `directory/x.rs` and for everything under `directory/x/`.
fn kind_of<'a>(directory: &str, path: &'a str) -> Option<&'a str> {
    let inside = path.strip_prefix(directory)?.strip_prefix('/')?;
    match inside.split_once('/') {
        Some((kind, _)) => Some(kind),
        None => inside.strip_suffix(".rs").filter(|name| *name != "mod"),
    }
}

fn path_of(directory: &str, kind: &str, sources: &[Source]) -> String {
    let found = sources.iter().find(|source| kind_of(directory, &source.path) == Some(kind));
    found.map_or_else(|| format!("{directory}/{kind}.rs"), |source| source.path.clone())
}

/// The inside of the first `registry!`, and its line.
fn listing(module: &Source) -> Option<(usize, &str)> {
    let offset = module.words("registry!").next()?;
    let open = offset + module.code[offset..].find(['{', '(', '['])?;
    let end = end_of_brackets(&module.code, open)?;
    Some((module.line_at(offset), &module.code[open + 1..end - 1]))
}

fn names(listing: &str) -> BTreeSet<&str> {
    listing.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).collect()
}

/// The kinds of a listing: the modules that its paths start with (`loki::Config`), or, in a listing without
/// paths, its lower-case words.
fn kinds(listing: &str) -> BTreeSet<&str> {
    let is_kind = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase()) && !NOT_KINDS.contains(word);
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let heads: BTreeSet<&str> = listing
        .match_indices("::")
        .filter_map(|(offset, _)| {
            let before = &listing[..offset];
            let head = before.rsplit(|c: char| !is_name(c)).next()?;
            let inner = before[..before.len() - head.len()].ends_with("::");
            Some(head).filter(|head| !inner && is_kind(head))
        })
        .collect();
    match listing.contains("::") {
        true => heads,
        false => {
            let keywords = ["pub", "enum", "struct", "trait", "type", "dyn", "for", "in", "as", "mod", "fn", "impl"];
            names(listing).into_iter().filter(|word| is_kind(word) && !keywords.contains(word)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> =
            files.iter().map(|(name, text)| Source::new(&format!("crates/logs/src/sink/{name}"), text)).collect();
        check(&sources).into_iter().map(|finding| format!("{}: {}", finding.path, finding.what)).collect()
    }

    #[test]
    fn directory_and_registry_have_the_same_kinds() {
        let check = |files: &[(&str, &str)], expect: &[&str]| {
            let seen = findings(files);
            let seen: Vec<_> = seen.iter().map(|text| text.trim_start_matches("crates/logs/src/sink/")).collect();
            assert_eq!(seen, expect, "{files:?}");
        };
        let both = "base::registry! {\n    pub enum Kind { Http(http::Config), Loki(loki::Config) }\n}";
        check(&[], &[]);
        check(&[("mod.rs", both), ("http.rs", ""), ("loki/mod.rs", ""), ("loki/wire.rs", "")], &[]);
        check(&[("mod.rs", both), ("http.rs", "")], &["mod.rs: the registry lists `loki`, which has no file here"]);
        check(
            &[("mod.rs", both), ("http.rs", ""), ("loki.rs", ""), ("file.rs", "")],
            &["file.rs: `file` is not in the registry"],
        );
        check(&[("mod.rs", "registry!(http, loki);"), ("http.rs", ""), ("loki.rs", "")], &[]);
        check(&[("mod.rs", "registry! { http => http::Config, }"), ("http.rs", "")], &[]);
        check(
            &[
                ("mod.rs", "registry! { http => crate::sink::http::Config, // loki\n }"),
                ("http.rs", ""),
                ("loki.rs", ""),
            ],
            &["loki.rs: `loki` is not in the registry"],
        );
        check(&[("mod.rs", "mod http;"), ("http.rs", "")], &["mod.rs: the module has no `registry!`"]);
        check(&[("http.rs", "")], &["mod.rs: the directory has kinds but no mod.rs"]);
    }
}
