//! Options common to all sinks: the buffer and the batch.

use config::unit::{ByteSize, TimeSpan};
use schemars::JsonSchema;
use serde::Deserialize;

/// The buffer of a sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// Maximum bytes of records buffered in memory. The buffers of all sinks together must fit into `limits.memory`.
    #[serde(default = "buffer_max_bytes")]
    pub max_bytes: ByteSize,
    /// Policy when the buffer is full: `block`, sources wait; `drop_oldest`, the oldest records are dropped, counted under
    /// `buffer_full`. Default: `block` if `required`, else `drop_oldest`.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Sources wait. A file is its own buffer, and the app's output has the capture ring.
    Block,
    /// The oldest records are dropped, counted under `buffer_full`.
    DropOldest,
}

/// The limits of a body.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// A body is sent once it has this many bytes before compression; its last record may exceed it.
    #[serde(default = "batch_max_bytes")]
    pub max_bytes: ByteSize,
    /// Maximum number of records in a body.
    #[serde(default = "batch_max_records")]
    #[schemars(range(min = 1))]
    pub max_records: u32,
    /// How long the first record of a body waits for more records.
    #[serde(default = "batch_max_age")]
    pub max_age: TimeSpan,
}

impl Default for BufferConfig {
    fn default() -> BufferConfig {
        BufferConfig { max_bytes: buffer_max_bytes(), when_full: None }
    }
}

impl Default for BatchConfig {
    fn default() -> BatchConfig {
        BatchConfig { max_bytes: batch_max_bytes(), max_records: batch_max_records(), max_age: batch_max_age() }
    }
}

fn buffer_max_bytes() -> ByteSize {
    ByteSize::mib(8)
}

fn batch_max_bytes() -> ByteSize {
    ByteSize::mib(1)
}

fn batch_max_records() -> u32 {
    10_000
}

fn batch_max_age() -> TimeSpan {
    TimeSpan::from_secs(1)
}
