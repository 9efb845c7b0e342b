//! How far each sink has acknowledged each file, on disk: one file of fixed slots, each written in place as soon as an
//! acknowledgement moves it, so that a killed worker repeats at most its batches in flight. In: offsets. Out: the same after
//! a restart; a damaged slot is passed over, never fatal. A position that could not be written is written again until it is. Bound:
//! `SLOTS_MAX` slots; the positions of closed files make room for others, the oldest first, and then those of files at rest, which
//! health says.

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

/// A machine that loses power loses at most this much progress, and reads that much again.
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// How often a position that could not be written is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);
/// What health calls this part, and what it calls a table without room.
pub const PART: &str = "state logs/checkpoints";
const ROOM: &str = "state logs/checkpoints room";
/// The table has room again where this part of it is free.
const ROOM_SHARE: usize = 10;

/// A file as the system knows it, with a print of its beginning, since inode numbers are used again.
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

/// A hash of some bytes of a file: how many, and their hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub length: u32,
    pub hash: u64,
}

/// How much of a file's beginning is compared.
pub const FINGERPRINT_MAX: usize = 256;
/// How much before an offset is compared.
pub const BEFORE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub offset: u64,
    /// Of the file's beginning, as far as the offset covers it.
    pub print: Fingerprint,
    /// Of the bytes before the offset.
    pub before: Fingerprint,
    /// How far the file was read. What lies between is lost where the file is gone.
    pub read_to: u64,
}

pub type SlotKey = (u64, FileId, u64);

/// All positions; without durability they live in memory alone.
#[derive(Clone, Default)]
pub struct Checkpoints {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    file: Option<Rc<File>>,
    health: Option<Arc<Health>>,
    slots: BTreeMap<SlotKey, (usize, Position)>,
    /// Slots that hold nothing, to be used before new ones.
    free: Vec<usize>,
    next: usize,
    /// Files that are read to their end and matched by no pattern any more.
    closed: FileQueue,
    /// Files that are read to their end, closed, and still there.
    at_rest: FileQueue,
    /// Keys whose position in memory is newer than on disk.
    unwritten: BTreeSet<SlotKey>,
    dirty: bool,
    /// Another worker writes the file now.
    released: bool,
}

