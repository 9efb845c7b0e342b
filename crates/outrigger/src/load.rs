//! From the file to plans: read, check, resolve. In: a path and the command line. Out: valid plans of all subsystems, or a report
//! with every error. `outrigger validate` runs only this.

use crate::app::{App, plan as app_plan};
use crate::config::{Config, Limits};
use crate::plans::{self, Plans};
use base::system::listen::Listen;
use base::system::output;
use base::text::plural;
use config::diag::{Diagnostic, Report, Severity};
use config::interpolate::Lookup;
use config::needs::Needs;
use config::registry::{Configured, PlannedKind};
use config::tree::{Node, Value};
use config::unit::ByteSize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The text of the file, saved for later workers.
#[derive(Clone)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
    /// The content of interpolated files that a worker last served with, for files that cannot be read any more.
    served: BTreeMap<PathBuf, String>,
}

/// A configuration that a worker serves, as the supervisor saves it.
#[derive(serde::Serialize, serde::Deserialize)]
struct Served<'a> {
    text: Cow<'a, str>,
    files: Cow<'a, BTreeMap<PathBuf, String>>,
}

/// The maximum size of a configuration.
const CONFIG_MAX: u64 = 4 << 20;

impl Source {
    /// Errors are messages for users.
    pub fn read(path: &Path) -> Result<Source, Report> {
        let shown = path.display().to_string();
        let report = |message: String, help: &str| {
            let mut report = Report::new(shown.clone(), "");
            report.push(Diagnostic::whole(message).help(help));
            report
        };
        let bytes = base::system::file::read(path, CONFIG_MAX).map_err(|error| {
            let help =
                "set the file with -c, or create one: README.md has an example, `outrigger explain` lists all sections";
            report(format!("cannot read the configuration: {error}"), help)
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line =
                error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            report(format!("line {line} is not UTF-8"), "save the file as UTF-8")
        })?;
        let empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if empty {
            return Err(report(
                "the configuration is empty".into(),
                "README.md has an example, `outrigger explain` lists all sections",
            ));
        }
        Ok(Source { path: path.to_path_buf(), text, served: BTreeMap::new() })
    }

    /// The configuration that a worker last served. An older version saved only the text.
    pub fn last_good(path: &Path, saved: String) -> Source {
        let path = path.to_path_buf();
        match serde_json::from_str(&saved) {
            Ok(Served { text, files }) => Source { path, text: text.into_owned(), served: files.into_owned() },
            Err(_) => Source { path, text: saved, served: BTreeMap::new() },
        }
    }

    /// What the supervisor saves: the text, and the content of the interpolated files as far as both fit.
    pub fn to_save(&self, files: &BTreeMap<PathBuf, String>) -> Vec<u8> {
        let served = Served { text: Cow::Borrowed(&self.text), files: Cow::Borrowed(files) };
        let saved = serde_json::to_vec(&served).unwrap_or_default();
        if (1..=supervisor::plan::PLAN_MAX).contains(&saved.len()) { saved } else { self.text.clone().into_bytes() }
    }

    /// Checks everything; the report has all errors of one run.
    pub fn plans(&self, command: &[OsString]) -> Result<(Plans, Report), Report> {
        let read = |path: &Path| (Lookup::HERE.file)(path).or_else(|error| self.served.get(path).cloned().ok_or(error));
        self.plans_with(command, &Lookup { file: &read, ..Lookup::HERE })
    }

