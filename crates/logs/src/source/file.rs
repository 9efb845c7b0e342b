//! Files that the app writes. In: path patterns. Out: batches of lines. A file is known by device, inode and a print of its
//! beginning, never by its name: a rotated file is read to its end, and after a restart each goes on where the sinks had
//! acknowledged. Finding files is a task of its own, so that a sink that blocks does not make us miss one. Bounds:
//! `files_max` open files; `GRACE` for a file that left the patterns.

use super::{CHUNK, line_max};
use crate::batch::Stream;
use crate::checkpoint::{Checkpoints, FileId, PRINT_MAX, Position, print_of};
use crate::run::Pipeline;
use crate::split::Splitter;
use crate::track::Track;
use base::registry::Kind;
use base::scope::Scope;
use base::subsystem::{Phase, PhaseWatch};
use base::unit::{ByteSize, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Reads files line by line as they grow, through rotation by rename and truncation. A file needs no copy in a buffer: when a
/// sink is down, reading stops and goes on later. Progress is written down after the sinks have acknowledged.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Patterns of paths, such as /var/log/orders/*.log; `*`, `?`, `[a-z]` and `**` work.
    #[schemars(length(min = 1, max = 64))]
    pub include: Vec<String>,
    /// Patterns of paths that are left out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Where to begin in files that are there at the very first start. Later ones are read from their beginning.
    #[serde(default)]
    pub start: Start,
    /// How often open files are looked at.
    #[serde(default = "poll")]
    pub poll: Span,
    /// How often the patterns are looked at.
    #[serde(default = "scan_every")]
    pub scan: Span,
    /// Files open at a time; more wait until others end, and are reported.
    #[serde(default = "files_max")]
    #[schemars(range(min = 1, max = 10_000))]
    pub files_max: u32,
    /// A longer line keeps its beginning.
    #[serde(default = "line_max")]
    pub line_max: ByteSize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    #[default]
    Beginning,
    End,
}

impl Config {
    /// The folders that its patterns look into.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.include.iter().map(|pattern| base::needs::pattern_folder(pattern)).collect()
    }
}

impl Kind for Config {
    const EXAMPLE: &'static str = "file: { include: [\"/var/log/orders/*.log\"] }\n";
}

fn poll() -> Span {
    Span::from_millis(200)
}

fn scan_every() -> Span {
    Span::from_secs(1)
}

fn files_max() -> u32 {
    256
}

/// How long a file that no pattern matches any more is watched for late writes.
const GRACE: Duration = Duration::from_secs(10);

/// Chunks of one file before the next has its turn.
const CHUNKS_PER_TURN: usize = 16;

impl Config {
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

/// What the finder and the reader share.
struct Shared {
    config: Config,
    pipeline: Rc<Pipeline>,
    checkpoints: Checkpoints,
    tails: RefCell<Vec<Rc<Tail>>>,
    reported: Cell<bool>,
}

pub async fn run(
    config: Config,
    pipeline: Rc<Pipeline>,
    checkpoints: Checkpoints,
    scope: Scope,
    mut phase: PhaseWatch,
) {
    let poll = config.poll.0;
    let shared =
        Rc::new(Shared { config, pipeline, checkpoints, tails: RefCell::default(), reported: Cell::new(false) });
    shared.scan(true).await;
    let finder = scope.spawn("find", find(shared.clone()));
    let mut chunk = vec![0u8; CHUNK];
    loop {
        let finishing = phase.phase() >= Phase::Finish;
        if phase.yields() {
            // The next worker goes on here: a line without an end is its to finish.
            finder.abort();
            return;
        }
        let tails = shared.tails.borrow().clone();
        let mut moved = false;
        for tail in tails {
            moved |= tail.read(&shared.pipeline, &mut chunk).await;
        }
        shared.close_ended().await;
        if moved {
            continue;
        }
        if finishing {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(poll) => {}
            () = phase.yields_or_reached(Phase::Finish) => {
                // Files that the app made in its last moment.
                if !phase.yields() {
                    shared.scan(false).await;
                }
            }
        }
    }
    finder.abort();
    let tails = shared.tails.borrow().clone();
    for tail in tails {
        tail.finish(&shared.pipeline).await;
    }
}

async fn find(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(shared.config.scan.0).await;
        shared.scan(false).await;
    }
}

