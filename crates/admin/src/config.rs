//! What a person writes under `admin`.

use base::unit::Address;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Where Outrigger shows itself. Nothing listens unless it is named here.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Read only: the page, /started /ready /live /metrics /ledger /status /config. Best on loopback.
    #[serde(default)]
    pub listen: Option<Address>,
    /// A unix socket for everything, also what changes something. Only its owner may open it.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// /started, /ready and /live alone, for probes from outside.
    #[serde(default)]
    pub probes: Option<Address>,
}
