//! One open file, read as it grows. In: its bytes. Out: batches of lines, and positions as sinks acknowledge. Each read looks at
//! the bytes before it as well: where they are others than before, the file was replaced in place, and begins anew. Bounds:
//! `CHUNKS_PER_TURN` chunks before another file has its turn.

use super::walk::modified_ns;
use crate::ack::AckTracker;
use crate::batch::{Batch, Stream};
use crate::checkpoint::{BEFORE_MAX, Checkpoints, FINGERPRINT_MAX, FileId, Position, fingerprint, fingerprint_before};
use crate::framer::Framer;
use crate::pipeline::Pipeline;
use config::unit::ByteSize;
use rustix::fs::SeekFrom;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a file that no pattern matches any more is watched for late writes, from its last byte on.
const GRACE: Duration = Duration::from_secs(10);
/// How long a last line without an end may be completed in such a file.
const LINE_GRACE: Duration = Duration::from_secs(300);
/// How often it is written down how far a file was read that sinks have not acknowledged.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Chunks of one file before the next has its turn.
const CHUNKS_PER_TURN: usize = 16;
/// What some editors and loggers write at the beginning of UTF-8 text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A file that was opened, so that it cannot get lost.
pub struct Opened {
    pub path: PathBuf,
    pub id: FileId,
    pub file: File,
}

pub struct Tail {
    pub id: FileId,
    path: RefCell<PathBuf>,
    file: Rc<File>,
    reading: RefCell<Reading>,
    /// When a pattern matched it last.
    pub seen_at: Cell<Instant>,
    /// When it had its last new byte.
    moved_at: Cell<Instant>,
    at_end: Cell<bool>,
    /// Its last line was delivered, though nobody had ended it.
    finished: Cell<bool>,
    noted_at: Cell<Instant>,
    /// The path still leads to it, as far as is known.
    is_named: Cell<bool>,
    /// It begins as a compressed file does, and is not read as lines.
    packed: Cell<Option<&'static str>>,
    context: Context,
}

/// Where reading stands.
struct Reading {
    offset: u64,
    /// The bytes before the offset, as they were read.
    before: Vec<u8>,
    /// Nothing but what is passed over at a beginning has come yet.
    at_beginning: bool,
    framer: Framer,
    track: Rc<AckTracker>,
    /// The end of the last batch that was handed on.
    pushed_to: u64,
}

/// What a tail needs to begin anew.
struct Context {
    source: String,
    max_line_bytes: usize,
    stream: Stream,
    checkpoints: Checkpoints,
    sinks: Vec<(usize, String)>,
    sink_count: usize,
    /// Counts how often the file has begun anew.
    epoch: Rc<Cell<u64>>,
    read_to: Rc<Cell<u64>>,
}

impl Tail {
    /// A tail over any file, as for what was left of the app's output. `begin`: where to, while no sink has a position.
    pub fn over(
        opened: Opened,
        pipeline: &Pipeline,
        checkpoints: &Checkpoints,
        max_line_bytes: ByteSize,
        stream: Stream,
        begin: Option<u64>,
    ) -> io::Result<Tail> {
        let Opened { path, id, file } = opened;
        let file = Rc::new(file);
        let size = file.metadata()?.len();
        let context = Context {
            source: pipeline.name().to_string(),
            max_line_bytes: max_line_bytes.as_usize(),
            stream,
            checkpoints: checkpoints.clone(),
            sinks: pipeline.sinks().map(|(index, name)| (index, name.to_string())).collect(),
            sink_count: pipeline.sink_count(),
            epoch: Rc::default(),
            read_to: Rc::new(Cell::new(size)),
        };
        let known = |sink: &str| {
            let position = checkpoints.get(pipeline.name(), id, sink)?;
            (position.offset <= size && is_of(&position, &file)).then_some(position.offset)
        };
        let positions: Vec<Option<u64>> = context.sinks.iter().map(|(_, sink)| known(sink)).collect();
        // A sink that is new begins where the others are; a file that is new where `start` says.
        let fresh = positions.iter().flatten().copied().max().unwrap_or(begin.unwrap_or(0).min(size));
        let mut starts = vec![0; context.sink_count];
        for ((index, _), position) in context.sinks.iter().zip(&positions) {
            if let Some(start) = starts.get_mut(*index) {
                *start = position.unwrap_or(fresh);
            }
        }
        let offset = context.sinks.iter().filter_map(|(index, _)| starts.get(*index)).copied().min().unwrap_or(size);
        let reading = RefCell::new(context.reading(id, &file, &path, &starts, offset)?);
        let now = Instant::now();
        let tail = Tail {
            id,
            path: RefCell::new(path),
            file,
            reading,
            seen_at: Cell::new(now),
            moved_at: Cell::new(now),
            at_end: Cell::new(false),
            finished: Cell::new(false),
            noted_at: Cell::new(now),
            is_named: Cell::new(true),
            packed: Cell::new(None),
            context,
        };
        tail.context.note_all(id, &tail.file, &starts);
        Ok(tail)
    }