    /// The same, with another lookup for placeholders.
    pub fn plans_with(&self, command: &[OsString], lookup: &Lookup<'_>) -> Result<(Plans, Report), Report> {
        let shown = self.path.display().to_string();
        let loaded = config::load::load_or_rest::<Config>(&shown, &self.text, lookup);
        let config::load::Loaded { config, tree, mut report, secret_variables, files, contents } = match loaded {
            Ok(loaded) => loaded,
            Err(refused) => return Err(check_rejected(*refused, command)),
        };
        let command =
            if command.is_empty() { config.app.command.iter().map(OsString::from).collect() } else { command.to_vec() };
        let container = base::system::cgroup::memory_limit();
        let sections = Sections {
            command: &command,
            secret_variables: &secret_variables,
            container,
            proxied: config.proxy.is_some(),
            config: &config,
        };
        let Planned { app, logs, metrics, sync, proxy } = sections.plan(&tree, &mut report);
        match (sync, app) {
            (Some(sync), Some(app)) if !report.has_errors() => {
                let (state_dir, path) = (state_dir(&config), self.path.clone());
                let shown = config::load::shown::<Config>(&tree);
                let (needs, memory) = (Needs::default(), memory(&config.limits, container));
                let mut plans = Plans {
                    path,
                    config,
                    command,
                    app,
                    files,
                    contents,
                    memory,
                    container,
                    needs,
                    state_dir,
                    logs,
                    metrics,
                    sync,
                    proxy,
                    shown,
                };
                plans.needs = crate::grants::needs(&plans);
                Ok((plans, report))
            }
            _ => Err(report),
        }
    }
}

/// What the sections are checked with.
struct Sections<'a> {
    command: &'a [OsString],
    secret_variables: &'a [String],
    container: Option<u64>,
    /// Whether there is a section `proxy`, valid or invalid.
    proxied: bool,
    config: &'a Config,
}

/// The plans of the sections that are valid.
struct Planned {
    app: Option<supervisor::plan::Plan>,
    logs: Option<logs::plan::Plan>,
    metrics: Option<metrics::plan::Plan>,
    sync: Option<sync::plan::Plan>,
    proxy: Option<proxy::plan::Plan>,
}

impl Sections<'_> {
    /// Checks the meaning of the sections, separately and together.
    fn plan(&self, tree: &Node, report: &mut Report) -> Planned {
        fn keep<P>(report: &mut Report, planned: Result<P, Vec<Diagnostic>>) -> Option<P> {
            planned.map_err(|findings| report.extend(findings)).ok()
        }
        let Config { app, limits, admin, logs, metrics, sync, proxy, .. } = self.config;
        let wrapped = !self.command.is_empty();
        let configured = Configured { app: wrapped, proxy: self.proxied };
        let logs = logs.as_ref().map(|config| logs::plan::Plan::new(config, configured, tree.at(&["logs"])));
        let logs = logs.and_then(|planned| keep(report, planned));
        let metrics =
            metrics.as_ref().map(|config| metrics::plan::Plan::new(config, configured, tree.at(&["metrics"])));
        let metrics = metrics.and_then(|planned| keep(report, planned));
        // With an invalid port there is a cluster `app` nevertheless.
        let app_tree = tree.at(&["app"]);
        let has_port = app_tree.has("port") && !app_tree.at(&["port"]).is_null();
        let port = app.port.or_else(|| has_port.then_some(u16::MAX));
        let proxy = proxy.as_ref().map(|config| proxy::plan::Plan::new(config, port, configured, tree.at(&["proxy"])));
        let proxy = proxy.and_then(|planned| keep(report, planned));
        let sync = keep(report, sync::plan::Plan::new(sync, configured, tree.at(&["sync"])));
        let context = app_plan::Context {
            command: self.command,
            capture_bytes: logs.as_ref().and_then(|plan| plan.capture_bytes(self.container)),
            secret_variables: self.secret_variables,
        };
        let planned_app = keep(report, app_plan::plan(app, &context, app_tree));
        let components = plans::components(logs.as_ref(), metrics.as_ref(), sync.as_ref(), proxy.as_ref());
        report.extend(check_budget(limits, self.container, &components, tree));
        report.extend(check_memory(memory(limits, self.container), tree));
        report.extend(check_times(app, app_tree));
        report.extend(app_plan::without_effect(wrapped, app_tree));
        report.extend(logs.iter().flat_map(|plan| plan.unread_sources(tree.at(&["logs"]))));
        report.extend(metrics.iter().flat_map(|plan| plan.unread_sources(tree.at(&["metrics"]))));
        report.extend(admin.check(tree.at(&["admin"])));
        let mut needs = Needs::default();
        components.iter().for_each(|component| needs.add(component.needs()));
        proxy.iter().for_each(|plan| needs.add(plan.needs()));
        needs.listen.extend(crate::grants::admin_listens(admin));
        report.extend(check_sockets(&needs));
        report.extend(check_addresses(&needs.listen, app.port, proxy.as_ref(), tree));
        Planned { app: planned_app, logs, metrics, sync, proxy }
    }
}

