//! What a person writes under `logs`.

use crate::sink::SinkEntry;
use crate::source::SourceEntry;
use crate::stage::StageEntry;
use base::unit::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Collects, shapes and ships log lines.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where lines come from, by name.
    #[schemars(extend("x-names" = true))]
    pub sources: BTreeMap<String, SourceEntry>,
    /// What is done to every record, in order. A source and a sink may have stages of their own.
    #[serde(default)]
    pub stages: Vec<StageEntry>,
    /// Where records go, by name.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sinks: BTreeMap<String, SinkEntry>,
}

/// What waits for a sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// The most bytes of records that wait in memory.
    #[serde(default = "buffer_max")]
    pub max: ByteSize,
    /// What happens when it is full. `block` for a required sink, `drop_oldest` for one that is not.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Sources wait. A file is its own buffer, and the app's output has the capture ring.
    Block,
    /// The oldest records go, counted under `buffer_full`.
    DropOldest,
}

/// What is sent at a time.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// The most bytes of one body, before compression.
    #[serde(default = "batch_max")]
    pub max: ByteSize,
    /// The longest that a record waits for others.
    #[serde(default = "batch_wait")]
    pub wait: Span,
}

impl Default for BufferConfig {
    fn default() -> BufferConfig {
        BufferConfig { max: buffer_max(), when_full: None }
    }
}

impl Default for BatchConfig {
    fn default() -> BatchConfig {
        BatchConfig { max: batch_max(), wait: batch_wait() }
    }
}

fn buffer_max() -> ByteSize {
    ByteSize::mib(8)
}

fn batch_max() -> ByteSize {
    ByteSize::mib(1)
}

fn batch_wait() -> Span {
    Span::from_millis(250)
}
