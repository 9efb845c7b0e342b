//! Discards records. In: records. Out: only their count.

use super::SinkConfig;
use crate::batch::Batch;
use config::registry::Kind;
use delivery::batch::{Body, Encode, Sending, Transport};
use delivery::engine::Sink;
use delivery::outcome::Outcome;
use schemars::JsonSchema;
use serde::Deserialize;
use std::ops::Range;
use std::rc::Rc;

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
    fn build(&self) -> Result<Sink<Batch>, String> {
        Ok(Sink { encoder: Box::new(Count::default()), transport: Rc::new(Discard {}) })
    }
}

#[derive(Default)]
struct Count {
    size: usize,
}

impl Encode<Batch> for Count {
    fn encode(&mut self, batch: &Batch, records: Range<usize>, _max: usize) -> usize {
        let range = batch.records.iter().take(records.end).skip(records.start);
        self.size += range.map(|record| (record.end - record.start) as usize + 1).sum::<usize>();
        records.end
    }

    fn size(&self) -> usize {
        self.size
    }

    fn finish(&mut self) -> Result<Body, String> {
        Ok(Body { sent: std::mem::take(&mut self.size), ..Body::default() })
    }
}

struct Discard {}

impl Transport for Discard {
    fn send<'a>(&'a self, _body: &'a Body) -> Sending<'a> {
        Box::pin(std::future::ready(Outcome::Delivered))
    }
}
