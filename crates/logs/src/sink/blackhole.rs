//! Nowhere. In: records. Out: nothing but their count.

use super::{Delivery, Sink};
use crate::batch::Batch;
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::Range;

/// Takes every record and does nothing with it but count: to try sources and stages, and to measure them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Kind for Config {
    const EXAMPLE: &'static str = "blackhole: {}\n";
}

#[derive(Default)]
pub struct Blackhole {
    size: usize,
}

impl Sink for Blackhole {
    fn encode(&mut self, batch: &Batch, records: Range<usize>, _max: usize) -> usize {
        self.size += batch
            .records
            .iter()
            .take(records.end)
            .skip(records.start)
            .map(|record| (record.end - record.start) as usize + 1)
            .sum::<usize>();
        records.end
    }

    fn size(&self) -> usize {
        self.size
    }

    fn deliver(&mut self) -> Delivery<'_> {
        Box::pin(async { Ok(()) })
    }

    fn reset(&mut self) {
        self.size = 0;
    }
}
