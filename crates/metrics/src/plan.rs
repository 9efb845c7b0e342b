//! Validates the Config and builds the Plan, which is always valid.

use crate::config::Config;
use crate::sink::SinkConfig;
use crate::sink_options::BufferConfig;
use crate::source::SourceConfig;
use base::telemetry::component::Component;
use config::diag::Diagnostic;
use config::registry::{Configured, Entry, Named, PlannedKind};
use config::tree::Node;
use delivery::options::RetryConfig;
use std::time::Duration;

pub struct Plan {
    pub sources: Vec<SourcePlan>,
    pub sinks: Vec<SinkPlan>,
}

pub struct SinkPlan {
    pub name: String,
    pub kind: Named<dyn SinkConfig>,
    pub buffer: BufferConfig,
    pub retry: RetryConfig,
}

pub struct SourcePlan {
    pub name: String,
    pub kind: Named<dyn SourceConfig>,
    pub interval: Duration,
}

impl SourcePlan {
    pub fn component(&self) -> Component {
        Component::source(format!("metrics.sources.{}", self.name), self.kind.name())
    }
}

impl SinkPlan {
    pub fn component(&self) -> Component {
        Component::sink(format!("metrics.sinks.{}", self.name), self.kind.name())
    }
}

/// A shorter interval would cost more than its samples are worth.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Plan {
    /// Its components, for what is done with every component.
    pub fn components(&self) -> Vec<PlannedKind<'_>> {
        let mut components = Vec::new();
        for source in &self.sources {
            components.push(PlannedKind { id: source.component().id, kind: &*source.kind, buffer: 0, bodies: 0 });
        }
        for sink in &self.sinks {
            let buffer = if sink.kind.is_pulled() { 0 } else { sink.buffer.max_bytes.0 };
            components.push(PlannedKind { id: sink.component().id, kind: &*sink.kind, buffer, bodies: 0 });
        }
        components
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
    pub fn new(config: &Config, configured: Configured, root: &Node) -> Result<Plan, Vec<Diagnostic>> {
        let mut findings = Vec::new();
        let mut sources = Vec::new();
        for (name, entry) in &config.sources {
            let Some(kind) = entry.kind() else { continue };
            let node = root.at(&["sources", name, kind.name()]);
            let source = SourcePlan { name: name.clone(), interval: kind.interval(), kind };
            findings.extend(source.kind.check(&Entry { id: &source.component().id, node, configured }));
            if source.interval < INTERVAL_MIN {
                let text = format!("the interval of `metrics.sources.{name}` is shorter than 100ms");
                findings.push(Diagnostic::error(node.at(&["interval"]).place, text));
            }
            sources.push(source);
        }
        let mut sinks = Vec::new();
        for (name, entry) in &config.sinks {
            let Some(kind) = entry.kind() else { continue };
            let node = root.at(&["sinks", name, kind.name()]);
            let (buffer, retry) = (entry.buffer.clone().unwrap_or_default(), entry.retry.clone().unwrap_or_default());
            let sink = SinkPlan { name: name.clone(), kind, buffer, retry };
            findings.extend(sink.kind.check(&Entry { id: &sink.component().id, node, configured }));
            sinks.push(sink);
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        Ok(Plan { sources, sinks })
    }
}