/// Checks the meaning of what remains without the errors, so that one run reports all of them.
fn check_rejected(refused: config::load::Refused<Config>, command: &[OsString]) -> Report {
    let config::load::Refused { mut report, tree, rest, removed, unresolved } = refused;
    let (Some(tree), Some(config)) = (tree, rest) else { return report };
    let configured = config.app.command.iter().map(OsString::from).collect::<Vec<_>>();
    let sections = Sections {
        command: if command.is_empty() { &configured } else { command },
        secret_variables: &[],
        container: base::system::cgroup::memory_limit(),
        proxied: tree.has("proxy"),
        config: &config,
    };
    let known = report.findings().len();
    sections.plan(&tree, &mut report);
    // Without what was removed, references to it are errors, and other keys have no effect.
    let mentions = |finding: &Diagnostic| removed.iter().any(|name| finding.message.contains(&format!("`{name}`")));
    report.retain_after(known, |finding| {
        let is_resolved = finding.place.is_none_or(|place| !unresolved.contains(&place));
        let follows = !removed.is_empty() && (finding.severity == Severity::Warning || mentions(finding));
        is_resolved && !follows
    });
    report
}

fn state_dir(config: &Config) -> PathBuf {
    let configured = config.state.dir.clone().or_else(|| std::env::var_os("STATE_DIRECTORY").map(PathBuf::from));
    configured.unwrap_or_else(|| PathBuf::from("/var/lib/outrigger"))
}

/// The default memory of a worker, and its share of a control group that allows less than four times that.
const MEMORY: ByteSize = ByteSize::mib(64);
const SHARE: u64 = 4;

fn memory(limits: &Limits, container: Option<u64>) -> u64 {
    let limited = || container.map_or(MEMORY.0, |limit| MEMORY.0.min(limit / SHARE));
    limits.memory.map_or_else(limited, |memory| memory.0)
}

