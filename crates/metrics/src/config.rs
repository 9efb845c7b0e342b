//! What a person writes under `metrics`.

use crate::sink::SinkEntry;
use crate::source::SourceEntry;
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Collects metrics of the app and exports them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where samples come from, by name.
    #[schemars(extend("x-names" = true))]
    pub sources: BTreeMap<String, SourceEntry>,
    /// Where samples go, by name. Every sink gets all sources.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sinks: BTreeMap<String, SinkEntry>,
}

/// What waits for a sink that pushes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// Bytes of samples that wait in memory, in at most 10,000 snapshots. When it is full, or memory is short, the oldest
    /// snapshots are dropped, counted under `buffer_full`.
    #[serde(default = "buffer_max_bytes")]
    pub max_bytes: ByteSize,
}

impl Default for BufferConfig {
    fn default() -> BufferConfig {
        BufferConfig { max_bytes: buffer_max_bytes() }
    }
}

fn buffer_max_bytes() -> ByteSize {
    ByteSize::mib(8)
}
