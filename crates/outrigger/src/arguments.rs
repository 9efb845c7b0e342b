//! Arguments that several commands have.

use std::path::PathBuf;
use tracing::level_filters::LevelFilter;

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

/// A level by its name. An empty one, as of a variable that is set to nothing, is the default.
pub fn level(text: &str) -> Result<LevelFilter, String> {
    if text.is_empty() {
        return Ok(LevelFilter::INFO);
    }
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphabetic());
    text.parse()
        .ok()
        .filter(|_| is_name)
        .ok_or_else(|| "expected error, warn, info, debug, trace or off, in --log-level or OUTRIGGER_LOG_LEVEL".into())
}