    /// Reads what is there, up to a few chunks; true where there was something. `chunk` has `BEFORE_MAX` bytes more than a chunk.
    pub async fn read(&self, pipeline: &Pipeline, chunk: &mut [u8]) -> bool {
        let mut moved = false;
        for _ in 0..CHUNKS_PER_TURN {
            let (before, start) = {
                let reading = self.reading.borrow();
                (reading.before.len(), reading.offset - reading.before.len() as u64)
            };
            let count = match self.file.read_at(chunk, start) {
                Ok(count) => count,
                Err(error) => {
                    pipeline.health().fault(pipeline.id(), format!("{}: {error}", self.path.borrow().display()));
                    return false;
                }
            };
            let read = chunk.get(..count).unwrap_or(&[]);
            let Some(new) = read.strip_prefix(self.reading.borrow().before.as_slice()) else {
                self.finish(pipeline).await;
                self.restart(pipeline);
                return true;
            };
            if start == 0 && before == 0 && self.packed.get().is_none() {
                self.packed.set(compressed(new));
            }
            if count == before || self.packed.get().is_some() {
                self.at_end.set(true);
                return moved;
            }
            moved = true;
            self.at_end.set(false);
            self.finished.set(false);
            self.moved_at.set(Instant::now());
            let new = self.pass_over(new);
            let (batch, track) = self.reading.borrow_mut().take(new, read);
            if let Some(batch) = batch {
                pipeline.push(batch, &track, 0).await;
            }
        }
        moved
    }

