//! Outrigger's own log through `tracing`: for people on a terminal, JSON otherwise, always on stderr, so that the app's
//! stdout stays the app's. The level can be changed while running.

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
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
        let is_word = !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_alphabetic());
        let level: LevelFilter = level
            .parse()
            .ok()
            .filter(|_| is_word)
            .ok_or_else(|| format!("`{level}` is not a level: error, warn, info, debug, trace, off"))?;
        self.0.reload(level).map_err(|error| error.to_string())
    }
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    Text,
    Json,
}

/// Whether lines are text, set once by `start`.
static IS_TEXT: OnceLock<bool> = OnceLock::new();

/// Starts the log; a second call in one process keeps the first.
pub fn start(level: LevelFilter, format: Format) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(level);
    let terminal = std::io::stderr().is_terminal();
    let is_text = *IS_TEXT.get_or_init(|| match format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    });
    let people = is_text.then(|| fmt::layer().with_writer(|| Stderr).with_target(false).compact());
    let machines =
        (!is_text).then(|| fmt::layer().json().flatten_event(true).with_writer(|| Stderr).with_target(false));
    // An already started log stays: the caller's handle then changes nothing, as in tests.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(people.map(Layer::boxed))
        .with(machines.map(Layer::boxed))
        .try_init();
    LevelHandle(handle)
}

/// A report of several lines: as it is on a terminal, one line of JSON with it as a field where programs read the log.
pub fn report(report: &str, message: &str) {
    if print_to_people(report) { tracing::error!("{message}") } else { tracing::error!(report, "{message}") }
}

/// The same for a report that stops nothing.
pub fn report_warnings(report: &str, message: &str) {
    if print_to_people(report) { tracing::warn!("{message}") } else { tracing::warn!(report, "{message}") }
}

fn print_to_people(report: &str) -> bool {
    let is_text = IS_TEXT.get().copied().unwrap_or_else(|| std::io::stderr().is_terminal());
    if is_text {
        crate::system::output::note(report);
    }
    is_text
}

/// A moment as in a line of the log.
pub fn rfc3339(time: std::time::SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Our stderr, on which we never wait: whoever reads it may have stopped, and a worker that waits serves nobody. A line that finds
/// no room is lost; the next one that does says how many were.
struct Stderr;

static LOST: AtomicU64 = AtomicU64::new(0);

impl std::io::Write for Stderr {
    /// Called with a whole line.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let lost = LOST.swap(0, Ordering::Relaxed);
        let told =
            lost > 0 && write_at_once(format!("outrigger: {lost} log lines dropped (stderr blocked)\n").as_bytes());
        if lost > 0 && !told {
            LOST.fetch_add(lost, Ordering::Relaxed);
        }
        if !write_at_once(line) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// False where there is no room at this moment.
fn write_at_once(line: &[u8]) -> bool {
    for part in line.chunks(sys::ready::PIPE_BUF) {
        let stderr = rustix::stdio::stderr();
        if !sys::ready::is_writable(stderr) || rustix::io::write(stderr, part).is_err() {
            return false;
        }
    }
    true
}
