//! From the Config to a Plan that is always valid: names resolved, policies decided.

use crate::config::Config;
use crate::sink::{SinkEntry, SinkKind};
use crate::sink_options::WhenFull;
use crate::source::SourceKind;
use crate::stage::{StageEntry, StageKind};
use base::telemetry::component::Component;
use config::diag::{Diagnostic, nearest};
use config::needs::Needs;
use config::tree::Node;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

pub struct Plan {
    pub sources: Vec<SourcePlan>,
    pub stages: Vec<StageKind>,
    pub sinks: Vec<SinkPlan>,
}

pub struct SourcePlan {
    pub name: String,
    pub kind: SourceKind,
    pub stages: Vec<StageKind>,
    /// Indexes of the sinks that receive its records.
    pub sinks: Vec<usize>,
}

pub struct SinkPlan {
    pub name: String,
    pub kind: SinkKind,
    pub stages: Vec<StageKind>,
    pub required: bool,
    pub when_full: WhenFull,
    pub max_buffer_bytes: usize,
    pub batch: BatchLimits,
}

impl SourcePlan {
    pub fn component(&self) -> Component {
        Component::source(format!("logs.sources.{}", self.name), self.kind.name())
    }
}

impl SinkPlan {
    pub fn component(&self) -> Component {
        Component::sink(format!("logs.sinks.{}", self.name), self.kind.name())
    }
}

/// The limits at which a body is complete.
#[derive(Clone, Copy)]
pub struct BatchLimits {
    pub bytes: usize,
    pub records: usize,
    pub age: Duration,
}

impl Plan {
    /// What its sources and sinks need from the system.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        self.sources.iter().for_each(|source| needs.add(source.kind.needs()));
        self.sinks.iter().for_each(|sink| needs.add(sink.kind.needs()));
        needs
    }

    /// Checks what the schema cannot. `wrapped`: there is a command whose output can be captured; `proxied`: there is a
    /// proxy whose requests can be recorded. `root` is the tree of the `logs` section.
    pub fn new(config: &Config, wrapped: bool, proxied: bool, root: &Node) -> Result<Plan, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let names: Vec<&String> = config.sources.keys().collect();
        let mut subscribed = vec![Vec::new(); names.len()];
        for (sink, (name, entry)) in config.sinks.iter().enumerate() {
            for (index, input) in entry.inputs.iter().flatten().enumerate() {
                if !config.sources.contains_key(input) {
                    let place = root.at(&["sinks", name, "inputs", &index.to_string()]).place;
                    let finding =
                        Diagnostic::error(place, format!("unknown log source `{input}` in `logs.sinks.{name}.inputs`"));
                    let near = nearest(input, names.iter().map(|name| name.as_str()));
                    let all = || names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                    findings.push(match near {
                        Some(near) => finding.help(format!("did you mean `{near}`?")),
                        None => finding.help(format!("sources are: {}", all())),
                    });
                }
            }
            for (source, subscribers) in names.iter().zip(&mut subscribed) {
                if entry.inputs.as_ref().is_none_or(|inputs| inputs.contains(source)) {
                    subscribers.push(sink);
                }
            }
        }
        for (name, entry) in &config.sinks {
            for (keys, text, help) in entry.kind().iter().flat_map(SinkKind::check) {
                let place = root.at(&[&["sinks", name.as_str()], keys.as_slice()].concat()).place;
                findings.push(Diagnostic::error(place, text).help(help));
            }
        }
        findings.extend(check_loops(config, root));
        findings.extend(check_sources(config, wrapped, proxied, root));
        if !findings.is_empty() {
            return Err(findings);
        }
        let sources = config.sources.iter().zip(subscribed).filter_map(|((name, entry), sinks)| {
            Some(SourcePlan { name: name.clone(), kind: entry.kind()?, stages: kinds(&entry.stages), sinks })
        });
        let sinks = config.sinks.iter().filter_map(|(name, entry)| {
            let default = if entry.required { WhenFull::Block } else { WhenFull::DropOldest };
            Some(SinkPlan {
                name: name.clone(),
                kind: entry.kind()?,
                stages: kinds(&entry.stages),
                required: entry.required,
                when_full: entry.buffer.when_full.unwrap_or(default),
                max_buffer_bytes: entry.buffer.max_bytes.as_usize(),
                batch: BatchLimits {
                    bytes: entry.batch.max_bytes.as_usize().max(1),
                    records: entry.batch.max_records as usize,
                    age: entry.batch.max_age.0,
                },
            })
        });
        Ok(Plan { sources: sources.collect(), stages: kinds(&config.stages), sinks: sinks.collect() })
    }

    /// Warnings for sources that no sink reads. `root` is the tree of the `logs` section.
    pub fn unread_sources(&self, root: &Node) -> Vec<Diagnostic> {
        let unread = self.sources.iter().filter(|source| source.sinks.is_empty());
        let warning = |source: &SourcePlan| {
            let place = root.at(&["sources", &source.name]).place;
            Diagnostic::warning(
                place,
                format!("no sink reads `logs.sources.{}`: its records are discarded", source.name),
            )
            .help("add a sink in `logs.sinks`, or add the source to `inputs` of a sink")
        };
        unread.map(warning).collect()
    }

    /// Whether a source reads access records, so that the proxy creates them.
    pub fn reads_access(&self) -> bool {
        self.sources.iter().any(|source| matches!(source.kind, SourceKind::Proxy(_)))
    }

    /// The size of the capture rings for the supervisor, if a source reads them.
    pub fn capture_bytes(&self, container: Option<u64>) -> Option<u64> {
        self.sources.iter().find_map(|source| match &source.kind {
            SourceKind::Stdio(config) => Some(config.capture_bytes(container)),
            _ => None,
        })
    }
}

