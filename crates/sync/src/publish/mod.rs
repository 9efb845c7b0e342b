//! How revisions are published. A kind is one file here and one line in the registry.

pub mod symlink;

use crate::candidate::{Candidate, Limits};
use config::registry::Kind;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

config::registry! {
    /// A way to publish: its kind.
    pub entry PublishEntry, configs dyn PublishConfig {
        /// A symlink that is replaced atomically.
        symlink => symlink::Config,
    } shared {}
}

/// The Config of a way to publish.
pub trait PublishConfig: Kind {
    /// What readers open, as an absolute path without `.` and `..`.
    fn path(&self) -> PathBuf;

    /// All paths that it creates: two entries may not share one.
    fn occupied(&self) -> Vec<PathBuf>;

    /// The directory for the cache of a store if there is no state directory. A directory for temporary files is shared by all
    /// users.
    fn cache(&self) -> PathBuf;

    /// Creates what it publishes into. Errors contain what prevents it. Called on a thread that may block.
    fn open(&self) -> io::Result<Box<dyn Target>>;
}

/// Where one entry publishes. The name of a revision is `SELECTION/NAME`.
pub trait Target {
    /// The published revision, if it exists.
    fn published(&self) -> Option<String>;

    /// When it was published.
    fn published_at(&self) -> Option<SystemTime>;

    /// Restores what is published if it was lost, for when the store cannot be polled.
    fn restore(&self) -> io::Result<Option<String>>;

    /// A directory for a candidate; its name is unique and never reused.
    fn candidate(&self, limits: Limits) -> io::Result<Candidate>;

    /// Publishes a finished candidate under its revision's name.
    fn publish(&self, candidate: Candidate, revision: &str) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<PublishEntry>(PublishEntry::KINDS);
    }
}
