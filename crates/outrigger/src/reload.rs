//! A new configuration for a running worker. In: a change of the file, a request on the admin socket, SIGHUP in a companion. Out:
//! a request for a new worker, or a report: an invalid configuration changes nothing. The new worker takes over the listening
//! sockets, the capture rings and the checkpoints; the app is not affected.

use crate::control::Control;
use crate::grants::Mark;
use crate::load::Source;
use crate::telemetry::ReloadMetrics;
use base::runtime::health::Health;
use base::system::file::Stamp;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use supervisor::message::ToSupervisor;
use supervisor::restarts::RestartReason;

/// How often the files are checked.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

pub struct Reloader {
    source: Source,
    command: Vec<OsString>,
    /// Without an app to start.
    companion: bool,
    /// What this worker serves: the text and the content of interpolated files, as a hash.
    served: Cell<u64>,
    /// The configuration for which a new worker was last requested, as a hash.
    attempted: Cell<Option<u64>>,
    /// The report of the last request that was rejected.
    rejected: RefCell<Option<String>>,
    metrics: OnceCell<ReloadMetrics>,
    /// The version of the file with which a reload last failed.
    failed: Cell<Option<Stamp>>,
    /// A worker was requested for a change, and its result is not known yet.
    requested: Cell<bool>,
}

/// The result of a check of the file.
enum Found {
    Unchanged,
    Changed {
        hash: u64,
        effects: Vec<(&'static str, String)>,
    },
    /// The sandbox of this worker does not allow the check.
    Unreadable,
}

impl Reloader {
    pub fn new(source: Source, command: Vec<OsString>, companion: bool) -> Reloader {
        Reloader {
            source,
            command,
            companion,
            served: Cell::default(),
            attempted: Cell::default(),
            rejected: RefCell::default(),
            metrics: OnceCell::new(),
            failed: Cell::new(None),
            requested: Cell::new(false),
        }
    }

    /// The path of the configuration.
    pub fn path(&self) -> &std::path::Path {
        &self.source.path
    }

    /// What the supervisor saves of the configuration.
    pub fn to_save(&self, files: &BTreeMap<PathBuf, String>) -> Vec<u8> {
        let saved = self.source.to_save(files);
        self.served.set(sys::ring::fnv1a(&saved));
        saved
    }

    /// The text that this worker serves.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// Reads and checks the file. Errors are reports.
    fn check(&self) -> Result<Found, String> {
        let read = Source::read(&self.source.path);
        let checked = read.and_then(|source| source.plans(&self.command).map(|(plans, _)| (source, plans)));
        let (source, plans) = match checked.map_err(|report| report.render()) {
            Ok(checked) => checked,
            // The next worker checks before it enters its sandbox, and exits if it finds an error.
            Err(report) if is_sandbox_denial(&report) => return Ok(Found::Unreadable),
            Err(report) => return Err(report),
        };
        if plans.command.is_empty() != self.companion {
            return Err("error: adding or removing app.command requires a restart\n".into());
        }
        let hash = sys::ring::fnv1a(&source.to_save(&plans.contents));
        if hash == self.served.get() {
            return Ok(Found::Unchanged);
        }
        // If this worker's own configuration cannot be read a second time, nothing is compared.
        let effects = self.source.plans(&self.command).map(|(current, _)| plans.later_effects(&current));
        Ok(Found::Changed { hash, effects: effects.unwrap_or_default() })
    }

    /// Counts from here on.
    pub fn measure(&self, metrics: ReloadMetrics) {
        // A second call changes nothing: there is one set of metrics.
        let _ = self.metrics.set(metrics);
    }

    fn failed(&self, version: Option<Stamp>) {
        self.failed.set(version);
        self.metrics.get().into_iter().for_each(ReloadMetrics::fail);
    }

    fn recovered(&self) {
        self.failed.set(None);
        self.metrics.get().into_iter().for_each(ReloadMetrics::recover);
    }

    /// Reloads on request: returns when the new worker serves, or the reason for which none does.
    pub async fn reload(&self, control: &Control) -> Result<String, String> {
        if control.is_requested() {
            return Err("error: a reload or an upgrade is already in progress; try again\n".into());
        }
        let reloaded = self.try_reload(control).await;
        if reloaded.is_err() {
            self.failed(Stamp::of(&self.source.path));
        }
        reloaded
    }

