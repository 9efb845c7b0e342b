//! What a POST changes in the running process: calls into the binary. In: the closures of the composition. Out: their results.

use base::telemetry::logging::LevelHandle;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Brings a configuration in; it waits for what comes of it.
pub type Reload = dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, String>>>>;

/// What may be changed while running.
#[derive(Clone)]
pub struct Controls {
    pub level: LevelHandle,
    /// Reads the configuration again; the error is the report of its mistakes.
    /// Answers when another worker has taken over, or with the reason why none does.
    pub reload: Rc<Reload>,
    /// Starts a new worker from a binary (None: the one that runs); the answer comes when it is ready or was given up.
    pub upgrade: Rc<Upgrade>,
    /// Begins the stop order, within a time where given. Returns at once, so that the answer still gets out.
    pub stop: Rc<dyn Fn(Option<Duration>)>,
}

pub type Upgrade = dyn Fn(Option<PathBuf>) -> Pin<Box<dyn Future<Output = Result<String, String>>>>;
