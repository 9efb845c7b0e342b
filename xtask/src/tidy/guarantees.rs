//! Rule: each guarantee of docs/guarantees.md has one to three tests, and each `Guarantee: id` is above a test and names a row.
//! In: the table's rows and the doc comments of tests. Out: findings. Limits: `TESTS_MAX` tests for each guarantee, so that a reader
//! finds the proof.

use super::{Finding, Source};
use std::collections::BTreeMap;

pub const TABLE: &str = "docs/guarantees.md";

const MARK: &str = "Guarantee:";

const TESTS_MAX: usize = 3;

pub fn check(sources: &[Source], table: &str) -> Vec<Finding> {
    if table.is_empty() {
        return vec![Finding::new(TABLE, 1, "the table of guarantees is missing", "write rows: | `id` | sentence |")];
    }
    let mut findings = Vec::new();
    let mut tests: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (index, line) in table.lines().enumerate() {
        let Some(id) = row(line) else { continue };
        if tests.insert(id, (index + 1, 0)).is_some() {
            findings.push(Finding::new(TABLE, index + 1, format!("duplicate guarantee `{id}`"), "remove one row"));
        }
    }
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            let line_number = index + 1;
            for id in ids(line) {
                let mut finding = |what: String, help: &str| {
                    findings.push(Finding::new(&source.path, line_number, what, help));
                };
                let is_above = |head: &[(usize, String)]| head.iter().any(|(at, _)| *at == line_number);
                if !source.functions.iter().any(|function| function.is_test() && is_above(&function.head)) {
                    finding(format!("`{MARK} {id}` is not above a test"), "move it directly above the test");
                }
                match tests.get_mut(id) {
                    Some((_, count)) => *count += 1,
                    None => finding(format!("unknown guarantee `{id}`"), "add its row to docs/guarantees.md"),
                }
            }
        }
    }
    for (id, (line, count)) in tests {
        if !(1..=TESTS_MAX).contains(&count) {
            let what = format!("the guarantee `{id}` has {count} tests, expected 1 to {TESTS_MAX}");
            findings.push(Finding::new(TABLE, line, what, "write `/// Guarantee: id` above the tests that prove it"));
        }
    }
    findings
}

/// The id of a row; the head of a table has none.
fn row(line: &str) -> Option<&str> {
    line.strip_prefix("| `")?.split_once('`').map(|(id, _)| id)
}

/// The ids that a doc comment names.
fn ids(line: &str) -> impl Iterator<Item = &str> {
    let named = line.trim().strip_prefix("///").and_then(|text| text.trim().strip_prefix(MARK));
    named.unwrap_or_default().split(',').map(str::trim).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarantees_and_tests_are_checked_both_ways() {
        let check = |source: &str, rows: &str, expect: &[&str]| {
            let table = format!("# Guarantees\n\n| id | guarantee |\n|---|---|\n{rows}\n");
            let found = super::check(&[Source::new("e2e/tests/a.rs", source)], &table);
            let found: Vec<_> = found.iter().map(|finding| finding.what.as_str()).collect();
            assert_eq!(found, expect, "{source}");
        };
        let test = |id: &str, name: &str| format!("/// Guarantee: {id}\n#[test]\nfn {name}() {{}}\n");
        check(&test("no-loss", "a"), "| `no-loss` | No line is lost. |", &[]);
        check(&test("no-loss, order", "a"), "| `no-loss` | A. |\n| `order` | B. |", &[]);
        check("", "| `no-loss` | A. |", &["the guarantee `no-loss` has 0 tests, expected 1 to 3"]);
        let four: String = ["a", "b", "c", "d"].map(|name| test("no-loss", name)).concat();
        check(&four, "| `no-loss` | A. |", &["the guarantee `no-loss` has 4 tests, expected 1 to 3"]);
        check(&test("order", "a"), "", &["unknown guarantee `order`"]);
        check(
            &format!("{}/// Guarantee: no-loss\nfn b() {{}}\n", test("no-loss", "a")),
            "| `no-loss` | A. |",
            &["`Guarantee: no-loss` is not above a test"],
        );
        check(&test("no-loss", "a"), "| `no-loss` | A. |\n| `no-loss` | B. |", &["duplicate guarantee `no-loss`"]);
    }

    #[test]
    fn a_missing_table_is_one_finding() {
        assert_eq!(super::check(&[], "").len(), 1);
    }
}
