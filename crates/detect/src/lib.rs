//! `outrigger detect` and `outrigger init`: inspects an app and proposes a configuration, with the evidence for each line as a
//! comment above it. In: a process, a command, or only this network namespace. Out: YAML that `outrigger validate` accepts; it
//! enables nothing by itself. What the user has to decide is a commented example.
//!
//! It is harmless by construction. It reads /proc; it connects only to loopback, and only to sockets that /proc/net lists for
//! its own network namespace; it sends only GET, follows no redirect, and probes no port whose owner is known to speak another
//! protocol. Of the app's environment it uses names, port numbers, and hosts of OTLP endpoints; arguments that look like
//! secrets become placeholders; log lines are never shown. It writes one file, and only for `init`.
//!
//! Limits: `probe::PORTS_MAX` ports, each with at most `probe::PATHS` requests of `probe::LIMIT` and `probe::READ_MAX` bytes;
//! `process::PROCESSES_MAX` processes with `process::DESCRIPTORS_MAX` file descriptors each; `files::FILES_MAX` log files, of
//! which the last `files::TAIL` bytes are read; a command runs for `Options::timeout`, and `trial::GRACE` longer if it ignores
//! SIGTERM.

mod inspect;
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

pub use inspect::Found;
pub use render::render;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// What to inspect, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    /// The maximum run time of a command.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Everything that listens in this network namespace: the app is in another container that shares it.
    Network,
    /// A process and its descendants.
    Process(u32),
    /// A command that is started, inspected and stopped again.
    Command(Vec<OsString>),
}

/// The default maximum run time of a command.
pub const TIMEOUT: Duration = Duration::from_secs(10);

impl Options {
    /// From the command line: a pid, a command, or neither.
    pub fn new(pid: Option<u32>, command: &[OsString], timeout: Option<Duration>) -> Options {
        let target = match (pid, command) {
            (Some(pid), _) => Target::Process(pid),
            (None, []) => Target::Network,
            (None, command) => Target::Command(command.to_vec()),
        };
        Options { target, timeout: timeout.unwrap_or(TIMEOUT) }
    }
}

/// Why nothing was detected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub help: &'static str,
    /// The exit code of `outrigger`.
    pub code: i32,
}

/// Inspects the target. Errors: there is no such process, the command cannot be started, or a signal arrived in the meantime.
pub fn detect(options: &Options) -> Result<Found, Failure> {
    match &options.target {
        Target::Network => Ok(inspect::network()),
        Target::Process(pid) => inspect::of_process(*pid),
        Target::Command(command) => trial::of_command(command, options.timeout),
    }
}

/// `outrigger detect`: passes the configuration to `print`, and returns its exit code.
pub fn command(options: &Options, print: fn(&str) -> i32) -> i32 {
    let found = match detect(options) {
        Ok(found) => found,
        Err(failure) => return report(&failure),
    };
    let code = print(&render(&found));
    print_summary(&found);
    code
}

/// `outrigger init`: writes the configuration to a new file. Returns the exit code.
pub fn init(options: &Options, path: &Path, force: bool) -> i32 {
    // Fail before the app is started; `write::new_file` checks again when it writes.
    if !force && path.symlink_metadata().is_ok() {
        return report(&write::exists(path));
    }
    let written = detect(options).and_then(|found| {
        write::new_file(path, &render(&found), force)?;
        Ok(found)
    });
    match written {
        Ok(found) => {
            print_summary(&found);
            crate::note(&format!(
                "outrigger: wrote {}; review it, then run: outrigger validate -c {0}\n",
                path.display()
            ));
            0
        }
        Err(failure) => report(&failure),
    }
}

fn print_summary(found: &Found) {
    if let Some(advice) = &found.background {
        crate::note(&format!(
            "outrigger: warning: the command moved to the background, where Outrigger cannot supervise it; {advice}\n"
        ));
    }
    crate::note(&format!("outrigger: {}\n", found.summary()));
}

fn report(failure: &Failure) -> i32 {
    crate::note(&format!("outrigger: {}\n  help: {}\n", failure.message, failure.help));
    failure.code
}

/// Prints to stderr; a closed stderr is no error.
pub(crate) fn note(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}
