//! A new configuration for a running worker. In: a change of the file, a request on the admin socket, SIGHUP beside a
//! container. Out: a worker that makes room for the next, or a report: a configuration with a mistake changes nothing. The next
//! worker takes over the listening sockets, the capture rings and the checkpoints; the app notices nothing.

use crate::load::Source;
use base::subsystem::Health;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// The file in the state directory that holds the text which a worker last served.
pub const LAST_GOOD: &str = "config.last-good.yaml";

/// The file in the state directory that holds a text with which a later worker could not start.
pub const REFUSED: &str = "config.refused.yaml";

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub struct Reloader {
    source: Source,
    command: Vec<OsString>,
    wanted: Rc<Notify>,
}

impl Reloader {
    pub fn new(source: Source, command: Vec<OsString>) -> Reloader {
        Reloader { source, command, wanted: Rc::default() }
    }

    /// Tells when a new worker is wanted.
    pub fn wanted(&self) -> Rc<Notify> {
        self.wanted.clone()
    }

    /// The text that this worker serves.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// Reads and checks the file; wants a new worker where it is right and new.
    pub fn reload(&self) -> Result<String, String> {
        let read = Source::read(&self.source.path);
        let source =
            read.and_then(|source| source.plans(&self.command).map(|_| source)).map_err(|report| report.render())?;
        if source.text == self.source.text {
            return Ok("the configuration has not changed\n".into());
        }
        tracing::info!("the configuration has changed; the next worker takes over");
        self.wanted.notify_one();
        Ok("the configuration is valid, and the next worker takes over\n".into())
    }

    /// Reloads when the file changes. A wrong one is reported once, and the old one serves.
    pub async fn watch(self: Rc<Self>, health: Arc<Health>) {
        // Nothing is seen yet: an edit that came while the worker started is found by the first look.
        let mut seen = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.stamp();
            if now == seen {
                continue;
            }
            seen = now;
            match self.reload() {
                Ok(_) => drop(health.recovered(PART)),
                Err(report) => {
                    eprint!("{report}");
                    tracing::error!("the changed configuration has mistakes; the old one goes on serving");
                    health.fault(PART, "the file has mistakes, and the old configuration goes on serving");
                }
            }
        }
    }

    /// What tells a change; a file that is replaced by a symlink, as of a ConfigMap, has another inode's time.
    fn stamp(&self) -> Option<(SystemTime, u64)> {
        let meta = std::fs::metadata(&self.source.path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    }
}

const PART: &str = "configuration";
