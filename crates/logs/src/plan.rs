//! From the Config to a Plan that is always valid: names resolved, policies decided.

use crate::config::Config;
use crate::sink::{SinkConfig, SinkEntry};
use crate::source::SourceConfig;
use crate::stage::{StageConfig, StageEntry};
use base::telemetry::component::Component;
use config::diag::{Diagnostic, nearest};
use config::registry::{Configured, Entry, Kind, Named, PlannedKind};
use config::tree::Node;
use delivery::engine;
use delivery::options::WhenFull;
use std::collections::BTreeSet;
use std::path::PathBuf;

pub struct Plan {
    pub sources: Vec<SourcePlan>,
    pub stages: Vec<Named<dyn StageConfig>>,
    pub sinks: Vec<SinkPlan>,
}

pub struct SourcePlan {
    pub name: String,
    pub kind: Named<dyn SourceConfig>,
    pub stages: Vec<Named<dyn StageConfig>>,
    /// Indexes of the sinks that receive its records.
    pub sinks: Vec<usize>,
}

pub struct SinkPlan {
    pub name: String,
    pub kind: Named<dyn SinkConfig>,
    pub stages: Vec<Named<dyn StageConfig>>,
    pub required: bool,
    pub when_full: WhenFull,
    pub max_buffer_bytes: usize,
    pub options: engine::Options,
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

impl Plan {
    /// Its components, for what is done with every component.
    pub fn components(&self) -> Vec<PlannedKind<'_>> {
        let mut components = Vec::new();
        for source in &self.sources {
            let id = source.component().id;
            components.extend(stage_components(&id, &source.stages));
            components.push(PlannedKind { id, kind: &*source.kind, buffer: 0, bodies: 0 });
        }
        components.extend(stage_components("logs", &self.stages));
        for sink in &self.sinks {
            let id = sink.component().id;
            components.extend(stage_components(&id, &sink.stages));
            let bodies = sink.options.limits.bytes.saturating_mul(sink.options.max_concurrency) as u64;
            let buffer = sink.max_buffer_bytes as u64;
            components.push(PlannedKind { id, kind: &*sink.kind, buffer, bodies });
        }
        components
    }

    /// Checks what the schema cannot. `root` is the tree of the `logs` section.
    pub fn new(config: &Config, configured: Configured, root: &Node) -> Result<Plan, Vec<Diagnostic>> {
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
        findings.extend(check_kinds(config, configured, root));
        findings.extend(check_loops(config, root));
        findings.extend(check_output(config, root));
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
                options: engine::Options {
                    limits: entry.batch.limits(),
                    retry: entry.retry.clone(),
                    max_concurrency: entry.max_concurrency as usize,
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
        self.sources.iter().any(|source| source.kind.reads_access())
    }

    /// The size of the capture rings for the supervisor, if a source reads them.
    pub fn capture_bytes(&self, container: Option<u64>) -> Option<u64> {
        self.sources.iter().find_map(|source| source.kind.capture_bytes(container))
    }
}

/// Stages with the id of their owner.
fn stage_components<'p>(owner: &str, stages: &'p [Named<dyn StageConfig>]) -> impl Iterator<Item = PlannedKind<'p>> {
    let component = move |(index, stage): (usize, &'p Named<dyn StageConfig>)| PlannedKind {
        id: format!("{owner}.stages.{index}"),
        kind: &**stage,
        buffer: 0,
        bodies: 0,
    };
    stages.iter().enumerate().map(component)
}

/// What each kind checks by itself.
fn check_kinds(config: &Config, configured: Configured, root: &Node) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    let mut check = |keys: &[&str], name: &str, kind: &dyn Kind| {
        let id = format!("logs.{}", keys.join("."));
        let node = root.at(&[keys, &[name]].concat());
        findings.extend(kind.check(&Entry { id: &id, node, configured }));
    };
    let mut stages: Vec<(Vec<&str>, &[StageEntry])> = vec![(vec!["stages"], &config.stages)];
    for (name, entry) in &config.sources {
        entry.kind().iter().for_each(|kind| check(&["sources", name], kind.name(), &**kind));
        stages.push((vec!["sources", name, "stages"], &entry.stages));
    }
    for (name, entry) in &config.sinks {
        entry.kind().iter().for_each(|kind| check(&["sinks", name], kind.name(), &**kind));
        stages.push((vec!["sinks", name, "stages"], &entry.stages));
    }
    for (keys, entries) in stages {
        for (index, stage) in entries.iter().enumerate() {
            let index = index.to_string();
            let keys = [keys.as_slice(), &[index.as_str()]].concat();
            stage.kind().iter().for_each(|kind| check(&keys, kind.name(), &**kind));
        }
    }
    findings
}

/// One source reads the app's output: its rings have one reader.
fn check_output(config: &Config, root: &Node) -> Option<Diagnostic> {
    let kinds = config.sources.iter().filter_map(|(name, entry)| Some((name, entry.kind()?)));
    let (name, kind) = kinds.filter(|(_, kind)| kind.capture_bytes(None).is_some()).nth(1)?;
    let place = root.at(&["sources", name, kind.name()]).place;
    let finding = Diagnostic::error(place, "the app's output is already read by another source");
    Some(finding.help(format!("keep one `{}` source; all sinks can share it", kind.name())))
}

/// A source that reads what a sink writes with its records, directly or through other sources and sinks, is an endless loop.
fn check_loops(config: &Config, root: &Node) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for (sink, entry) in &config.sinks {
        let Some((source, written)) = reads(config, entry).find(|(source, _)| is_routed_to(config, source, sink))
        else {
            continue;
        };
        let kind = entry.kind().map_or("", |kind| kind.name());
        let place = root.at(&["sinks", sink, kind, "path"]).place;
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
fn reads<'c>(config: &'c Config, sink: &SinkEntry) -> impl Iterator<Item = (&'c str, PathBuf)> {
    let files = sink.kind().map(|kind| kind.written_files()).unwrap_or_default();
    // With the symlinks of the directory resolved, and as configured.
    let real = |path: &PathBuf| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    let written: Vec<PathBuf> = files.iter().filter_map(real).chain(files.iter().cloned()).collect();
    config.sources.iter().filter_map(move |(name, source)| {
        let kind = source.kind()?;
        Some((name.as_str(), written.iter().find(|path| kind.reads(path))?.clone()))
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

fn kinds(entries: &[StageEntry]) -> Vec<Named<dyn StageConfig>> {
    entries.iter().filter_map(StageEntry::kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::interpolate::Lookup;

    fn check(text: &str, wrapped: bool, expect: Result<(), &str>) {
        let loaded = config::load::load::<Config>("logs.yaml", text, &Lookup::HERE);
        let loaded = loaded.unwrap_or_else(|report| panic!("{}", report.render()));
        match (Plan::new(&loaded.config, Configured { app: wrapped, proxy: false }, &loaded.tree), expect) {
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
