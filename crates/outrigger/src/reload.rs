//! A new configuration for a running worker. In: a change of the file, a request on the admin socket, SIGHUP beside a container.
//! Out: a replacement for another worker, or a report: a configuration with a mistake changes nothing. The other worker takes over the
//! listening sockets, the capture rings and the checkpoints; the app notices nothing.

use crate::control::Control;
use crate::grants::Mark;
use crate::load::Source;
use base::runtime::health::Health;
use base::system::file::Stamp;
use base::telemetry::Gauge;
use std::cell::RefCell;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use supervisor::message::ToSupervisor;
use supervisor::restarts::RestartReason;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub struct Reloader {
    source: Source,
    command: Vec<OsString>,
    /// Without an app to start.
    companion: bool,
    /// The text that another worker was wanted for last.
    tried: RefCell<String>,
}

/// What a look at the file led to.
enum Found {
    Same,
    Other(String),
    /// Something that this worker may not see.
    Unseen,
}

impl Reloader {
    pub fn new(source: Source, command: Vec<OsString>, companion: bool) -> Reloader {
        Reloader { source, command, companion, tried: RefCell::default() }
    }

    /// The text that this worker serves.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// Reads and checks the file. Errors are reports.
    fn look(&self) -> Result<Found, String> {
        let read = Source::read(&self.source.path);
        let checked = read.and_then(|source| source.plans(&self.command).map(|(plans, _)| (source, plans)));
        let (source, plans) = match checked.map_err(|report| report.render()) {
            Ok(checked) => checked,
            // The next worker looks from outside the sandbox, and stays away where it finds a mistake.
            Err(report) if is_blindness(&report) => return Ok(Found::Unseen),
            Err(report) => return Err(report),
        };
        if plans.command.is_empty() != self.companion {
            return Err("error: adding or removing app.command requires a restart\n".into());
        }
        Ok(if source.text == self.source.text { Found::Same } else { Found::Other(source.text) })
    }

    /// Somebody asks: answers once the other worker serves, or with the reason why none does.
    pub async fn reload(&self, control: &Control) -> Result<String, String> {
        let found = self.look()?;
        if let Found::Same = found {
            return Ok("the configuration has not changed\n".into());
        }
        self.begin(found);
        match control.replace().await {
            Ok(()) => Ok("the configuration is valid, and the next worker has taken over\n".into()),
            Err(reason) => Err(format!("error: no other worker could take over: {reason}\n")),
        }
    }

    /// The file has changed: wants another worker where it is right and new. False where that was tried in vain.
    fn follow(&self, control: &Control) -> Result<bool, String> {
        let found = self.look()?;
        match &found {
            // What this worker serves is wanted again.
            Found::Same => {
                control.no_fault();
                return Ok(true);
            }
            Found::Other(text) if *self.tried.borrow() == *text => return Ok(false),
            Found::Other(_) | Found::Unseen => control.no_fault(),
        }
        self.begin(found);
        control.send(ToSupervisor::Replace { reason: RestartReason::Reload });
        Ok(true)
    }

    /// Another worker is about to be wanted.
    fn begin(&self, found: Found) {
        if let Found::Other(text) = found {
            self.tried.replace(text);
        }
        tracing::info!("configuration changed; reloading with a new worker");
    }

    /// Reloads when the file changes, or when one of `marks` is there that the sandbox could not let in before. A wrong
    /// configuration is reported once, and the old one serves.
    pub async fn watch(self: Rc<Self>, control: Rc<Control>, health: Arc<Health>, mut marks: Vec<Mark>, loaded: Gauge) {
        // Nothing is seen yet: an edit that came while the worker started is found by the first look.
        let mut seen = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Each is a reason once: where the next worker cannot start, this one goes on.
            let others: Vec<Mark> = marks.extract_if(.., |mark| mark.has_changed()).collect();
            if let Some(mark) = others.first() {
                tracing::info!(path = %mark.path().display(), "a configured path now exists or was replaced; starting a new worker to grant it");
                control.send(ToSupervisor::Replace { reason: RestartReason::Reload });
            }
            let now = Stamp::of(&self.source.path);
            // Whoever waits for another worker tries this file.
            if now == seen || control.is_requested() {
                continue;
            }
            seen = now;
            match self.follow(&control) {
                Ok(true) => drop(health.recovered(PART)),
                Ok(false) => {
                    loaded.set(0);
                    let text =
                        "reload failed: no worker could start with the new configuration; keeping the previous one";
                    if health.fault(PART, text) {
                        tracing::warn!("{text}; change the file to have it tried again");
                    }
                }
                Err(report) => {
                    loaded.set(0);
                    base::telemetry::logging::report(
                        &report,
                        "reload failed: invalid configuration; keeping the previous one",
                    );
                    health.fault(PART, "reload failed: invalid configuration; keeping the previous one");
                }
            }
        }
    }
}

/// Whether a report may be of what the sandbox hides and nothing else: a file, or the users and groups of the system.
fn is_blindness(report: &str) -> bool {
    ["Permission denied", "/etc/passwd", "/etc/group"].iter().any(|sign| report.contains(sign))
}

/// What health calls the file.
pub const PART: &str = "configuration";
