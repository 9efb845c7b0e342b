//! Other programs, as the tasks start them: where they lie, whether they succeeded, what they said.
//! In: a program's name or a prepared command. Out: its success, its output, or one sentence on what went wrong.
//! Bound: nothing is sent through a shell, so no argument is ever read twice.

use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// What every task returns: nothing, or the sentence that is shown before exit code 1.
/// An empty sentence means that everything worth saying has been printed already.
pub type Outcome<T = ()> = Result<T, String>;

/// Directories of system services, which a plain user's PATH leaves out.
pub const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The repository this crate belongs to.
///
/// cargo says where the manifest is when it runs us; a copied binary falls back on the place it was compiled in.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    own.parent().map(Path::to_path_buf).unwrap_or(own)
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(given) => root().join(given),
        None => root().join("target"),
    }
}

/// The cargo that started us, so that a toolchain chosen on the command line stays chosen.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    for (name, _) in env::vars_os().filter(|(name, _)| is_about_this_package(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// What cargo told us about ourselves when it ran us. Build scripts watch these variables: handed on, they would have
/// libraries compiled again at each change between a plain cargo and one that a task started.
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

/// Runs with our own stdout and stderr; an exit code other than 0 is an error that names the command.
pub fn run(command: &mut Command) -> Outcome {
    let shown = show(command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{shown}` failed: {status}")),
        Err(error) => Err(format!("`{shown}` could not be started: {error}")),
    }
}

/// Like `run`, for a program that should end soon and is ended when it does not.
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
    // It may have ended in this instant; what is told stays true.
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("`{shown}` did not end within {} s", limit.as_secs()))
}

/// Runs and returns stdout; stderr goes where ours goes.
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

/// Everything a program prints within a time limit, whatever its exit code: for asking for versions.
pub fn words_within(command: &mut Command, limit: Duration) -> Option<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let mut stdout = child.stdout.take()?;
    let mut stderr = child.stderr.take()?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut words = Vec::new();
        // What cannot be read is not there; the version line then says so.
        let _ = stdout.read_to_end(&mut words);
        let _ = stderr.read_to_end(&mut words);
        let _ = send.send(words);
    });
    let words = receive.recv_timeout(limit).ok();
    if words.is_none() {
        // It may have ended in this instant, which is as good.
        let _ = child.kill();
    }
    let _ = child.wait();
    words.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The command as a person would type it.
pub fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let words = [name].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 9
    #[test]
    fn a_program_is_found_by_name_and_an_absent_one_is_not() {
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    /// covers: foundation 9
    #[test]
    fn a_failure_names_the_command_and_how_it_ended() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("exit 3 is a failure");
        assert!(error.contains("sh -c exit 3") && error.contains('3'), "{error}");
    }

    /// covers: foundation 9
    #[test]
    fn a_program_that_never_answers_is_ended_at_its_limit() {
        let words = words_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert_eq!(words, None);
        let error = run_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(error.is_err_and(|message| message.contains("did not end")));
    }

    /// covers: foundation 9
    #[test]
    fn what_cargo_says_about_this_package_is_not_handed_on() {
        let check = |variable: &str, expect: bool| assert_eq!(is_about_this_package(variable), expect, "{variable}");
        check("CARGO_PKG_NAME", true);
        check("CARGO_MANIFEST_DIR", true);
        check("CARGO_HOME", false);
        check("CARGO_TARGET_DIR", false);
        check("PATH", false);
    }
}
