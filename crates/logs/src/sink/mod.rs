//! Sinks of log records. Each sink is one task: it takes batches from its queue, builds a body, delivers it with retries, and
//! acknowledges. A kind is one file here and one line in the registry.

pub mod http;
pub mod loki;
pub mod file;
pub mod stdout;
pub mod blackhole;

use crate::batch::Batch;
use crate::sink_options::{BatchConfig, BufferConfig};
use crate::stage::StageEntry;
use config::registry::Kind;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

config::registry! {
    /// A sink: its kind, and the options common to all kinds.
    pub entry SinkEntry, configs dyn SinkConfig {
        /// JSON lines over HTTP.
        http => http::Config,
        /// Grafana Loki.
        loki => loki::Config,
        /// A file with rotation.
        file => file::Config,
        /// Outrigger's stdout.
        stdout => stdout::Config,
        /// Discards and counts records.
        blackhole => blackhole::Config,
    } shared {
        /// Names of the sources whose records the sink receives. Default: all.
        #[serde(default)]
        pub inputs: Option<Vec<String>>;
        /// Whether sources wait for this sink. If `false`, the sink delays no source, and a full buffer drops its oldest records.
        #[serde(default = "yes")]
        pub required: bool;
        /// The buffer of records for this sink.
        #[serde(default)]
        pub buffer: BufferConfig;
        /// The limits of a body.
        #[serde(default)]
        pub batch: BatchConfig;
        /// Stages for this sink only, after those of the source and of `logs.stages`.
        #[serde(default)]
        pub stages: Vec<StageEntry>;
    }
}

fn yes() -> bool {
    true
}

/// The Config of a sink.
pub trait SinkConfig: Kind {
    /// Errors give the file or certificate that cannot be used.
    fn build(&self) -> Result<Box<dyn Sink>, String>;

    /// The files that it writes: a source that reads one of them can be an endless loop.
    fn written_files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// Why a delivery failed, and whether it is retried.
#[derive(Debug)]
pub struct Failure {
    /// Whether a retry can succeed. If not, the records are dropped as `rejected`.
    pub retry: bool,
    pub error: String,
    /// The delay that the receiver requested.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn retry(error: impl Into<String>) -> Failure {
        Failure { retry: true, error: error.into(), retry_after: None }
    }

    /// A failed call: most can be retried.
    pub fn of(error: &net::Error) -> Failure {
        if error.retry { Failure::retry(error.to_string()) } else { Failure::reject(error.to_string()) }
    }

    pub fn reject(error: impl Into<String>) -> Failure {
        Failure { retry: false, error: error.into(), retry_after: None }
    }
}

pub type Delivery<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// One receiver. It takes ranges of records and retains the body until `reset`.
pub trait Sink {
    /// Adds these records of the batch, until the body has `max` bytes; returns the index of the next record.
    fn encode(&mut self, batch: &Batch, records: Range<usize>, max: usize) -> usize;
    /// The size of the body so far.
    fn size(&self) -> usize;
    /// The size of the body as `deliver` sent it.
    fn sent(&self) -> usize {
        self.size()
    }
    /// Sends the body; called again with the same body after a failure.
    fn deliver(&mut self) -> Delivery<'_>;
    /// Empties the body.
    fn reset(&mut self);
}

/// Posts a body of a sink that uses HTTP.
async fn post(
    client: &net::Client,
    url: &str,
    headers: Vec<(&'static str, String)>,
    body: bytes::Bytes,
) -> Result<(), Failure> {
    let (method, url) = (::http::Method::POST, url.to_string());
    let request = net::Request { method, url, headers, body, response_max: RESPONSE_MAX };
    let response = client.send(&request).await.map_err(|error| Failure::of(&error))?;
    result_of(&response)
}

/// The result for the body by the status of the HTTP response: 2xx is accepted, 408, 425, 429 and 5xx are retried, any other
/// status is rejected (according to the documentation of Loki and OTLP/HTTP).
fn result_of(response: &net::Response) -> Result<(), Failure> {
    let text = || format!("status {}: {}", response.status, response.excerpt());
    match response.status {
        200..=299 => Ok(()),
        408 | 425 | 429 | 500..=599 => Err(Failure { retry_after: response.retry_after(), ..Failure::retry(text()) }),
        _ => Err(Failure::reject(text())),
    }
}

/// The maximum size of a receiver's response that is read.
const RESPONSE_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<SinkEntry>(SinkEntry::KINDS);
    }
}
