//! Changes to the running process that a POST can trigger: calls into the binary. In: closures from `compose.rs`. Out: their
//! results.

use base::telemetry::logging::LevelHandle;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Reloads the configuration and waits for the result.
pub type Reload = dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, String>>>>;

/// The changes that are possible at run time.
#[derive(Clone)]
pub struct Controls {
    pub level: LevelHandle,
    /// Re-reads the configuration; the error is the error report. Returns when another worker has taken over, or the
    /// reason for which none does.
    pub reload: Rc<Reload>,
    /// Starts a new worker from a binary (None: the running one); returns when that worker is ready or was abandoned.
    pub upgrade: Rc<Upgrade>,
    /// Begins the shutdown, within the given time or the configured one, which it returns. Returns immediately, so that the
    /// response is still sent.
    pub stop: Rc<dyn Fn(Option<Duration>) -> Duration>,
}

pub type Upgrade = dyn Fn(Option<PathBuf>) -> Pin<Box<dyn Future<Output = Result<String, String>>>>;
