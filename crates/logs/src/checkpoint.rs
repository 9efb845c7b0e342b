//! Checkpoints on disk: how far each sink has acknowledged each file. One file of fixed slots, each written in place at each
//! acknowledgement, so that a killed worker repeats at most its batches in flight. In: offsets. Out: the same after a restart; a
//! damaged slot is skipped, never fatal. A failed write is retried until it succeeds. Limits: `SLOTS_MAX` slots; the checkpoints
//! of closed files are evicted first, the oldest first, and then those of idle files, which health reports.

use base::runtime::health::Health;
use base::runtime::state::{Mark, Marked, StateDir};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use sys::ring::fnv1a;

pub const SLOTS_MAX: usize = 8192;
const SLOT_BYTES: usize = 128;
const FILE: &str = "logs/checkpoints";
/// The line that the first slot begins with.
const MARK: Mark = Mark { what: "checkpoints", version: 2 };

/// After a power loss, at most this much progress is lost and re-read.
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// How often a failed write of a checkpoint is retried.
const RETRY_WRITE: Duration = Duration::from_secs(1);
/// The ids in health: of the checkpoint file, and of a file without room.
pub const PART: &str = "logs.checkpoints";
const ROOM: &str = "logs.checkpoints room";
/// The file has room again when one in this many slots is free.
const ROOM_SHARE: usize = 10;

/// A file by device and inode. Inode numbers are reused, so fingerprints of the content are compared too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    pub fn of(meta: &Metadata) -> FileId {
        FileId { device: meta.dev(), inode: meta.ino() }
    }
}

/// A hash of bytes of a file: how many, and their hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub length: u32,
    pub hash: u64,
}

/// How many bytes at the beginning of a file are compared.
pub const FINGERPRINT_MAX: usize = 256;
/// How many bytes before an offset are compared.
pub const BEFORE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub offset: u64,
    /// Of the file's beginning, as far as the offset covers it.
    pub fingerprint: Fingerprint,
    /// Of the bytes before the offset.
    pub before: Fingerprint,
    /// How far the file was read. The bytes after `offset` are lost if the file is removed.
    pub read_to: u64,
}

pub type SlotKey = (u64, FileId, u64);

/// All checkpoints; without durability they are in memory only.
#[derive(Clone, Default)]
pub struct Checkpoints {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    file: Option<Rc<File>>,
    health: Option<Arc<Health>>,
    slots: BTreeMap<SlotKey, (usize, Position)>,
    /// Empty slots, used before new ones.
    free: Vec<usize>,
    next: usize,
    /// Files that are read to their end and no longer matched by a pattern.
    closed: FileQueue,
    /// Files that are read to their end, closed, and still exist.
    at_rest: FileQueue,
    /// Keys whose checkpoint in memory is newer than on disk.
    unwritten: BTreeSet<SlotKey>,
    dirty: bool,
    /// Another worker writes the file now.
    released: bool,
}

