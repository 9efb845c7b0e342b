//! Who has been notified of the present revision, kept in `sync/NAME/state.json`, so that a crash between publication and
//! notification costs no notification, and none is sent twice because another one failed. In: the revision and the places in `notify`
//! that have been notified. Out: the same after a restart. Bound: one place for each configured notification.

use base::runtime::state::StateDir;
use base::telemetry::{Counter, Telemetry};
use serde::{Deserialize, Serialize};
use std::io;

/// The version of the file. Another one is started anew: the app is notified again.
const VERSION: u32 = 1;

/// The file as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    revision: String,
    /// Places in `notify` that have been notified while others have not; none once all have.
    #[serde(default)]
    notified: Option<Vec<usize>>,
}

/// The file of one entry.
pub struct Notified {
    state: StateDir,
    file: String,
    reset: Counter,
}

/// What the file says of a revision.
#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    /// Every notification was sent.
    Complete,
    /// These places have been notified.
    Partial(Vec<usize>),
}

impl Notified {
    pub fn new(state: StateDir, entry: &str, telemetry: &Telemetry) -> Notified {
        let reset = telemetry.counter(&base::runtime::state::FILES_RESET, &["sync/NAME/state.json"]);
        Notified { state, file: format!("sync/{entry}/state.json"), reset }
    }

    /// Who has been notified of `revision`. What cannot be read counts as nobody: a notification too many is harmless.
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
                    file = self.file,
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
            Status::Partial(places) => Some(places),
        };
        let content = Content { version: VERSION, revision: revision.to_string(), notified };
        self.state.write(&self.file, &serde_json::to_vec(&content)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_notified_is_known_after_a_restart() {
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
        assert!(matches!(notified.of("all/a"), (found, Err(_)) if found == none), "what cannot be read is said");
        let _ = std::fs::remove_dir_all(&dir);
    }
}
