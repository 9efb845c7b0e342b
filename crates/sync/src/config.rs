//! The section `sync` of the configuration.

use crate::notify::NotifyEntry;
use crate::publish::PublishEntry;
use crate::store::StoreEntry;
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;

/// One directory that is synchronized from a store.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The store to synchronize from, by its kind.
    pub store: StoreEntry,
    /// Where and how a revision is published, by its kind.
    pub publish: PublishEntry,
    /// Notifications to send after each publication, one after the other.
    #[serde(default)]
    pub notify: Vec<NotifyEntry>,
    /// Maximum number of files, links and directories of one revision; a candidate with more is rejected.
    #[serde(default = "max_files")]
    pub max_files: u32,
    /// Maximum bytes of one revision; a candidate with more is rejected.
    #[serde(default = "max_bytes")]
    pub max_bytes: ByteSize,
}

fn max_files() -> u32 {
    10_000
}

fn max_bytes() -> ByteSize {
    ByteSize::mib(64)
}
