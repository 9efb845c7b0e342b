//! Files that the app writes. In: path patterns. Out: batches of lines. A file is known by device, inode and prints of its
//! content, never by its name: a rotated file is read to its end, and after a restart each goes on where the sinks had
//! acknowledged. Finding files is a task of its own, so that a sink that blocks does not make us miss one. Bounds:
//! `max_files` open files.

mod find;
mod resting;
mod tail;
mod walk;
mod watch;

pub use tail::{Opened, Tail};

use super::{CHUNK, max_line_bytes};
use crate::checkpoint::{BEFORE_MAX, Checkpoints};
use crate::pipeline::Pipeline;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::runtime::scope::Scope;
use config::registry::Kind;
use config::unit::{ByteSize, TimeSpan};
use find::Finder;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::sync::mpsc;

/// Reads files line by line as they grow, through rotation by rename and truncation. A file needs no copy in a buffer: when a
/// sink is down, reading stops and goes on later. Progress is written down after the sinks have acknowledged.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Absolute path patterns, such as `/var/log/orders/*.log`; `*`, `?`, `[a-z]` and `**` work.
    #[schemars(length(min = 1, max = 64))]
    pub include: Vec<String>,
    /// Absolute path patterns of files to skip.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Where to begin in files that exist at the very first start. Later ones are read from their beginning. Default:
    /// `beginning`.
    #[serde(default)]
    pub read_from: ReadFrom,
    /// How often open files are checked for new lines.
    #[serde(default = "poll_interval")]
    pub poll_interval: TimeSpan,
    /// How often the patterns are searched for new files.
    #[serde(default = "scan_interval")]
    pub scan_interval: TimeSpan,
    /// Files open at a time, within the limit of descriptors. Files read to their end make room for others; if all have new
    /// lines, the rest wait, and the source is `degraded`.
    #[serde(default = "max_files")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_files: u32,
    /// A longer line is cut to its beginning and marked `truncated`.
    #[serde(default = "max_line_bytes")]
    pub max_line_bytes: ByteSize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom {
    #[default]
    Beginning,
    End,
}

impl Config {
    /// The folders that its patterns look into.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.include.iter().map(|pattern| config::needs::pattern_directory(pattern)).collect()
    }
}

impl Kind for Config {
    const EXAMPLE: &'static str = "file: { include: [\"/var/log/orders/*.log\"] }\n";
}

fn poll_interval() -> TimeSpan {
    TimeSpan::from_millis(200)
}

fn scan_interval() -> TimeSpan {
    TimeSpan::from_secs(1)
}

fn max_files() -> u32 {
    256
}

impl Config {
    /// Whether a file of this path would be read.
    pub fn reads(&self, path: &Path) -> bool {
        walk::Patterns::new(&self.include, &self.exclude).mean(&config::needs::normal(path))
    }

    /// Patterns that cannot be read: the key, the index and why.
    pub fn check(&self) -> Vec<(&'static str, usize, String)> {
        let lists = [("include", &self.include), ("exclude", &self.exclude)];
        let patterns =
            lists.into_iter().flat_map(|(key, list)| list.iter().enumerate().map(move |(i, text)| (key, i, text)));
        let wrong = patterns.filter_map(|(key, index, text)| {
            let reason = match glob::Pattern::new(text) {
                Err(error) => error.to_string(),
                Ok(_) if !text.starts_with('/') => {
                    "it must be an absolute path, since we do not run in the app's folder".into()
                }
                Ok(_) => return None,
            };
            Some((key, index, format!("`{text}` is not a path pattern: {reason}")))
        });
        wrong.collect()
    }
}

/// Reads what the finder finds, each file in turn. `looking` is dropped once its files are found.
pub async fn run(
    config: Config,
    pipeline: Rc<Pipeline>,
    checkpoints: Checkpoints,
    scope: Scope,
    mut phase: PhaseWatch,
    looking: mpsc::Sender<()>,
) {
    let poll = config.poll_interval.0;
    let finder = Rc::new(Finder::new(config, pipeline.clone(), checkpoints));
    finder.scan(true).await;
    drop(looking);
    let finding = scope.spawn("find", finder.clone().run());
    let mut chunk = buffer();
    loop {
        let finishing = phase.phase() >= Phase::Finish;
        if phase.yields() {
            // The next worker goes on here: a line without an end is its to finish.
            finding.abort();
            finder.tails().iter().for_each(|tail| tail.note_read());
            return;
        }
        let mut moved = false;
        for tail in finder.tails() {
            moved |= tail.read(&pipeline, &mut chunk).await;
        }
        finder.close_ended().await;
        if moved {
            // What is passed over gives nobody else a turn by itself.
            tokio::task::yield_now().await;
            continue;
        }
        if finishing {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(poll) => {}
            () = finder.found() => {}
            () = phase.yields_or_reached(Phase::Finish) => {
                // Files that the app made in its last moment.
                if !phase.yields() {
                    finder.scan(false).await;
                }
            }
        }
    }
    finding.abort();
    for tail in finder.tails() {
        tail.finish(&pipeline).await;
    }
}

/// Room for a chunk, and for what stands before it in the file.
pub fn buffer() -> Vec<u8> {
    vec![0u8; CHUNK + BEFORE_MAX]
}
