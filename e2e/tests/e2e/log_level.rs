//! The level and the format of Outrigger's own log: from the command line, the environment, and changed at runtime. In: flags and
//! variables. Out: lines on stderr.

use crate::harness::outrigger::outrigger;
use crate::harness::{Outrigger, PATIENCE, Scene, Wait, until};
use std::process::Command;

/// A minimal configuration; the stop logs `stopping` at level info.
const BODY: &str = r#"
logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }
"#;

/// Starts it with further arguments behind `run`, and returns what it has logged when it has stopped.
fn logged(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let scene = Scene::new();
    let running = Outrigger::start_with(&scene, BODY, &["sleep", "300"], Wait::Ready, |command| {
        let given: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let mut changed = Command::new(command.get_program());
        changed.args(given.iter().take(1)).args(arguments).args(given.iter().skip(1));
        changed.envs(variables.iter().copied());
        *command = changed;
    });
    running.finish().stderr
}

/// JSON is the default on a pipe; text and JSON can be chosen.
#[test]
fn log_format_is_chosen_by_flag() {
    let is_json = |text: &str| {
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("stopping")).collect();
        assert!(!lines.is_empty(), "a message about the stop in: {text}");
        lines.iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
    };
    assert!(is_json(&logged(&[], &[])), "a pipe gets JSON");
    assert!(is_json(&logged(&["--log-format", "json"], &[])));
    assert!(!is_json(&logged(&["--log-format", "text"], &[])));
    let (code, _, stderr) = outrigger(&["run", "--log-format", "xml"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(["auto", "text", "json"].iter().all(|format| stderr.contains(format)), "{stderr}");
}

/// The flag wins over the variable.
#[test]
fn log_level_comes_from_flag_or_variable() {
    let variable = [("OUTRIGGER_LOG_LEVEL", "error")];
    assert!(logged(&[], &[]).contains("stopping"), "info is the default");
    assert!(!logged(&["--log-level", "error"], &[]).contains("stopping"));
    assert!(!logged(&[], &variable).contains("stopping"));
    assert!(logged(&["--log-level", "info"], &variable).contains("stopping"));
    assert!(logged(&[], &[("OUTRIGGER_LOG_LEVEL", "")]).contains("stopping"), "an empty variable is the default");
    for level in ["loud", "3"] {
        let (code, _, stderr) = outrigger(&["run", "--log-level", level]);
        assert!(code == 1 && stderr.contains("expected error, warn, info"), "{level}: {stderr}");
    }
}

/// `outrigger log-level` changes the level of the running process, and rejects an unknown one.
#[test]
fn log_level_command_changes_the_level() {
    let scene = Scene::new();
    let running = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let socket = scene.text_path("run/admin.sock");
    let (code, _, stderr) = outrigger(&["log-level", "louder", "--socket", &socket]);
    assert_ne!(code, 0, "{stderr}");
    let set = |level: &str| {
        let (code, _, stderr) = outrigger(&["log-level", level, "--socket", &socket]);
        assert_eq!(code, 0, "{stderr}");
    };
    // An unchanged configuration is no message; a changed one is, at level info, and starts a new worker.
    let reload = |text: &str| {
        let before = running.worker();
        scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, text));
        running.await_other(before, PATIENCE);
    };
    set("error");
    reload(&format!("{BODY}# changed\n"));
    assert!(!running.stderr.contains("configuration changed"), "info is not logged");
    // The level is that of a worker: a new one begins with that of the command line.
    reload(BODY);
    until(PATIENCE, "info is logged", || running.stderr.contains("configuration changed"));
    running.finish();
}

/// `OUTRIGGER_CONFIG` names the file for `run`, `validate` and the commands to a running process; `-c` wins.
#[test]
fn the_file_comes_from_flag_or_variable() {
    let scene = Scene::new();
    let valid = scene.write("valid.yaml", "app: { port: 8080 }\n").display().to_string();
    let invalid = scene.write("invalid.yaml", "app: { prot: 8080 }\n").display().to_string();
    let validate = |arguments: &[&str], file: &str| {
        let mut command = Command::new(crate::harness::outrigger::binary());
        command.arg("validate").args(arguments).env("OUTRIGGER_CONFIG", file);
        command.output().expect("it runs").status.code()
    };
    assert_eq!(validate(&[], &valid), Some(0));
    assert_eq!(validate(&[], &invalid), Some(1));
    assert_eq!(validate(&["-c", &valid], &invalid), Some(0), "the flag wins");
    let running = Outrigger::start(&scene, BODY, &["sleep", "300"]);
    let mut status = Command::new(crate::harness::outrigger::binary());
    status.arg("status").env("OUTRIGGER_CONFIG", scene.path("outrigger.yaml"));
    let output = status.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    running.finish();
}
