//! From the Config to a Plan that cannot be wrong.

use crate::config::Config;
use crate::sink::SinkKind;
use crate::source::SourceKind;
use base::diag::Diagnostic;
use base::needs::{Listen, Needs};
use base::tree::Node;
use std::time::Duration;

pub struct Plan {
    pub sources: Vec<SourcePlan>,
    pub sinks: Vec<(String, SinkKind)>,
}

pub struct SourcePlan {
    pub name: String,
    pub kind: SourceKind,
    pub every: Duration,
}

/// A source that is asked more often than this would cost more than it tells.
const EVERY_MIN: Duration = Duration::from_millis(100);

impl Plan {
    /// What its sources and sinks need from the system.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for source in &self.sources {
            match &source.kind {
                SourceKind::Scrape(config) => needs.add(net::needs(config.url.as_str(), &config.client)),
                // Names, times and memory of the app's processes, as `ps` shows them.
                SourceKind::Process(_) => needs.read.push("/proc".into()),
                SourceKind::Proxy(_) | SourceKind::Own(_) => {}
            }
        }
        for (name, sink) in &self.sinks {
            match sink {
                SinkKind::Prometheus(config) => needs.listen.push(Listen {
                    name: format!("metrics/{name}"),
                    owner: format!("metric sink `{name}`"),
                    address: config.listen.0,
                    count: 1,
                }),
                SinkKind::RemoteWrite(config) => needs.add(net::needs(config.url.as_str(), &config.client)),
            }
        }
        needs
    }

    /// Checks what the schema cannot. `root` is the tree of the `metrics` section.
    pub fn new(config: &Config, wrapped: bool, proxied: bool, root: &Node) -> Result<Plan, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let mut sources = Vec::new();
        for (name, entry) in &config.sources {
            let Some(kind) = entry.kind() else { continue };
            let place = |key: &str| root.at(&["sources", name, key]).place;
            match &kind {
                SourceKind::Process(_) if !wrapped => findings.push(
                    Diagnostic::error(
                        place("process"),
                        format!("the source `{name}` reads the process of a wrapped app, and there is none"),
                    )
                    .help("set app.command, or run `outrigger run -- command`"),
                ),
                SourceKind::Proxy(_) if !proxied => findings.push(
                    Diagnostic::error(
                        place("proxy"),
                        format!("the source `{name}` counts requests, and there is no proxy"),
                    )
                    .help("add a `proxy` section, or remove this source"),
                ),
                _ => {}
            }
            let every = kind.every();
            if every < EVERY_MIN {
                let key = root.at(&["sources", name]).place;
                findings.push(Diagnostic::error(key, format!("`every` of `{name}` is shorter than 100ms")));
            }
            sources.push(SourcePlan { name: name.clone(), kind, every });
        }
        for (name, entry) in &config.sinks {
            let Some(SinkKind::RemoteWrite(sink)) = entry.kind() else { continue };
            for (label, text) in sink.check() {
                let place = root.at(&["sinks", name, "remote_write", "labels", label]).place;
                findings.push(Diagnostic::error(place, text).help("receivers would refuse every request"));
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        let sinks = config.sinks.iter().filter_map(|(name, entry)| Some((name.clone(), entry.kind()?)));
        Ok(Plan { sources, sinks: sinks.collect() })
    }
}
