//! How far each sink has acknowledged each file, on disk: one file of fixed slots, each written in place as soon as an
//! acknowledgement moves it, so that a killed worker repeats at most its batches in flight. In: offsets. Out: the same after
//! a restart; a slot that is torn or of another version is passed over, never fatal. Bound: `SLOTS_MAX` slots.

use base::state::StateDir;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::Duration;
use sys::ring::fnv1a;

pub const SLOTS_MAX: usize = 8192;
const SLOT_BYTES: usize = 64;
/// A machine that loses power loses at most this much progress, and reads that much again.
const SYNC_EVERY: Duration = Duration::from_secs(5);
const MAGIC: u32 = 0x4f52_4331;

/// A file as the system knows it, with a print of its beginning, since inode numbers are used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// A hash of the first bytes of a file: how many, and their hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Print {
    pub length: u32,
    pub hash: u64,
}

/// How much of a file's beginning is compared.
pub const PRINT_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub offset: u64,
    pub print: Print,
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
    slots: HashMap<SlotKey, (usize, Position)>,
    /// Slots that hold nothing, to be used before new ones.
    free: Vec<usize>,
    next: usize,
    dirty: bool,
    /// Another worker writes the file now.
    released: bool,
}

impl Checkpoints {
    /// Opens the file of the state directory. A damaged slot costs that slot alone.
    pub fn open(state: &StateDir) -> io::Result<Checkpoints> {
        let Some(path) = state.path("logs.checkpoints") else { return Ok(Checkpoints::default()) };
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        io::Read::by_ref(&mut file).take((SLOTS_MAX * SLOT_BYTES) as u64).read_to_end(&mut bytes)?;
        let mut inner = Inner { next: bytes.len().div_ceil(SLOT_BYTES), ..Inner::default() };
        for (index, slot) in bytes.chunks_exact(SLOT_BYTES).enumerate() {
            match decode(slot) {
                Some((key, position)) => drop(inner.slots.insert(key, (index, position))),
                None => inner.free.push(index),
            }
        }
        inner.file = Some(Rc::new(file));
        Ok(Checkpoints { inner: Rc::new(RefCell::new(inner)) })
    }

    pub fn get(&self, source: &str, file: FileId, sink: &str) -> Option<Position> {
        self.inner.borrow().slots.get(&(name_hash(source), file, name_hash(sink))).map(|(_, position)| *position)
    }

    /// Files of a source that have a position, so that one that was renamed meanwhile can be found by its inode.
    pub fn files_of(&self, source: &str) -> Vec<FileId> {
        let source = name_hash(source);
        let mut files: Vec<FileId> =
            self.inner.borrow().slots.keys().filter(|key| key.0 == source).map(|key| key.1).collect();
        files.sort_by_key(|file| (file.device, file.inode));
        files.dedup();
        files
    }

    /// Writes a position down. Not synced here: it survives our death at once, and the machine's by the next `sync`.
    pub fn set(&self, source: &str, file: FileId, sink: &str, position: Position) -> io::Result<()> {
        let key = (name_hash(source), file, name_hash(sink));
        let mut inner = self.inner.borrow_mut();
        if inner.released {
            return Ok(());
        }
        let index = match inner.slots.get(&key) {
            Some((index, _)) => *index,
            None if !inner.free.is_empty() => inner.free.pop().unwrap_or(0),
            None if inner.next < SLOTS_MAX => {
                inner.next += 1;
                inner.next - 1
            }
            None => return Err(io::Error::other(format!("all {SLOTS_MAX} checkpoints are in use"))),
        };
        inner.slots.insert(key, (index, position));
        inner.dirty = true;
        match &inner.file {
            Some(file) => file.write_all_at(&encode(&key, &position), (index * SLOT_BYTES) as u64),
            None => Ok(()),
        }
    }

    /// Leaves the file to another worker: what comes late is written nowhere, and read again there.
    pub fn release(&self) {
        let mut inner = self.inner.borrow_mut();
        (inner.file, inner.released) = (None, true);
    }