/// What components keep while receivers are down must fit into the memory of the worker. Without a configured limit, it is
/// adapted to a small container, and the buffers share what is available.
fn check_budget(
    limits: &Limits,
    container: Option<u64>,
    components: &[PlannedKind<'_>],
    tree: &Node,
) -> Option<Diagnostic> {
    let limit = memory(limits, container);
    let is_adapted = limits.memory.is_none() && limit < MEMORY.0;
    if is_adapted || limit < MEMORY_MIN {
        return None;
    }
    let mut parts: Vec<(u64, &str)> = components.iter().map(|part| (part.memory(), part.id.as_str())).collect();
    let sum = parts.iter().fold(MEMORY_MIN, |sum, (bytes, _)| sum.saturating_add(*bytes));
    if sum <= limit {
        return None;
    }
    parts.retain(|(bytes, _)| *bytes > 0);
    parts.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    let in_mib = |bytes: u64| ByteSize(bytes.div_ceil(1 << 20) << 20);
    let largest: Vec<String> =
        parts.iter().take(PARTS_SHOWN).map(|(bytes, id)| format!("{id} {}", in_mib(*bytes))).collect();
    let text = format!(
        "all components together may keep {}, more than limits.memory = {}; the largest: {}",
        in_mib(sum),
        ByteSize(limit),
        largest.join(", ")
    );
    let buffers: u64 = components.iter().map(|component| component.buffer).fold(0, u64::saturating_add);
    let finding = match buffers > limit {
        true => Diagnostic::error(tree.at(&["logs", "sinks"]).place, text),
        false => Diagnostic::warning(tree.at(&["limits", "memory"]).place, text),
    };
    Some(finding.help("lower `buffer.max_bytes` of sinks, or raise `limits.memory`"))
}

/// How many components a message about memory lists.
const PARTS_SHOWN: usize = 3;

/// The memory of an idle worker.
const MEMORY_MIN: u64 = 8 << 20;

fn check_memory(memory: u64, tree: &Node) -> Option<Diagnostic> {
    (memory < MEMORY_MIN).then(|| {
        let place = tree.at(&["limits", "memory"]).place;
        let text = format!("{} of memory is less than a worker needs to start", ByteSize(memory));
        Diagnostic::error(place, text).help(format!("allow at least {}", ByteSize(MEMORY_MIN)))
    })
}

/// Sockets outlive a worker in a store, which has a limit.
fn check_sockets(needs: &Needs) -> Option<Diagnostic> {
    let sockets: usize = needs.listen.iter().map(|listen| listen.count).sum();
    let max = supervisor::plan::STORED_MAX;
    (sockets > max).then(|| {
        Diagnostic::whole(format!("{sockets} listening sockets, more than the {max} that a reload can hand over")).help(
            "each proxy listener has one per thread of proxy.threads: lower proxy.threads, or use fewer listeners",
        )
    })
}

/// Two listeners cannot use one port, and none can use the app's port: the proxy would connect to itself in a loop.
fn check_addresses(
    listen: &[Listen],
    app_port: Option<u16>,
    proxy: Option<&proxy::plan::Plan>,
    tree: &Node,
) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    let place = |owner: &str, key: &str| {
        let keys: Vec<&str> = owner.split('.').chain(key.split('.')).filter(|key| !key.is_empty()).collect();
        tree.at(&keys).place
    };
    for (index, one) in listen.iter().enumerate() {
        if let Some(other) = listen.iter().take(index).find(|other| overlap(one.address, other.address)) {
            let text = format!("address `{}` is already used by {}", one.address, other.owner);
            let place = place(&one.owner, one.key);
            findings.push(Diagnostic::error(place, text).help("use a different port for each listener"));
        }
        let app = app_port.map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
        if app.is_some_and(|app| overlap(one.address, app)) {
            let text = format!("address `{}` is already used by the app (app.port)", one.address);
            let help = "listen on another port; with this one, requests would loop";
            findings.push(Diagnostic::error(place(&one.owner, one.key), text).help(help));
        }
    }
    let proxy = proxy.iter().flat_map(|plan| plan.listeners.iter().map(move |listener| (plan, listener)));
    for (plan, listener) in proxy {
        let endpoints = plan.clusters.get(listener.cluster).into_iter().flat_map(|cluster| &cluster.endpoints);
        let of_app = app_port.is_some_and(|port| port == listener.address.port());
        if let Some(endpoint) = endpoints.clone().find(|endpoint| !of_app && overlap(listener.address, **endpoint)) {
            let text = format!("listener `{}` forwards to itself: it listens on {endpoint}", listener.name);
            let place = place(&format!("proxy.listeners.{}", listener.name), "listen");
            findings.push(Diagnostic::error(place, text).help("use another endpoint, or listen on another port"));
        }
    }
    findings
}

/// Whether two sockets cannot both be bound: to the same address, or one of them to all addresses of the machine.
fn overlap(one: std::net::SocketAddr, other: std::net::SocketAddr) -> bool {
    let everywhere = |address: std::net::SocketAddr| address.ip().is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && (one.ip() == other.ip()
            || everywhere(one) && (one.is_ipv6() || other.is_ipv4())
            || everywhere(other) && (other.is_ipv6() || one.is_ipv4()))
}

