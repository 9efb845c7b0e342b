//! Keys that all sinks share: the buffer, the batch, the retries.

use config::unit::{ByteSize, TimeSpan};
use schemars::JsonSchema;
use serde::Deserialize;
use std::time::Duration;

/// The buffer of a sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BufferConfig {
    /// Maximum bytes of records buffered in memory. The buffers of all sinks together must fit into `limits.memory`.
    #[serde(default = "buffer_max_bytes")]
    pub max_bytes: ByteSize,
    /// Policy when the buffer is full: `block`, sources wait; `drop_oldest`, the oldest records are dropped, counted under
    /// `buffer_full`; `drop_newest`, the newest. Default: `block` if `required`, else `drop_oldest`.
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
    /// The newest records are dropped, counted under `buffer_full`.
    DropNewest,
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

/// Attempts to deliver a body. The delays belong to the receiver: while it fails, one body at a time is tried.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// Retries of a body before its records are dropped, counted under `expired`. Default: no limit.
    #[serde(default)]
    pub max_retries: Option<u32>,
    /// The delay after the first failure, doubled after each further one. `Retry-After` of the receiver is a lower bound, up to 1h.
    #[serde(default = "backoff")]
    pub backoff: TimeSpan,
    /// The longest delay.
    #[serde(default = "max_backoff")]
    pub max_backoff: TimeSpan,
    /// How long a body is retried before its records are dropped, counted under `expired`. Default: no limit.
    #[serde(default)]
    pub max_age: Option<TimeSpan>,
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

impl Default for RetryConfig {
    fn default() -> RetryConfig {
        RetryConfig { max_retries: None, backoff: backoff(), max_backoff: max_backoff(), max_age: None }
    }
}

/// The limits at which a body is complete.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub bytes: usize,
    pub records: usize,
    pub age: Duration,
}

impl BatchConfig {
    pub fn limits(&self) -> BatchLimits {
        BatchLimits { bytes: self.max_bytes.as_usize().max(1), records: self.max_records as usize, age: self.max_age.0 }
    }
}

/// Bodies in flight to one receiver.
pub fn max_concurrency() -> u32 {
    4
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

fn backoff() -> TimeSpan {
    TimeSpan::from_millis(250)
}

fn max_backoff() -> TimeSpan {
    TimeSpan::from_secs(30)
}
