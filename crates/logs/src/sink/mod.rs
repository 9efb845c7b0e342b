//! Sinks of log records: an encoder of bodies, and a transport that sends them and reads the receiver's response. Queue, retries and
//! acknowledgements are those of `delivery`. A kind is one file here and one line in the registry.

pub mod http;
pub mod loki;
pub mod file;
pub mod stdout;
pub mod blackhole;

use crate::batch::Batch;
use crate::stage::StageEntry;
use config::registry::Kind;
use delivery::engine::Sink;
use delivery::options::{BatchConfig, BufferConfig, RetryConfig, max_concurrency};
use std::path::PathBuf;

config::registry! {
    /// A sink: its kind, and the options common to all kinds.
    pub entry SinkEntry, configs dyn SinkConfig {
        /// JSON lines over HTTP.
        http => http::Config,
        /// Grafana Loki.
        loki => loki::Config,
        /// A file with rotation.
        file => file::Config,
        /// Outrigger's stdout.
        stdout => stdout::Config,
        /// Discards and counts records.
        blackhole => blackhole::Config,
    } shared {
        /// Names of the sources whose records the sink receives. Default: all.
        #[serde(default)]
        pub inputs: Option<Vec<String>>;
        /// Whether sources wait for this sink. If `false`, the sink delays no source, and a full buffer drops its oldest records.
        #[serde(default = "yes")]
        pub required: bool;
        /// The buffer of records for this sink.
        #[serde(default)]
        pub buffer: BufferConfig;
        /// The limits of a body.
        #[serde(default)]
        pub batch: BatchConfig;
        /// Attempts to deliver a body.
        #[serde(default)]
        pub retry: RetryConfig;
        /// Maximum number of bodies in flight. No two have lines of the same file or stream, so that order is kept.
        #[serde(default = "max_concurrency")]
        #[schemars(range(min = 1, max = 64))]
        pub max_concurrency: u32;
        /// Stages for this sink only, after those of the source and of `logs.stages`.
        #[serde(default)]
        pub stages: Vec<StageEntry>;
    }
}

fn yes() -> bool {
    true
}

/// The Config of a sink.
pub trait SinkConfig: Kind {
    /// Errors give the file or certificate that cannot be used.
    fn build(&self) -> Result<Sink<Batch>, String>;

    /// The files that it writes: a source that reads one of them can be an endless loop.
    fn written_files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<SinkEntry>(SinkEntry::KINDS);
    }
}
