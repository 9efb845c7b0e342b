//! One open file, read as it grows. In: its bytes. Out: batches of lines, and checkpoints as sinks acknowledge. Each read
//! compares the bytes before it as well: if they have changed, the file was replaced in place, and is re-read from the beginning.
//! Limits: `CHUNKS_PER_TURN` chunks before another file has its turn.

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

/// How long a file that no pattern matches any more is read for late writes, after its last byte.
const GRACE: Duration = Duration::from_secs(10);
/// How long a last line without an end may be completed in such a file.
const LINE_GRACE: Duration = Duration::from_secs(300);
/// How often the offset up to which a file was read is persisted while sinks have not acknowledged it.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Chunks of one file before the next has its turn.
const CHUNKS_PER_TURN: usize = 16;
/// The byte order mark that some editors and loggers write at the beginning of UTF-8 text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// An open file, which cannot be lost by a rename.
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
    last_read: Cell<Instant>,
    at_end: Cell<bool>,
    /// Its last line was delivered without a newline.
    finished: Cell<bool>,
    noted_at: Cell<Instant>,
    /// Whether the path still refers to the file, as far as known.
    is_named: Cell<bool>,
    /// The format of a compressed file, which is not read as lines.
    compressed: Cell<Option<&'static str>>,
    context: Context,
}

/// The state of reading.
struct Reading {
    offset: u64,
    /// The bytes before the offset, as they were read.
    before: Vec<u8>,
    /// Only bytes that are skipped at a beginning have been read so far.
    at_beginning: bool,
    framer: Framer,
    tracker: Rc<AckTracker>,
    /// The end of the last batch that was passed on.
    pushed_to: u64,
}

/// What a tail needs to restart from the beginning.
struct Context {
    source: String,
    max_line_bytes: usize,
    stream: Stream,
    checkpoints: Checkpoints,
    sinks: Vec<(usize, String)>,
    sink_count: usize,
    /// Counts restarts from the beginning.
    epoch: Rc<Cell<u64>>,
    read_to: Rc<Cell<u64>>,
}

impl Tail {
    /// A tail of any file, also of a backlog of the app's output. `begin`: the start offset if no sink has a checkpoint.
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
        // A new sink starts at the most advanced offset of the other sinks; a new file at `begin`.
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
            last_read: Cell::new(now),
            at_end: Cell::new(false),
            finished: Cell::new(false),
            noted_at: Cell::new(now),
            is_named: Cell::new(true),
            compressed: Cell::new(None),
            context,
        };
        tail.context.note_all(id, &tail.file, &starts);
        Ok(tail)
    }

    /// Reads new bytes, up to `CHUNKS_PER_TURN` chunks; true if there were any. `chunk` has `BEFORE_MAX` bytes more than a chunk.
    pub async fn read(&self, pipeline: &Pipeline, chunk: &mut [u8]) -> bool {
        let mut has_read = false;
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
            if start == 0 && before == 0 && self.compressed.get().is_none() {
                self.compressed.set(compression(new));
            }
            if count == before || self.compressed.get().is_some() {
                self.at_end.set(true);
                return has_read;
            }
            has_read = true;
            self.at_end.set(false);
            self.finished.set(false);
            self.last_read.set(Instant::now());
            let new = self.skip_padding(new);
            let (batch, tracker) = self.reading.borrow_mut().take(new, read);
            if let Some(batch) = batch {
                pipeline.push(batch, &tracker, 0).await;
            }
        }
        has_read
    }

    /// Skips a hole, which reads as NULs: a writer that is unaware of a truncation leaves it before its next line. Skips a byte
    /// order mark too, which is not part of the text. Returns the remaining bytes.
    fn skip_padding<'c>(&self, new: &'c [u8]) -> &'c [u8] {
        let mut reading = self.reading.borrow_mut();
        if !reading.at_beginning {
            return new;
        }
        let mark = if reading.offset == 0 && new.starts_with(BOM) { BOM.len() } else { 0 };
        let nulls = new.iter().skip(mark).take_while(|byte| **byte == 0).count();
        reading.at_beginning = mark + nulls == new.len();
        let mut skipped = (mark + nulls) as u64;
        if reading.at_beginning {
            // A hole that the file system reports is not read.
            let after = reading.offset + skipped;
            let data = match rustix::fs::seek(&*self.file, SeekFrom::Data(after)) {
                Ok(data) => data,
                // Only a hole up to the end (lseek(2), ENXIO).
                Err(rustix::io::Errno::NXIO) => self.file.metadata().map_or(after, |meta| meta.len()),
                Err(_) => after,
            };
            skipped += data.saturating_sub(after);
            reading.before = vec![0; reading.before.len().max(BEFORE_MAX.min(skipped as usize))];
        }
        reading.offset += skipped;
        reading.framer.skip_bytes(skipped);
        new.get(mark + nulls..).unwrap_or(&[])
    }

    /// Delivers a last line without a newline.
    pub async fn finish(&self, pipeline: &Pipeline) {
        let (batch, tracker) = self.reading.borrow_mut().finish();
        if let Some(batch) = batch {
            pipeline.push(batch, &tracker, 0).await;
        }
    }

    /// A file that is now shorter than what was read, or has other bytes there, is re-read from the beginning (copytruncate,
    /// `>`). Later acknowledgements of its old content are ignored.
    fn restart(&self, pipeline: &Pipeline) {
        let path = self.path.borrow();
        tracing::info!(path = %path.display(), "log file truncated or replaced; reading from the beginning");
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

    /// Its name was removed or changed.
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

    /// No pattern matches it, and no process has written to it for the grace period.
    pub fn has_ended(&self) -> bool {
        let quiet = self.last_read.get().elapsed();
        let line = self.reading.borrow().framer.has_partial_line() && !self.is_deleted();
        let grace = if line && !self.finished.get() { LINE_GRACE } else { GRACE };
        self.at_end.get() && self.seen_at.get().elapsed() > GRACE && quiet > grace
    }

    /// Delivers the last line of a file that has ended, once; true when all sinks have acknowledged the complete file.
    pub async fn end(&self, pipeline: &Pipeline) -> bool {
        if !self.finished.replace(true) {
            self.finish(pipeline).await;
        }
        self.is_done()
    }

    /// Read to its end, delivered, and quiet for a while: may be closed until it grows.
    pub fn is_idle(&self, quiet: Duration) -> bool {
        self.at_end.get() && self.last_read.get().elapsed() > quiet && self.is_done()
    }

    /// All sinks have acknowledged everything, and no partial line is left.
    fn is_done(&self) -> bool {
        let (has_partial_line, pushed_to) = {
            let reading = self.reading.borrow();
            (reading.framer.has_partial_line(), reading.pushed_to)
        };
        !has_partial_line && self.acknowledged(pushed_to)
    }

    /// The format of a compressed file.
    pub fn compressed(&self) -> Option<&'static str> {
        self.compressed.get()
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
        let tracker = self.reading.borrow().tracker.clone();
        self.context.sinks.iter().all(|(index, _)| tracker.acknowledged(*index) >= offset)
    }

    /// Persists how far the file was read, so that the loss is known if the file is removed.
    pub fn note_read(&self) {
        let offset = self.reading.borrow().offset;
        if self.context.read_to.replace(offset) == offset || self.acknowledged(offset) {
            return;
        }
        self.noted_at.set(Instant::now());
        let tracker = self.reading.borrow().tracker.clone();
        let starts: Vec<u64> = (0..self.context.sink_count).map(|index| tracker.acknowledged(index)).collect();
        self.context.note_all(self.id, &self.file, &starts);
    }

    pub fn note_read_periodically(&self) {
        if self.noted_at.get().elapsed() > NOTE_EVERY {
            self.note_read();
        }
    }
}

