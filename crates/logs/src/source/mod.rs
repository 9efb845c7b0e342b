//! Sources of log records. Each source is one task that reads when the sinks have room, and passes batches to the
//! pipeline. A kind is one file here and one line in the registry.

pub mod stdio;
pub mod file;
pub mod proxy;

use crate::stage::StageEntry;
use config::needs::Needs;

config::registry! {
    /// A source: its kind, and the options common to all kinds.
    pub entry SourceEntry, kind SourceKind {
        /// The app's stdout and stderr.
        stdio => Stdio(stdio::Config),
        /// Files that the app writes.
        file => File(file::Config),
        /// A record for each request through the proxy.
        proxy => Proxy(proxy::Config),
    } shared {
        /// Stages for this source only, before those of `logs.stages`.
        #[serde(default)]
        pub stages: Vec<StageEntry>,
    }
}

impl SourceKind {
    /// What it needs from the system.
    pub fn needs(&self) -> Needs {
        match self {
            SourceKind::File(config) => Needs { read: config.directories(), ..Needs::default() },
            SourceKind::Stdio(_) | SourceKind::Proxy(_) => Needs::default(),
        }
    }
}

/// The default maximum length of a line.
pub(crate) fn max_line_bytes() -> config::unit::ByteSize {
    config::unit::ByteSize(256 << 10)
}

/// The size of a read.
pub(crate) const CHUNK: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<SourceEntry>(SourceEntry::KINDS);
    }
}
