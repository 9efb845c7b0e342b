//! Outrigger's own metrics: the kind `self`.

use super::{Gathered, Inputs, Source, SourceConfig};
use config::registry::Kind;
use config::unit::TimeSpan;
use schemars::JsonSchema;
use serde::Deserialize;
use std::rc::Rc;
use std::time::Duration;

/// Outrigger's own metrics, `outrigger_*`, in addition to the app's. The admin listener's /metrics always exposes them; with
/// this source they go to the sinks too.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How often samples are taken for sinks that push, at least 100ms.
    #[serde(default = "super::interval")]
    pub interval: TimeSpan,
}

impl Kind for Config {
    fn example() -> &'static str {
        "self: {}\n"
    }
}

impl SourceConfig for Config {
    fn interval(&self) -> Duration {
        self.interval.0
    }

    fn build(&self, _name: &str, inputs: &Inputs) -> Result<Rc<dyn Source>, String> {
        Ok(Rc::new(Gathered::new(inputs.own.clone())))
    }
}
