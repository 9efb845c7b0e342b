//! Programs of this workspace, built as a task needs them.
//! In: a profile and package names. Out: the path of each program, as cargo itself tells it.
//! Bound: paths are never guessed: they depend on the target that .cargo/config.toml names.

use crate::shell::{self, Outcome};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The program that everything here is about.
pub const NAME: &str = "outrigger";

/// The product as tests, end-to-end runs and the demo's check use it.
pub fn for_tests() -> Outcome<PathBuf> {
    program(&build("ci", &[NAME])?, NAME)
}

/// The product with faults on request, for the tests of chaos and of the sandbox. Built apart, so that nothing of its feature can
/// get into the product.
pub const FAULTS: &str = "outrigger-faults";

pub fn with_faults() -> Outcome<PathBuf> {
    let words = ["build", "--profile", "ci", "--message-format=json-render-diagnostics", "-p", NAME];
    let mut command = shell::cargo(&words);
    command.args(["--bin", FAULTS, "--features", "fault-injection"]);
    program(&programs(&shell::output(&mut command)?), FAULTS)
}

/// The programs that tests start and that are no part of the product. Naming `--test` leaves them out, so that they are built apart.
pub fn examples() -> Outcome {
    shell::run(&mut shell::cargo(&["build", "--workspace", "--examples", "--profile", "ci"]))
}

/// Builds packages and returns their programs by name; compiler messages go to stderr as always.
pub fn build(profile: &str, packages: &[&str]) -> Outcome<BTreeMap<String, PathBuf>> {
    let mut words = vec!["build", "--profile", profile, "--message-format=json-render-diagnostics"];
    for package in packages {
        words.extend(["-p", package]);
    }
    Ok(programs(&shell::output(&mut shell::cargo(&words))?))
}

pub fn program(programs: &BTreeMap<String, PathBuf>, name: &str) -> Outcome<PathBuf> {
    programs.get(name).cloned().ok_or(format!("cargo built no program `{name}`"))
}

/// One JSON object a line; those of programs name the executable.
fn programs(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let executable = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_string(), PathBuf::from(executable)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 9
    #[test]
    fn programs_are_where_cargo_says_they_are() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"base"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"outrigger"},"executable":"/t/host/ci/outrigger"}
{"reason":"build-finished","success":true}
not json"#;
        let programs = programs(messages);
        assert_eq!(program(&programs, "outrigger"), Ok(PathBuf::from("/t/host/ci/outrigger")));
        assert!(program(&programs, "base").is_err_and(|error| error.contains("base")));
    }
}
