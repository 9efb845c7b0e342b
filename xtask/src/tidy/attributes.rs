//! Rules on single lines: `allow` has a reason, unsafe code stays in `sys`, no code is unfinished, no test waits a fixed time.
//! In: the sources. Out: a finding at the line.
//! Bound: strings and comments are not checked.

use super::source::end_of_brackets;
use super::{Finding, Source};

/// The only crate that may make system calls without a safe wrapper.
const UNSAFE_HOME: &str = "crates/sys/";

pub fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().flat_map(check_source).collect()
}

fn check_source(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |offset: usize, what: &str, help: &str| {
        findings.push(Finding::new(&source.path, source.line_at(offset), what, help));
    };
    for (offset, arguments) in lint_attributes(source, "allow(") {
        if !arguments.contains("reason") {
            add(offset, "`allow` without a reason", "add `reason = \"…\"`, or better an `expect` with one");
        }
    }
    for word in ["allow(", "expect("] {
        for (offset, arguments) in lint_attributes(source, word) {
            if arguments.contains("unsafe_code") && !source.path.starts_with(UNSAFE_HOME) {
                add(offset, "unsafe code outside `sys`", "move the call into crates/sys behind a safe function");
            }
        }
    }
    for unfinished in ["todo!", "unimplemented!"] {
        for offset in source.words(unfinished) {
            add(offset, &format!("`{unfinished}` is left in the code"), "implement it, or remove the unfinished kind");
        }
    }
    for (offset, _) in source.code.match_indices("#[ignore") {
        add(offset, "a test is ignored", "fix or remove it; a missing peer is a skip, by name");
    }
    findings.extend(fixed_waits(source));
    findings
}

/// The position of each attribute that sets a lint level, and the content of its parentheses.
fn lint_attributes<'a>(source: &'a Source, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    source.words(word).filter_map(move |offset| {
        let before = source.code[..offset].trim_end();
        let attribute = before.ends_with("#[") || before.ends_with("#![") || in_cfg_attr(before);
        let open = offset + word.len() - 1;
        let end = end_of_brackets(&source.code, open)?;
        attribute.then(|| (offset, &source.code[open..end]))
    })
}

/// `#[cfg_attr(test, allow(…))]`: a level set under a condition.
fn in_cfg_attr(before: &str) -> bool {
    let Some(start) = before.rfind("cfg_attr(") else { return false };
    let open = start + "cfg_attr".len();
    end_of_brackets(before, open).is_none()
}

/// A test that sleeps a fixed time is slow on a fast machine and fails on a slow one.
fn fixed_waits(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("e2e/") {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let explained = |line: usize| {
        let same = lines.get(line - 1).is_some_and(|text| text.contains("// why:"));
        // rustfmt moves a long comment above its line.
        let above = line >= 2 && lines.get(line - 2).is_some_and(|text| text.trim_start().starts_with("// why:"));
        same || above
    };
    let waits = source.words("sleep(").map(|offset| source.line_at(offset)).filter(|line| !explained(*line));
    let help = "await the condition, or explain the time in a `// why:` comment";
    waits.map(|line| Finding::new(&source.path, line, "a test sleeps", help)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_checked() {
        let check = |path: &str, text: &str, expect: &[&str]| {
            let seen = super::check(&[Source::new(path, text)]);
            let seen: Vec<_> = seen.iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect();
            assert_eq!(seen, expect, "{text}");
        };
        check("a.rs", "#[allow(dead_code)]\nfn f() {}", &["1: `allow` without a reason"]);
        check("a.rs", "#![allow(dead_code, reason = \"x\")]", &[]);
        check("a.rs", "#[allow(\n    dead_code,\n    reason = \"x\"\n)]", &[]);
        check("a.rs", "#[cfg_attr(test, allow(dead_code))]", &["1: `allow` without a reason"]);
        check("a.rs", "fn allow(x: u8) {}\nlet y = rules.allow(1);", &[]);
        check("a.rs", "#[expect(unsafe_code, reason = \"x\")]", &["1: unsafe code outside `sys`"]);
        check("crates/sys/src/lib.rs", "#![allow(unsafe_code, reason = \"x\")]", &[]);
        check("a.rs", "\ntodo!()", &["2: `todo!` is left in the code"]);
        check("a.rs", "// todo!()\nlet a = \"unimplemented!()\";", &[]);
        check("a.rs", "unimplemented!()", &["1: `unimplemented!` is left in the code"]);
        check("a.rs", "#[ignore = \"slow\"]", &["1: a test is ignored"]);
        check("e2e/tests/e2e/main.rs", "thread::sleep(second);", &["1: a test sleeps"]);
        check("e2e/tests/e2e/main.rs", "sleep(second); // why: the poll interval itself is tested", &[]);
        check("e2e/tests/e2e/main.rs", "// why: the poll interval itself is tested\nsleep(second);", &[]);
        check("crates/logs/src/run.rs", "sleep(second);", &[]);
    }
}