impl Reading {
    /// Takes new bytes; `read` ends with them, and the next read compares its end.
    fn take(&mut self, new: &[u8], read: &[u8]) -> (Option<Batch>, Rc<AckTracker>) {
        if !new.is_empty() {
            self.offset += new.len() as u64;
            self.before = read.get(read.len().saturating_sub(BEFORE_MAX)..).unwrap_or(&[]).to_vec();
        }
        let batch = self.framer.take(new);
        self.passed_on(batch)
    }

    fn finish(&mut self) -> (Option<Batch>, Rc<AckTracker>) {
        let batch = self.framer.finish();
        self.passed_on(batch)
    }

    fn passed_on(&mut self, batch: Option<Batch>) -> (Option<Batch>, Rc<AckTracker>) {
        self.pushed_to = batch.as_ref().map_or(self.pushed_to, |batch| batch.base + batch.bytes.len() as u64);
        (batch, self.tracker.clone())
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
        let tracker = AckTracker::new(starts, Box::new(noting));
        Ok(Reading { offset, before, at_beginning: offset == 0, framer, tracker, pushed_to: offset })
    }

    /// Persists what a sink acknowledges, until the file is restarted from the beginning.
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
fn compression(begin: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")];
    FORMATS.iter().find(|(magic, _)| begin.starts_with(magic)).map(|(_, name)| *name)
}

/// A position with fingerprints of what it covers. A file that can no longer be read gets fingerprints that match nothing.
fn position(file: &File, offset: u64, read_to: u64) -> Position {
    let fingerprint = fingerprint(file, offset.min(FINGERPRINT_MAX as u64) as usize).unwrap_or_default();
    let before = fingerprint_before(file, offset).unwrap_or_default();
    Position { offset, fingerprint, before, read_to: read_to.max(offset) }
}

/// Whether the position is of this file.
fn is_of(position: &Position, file: &File) -> bool {
    let begins =
        fingerprint(file, position.fingerprint.length as usize).is_ok_and(|found| found == position.fingerprint);
    // A position of version 1 has no fingerprint of the bytes before its offset.
    let continues = position.before.length == 0
        || fingerprint_before(file, position.offset).is_ok_and(|before| before == position.before);
    begins && continues
}
