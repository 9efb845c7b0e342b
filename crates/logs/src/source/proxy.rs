//! Access records of the proxy. In: batches from the feed, one JSON object a line. Out: the same as parsed records. They
//! are in memory only until delivered: a request never waits for its own record.

use super::{SourceConfig, Start};
use crate::batch::{Batch, Stream};
use crate::framer::Framer;
use crate::pipeline::Pipeline;
use crate::stage::parse::parse_json;
use base::feeds::{AccessBatch, FeedReceiver};
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::telemetry::reason::Reason;
use config::diag::Diagnostic;
use config::registry::{Entry, Kind};
use config::unit::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use std::rc::Rc;
use std::time::Duration;

/// A record for each request through the proxy: listener, cluster, method, path without its query, status, duration, bytes and
/// endpoint. If the logs cannot keep up, records are dropped and counted under `buffer_full`; a request never waits.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Kind for Config {
    fn example() -> &'static str {
        "proxy: {}\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        entry.requires_proxy("`proxy` records requests").into_iter().collect()
    }

    fn memory(&self) -> ByteSize {
        ByteSize(FEED_MAX as u64)
    }
}

impl SourceConfig for Config {
    fn start(&self, start: Start<'_>) {
        if let Some(feed) = start.inputs.access.take() {
            let run = run(feed, start.pipeline, start.phase.clone());
            start.running.feeds.push(start.scope.spawn("proxy", run));
        }
    }

    fn reads_access(&self) -> bool {
        true
    }
}

/// Bytes that may be queued between the proxy and the logs.
pub const FEED_MAX: usize = 16 << 20;

/// How long to wait for the last records: longer than the proxy batches them.
const FINAL_FLUSH: Duration = Duration::from_millis(200);

/// The maximum length of a record. A record is shorter than the limit of a path plus a few words.
const LINE_MAX: usize = 16 << 10;

async fn run(mut feed: FeedReceiver<AccessBatch>, pipeline: Rc<Pipeline>, mut phase: PhaseWatch) {
    loop {
        let item = tokio::select! {
            item = feed.next() => item,
            _ = phase.reached(Phase::Finish) => break,
        };
        pipeline.lost(Reason::BufferFull, feed.take_refused());
        match item {
            Some(item) => push(item, &pipeline).await,
            None => return,
        }
    }
    // The proxy's threads are notified of the shutdown at the same time, and flush their records.
    while let Ok(Some(item)) = tokio::time::timeout(FINAL_FLUSH, feed.next()).await {
        push(item, &pipeline).await;
    }
    pipeline.lost(Reason::BufferFull, feed.take_refused());
}

async fn push(item: AccessBatch, pipeline: &Pipeline) {
    let mut framer = Framer::new(pipeline.name().into(), None, Stream::None, LINE_MAX, 0);
    if let Some(mut batch) = framer.take(&item.lines) {
        parse(&mut batch);
        pipeline.push_untracked(batch).await;
    }
}

fn parse(batch: &mut Batch) {
    for index in 0..batch.records.len() {
        parse_json(batch, index);
    }
}