    async fn try_reload(&self, control: &Control) -> Result<String, String> {
        let found = self.check().inspect_err(|report| {
            base::telemetry::logging::report(
                PART,
                report,
                "requested reload rejected: invalid configuration; keeping the current one",
            );
            self.rejected.replace(Some(report.clone()));
        })?;
        if let Found::Unchanged = found {
            self.recovered();
            return Ok("the configuration has not changed\n".into());
        }
        self.begin(found);
        match control.replace().await {
            Ok(()) => Ok("the configuration is valid, and a new worker has taken over\n".into()),
            Err(reason) => Err(format!("error: no new worker could take over: {reason}\n")),
        }
    }

    /// Requests a new worker for a changed file if it is valid and new. False if a worker already failed to start with it.
    fn follow(&self, control: &Control) -> Result<bool, String> {
        let found = self.check()?;
        match &found {
            // The file is again the configuration that this worker serves.
            Found::Unchanged => {
                self.recovered();
                control.no_fault();
                return Ok(true);
            }
            Found::Changed { hash, .. } if self.attempted.get() == Some(*hash) => return Ok(false),
            Found::Changed { .. } | Found::Unreadable => control.no_fault(),
        }
        self.begin(found);
        self.request(control);
        Ok(true)
    }

    /// Requests a new worker without waiting for it.
    fn request(&self, control: &Control) {
        self.requested.set(true);
        control.send(ToSupervisor::Replace { reason: RestartReason::Reload });
    }

    /// Records that a new worker is about to be requested.
    fn begin(&self, found: Found) {
        tracing::info!(component = PART, "configuration changed; reloading with a new worker");
        if let Found::Changed { hash, effects } = found {
            self.attempted.set(Some(hash));
            for (when, keys) in effects {
                tracing::warn!(component = PART, keys, "changed keys take effect at the next start of {when}");
            }
        }
    }

    /// Reloads when the file changes, or when one of `marks` exists that the sandbox could not grant before. An invalid
    /// configuration is reported once, and the previous one stays in use.
    pub async fn watch(self: Rc<Self>, control: Rc<Control>, health: Arc<Health>, mut marks: Vec<Mark>) {
        // None, so that the first check finds an edit that was made while the worker started.
        let mut seen = None;
        // The report on the version in `seen`, if that is invalid: files that it interpolates may appear without a change of it.
        let mut invalid = None;
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            // Each triggers a reload only once: if the next worker cannot start, this one keeps running.
            let changed: Vec<Mark> = marks.extract_if(.., |mark| mark.has_changed()).collect();
            if let Some(mark) = changed.first() {
                tracing::info!(component = PART, path = %mark.path().display(), "a configured path now exists or was replaced; starting a new worker to grant it");
                self.request(&control);
            }
            if control.take_failed_takeover() && self.requested.take() {
                self.failed(seen);
            }
            let now = Stamp::of(&self.source.path);
            // A pending request for a new worker already uses this file.
            let is_changed = now != seen;
            if (!is_changed && invalid.is_none()) || control.is_requested() {
                continue;
            }
            seen = now;
            // A failed reload on request has already been counted.
            let is_counted = now.is_some() && self.failed.get() == now;
            let followed = self.follow(&control);
            if !is_changed && followed.as_ref().err() == invalid.as_ref() {
                continue;
            }
            invalid = followed.as_ref().err().cloned();
            match followed {
                Ok(true) => {
                    // A rejected request has been logged before the status knew of it.
                    let was_rejected = self.rejected.take().is_some();
                    if health.recovered(PART) || was_rejected {
                        tracing::info!(component = PART, "configuration recovered");
                    }
                }
                Ok(false) => {
                    if !is_counted {
                        self.failed(now);
                    }
                    // The log has the reason from the supervisor.
                    let reason = control.failure();
                    let text = format!(
                        "no worker could start with the new configuration: {reason}; change the file, or reload to retry"
                    );
                    health.fault(PART, text);
                }
                Err(report) => {
                    if !is_counted {
                        self.failed(now);
                    }
                    // A requested reload has already logged it.
                    if self.rejected.take().as_ref() != Some(&report) {
                        base::telemetry::logging::report(
                            PART,
                            &report,
                            "reload failed: invalid configuration; keeping the previous one",
                        );
                    }
                    health.fault(PART, "reload failed: invalid configuration; keeping the previous one");
                }
            }
        }
    }
}

/// Whether a report may be caused by the sandbox, which hides files, and the users and groups of the system.
fn is_sandbox_denial(report: &str) -> bool {
    ["Permission denied", "/etc/passwd", "/etc/group"].iter().any(|part| report.contains(part))
}

/// The name of the file in health.
pub const PART: &str = "configuration";
