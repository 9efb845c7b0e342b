//! Validates the Config and builds the Plan, which is always valid.

use crate::candidate::Limits;
use crate::config::Config;
use crate::notify::NotifyKind;
use crate::publish::PublishKind;
use crate::store::StoreKind;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::tree::Node;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub struct Plan {
    pub entries: Vec<EntryPlan>,
}

pub struct EntryPlan {
    pub name: String,
    pub store: StoreKind,
    pub to: PathBuf,
    pub interval: Duration,
    pub notify: Vec<NotifyKind>,
    pub limits: Limits,
}

/// A shorter interval would put too much load on the store.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Whether one target equals the other, is below it, or is among its revisions.
fn collide(one: &Path, other: &Path) -> bool {
    let revisions = |to: &Path| {
        let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
        to.with_file_name(format!(".{name}.revisions"))
    };
    let below = |inner: &Path, outer: &Path| inner.starts_with(outer) || inner.starts_with(revisions(outer));
    below(one, other) || below(other, one)
}

impl Plan {
    /// What its entries need from the system.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for entry in &self.entries {
            needs.add(entry.store.needs());
            // The link is replaced by a rename in its directory, and the revisions are next to it.
            needs.write_file(&entry.to);
            for kind in &entry.notify {
                match kind {
                    NotifyKind::Http(config) => needs.add(net::needs(config.url.as_str(), &config.client())),
                    // /proc/PID/status shows whether the app handles the signal.
                    NotifyKind::Signal(_) => needs.read.push("/proc".into()),
                }
            }
        }
        needs
    }

    /// Checks what the schema cannot. `root` is the tree of the `sync` section.
    pub fn new(config: &BTreeMap<String, Config>, wrapped: bool, root: &Node) -> Result<Plan, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let mut entries: Vec<EntryPlan> = Vec::new();
        for (name, entry) in config {
            let place = |keys: &[&str]| root.at(&[&[name.as_str()], keys].concat()).place;
            let (Some(store), Some(PublishKind::Symlink(publish))) = (entry.store.kind(), entry.publish.kind()) else {
                continue;
            };
            if let Err(reason) = store.check() {
                findings.push(Diagnostic::error(place(&["store"]), reason));
            }
            let link = &["publish", "symlink", "path"];
            if !publish.path.is_absolute() || publish.path.file_name().is_none() {
                findings.push(
                    Diagnostic::error(
                        place(link),
                        format!("`path` must be an absolute path with a name, found `{}`", publish.path.display()),
                    )
                    .help("give the path of the link itself, such as /etc/orders"),
                );
            }
            let to = config::needs::normal(&publish.path);
            if let Some(other) = entries.iter().find(|other| collide(&to, &other.to)) {
                let same = to == other.to;
                let text = match same {
                    true => format!("`{}` is already published by `{}`", to.display(), other.name),
                    false => format!("`{}` and the path of `{}` are nested", to.display(), other.name),
                };
                findings.push(Diagnostic::error(place(link), text).help("give each entry its own path"));
            }
            if store.interval() < INTERVAL_MIN {
                let place = place(&["store", store.name(), "interval"]);
                findings.push(Diagnostic::error(place, "`interval` is shorter than 100ms"));
            }
            let notify: Vec<NotifyKind> = entry.notify.iter().filter_map(|entry| entry.kind()).collect();
            if !wrapped && notify.iter().any(|kind| matches!(kind, NotifyKind::Signal(_))) {
                findings.push(
                    Diagnostic::error(
                        place(&["notify"]),
                        "`signal` requires a wrapped app, but no command is configured",
                    )
                    .help("set app.command, or notify by http"),
                );
            }
            let limits = Limits { max_files: entry.max_files as usize, max_bytes: entry.max_bytes.0 };
            let interval = store.interval();
            entries.push(EntryPlan { name: name.clone(), store, to, interval, notify, limits });
        }
        if findings.is_empty() { Ok(Plan { entries }) } else { Err(findings) }
    }
}
