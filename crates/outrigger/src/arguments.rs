//! Arguments that several commands have.

use std::path::PathBuf;

/// The configuration file.
#[derive(clap::Args)]
pub struct ConfigFile {
    /// The configuration.
    #[arg(
        short,
        long,
        default_value = "outrigger.yaml",
        env = "OUTRIGGER_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: PathBuf,
}
