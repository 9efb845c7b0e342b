//! Outrigger's own log through `tracing`: text on a terminal, JSON otherwise, always on stderr, so that stdout has only the
//! output of the app. The level can be changed at runtime.

use super::MetricDesc;
use super::family::Family;
use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::Context;
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

/// The format of lines.
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

/// Starts the log; a second call in one process has no effect.
pub fn start(level: LevelFilter, format: Format) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(level);
    let terminal = std::io::stderr().is_terminal();
    let is_text = *IS_TEXT.get_or_init(|| match format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    });
    let text_layer = is_text.then(|| fmt::layer().with_writer(|| Stderr).with_target(false).compact());
    let json_layer =
        (!is_text).then(|| fmt::layer().json().flatten_event(true).with_writer(|| Stderr).with_target(false));
    // If the log is already started, it stays and the returned handle has no effect, such as in tests.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(CountMessages)
        .with(text_layer.map(Layer::boxed))
        .with(json_layer.map(Layer::boxed))
        .try_init();
    LevelHandle(handle)
}

pub static MESSAGES: MetricDesc = MetricDesc::counter("outrigger_log_messages_total", &["level"], "Own log messages.");

/// Messages since the start of this worker, in the order of `LEVELS`.
static COUNTS: [AtomicU64; LEVELS.len()] = [const { AtomicU64::new(0) }; LEVELS.len()];

const LEVELS: [(Level, &str); 5] = [
    (Level::ERROR, "error"),
    (Level::WARN, "warn"),
    (Level::INFO, "info"),
    (Level::DEBUG, "debug"),
    (Level::TRACE, "trace"),
];

/// Counts the messages that the level lets pass.
struct CountMessages;

impl<S: Subscriber> Layer<S> for CountMessages {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = event.metadata().level();
        if let Some(index) = LEVELS.iter().position(|(known, _)| known == level) {
            COUNTS[index].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The messages so far, by level.
pub fn messages() -> Family {
    let count = |(index, (_, name)): (usize, &(Level, &str))| {
        MESSAGES.point(&[*name], COUNTS[index].load(Ordering::Relaxed) as f64)
    };
    Family { points: LEVELS.iter().enumerate().map(count).collect(), ..MESSAGES.family() }
}

/// A report of several lines: printed unchanged in text format, else one line of JSON with the report as a field.
pub fn report(component: &str, report: &str, message: &str) {
    if print_if_text(report) {
        tracing::error!(component, "{message}");
    } else {
        tracing::error!(component, report, "{message}");
    }
}

/// The same for a report of warnings only.
pub fn report_warnings(component: &str, report: &str, message: &str) {
    if print_if_text(report) {
        tracing::warn!(component, "{message}");
    } else {
        tracing::warn!(component, report, "{message}");
    }
}

fn print_if_text(report: &str) -> bool {
    let is_text = IS_TEXT.get().copied().unwrap_or_else(|| std::io::stderr().is_terminal());
    if is_text {
        crate::system::output::note(report);
    }
    is_text
}

/// Outrigger's stderr. Writing never blocks: its reader may have stopped, and a blocked worker would serve no requests. A line
/// that does not fit is dropped; the next line that fits reports how many were dropped.
struct Stderr;

static LOST: AtomicU64 = AtomicU64::new(0);

impl std::io::Write for Stderr {
    /// Called with a complete line.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let lost = LOST.swap(0, Ordering::Relaxed);
        let reported =
            lost > 0 && try_write(format!("outrigger: {lost} log lines dropped (stderr blocked)\n").as_bytes());
        if lost > 0 && !reported {
            LOST.fetch_add(lost, Ordering::Relaxed);
        }
        if !try_write(line) {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes without blocking; false if there is no room.
fn try_write(line: &[u8]) -> bool {
    for part in line.chunks(sys::ready::PIPE_BUF) {
        let stderr = rustix::stdio::stderr();
        if !sys::ready::is_writable(stderr) || rustix::io::write(stderr, part).is_err() {
            return false;
        }
    }
    true
}
