//! The checkpoint file in the state directory, in both versions. In: its bytes, or words that are assembled to it, where `*` ends
//! a slot with its checksum. Out: the file always opens; exactly the valid slots are found; a checkpoint that is written exists
//! after a restart and changes no other; a file that is forgotten stays forgotten.

use crate::assemble::assemble;
use crate::attempt::{bucket, shape};
use crate::scratch;
use base::runtime::state::StateDir;
use logs::fuzzing::{Checkpoints, FileId, Fingerprint, Position, SLOTS_MAX};
use std::collections::HashMap;
use std::path::PathBuf;
use sys::ring::fnv1a;

pub const WORDS: &[&str] = &[
    "words\n",
    "words 2\n",
    "outrigger checkpoints 2\n",
    "outrigger checkpoints 3\n",
    "*",
    " * ",
    "source ",
    "main ",
    "1328693041 ",
    "1 2 ",
    "0 0 0 0 0 0 ",
    "0",
    "\"ORC1\"",
    "\"12345678\" ",
    "\n",
];

/// The slot size of the first version.
const OLD_SLOT_BYTES: usize = 64;
/// "ORC1", in the upper half of the seventh number.
const MAGIC: u64 = 0x4f52_4331;

const SLOT_BYTES: usize = 128;
/// The first slot begins with this line.
const FIRST_LINE: &[u8] = b"outrigger checkpoints 2\n";

const SOURCES: [&str; 2] = ["source", "files"];
const SINKS: [&str; 2] = ["main", "other"];

thread_local! {
    static STATE: (StateDir, PathBuf) = {
        let directory = scratch::directory("checkpoints");
        let state = StateDir::open(&directory, 1 << 20);
        let path = state.path("logs/checkpoints").expect("the directory is writable");
        (state, path)
    };
}

type Key = (u64, FileId, u64);

pub fn run(input: &[u8]) {
    let bytes = file_of(input);
    STATE.with(|(state, path)| {
        std::fs::write(path, &bytes).expect("the scratch directory is writable");
        let known = second_reader(&bytes);
        shape((bucket(known.len()), bytes.len().is_multiple_of(SLOT_BYTES), bucket(bytes.len())));
        let checkpoints = open(state);
        compare(&checkpoints, &known);

        let (file, position) = (FileId { device: 9, inode: 9 }, at(77));
        checkpoints.set("source", file, "main", position);
        let mut expected = known.clone();
        expected.insert((hash("source"), file, hash("main")), position);
        compare(&checkpoints, &expected);
        compare(&open(state), &expected);

        for file in checkpoints.files_of("source") {
            checkpoints.forget("source", file);
        }
        assert!(checkpoints.files_of("source").is_empty());
        expected.retain(|(source, ..), _| *source != hash("source"));
        let again = open(state);
        assert!(
            again.files_of("source").is_empty(),
            "a forgotten file stays forgotten: {:?}",
            again.files_of("source")
        );
        compare(&again, &expected);
        let size = std::fs::metadata(path).map_or(0, |meta| meta.len());
        assert!(size <= ((SLOTS_MAX + 1) * SLOT_BYTES).max(bytes.len()) as u64, "{size} bytes");
    });
}

fn open(state: &StateDir) -> Checkpoints {
    Checkpoints::open(state, None).expect("a readable file opens with any content").0
}

fn at(offset: u64) -> Position {
    let before = Fingerprint { length: 2, hash: 8 };
    Position { offset, fingerprint: Fingerprint { length: 3, hash: 9 }, before, read_to: offset + 1 }
}

fn hash(name: &str) -> u64 {
    fnv1a(name.as_bytes())
}

