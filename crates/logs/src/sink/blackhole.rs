//! Discards records. In: records. Out: only their count.

use super::{Delivery, Sink, SinkConfig};
use crate::batch::Batch;
use config::registry::Kind;
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::Range;

/// Discards and counts every record, to test and measure sources and stages.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Kind for Config {
    fn example() -> &'static str {
        "blackhole: {}\n"
    }
}

impl SinkConfig for Config {
    fn build(&self) -> Result<Box<dyn Sink>, String> {
        Ok(Box::new(Blackhole::default()))
    }
}

#[derive(Default)]
struct Blackhole {
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
