//! Where records go. Each sink is one task: it takes batches from its queue, puts a body together, delivers it with retries,
//! and acknowledges. A kind is one file here and one line in the registry.

pub mod http;
pub mod loki;
pub mod file;
pub mod stdout;
pub mod blackhole;

use crate::batch::Batch;
use crate::sink_options::{BatchConfig, BufferConfig};
use crate::stage::StageEntry;
use config::needs::Needs;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

config::registry! {
    /// A sink: its kind, and what it shares with every other.
    pub entry SinkEntry, kind SinkKind {
        /// JSON lines by HTTP.
        http => Http(http::Config),
        /// Grafana Loki.
        loki => Loki(loki::Config),
        /// A file, rotated.
        file => File(file::Config),
        /// Our own stdout.
        stdout => Stdout(stdout::Config),
        /// Nowhere, counted.
        blackhole => Blackhole(blackhole::Config),
    } shared {
        /// The names of the sources whose records it gets. Default: all.
        #[serde(default)]
        pub inputs: Option<Vec<String>>,
        /// Whether sources wait for this sink. If `false`, it delays nothing, and a full buffer drops its oldest records.
        #[serde(default = "yes")]
        pub required: bool,
        /// The records that wait for it.
        #[serde(default)]
        pub buffer: BufferConfig,
        /// What is sent at a time.
        #[serde(default)]
        pub batch: BatchConfig,
        /// Stages for this sink alone, after those of the source and of `logs.stages`.
        #[serde(default)]
        pub stages: Vec<StageEntry>,
    }
}

fn yes() -> bool {
    true
}

impl SinkKind {
    /// What it needs from the system.
    pub fn needs(&self) -> Needs {
        match self {
            SinkKind::Http(config) => net::needs(config.url.as_str(), &config.client()),
            SinkKind::Loki(config) => net::needs(config.url.as_str(), &config.client()),
            SinkKind::File(config) => {
                let mut needs = Needs::default();
                needs.write_file(&config.path);
                needs
            }
            SinkKind::Stdout(_) | SinkKind::Blackhole(_) => Needs::default(),
        }
    }

    /// What the schema cannot check: the keys below the kind's own, a sentence, and what to do.
    pub fn check(&self) -> Vec<(Vec<&str>, String, &'static str)> {
        match self {
            SinkKind::Loki(config) => {
                let wrong = config.check().into_iter();
                wrong
                    .map(|(label, text)| (vec!["loki", "labels", label], text, "Loki would refuse every push"))
                    .collect()
            }
            SinkKind::File(config) => {
                config.check().into_iter().map(|(text, help)| (vec!["file", "path"], text, help)).collect()
            }
            SinkKind::Http(_) | SinkKind::Stdout(_) | SinkKind::Blackhole(_) => Vec::new(),
        }
    }
}

/// Why a delivery failed, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    /// Whether trying again can help. If not, the records are dropped as `rejected`.
    pub retry: bool,
    pub text: String,
    /// What the receiver asked us to wait.
    pub wait: Option<Duration>,
}

impl Failure {
    pub fn retry(text: impl Into<String>) -> Failure {
        Failure { retry: true, text: text.into(), wait: None }
    }

    /// A call that failed: most can be tried again.
    pub fn of(error: &net::Error) -> Failure {
        if error.retry { Failure::retry(error.to_string()) } else { Failure::reject(error.to_string()) }
    }

    pub fn reject(text: impl Into<String>) -> Failure {
        Failure { retry: false, text: text.into(), wait: None }
    }
}

pub type Delivery<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>>;

/// One receiver. It is given whole runs of records and keeps the body until told that it is no longer needed.
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

impl SinkKind {
    /// Errors name a file or certificate that cannot be used.
    pub fn build(&self) -> Result<Box<dyn Sink>, String> {
        Ok(match self {
            SinkKind::Http(config) => Box::new(http::Http::new(config)?),
            SinkKind::Loki(config) => Box::new(loki::Loki::new(config)?),
            SinkKind::File(config) => Box::new(file::FileSink::new(config)),
            SinkKind::Stdout(config) => Box::new(stdout::Stdout::new(config)),
            SinkKind::Blackhole(_) => Box::new(blackhole::Blackhole::default()),
        })
    }
}

/// What an answer of an HTTP receiver means for the body: 2xx took it, 408, 425, 429 and 5xx may take it later, anything
/// else never will (as Loki's and the OTLP/HTTP documents say).
fn judge(response: &net::Response) -> Result<(), Failure> {
    let text = || format!("status {}: {}", response.status, response.excerpt());
    match response.status {
        200..=299 => Ok(()),
        408 | 425 | 429 | 500..=599 => Err(Failure { wait: response.retry_after(), ..Failure::retry(text()) }),
        _ => Err(Failure::reject(text())),
    }
}

/// The most that is read of a receiver's answer.
const ANSWER_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_keeps_its_laws() {
        config::registry::assert_laws::<SinkEntry>(SinkEntry::KINDS);
    }
}