impl Checkpoints {
    /// Opens the file of the state directory. A damaged slot costs that slot alone, and a file of another version, or of none, is begun
    /// anew; both are answered with a sentence.
    pub fn open(state: &StateDir, health: Option<Arc<Health>>) -> io::Result<(Checkpoints, Option<String>)> {
        let Some(path) = state.path(FILE) else { return Ok((Checkpoints::default(), None)) };
        let mut options = OpenOptions::new();
        let mut file =
            base::system::file::open_own(&path, options.create(true).truncate(false).read(true).write(true))?;
        let mut bytes = Vec::new();
        io::Read::by_ref(&mut file).take(((SLOTS_MAX + 1) * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
        let mut inner = Inner { health, ..Inner::default() };
        let mark = MARK.of(&bytes);
        let trouble = match mark {
            Marked::Ours(_) => {
                let mut damaged = u64::from(bytes.len() % SLOT_BYTES != 0);
                inner.next = bytes.len().saturating_sub(SLOT_BYTES).div_ceil(SLOT_BYTES);
                for (index, slot) in bytes.chunks_exact(SLOT_BYTES).skip(1).enumerate() {
                    match decode(slot) {
                        Some((key, position)) => {
                            // Of two for the same the later one counts; the other one would come back once it is forgotten.
                            if let Some((index, _)) = inner.slots.insert(key, (index, position)) {
                                file.write_all_at(&[0; SLOT_BYTES], place_of(index))?;
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
        inner.write_again();
        Ok((Checkpoints { inner: Rc::new(RefCell::new(inner)) }, trouble))
    }

    pub fn get(&self, source: &str, file: FileId, sink: &str) -> Option<Position> {
        self.inner.borrow().slots.get(&(name_hash(source), file, name_hash(sink))).map(|(_, position)| *position)
    }

    /// Files of a source that have a position, so that one that was renamed meanwhile can be found by its inode.
    pub fn files_of(&self, source: &str) -> Vec<FileId> {
        let source = name_hash(source);
        let mut files: Vec<FileId> =
            self.inner.borrow().slots.keys().filter(|key| key.0 == source).map(|key| key.1).collect();
        files.sort();
        files.dedup();
        files
    }

    /// The bytes of a file that were read and that not all sinks have.
    pub fn unacknowledged(&self, source: &str, file: FileId) -> u64 {
        let source = name_hash(source);
        let inner = self.inner.borrow();
        let of_file = inner.slots.range(slots_of(source, file));
        of_file.map(|(_, (_, position))| position.read_to.saturating_sub(position.offset)).max().unwrap_or(0)
    }

    /// Notes a position. Not synced here: it survives our death at once, and the machine's by the next `sync`. One that cannot
    /// be written is `degraded`, and written later.
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
        // While the disk is full one try after each pause is enough.
        if inner.unwritten.len() == 1 {
            inner.write_again();
        }
    }

    /// Leaves the file to another worker: what comes late is written nowhere, and read again there.
    pub fn release(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.write_again();
        (inner.file, inner.released) = (None, true);
    }

    /// A file that is read to its end, closed, and matched by no pattern: its position goes first where room is needed.
    pub fn closed(&self, source: &str, file: FileId) {
        let mut inner = self.inner.borrow_mut();
        let key = (name_hash(source), file);
        inner.at_rest.remove(&key);
        inner.closed.push(key);
    }

    /// A file that is read to its end and closed, and is still there: its position goes where there is no other room.
    pub fn at_rest(&self, source: &str, file: FileId) {
        self.inner.borrow_mut().at_rest.push((name_hash(source), file));
    }

    /// A file is read again.
    pub fn opened(&self, source: &str, file: FileId) {
        let mut inner = self.inner.borrow_mut();
        let key = (name_hash(source), file);
        inner.closed.remove(&key);
        inner.at_rest.remove(&key);
    }

    /// Positions of other sources than these go first where room is needed.
    pub fn prefer<'s>(&self, sources: impl Iterator<Item = &'s str>) {
        let sources: Vec<u64> = sources.map(name_hash).collect();
        let mut inner = self.inner.borrow_mut();
        let others: Vec<(u64, FileId)> =
            inner.slots.keys().filter(|key| !sources.contains(&key.0)).map(|key| (key.0, key.1)).collect();
        others.into_iter().for_each(|file| inner.closed.push(file));
    }

    /// Forgets a file that is gone.
    pub fn forget(&self, source: &str, file: FileId) {
        self.inner.borrow_mut().forget(name_hash(source), file);
    }

    /// Syncs what was written, on a thread that may block, and writes what could not be written; sleeps while nothing changes.
    pub async fn sync_periodically(self) {
        let mut since_sync = Duration::ZERO;
        loop {
            tokio::time::sleep(WRITE_AGAIN).await;
            since_sync += WRITE_AGAIN;
            self.inner.borrow_mut().write_again();
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
                // A disk that refuses a sync refuses the next write too, which reports it.
                let _ = tokio::task::spawn_blocking(move || file.sync_data()).await;
            }
        }
    }
}

impl Inner {
    /// The slot of a key: its own, a free one, a new one, or that of a file that makes room.
    fn slot(&mut self, key: &SlotKey) -> Option<usize> {
        if let Some((index, _)) = self.slots.get(key) {
            return Some(*index);
        }
        while self.free.is_empty() && self.next >= SLOTS_MAX {
            let (source, file) = self.closed.pop().or_else(|| {
                let file = self.at_rest.pop()?;
                let text = format!("checkpoint file is full ({SLOTS_MAX} entries); checkpoints of idle files were evicted and are re-read after a restart");
                self.say(ROOM, text);
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
        let gone: Vec<SlotKey> = self.slots.range(slots_of(source, file)).map(|(key, _)| *key).collect();
        for key in gone {
            let Some((index, _)) = self.slots.remove(&key) else { continue };
            self.unwritten.remove(&key);
            self.free.push(index);
            if let Some(file) = &self.file {
                // A slot that could not be cleared is a file that will not be found again.
                let _ = file.write_all_at(&[0; SLOT_BYTES], place_of(index));
            }
        }
    }

    fn write_again(&mut self) {
        let Some(file) = self.file.clone() else { return self.unwritten.clear() };
        while let Some(key) = self.unwritten.first().copied() {
            if let Some((index, position)) = self.slots.get(&key)
                && let Err(error) = file.write_all_at(&encode(&key, position), place_of(*index))
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
            tracing::info!("checkpoint writes recovered");
        }
    }

    fn fault(&self, text: String) {
        self.say(PART, text);
    }

    fn say(&self, part: &str, text: String) {
        if self.health.as_ref().is_some_and(|health| health.fault(part, text.clone())) {
            tracing::warn!(
                error = text,
                "checkpoints are not persisted; a restart will re-read log files (duplicates)"
            );
        }
    }
}

/// Files in the order in which they came, each once.
#[derive(Default)]
struct FileQueue {
    files: BTreeMap<u64, (u64, FileId)>,
    places: HashMap<(u64, FileId), u64>,
    next: u64,
}

impl FileQueue {
    fn push(&mut self, file: (u64, FileId)) {
        self.remove(&file);
        self.files.insert(self.next, file);
        self.places.insert(file, self.next);
        self.next += 1;
    }

    fn remove(&mut self, file: &(u64, FileId)) {
        if let Some(place) = self.places.remove(file) {
            self.files.remove(&place);
        }
    }

    fn pop(&mut self) -> Option<(u64, FileId)> {
        let (_, file) = self.files.pop_first()?;
        self.places.remove(&file);
        Some(file)
    }
}

/// The slots of all sinks of a file.
fn slots_of(source: u64, file: FileId) -> RangeInclusive<SlotKey> {
    (source, file, 0)..=(source, file, u64::MAX)
}

fn place_of(index: usize) -> u64 {
    ((index + 1) * SLOT_BYTES) as u64
}

fn header() -> [u8; SLOT_BYTES] {
    let mut header = [0u8; SLOT_BYTES];
    header.iter_mut().zip(MARK.line().bytes()).for_each(|(place, byte)| *place = byte);
    header
}

/// Hashes the beginning of a file.
pub fn fingerprint(file: &File, length: usize) -> io::Result<Fingerprint> {
    fingerprint_at(file, 0, length.min(FINGERPRINT_MAX))
}

/// Hashes what stands before an offset.
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
    let lengths = u64::from(position.print.length) | u64::from(position.before.length) << 32;
    let numbers = [
        key.0,
        key.1.device,
        key.1.inode,
        key.2,
        position.offset,
        lengths,
        position.print.hash,
        position.before.hash,
        position.read_to,
    ];
    for (place, number) in slot.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
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
    let print = Fingerprint { length: u32::try_from(lengths & 0xffff_ffff).ok()?, hash: number(6)? };
    let before = Fingerprint { length: u32::try_from(lengths >> 32).ok()?, hash: number(7)? };
    Some(((number(0)?, file, number(3)?), Position { offset: number(4)?, print, before, read_to: number(8)? }))
}

/// The file of the first version: 64 bytes a slot, from the first byte on.
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
        let print = Fingerprint { length: u32::try_from(tail & 0xffff_ffff).ok()?, hash: number(5)? };
        let offset = number(4)?;
        // Nothing is known of what stands before the offset: an empty print is that of any bytes.
        let before = Fingerprint { length: 0, hash: fnv1a(&[]) };
        Some(((number(0)?, file, number(3)?), Position { offset, print, before, read_to: offset }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_and_a_damaged_slot_costs_only_itself() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let file = |inode| FileId { device: 1, inode };
        let at = |offset| Position {
            offset,
            print: Fingerprint { length: 3, hash: 9 },
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
        let mut bytes = std::fs::read(&path).expect("there");
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
    fn a_file_of_the_first_version_is_read_and_one_of_a_later_is_begun_anew() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-versions-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let mut slot = [0u8; 64];
        let numbers = [name_hash("files"), 1, 2, name_hash("main"), 99, 7, 3 | 0x4f52_4331 << 32];
        for (place, number) in slot.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&u64::to_le_bytes(number));
        }
        let check = fnv1a(&slot[..56]);
        slot[56..].copy_from_slice(&check.to_le_bytes());
        std::fs::create_dir_all(dir.join("logs")).expect("made");
        std::fs::write(dir.join(FILE), slot).expect("written");
        let file = FileId { device: 1, inode: 2 };
        for _ in 0..2 {
            let (old, trouble) = Checkpoints::open(&state, None).expect("opens");
            assert_eq!(trouble, None);
            assert_eq!(old.get("files", file, "main").map(|position| position.offset), Some(99));
        }
        let mut bytes = std::fs::read(dir.join(FILE)).expect("there");
        bytes[MARK.line().len() - 2] = b'7';
        std::fs::write(dir.join(FILE), bytes).expect("written");
        let (fresh, trouble) = Checkpoints::open(&state, None).expect("opens");
        assert!(trouble.is_some_and(|text| text.contains("version 7")));
        assert!(fresh.files_of("files").is_empty());
        let _ = std::fs::remove_dir_all(&dir);
    }

    #[test]
    fn closed_files_make_room_and_a_full_table_is_said() {
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
        let makes_room = |gone: u64, other: u64| {
            checkpoints.set("files", file(other), "main", Position::default());
            assert_eq!(checkpoints.get("files", file(gone), "main"), None);
            assert!(checkpoints.get("files", file(other), "main").is_some());
        };
        checkpoints.at_rest("files", file(6));
        checkpoints.at_rest("files", file(8));
        checkpoints.closed("files", file(7));
        checkpoints.opened("files", file(8));
        makes_room(7, 100_001);
        assert!(!health.current().message.contains("idle files"), "a closed file costs nothing");
        makes_room(6, 100_002);
        assert!(health.current().message.contains("idle files were evicted"), "{:?}", health.current());
        checkpoints.set("files", file(100_003), "main", Position::default());
        assert!(checkpoints.get("files", file(8), "main").is_some(), "a file that is read keeps its position");
    }

    #[test]
    fn a_damaged_file_is_said() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-damaged-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let path = state.path(FILE).expect("it is kept");
        let trouble = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("the folder takes the file");
            Checkpoints::open(&state, None).expect("it opens, whatever it holds").1
        };
        assert_eq!(trouble(b""), None, "a new file");
        assert!(trouble(&[7; 500]).is_some_and(|text| text.contains("is corrupt")));
        let whole = [&header()[..], &[0; SLOT_BYTES]].concat();
        assert_eq!(trouble(&whole), None, "a free slot is no damage");
        for damaged in [[&whole[..], &[7; SLOT_BYTES]].concat(), [&whole[..], &[0; 9]].concat()] {
            assert!(trouble(&damaged).is_some_and(|text| text.contains("1 corrupt checkpoints")));
        }
        let _ = std::fs::remove_dir_all(&dir);
    }
}
