//! The current input, recorded before it is run: if the process crashes or hangs, the watching process reads it from here.
//! In: inputs. Out: a number that increases with each, and the bytes. Bound: one file, written in place.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The number and the length before the bytes.
const HEAD: usize = 16;

pub struct Desk {
    file: Option<File>,
    number: u64,
    buffer: Vec<u8>,
}

impl Desk {
    pub fn open(path: &Path) -> io::Result<Desk> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        Ok(Desk { file: Some(file), number: 0, buffer: Vec::new() })
    }

    /// For a loop without a watching process.
    pub fn none() -> Desk {
        Desk { file: None, number: 0, buffer: Vec::new() }
    }

    pub fn put(&mut self, input: &[u8]) {
        let Some(file) = &self.file else { return };
        self.number += 1;
        self.buffer.clear();
        self.buffer.extend_from_slice(&self.number.to_le_bytes());
        self.buffer.extend_from_slice(&(input.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(input);
        file.write_all_at(&self.buffer, 0).expect("the scratch directory is writable");
    }
}

/// The number of the last recorded input, and the input.
pub fn read(path: &Path) -> Option<(u64, Vec<u8>)> {
    let bytes = std::fs::read(path).ok()?;
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let input = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    Some((u64::from_le_bytes(*number), input.to_vec()))
}

/// Only the number.
pub fn number(path: &Path) -> Option<u64> {
    let mut head = [0; HEAD];
    File::open(path).ok()?.read_exact_at(&mut head, 0).ok()?;
    head.first_chunk::<8>().map(|number| u64::from_le_bytes(*number))
}
