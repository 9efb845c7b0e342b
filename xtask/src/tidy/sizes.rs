//! Rule: files stop at 600 lines without their tests, functions at 70; an excess has a reason and may only shrink.
//! In: the sources and the ratchet. Out: findings, and the ratchet as it should be.
//! Bound: a new entry of the ratchet needs a `// size:` comment with the reason, and an entry never grows.

use super::source::Function;
use super::{Finding, Ratchet, Source};
use std::collections::BTreeMap;

pub const RATCHET: &str = "xtask/size-ratchet.txt";
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const REASON: &str = "// size:";

const HEADER: &str = "\
# Files and functions over the size limit: a path, or path::function, and its lines. Maintained by `cargo xtask tidy --fix`.
# An entry may only shrink. A new one needs a `// size:` comment with the reason in the code.
";

/// Something larger than its limit.
struct Excess {
    key: String,
    path: String,
    line: usize,
    lines: usize,
    limit: usize,
    reasoned: bool,
}

pub fn check(sources: &[Source], ratchet: &str, fix: bool) -> Ratchet {
    let recorded = parse(ratchet);
    let mut kept = BTreeMap::new();
    let mut findings = Vec::new();
    for excess in sources.iter().flat_map(excesses) {
        let recorded = recorded.get(&excess.key).copied();
        match evaluate(&excess, recorded, fix) {
            Ok(lines) => {
                kept.insert(excess.key, lines);
            }
            Err((what, help)) => {
                findings.push(Finding::new(&excess.path, excess.line, what, help));
                // A breach changes nothing in the ratchet: --fix never hides it.
                if let Some(lines) = recorded {
                    kept.insert(excess.key, lines);
                }
            }
        }
    }
    let obsolete = recorded.keys().filter(|key| !kept.contains_key(*key));
    if !fix {
        findings.extend(obsolete.map(|key| {
            Finding::new(
                RATCHET,
                line_of(ratchet, key),
                format!("`{key}` is no longer too large"),
                "cargo xtask tidy --fix",
            )
        }));
    }
    Ratchet { findings, text: print(&kept) }
}

/// The lines to record, or the error.
fn evaluate(excess: &Excess, recorded: Option<usize>, fix: bool) -> Result<usize, (String, String)> {
    let Excess { key, lines, limit, .. } = excess;
    match recorded {
        Some(before) if *lines > before => Err((
            format!("`{key}` has grown from {before} to {lines} lines, over the {limit} allowed"),
            "split it: an excess may only shrink".to_string(),
        )),
        Some(before) if *lines < before && !fix => Err((
            format!("`{key}` has shrunk from {before} to {lines} lines"),
            "cargo xtask tidy --fix records it, so that it cannot grow back".to_string(),
        )),
        Some(_) => Ok(*lines),
        None if !excess.reasoned => Err((
            format!("`{key}` has {lines} lines, over the {limit} allowed"),
            format!("split it, or give the reason in a `{REASON}` comment and run `cargo xtask tidy --fix`"),
        )),
        None if !fix => Err((
            format!("`{key}` has {lines} lines with a reason, but is not in {RATCHET}"),
            "cargo xtask tidy --fix records it".to_string(),
        )),
        None => Ok(*lines),
    }
}

fn excesses(source: &Source) -> Vec<Excess> {
    let mut excesses = Vec::new();
    let lines = source.lines_without_tests();
    if lines > FILE_LINES_MAX {
        excesses.push(Excess {
            key: source.path.clone(),
            path: source.path.clone(),
            line: 1,
            lines,
            limit: FILE_LINES_MAX,
            reasoned: has_own_reason(source),
        });
    }
    let long = source.functions.iter().filter(|function| function.lines() > FUNCTION_LINES_MAX);
    excesses.extend(long.map(|function| Excess {
        key: format!("{}::{}", source.path, function.name),
        path: source.path.clone(),
        line: function.first,
        lines: function.lines(),
        limit: FUNCTION_LINES_MAX,
        reasoned: function.head.iter().any(|(_, line)| line.starts_with(REASON)),
    }));
    excesses
}