/// A path that was found, opened so that it cannot get lost.
struct Found {
    path: PathBuf,
    id: FileId,
    file: File,
}

impl Shared {
    /// Looks at the patterns on a thread that may block, and opens what is new.
    async fn scan(&self, first: bool) {
        let config = self.config.clone();
        let known: Vec<FileId> = self.tails.borrow().iter().map(|tail| tail.id).collect();
        let sought = if first { self.checkpoints.files_of(self.pipeline.name()) } else { Vec::new() };
        // A source that has a position has started before: what is new since then is read whole.
        let very_first = first && sought.is_empty();
        let looked = tokio::task::spawn_blocking(move || look(&config, &known, &sought));
        let (seen, found, unreadable) = match looked.await {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => {
                self.pipeline.health().fault(self.pipeline.name(), error.to_string());
                return;
            }
            Err(_) => return,
        };
        let part = format!("{} files", self.pipeline.name());
        match unreadable {
            Some(text) => {
                if self.pipeline.health().fault(&part, text.clone()) {
                    tracing::warn!(source = self.pipeline.name(), error = text, "a log file is not read");
                }
            }
            None => drop(self.pipeline.health().recovered(&part)),
        }
        let now = Instant::now();
        for tail in self.tails.borrow().iter() {
            if let Some((path, _)) = seen.iter().find(|(_, id)| *id == tail.id) {
                tail.seen_at.set(now);
                *tail.path.borrow_mut() = path.clone();
            }
        }
        for found in found {
            // Another look may have found it while this one was under way.
            if self.tails.borrow().iter().any(|tail| tail.id == found.id) {
                continue;
            }
            if self.tails.borrow().len() >= self.config.files_max as usize {
                if !self.reported.replace(true) {
                    let text = format!("more than files_max = {} files match; the rest wait", self.config.files_max);
                    tracing::warn!(source = self.pipeline.name(), "{text}");
                    self.pipeline.health().fault(self.pipeline.name(), text);
                }
                return;
            }
            match Tail::open(found, self, very_first) {
                Ok(tail) => self.tails.borrow_mut().push(Rc::new(tail)),
                Err(error) => tracing::warn!(source = self.pipeline.name(), %error, "a log file could not be opened"),
            }
        }
        if self.reported.replace(false) {
            self.pipeline.health().recovered(self.pipeline.name());
        }
    }

    /// Lets go of files that are read to their end and matched by no pattern for a while.
    async fn close_ended(&self) {
        let is_gone = |tail: &Tail| tail.at_end.get() && tail.seen_at.get().elapsed() > GRACE;
        let ending: Vec<Rc<Tail>> = self.tails.borrow().iter().filter(|tail| is_gone(tail)).cloned().collect();
        for tail in &ending {
            // A last line that nobody has ended.
            tail.finish(&self.pipeline).await;
        }
        self.tails.borrow_mut().retain(|tail| {
            let gone = ending.iter().any(|ended| ended.id == tail.id);
            if gone && tail.file.metadata().is_ok_and(|meta| meta.nlink() == 0) {
                self.checkpoints.forget(self.pipeline.name(), tail.id);
            }
            !gone
        });
    }
}

/// What matches, what of it is new, and the first file that could not be opened.
type Looked = (Vec<(PathBuf, FileId)>, Vec<Found>, Option<String>);