fn check_times(app: &App, tree: &Node) -> Option<Diagnostic> {
    let stop = &app.stop;
    let needed = stop.drain_timeout.0 + stop.grace_period.0;
    (needed > stop.timeout.0).then(|| {
        let place = tree.at(&["stop", "timeout"]).place;
        let message = format!(
            "`app.stop.timeout` is {}, but drain_timeout and grace_period may take {}",
            stop.timeout,
            config::unit::TimeSpan(needed)
        );
        Diagnostic::error(place, message)
            .help("raise `timeout`, so that logs can be delivered after the app has exited")
    })
}

/// Keys of files with certificates and credentials.
const CREDENTIAL_FILES: [&str; 6] =
    ["ca_file", "cert_file", "key_file", "known_hosts_file", "password_file", "token_file"];

/// None of these files is larger.
const CREDENTIAL_MAX: u64 = 4 << 20;

/// The files of certificates and credentials that cannot be read here, each with a warning at its key.
fn unreadable_files(source: &Source) -> Vec<(String, Diagnostic)> {
    fn walk(node: &Node, path: &str, found: &mut Vec<(String, Diagnostic)>) {
        match &node.value {
            Value::Map(entries) => entries.iter().for_each(|entry| {
                let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                match &entry.node.value {
                    Value::Scalar { text, .. } if CREDENTIAL_FILES.contains(&entry.key.as_str()) => {
                        if let Err(error) = base::system::file::read(Path::new(text), CREDENTIAL_MAX) {
                            let help = "the file must be readable where this configuration runs";
                            let warning =
                                Diagnostic::warning(entry.node.place, format!("`{path}`: cannot read {error}"));
                            found.push((text.clone(), warning.help(help)));
                        }
                    }
                    _ => walk(&entry.node, &path, found),
                }
            }),
            Value::List(items) => items.iter().for_each(|item| walk(item, path, found)),
            Value::Scalar { .. } => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(mut tree) = config::tree::parse(&source.text) {
        config::interpolate::apply(&mut tree, &Lookup::HERE);
        walk(&tree, "", &mut found);
    }
    found
}

/// `outrigger validate`.
pub fn validate(path: &Path, command: &[OsString], deny_warnings: bool) -> i32 {
    match Source::read(path).and_then(|source| source.plans(command).map(|planned| (source, planned))) {
        Ok((source, (plans, mut report))) => {
            let (unreadable, warnings): (Vec<String>, Vec<Diagnostic>) = unreadable_files(&source).into_iter().unzip();
            report.extend(warnings);
            output::note(&report.render());
            let missing = crate::grants::missing_programs(&plans);
            for missing in &missing {
                output::note(&format!("warning: {missing}; it must be in the image that this configuration runs in\n"));
            }
            // Errors of files that can be read, such as a certificate and a key that do not match.
            let is_reported = |error: &String| unreadable.iter().any(|file| error.contains(file.as_str()));
            let errors: Vec<String> = plans.check().into_iter().filter(|error| !is_reported(error)).collect();
            for error in &errors {
                output::note(&format!("warning: {error}; with this, Outrigger does not start\n"));
            }
            let warnings = report.findings().len() + missing.len() + errors.len();
            let counted = plural(warnings, "warning", "warnings");
            if deny_warnings && warnings > 0 {
                output::note(&format!("{}: {counted}, treated as errors by --deny-warnings\n", path.display()));
                return i32::from(crate::EXIT_ERROR);
            }
            let counted = if warnings == 0 { String::new() } else { format!(", {counted}") };
            output::note(&format!("{}: valid{counted}\n", path.display()));
            0
        }
        Err(report) => refuse(&report),
    }
}

/// Prints a report; returns the exit code for an error.
pub fn refuse(report: &Report) -> i32 {
    output::note(&format!("{}{} found\n", report.render(), report.count()));
    i32::from(crate::EXIT_ERROR)
}