/// A reason of the file, not of one of its functions.
fn has_own_reason(source: &Source) -> bool {
    let of_a_function = |line: usize| {
        source.functions.iter().any(|Function { head, .. }| head.iter().any(|(number, _)| *number == line))
    };
    let lines = source.text.lines().enumerate();
    lines.into_iter().any(|(index, line)| line.trim_start().starts_with(REASON) && !of_a_function(index + 1))
}

fn parse(ratchet: &str) -> BTreeMap<String, usize> {
    let entries = ratchet.lines().filter(|line| !line.starts_with('#'));
    entries
        .filter_map(|line| {
            let (key, lines) = line.trim().rsplit_once(' ')?;
            Some((key.trim().to_string(), lines.parse().ok()?))
        })
        .collect()
}

fn print(entries: &BTreeMap<String, usize>) -> String {
    let lines = entries.iter().map(|(key, lines)| format!("{key} {lines}\n"));
    format!("{HEADER}{}", lines.collect::<String>())
}

fn line_of(ratchet: &str, key: &str) -> usize {
    ratchet.lines().position(|line| line.starts_with(key)).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `lines` lines whose first function has `body` lines, with a comment above each.
    fn file(lines: usize, of_file: &str, body: usize, of_function: &str) -> String {
        let mut text =
            format!("//! Job.\n{of_file}\n\n{of_function}\nfn long() {{\n{}}}\n", "    x;\n".repeat(body - 2));
        while text.lines().count() < lines {
            text.push_str("const X: u8 = 1;\n");
        }
        text
    }

    #[test]
    fn an_excess_needs_a_reason_and_may_only_shrink() {
        let check = |text: &str, ratchet: &str, fix: bool, expect: &str, entries: &str| {
            let kept = super::check(&[Source::new("a.rs", text)], ratchet, fix);
            let seen: Vec<_> = kept.findings.iter().map(|finding| finding.what.as_str()).collect();
            assert_eq!(seen.join("; "), expect, "ratchet {ratchet:?}, fix {fix}");
            assert_eq!(kept.text, format!("{HEADER}{entries}"), "ratchet {ratchet:?}, fix {fix}");
        };
        let why = "// size: a table";
        check(&file(600, "", 70, ""), "", false, "", "");
        check(&file(601, "", 70, ""), "", true, "`a.rs` has 601 lines, over the 600 allowed", "");
        check(&file(99, "", 71, ""), "", true, "`a.rs::long` has 71 lines, over the 70 allowed", "");
        check(&file(601, why, 71, why), "", true, "", "a.rs 601\na.rs::long 71\n");
        check(
            &file(601, why, 70, ""),
            "",
            false,
            "`a.rs` has 601 lines with a reason, but is not in xtask/size-ratchet.txt",
            "",
        );
        check(&file(601, "", 70, why), "", true, "`a.rs` has 601 lines, over the 600 allowed", "");
        check(&file(650, why, 70, ""), "a.rs 650\n", false, "", "a.rs 650\n");
        check(
            &file(651, why, 70, ""),
            "a.rs 650\n",
            true,
            "`a.rs` has grown from 650 to 651 lines, over the 600 allowed",
            "a.rs 650\n",
        );
        check(&file(640, why, 70, ""), "a.rs 650\n", true, "", "a.rs 640\n");
        check(&file(640, why, 70, ""), "a.rs 650\n", false, "`a.rs` has shrunk from 650 to 640 lines", "a.rs 650\n");
        check(&file(99, "", 9, ""), "a.rs::long 80\n", false, "`a.rs::long` is no longer too large", "");
        check(&file(99, "", 9, ""), "a.rs::long 80\n", true, "", "");
    }

    #[test]
    fn tests_do_not_count_as_lines_of_a_file() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    const X: u8 = 1;\n".repeat(400));
        let kept = super::check(&[Source::new("a.rs", &format!("{}{tests}", file(600, "", 9, "")))], "", false);
        assert_eq!(kept.findings, []);
    }
}