/// Checks what a source needs from the rest of the configuration, and the values of its own keys.
fn check_sources(config: &Config, wrapped: bool, proxied: bool, root: &Node) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    if let Some((name, _)) = config.sources.iter().filter(|(_, entry)| entry.stdio.is_some()).nth(1) {
        let place = root.at(&["sources", name, "stdio"]).place;
        let finding = Diagnostic::error(place, "the app's output is already read by another source");
        findings.push(finding.help("keep one `stdio` source; all sinks can share it"));
    }
    for (name, entry) in &config.sources {
        let place = |kind: &str| root.at(&["sources", name, kind]).place;
        match entry.kind() {
            Some(SourceKind::Stdio(_)) if !wrapped => findings.push(
                Diagnostic::error(place("stdio"), "`stdio` requires a wrapped app, but no command is configured")
                    .help("set app.command or run `outrigger run -- command`; for an app in another container, read its files instead"),
            ),
            Some(SourceKind::Proxy(_)) if !proxied => findings.push(
                Diagnostic::error(place("proxy"), format!("the source `{name}` records requests, but no proxy is configured"))
                    .help("add a `proxy` section, or remove this source"),
            ),
            Some(SourceKind::File(config)) => {
                findings.extend(config.check().into_iter().map(|(key, index, message)| {
                    let place = root.at(&["sources", name, "file", key, &index.to_string()]).place;
                    Diagnostic::error(place, message)
                }));
            }
            _ => {}
        }
    }
    findings
}

/// A source that reads what a sink writes with its records, directly or through other sources and sinks, is an endless loop.
fn check_loops(config: &Config, root: &Node) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for (sink, entry) in &config.sinks {
        let Some((source, written)) = reads(config, entry).find(|(source, _)| is_routed_to(config, source, sink))
        else {
            continue;
        };
        let place = root.at(&["sinks", sink, "file", "path"]).place;
        let text = format!(
            "endless loop: the source `{source}` reads {}, which this sink writes with its records",
            written.display()
        );
        let help = format!("write to another path, or add it to `exclude` of the source `{source}`");
        findings.push(Diagnostic::error(place, text).help(help));
    }
    findings
}

