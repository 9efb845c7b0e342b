//! The section `metrics` of the configuration.

use crate::sink::SinkEntry;
use crate::source::SourceEntry;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Collects metrics of the app and exports them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Sources of samples, by name.
    #[schemars(extend("x-names" = true))]
    pub sources: BTreeMap<String, SourceEntry>,
    /// Sinks of samples, by name. Every sink gets the samples of all sources.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sinks: BTreeMap<String, SinkEntry>,
}
