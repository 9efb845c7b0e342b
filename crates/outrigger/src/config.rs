//! The whole configuration: one file, one struct, each section's own Config within.

use crate::app::App;
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Outrigger's configuration. What is left out is off and costs nothing.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The app.
    #[serde(default)]
    pub app: App,
    /// Where progress is kept.
    #[serde(default)]
    pub state: StateConfig,
    /// What may be used.
    #[serde(default)]
    pub limits: Limits,
    /// What the worker may touch.
    #[serde(default)]
    pub sandbox: SandboxConfig,
    /// The app's logs.
    #[serde(default)]
    pub logs: Option<logs::config::Config>,
    /// The app's metrics.
    #[serde(default)]
    pub metrics: Option<metrics::config::Config>,
    /// Directories that follow stores, by name.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sync: BTreeMap<String, sync::config::Config>,
    /// The service's traffic.
    #[serde(default)]
    pub proxy: Option<proxy::config::Config>,
    /// Where Outrigger shows itself.
    #[serde(default)]
    pub admin: admin::config::Config,
}

/// Where checkpoints, caches and leftovers are kept.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// The directory. If it cannot be written, the status says so, and everything runs without durability. Default:
    /// `$STATE_DIRECTORY`, else /var/lib/outrigger.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// The most bytes of a file that is replaced whole; checkpoints, undelivered lines and caches have bounds of their own.
    #[serde(default = "state_max")]
    pub max_bytes: ByteSize,
}

/// What Outrigger may use.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of the worker. The buffers of all log sinks must fit into it; a worker above it in three checks, 2s apart, is
    /// replaced. Default: 64MiB, or a quarter of the control group's limit if that is less.
    #[serde(default)]
    pub memory: Option<ByteSize>,
}

/// The worker lives in a sandbox made from this configuration: the paths, TCP ports and programs that it names, and nothing else
/// (Landlock, seccomp, no new privileges, no capabilities). What the kernel lacks is reported in the status.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// `false` runs the worker without the sandbox; the status and a warning in our log say so.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// More files and directories to read.
    #[serde(default)]
    pub allow_read: Vec<PathBuf>,
    /// More directories to write.
    #[serde(default)]
    pub allow_write: Vec<PathBuf>,
    /// More TCP ports to connect to, such as one that ~/.ssh/config sets.
    #[serde(default)]
    pub allow_connect: Vec<u16>,
}

impl Default for StateConfig {
    fn default() -> StateConfig {
        StateConfig { dir: None, max_bytes: state_max() }
    }
}

impl Default for SandboxConfig {
    fn default() -> SandboxConfig {
        SandboxConfig { enabled: yes(), allow_read: Vec::new(), allow_write: Vec::new(), allow_connect: Vec::new() }
    }
}

fn state_max() -> ByteSize {
    ByteSize::mib(256)
}

fn yes() -> bool {
    true
}