    /// What a writer that did not notice a truncation leaves in front of its next line is a hole, which reads as NULs; and a
    /// byte order mark is no part of the text. Answers the rest.
    fn pass_over<'c>(&self, new: &'c [u8]) -> &'c [u8] {
        let mut reading = self.reading.borrow_mut();
        if !reading.at_beginning {
            return new;
        }
        let mark = if reading.offset == 0 && new.starts_with(BOM) { BOM.len() } else { 0 };
        let nulls = new.iter().skip(mark).take_while(|byte| **byte == 0).count();
        reading.at_beginning = mark + nulls == new.len();
        let mut passed = (mark + nulls) as u64;
        if reading.at_beginning {
            // Where the file system knows the hole, it is not read.
            let after = reading.offset + passed;
            let data = match rustix::fs::seek(&*self.file, SeekFrom::Data(after)) {
                Ok(data) => data,
                // Nothing but a hole up to the end (lseek(2)).
                Err(rustix::io::Errno::NXIO) => self.file.metadata().map_or(after, |meta| meta.len()),
                Err(_) => after,
            };
            passed += data.saturating_sub(after);
            reading.before = vec![0; reading.before.len().max(BEFORE_MAX.min(passed as usize))];
        }
        reading.offset += passed;
        reading.framer.pass_over(passed);
        new.get(mark + nulls..).unwrap_or(&[])
    }

    /// The last line, though nobody has ended it.
    pub async fn finish(&self, pipeline: &Pipeline) {
        let (batch, track) = self.reading.borrow_mut().finish();
        if let Some(batch) = batch {
            pipeline.push(batch, &track, 0).await;
        }
    }

    /// A file that became shorter than we have read, or has other bytes there, begins anew (copytruncate, `>`). What sinks
    /// still acknowledge of its old content moves nothing any more.
    fn restart(&self, pipeline: &Pipeline) {
        let path = self.path.borrow();
        tracing::info!(file = %path.display(), "log file truncated or replaced; reading from the beginning");
        let starts = vec![0; self.context.sink_count];
        self.context.epoch.set(self.context.epoch.get() + 1);
        match self.context.reading(self.id, &self.file, &path, &starts, 0) {
            Ok(reading) => *self.reading.borrow_mut() = reading,
            Err(error) => drop(pipeline.health().fault(pipeline.id(), format!("{}: {error}", path.display()))),
        }
        self.context.note_all(self.id, &self.file, &starts);
    }

    pub fn is_at(&self, path: &Path) -> bool {
        self.is_named.get() && *self.path.borrow() == path
    }

    /// Its name went away, and it may have another one.
    pub fn lost_name(&self, to: Option<PathBuf>) {
        self.is_named.set(to.is_some());
        if let Some(to) = to {
            self.path.replace(to);
        }
    }

    pub fn path(&self) -> PathBuf {
        self.path.borrow().clone()
    }

    pub fn set_path(&self, path: PathBuf) {
        self.seen_at.set(Instant::now());
        self.is_named.set(true);
        self.path.replace(path);
    }

    /// Nobody matches it and nobody writes to it any more.
    pub fn has_ended(&self) -> bool {
        let quiet = self.moved_at.get().elapsed();
        let line = self.reading.borrow().framer.is_within_a_line() && !self.is_deleted();
        let grace = if line && !self.finished.get() { LINE_GRACE } else { GRACE };
        self.at_end.get() && self.seen_at.get().elapsed() > GRACE && quiet > grace
    }

    /// Delivers the last line of a file that has ended, once; true when all sinks have the file whole.
    pub async fn end(&self, pipeline: &Pipeline) -> bool {
        if !self.finished.replace(true) {
            self.finish(pipeline).await;
        }
        self.is_done()
    }

    /// Read to its end, delivered, and quiet for a while: may be closed until it grows.
    pub fn may_rest(&self, quiet: Duration) -> bool {
        self.at_end.get() && self.moved_at.get().elapsed() > quiet && self.is_done()
    }

    /// All sinks have acknowledged everything, and no line is begun.
    fn is_done(&self) -> bool {
        let (within, pushed_to) = {
            let reading = self.reading.borrow();
            (reading.framer.is_within_a_line(), reading.pushed_to)
        };
        !within && self.acknowledged(pushed_to)
    }

    /// The format of a compressed file.
    pub fn packed(&self) -> Option<&'static str> {
        self.packed.get()
    }

    pub fn is_deleted(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// Size and time of the last change.
    pub fn facts(&self) -> Option<(u64, i64)> {
        let meta = self.file.metadata().ok()?;
        Some((meta.len(), modified_ns(&meta)))
    }

    /// Whether all sinks have acknowledged everything up to an offset.
    pub fn acknowledged(&self, offset: u64) -> bool {
        let track = self.reading.borrow().track.clone();
        self.context.sinks.iter().all(|(index, _)| track.acknowledged(*index) >= offset)
    }

    /// Writes down how far the file was read, so that what is lost with it is known.
    pub fn note_read(&self) {
        let offset = self.reading.borrow().offset;
        if self.context.read_to.replace(offset) == offset || self.acknowledged(offset) {
            return;
        }
        self.noted_at.set(Instant::now());
        let track = self.reading.borrow().track.clone();
        let starts: Vec<u64> = (0..self.context.sink_count).map(|index| track.acknowledged(index)).collect();
        self.context.note_all(self.id, &self.file, &starts);
    }

    pub fn note_read_periodically(&self) {
        if self.noted_at.get().elapsed() > NOTE_EVERY {
            self.note_read();
        }
    }
}

