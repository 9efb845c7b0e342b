//! Validates the Config and builds the Plan, which is always valid.

use crate::config::Config;
use crate::sink::{SinkEntry, SinkKind};
use crate::sink_options::BufferConfig;
use crate::source::SourceKind;
use base::system::listen::Listen;
use base::telemetry::component::Component;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::tree::Node;
use std::time::Duration;

pub struct Plan {
    pub sources: Vec<SourcePlan>,
    pub sinks: Vec<SinkPlan>,
}

pub struct SinkPlan {
    pub name: String,
    pub kind: SinkKind,
    pub buffer: BufferConfig,
}

pub struct SourcePlan {
    pub name: String,
    pub kind: SourceKind,
    pub interval: Duration,
}

impl SourcePlan {
    pub fn component(&self) -> Component {
        Component::source(format!("metrics.sources.{}", self.name), self.kind.name())
    }
}

/// A shorter interval would cost more than its samples are worth.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Plan {
    /// What its sources and sinks need from the system.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for source in &self.sources {
            match &source.kind {
                SourceKind::Scrape(config) => needs.add(net::needs(config.url.as_str(), &config.client())),
                // Names, times and memory of the app's processes, as `ps` shows them.
                SourceKind::Process(_) => needs.read.push("/proc".into()),
                SourceKind::Proxy(_) | SourceKind::Own(_) => {}
            }
        }
        for SinkPlan { name, kind, .. } in &self.sinks {
            match kind {
                SinkKind::Prometheus(config) => needs.listen.push(Listen {
                    name: format!("metrics/{name}"),
                    owner: format!("metrics.sinks.{name}"),
                    address: config.listen.0,
                    count: 1,
                }),
                SinkKind::RemoteWrite(config) => needs.add(net::needs(config.url.as_str(), &config.client())),
            }
        }
        needs
    }

    /// A warning if there are sources but no sinks. `root` is the tree of the `metrics` section.
    pub fn unread_sources(&self, root: &Node) -> Option<Diagnostic> {
        let is_unread = self.sinks.is_empty() && !self.sources.is_empty();
        is_unread.then(|| {
            let place = root.at(&["sources"]).place;
            let text = "`metrics.sources` has no sink: its samples are only in black box files";
            Diagnostic::warning(place, text).help("add a sink in `metrics.sinks`, such as `prom: { prometheus: {} }`")
        })
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
                        format!("source `{name}` requires a wrapped app, but no command is configured"),
                    )
                    .help("set app.command, or run `outrigger run -- command`"),
                ),
                SourceKind::Proxy(_) if !proxied => findings.push(
                    Diagnostic::error(
                        place("proxy"),
                        format!("source `{name}` counts requests of the proxy, but no proxy is configured"),
                    )
                    .help("add a `proxy` section, or remove this source"),
                ),
                _ => {}
            }
            let interval = kind.interval();
            if interval < INTERVAL_MIN {
                let key = root.at(&["sources", name]).place;
                findings.push(Diagnostic::error(
                    key,
                    format!("the interval of `metrics.sources.{name}` is shorter than 100ms"),
                ));
            }
            sources.push(SourcePlan { name: name.clone(), kind, interval });
        }
        for (name, entry) in &config.sinks {
            let sink = match entry.kind() {
                Some(SinkKind::RemoteWrite(sink)) => sink,
                Some(SinkKind::Prometheus(_)) if entry.buffer.is_some() => {
                    let place = root.at(&["sinks", name, "buffer"]).place;
                    let finding = Diagnostic::error(place, "`buffer` has no effect on `prometheus`");
                    findings.push(finding.help("remove it: the exposition is built for each scrape"));
                    continue;
                }
                _ => continue,
            };
            for (label, text) in sink.check() {
                let place = root.at(&["sinks", name, "remote_write", "external_labels", label]).place;
                findings.push(Diagnostic::error(place, text).help("receivers would reject every request"));
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        let sink = |(name, entry): (&String, &SinkEntry)| {
            let (kind, buffer) = (entry.kind()?, entry.buffer.clone().unwrap_or_default());
            Some(SinkPlan { name: name.clone(), kind, buffer })
        };
        Ok(Plan { sources, sinks: config.sinks.iter().filter_map(sink).collect() })
    }
}
