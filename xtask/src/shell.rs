//! Runs other programs for the tasks: their paths, exit statuses and output.
//! In: a program's name or a prepared command. Out: its success, its output, or one sentence with the error.
//! Bound: nothing runs through a shell, so no argument is parsed a second time.

use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The result of a task: nothing, or the sentence that is printed before exit code 1.
/// An empty sentence means that everything has been printed already.
pub type Outcome<T = ()> = Result<T, String>;

/// Directories of system services, which are not in a plain user's PATH.
pub const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The repository this crate belongs to.
///
/// cargo sets the path of the manifest when it runs this program; a copied binary falls back to the path at compile time.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    own.parent().map(Path::to_path_buf).unwrap_or(own)
}

/// The target directory of cargo.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(given) => root().join(given),
        None => root().join("target"),
    }
}

/// The cargo that started this program, so that a toolchain selected on the command line stays selected.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    for (name, _) in env::vars_os().filter(|(name, _)| is_about_this_package(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// The variables that cargo sets for this program. Build scripts watch them: if inherited, libraries would be recompiled at each
/// change between a plain cargo and one that a task started.
fn is_about_this_package(variable: &str) -> bool {
    let prefixed = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|start| variable.starts_with(start));
    prefixed || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&variable)
}

/// The path of a program on PATH or in the directories of system services.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let named = env::split_paths(&path).collect::<Vec<_>>();
    let system = SYSTEM_DIRECTORIES.iter().map(PathBuf::from);
    named.into_iter().chain(system).map(|directory| directory.join(program)).find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

/// Runs with inherited stdout and stderr; an exit code other than 0 is an error that contains the command.
pub fn run(command: &mut Command) -> Outcome {
    let shown = show(command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` failed: {status}")),
        Err(error) => Err(format!("`{shown}` could not be started: {error}")),
    }
}

/// Like `run`, for a short program, which is killed at the limit.
pub fn run_within(command: &mut Command, limit: Duration) -> Outcome {
    let shown = show(command);
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("`{shown}` could not be started: {error}"))?;
    while start.elapsed() < limit {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`{shown}` failed: {status}")),
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(format!("`{shown}` cannot be waited for: {error}")),
        }
    }
    // It may have exited just now; the message is still true.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("`{shown}` did not end within {} s", limit.as_secs()))
}

/// Runs and returns stdout; stderr is inherited.
pub fn output(command: &mut Command) -> Outcome<String> {
    let shown = show(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("`{shown}` could not be started: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("`{shown}` failed: {}", output.status)),
    }
}

/// Everything a program prints within a time limit, whatever its exit code: for `--version`.
pub fn words_within(command: &mut Command, limit: Duration) -> Option<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let mut stderr = child.stderr.take()?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut words = Vec::new();
        // Output that cannot be read is missing; the version line then shows it.
        let _ = stdout.read_to_end(&mut words);
        let _ = stderr.read_to_end(&mut words);
        let _ = send.send(words);
    });
    let words = receive.recv_timeout(limit).ok();
    if words.is_none() {
        // It may have exited just now, which is fine.
        let _ = child.kill();
    }
    let _ = child.wait();
    words.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The command as typed in a shell.
pub fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let words = [name].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_existing_programs_are_found_by_name() {
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn a_failure_contains_the_command_and_its_status() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("exit 3 is a failure");
        assert!(error.contains("sh -c exit 3") && error.contains('3'), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_at_its_limit() {
        let words = words_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert_eq!(words, None);
        let error = run_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(error.is_err_and(|message| message.contains("did not end")));
    }

    #[test]
    fn variables_of_this_package_are_not_inherited() {
        let check = |variable: &str, expect: bool| assert_eq!(is_about_this_package(variable), expect, "{variable}");
        check("CARGO_PKG_NAME", true);
        check("CARGO_MANIFEST_DIR", true);
        check("CARGO_HOME", false);
        check("CARGO_TARGET_DIR", false);
        check("PATH", false);
    }
}
