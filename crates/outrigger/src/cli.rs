//! The command line.

use crate::arguments::{self, ConfigFile};
use crate::remote::{self, For, Format, Probe, Target};
use base::telemetry::logging;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tracing::level_filters::LevelFilter;

/// A sidecar in one small binary: logs, metrics, configuration and proxy for any application.
#[derive(Parser)]
#[command(name = "outrigger", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run as a sidecar. With a command, here or in the configuration, start the app and exit with its exit code; without one,
    /// run as the companion of an app that is started separately.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// The level of Outrigger's own log: error, warn, info, debug, trace or off.
        #[arg(
            long,
            default_value = "info",
            env = "OUTRIGGER_LOG_LEVEL",
            hide_env_values = true,
            value_parser = arguments::level,
            value_name = "LEVEL"
        )]
        log_level: LevelFilter,
        /// The format of Outrigger's own log on stderr; auto is text on a terminal, else JSON.
        #[arg(long, value_enum, default_value = "auto", value_name = "FORMAT")]
        log_format: LogFormat,
        /// The app's command and its arguments.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Check a configuration and print every error in it. Exits 0 or 1.
    Validate {
        /// Treat warnings as errors.
        #[arg(long)]
        deny_warnings: bool,
        #[command(flatten)]
        file: ConfigFile,
        /// The app's command, as `run` would get it.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Print the documentation and an example of a component, such as `logs.sinks.loki`; without a name, list them.
    Explain {
        /// A name from the list.
        #[arg(value_name = "KIND")]
        kind: Option<String>,
    },
    /// Print the JSON Schema of the configuration, for editors.
    Schema,
    /// Print the health of each subsystem and the ledger of a running Outrigger. Exits 1 if a subsystem failed or Outrigger
    /// cannot be reached.
    Status {
        /// A table (text), or the JSON of GET /status.
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        #[command(flatten)]
        target: Target,
    },
    /// Wait until a running Outrigger is started or ready. Exits 0 on success, or execs COMMAND if given; exits 1 at the timeout.
    Wait {
        /// What to wait for.
        #[arg(long = "for", value_enum, default_value = "ready")]
        state: For,
        /// Maximum time to wait.
        #[arg(long, default_value = "60s", value_parser = remote::duration, value_name = "TIME")]
        timeout: Duration,
        /// Use the probe listener instead of the socket, such as http://127.0.0.1:9901.
        #[arg(long, value_name = "URL", conflicts_with = "socket")]
        url: Option<String>,
        #[command(flatten)]
        target: Target,
        /// Command to exec afterwards.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Run one probe once, for images without a shell. Exits 0 on success and 1 on failure.
    Probe {
        /// Which probe.
        #[arg(value_enum)]
        probe: Probe,
        #[command(flatten)]
        target: Target,
    },
    /// Stop a running Outrigger and the app that it wraps, and wait until it has exited.
    Stop {
        /// Total time allowed [default: app.stop.timeout, of which the command waits for 40s].
        #[arg(long, value_parser = remote::duration, value_name = "TIME")]
        timeout: Option<Duration>,
        /// A file with the token, if admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Upgrade the binary of a running Outrigger in place: no connection is refused, no log line is lost, the app keeps running.
    Upgrade {
        /// The new binary [default: the path that it was started from].
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// A file with the token, if admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Reload the configuration of a running Outrigger. An invalid one changes nothing, and its errors are printed.
    Reload {
        /// A file with the token, if admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Set the level of a running Outrigger's own log, until its worker is replaced.
    LogLevel {
        /// error, warn, info, debug, trace or off.
        #[arg(value_parser = arguments::level, value_name = "LEVEL")]
        level: LevelFilter,
        /// A file with the token, if admin.token is set.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Inspect an app and print a configuration for it, with the evidence as comments. Enables nothing by itself.
    Detect {
        #[command(flatten)]
        inspect: Inspect,
    },
    /// Write the configuration that `detect` prints to a file.
    Init {
        #[command(flatten)]
        inspect: Inspect,
        /// Where to write it.
        #[arg(short, long, default_value = "outrigger.yaml", value_name = "FILE")]
        output: PathBuf,
        /// Overwrite an existing file.
        #[arg(long)]
        force: bool,
    },
    /// Start a small app with Outrigger around it that uses all four subsystems, to explore.
    Demo {
        /// Run for a few seconds without a terminal, check that each subsystem delivers, and exit 0 or 1.
        #[arg(long)]
        check: bool,
        /// Directory for the demo's files [default: a new temporary directory].
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// The demo's app.
    #[command(hide = true)]
    DemoApp {
        /// The directory of its configuration.
        #[arg(long)]
        dir: PathBuf,
        /// The port to listen on.
        #[arg(long)]
        port: u16,
    },
}

/// The format of Outrigger's own log.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

impl From<LogFormat> for logging::Format {
    fn from(format: LogFormat) -> logging::Format {
        match format {
            LogFormat::Auto => logging::Format::Auto,
            LogFormat::Text => logging::Format::Text,
            LogFormat::Json => logging::Format::Json,
        }
    }
}

/// What `detect` and `init` inspect; without a process and a command, every listener in this network namespace.
#[derive(Args)]
pub struct Inspect {
    /// A process and its descendants.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Maximum time that COMMAND runs [default: 10s].
    #[arg(long, value_parser = remote::duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// A command that is started, inspected and stopped again.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "pid")]
    pub command: Vec<OsString>,
}

impl Inspect {
    pub fn options(&self) -> detect::Options {
        detect::Options::new(self.pid, &self.command, self.timeout)
    }
}