/// All files that match, and those among them that are not known yet, opened. `sought`: files with a position that may have
/// been renamed while nobody looked; they are found by their inode in the folders of the patterns.
fn look(config: &Config, known: &[FileId], sought: &[FileId]) -> io::Result<Looked> {
    let excluded: Vec<glob::Pattern> = config.exclude.iter().filter_map(|text| glob::Pattern::new(text).ok()).collect();
    let mut seen: Vec<(PathBuf, FileId)> = Vec::new();
    let mut found: Vec<Found> = Vec::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    let mut unreadable: Option<String> = None;
    let mut consider = |path: PathBuf, wanted: Option<&[FileId]>| {
        let Ok(meta) = std::fs::metadata(&path) else { return };
        let id = FileId { device: meta.dev(), inode: meta.ino() };
        let skip = !meta.is_file()
            || seen.iter().any(|(_, other)| *other == id)
            || wanted.is_some_and(|wanted| !wanted.contains(&id));
        if skip {
            return;
        }
        if !known.contains(&id) {
            // Between stat and open the name may have gone to another file: the open one tells who it is.
            let opened = File::open(&path).and_then(|file| file.metadata().map(|meta| (file, meta)));
            let (file, meta) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    unreadable.get_or_insert_with(|| format!("{} cannot be read: {error}", path.display()));
                    return;
                }
            };
            found.push(Found { path: path.clone(), id: FileId { device: meta.dev(), inode: meta.ino() }, file });
        }
        seen.push((path, id));
    };
    for pattern in &config.include {
        let paths = glob::glob(pattern).map_err(|error| io::Error::other(format!("`{pattern}`: {error}")))?;
        // Older files first: a rotated one is read before the one that took its name.
        let mut paths: Vec<PathBuf> =
            paths.flatten().filter(|path| !excluded.iter().any(|rule| rule.matches_path(path))).collect();
        paths.sort_by_key(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok());
        folders.extend(Path::new(pattern).parent().map(Path::to_path_buf));
        paths.into_iter().for_each(|path| consider(path, None));
    }
    if !sought.is_empty() {
        for folder in folders {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                consider(entry.path(), Some(sought));
            }
        }
    }
    Ok((seen, found, unreadable))
}

/// One open file.
pub struct Tail {
    pub id: FileId,
    path: RefCell<PathBuf>,
    file: Rc<File>,
    reading: RefCell<Reading>,
    seen_at: Cell<Instant>,
    at_end: Cell<bool>,
    context: Context,
}

/// Where reading stands.
struct Reading {
    offset: u64,
    splitter: Splitter,
    track: Rc<Track>,
}

/// What a tail needs to begin anew.
struct Context {
    source: String,
    line_max: usize,
    stream: Stream,
    checkpoints: Checkpoints,
    sinks: Vec<(usize, String)>,
    sink_count: usize,
    /// Counts how often the file has begun anew.
    epoch: Rc<Cell<u64>>,
}

impl Tail {
    fn open(found: Found, shared: &Shared, very_first: bool) -> io::Result<Tail> {
        let at_end = very_first && shared.config.start == Start::End;
        Tail::over(
            found.path,
            found.id,
            found.file,
            &shared.pipeline,
            &shared.checkpoints,
            shared.config.line_max,
            Stream::None,
            at_end,
        )
    }

    /// A tail over any file, as for what was left of the app's output.
    #[expect(clippy::too_many_arguments, reason = "the parts of a tail, each named where it is built")]
    pub fn over(
        path: PathBuf,
        id: FileId,
        file: File,
        pipeline: &Pipeline,
        checkpoints: &Checkpoints,
        line_max: ByteSize,
        stream: Stream,
        at_end: bool,
    ) -> io::Result<Tail> {
        let file = Rc::new(file);
        let size = file.metadata()?.len();
        let context = Context {
            source: pipeline.name().to_string(),
            line_max: line_max.as_usize(),
            stream,
            checkpoints: checkpoints.clone(),
            sinks: pipeline.sinks().map(|(index, name)| (index, name.to_string())).collect(),
            sink_count: pipeline.sink_count(),
            epoch: Rc::default(),
        };
        let known = |sink: &str| -> Option<u64> {
            let position = checkpoints.get(pipeline.name(), id, sink)?;
            let same = print_of(&file, position.print.length as usize).is_ok_and(|print| print == position.print);
            (same && position.offset <= size).then_some(position.offset)
        };
        let positions: Vec<Option<u64>> = context.sinks.iter().map(|(_, sink)| known(sink)).collect();
        // A sink that is new begins where the others are; a file that is new where `start` says.
        let fresh = positions.iter().flatten().copied().max().unwrap_or(if at_end { size } else { 0 });
        let mut starts = vec![0; context.sink_count];
        for ((index, _), position) in context.sinks.iter().zip(&positions) {
            if let Some(start) = starts.get_mut(*index) {
                *start = position.unwrap_or(fresh);
            }
        }
        let offset = context.sinks.iter().filter_map(|(index, _)| starts.get(*index)).copied().min().unwrap_or(size);
        let reading = RefCell::new(context.reading(id, &file, &path, &starts, offset));
        let tail = Tail {
            id,
            path: RefCell::new(path),
            file,
            reading,
            seen_at: Cell::new(Instant::now()),
            at_end: Cell::new(false),
            context,
        };
        tail.context.note_all(id, &tail.file, &starts);
        Ok(tail)
    }

