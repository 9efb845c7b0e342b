//! The sent notifications of the current revision, persisted in `sync/NAME/state.json`, so that a crash between publication and
//! notification loses no notification, and none is sent twice because another one failed. In: the revision and the indexes in
//! `notify` that were sent. Out: the same after a restart. Limits: one index for each configured notification.

use base::runtime::state::StateDir;
use base::telemetry::{Counter, Telemetry};
use serde::{Deserialize, Serialize};
use std::io;

/// The version of the file. A file with another version is reset: the app is notified again.
const VERSION: u32 = 1;

/// The file as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    revision: String,
    /// Indexes in `notify` that were sent while others were not; none once all were sent.
    #[serde(default)]
    notified: Option<Vec<usize>>,
}

/// The file of one entry.
pub struct Notified {
    state: StateDir,
    file: String,
    reset: Counter,
}

/// What the file records of a revision.
#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    /// Every notification was sent.
    Complete,
    /// The notifications with these indexes were sent.
    Partial(Vec<usize>),
}

impl Notified {
    pub fn new(state: StateDir, entry: &str, telemetry: &Telemetry) -> Notified {
        let reset = telemetry.counter(&base::runtime::state::FILES_RESET, &["sync/NAME/state.json"]);
        Notified { state, file: format!("sync/{entry}/state.json"), reset }
    }

    /// The sent notifications of `revision`. A file that cannot be read counts as none sent: a repeated notification is harmless.
    pub fn of(&self, revision: &str) -> (Status, io::Result<()>) {
        let none = Status::Partial(Vec::new());
        let bytes = match self.state.read(&self.file) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return (none, Ok(())),
            Err(error) => return (none, Err(error)),
        };
        match serde_json::from_slice::<Content>(&bytes) {
            Ok(content) if content.version != VERSION => {
                tracing::warn!(
                    path = self.file,
                    version = content.version,
                    "state file has an unsupported version; the app is notified again"
                );
                self.reset.add(1);
                (none, Ok(()))
            }
            Ok(content) if content.revision != revision => (none, Ok(())),
            Ok(content) => (content.notified.map_or(Status::Complete, Status::Partial), Ok(())),
            Err(error) => (none, Err(io::Error::other(format!("{}: {error}", self.file)))),
        }
    }

    pub fn write(&self, revision: &str, status: Status) -> io::Result<()> {
        let notified = match status {
            Status::Complete => None,
            Status::Partial(indexes) => Some(indexes),
        };
        let content = Content { version: VERSION, revision: revision.to_string(), notified };
        self.state.write(&self.file, &serde_json::to_vec(&content)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_notifications_are_known_after_a_restart() {
        let dir = std::env::temp_dir().join(format!("outrigger-notified-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let notified = Notified::new(StateDir::open(&dir, 1 << 20), "settings", &Telemetry::default());
        let none = Status::Partial(Vec::new());
        assert_eq!(notified.of("all/a").0, none);
        notified.write("all/a", Status::Partial(vec![1])).expect("written");
        assert_eq!(notified.of("all/a").0, Status::Partial(vec![1]));
        notified.write("all/a", Status::Complete).expect("written");
        assert_eq!(notified.of("all/a").0, Status::Complete);
        assert_eq!(notified.of("all/b").0, none, "another revision");
        let file = dir.join("sync/settings/state.json");
        std::fs::write(&file, "{\"version\":9,\"revision\":\"all/a\"}").expect("written");
        assert!(matches!(notified.of("all/a"), (found, Ok(())) if found == none), "another version");
        std::fs::write(&file, "garbage").expect("written");
        assert!(matches!(notified.of("all/a"), (found, Err(_)) if found == none), "an unreadable file is reported");
        let _ = std::fs::remove_dir_all(&dir);
    }
}
