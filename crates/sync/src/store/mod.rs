//! Stores of revisions. A store is polled on a thread that may block. A kind is one file here and one line in the
//! registry.

pub mod git;

use crate::candidate::Candidate;
use config::registry::Kind;
use std::path::PathBuf;
use std::time::Duration;

config::registry! {
    /// A store: its kind.
    pub entry StoreEntry, configs dyn StoreConfig {
        /// A git repository.
        git => git::Config,
    } shared {}
}

/// The Config of a store.
pub trait StoreConfig: Kind {
    /// How often it is polled.
    fn interval(&self) -> Duration;

    /// `cache`: the store's own directory, retained over restarts if there is a state directory. `max_bytes`: the maximum of a
    /// revision; nothing larger is read into memory.
    fn build(&self, cache: PathBuf, max_bytes: u64) -> Result<Box<dyn Store>, String>;

    /// Its location, without credentials, for status and log.
    fn describe(&self) -> String;
}

/// The result of a poll.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The published revision is the newest.
    Same,
    /// The files of this revision are in the candidate directory.
    New { revision: String },
}

/// Why a poll failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub text: String,
    /// How long the store requested not to be polled.
    pub wait: Option<Duration>,
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure { text, wait: None }
    }
}

/// One store. Called on one thread at a time.
pub trait Store: Send {
    /// Polls for the newest revision; unless it is `published`, writes its files through `stage`. The name of a revision is
    /// `SELECTION/NAME`: what is selected from the store, and the store's own name for its state.
    fn fetch(
        &mut self,
        published: Option<&str>,
        stage: &mut dyn FnMut() -> Result<Candidate, String>,
    ) -> Result<(Fetched, Option<Candidate>), Failure>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<StoreEntry>(StoreEntry::KINDS);
    }
}
