//! Rule: a library in the workspace's manifest has its reason in a comment directly above it.
//! In: the root Cargo.toml. Out: a finding for each bare line.
//! Bound: crates of the workspace need no reason; their `path` distinguishes them from libraries.

use super::Finding;

const SECTION: &str = "[workspace.dependencies]";

pub fn check(path: &str, manifest: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut inside = false;
    let mut depth = 0usize;
    let mut above = "";
    for (index, line) in manifest.lines().enumerate() {
        let trimmed = line.trim();
        if depth == 0 && trimmed.starts_with('[') {
            inside = trimmed == SECTION;
        } else if inside && !trimmed.starts_with('#') {
            let opens_entry = depth == 0 && trimmed.contains('=');
            if opens_entry && !is_workspace_crate(trimmed) && !is_reason(above) {
                let name = trimmed.split(['=', '.', ' ']).next().unwrap_or_default();
                let what = format!("dependency `{name}` has no reason");
                findings.push(Finding::new(path, index + 1, what, "add one comment line above it with the reason"));
            }
            depth = (depth + trimmed.matches(['[', '{']).count()).saturating_sub(trimmed.matches([']', '}']).count());
        }
        above = trimmed;
    }
    findings
}

fn is_workspace_crate(entry: &str) -> bool {
    entry.contains("path = \"crates/")
}

fn is_reason(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|words| words.split_whitespace().count() >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_has_a_reason_above_it() {
        let check = |entries: &str, expect: &[&str]| {
            let manifest =
                format!("[workspace]\nmembers = []\n\n{SECTION}\n{entries}\n\n[profile.dev]\nopt-level = 1\n");
            let seen = super::check("Cargo.toml", &manifest);
            let seen: Vec<_> = seen.iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect();
            assert_eq!(seen, expect, "{entries}");
        };
        check("# Byte search.\nmemchr = \"2\"", &[]);
        check("memchr = \"2\"", &["5: dependency `memchr` has no reason"]);
        check("# One reason.\na = \"1\"\nb = \"2\"", &["7: dependency `b` has no reason"]);
        check("# One reason.\n\na = \"1\"", &["7: dependency `a` has no reason"]);
        check("#\na = \"1\"", &["6: dependency `a` has no reason"]);
        check("# Why not.\na = { version = \"1\", features = [\n  \"x\",\n] }", &[]);
        check("base = { path = \"crates/base\" }", &[]);
    }
}
