//! A new configuration for a running worker. In: a change of the file, a request on the admin socket, SIGHUP beside a container.
//! Out: a wish for another worker, or a report: a configuration with a mistake changes nothing. The other worker takes over the
//! listening sockets, the capture rings and the checkpoints; the app notices nothing.

use crate::control::Control;
use crate::grants::Mark;
use crate::load::Source;
use base::subsystem::Health;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use supervisor::message::ToSupervisor;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub struct Reloader {
    source: Source,
    command: Vec<OsString>,
    /// Without an app to start.
    companion: bool,
}

impl Reloader {
    pub fn new(source: Source, command: Vec<OsString>, companion: bool) -> Reloader {
        Reloader { source, command, companion }
    }

    /// The text that this worker serves.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// Reads and checks the file; wants another worker where it is right and new.
    pub fn reload(&self, control: &Control) -> Result<String, String> {
        let read = Source::read(&self.source.path);
        let checked = read.and_then(|source| source.plans(&self.command).map(|(plans, _)| (source, plans)));
        let (source, plans) = match checked.map_err(|report| report.render()) {
            Ok(checked) => checked,
            // The next worker looks from outside the sandbox, and stays away where it finds a mistake.
            Err(report) if is_blindness(&report) => {
                control.send(ToSupervisor::Replace { broken: false });
                return Ok("the next worker looks at what this one may not see, and takes over if it is right\n".into());
            }
            Err(report) => return Err(report),
        };
        if plans.command.is_empty() != self.companion {
            return Err("error: app.command was added or removed, and that takes a restart of Outrigger\n".into());
        }
        if source.text == self.source.text {
            return Ok("the configuration has not changed\n".into());
        }
        control.no_fault();
        tracing::info!("the configuration has changed; the next worker takes over");
        control.send(ToSupervisor::Replace { broken: false });
        Ok("the configuration is valid, and the next worker takes over\n".into())
    }

    /// Reloads when the file changes, or when one of `marks` is there that the sandbox could not let in before. A wrong
    /// configuration is reported once, and the old one serves.
    pub async fn watch(self: Rc<Self>, control: Rc<Control>, health: Arc<Health>, mut marks: Vec<Mark>) {
        // Nothing is seen yet: an edit that came while the worker started is found by the first look.
        let mut seen = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Each is a reason once: where the next worker cannot start, this one goes on.
            let others: Vec<Mark> = marks.extract_if(.., |mark| mark.is_another()).collect();
            if let Some(mark) = others.first() {
                tracing::info!(path = %mark.path().display(), "a path is new or was replaced; the next worker may use it");
                control.send(ToSupervisor::Replace { broken: false });
            }
            let now = self.stamp();
            if now == seen {
                continue;
            }
            seen = now;
            match self.reload(&control) {
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

/// Whether a report may be of what the sandbox hides and nothing else: a file, or the users and groups of the system.
fn is_blindness(report: &str) -> bool {
    ["Permission denied", "/etc/passwd", "/etc/group"].iter().any(|sign| report.contains(sign))
}

const PART: &str = "configuration";