impl Checkpoints {
    /// Opens the file in the state directory. Of a damaged file only the damaged slots are lost; a file of another version, or of
    /// none, is recreated. Both return a warning.
    pub fn open(state: &StateDir, health: Option<Arc<Health>>) -> io::Result<(Checkpoints, Option<String>)> {
        let Some(path) = state.path(FILE) else { return Ok((Checkpoints::default(), None)) };
        let mut options = OpenOptions::new();
        let mut file =
            base::system::file::open_own(&path, options.create(true).truncate(false).read(true).write(true))?;
        let mut bytes = Vec::new();
        io::Read::by_ref(&mut file).take(((SLOTS_MAX + 1) * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
        let mut inner = Inner { health, ..Inner::default() };
        let mark = MARK.of(&bytes);
        let warning = match mark {
            Marked::Ours(_) => {
                let mut damaged = u64::from(bytes.len() % SLOT_BYTES != 0);
                inner.next = bytes.len().saturating_sub(SLOT_BYTES).div_ceil(SLOT_BYTES);
                for (index, slot) in bytes.chunks_exact(SLOT_BYTES).skip(1).enumerate() {
                    match decode(slot) {
                        Some((key, position)) => {
                            // Of two slots with one key the later one counts; the other would reappear once the key is forgotten.
                            if let Some((index, _)) = inner.slots.insert(key, (index, position)) {
                                file.write_all_at(&[0; SLOT_BYTES], slot_offset(index))?;
                                inner.free.push(index);
                            }
                        }
                        None => {
                            damaged += u64::from(slot.iter().any(|byte| *byte != 0));
                            inner.free.push(index);
                        }
                    }
                }
                (damaged > 0).then(|| format!("{}: {damaged} corrupt checkpoints skipped", path.display()))
            }
            Marked::Other(version) => {
                file.set_len(0)?;
                Some(format!(
                    "checkpoint file {}: unsupported version {version} (expected at most {}); recreating it",
                    path.display(),
                    MARK.version
                ))
            }
            Marked::None => {
                let known = first_version::read(&bytes);
                file.set_len(0)?;
                for (index, (key, position)) in known.into_iter().enumerate() {
                    inner.slots.insert(key, (index, position));
                    inner.next = index + 1;
                    inner.unwritten.insert(key);
                }
                let damaged = inner.slots.is_empty() && !bytes.is_empty();
                damaged.then(|| format!("checkpoint file {} is corrupt; recreating it", path.display()))
            }
        };
        if !matches!(mark, Marked::Ours(_)) {
            file.write_all_at(&header(), 0)?;
        }
        inner.file = Some(Rc::new(file));
        inner.write_pending();
        Ok((Checkpoints { inner: Rc::new(RefCell::new(inner)) }, warning))
    }

    pub fn get(&self, source: &str, file: FileId, sink: &str) -> Option<Position> {
        self.inner.borrow().slots.get(&(name_hash(source), file, name_hash(sink))).map(|(_, position)| *position)
    }

    /// Files of a source that have a checkpoint, so that a file renamed in the meantime is found by its inode.
    pub fn files_of(&self, source: &str) -> Vec<FileId> {
        let source = name_hash(source);
        let mut files: Vec<FileId> =
            self.inner.borrow().slots.keys().filter(|key| key.0 == source).map(|key| key.1).collect();
        files.sort();
        files.dedup();
        files
    }

    /// The bytes of a file that were read and that not all sinks have acknowledged.
    pub fn unacknowledged(&self, source: &str, file: FileId) -> u64 {
        let source = name_hash(source);
        let inner = self.inner.borrow();
        let of_file = inner.slots.range(slots_of(source, file));
        of_file.map(|(_, (_, position))| position.read_to.saturating_sub(position.offset)).max().unwrap_or(0)
    }

    /// Records a checkpoint. Not synced here: it survives a crash of Outrigger immediately, and one of the machine after the next
    /// sync. After a failed write health is `degraded`, and the write is retried.
    pub fn set(&self, source: &str, file: FileId, sink: &str, position: Position) {
        let key = (name_hash(source), file, name_hash(sink));
        let mut inner = self.inner.borrow_mut();
        if inner.released {
            return;
        }
        let Some(index) = inner.slot(&key) else {
            return inner.fault(format!(
                "checkpoint file is full ({SLOTS_MAX} entries); files without a checkpoint are re-read after a restart"
            ));
        };
        inner.slots.insert(key, (index, position));
        inner.dirty = true;
        inner.unwritten.insert(key);
        // While the disk is full, one attempt per interval is enough.
        if inner.unwritten.len() == 1 {
            inner.write_pending();
        }
    }

    /// Leaves the file to another worker: later checkpoints are not written, and that worker re-reads the lines.
    pub fn release(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.write_pending();
        (inner.file, inner.released) = (None, true);
    }

    /// A file that is read to its end, closed, and matched by no pattern: its checkpoint is evicted first.
    pub fn closed(&self, source: &str, file: FileId) {
        let mut inner = self.inner.borrow_mut();
        let key = (name_hash(source), file);
        inner.at_rest.remove(&key);
        inner.closed.push(key);
    }

    /// A file that is read to its end and closed, and still exists: its checkpoint is evicted if there is no other room.
    pub fn at_rest(&self, source: &str, file: FileId) {
        self.inner.borrow_mut().at_rest.push((name_hash(source), file));
    }

    /// A file was opened again.
    pub fn opened(&self, source: &str, file: FileId) {
        let mut inner = self.inner.borrow_mut();
        let key = (name_hash(source), file);
        inner.closed.remove(&key);
        inner.at_rest.remove(&key);
    }

    /// Checkpoints of sources other than these are evicted first.
    pub fn prefer<'s>(&self, sources: impl Iterator<Item = &'s str>) {
        let sources: Vec<u64> = sources.map(name_hash).collect();
        let mut inner = self.inner.borrow_mut();
        let others: Vec<(u64, FileId)> =
            inner.slots.keys().filter(|key| !sources.contains(&key.0)).map(|key| (key.0, key.1)).collect();
        others.into_iter().for_each(|file| inner.closed.push(file));
    }

    /// Forgets a file that was removed.
    pub fn forget(&self, source: &str, file: FileId) {
        self.inner.borrow_mut().forget(name_hash(source), file);
    }

    /// Syncs what was written, on a thread that may block, and retries failed writes; sleeps while nothing changes.
    pub async fn sync_periodically(self) {
        let mut since_sync = Duration::ZERO;
        loop {
            tokio::time::sleep(RETRY_WRITE).await;
            since_sync += RETRY_WRITE;
            self.inner.borrow_mut().write_pending();
            if since_sync < SYNC_EVERY {
                continue;
            }
            since_sync = Duration::ZERO;
            let file = {
                let mut inner = self.inner.borrow_mut();
                let dirty = std::mem::take(&mut inner.dirty);
                inner.file.as_ref().filter(|_| dirty).and_then(|file| file.try_clone().ok())
            };
            if let Some(file) = file {
                // A disk that fails a sync fails the next write too, which reports it.
                let _ = tokio::task::spawn_blocking(move || file.sync_data()).await;
            }
        }
    }
}

impl Inner {
    /// The slot of a key: its own, a free one, a new one, or that of an evicted file.
    fn slot(&mut self, key: &SlotKey) -> Option<usize> {
        if let Some((index, _)) = self.slots.get(key) {
            return Some(*index);
        }
        while self.free.is_empty() && self.next >= SLOTS_MAX {
            let (source, file) = self.closed.pop().or_else(|| {
                let file = self.at_rest.pop()?;
                let text = format!("checkpoint file is full ({SLOTS_MAX} entries); checkpoints of idle files were evicted and are re-read after a restart");
                self.report(ROOM, text);
                Some(file)
            })?;
            self.forget(source, file);
        }
        self.free.pop().or_else(|| {
            self.next += 1;
            Some(self.next - 1)
        })
    }

