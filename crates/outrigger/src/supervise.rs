//! `outrigger run`: check, then become the supervisor of a wrapped app, or be the worker alone. In: the command line. Out: the
//! app's exit code. What the supervisor needs is decided here, before it starts: it never reads the configuration.

use crate::load::{Plans, Source, gate, refuse};
use crate::wire;
use std::ffi::OsString;
use std::path::Path;
use supervisor::plan::Plan;
use supervisor::run::{Outcome, WorkerSide};
use sys::process::ExecPlan;

/// How a worker runs: under our supervisor, or alone beside a container.
pub enum Role {
    Wrapped(Box<WorkerSide>),
    Companion,
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
        return wire::worker(plans, Role::Companion);
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

/// In a forked worker: the file as it is now, or as it was when it last was right.
fn worker(first: &Source, command: &[OsString], side: Box<WorkerSide>) -> i32 {
    let now = Source::read(&first.path).and_then(|source| source.plans(command));
    let plans = match now {
        Ok((plans, _)) => plans,
        Err(report) => {
            eprint!("{}", report.render());
            eprintln!("warning: the configuration has become wrong; the one from the start goes on serving");
            match first.plans(command) {
                Ok((plans, _)) => plans,
                Err(report) => return refuse(&report),
            }
        }
    };
    let code = wire::worker(plans, Role::Wrapped(side));
    // The parent's copies of everything are not ours to destroy.
    sys::process::exit_now(code)
}

fn supervisor_plan(plans: &Plans) -> std::io::Result<Plan> {
    let stop = &plans.config.app.stop;
    // What our own start gave us is not the app's.
    let ours = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY"];
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
        gate: gate(&plans.config),
    })
}
