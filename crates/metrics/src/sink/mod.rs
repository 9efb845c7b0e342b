//! Sinks of samples: a sink that pushes receives every snapshot, one that is pulled reads the latest ones. A kind is one file here
//! and one line in the registry.

pub mod prometheus;
pub mod remote_write;

use crate::series::Snapshot;
use crate::sink_options::BufferConfig;
use crate::sources::Sources;
use base::runtime::health::Health;
use base::runtime::lifecycle::PhaseWatch;
use base::runtime::scope::Scope;
use base::system::listen::Sockets;
use base::telemetry::Telemetry;
use base::telemetry::component::Component;
use config::registry::Kind;
use delivery::options::RetryConfig;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

config::registry! {
    /// A sink of metrics: its kind.
    pub entry SinkEntry, configs dyn SinkConfig {
        /// A /metrics endpoint that Prometheus scrapes.
        prometheus => prometheus::Config,
        /// Prometheus remote write.
        remote_write => remote_write::Config,
    } shared {
        /// The samples that wait for a sink that pushes; an error with `prometheus`.
        #[serde(default)]
        pub buffer: Option<BufferConfig>, not for prometheus;
        /// Attempts to deliver a request of a sink that pushes; an error with `prometheus`.
        #[serde(default)]
        pub retry: Option<RetryConfig>, not for prometheus;
    }
}

/// The Config of a sink.
pub trait SinkConfig: Kind {
    /// An error contains what cannot be used.
    fn build(&self, context: &Context<'_>) -> Result<Rc<dyn Sink>, String>;

    /// Whether receivers collect the samples, so that none wait for them.
    fn is_pulled(&self) -> bool {
        false
    }
}

/// What a sink is built with.
pub struct Context<'a> {
    pub component: &'a Component,
    pub buffer: &'a BufferConfig,
    pub retry: &'a RetryConfig,
    pub sockets: &'a Sockets,
    pub sources: &'a Rc<Sources>,
    pub telemetry: &'a Telemetry,
    pub health: &'a Arc<Health>,
    pub scope: &'a Scope,
}

pub type Running = Pin<Box<dyn Future<Output = ()>>>;

/// A running sink.
pub trait Sink {
    /// Its task. A sink that pushes runs until it is closed and has sent what waits; one that is pulled until it is aborted.
    fn run(self: Rc<Self>, phase: PhaseWatch) -> Running;

    /// Receives each snapshot of each source.
    fn push(&self, _snapshot: &Rc<Snapshot>) {}

    /// No more snapshots follow.
    fn close(&self) {}

    /// Counts and returns the samples that were not sent in time.
    fn give_up(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<SinkEntry>(SinkEntry::KINDS);
    }
}