    fn forget(&mut self, source: u64, file: FileId) {
        self.closed.remove(&(source, file));
        self.at_rest.remove(&(source, file));
        let keys: Vec<SlotKey> = self.slots.range(slots_of(source, file)).map(|(key, _)| *key).collect();
        for key in keys {
            let Some((index, _)) = self.slots.remove(&key) else { continue };
            self.unwritten.remove(&key);
            self.free.push(index);
            if let Some(file) = &self.file {
                // A slot that could not be cleared is that of a file that will not be found again.
                let _ = file.write_all_at(&[0; SLOT_BYTES], slot_offset(index));
            }
        }
    }

    fn write_pending(&mut self) {
        let Some(file) = self.file.clone() else { return self.unwritten.clear() };
        while let Some(key) = self.unwritten.first().copied() {
            if let Some((index, position)) = self.slots.get(&key)
                && let Err(error) = file.write_all_at(&encode(&key, position), slot_offset(*index))
            {
                return self.fault(format!("cannot write a checkpoint; keeping it in memory: {error}"));
            }
            self.unwritten.pop_first();
        }
        let Some(health) = &self.health else { return };
        if self.slots.len() < SLOTS_MAX - SLOTS_MAX / ROOM_SHARE {
            health.recovered(ROOM);
        }
        if self.slots.len() < SLOTS_MAX && health.recovered(PART) {
            tracing::info!(component = "logs.checkpoints", "checkpoint writes recovered");
        }
    }

    fn fault(&self, text: String) {
        self.report(PART, text);
    }

    fn report(&self, part: &str, text: String) {
        if self.health.as_ref().is_some_and(|health| health.fault(part, text.clone())) {
            tracing::warn!(
                component = "logs.checkpoints",
                error = text,
                "checkpoints are not persisted; a restart will re-read log files (duplicates)"
            );
        }
    }
}

/// Files in insertion order, each once.
#[derive(Default)]
struct FileQueue {
    files: BTreeMap<u64, (u64, FileId)>,
    numbers: HashMap<(u64, FileId), u64>,
    next: u64,
}

impl FileQueue {
    fn push(&mut self, file: (u64, FileId)) {
        self.remove(&file);
        self.files.insert(self.next, file);
        self.numbers.insert(file, self.next);
        self.next += 1;
    }

    fn remove(&mut self, file: &(u64, FileId)) {
        if let Some(number) = self.numbers.remove(file) {
            self.files.remove(&number);
        }
    }

