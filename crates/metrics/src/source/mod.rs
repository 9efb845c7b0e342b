//! Sources of samples. A source is collected at its interval, and a local one also at each scrape of the exposition. A kind is
//! one file here and one line in the registry.

pub mod scrape;
pub mod process;
pub mod proxy;
pub mod own;

use crate::series::Snapshot;
use base::telemetry::family::Gather;
use base::telemetry::reason::Reason;
use config::registry::Kind;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

config::registry! {
    /// A source of metrics: its kind.
    pub entry SourceEntry, configs dyn SourceConfig {
        /// The app's own /metrics endpoint.
        scrape => scrape::Config,
        /// The app's processes, from /proc.
        process => process::Config,
        /// Requests through the proxy.
        proxy => proxy::Config,
        /// Outrigger's own metrics.
        own as "self" => own::Config,
    } shared {}
}

/// The Config of a source.
pub trait SourceConfig: Kind {
    /// How often it is collected.
    fn interval(&self) -> Duration;

    /// `name`: the source's name in the file. An error contains what cannot be used.
    fn build(&self, name: &str, inputs: &Inputs) -> Result<Rc<dyn Source>, String>;
}

/// What sources need from the rest of the worker.
#[derive(Clone)]
pub struct Inputs {
    /// The app's process id, 0 while there is none.
    pub app_pid: Arc<AtomicI32>,
    /// Counts the open file descriptors of a process of the app, which a sandboxed worker may not see itself.
    pub descriptors: CountDescriptors,
    pub proxy: Option<Arc<dyn Gather>>,
    pub own: Arc<dyn Gather>,
    /// Whether the app was ready once: before that, a target that does not respond is not a fault.
    pub app_was_ready: tokio::sync::watch::Receiver<bool>,
}

pub type CountDescriptors = Rc<dyn Fn(i32) -> Pin<Box<dyn Future<Output = Option<u64>>>>>;

/// The result of one collection.
pub struct Collected {
    /// None if the target did not respond: its series end.
    pub snapshot: Option<Snapshot>,
    /// Dropped samples, by reason.
    pub dropped: Vec<(Reason, u64)>,
    /// The error for health.
    pub error: Option<String>,
    /// Whether the target responded.
    pub up: bool,
}

pub type Collecting<'a> = Pin<Box<dyn Future<Output = Collected> + 'a>>;

pub trait Source {
    fn collect(&self) -> Collecting<'_>;
    /// The snapshot of a skipped round: all series end.
    fn end(&self) -> Snapshot;
    /// Whether a collection reads nothing but memory or /proc; such a source is collected again at each scrape of the exposition.
    fn is_local(&self) -> bool;
}

/// The default interval: Prometheus' own recommendation for services.
pub(crate) fn interval() -> config::unit::TimeSpan {
    config::unit::TimeSpan::from_secs(15)
}

pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Counters of Outrigger, gathered on request.
pub struct Gathered {
    counters: Arc<dyn Gather>,
    interner: Cell<crate::series::Interner>,
}

impl Gathered {
    fn new(counters: Arc<dyn Gather>) -> Gathered {
        Gathered { counters, interner: Cell::default() }
    }
}

impl Source for Gathered {
    fn collect(&self) -> Collecting<'_> {
        Box::pin(async {
            let mut families = Vec::new();
            self.counters.gather(&mut families);
            let mut interner = self.interner.take();
            let snapshot = crate::series::snapshot_of(&families, now_ms(), &mut interner);
            self.interner.set(interner);
            Collected { snapshot: Some(snapshot), dropped: Vec::new(), error: None, up: true }
        })
    }

    fn end(&self) -> Snapshot {
        ended(&self.interner)
    }

    fn is_local(&self) -> bool {
        true
    }
}

/// A snapshot in which all series end.
fn ended(interner: &Cell<crate::series::Interner>) -> Snapshot {
    let (time_ms, mut series) = (now_ms(), interner.take());
    series.begin();
    let stale = series.end(time_ms);
    interner.set(series);
    Snapshot { time_ms, stale, ..Snapshot::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_documented_with_a_valid_example() {
        config::registry::assert_laws::<SourceEntry>(SourceEntry::KINDS);
    }
}
