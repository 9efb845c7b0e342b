//! Where revisions come from. A store is asked on a thread that may block. A kind is one file here and one line in the
//! registry.

pub mod git;

use crate::staging::Staging;
use base::needs::Needs;
use std::path::PathBuf;

base::registry! {
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
    /// The files of this revision are in the staging directory.
    New { revision: String },
}

/// One store. Called on one thread at a time.
pub trait Store: Send {
    /// Asks for the newest revision; unless it is `published`, writes its files by way of `stage`.
    fn fetch(
        &mut self,
        published: Option<&str>,
        stage: &mut dyn FnMut() -> Result<Staging, String>,
    ) -> Result<(Fetched, Option<Staging>), String>;
}

impl StoreKind {
    /// What the schema cannot check.
    pub fn check(&self) -> Result<(), String> {
        match self {
            StoreKind::Git(config) => config.check(),
        }
    }

    /// What it needs from the system.
    pub fn needs(&self) -> Needs {
        match self {
            StoreKind::Git(config) => config.needs(),
        }
    }

    /// `cache`: a folder of the store's own, kept over restarts where there is a state directory.
    pub fn build(&self, cache: PathBuf) -> Result<Box<dyn Store>, String> {
        match self {
            StoreKind::Git(config) => Ok(Box::new(git::Git::new(config.clone(), cache)?)),
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

    /// covers: foundation 5
    #[test]
    fn the_registry_keeps_its_laws() {
        base::registry::assert_laws::<StoreEntry>(StoreEntry::KINDS);
    }
}
