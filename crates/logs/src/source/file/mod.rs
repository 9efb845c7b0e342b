//! Files that the app writes. In: path patterns. Out: batches of lines. A file is identified by device, inode and fingerprints of
//! its content, never by its name: a rotated file is read to its end, and after a restart each file continues at the offset that
//! the sinks had acknowledged. Finding files is a separate task, so that no file is missed while a sink blocks. Limits:
//! `max_files` open files.

mod find;
mod resting;
mod tail;
mod walk;
mod watch;

pub use tail::{Opened, Tail};

use super::{CHUNK, SourceConfig, Start, max_line_bytes};
use crate::checkpoint::{BEFORE_MAX, Checkpoints};
use crate::pipeline::Pipeline;
use base::runtime::lifecycle::{Phase, PhaseWatch};
use base::runtime::scope::Scope;
use config::diag::Diagnostic;
use config::needs::Needs;
use config::registry::{Entry, Kind};
use config::unit::{ByteSize, TimeSpan};
use find::Finder;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::Path;
use std::rc::Rc;
use tokio::sync::mpsc;

/// Reads files line by line as they grow, through rotation by rename and truncation. A file needs no copy in a buffer: when a
/// sink is down, reading pauses and resumes later. Checkpoints are written after the sinks have acknowledged.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Absolute path patterns, such as `/var/log/orders/*.log`; `*`, `?`, `[a-z]` and `**` are supported.
    #[schemars(length(min = 1, max = 64))]
    pub include: Vec<String>,
    /// Absolute path patterns of files to skip.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Where to start in files that exist at the very first start. Later files are read from the beginning. Default:
    /// `beginning`.
    #[serde(default)]
    pub read_from: ReadFrom,
    /// Polling interval of open files.
    #[serde(default = "poll_interval")]
    pub poll_interval: TimeSpan,
    /// Interval of scans for new files.
    #[serde(default = "scan_interval")]
    pub scan_interval: TimeSpan,
    /// Maximum number of open files, within the limit of file descriptors. Files read to their end are closed to make room; if
    /// all have new lines, the remaining files wait, and the source is `degraded`.
    #[serde(default = "max_files")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_files: u32,
    /// Longer lines are truncated and marked `truncated`.
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

impl Kind for Config {
    fn example() -> &'static str {
        "file: { include: [\"/var/log/orders/*.log\"] }\n"
    }

    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        let lists = [("include", &self.include), ("exclude", &self.exclude)];
        let patterns =
            lists.into_iter().flat_map(|(key, list)| list.iter().enumerate().map(move |(i, text)| (key, i, text)));
        let invalid = patterns.filter_map(|(key, index, text)| {
            let reason = match glob::Pattern::new(text) {
                Err(error) => error.to_string(),
                Ok(_) if !text.starts_with('/') => {
                    "expected an absolute path, since Outrigger does not run in the app's directory".into()
                }
                Ok(_) => return None,
            };
            let text = format!("invalid path pattern `{text}`: {reason}");
            Some(entry.error(&[key, &index.to_string()], text))
        });
        invalid.collect()
    }

    /// The directories that its patterns search.
    fn needs(&self, _id: &str) -> Needs {
        let directories = self.include.iter().map(|pattern| config::needs::pattern_directory(pattern));
        Needs { read: directories.collect(), ..Needs::default() }
    }

    fn memory(&self) -> ByteSize {
        ByteSize((CHUNK + BEFORE_MAX) as u64)
    }
}

impl SourceConfig for Config {
    fn start(&self, start: Start<'_>) {
        let Start { pipeline, checkpoints, scope, phase, scanning, running, .. } = start;
        let run = run(self.clone(), pipeline, checkpoints.clone(), scope.clone(), phase.clone(), scanning.clone());
        running.readers.push(scope.spawn("file", run));
    }

    fn reads(&self, path: &Path) -> bool {
        walk::Patterns::new(&self.include, &self.exclude).match_path(&config::needs::normal(path))
    }
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

/// Reads the files of the finder in turn. `scanning` is dropped after the first scan.
async fn run(
    config: Config,
    pipeline: Rc<Pipeline>,
    checkpoints: Checkpoints,
    scope: Scope,
    mut phase: PhaseWatch,
    scanning: mpsc::Sender<()>,
) {
    let poll = config.poll_interval.0;
    let finder = Rc::new(Finder::new(config, pipeline.clone(), checkpoints));
    finder.scan(true).await;
    drop(scanning);
    let finding = scope.spawn("find", finder.clone().run());
    let mut chunk = buffer();
    loop {
        let finishing = phase.phase() >= Phase::Finish;
        if phase.is_handover() {
            // The next worker continues here, and completes a line without an end.
            finding.abort();
            finder.tails().iter().for_each(|tail| tail.note_read());
            return;
        }
        let mut has_read = false;
        for tail in finder.tails() {
            has_read |= tail.read(&pipeline, &mut chunk).await;
        }
        finder.close_ended().await;
        if has_read {
            // Skipping bytes does not yield to other tasks by itself.
            tokio::task::yield_now().await;
            continue;
        }
        if finishing {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(poll) => {}
            () = finder.found() => {}
            () = phase.handover_or_reached(Phase::Finish) => {
                // Files that the app created just before its exit.
                if !phase.is_handover() {
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

/// Room for a chunk, and for the bytes before it in the file.
pub fn buffer() -> Vec<u8> {
    vec![0u8; CHUNK + BEFORE_MAX]
}
