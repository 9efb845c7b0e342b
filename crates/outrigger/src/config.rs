//! The complete configuration: one file, one struct with the Config of each section.

use crate::app::App;
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Outrigger's configuration. A section that is not set is off and costs nothing.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The app.
    #[serde(default)]
    pub app: App,
    /// State directory: checkpoints, backlog, caches.
    #[serde(default)]
    pub state: StateConfig,
    /// Resource limits.
    #[serde(default)]
    pub limits: Limits,
    /// Sandbox of the worker (Landlock, seccomp).
    #[serde(default)]
    pub sandbox: SandboxConfig,
    /// The app's logs.
    #[serde(default)]
    pub logs: Option<logs::config::Config>,
    /// The app's metrics.
    #[serde(default)]
    pub metrics: Option<metrics::config::Config>,
    /// Directories synchronized from a store, by name.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sync: BTreeMap<String, sync::config::Config>,
    /// The service's traffic.
    #[serde(default)]
    pub proxy: Option<proxy::config::Config>,
    /// Admin interface: listeners, socket, access.
    #[serde(default)]
    pub admin: admin::config::Config,
}

/// State directory: checkpoints, backlog, caches.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// The directory. If it is not writable, the status reports that, and everything runs without durability. Default:
    /// `$STATE_DIRECTORY`, else /var/lib/outrigger.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// Maximum size of a file that is replaced atomically; checkpoints, undelivered lines and caches have separate limits.
    #[serde(default = "state_max")]
    pub max_bytes: ByteSize,
}

/// Resource limits of Outrigger.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of the worker. It must hold the buffers of all sinks and what else components keep while receivers are down; a
    /// worker above it in three checks, 2s apart, is replaced. Default: 64MiB, or a quarter of the control group's limit if that is less.
    #[serde(default)]
    pub memory: Option<ByteSize>,
}

/// The worker runs in a sandbox that allows only the paths, TCP ports and programs of this configuration (Landlock, seccomp, no
/// new privileges, no capabilities). Missing kernel support is reported in the status.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// `false` runs the worker without the sandbox; the status and a warning in Outrigger's log report that.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Additional files and directories to read.
    #[serde(default)]
    pub allow_read: Vec<PathBuf>,
    /// Additional directories to write.
    #[serde(default)]
    pub allow_write: Vec<PathBuf>,
    /// Additional TCP ports to connect to, such as one that ~/.ssh/config sets.
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