    fn pop(&mut self) -> Option<(u64, FileId)> {
        let (_, file) = self.files.pop_first()?;
        self.numbers.remove(&file);
        Some(file)
    }
}

/// The slots of all sinks of a file.
fn slots_of(source: u64, file: FileId) -> RangeInclusive<SlotKey> {
    (source, file, 0)..=(source, file, u64::MAX)
}

fn slot_offset(index: usize) -> u64 {
    ((index + 1) * SLOT_BYTES) as u64
}

fn header() -> [u8; SLOT_BYTES] {
    let mut header = [0u8; SLOT_BYTES];
    header.iter_mut().zip(MARK.line().bytes()).for_each(|(target, byte)| *target = byte);
    header
}

/// Hashes the beginning of a file.
pub fn fingerprint(file: &File, length: usize) -> io::Result<Fingerprint> {
    fingerprint_at(file, 0, length.min(FINGERPRINT_MAX))
}

/// Hashes the bytes before an offset.
pub fn fingerprint_before(file: &File, offset: u64) -> io::Result<Fingerprint> {
    let length = offset.min(BEFORE_MAX as u64);
    fingerprint_at(file, offset - length, length as usize)
}

fn fingerprint_at(file: &File, at: u64, length: usize) -> io::Result<Fingerprint> {
    let mut bytes = [0u8; FINGERPRINT_MAX];
    let mut filled = 0;
    while filled < length {
        match file.read_at(bytes.get_mut(filled..length).unwrap_or(&mut []), at + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(Fingerprint { length: filled as u32, hash: fnv1a(bytes.get(..filled).unwrap_or(&[])) })
}

fn name_hash(name: &str) -> u64 {
    fnv1a(name.as_bytes())
}

fn encode(key: &SlotKey, position: &Position) -> [u8; SLOT_BYTES] {
    let mut slot = [0u8; SLOT_BYTES];
    let lengths = u64::from(position.fingerprint.length) | u64::from(position.before.length) << 32;
    let numbers = [
        key.0,
        key.1.device,
        key.1.inode,
        key.2,
        position.offset,
        lengths,
        position.fingerprint.hash,
        position.before.hash,
        position.read_to,
    ];
    for (target, number) in slot.chunks_exact_mut(8).zip(numbers) {
        target.copy_from_slice(&number.to_le_bytes());
    }
    let check = fnv1a(&slot[..SLOT_BYTES - 8]);
    slot[SLOT_BYTES - 8..].copy_from_slice(&check.to_le_bytes());
    slot
}

fn number(slot: &[u8], index: usize) -> Option<u64> {
    slot.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn decode(slot: &[u8]) -> Option<(SlotKey, Position)> {
    let number = |index| number(slot, index);
    if number(SLOT_BYTES / 8 - 1)? != fnv1a(slot.get(..SLOT_BYTES - 8)?) {
        return None;
    }
    let file = FileId { device: number(1)?, inode: number(2)? };
    let lengths = number(5)?;
    let fingerprint = Fingerprint { length: u32::try_from(lengths & 0xffff_ffff).ok()?, hash: number(6)? };
    let before = Fingerprint { length: u32::try_from(lengths >> 32).ok()?, hash: number(7)? };
    Some(((number(0)?, file, number(3)?), Position { offset: number(4)?, fingerprint, before, read_to: number(8)? }))
}

/// The file of version 1: 64 bytes a slot, from the first byte on.
mod first_version {
    use super::{FileId, Fingerprint, Position, SLOTS_MAX, SlotKey, number};
    use sys::ring::fnv1a;

    const MAGIC: u32 = 0x4f52_4331;

    pub fn read(bytes: &[u8]) -> Vec<(SlotKey, Position)> {
        bytes.chunks_exact(64).filter_map(decode).take(SLOTS_MAX).collect()
    }

    fn decode(slot: &[u8]) -> Option<(SlotKey, Position)> {
        let number = |index| number(slot, index);
        let (tail, check) = (number(6)?, number(7)?);
        if check != fnv1a(slot.get(..56)?) || tail >> 32 != u64::from(MAGIC) {
            return None;
        }
        let file = FileId { device: number(1)?, inode: number(2)? };
        let fingerprint = Fingerprint { length: u32::try_from(tail & 0xffff_ffff).ok()?, hash: number(5)? };
        let offset = number(4)?;
        // The bytes before the offset are not known: an empty fingerprint matches any bytes.
        let before = Fingerprint { length: 0, hash: fnv1a(&[]) };
        Some(((number(0)?, file, number(3)?), Position { offset, fingerprint, before, read_to: offset }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_persist_and_bad_slots_are_skipped() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let file = |inode| FileId { device: 1, inode };
        let at = |offset| Position {
            offset,
            fingerprint: Fingerprint { length: 3, hash: 9 },
            read_to: offset + 7,
            ..Position::default()
        };
        let open = || Checkpoints::open(&state, None).expect("a file").0;
        let checkpoints = open();
        for (inode, offset) in [(1, 10), (2, 20), (1, 15)] {
            checkpoints.set("files", file(inode), "main", at(offset));
        }
        let again = open();
        assert_eq!(again.unacknowledged("files", file(1)), 7);
        assert_eq!(again.get("files", file(1), "main"), Some(at(15)));
        assert_eq!(again.get("files", file(1), "other"), None);
        assert_eq!(again.files_of("files"), [file(1), file(2)]);

        let path = dir.join("logs/checkpoints");
        let mut bytes = std::fs::read(&path).expect("readable");
        bytes[SLOT_BYTES + 40] ^= 1;
        bytes.extend_from_slice(b"a torn tail");
        std::fs::write(&path, bytes).expect("written");
        let damaged = open();
        assert_eq!(
            (damaged.get("files", file(1), "main"), damaged.get("files", file(2), "main")),
            (None, Some(at(20)))
        );
        damaged.forget("files", file(2));
        assert!(open().files_of("files").is_empty());
        let _ = std::fs::remove_dir_all(&dir);
    }

    #[test]
    fn version_1_is_read_and_newer_is_recreated() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-versions-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let mut slot = [0u8; 64];
        let numbers = [name_hash("files"), 1, 2, name_hash("main"), 99, 7, 3 | 0x4f52_4331 << 32];
        for (target, number) in slot.chunks_exact_mut(8).zip(numbers) {
            target.copy_from_slice(&u64::to_le_bytes(number));
        }
        let check = fnv1a(&slot[..56]);
        slot[56..].copy_from_slice(&check.to_le_bytes());
        std::fs::create_dir_all(dir.join("logs")).expect("created");
        std::fs::write(dir.join(FILE), slot).expect("written");
        let file = FileId { device: 1, inode: 2 };
        for _ in 0..2 {
            let (old, warning) = Checkpoints::open(&state, None).expect("opens");
            assert_eq!(warning, None);
            assert_eq!(old.get("files", file, "main").map(|position| position.offset), Some(99));
        }
        let mut bytes = std::fs::read(dir.join(FILE)).expect("readable");
        bytes[MARK.line().len() - 2] = b'7';
        std::fs::write(dir.join(FILE), bytes).expect("written");
        let (fresh, warning) = Checkpoints::open(&state, None).expect("opens");
        assert!(warning.is_some_and(|text| text.contains("version 7")));
        assert!(fresh.files_of("files").is_empty());
        let _ = std::fs::remove_dir_all(&dir);
    }

    #[test]
    fn closed_files_are_evicted_and_full_is_reported() {
        let health = Health::new("logs");
        let checkpoints = Checkpoints::default();
        checkpoints.inner.borrow_mut().health = Some(health.clone());
        let file = |inode| FileId { device: 1, inode };
        for inode in 0..SLOTS_MAX as u64 {
            checkpoints.set("files", file(inode), "main", Position::default());
        }
        assert!(!health.current().message.contains("is full"));
        checkpoints.set("files", file(100_000), "main", Position::default());
        assert!(health.current().message.contains("checkpoint file is full (8192 entries)"), "{:?}", health.current());
        let evicts = |evicted: u64, other: u64| {
            checkpoints.set("files", file(other), "main", Position::default());
            assert_eq!(checkpoints.get("files", file(evicted), "main"), None);
            assert!(checkpoints.get("files", file(other), "main").is_some());
        };
        checkpoints.at_rest("files", file(6));
        checkpoints.at_rest("files", file(8));
        checkpoints.closed("files", file(7));
        checkpoints.opened("files", file(8));
        evicts(7, 100_001);
        assert!(!health.current().message.contains("idle files"), "the eviction of a closed file is not a fault");
        evicts(6, 100_002);
        assert!(health.current().message.contains("idle files were evicted"), "{:?}", health.current());
        checkpoints.set("files", file(100_003), "main", Position::default());
        assert!(checkpoints.get("files", file(8), "main").is_some(), "an open file is not evicted");
    }

    #[test]
    fn damaged_file_is_reported() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-damaged-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let path = state.path(FILE).expect("durable");
        let warning = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            Checkpoints::open(&state, None).expect("opens with any content").1
        };
        assert_eq!(warning(b""), None, "a new file");
        assert!(warning(&[7; 500]).is_some_and(|text| text.contains("is corrupt")));
        let intact = [&header()[..], &[0; SLOT_BYTES]].concat();
        assert_eq!(warning(&intact), None, "a free slot is not damage");
        for damaged in [[&intact[..], &[7; SLOT_BYTES]].concat(), [&intact[..], &[0; 9]].concat()] {
            assert!(warning(&damaged).is_some_and(|text| text.contains("1 corrupt checkpoints")));
        }
        let _ = std::fs::remove_dir_all(&dir);
    }
}
