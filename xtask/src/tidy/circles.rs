//! Rule: the files of a crate do not import each other in a circle, so that each can be read after what it imports.
//! In: the sources below `src/`. Out: a finding for each circle, at the import that closes it.
//! Bound: paths that begin with `crate::`, `self::` or `super::` count, outside tests. A module that lists its children, as a registry
//! of kinds does, does not import them by that.

use super::{Finding, Source};
use std::collections::{BTreeMap, BTreeSet};

/// Files by the path of their module within the crate, such as `source::file`; the root is empty.
type Modules<'a> = BTreeMap<Vec<String>, &'a Source>;

/// A file, what it imports, and the line of the first import of each.
type Imports<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let mut crates: BTreeMap<&str, Modules<'_>> = BTreeMap::new();
    for source in sources {
        let Some((root, path)) = source.path.split_once("/src/") else { continue };
        crates.entry(root).or_default().insert(module_of(path), source);
    }
    crates.values().flat_map(circles).collect()
}

fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let parts = path.split('/').filter(|part| !matches!(*part, "mod" | "lib" | "main"));
    parts.map(str::to_string).collect()
}

fn circles(modules: &Modules<'_>) -> Vec<Finding> {
    let mut imports: Imports<'_> = BTreeMap::new();
    for (module, source) in modules {
        let found = imports.entry(&source.path).or_default();
        for (path, line) in paths(source) {
            let Some(target) = resolve(modules, module, &path) else { continue };
            if target != source.path {
                found.entry(target).or_insert(line);
            }
        }
    }
    let mut findings = Vec::new();
    let mut known: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
    for file in imports.keys() {
        let Some(circle) = shortest_circle(&imports, file) else { continue };
        if known.insert(circle.iter().copied().collect()) {
            let line = circle.get(1).and_then(|next| imports[file].get(next)).copied().unwrap_or(1);
            let what = format!("these files import each other in a circle: {} → {file}", circle.join(" → "));
            findings.push(Finding::new(file, line, what, "move what both need to a file of its own"));
        }
    }
    findings
}

/// The files from one file back to itself, without the last step; the shortest way.
fn shortest_circle<'a>(imports: &Imports<'a>, start: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last().copied().unwrap_or(start);
            for next in imports.get(last).into_iter().flat_map(BTreeMap::keys) {
                if *next == start {
                    return Some(way);
                }
                if seen.insert(*next) {
                    longer.push([way.as_slice(), &[*next]].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

/// The file that a path leads to: the one of its longest beginning that is a module.
fn resolve<'a>(modules: &Modules<'a>, here: &[String], path: &[String]) -> Option<&'a str> {
    let mut at: Vec<String> = match path.first()?.as_str() {
        "crate" => Vec::new(),
        _ => here.to_vec(),
    };
    let mut found = None;
    for part in path {
        match part.as_str() {
            "crate" | "self" => {}
            "super" => drop(at.pop()),
            name => at.push(name.to_string()),
        }
        if let Some(source) = modules.get(&at) {
            found = Some(source.path.as_str());
        }
    }
    found
}

/// Each path into the crate, with its line; what is in braces is taken apart.
fn paths(source: &Source) -> Vec<(Vec<String>, usize)> {
    let tests = source.test_lines();
    let mut found = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for offset in source.words(start) {
            let line = source.line_at(offset);
            let continues = source.code[..offset].ends_with("::");
            if continues
                || source.code[..offset].ends_with('$')
                || tests.iter().any(|(first, last)| (*first..=*last).contains(&line))
            {
                continue;
            }
            let mut rest = &source.code[offset..];
            expand(&mut rest, Vec::new(), &mut |path| found.push((path, line)));
        }
    }
    found
}

/// `a::{b, c::d}` becomes `a::b` and `a::c::d`.
fn expand(rest: &mut &str, mut path: Vec<String>, add: &mut impl FnMut(Vec<String>)) {
    loop {
        *rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            *rest = inside;
            loop {
                *rest = rest.trim_start().trim_start_matches(',').trim_start();
                match rest.strip_prefix('}') {
                    Some(after) => {
                        *rest = after;
                        return;
                    }
                    None if rest.is_empty() => return,
                    None => {}
                }
                let before = rest.len();
                expand(rest, path.clone(), add);
                if rest.len() == before {
                    return;
                }
            }
        }
        let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if length > 0 {
            path.push(rest[..length].to_string());
            *rest = &rest[length..];
        }
        match rest.strip_prefix("::") {
            Some(after) if length > 0 => *rest = after,
            _ => {
                add(path);
                // `as name` and the like.
                let end = rest.find([',', '}', ';', '\n', ')', '(', ' ']).unwrap_or(rest.len());
                if rest[..end].is_empty() && rest.trim_start().starts_with("as ") {
                    let end = rest.find([',', '}', ';']).unwrap_or(rest.len());
                    *rest = &rest[end..];
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_of_files_is_a_finding() {
        let check = |files: &[(&str, &str)], expect: &[&str]| {
            let sources: Vec<_> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
            let found: Vec<_> = super::check(&sources).into_iter().map(|f| format!("{}:{}", f.path, f.line)).collect();
            assert_eq!(found, expect, "{files:?}");
        };
        let (a, b, c) = ("crates/x/src/a.rs", "crates/x/src/b/mod.rs", "crates/x/src/b/c.rs");
        check(&[(a, "use crate::b::B;"), (b, "fn f() {}")], &[]);
        check(&[(a, "use crate::b::B;"), (b, "\nuse crate::a::{self, A};")], &["crates/x/src/a.rs:1"]);
        check(&[(a, "use crate::b::c::C;"), (c, "fn f() { crate::a::g() }")], &["crates/x/src/a.rs:1"]);
        check(&[(b, "mod c;\nuse self::c::C;"), (c, "use super::B;")], &["crates/x/src/b/c.rs:1"]);
        check(&[(b, "mod c;\nc::f();"), (c, "use super::B;")], &[]);
        check(&[(a, "use crate::{b::B, c};"), (b, "#[cfg(test)]\nmod tests { use crate::a::A; }")], &[]);
        check(&[(a, "use crate::{x, b::{B, c::C}};"), (c, "use crate::{a as other, x};")], &["crates/x/src/a.rs:1"]);
        check(&[("crates/y/src/a.rs", "use crate::b;"), (b, "use crate::a;")], &[]);
    }
}
