//! Programs of this workspace, built as a task needs them.
//! In: a profile and package names. Out: the path of each program, as cargo reports it.
//! Bound: paths are never guessed: they depend on the target in .cargo/config.toml.

use crate::shell::{self, Outcome};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The name of the product's package and program.
pub const NAME: &str = "outrigger";

/// The product as tests, end-to-end runs and the demo's check use it.
pub fn for_tests() -> Outcome<PathBuf> {
    program(&build("ci", &[NAME])?, NAME)
}

/// The product with fault injection, for the tests of chaos and of the sandbox. Built separately, so that nothing of its feature
/// can get into the product.
pub const FAULTS: &str = "outrigger-faults";

pub fn with_faults() -> Outcome<PathBuf> {
    let words = ["build", "--profile", "ci", "--message-format=json-render-diagnostics", "-p", NAME];
    let mut command = shell::cargo(&words);
    command.args(["--bin", FAULTS, "--features", "fault-injection"]);
    program(&programs(&shell::output(&mut command)?), FAULTS)
}

/// The programs that tests start and that are not part of the product. `--test` does not build them, so this does.
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

/// One JSON object a line; those of programs contain the path of the executable.
pub fn programs(messages: &str) -> BTreeMap<String, PathBuf> {
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

    #[test]
    fn program_paths_are_read_from_cargo_messages() {
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
