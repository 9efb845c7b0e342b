//! `outrigger run`: becomes the supervisor immediately, and reads the configuration only in the worker, so that the supervisor
//! has none of a parser's memory. In: the command line. Out: the app's exit code. An error at the first start exits before the
//! app starts; later the last good configuration stays in use.

use crate::cli::{Cli, Command};
use crate::load::{Source, refuse};
use crate::plans::Plans;
use crate::reload::{PART, Reloader};
use crate::worker;
use base::system::output;
use base::telemetry::logging;
use clap::Parser as _;
use config::diag::{Diagnostic, Report};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use supervisor::run::Outcome;
use supervisor::worker::{SavedConfig, WorkerSide};
use tracing::level_filters::LevelFilter;

/// Returns an exit code in the supervisor; a worker does not return.
pub fn run() -> i32 {
    sys::process::set_readable_by_others(false);
    // A worker that cannot decode its inherited state must not become a supervisor and start a second app.
    if std::env::var_os(supervisor::worker::INHERIT).is_some() {
        match WorkerSide::inherited() {
            Some(side) => worker(side),
            None => {
                eprintln!("error: cannot decode the state inherited from the supervisor (incompatible version)");
                return i32::from(crate::EXIT_ERROR);
            }
        }
    }
    match supervisor::run::run() {
        Ok(Outcome::Exit(code)) => code,
        Ok(Outcome::Worker(side)) => worker(*side),
        Err(error) => {
            eprintln!("error: cannot start the supervisor: {error}");
            i32::from(crate::EXIT_ERROR)
        }
    }
}

/// Whether the command line requires a supervisor. Checked without the command-line parser, which only the worker runs.
pub fn is_wanted() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == "run")
}

/// Runs in a forked or executed worker.
fn worker(side: WorkerSide) -> ! {
    if let Some(directory) = &side.directory {
        let _ = std::env::set_current_dir(directory);
    }
    // Destructors must not run on what a fork copied from the parent.
    sys::process::exit_now(serve(side))
}

fn serve(side: WorkerSide) -> i32 {
    let Arguments { path, command, level, format } = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let level = logging::start(level, format);
    let (source, plans) = match newest_config(&path, &command, &side) {
        Ok(newest) => newest,
        // Before the first worker runs, the report is for the operator at the terminal, unless the log is to be JSON.
        Err(report) if side.generation == 0 && format != logging::Format::Json => return refuse(&report),
        Err(report) if side.generation == 0 => {
            logging::report(PART, &report.render(), &format!("cannot start: {} found", report.count()));
            return i32::from(crate::EXIT_ERROR);
        }
        Err(report) => {
            let next = if side.replaces { "keeping the current worker" } else { "retrying" };
            logging::report(PART, &report.render(), &format!("worker failed to start; {next}"));
            return i32::from(crate::EXIT_ERROR);
        }
    };
    let companion = plans.command.is_empty();
    worker::start(plans, side, Reloader::new(source, command, companion), level)
}

/// The arguments of `outrigger run`.
struct Arguments {
    path: PathBuf,
    command: Vec<OsString>,
    level: LevelFilter,
    format: logging::Format,
}

fn arguments() -> Result<Arguments, i32> {
    match Cli::try_parse() {
        Ok(Cli { command: Command::Run { file, command, log_level, log_format } }) => {
            Ok(Arguments { path: file.config, command, level: log_level, format: log_format.into() })
        }
        Ok(_) => Err(i32::from(crate::EXIT_ERROR)),
        Err(error) => {
            let _ = error.print();
            Err(i32::from(if error.use_stderr() { crate::EXIT_ERROR } else { 0 }))
        }
    }
}

/// The current file, or else, for a worker without a running predecessor, the last good configuration.
fn newest_config(path: &Path, command: &[OsString], side: &WorkerSide) -> Result<(Source, Plans), Report> {
    let planned = |source: Source| {
        let (plans, report) = source.plans(command)?;
        Ok((source, plans, report))
    };
    // A configuration with which a worker failed to start, for instance since an address is in use, is not retried until it
    // changes.
    let not_refused = |(source, plans, warnings): (Source, Plans, Report)| {
        let refused = !side.replaces && SavedConfig::text(&side.kept.rejected).is_some_and(|text| text == source.text);
        if !refused {
            match warnings.render() {
                text if text.is_empty() => {}
                text if side.generation == 0 => output::note(&text),
                text => logging::report_warnings(PART, &text, "the configuration has warnings"),
            }
            return Ok((source, plans));
        }
        let mut report = Report::new(source.path.display().to_string(), "");
        report.push(Diagnostic::whole(
            "a worker failed to start with this configuration; it is retried once the file changes",
        ));
        Err(report)
    };
    let newest = Source::read(path).and_then(planned).and_then(not_refused);
    let good = SavedConfig::text(&side.kept.last_good).filter(|_| !side.replaces);
    match (newest, good) {
        (Ok(newest), _) => Ok(newest),
        (Err(report), None) => Err(report),
        (Err(report), Some(saved)) => {
            let (source, plans, _) = planned(Source::last_good(path, saved))?;
            logging::report_warnings(
                PART,
                &report.render(),
                "the configuration is now invalid; continuing with the last good one",
            );
            Ok((source, plans))
        }
    }
}