/// Lines of words, where `*` stands for the checksum of the slot before it, and names of sources and sinks for their hashes.
fn file_of(input: &[u8]) -> Vec<u8> {
    let (words, mut out, width) = match (input.strip_prefix(b"words\n"), input.strip_prefix(b"words 2\n")) {
        (Some(words), _) => (words, Vec::new(), OLD_SLOT_BYTES),
        (None, Some(words)) => {
            let mut header = FIRST_LINE.to_vec();
            header.resize(SLOT_BYTES, 0);
            (words, header, SLOT_BYTES)
        }
        (None, None) => return input.to_vec(),
    };
    let mut text = words.to_vec();
    for name in SOURCES.iter().chain(&SINKS) {
        while let Some(start) = text.windows(name.len()).position(|part| part == name.as_bytes()) {
            text.splice(start..start + name.len(), hash(name).to_string().into_bytes());
        }
    }
    let mut parts = text.split(|byte| *byte == b'*').peekable();
    while let Some(part) = parts.next() {
        out.extend_from_slice(&assemble(&[b"words\n", part].concat()));
        let start = out.len().saturating_sub(width - 8);
        let check = fnv1a(out.get(start..).unwrap_or(&[]));
        if parts.peek().is_some() {
            out.extend_from_slice(&check.to_le_bytes());
        }
    }
    out
}

/// The valid slots; of two with the same key, the later one.
fn second_reader(bytes: &[u8]) -> HashMap<Key, Position> {
    let first = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or(&[]);
    let version = std::str::from_utf8(first).ok().and_then(|line| line.strip_prefix("outrigger checkpoints "));
    match version.filter(|_| first.len() <= LINE_MAX).and_then(|text| text.strip_suffix('\n')?.parse::<u32>().ok()) {
        Some(2) => bytes.chunks_exact(SLOT_BYTES).skip(1).take(SLOTS_MAX).filter_map(slot).collect(),
        Some(_) => HashMap::new(),
        None => bytes.chunks_exact(OLD_SLOT_BYTES).filter_map(old_slot).take(SLOTS_MAX).collect(),
    }
}

/// The longest line with a version.
const LINE_MAX: usize = 64;

/// The numbers of a slot, if the last one is the checksum of the others.
fn numbers(slot: &[u8]) -> Option<Vec<u64>> {
    let numbers: Vec<u64> = slot.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number)).collect();
    (*numbers.last()? == fnv1a(slot.get(..slot.len() - 8)?)).then_some(numbers)
}

fn slot(slot: &[u8]) -> Option<(Key, Position)> {
    let numbers = numbers(slot)?;
    let &[source, device, inode, sink, offset, lengths, print, before, read_to, ..] = &numbers[..] else { return None };
    let fingerprint = Fingerprint { length: lengths as u32, hash: print };
    let before = Fingerprint { length: (lengths >> 32) as u32, hash: before };
    Some(((source, FileId { device, inode }, sink), Position { offset, fingerprint, before, read_to }))
}

fn old_slot(slot: &[u8]) -> Option<(Key, Position)> {
    let numbers = numbers(slot)?;
    let &[source, device, inode, sink, offset, hash, tail, _] = &numbers[..] else { return None };
    let before = Fingerprint { length: 0, hash: fnv1a(&[]) };
    let position = Position { offset, fingerprint: Fingerprint { length: tail as u32, hash }, before, read_to: offset };
    (tail >> 32 == MAGIC).then_some(((source, FileId { device, inode }, sink), position))
}

fn compare(checkpoints: &Checkpoints, expected: &HashMap<Key, Position>) {
    for source in SOURCES {
        let mut files: Vec<FileId> = expected.keys().filter(|key| key.0 == hash(source)).map(|key| key.1).collect();
        files.sort_by_key(|file| (file.device, file.inode));
        files.dedup();
        assert_eq!(checkpoints.files_of(source), files, "the files of `{source}`");
        for (file, sink) in files.into_iter().flat_map(|file| SINKS.map(|sink| (file, sink))) {
            let position = expected.get(&(hash(source), file, hash(sink))).copied();
            assert_eq!(checkpoints.get(source, file, sink), position, "`{source}`, {file:?}, `{sink}`");
        }
    }
}
