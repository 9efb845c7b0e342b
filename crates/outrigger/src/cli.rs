//! The command line.

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// One small process that rides beside any application and takes over its logs, metrics, configuration and proxy.
#[derive(Parser)]
#[command(name = "outrigger", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run beside an app. With a command, here or in the file, the app is wrapped; without one it runs in its own container.
    Run {
        /// The configuration.
        #[arg(short, long, default_value = "outrigger.yaml", value_name = "FILE")]
        config: PathBuf,
        /// The app's command and its arguments.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Check a configuration and print every mistake in it. Exits 0 or 1.
    Validate {
        /// The configuration.
        #[arg(short, long, default_value = "outrigger.yaml", value_name = "FILE")]
        config: PathBuf,
        /// The app's command, as `run` would get it.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Print the documentation and an example of a component, such as `logs.sinks.loki`; without a name, list them.
    Explain {
        /// The component.
        #[arg(value_name = "KIND")]
        kind: Option<String>,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print the verdict of each subsystem and the ledger of a running Outrigger, from its admin socket.
    Status {
        /// The admin socket; where left out, the one that the configuration names.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// The configuration that names the socket.
        #[arg(short, long, default_value = "outrigger.yaml", value_name = "FILE")]
        config: PathBuf,
    },
    /// Start a small app with Outrigger around it, doing all four jobs, to look at and to play with.
    Demo {
        /// Run for a few seconds without a terminal, check that each job delivers, and exit 0 or 1.
        #[arg(long)]
        check: bool,
        /// Where the demo keeps its files; a new temporary folder where left out.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// The demo's app.
    #[command(hide = true)]
    DemoApp {
        /// The folder of its configuration.
        #[arg(long)]
        dir: PathBuf,
        /// The port to listen on.
        #[arg(long)]
        port: u16,
    },
}
