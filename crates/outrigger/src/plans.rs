//! The plans of everything that is configured: what `load.rs` makes of the file, and what workers start from.

use crate::config::Config;
use config::needs::Needs;
use std::ffi::OsString;
use std::path::PathBuf;

/// The plans of everything that is configured.
pub struct Plans {
    /// The file.
    pub path: PathBuf,
    pub config: Config,
    pub command: Vec<OsString>,
    /// What the supervisor needs.
    pub app: supervisor::plan::Plan,
    /// Files that were filled into the configuration.
    pub files: Vec<PathBuf>,
    /// The memory of the worker.
    pub memory: u64,
    /// The memory of the control group that we are in, where that is limited.
    pub container: Option<u64>,
    /// What all of it needs from the system.
    pub needs: Needs,
    pub state_dir: PathBuf,
    pub logs: Option<logs::plan::Plan>,
    pub metrics: Option<metrics::plan::Plan>,
    pub sync: sync::plan::Plan,
    pub proxy: Option<proxy::plan::Plan>,
    /// The configuration as JSON for `/config`, secrets and credentials hidden.
    pub shown: serde_json::Value,
}
