//! The counts of a test run: passed, failed, skipped.
//! In: the lines that test programs print, and the file in which skipped tests record their names. Out: one line.
//! Bound: a skipped test returns early and so counts as passed for its test program; here it does not.

use crate::shell::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

#[derive(Default)]
pub struct Tally {
    reported_passed: usize,
    failed: usize,
    /// Ignored by the test program itself, such as an example in a documentation comment.
    ignored: usize,
    failures: BTreeSet<String>,
    skips: BTreeMap<String, String>,
}

impl Tally {
    /// Parses one line of a test program's output; most are irrelevant.
    pub fn line(&mut self, line: &str) {
        if let Some((_, counts)) = line.split_once("test result: ") {
            self.reported_passed += number_before(counts, " passed");
            self.failed += number_before(counts, " failed");
            self.ignored += number_before(counts, " ignored");
        }
        let failed = line.trim_end().strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        if let Some(name) = failed {
            self.failures.insert(name.to_string());
        }
    }

    /// A failure that is not a test's: of a build, or of a killed test program.
    pub fn fail(&mut self, name: String) {
        self.failed += 1;
        self.failures.insert(name);
    }

    /// Parses the file of skips: `name<TAB>reason` a line. A test that failed as well stays failed.
    pub fn skips(&mut self, file: &str) {
        for line in file.lines().filter(|line| !line.trim().is_empty()) {
            let (name, reason) = line.split_once('\t').unwrap_or((line, "no reason given"));
            if !self.failures.contains(name) {
                self.skips.insert(name.to_string(), reason.to_string());
            }
        }
    }

    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Names of failures and skips, for the terminal.
    pub fn names(&self) -> String {
        let skips = self.skips.iter().map(|(name, reason)| format!("skipped: {name}: {reason}\n"));
        let failures = self.failures.iter().map(|name| format!("failed: {name}\n"));
        skips.chain(failures).collect()
    }

    /// Skips that no line of the committed list allows.
    pub fn skips_not_in(&self, allowed: &str) -> Vec<&str> {
        let listed: BTreeSet<&str> = allowed
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split('\t').next())
            .map(str::trim)
            .collect();
        self.skips.keys().map(String::as_str).filter(|name| !listed.contains(name)).collect()
    }

    /// No failure, and at least one test that ran: an empty run proves nothing.
    pub fn outcome(&self) -> Outcome {
        match (self.failed, self.passed()) {
            (0, 0) => Err("no test ran. help: check the filter".to_string()),
            (0, _) => Ok(()),
            (1, _) => Err("1 test failed".to_string()),
            (many, _) => Err(format!("{many} tests failed")),
        }
    }

    fn passed(&self) -> usize {
        self.reported_passed.saturating_sub(self.skips.len())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.skips.len() + self.ignored;
        write!(out, "{} passed, {} failed, {skipped} skipped", self.passed(), self.failed)
    }
}

fn number_before(text: &str, word: &str) -> usize {
    let before = text.split(word).next().filter(|before| before.len() < text.len());
    let number = before.and_then(|before| before.rsplit([' ', '\t']).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_summed_and_a_skip_is_not_a_pass() {
        let check = |lines: &[&str], skips: &str, expect: &str, sound: bool| {
            let mut tally = Tally::default();
            lines.iter().for_each(|line| tally.line(line));
            tally.skips(skips);
            assert_eq!(tally.to_string(), expect, "{lines:?}");
            assert_eq!(tally.outcome().is_ok(), sound, "{lines:?}");
        };
        let three = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        let mixed = "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2s";
        check(&[], "", "0 passed, 0 failed, 0 skipped", false);
        check(&["running 3 tests", "test a ... ok", three], "", "3 passed, 0 failed, 1 skipped", true);
        check(&[three, three], "a\tno nginx\nb\tno sshd\n\n", "4 passed, 0 failed, 4 skipped", true);
        check(&["test c::d ... FAILED", mixed], "c::d\tno nginx\n", "4 passed, 1 failed, 0 skipped", false);
        check(&[three], "a\tx\na\ty\n", "2 passed, 0 failed, 2 skipped", true);
        check(&[three], "a\tx\nb\tx\nc\tx\n", "0 passed, 0 failed, 4 skipped", false);
    }

    #[test]
    fn failures_and_skips_are_named() {
        let mut tally = Tally::default();
        tally.line("test c::d ... FAILED");
        tally.fail("the build of outrigger".to_string());
        tally.skips("a\tno nginx\nb");
        assert_eq!(
            tally.names(),
            "skipped: a: no nginx\nskipped: b: no reason given\nfailed: c::d\nfailed: the build of outrigger\n"
        );
    }

    #[test]
    fn only_listed_skips_are_allowed() {
        let mut tally = Tally::default();
        tally.skips("a\tno nginx\nb\tno sshd\n");
        assert_eq!(tally.skips_not_in("# why\na\tneeds root\n"), ["b"]);
        assert_eq!(tally.skips_not_in("a\nb\n"), Vec::<&str>::new());
        assert_eq!(tally.skips_not_in(""), ["a", "b"]);
    }
}
