//! The `logs` section of the configuration.

use crate::sink::SinkEntry;
use crate::source::SourceEntry;
use crate::stage::StageEntry;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Collects, processes and ships log lines.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Sources of log lines, by name.
    #[schemars(extend("x-names" = true))]
    pub sources: BTreeMap<String, SourceEntry>,
    /// Stages that process every record, in order. A source or a sink can have its own stages.
    #[serde(default)]
    pub stages: Vec<StageEntry>,
    /// Sinks that receive the records, by name.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sinks: BTreeMap<String, SinkEntry>,
}
