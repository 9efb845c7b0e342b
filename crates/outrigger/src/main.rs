//! Outrigger: one small process beside any application. This file is the table of contents: each command, and where it is.

mod cli;
mod config;
mod load;
mod explain;
mod supervise;
mod reload;
mod wire;
mod stop;
mod status;
mod demo;

use clap::Parser as _;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes; everything else is one, in the words of the command line.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_MISTAKE } else { 0 });
        }
    };
    let code = match cli.command {
        Command::Run { config, command } => supervise::run(&config, &command),
        Command::Validate { config, command } => load::validate(&config, &command),
        Command::Explain { kind } => explain::explain(kind.as_deref()),
        Command::Schema => explain::schema(),
        Command::Status { socket, config } => status::status(socket.as_deref(), &config),
        Command::Demo { check, dir } => demo::run(check, dir.as_deref()),
        Command::DemoApp { dir, port } => demo::app::run(&dir, port),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// A mistake of the command line or the configuration.
const EXIT_MISTAKE: u8 = 1;