/// The sources that read a file that a sink writes, with its path.
fn reads<'c>(config: &'c Config, sink: &'c SinkEntry) -> impl Iterator<Item = (&'c str, PathBuf)> {
    let written: Vec<PathBuf> = match sink.kind() {
        Some(SinkKind::File(file)) => {
            let directory = file.path.parent().and_then(|directory| directory.canonicalize().ok());
            // With the symlinks of the directory resolved, and as configured.
            let real =
                directory.map(|directory| file.names().filter_map(move |name| Some(directory.join(name.file_name()?))));
            real.into_iter().flatten().chain(file.names()).collect()
        }
        _ => Vec::new(),
    };
    config.sources.iter().filter_map(move |(name, source)| {
        let Some(SourceKind::File(read)) = source.kind() else { return None };
        Some((name.as_str(), written.iter().find(|path| read.reads(path))?.clone()))
    })
}

/// Whether the records of a source reach a sink, directly or through files.
fn is_routed_to(config: &Config, source: &str, sink: &str) -> bool {
    let (mut due, mut seen) = (vec![source.to_string()], BTreeSet::new());
    while let Some(source) = due.pop() {
        let fed = config
            .sinks
            .iter()
            .filter(|(_, entry)| entry.inputs.as_ref().is_none_or(|inputs| inputs.contains(&source)));
        for (name, entry) in fed {
            if name == sink {
                return true;
            }
            due.extend(reads(config, entry).map(|(next, _)| next.to_string()).filter(|next| !seen.contains(next)));
        }
        seen.insert(source);
    }
    false
}

fn kinds(entries: &[StageEntry]) -> Vec<StageKind> {
    entries.iter().filter_map(StageEntry::kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::interpolate::Lookup;

    fn check(text: &str, wrapped: bool, expect: Result<(), &str>) {
        let loaded = config::load::load::<Config>("logs.yaml", text, &Lookup::HERE);
        let loaded = loaded.unwrap_or_else(|report| panic!("{}", report.render()));
        match (Plan::new(&loaded.config, wrapped, false, &loaded.tree), expect) {
            (Ok(_), Ok(())) => {}
            (Err(findings), Err(part)) => {
                let text: String =
                    findings.iter().map(|f| format!("{} {:?} {:?}", f.message, f.help, f.place)).collect();
                assert!(text.contains(part), "{text}");
            }
            (got, want) => panic!("{:?} {want:?}", got.err()),
        }
    }

    #[test]
    fn config_errors_are_reported_with_location() {
        let stdio = "sources: { app: { stdio: {} } }\nsinks: { a: { blackhole: {}, inputs: [app] } }\n";
        check(stdio, true, Ok(()));
        check(stdio, false, Err("set app.command"));
        check(&stdio.replace("[app]", "[ap]"), true, Err("did you mean `app`"));
        check("sources: { p: { proxy: {} } }\nsinks: {}\n", true, Err("no proxy is configured"));
        check("sources: { f: { file: { include: [\"/a/[\"] } } }\nsinks: {}\n", true, Err("line: 1"));
    }

    #[test]
    fn loops_bad_paths_and_bad_labels_are_rejected() {
        let loops =
            "sources: { f: { file: { include: [\"/in/*.log*\"] } } }\nsinks: { a: { file: { path: /in/copy.log } } }\n";
        check(loops, true, Err("endless loop"));
        let sources = "sources: { a: { file: { include: [\"/a/*\"] } }, b: { file: { include: [\"/b/*\"] } } }\n";
        let sinks = "sinks: { p: { file: { path: /b/x }, inputs: [a] }, q: { file: { path: /@/x }, inputs: [b] } }\n";
        check(&format!("{sources}{}", sinks.replace('@', "a")), true, Err("endless loop"));
        check(&format!("{sources}{}", sinks.replace('@', "c")), true, Ok(()));
        check(&loops.replace("/in/copy.log", "/in/x/../copy.log"), true, Err("endless loop"));
        check(&loops.replace("/in/copy.log", "/out/copy.log"), true, Ok(()));
        check(&loops.replace("*.log*", "*.1"), true, Err("/in/copy.log.1"));
        check(&loops.replace("*\"]", "*\"], exclude: [\"/in/copy.*\"]"), true, Ok(()));
        check(&loops.replace("/in/copy.log", "/dev/stdout"), true, Err("use the sink `stdout`"));
        let loki = "sources: {}\nsinks: { l: { loki: { url: \"http://l\", labels: { my-label: x } } } }\n";
        check(loki, true, Err("invalid label name `my-label`"));
    }
}
