//! Validates the Config and builds the Plan, which is always valid.

use crate::candidate::Limits;
use crate::config::Config;
use crate::notify::NotifyConfig;
use crate::publish::PublishConfig;
use crate::store::StoreConfig;
use base::telemetry::component::Component;
use config::diag::Diagnostic;
use config::registry::{Configured, Entry, Kind, Named, PlannedKind};
use config::tree::Node;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub struct Plan {
    pub entries: Vec<EntryPlan>,
}

pub struct EntryPlan {
    pub name: String,
    pub store: Named<dyn StoreConfig>,
    pub publish: Named<dyn PublishConfig>,
    /// What readers open.
    pub to: PathBuf,
    pub interval: Duration,
    pub notify: Vec<Named<dyn NotifyConfig>>,
    pub limits: Limits,
}

impl EntryPlan {
    /// An entry is one component, of the type of its store.
    pub fn component(&self) -> Component {
        Component::store(format!("sync.{}", self.name), self.store.name())
    }

    /// Its kinds: where each is in the entry, its name, and its Config.
    fn kinds(&self) -> Vec<(String, &'static str, &dyn Kind)> {
        let mut kinds: Vec<(String, &'static str, &dyn Kind)> = vec![
            ("store".into(), self.store.name(), &*self.store),
            ("publish".into(), self.publish.name(), &*self.publish),
        ];
        for (index, notify) in self.notify.iter().enumerate() {
            kinds.push((format!("notify.{index}"), notify.name(), &**notify));
        }
        kinds
    }
}

/// A shorter interval would put too much load on the store.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Whether a path of one entry equals one of the other, or is below it.
fn collide(one: &[PathBuf], other: &[PathBuf]) -> bool {
    one.iter().any(|one| other.iter().any(|other| one.starts_with(other) || other.starts_with(one)))
}

impl Plan {
    /// Its components, for what is done with every component.
    pub fn components(&self) -> Vec<PlannedKind<'_>> {
        let mut components = Vec::new();
        for entry in &self.entries {
            for (place, _, kind) in entry.kinds() {
                components.push(PlannedKind { id: format!("sync.{}.{place}", entry.name), kind, buffer: 0, bodies: 0 });
            }
        }
        components
    }

    /// Checks what the schema cannot. `root` is the tree of the `sync` section.
    pub fn new(
        config: &BTreeMap<String, Config>,
        configured: Configured,
        root: &Node,
    ) -> Result<Plan, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let mut entries: Vec<EntryPlan> = Vec::new();
        for (name, entry) in config {
            let (Some(store), Some(publish)) = (entry.store.kind(), entry.publish.kind()) else { continue };
            let planned = EntryPlan {
                name: name.clone(),
                to: publish.path(),
                interval: store.interval(),
                notify: entry.notify.iter().filter_map(|entry| entry.kind()).collect(),
                limits: Limits { max_files: entry.max_files as usize, max_bytes: entry.max_bytes.0 },
                store,
                publish,
            };
            let node = root.at(&[name]);
            for (place, kind_name, kind) in planned.kinds() {
                let keys: Vec<&str> = place.split('.').chain([kind_name]).collect();
                let id = format!("sync.{name}.{place}");
                findings.extend(kind.check(&Entry { id: &id, node: node.at(&keys), configured }));
            }
            findings.extend(entries.iter().find_map(|other| collision(&planned, other, node)));
            if planned.interval < INTERVAL_MIN {
                let place = node.at(&["store", planned.store.name(), "interval"]).place;
                findings.push(Diagnostic::error(place, "`interval` is shorter than 100ms"));
            }
            entries.push(planned);
        }
        if findings.is_empty() { Ok(Plan { entries }) } else { Err(findings) }
    }
}

/// An error if two entries publish to the same path, or one below the path of the other.
fn collision(entry: &EntryPlan, other: &EntryPlan, node: &Node) -> Option<Diagnostic> {
    if !collide(&entry.publish.occupied(), &other.publish.occupied()) {
        return None;
    }
    let to = entry.to.display();
    let text = match entry.to == other.to {
        true => format!("`{to}` is already published by `{}`", other.name),
        false => format!("`{to}` and the path of `{}` are nested", other.name),
    };
    let place = node.at(&["publish", entry.publish.name(), "path"]).place;
    Some(Diagnostic::error(place, text).help("give each entry its own path"))
}