impl Reading {
    /// Takes new bytes; `read` ends with them, and is what the next read compares with.
    fn take(&mut self, new: &[u8], read: &[u8]) -> (Option<Batch>, Rc<AckTracker>) {
        if !new.is_empty() {
            self.offset += new.len() as u64;
            self.before = read.get(read.len().saturating_sub(BEFORE_MAX)..).unwrap_or(&[]).to_vec();
        }
        let batch = self.framer.take(new);
        self.handed_on(batch)
    }

    fn finish(&mut self) -> (Option<Batch>, Rc<AckTracker>) {
        let batch = self.framer.finish();
        self.handed_on(batch)
    }

    fn handed_on(&mut self, batch: Option<Batch>) -> (Option<Batch>, Rc<AckTracker>) {
        self.pushed_to = batch.as_ref().map_or(self.pushed_to, |batch| batch.base + batch.bytes.len() as u64);
        (batch, self.track.clone())
    }
}

impl Context {
    fn reading(&self, id: FileId, file: &Rc<File>, path: &Path, starts: &[u64], offset: u64) -> io::Result<Reading> {
        let shown: Option<Rc<str>> = (self.stream == Stream::None).then(|| path.to_string_lossy().into());
        let framer = Framer::new(self.source.as_str().into(), shown, self.stream, self.max_line_bytes, offset);
        let length = offset.min(BEFORE_MAX as u64);
        let mut before = vec![0; length as usize];
        file.read_exact_at(&mut before, offset - length)?;
        let noting = self.noting(id, file);
        let track = AckTracker::new(starts, Box::new(noting));
        Ok(Reading { offset, before, at_beginning: offset == 0, framer, track, pushed_to: offset })
    }

    /// Writes down what a sink acknowledges, until the file begins anew.
    fn noting(&self, id: FileId, file: &Rc<File>) -> impl Fn(usize, u64) + use<> {
        let (source, sinks, checkpoints) = (self.source.clone(), self.sinks.clone(), self.checkpoints.clone());
        let (file, epoch, mine) = (file.clone(), self.epoch.clone(), self.epoch.get());
        let read_to = self.read_to.clone();
        move |sink: usize, offset: u64| {
            if epoch.get() != mine {
                return;
            }
            if let Some((_, name)) = sinks.iter().find(|(index, _)| *index == sink) {
                checkpoints.set(&source, id, name, position(&file, offset, read_to.get()));
            }
        }
    }

    fn note_all(&self, id: FileId, file: &File, starts: &[u64]) {
        for (index, name) in &self.sinks {
            let offset = starts.get(*index).copied().unwrap_or(0);
            self.checkpoints.set(&self.source, id, name, position(file, offset, self.read_to.get()));
        }
    }
}

/// The format of a compressed file, by its first bytes.
fn compressed(begin: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")];
    FORMATS.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, name)| *name)
}

/// A position with prints of what it covers. A file that cannot be read any more has prints that match nothing.
fn position(file: &File, offset: u64, read_to: u64) -> Position {
    let print = fingerprint(file, offset.min(FINGERPRINT_MAX as u64) as usize).unwrap_or_default();
    let before = fingerprint_before(file, offset).unwrap_or_default();
    Position { offset, print, before, read_to: read_to.max(offset) }
}

/// Whether the file is the one that the position was of.
fn is_of(position: &Position, file: &File) -> bool {
    let begins = fingerprint(file, position.print.length as usize).is_ok_and(|print| print == position.print);
    // A position of the first version knows nothing of what stands before it.
    let continues = position.before.length == 0
        || fingerprint_before(file, position.offset).is_ok_and(|before| before == position.before);
    begins && continues
}
