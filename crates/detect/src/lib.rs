//! `outrigger detect` and `outrigger init`: looks at an app and proposes a configuration, with the evidence for each line as a
//! comment above it. In: a process, a command, or nothing but this network namespace. Out: YAML that `outrigger validate`
//! accepts; nothing is switched on by it. What a person has to decide stands there as a commented example.
//!
//! It is harmless by construction. It reads /proc; it connects to loopback alone, and only to sockets that /proc/net lists for
//! our own network namespace; it sends nothing but GET, follows no redirect, and asks no port whose owner is known to speak
//! something else. The environment of the app gives names, numbers of ports, and hosts of OTLP endpoints; arguments that look
//! like secrets become placeholders; no line of a log is ever shown. It writes one file, and only for `init`.
//!
//! Bounds: `probe::PORTS_MAX` ports, each with at most `probe::PATHS` requests of `probe::LIMIT` and `probe::READ_MAX` bytes;
//! `process::PROCESSES_MAX` processes with `process::DESCRIPTORS_MAX` descriptors each; `files::FILES_MAX` log files, of which
//! the last `files::TAIL` bytes are read; a command runs for `Options::length`, and `trial::GRACE` longer where it does not
//! listen.

mod look;
mod trial;
mod process;
mod ports;
mod service;
mod probe;
mod files;
mod format;
mod runtime;
mod hints;
mod arguments;
mod background;
mod choose;
mod render;
mod page;
mod write;

pub use look::Found;
pub use render::render;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// What to look at, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    /// The longest that a command runs.
    pub length: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Whatever listens in this network namespace: the app is in a container beside us.
    Network,
    /// A process and everything below it.
    Process(u32),
    /// A command that is started, looked at, and stopped again.
    Command(Vec<OsString>),
}

/// How long a command runs where nobody says otherwise.
pub const LENGTH: Duration = Duration::from_secs(10);

impl Options {
    /// From the command line: a pid, a command, or neither.
    pub fn new(pid: Option<u32>, command: &[OsString], length: Option<Duration>) -> Options {
        let target = match (pid, command) {
            (Some(pid), _) => Target::Process(pid),
            (None, []) => Target::Network,
            (None, command) => Target::Command(command.to_vec()),
        };
        Options { target, length: length.unwrap_or(LENGTH) }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub help: &'static str,
    /// What `outrigger` exits with.
    pub code: i32,
}

/// Looks. Errors: there is no such process, the command cannot be started, or a signal came meanwhile.
pub fn detect(options: &Options) -> Result<Found, Failure> {
    match &options.target {
        Target::Network => Ok(look::network()),
        Target::Process(pid) => look::of_process(*pid),
        Target::Command(command) => trial::of_command(command, options.length),
    }
}

/// `outrigger detect`: the configuration to `print`, whose exit code it answers.
pub fn command(options: &Options, print: fn(&str) -> i32) -> i32 {
    let found = match detect(options) {
        Ok(found) => found,
        Err(failure) => return refuse(&failure),
    };
    let code = print(&render(&found));
    summarise(&found);
    code
}

/// `outrigger init`: the configuration in a new file. Answers the exit code.
pub fn init(options: &Options, path: &Path, force: bool) -> i32 {
    // Said before the app is started for it; `write::new_file` looks again, when it counts.
    if !force && path.symlink_metadata().is_ok() {
        return refuse(&write::exists(path));
    }
    let written = detect(options).and_then(|found| {
        write::new_file(path, &render(&found), force)?;
        Ok(found)
    });
    match written {
        Ok(found) => {
            summarise(&found);
            eprintln!("outrigger: wrote {}; look through it, then: outrigger validate -c {0}", path.display());
            0
        }
        Err(failure) => refuse(&failure),
    }
}

fn summarise(found: &Found) {
    if let Some(advice) = &found.background {
        eprintln!(
            "outrigger: warning: the command went into the background, where Outrigger cannot follow it; {advice}"
        );
    }
    eprintln!("outrigger: {}", found.summary());
}

fn refuse(failure: &Failure) -> i32 {
    eprintln!("outrigger: {}\n  help: {}", failure.message, failure.help);
    failure.code
}
