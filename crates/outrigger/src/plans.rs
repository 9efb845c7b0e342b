//! The plans of the complete configuration: `load.rs` creates them from the file, and workers start from them.

use crate::config::Config;
use config::needs::Needs;
use config::registry::PlannedKind;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// The plans of the complete configuration.
pub struct Plans {
    /// The file.
    pub path: PathBuf,
    pub config: Config,
    pub command: Vec<OsString>,
    /// The plan of the supervisor.
    pub app: supervisor::plan::Plan,
    /// Files that were interpolated into the configuration.
    pub files: Vec<PathBuf>,
    /// The content of those files.
    pub contents: BTreeMap<PathBuf, String>,
    /// The memory limit of the worker.
    pub memory: u64,
    /// The memory limit of Outrigger's control group, if there is one.
    pub container: Option<u64>,
    /// The needs of all subsystems from the system.
    pub needs: Needs,
    pub state_dir: PathBuf,
    pub logs: Option<logs::plan::Plan>,
    pub metrics: Option<metrics::plan::Plan>,
    pub sync: sync::plan::Plan,
    pub proxy: Option<proxy::plan::Plan>,
    /// The configuration as JSON for `/config`, secrets and credentials hidden.
    pub shown: serde_json::Value,
}

/// The components of the subsystems whose plans are valid.
pub fn components<'p>(
    logs: Option<&'p logs::plan::Plan>,
    metrics: Option<&'p metrics::plan::Plan>,
    sync: Option<&'p sync::plan::Plan>,
    proxy: Option<&'p proxy::plan::Plan>,
) -> Vec<PlannedKind<'p>> {
    let mut components = logs.map(|plan| plan.components()).unwrap_or_default();
    components.extend(metrics.into_iter().flat_map(|plan| plan.components()));
    components.extend(sync.into_iter().flat_map(|plan| plan.components()));
    components.extend(proxy.into_iter().flat_map(|plan| plan.components()));
    components
}

impl Plans {
    /// The keys that differ from the current plans and that a reload does not apply, by what applies them.
    pub fn later_effects(&self, current: &Plans) -> Vec<(&'static str, String)> {
        let differing = |keys: &[(&str, bool)]| {
            let differing: Vec<&str> = keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
            Some(differing.join(", ")).filter(|keys| !keys.is_empty())
        };
        let (new, old) = (&self.app, &current.app);
        let of_outrigger = differing(&[
            ("app.tty", new.pty != old.pty),
            ("app.start", (new.gate, new.gate_fails) != (old.gate, old.gate_fails)),
            ("the `stdio` source", new.capture_bytes != old.capture_bytes),
        ]);
        let of_app = differing(&[("app.command, working_directory, user or environment", new.app != old.app)]);
        let effects = [of_outrigger.map(|keys| ("Outrigger", keys)), of_app.map(|keys| ("the app", keys))];
        effects.into_iter().flatten().collect()
    }

    /// Errors that only the system shows, such as a missing certificate, found before anything is started.
    pub fn check(&self) -> Vec<String> {
        self.components().iter().filter_map(PlannedKind::check_system).collect()
    }

    /// The components of all subsystems.
    pub fn components(&self) -> Vec<PlannedKind<'_>> {
        let Plans { logs, metrics, sync, proxy, .. } = self;
        components(logs.as_ref(), metrics.as_ref(), Some(sync), proxy.as_ref())
    }

    /// The addresses that this process listens on, each with the component that uses it; none if it listens on none.
    pub fn listening(&self) -> Option<String> {
        let listen = self.needs.listen.iter().map(|listen| format!("{} ({})", listen.address, listen.owner));
        Some(listen.collect::<Vec<_>>().join(", ")).filter(|listening| !listening.is_empty())
    }
}