    /// Forgets a file that is gone.
    pub fn forget(&self, source: &str, file: FileId) {
        let source = name_hash(source);
        let mut inner = self.inner.borrow_mut();
        let gone: Vec<SlotKey> = inner.slots.keys().filter(|key| key.0 == source && key.1 == file).copied().collect();
        for key in gone {
            let Some((index, _)) = inner.slots.remove(&key) else { continue };
            inner.free.push(index);
            if let Some(file) = &inner.file {
                // A slot that could not be cleared is a file that will not be found again.
                let _ = file.write_all_at(&[0; SLOT_BYTES], (index * SLOT_BYTES) as u64);
            }
        }
    }

    /// Syncs what was written, on a thread that may block; sleeps while nothing changes.
    pub async fn sync_now_and_then(self) {
        loop {
            tokio::time::sleep(SYNC_EVERY).await;
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

/// Hashes the beginning of a file.
pub fn print_of(file: &File, length: usize) -> io::Result<Print> {
    let mut bytes = [0u8; PRINT_MAX];
    let mut filled = 0;
    while filled < length.min(PRINT_MAX) {
        match file.read_at(bytes.get_mut(filled..length.min(PRINT_MAX)).unwrap_or(&mut []), filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(Print { length: filled as u32, hash: fnv1a(bytes.get(..filled).unwrap_or(&[])) })
}

fn name_hash(name: &str) -> u64 {
    fnv1a(name.as_bytes())
}

fn encode(key: &SlotKey, position: &Position) -> [u8; SLOT_BYTES] {
    let mut slot = [0u8; SLOT_BYTES];
    let numbers = [key.0, key.1.device, key.1.inode, key.2, position.offset, position.print.hash];
    for (place, number) in slot.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let tail = u64::from(position.print.length) | u64::from(MAGIC) << 32;
    slot[48..56].copy_from_slice(&tail.to_le_bytes());
    let check = fnv1a(&slot[..56]);
    slot[56..].copy_from_slice(&check.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(SlotKey, Position)> {
    let number = |index: usize| slot.get(index * 8..index * 8 + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (tail, check) = (number(6)?, number(7)?);
    if check != fnv1a(slot.get(..56)?) || tail >> 32 != u64::from(MAGIC) {
        return None;
    }
    let file = FileId { device: number(1)?, inode: number(2)? };
    let print = Print { length: u32::try_from(tail & 0xffff_ffff).ok()?, hash: number(5)? };
    Some(((number(0)?, file, number(3)?), Position { offset: number(4)?, print }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 5
    #[test]
    fn positions_survive_and_a_damaged_slot_costs_only_itself() {
        let dir = std::env::temp_dir().join(format!("outrigger-checkpoints-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let state = StateDir::open(&dir, 1 << 20);
        let file = |inode| FileId { device: 1, inode };
        let at = |offset| Position { offset, print: Print { length: 3, hash: 9 } };
        let checkpoints = Checkpoints::open(&state).expect("a file");
        for (inode, offset) in [(1, 10), (2, 20), (1, 15)] {
            checkpoints.set("files", file(inode), "main", at(offset)).expect("written");
        }
        let again = Checkpoints::open(&state).expect("a file");
        assert_eq!(again.get("files", file(1), "main"), Some(at(15)));
        assert_eq!(again.get("files", file(1), "other"), None);
        assert_eq!(again.files_of("files"), [file(1), file(2)]);

        let path = dir.join("logs.checkpoints");
        let mut bytes = std::fs::read(&path).expect("there");
        bytes[40] ^= 1;
        bytes.extend_from_slice(b"a torn tail");
        std::fs::write(&path, bytes).expect("written");
        let damaged = Checkpoints::open(&state).expect("always opens");
        assert_eq!(
            (damaged.get("files", file(1), "main"), damaged.get("files", file(2), "main")),
            (None, Some(at(20)))
        );
        damaged.forget("files", file(2));
        assert!(Checkpoints::open(&state).expect("a file").files_of("files").is_empty());
        let _ = std::fs::remove_dir_all(&dir);
    }
}
