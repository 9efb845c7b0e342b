//! The whole configuration: one file, one struct, each section's own Config within.

use crate::app::App;
use base::unit::ByteSize;
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
    /// The directory; $STATE_DIRECTORY, else /var/lib/outrigger, where left out. One that cannot be written is reported, and
    /// everything runs without durability.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// The most bytes of any file in it.
    #[serde(default = "state_max")]
    pub max: ByteSize,
}

/// What Outrigger may use.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory of the worker. Buffers of sinks must fit into it together; a worker that needs more is replaced. Where left out, it
    /// is 64 MiB, or a quarter of the control group's limit where that is less.
    #[serde(default)]
    pub memory: Option<ByteSize>,
}

/// The worker lives in a sandbox made from this configuration: the paths, TCP ports and programs that it names, and nothing else
/// (Landlock, seccomp, no new privileges, no capabilities). What the kernel lacks is reported in the status.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxConfig {
    /// Off only where the kernel stands in the way of something that the configuration needs.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Further files and folders to read.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Further folders to write.
    #[serde(default)]
    pub write: Vec<PathBuf>,
    /// Further TCP ports to connect to, as for a server that redirects to another port.
    #[serde(default)]
    pub connect: Vec<u16>,
}

impl Default for StateConfig {
    fn default() -> StateConfig {
        StateConfig { dir: None, max: state_max() }
    }
}

impl Default for SandboxConfig {
    fn default() -> SandboxConfig {
        SandboxConfig { enabled: yes(), read: Vec::new(), write: Vec::new(), connect: Vec::new() }
    }
}

fn state_max() -> ByteSize {
    ByteSize::mib(256)
}

fn yes() -> bool {
    true
}
