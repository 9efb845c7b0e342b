//! Rule: COVERAGE.md says which test covers which requirement, and is never out of date.
//! In: the table's rows and the `covers:` lines above tests and benchmark cases. Out: the table with its third column
//! filled, a finding for a `covers:` that names no row, and the list of rows that nothing covers.
//! Bound: the first two columns are written by people and never touched; a third that opens with `reason:` is kept.

use super::{Finding, Source};
use std::collections::{BTreeMap, BTreeSet};

pub const TABLE: &str = "COVERAGE.md";
const MARK: &str = "covers:";
const MISSING: &str = "missing";

pub struct Coverage {
    pub findings: Vec<Finding>,
    pub text: String,
    /// Requirements that nothing covers and no reason excuses.
    pub missing: Vec<String>,
}

/// One `covers:` line, taken apart.
#[derive(Debug, PartialEq)]
struct Claim {
    path: String,
    line: usize,
    requirement: String,
    /// `path::name`, or nothing when it stands above something that never runs.
    test: Option<String>,
}

pub fn check(sources: &[Source], table: &str, fix: bool) -> Coverage {
    if table.is_empty() {
        let help = "write a table per issue: `| foundation 4 | a few words | tests |`";
        let findings = vec![Finding::new(TABLE, 1, "the table of requirements is missing", help)];
        return Coverage { findings, text: String::new(), missing: Vec::new() };
    }
    let claims: Vec<Claim> = sources.iter().flat_map(claims).collect();
    let rows: BTreeSet<&str> = table.lines().filter_map(row).map(|(requirement, ..)| requirement).collect();
    let mut findings: Vec<Finding> = claims.iter().filter_map(|claim| judge(claim, &rows)).collect();

    let mut tests: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for claim in &claims {
        if let Some(test) = &claim.test {
            tests.entry(&claim.requirement).or_default().insert(test);
        }
    }
    let mut missing = Vec::new();
    let mut text = String::new();
    for (index, line) in table.lines().enumerate() {
        let filled = match row(line) {
            Some((requirement, words, third)) => {
                let cell = cell(third, tests.get(requirement));
                if cell == MISSING {
                    missing.push(requirement.to_string());
                }
                if cell != third && !fix {
                    let what = format!("the tests of `{requirement}` are out of date");
                    findings.push(Finding::new(TABLE, index + 1, what, "cargo xtask tidy --fix"));
                }
                format!("| {requirement} | {words} | {cell} |")
            }
            None => line.to_string(),
        };
        text.push_str(&filled);
        text.push('\n');
    }
    Coverage { findings, text, missing }
}

fn judge(claim: &Claim, rows: &BTreeSet<&str>) -> Option<Finding> {
    let Claim { path, line, requirement, test } = claim;
    if test.is_none() {
        let what = format!("`{MARK} {requirement}` stands above nothing that runs");
        return Some(Finding::new(path, *line, what, "put it directly above a test or a benchmark case"));
    }
    let what = format!("`{MARK} {requirement}` names no row of {TABLE}");
    (!rows.contains(requirement.as_str())).then(|| Finding::new(path, *line, what, "name a row as it is written there"))
}

/// What the third column should hold.
fn cell(present: &str, tests: Option<&BTreeSet<&str>>) -> String {
    if present.starts_with("reason:") {
        return present.to_string();
    }
    match tests {
        Some(tests) => tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", "),
        None => MISSING.to_string(),
    }
}

/// The three cells of a row; the head of a table and the line under it are none.
fn row(line: &str) -> Option<(&str, &str, &str)> {
    let inside = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    let mut cells = inside.splitn(3, " |").map(str::trim);
    let (requirement, words, third) = (cells.next()?, cells.next()?, cells.next()?);
    let numbered =
        requirement.split_once(' ').is_some_and(|(_, number)| number.starts_with(|c: char| c.is_ascii_digit()));
    numbered.then(|| (requirement, words.trim_start_matches('|').trim(), third.trim_start_matches('|').trim()))
}

fn claims(source: &Source) -> Vec<Claim> {
    let is_benchmark = source.path.starts_with("bench/");
    let mut claims = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let Some(words) = covers(line) else { continue };
        let number = index + 1;
        let function = source.functions.iter().find(|function| function.head.iter().any(|(at, _)| *at == number));
        let name = match function {
            Some(function) if function.is_test() || is_benchmark => Some(function.name.clone()),
            // A benchmark case may be an entry of a table, or a whole file.
            None if is_benchmark => case_below(source, number),
            _ => None,
        };
        let test = name.map(|name| match name.is_empty() {
            true => source.path.clone(),
            false => format!("{}::{name}", source.path),
        });
        claims.extend(requirements(words).map(|requirement| Claim {
            path: source.path.clone(),
            line: number,
            requirement,
            test: test.clone(),
        }));
    }
    claims
}

/// What follows `covers:` in a doc comment.
fn covers(line: &str) -> Option<&str> {
    let line = line.trim();
    let words = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
    words.trim().strip_prefix(MARK).map(str::trim)
}

