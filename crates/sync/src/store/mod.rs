//! Where revisions come from. A store is asked on a thread that may block. A kind is one file here and one line in the
//! registry.

pub mod git;

use crate::candidate::Candidate;
use config::needs::Needs;
use std::path::PathBuf;
use std::time::Duration;

config::registry! {
    /// A store: its kind.
    pub entry StoreEntry, kind StoreKind {
        /// A git repository.
        git => Git(git::Config),
    } shared {}
}

/// What asking a store led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The published revision is the newest.
    Same,
    /// The files of this revision are in the candidate directory.
    New { revision: String },
}

/// Why a store gave nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub text: String,
    /// How long it asked not to be asked again.
    pub wait: Option<Duration>,
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure { text, wait: None }
    }
}

/// One store. Called on one thread at a time.
pub trait Store: Send {
    /// Asks for the newest revision; unless it is `published`, writes its files by way of `stage`. A revision is named
    /// `SELECTION/NAME`: what is chosen of the store, and the store's own name for its state.
    fn fetch(
        &mut self,
        published: Option<&str>,
        stage: &mut dyn FnMut() -> Result<Candidate, String>,
    ) -> Result<(Fetched, Option<Candidate>), Failure>;
}

impl StoreKind {
    /// What the schema cannot check.
    pub fn check(&self) -> Result<(), String> {
        match self {
            StoreKind::Git(config) => config.check(),
        }
    }

    /// How often it is polled.
    pub fn interval(&self) -> Duration {
        match self {
            StoreKind::Git(config) => config.interval.0,
        }
    }

    /// What it needs from the system.
    pub fn needs(&self) -> Needs {
        match self {
            StoreKind::Git(config) => config.needs(),
        }
    }

    /// `cache`: a folder of the store's own, kept over restarts where there is a state directory. `max_bytes`: what a revision may
    /// have; nothing larger is held in memory.
    pub fn build(&self, cache: PathBuf, max_bytes: u64) -> Result<Box<dyn Store>, String> {
        match self {
            StoreKind::Git(config) => Ok(Box::new(git::Git::new(config.clone(), cache, max_bytes)?)),
        }
    }

    /// Where it is, without credentials, for status and log.
    pub fn describe(&self) -> String {
        match self {
            StoreKind::Git(config) => config.describe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_keeps_its_laws() {
        config::registry::assert_laws::<StoreEntry>(StoreEntry::KINDS);
    }
}
