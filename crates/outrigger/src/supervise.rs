//! `outrigger run`: check, then become the supervisor of a wrapped app, or be the worker alone. In: the command line. Out: the
//! app's exit code. What the supervisor needs is decided here, before it starts: it never reads the configuration.

use crate::load::{Plans, Source, refuse};
use crate::reload::{LAST_GOOD, REFUSED, Reloader};
use crate::wire;
use base::diag::{Diagnostic, Report};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use supervisor::plan::Plan;
use supervisor::run::{EXIT_RELOAD, Outcome, WorkerSide};
use sys::process::ExecPlan;

/// How a worker runs: under our supervisor, or alone beside a container.
pub enum Role {
    Wrapped(Box<WorkerSide>),
    /// With the sockets of the worker before it, after a reload.
    Companion(Vec<(String, OwnedFd)>),
}

pub fn run(path: &Path, command: &[OsString]) -> i32 {
    let source = match Source::read(path) {
        Ok(source) => source,
        Err(report) => return refuse(&report),
    };
    let plans = match source.plans(command) {
        Ok((plans, report)) => {
            eprint!("{}", report.render());
            plans
        }
        Err(report) => return refuse(&report),
    };
    if plans.command.is_empty() {
        return companion(source, plans);
    }
    let plan = match supervisor_plan(&plans) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("error: the app cannot be started: {error}");
            return i32::from(crate::EXIT_MISTAKE);
        }
    };
    let command = plans.command.clone();
    drop(plans);
    match supervisor::run::run(plan) {
        Ok(Outcome::Exit(code)) => code,
        Ok(Outcome::Worker(side)) => worker(&source, &command, side),
        Err(error) => {
            eprintln!("error: the supervisor cannot work here: {error}");
            i32::from(crate::EXIT_MISTAKE)
        }
    }
}

/// Beside a container: one worker after the other in this process, each with the sockets of the one before.
fn companion(mut source: Source, mut plans: Plans) -> i32 {
    let mut stored = Vec::new();
    loop {
        let reloader = Reloader::new(source.clone(), Vec::new());
        let (code, sockets) = wire::worker(plans, Role::Companion(stored), reloader);
        if code != EXIT_RELOAD {
            return code;
        }
        stored = sockets.take_kept();
        (source, plans) = match newest(&source, &[]) {
            Ok(newest) => newest,
            Err(report) => return refuse(&report),
        };
    }
}

/// In a forked worker.
fn worker(first: &Source, command: &[OsString], side: Box<WorkerSide>) -> i32 {
    let code = match newest(first, command) {
        Ok((source, plans)) => {
            let reloader = Reloader::new(source, command.to_vec());
            wire::worker(plans, Role::Wrapped(side), reloader).0
        }
        Err(report) => refuse(&report),
    };
    // The parent's copies of everything are not ours to destroy.
    sys::process::exit_now(code)
}

/// The file as it is now, or else as it was when a worker last served it, or else as it was at the start.
fn newest(first: &Source, command: &[OsString]) -> Result<(Source, Plans), Report> {
    let planned = |source: Source| source.plans(command).map(|(plans, _)| (source, plans));
    // A text with which a worker could not start, as for an address that is taken, is not tried again until it changes.
    let not_refused = |(source, plans): (Source, Plans)| {
        let refused = std::fs::read_to_string(plans.state_dir.join(REFUSED)).is_ok_and(|text| text == source.text);
        if !refused {
            return Ok((source, plans));
        }
        let mut report = Report::new(source.path.display().to_string(), "");
        report.push(Diagnostic::whole("a worker could not start with this text; change it to have it tried again"));
        Err(report)
    };
    Source::read(&first.path).and_then(planned).and_then(not_refused).or_else(|report| {
        eprint!("{}", report.render());
        eprintln!("warning: the configuration has become wrong; the last good one goes on serving");
        let (_, at_start) = planned(first.clone())?;
        let kept = std::fs::read_to_string(at_start.state_dir.join(LAST_GOOD));
        let kept = kept.map_err(drop).and_then(|text| planned(Source { text, ..first.clone() }).map_err(drop));
        Ok(kept.unwrap_or((first.clone(), at_start)))
    })
}

fn supervisor_plan(plans: &Plans) -> std::io::Result<Plan> {
    let stop = &plans.config.app.stop;
    // What our own start gave us is not the app's.
    let ours = [
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "STATE_DIRECTORY",
    ];
    let environment: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(name, _)| !ours.iter().any(|own| name == own)).collect();
    Ok(Plan {
        app: ExecPlan::new(&plans.command, &environment)?,
        app_name: plans.command.first().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        capture_bytes: plans.logs.as_ref().and_then(|plan| plan.capture_bytes()),
        stop_signal: stop.signal.number(),
        drain: stop.drain.0,
        grace: stop.grace.0,
        deadline: stop.deadline.0,
        gate: plans.config.app.start.wait.0,
    })
}
