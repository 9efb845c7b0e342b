//! Options that sinks share: the buffer.

use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;

/// Samples that wait for a sink that pushes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// Bytes of samples that wait in memory, in at most 10,000 snapshots. When the buffer is full, or under memory pressure,
    /// the oldest snapshots are dropped, counted under `buffer_full`.
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
