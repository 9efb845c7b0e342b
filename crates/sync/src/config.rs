//! What a person writes under `sync`.

use crate::notify::NotifyEntry;
use crate::publish::PublishEntry;
use crate::store::StoreEntry;
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;

/// One directory that follows a store.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The store that is followed, by its kind.
    pub store: StoreEntry,
    /// Where and how a revision is published, by its kind.
    pub publish: PublishEntry,
    /// What is notified after each publication, one after the other.
    #[serde(default)]
    pub notify: Vec<NotifyEntry>,
    /// Files, links and directories of one revision; a candidate with more is refused.
    #[serde(default = "max_files")]
    pub max_files: u32,
    /// Bytes of one revision; a candidate with more is refused.
    #[serde(default = "max_bytes")]
    pub max_bytes: ByteSize,
}

fn max_files() -> u32 {
    10_000
}

fn max_bytes() -> ByteSize {
    ByteSize::mib(64)
}
