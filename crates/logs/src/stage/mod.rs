//! Stages process records between source and sink. In: a batch. Out: the same batch, with fields set. Stages process complete
//! batches and allocate per batch, not per record. A kind is one file here and one line in the registry.

pub mod parse;
pub mod set;

use crate::batch::Batch;
use base::telemetry::component::Component;
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use base::telemetry::{Counter, ERRORS, Telemetry};
use config::registry::{Kind, Named};
use std::sync::Arc;

config::registry! {
    /// A stage: its kind is its only key.
    pub entry StageEntry, configs dyn StageConfig {
        /// Parses the line as a format and makes its fields the record's.
        parse => parse::Config,
        /// Sets fields to fixed values.
        set => set::Config,
    } shared {}
}

/// The Config of a stage.
pub trait StageConfig: Kind {
    fn build(&self) -> Box<dyn Stage>;
}

/// The result of a stage for a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageOutput {
    /// Records left unchanged, since the stage could not process them.
    pub skipped: u64,
}

/// Processes complete batches.
pub trait Stage {
    fn apply(&self, batch: &mut Batch) -> StageOutput;
}

/// A stage with its ledger row.
pub struct MeteredStage {
    stage: Box<dyn Stage>,
    row: Arc<Row>,
    /// Records that it left unchanged.
    skipped: Counter,
}

/// Stages in their order. `path`: the id of their owner in the ledger.
pub fn metered(kinds: &[Named<dyn StageConfig>], path: &str, telemetry: &Telemetry) -> Vec<MeteredStage> {
    let one = |(index, kind): (usize, &Named<dyn StageConfig>)| {
        let component = Component::stage(format!("{path}.stages.{index}"), kind.name());
        let [id, kind_name, type_name] = component.labels();
        let reason = Reason::ParseError.as_str();
        MeteredStage {
            stage: kind.build(),
            skipped: telemetry.counter(&ERRORS, &[id, kind_name, type_name, reason]),
            row: telemetry.ledger.row(&component),
        }
    };
    kinds.iter().enumerate().map(one).collect()
}

/// Applies the stages in order.
pub fn apply(stages: &[MeteredStage], batch: &mut Batch) {
    for metered in stages {
        let count = batch.records.len() as u64;
        metered.row.receive(count);
        metered.skipped.add(metered.stage.apply(batch).skipped);
        metered.row.deliver(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<StageEntry>(StageEntry::KINDS);
    }
}
