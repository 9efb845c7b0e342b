//! Rule: which crate of the workspace may import which. Only the binary imports several subsystems.
//! In: the members of the workspace. Out: a finding at the manifest line that breaks the table.
//! Limits: the table below is complete; a crate that is not in it is itself a finding.

use super::{Finding, Workspace};

/// Crate, the crates that it may import, and why no more.
const ALLOWED: [(&str, &[&str], &str); 18] = [
    ("sys", &[], "sys is below everything, so that unsafe code depends on no other crate"),
    ("base", &["sys"], "base is below all other crates but sys"),
    ("config", &["base"], "configuration knows no subsystem: a section is a type of the crate that uses it"),
    ("sandbox", &[], "the sandbox uses the kernel and no other crate"),
    ("detect", &["sys"], "detect inspects an app from outside, and uses signals as data from sys"),
    ("supervisor", &["sys"], "the supervisor survives every bug of the other crates by importing none of them"),
    ("net", &["base", "config"], "net serves subsystems and knows none"),
    ("delivery", &["base", "config", "net"], "delivery knows neither a subsystem nor a protocol"),
    (
        "logs",
        &["base", "config", "net", "delivery", "sys"],
        "subsystems are combined in the binary's compose.rs only, and the capture ring is read through sys",
    ),
    ("metrics", &["base", "config", "net", "delivery"], "subsystems are combined in the binary's compose.rs only"),
    (
        "sync",
        &["base", "config", "net", "sys"],
        "subsystems are combined in the binary's compose.rs only, and sys terminates ssh together with its fetch",
    ),
    (
        "proxy",
        &["base", "config"],
        "subsystems are combined in the binary's compose.rs only, and the data path connects by itself",
    ),
    ("admin", &["base", "config", "net"], "admin sees subsystems through base's traits, and serves its pages by net"),
    ("e2e", &[], "end-to-end tests drive the real process from outside"),
    ("bench", &[], "benchmarks drive the real process from outside"),
    ("fuzz", EVERYTHING, "fuzz targets call every parser"),
    ("xtask", &[], "xtask compiles before everything else"),
    ("outrigger", EVERYTHING, "the binary combines everything"),
];

const EVERYTHING: &[&str] = &[
    "sys",
    "sandbox",
    "detect",
    "base",
    "config",
    "supervisor",
    "net",
    "delivery",
    "logs",
    "metrics",
    "sync",
    "proxy",
    "admin",
];

pub fn check(workspace: &Workspace, read: &dyn Fn(&str) -> String) -> Vec<Finding> {
    let mut findings = Vec::new();
    for member in &workspace.members {
        let manifest = read(&member.manifest);
        let Some((_, allowed, why)) = ALLOWED.iter().find(|(name, ..)| *name == member.name) else {
            let what = format!("no rule says what crate `{}` may import", member.name);
            findings.push(Finding::new(&member.manifest, 1, what, "add it to the table in xtask/src/tidy/imports.rs"));
            continue;
        };
        for import in member.imports.iter().filter(|import| !allowed.contains(&import.as_str())) {
            let what = format!("`{}` imports `{import}`, but {why}", member.name);
            findings.push(Finding::new(&member.manifest, line_of(&manifest, import), what, help(allowed)));
        }
    }
    findings
}

fn help(allowed: &[&str]) -> String {
    match allowed {
        [] => "remove the dependency: it may import no crate of the workspace".to_string(),
        some => format!("remove the dependency: it may import {}", some.join(", ")),
    }
}

fn line_of(manifest: &str, import: &str) -> usize {
    let is_entry = |line: &str| line.strip_prefix(import).is_some_and(|rest| rest.starts_with([' ', '.', '=']));
    manifest.lines().position(is_entry).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::workspace::{Member, Shipped};

    fn check_one(name: &str, imports: &[&str]) -> Vec<String> {
        let member = Member {
            name: name.to_string(),
            manifest: "Cargo.toml".to_string(),
            imports: imports.iter().map(|import| import.to_string()).collect(),
            tests: vec![],
        };
        let workspace = Workspace { members: vec![member], shipped: Shipped::default() };
        let manifest = |_: &str| imports.iter().map(|import| format!("{import}.workspace = true\n")).collect();
        check(&workspace, &manifest).into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn crates_import_only_what_the_table_allows() {
        let check = |name: &str, imports: &[&str], expect: &[&str]| {
            let seen = check_one(name, imports);
            assert_eq!(seen.len(), expect.len(), "{name} {imports:?}: {seen:?}");
            for (seen, expect) in seen.iter().zip(expect) {
                assert!(seen.starts_with(expect), "{seen}");
            }
        };
        check("outrigger", &["base", "logs", "metrics", "sync", "proxy", "admin", "supervisor", "sys"], &[]);
        check("logs", &["base", "config", "net", "sys"], &[]);
        check("logs", &["base", "metrics"], &["2: `logs` imports `metrics`"]);
        check("proxy", &["base", "logs", "sync"], &["2: `proxy` imports `logs`", "3: `proxy` imports `sync`"]);
        check("admin", &["logs"], &["1: `admin` imports `logs`"]);
        check("base", &["sys"], &[]);
        check("base", &["net"], &["1: `base` imports `net`"]);
        check("supervisor", &["base"], &["1: `supervisor` imports `base`"]);
        check("sys", &["base"], &["1: `sys` imports `base`"]);
        check("e2e", &["proxy"], &["1: `e2e` imports `proxy`"]);
        check("xtask", &["base"], &["1: `xtask` imports `base`"]);
        check("newcomer", &["base"], &["1: no rule says"]);
    }

    #[test]
    fn the_table_allows_only_crates_that_it_lists() {
        for (name, allowed, _) in ALLOWED {
            for import in allowed {
                assert!(ALLOWED.iter().any(|(known, ..)| known == import), "{name} may import unknown {import}");
            }
        }
    }
}
