//! Sets fields of every record to fixed values. In: batches. Out: the same, with the values stored once per batch.

use super::{Stage, StageConfig, StageOutput};
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
    fn example() -> &'static str {
        "set: { service: orders, region: eu }\n"
    }
}

impl StageConfig for Config {
    fn build(&self) -> Box<dyn Stage> {
        let fields = self.0.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into()));
        Box::new(Set { fields: fields.collect() })
    }
}

struct Set {
    fields: Vec<(Rc<str>, Rc<str>)>,
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
