//! Outrigger's own log through `tracing`: for people on a terminal, JSON otherwise, always on stderr, so that the app's
//! stdout stays the app's. The level can be changed while running.

use std::io::IsTerminal as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Changes the level of the running process.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<LevelFilter, Registry>);

impl LevelHandle {
    /// Sets `error`, `warn`, `info`, `debug`, `trace` or `off`.
    pub fn set(&self, level: &str) -> Result<(), String> {
        let level: LevelFilter =
            level.parse().map_err(|_| format!("`{level}` is not a level: error, warn, info, debug, trace, off"))?;
        self.0.reload(level).map_err(|error| error.to_string())
    }
}

/// Starts the log; a second call in one process keeps the first.
pub fn start(level: LevelFilter) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(level);
    let terminal = std::io::stderr().is_terminal();
    let people = terminal.then(|| fmt::layer().with_writer(std::io::stderr).with_target(false).compact());
    let machines =
        (!terminal).then(|| fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_target(false));
    // An already started log stays: the caller's handle then changes nothing, as in tests.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(people.map(Layer::boxed))
        .with(machines.map(Layer::boxed))
        .try_init();
    LevelHandle(handle)
}
