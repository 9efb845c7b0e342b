//! Sources of log records. Each source is one or more tasks that read when the sinks have room, and pass batches to the
//! pipeline. A kind is one file here and one line in the registry.

pub mod stdio;
pub mod file;
pub mod proxy;

use crate::checkpoint::Checkpoints;
use crate::pipeline::Pipeline;
use crate::stage::StageEntry;
use base::feeds::{AccessBatch, FeedReceiver};
use base::runtime::health::Health;
use base::runtime::lifecycle::PhaseWatch;
use base::runtime::scope::Scope;
use base::runtime::state::StateDir;
use config::registry::Kind;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use sys::ring::Ring;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

config::registry! {
    /// A source: its kind, and the options common to all kinds.
    pub entry SourceEntry, configs dyn SourceConfig {
        /// The app's stdout and stderr.
        stdio => stdio::Config,
        /// Files that the app writes.
        file => file::Config,
        /// A record for each request through the proxy.
        proxy => proxy::Config,
    } shared {
        /// Stages for this source only, before those of `logs.stages`.
        #[serde(default)]
        pub stages: Vec<StageEntry>;
    }
}

/// The Config of a source.
pub trait SourceConfig: Kind {
    /// Starts its tasks on the logs thread. A source that cannot run reports a fault.
    fn start(&self, start: Start<'_>);

    /// Whether it reads a file of this path.
    fn reads(&self, _path: &Path) -> bool {
        false
    }

    /// The size of the rings that the supervisor creates if this source reads the app's output. `container`: the memory limit of
    /// the control group.
    fn capture_bytes(&self, _container: Option<u64>) -> Option<u64> {
        None
    }

    /// Whether it reads access records, which the proxy creates only then.
    fn reads_access(&self) -> bool {
        false
    }
}

/// What sources need from the rest of the worker.
pub struct Inputs {
    pub rings: Option<(Ring, Ring)>,
    /// The supervisor's signal that the rings have more.
    pub wake: Option<OwnedFd>,
    pub access: Option<FeedReceiver<AccessBatch>>,
    pub state: StateDir,
}

/// What one source starts with.
pub struct Start<'a> {
    pub pipeline: Rc<Pipeline>,
    pub inputs: &'a mut Inputs,
    pub checkpoints: &'a Checkpoints,
    pub health: &'a Health,
    pub phase: &'a PhaseWatch,
    pub scope: &'a Scope,
    /// Dropped after the first scan for files.
    pub scanning: &'a mpsc::Sender<()>,
    pub running: &'a mut Running,
}

/// The tasks of all sources.
#[derive(Default)]
pub struct Running {
    /// Tasks of streams that another worker can continue to read.
    pub readers: Vec<JoinHandle<()>>,
    /// Tasks that end at a handover without further steps.
    pub helpers: Vec<JoinHandle<()>>,
    /// Tasks of sources within this worker.
    pub feeds: Vec<JoinHandle<()>>,
    /// What is persisted at a stop.
    pub backlogs: Vec<Unacknowledged>,
}

/// Records that cannot be read again after a stop, of one stream.
pub struct Unacknowledged {
    pub pipeline: Rc<Pipeline>,
    /// Persists what required sinks have not acknowledged. Returns the number of lines that are lost nevertheless.
    pub persist: Box<dyn Fn() -> io::Result<u64>>,
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