/// `foundation 4, foundation 6` and, shorter, `foundation 4, 6`.
fn requirements(words: &str) -> impl Iterator<Item = String> {
    let mut issue = String::new();
    let parts: Vec<String> = words
        .trim_end_matches('.')
        .split(',')
        .map(|part| {
            let part = part.trim();
            match part.split_once(' ') {
                Some((name, _)) => {
                    issue = name.to_string();
                    part.to_string()
                }
                None => format!("{issue} {part}"),
            }
        })
        .collect();
    parts.into_iter()
}

/// The first quoted or named thing under a benchmark's doc comment; empty when the comment is the file's own.
fn case_below(source: &Source, number: usize) -> Option<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    if lines[number - 1].trim_start().starts_with("//!") {
        return Some(String::new());
    }
    let below = lines[number..]
        .iter()
        .map(|line| line.trim())
        .find(|line| !line.starts_with("//") && !line.starts_with("#["))?;
    if let Some(quoted) = below.split('"').nth(1) {
        return Some(quoted.to_string());
    }
    let mut words = below.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
    words.find(|word| !["pub", "const", "static", "struct", "enum", "mod", "crate"].contains(word)).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# Coverage\n\n| requirement | words | tests |\n|---|---|---|\n";

    /// covers: foundation 1
    #[test]
    fn the_third_column_follows_the_tests() {
        let check = |source: &str, rows: &str, expect: &str, missing: &[&str]| {
            let sources = [Source::new("e2e/tests/a.rs", source)];
            let seen = super::check(&sources, &format!("{HEAD}{rows}\n"), true);
            assert_eq!(seen.findings, [], "{source}");
            assert_eq!(seen.text, format!("{HEAD}{expect}\n"), "{source}");
            assert_eq!(seen.missing, missing, "{source}");
            let again = super::check(&sources, &seen.text, false);
            assert_eq!(again.findings, [], "what --fix writes is current");
        };
        let two = "/// covers: foundation 4\n#[test]\nfn b() {}\n\n/// Claim.\n///\n/// covers: foundation 4, 5\n#[test]\nfn a() {}\n";
        let filled = "| foundation 4 | supervisor | `e2e/tests/a.rs::a`, `e2e/tests/a.rs::b` |";
        check(
            two,
            "| foundation 4 | supervisor | |\n| foundation 5 | jobs | old |",
            &format!("{filled}\n| foundation 5 | jobs | `e2e/tests/a.rs::a` |"),
            &[],
        );
        check("", "| foundation 4 | supervisor | |", "| foundation 4 | supervisor | missing |", &["foundation 4"]);
        check(
            "",
            "| foundation 4 | supervisor | reason: seen by eye |",
            "| foundation 4 | supervisor | reason: seen by eye |",
            &[],
        );
        check("", "some words | between", "some words | between", &[]);
    }

    /// covers: foundation 1
    #[test]
    fn a_stale_table_and_a_false_claim_are_findings() {
        let check = |source: &str, expect: &[&str]| {
            let table = format!("{HEAD}| foundation 4 | supervisor | missing |\n");
            let seen = super::check(&[Source::new("crates/a/src/lib.rs", source)], &table, false);
            let seen: Vec<_> = seen.findings.iter().map(|finding| finding.what.as_str()).collect();
            assert_eq!(seen, expect, "{source}");
        };
        check("", &[]);
        check("/// covers: foundation 4\n#[test]\nfn a() {}", &["the tests of `foundation 4` are out of date"]);
        check(
            "/// covers: foundation 40\n#[test]\nfn a() {}",
            &["`covers: foundation 40` names no row of COVERAGE.md"],
        );
        check("/// covers: foundation 4\nfn a() {}", &["`covers: foundation 4` stands above nothing that runs"]);
        check(
            "/// covers: foundation 4\n\n#[test]\nfn a() {}",
            &["`covers: foundation 4` stands above nothing that runs"],
        );
    }

    /// covers: foundation 1
    #[test]
    fn benchmark_cases_cover_too() {
        let check = |source: &str, expect: &str| {
            let claims = claims(&Source::new("bench/src/a.rs", source));
            let seen: Vec<_> = claims.iter().filter_map(|claim| claim.test.as_deref()).collect();
            assert_eq!(seen, [expect], "{source}");
        };
        check("/// covers: foundation 10\npub fn footprint() {}", "bench/src/a.rs::footprint");
        check("/// covers: foundation 10\n(\"proxy-http1\", run),", "bench/src/a.rs::proxy-http1");
        check("/// covers: foundation 10\npub const CASE: Case = x;", "bench/src/a.rs::CASE");
        check("//! Job.\n//! covers: foundation 10\n", "bench/src/a.rs");
    }

    /// covers: foundation 1
    #[test]
    fn a_missing_table_is_one_finding() {
        let seen = super::check(&[], "", false);
        assert_eq!(seen.findings.len(), 1);
    }
}
