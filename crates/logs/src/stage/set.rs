//! Sets fields of every record to fixed values. In: batches. Out: the same, with the values stored once per batch.

use super::{Stage, StageOutput};
use crate::batch::Batch;
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Sets the same fields on every record, such as the name of the service. An existing field of that name is replaced. To use a
/// value from the environment write `${NAME}`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(BTreeMap<String, String>);

impl Kind for Config {
    const EXAMPLE: &'static str = "set: { service: orders, region: eu }\n";
}

pub struct Set {
    fields: Vec<(Rc<str>, Rc<str>)>,
}

impl Set {
    pub fn new(config: &Config) -> Set {
        Set { fields: config.0.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect() }
    }
}

impl Stage for Set {
    fn apply(&self, batch: &mut Batch) -> StageOutput {
        for (name, value) in &self.fields {
            batch.common.retain(|(known, _)| known != name);
            batch.common.push((name.clone(), value.clone()));
        }
        StageOutput::default()
    }
}
