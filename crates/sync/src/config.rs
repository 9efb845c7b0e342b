//! What a person writes under `sync`.

use crate::notify::NotifyEntry;
use crate::store::StoreEntry;
use base::unit::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// One directory that follows a store.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The store that is followed.
    pub from: StoreEntry,
    /// Where it is published: a symlink to the directory of the present revision, replaced whole at each change. The
    /// revisions themselves lie beside it, in `.NAME.revisions`.
    pub to: PathBuf,
    /// How often the store is asked.
    #[serde(default = "every")]
    pub every: Span,
    /// Who is told after each publication.
    #[serde(default)]
    pub notify: Vec<NotifyEntry>,
    /// The most files of one revision.
    #[serde(default = "files_max")]
    pub files_max: u32,
    /// The most bytes of one revision.
    #[serde(default = "bytes_max")]
    pub bytes_max: ByteSize,
}

fn every() -> Span {
    Span::from_secs(10)
}

fn files_max() -> u32 {
    10_000
}

fn bytes_max() -> ByteSize {
    ByteSize::mib(64)
}
