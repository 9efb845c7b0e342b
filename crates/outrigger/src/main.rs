//! Outrigger: one small process that runs as a sidecar of any application. This file lists each command and its module.

mod cli;
mod arguments;
mod app;
mod config;
#[cfg(test)]
mod hints_test;
mod load;
mod plans;
mod grants;
mod explain;
mod supervise;
mod worker;
mod start_errors;
mod compose;
mod control;
mod signals;
mod stop;
mod reload;
mod watchdog;
mod telemetry;
mod black_box;
#[cfg(feature = "fault-injection")]
mod faults;
mod remote;
mod demo;

use clap::Parser as _;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    if supervise::is_wanted() {
        return exit(supervise::run());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version exit 0; everything else is a usage error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_ERROR } else { 0 });
        }
    };
    sys::home::provide();
    let code = match cli.command {
        // Handled above, before the command line was parsed.
        Command::Run { .. } => supervise::run(),
        Command::Validate { file, command, deny_warnings } => load::validate(&file.config, &command, deny_warnings),
        Command::Explain { kind } => explain::explain(kind.as_deref()),
        Command::Schema => explain::schema(),
        Command::Status { target, format } => remote::status(&target, format),
        Command::Wait { state, timeout, url, target, command } => {
            remote::wait(&target, state, timeout, url.as_deref(), &command)
        }
        Command::Probe { probe, target } => remote::probe(&target, probe),
        Command::Stop { timeout, token_file, target } => remote::stop(&target, timeout, token_file.as_deref()),
        Command::Upgrade { binary, token_file, target } => {
            remote::upgrade(&target, binary.as_deref(), token_file.as_deref())
        }
        Command::Reload { token_file, target } => remote::reload(&target, token_file.as_deref()),
        Command::LogLevel { level, token_file, target } => remote::log_level(&target, level, token_file.as_deref()),
        Command::Detect { inspect } => detect::command(&inspect.options(), base::system::output::print),
        Command::Init { inspect, output, force } => detect::init(&inspect.options(), &output, force),
        Command::Demo { check, dir } => demo::run(check, dir.as_deref()),
        Command::DemoApp { dir, port } => demo::app::run(&dir, port),
    };
    exit(code)
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// An error of the command line or the configuration.
const EXIT_ERROR: u8 = 1;
