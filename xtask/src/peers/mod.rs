//! `cargo xtask peers`: the real programs that tests and benchmarks run with or compare with.
//! In: nothing. Out: missing peers are installed; one line per peer with its version or why it is missing.
//! Bound: apt if this is root on Debian, a virtual environment under target/peers for PyPI, and no service is left running.
//! A missing peer is reported, never an error: the tests that need it are then counted as skipped.

mod debian;
mod python;

use crate::shell::{self, Outcome};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// A program that has not printed its version by then is killed.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// One line of the closing table.
struct Line {
    name: &'static str,
    /// The program and the arguments that print its version, or why it is missing.
    found: Result<(PathBuf, &'static [&'static str]), String>,
}

pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`cargo xtask peers` takes no argument, but was given `{unknown}`"));
    }
    let directory = directory();
    fs::create_dir_all(&directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let _one_at_a_time = lock(&directory)?;

    let mut lines = debian::install(&directory);
    lines.extend(python::install(&directory));

    let shown: Vec<_> = lines.into_iter().map(|line| thread::spawn(move || show(line))).collect();
    for line in shown {
        match line.join() {
            Ok(line) => println!("{line}"),
            Err(_) => println!("(a peer's version could not be read)"),
        }
    }
    Ok(())
}

/// The directory of everything that is not installed through apt.
pub fn directory() -> PathBuf {
    shell::target().join("peers")
}

/// Adds the peers to the PATH of a program that is about to be started.
pub fn offer(command: &mut Command) {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let system = shell::SYSTEM_DIRECTORIES.iter().map(PathBuf::from);
    let path: Vec<PathBuf> =
        [directory().join("bin")].into_iter().chain(std::env::split_paths(&own)).chain(system).collect();
    // A directory with a colon in its name cannot be on PATH; the program then uses its own PATH.
    if let Ok(path) = std::env::join_paths(path) {
        command.env("PATH", path);
    }
    command.env("OUTRIGGER_PEERS", directory());
}

/// Two runs at the same time would write into the same virtual environment.
fn lock(directory: &Path) -> Outcome<File> {
    let path = directory.join("lock");
    let lock = File::create(&path).and_then(|file| file.lock().map(|()| file));
    lock.map_err(|error| format!("cannot lock {}: {error}", path.display()))
}

fn show(line: Line) -> String {
    let (program, version_arguments) = match line.found {
        Ok(found) => found,
        Err(reason) => return format!("{:<20} missing: {reason}", line.name),
    };
    let words = shell::words_within(Command::new(&program).args(version_arguments), VERSION_LIMIT);
    let version = words.as_deref().and_then(version_in).unwrap_or("(no version)");
    format!("{:<20} {version:<16} {}", line.name, program.display())
}

/// The first word that looks like a version: `nginx/1.22.1`, `v20.20.2`, `OpenSSH_9.2p1,`, `17.0.15`.
fn version_in(words: &str) -> Option<&str> {
    words.split(|c: char| c.is_whitespace() || "/_,;\"()[]".contains(c)).find_map(|word| {
        let number = word.trim_start_matches('v');
        let digits = number.starts_with(|c: char| c.is_ascii_digit());
        let dotted = number.split('.').count() >= 2 && !number.ends_with('.');
        (digits && dotted).then_some(number)
    })
}

/// The end of a long log, for a reason that fits under a peer's name.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_the_output_of_programs() {
        let check = |words: &str, expect: Option<&str>| assert_eq!(version_in(words), expect, "{words}");
        check("nginx version: nginx/1.22.1\n", Some("1.22.1"));
        check("HAProxy version 2.6.12-1+deb12u4 2026/01/01\n", Some("2.6.12-1+deb12u4"));
        check("v20.20.2\n", Some("20.20.2"));
        check("openjdk version \"17.0.15\" 2025-04-15\n", Some("17.0.15"));
        check("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.17\n", Some("9.2p1"));
        check("usage: something [options]\n", None);
        check("", None);
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_three_lines() {
        assert_eq!(tail("a\nb\n\nc\nd\n\n"), "b | c | d");
        assert_eq!(tail(""), "");
    }
}
