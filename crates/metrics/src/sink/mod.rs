//! Sinks of samples. A sink receives every snapshot. A kind is one file here and one line in the registry.

pub mod prometheus;
pub mod remote_write;

use crate::sink_options::BufferConfig;

config::registry! {
    /// A sink of metrics: its kind.
    pub entry SinkEntry, kind SinkKind {
        /// A /metrics endpoint that Prometheus scrapes.
        prometheus => Prometheus(prometheus::Config),
        /// Prometheus remote write.
        remote_write => RemoteWrite(remote_write::Config),
    } shared {
        /// The samples that wait for a sink that pushes; an error with `prometheus`.
        #[serde(default)]
        pub buffer: Option<BufferConfig>,
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