    /// Reads what is there, up to a few chunks; true where there was something.
    pub async fn read(&self, pipeline: &Pipeline, chunk: &mut [u8]) -> bool {
        let mut moved = false;
        for _ in 0..CHUNKS_PER_TURN {
            let offset = self.reading.borrow().offset;
            let count = match self.file.read_at(chunk, offset) {
                Ok(count) => count,
                Err(error) => {
                    pipeline.health().fault(pipeline.name(), format!("{}: {error}", self.path.borrow().display()));
                    return false;
                }
            };
            if count == 0 {
                if self.is_shorter_than(offset) {
                    self.finish(pipeline).await;
                    self.begin_anew();
                    return true;
                }
                self.at_end.set(true);
                return moved;
            }
            moved = true;
            self.at_end.set(false);
            let (batch, track) = {
                let mut reading = self.reading.borrow_mut();
                reading.offset += count as u64;
                (reading.splitter.take(chunk.get(..count).unwrap_or(&[])), reading.track.clone())
            };
            if let Some(batch) = batch {
                pipeline.push(batch, &track, 0).await;
            }
        }
        moved
    }

    /// The last line, though nobody has ended it.
    pub async fn finish(&self, pipeline: &Pipeline) {
        let (batch, track) = {
            let mut reading = self.reading.borrow_mut();
            (reading.splitter.finish(), reading.track.clone())
        };
        if let Some(batch) = batch {
            pipeline.push(batch, &track, 0).await;
        }
    }

    fn is_shorter_than(&self, offset: u64) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.len() < offset)
    }

    /// A file that became shorter than we have read begins anew (copytruncate). What sinks still acknowledge of its old
    /// content moves nothing any more.
    fn begin_anew(&self) {
        tracing::info!(file = %self.path.borrow().display(), "the log file was truncated; reading it from its beginning");
        let starts = vec![0; self.context.sink_count];
        self.context.epoch.set(self.context.epoch.get() + 1);
        *self.reading.borrow_mut() = self.context.reading(self.id, &self.file, &self.path.borrow(), &starts, 0);
        self.context.note_all(self.id, &self.file, &starts);
    }

    /// Whether all sinks have acknowledged everything up to an offset.
    pub fn acknowledged(&self, offset: u64) -> bool {
        let track = self.reading.borrow().track.clone();
        self.context.sinks.iter().all(|(index, _)| track.acknowledged(*index) >= offset)
    }
}

impl Context {
    fn reading(&self, id: FileId, file: &Rc<File>, path: &Path, starts: &[u64], offset: u64) -> Reading {
        let shown: Option<Rc<str>> = (self.stream == Stream::None).then(|| path.to_string_lossy().into());
        let splitter = Splitter::new(self.source.as_str().into(), shown, self.stream, self.line_max, offset);
        let (source, sinks, checkpoints, file) =
            (self.source.clone(), self.sinks.clone(), self.checkpoints.clone(), file.clone());
        let (epoch, mine) = (self.epoch.clone(), self.epoch.get());
        let on_progress = move |sink: usize, offset: u64| {
            if epoch.get() != mine {
                return;
            }
            if let Some((_, name)) = sinks.iter().find(|(index, _)| *index == sink) {
                note(&checkpoints, &source, id, name, &file, offset);
            }
        };
        Reading { offset, splitter, track: Track::new(starts, Box::new(on_progress)) }
    }

    fn note_all(&self, id: FileId, file: &File, starts: &[u64]) {
        for (index, name) in &self.sinks {
            note(&self.checkpoints, &self.source, id, name, file, starts.get(*index).copied().unwrap_or(0));
        }
    }
}

/// Writes a position down with a print of as much of the beginning as it covers.
fn note(checkpoints: &Checkpoints, source: &str, id: FileId, sink: &str, file: &File, offset: u64) {
    let length = offset.min(PRINT_MAX as u64) as usize;
    let written =
        print_of(file, length).and_then(|print| checkpoints.set(source, id, sink, Position { offset, print }));
    if let Err(error) = written {
        tracing::warn!(source, sink, %error, "a log position could not be written down; a restart reads more again");
    }
}
