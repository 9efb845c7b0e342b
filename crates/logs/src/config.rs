//! What a person writes under `logs`.

use crate::sink::SinkEntry;
use crate::source::SourceEntry;
use crate::stage::StageEntry;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Collects, shapes and ships log lines.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where lines come from, by name.
    #[schemars(extend("x-names" = true))]
    pub sources: BTreeMap<String, SourceEntry>,
    /// What is done to every record, in order. A source and a sink may have stages of their own.
    #[serde(default)]
    pub stages: Vec<StageEntry>,
    /// Where records go, by name.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sinks: BTreeMap<String, SinkEntry>,
}
