//! The command line.

use crate::remote::{self, For, Probe, Target};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// One small process that rides beside any application and takes over its logs, metrics, configuration and proxy.
#[derive(Parser)]
#[command(name = "outrigger", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run beside an app. With a command, here or in the file, start it and exit with its code; without one, ride beside an app
    /// that somebody else starts.
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
        /// Count warnings as mistakes.
        #[arg(long)]
        deny_warnings: bool,
        /// The configuration.
        #[arg(short, long, default_value = "outrigger.yaml", value_name = "FILE")]
        config: PathBuf,
        /// The app's command, as `run` would get it.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Print the documentation and an example of a component, such as `logs.sinks.loki`; without a name, list them.
    Explain {
        /// Its name in the list.
        #[arg(value_name = "KIND")]
        kind: Option<String>,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print the verdict of each subsystem and the ledger of a running Outrigger. Exits 1 where one has failed or nobody answers.
    Status {
        /// A table for people, or the JSON of GET /status for programs.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        #[command(flatten)]
        target: Target,
    },
    /// Wait until a running Outrigger is started or ready. Exits 0, or 1 at the time-out; with a command, becomes it when ready.
    Wait {
        /// What to wait for.
        #[arg(long = "for", value_enum, default_value = "ready")]
        state: For,
        /// The longest wait.
        #[arg(long, default_value = "60s", value_parser = remote::duration, value_name = "TIME")]
        timeout: Duration,
        /// Ask the listener of the probes instead of the socket, such as http://127.0.0.1:9901.
        #[arg(long, value_name = "URL", conflicts_with = "socket")]
        url: Option<String>,
        #[command(flatten)]
        target: Target,
        /// What to become afterwards.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Ask one probe once, for images without a shell. Exits 0 for yes and 1 for no.
    ExecProbe {
        /// The question.
        #[arg(value_enum)]
        probe: Probe,
        #[command(flatten)]
        target: Target,
    },
    /// Stop a running Outrigger, and the app that it wraps, in order; wait for the end.
    Stop {
        /// The time for all of it; the configured deadline where left out.
        #[arg(long, value_parser = remote::duration, value_name = "TIME")]
        within: Option<Duration>,
        /// A file with the token, where admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Replace a running Outrigger by another binary in place: no connection is refused, no line lost, the app goes on.
    Upgrade {
        /// The new binary; where left out, the one that it was started from, as it is on disk now.
        #[arg(long, value_name = "BINARY")]
        to: Option<PathBuf>,
        /// A file with the token, where admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Have a running Outrigger read its configuration again. One with mistakes changes nothing, and is reported.
    Reload {
        /// A file with the token, where admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Look at an app and print a configuration for it, with the evidence as comments. Nothing is switched on by it.
    Detect {
        #[command(flatten)]
        look: Look,
    },
    /// Write what `detect` finds to a file.
    Init {
        #[command(flatten)]
        look: Look,
        /// Where to write it.
        #[arg(short, long, default_value = "outrigger.yaml", value_name = "FILE")]
        output: PathBuf,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
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

/// How a status is printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// What `detect` and `init` look at; without a process and a command, at whatever listens in this network namespace.
#[derive(Args)]
pub struct Look {
    /// A process, with everything below it.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// The longest that a command runs; 10s where left out.
    #[arg(long = "for", value_parser = remote::duration, value_name = "TIME")]
    pub length: Option<Duration>,
    /// A command, which is started, looked at and stopped again.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "pid")]
    pub command: Vec<OsString>,
}

impl Look {
    pub fn options(&self) -> detect::Options {
        detect::Options::new(self.pid, &self.command, self.length)
    }
}
