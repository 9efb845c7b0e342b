//! What a person writes under `metrics`.

use crate::sink::SinkEntry;
use crate::source::SourceEntry;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Collects metrics of the app and exports them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where samples come from, by name.
    #[schemars(extend("x-names" = true))]
    pub sources: BTreeMap<String, SourceEntry>,
    /// Where samples go, by name. Every sink gets all sources.
    #[serde(default)]
    #[schemars(extend("x-names" = true))]
    pub sinks: BTreeMap<String, SinkEntry>,
}
