//! A new input from old ones. In: an input, another one to splice with, the words of a target. Out: a changed copy, the same for
//! the same seed on every machine. Bound: `input_max` bytes, whatever is repeated or inserted.

/// Numbers from a seed: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to just below `most`; 0 if `most` is 0.
    pub fn below(&mut self, most: usize) -> usize {
        if most == 0 { 0 } else { (self.number() % most as u64) as usize }
    }
}

pub struct Mutator<'a> {
    pub random: Random,
    pub words: &'a [&'a str],
    pub input_max: usize,
}

/// The limits of counters, lengths and types.
const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "-0",
    "00",
    "0x10",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e309",
    "4e-324",
];

const BYTES: [u8; 16] = [0, 1, 9, 10, 13, 31, 32, 34, 37, 47, 92, 0x7f, 0x80, 0xc3, 0xf0, 0xff];

const STEPS_MAX: usize = 6;

/// The most copies of one repetition.
const COPIES_MAX: usize = 300;

impl Mutator<'_> {
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.random.below(STEPS_MAX) {
            self.step(&mut bytes, other);
            bytes.truncate(self.input_max);
        }
        bytes
    }

    fn step(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.random.below(bytes.len() + 1);
        match self.random.below(16) {
            0 => self.flip(bytes),
            1 => self.overwrite(bytes),
            2 => self.insert(bytes, at),
            3 | 4 => self.word(bytes, at),
            5 => drop(bytes.drain(self.range(bytes.len()))),
            6 => bytes.truncate(at),
            7 => self.repeat(bytes),
            8 => self.move_range(bytes, at),
            9 | 10 => self.splice(bytes, other),
            11 | 12 => self.number(bytes),
            13 => self.binary_number(bytes),
            _ => self.lines(bytes),
        }
    }

    /// Short ranges more often than long ones.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.random.below(length + 1);
        let left = length - start;
        let most = if self.random.below(4) == 0 { left } else { left.min(16) };
        start..start + self.random.below(most + 1)
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        let at = self.random.below(bytes.len());
        let bit = self.random.below(8);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }

    fn byte(&mut self) -> u8 {
        match self.random.below(3) {
            0 => self.random.number() as u8,
            _ => BYTES.get(self.random.below(BYTES.len())).copied().unwrap_or(0),
        }
    }

    fn overwrite(&mut self, bytes: &mut [u8]) {
        let (at, new) = (self.random.below(bytes.len()), self.byte());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = new;
        }
    }

    fn insert(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let new = self.byte();
        let count = if self.random.below(8) == 0 { self.random.below(COPIES_MAX) } else { 1 };
        bytes.splice(at..at, std::iter::repeat_n(new, count));
    }

    /// Inserts a word of the target, or replaces something with it.
    fn word(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(word) = self.words.get(self.random.below(self.words.len())) else { return };
        let at = if self.random.below(2) == 0 { at } else { after_punctuation(bytes, at) };
        let end = match self.random.below(3) {
            0 => (at + word.len()).min(bytes.len()),
            1 => token_end(bytes, at),
            _ => at,
        };
        let start = if end > at { token_start(bytes, at).max(at.saturating_sub(word.len())) } else { at };
        bytes.splice(start..end.max(start), word.bytes());
    }

    fn repeat(&mut self, bytes: &mut Vec<u8>) {
        let range = self.range(bytes.len());
        let part = bytes.get(range.clone()).unwrap_or(&[]).to_vec();
        let copies = if self.random.below(4) == 0 { self.random.below(COPIES_MAX) } else { 1 };
        let room = self.input_max.saturating_sub(bytes.len()).checked_div(part.len()).unwrap_or(0);
        bytes.splice(range.end..range.end, part.repeat(copies.min(room)));
    }

    fn move_range(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let range = self.range(bytes.len());
        let part: Vec<u8> = bytes.drain(range).collect();
        let at = at.min(bytes.len());
        bytes.splice(at..at, part);
    }

    fn splice(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let (to, from) = (self.range(bytes.len()), self.range(other.len()));
        let part = other.get(from).unwrap_or(&[]).to_vec();
        bytes.splice(to, part);
    }

    /// Replaces a decimal number with a boundary value, or with a neighbour.
    fn number(&mut self, bytes: &mut Vec<u8>) {
        let from = self.random.below(bytes.len());
        let rest = bytes.get(from..).unwrap_or(&[]);
        let Some(start) = rest.iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
        let digits = bytes.get(start..).unwrap_or(&[]).iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = String::from_utf8_lossy(bytes.get(start..start + digits).unwrap_or(&[])).into_owned();
        let near = text.parse::<u64>().ok().map(|number| match self.random.below(3) {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            _ => number.wrapping_mul(2),
        });
        let new = match near.filter(|_| self.random.below(2) == 0) {
            Some(near) => near.to_string(),
            None => NUMBERS.get(self.random.below(NUMBERS.len())).copied().unwrap_or("0").to_string(),
        };
        bytes.splice(start..start + digits, new.into_bytes());
    }

    /// Overwrites 2, 4 or 8 bytes with a little-endian boundary value.
    fn binary_number(&mut self, bytes: &mut [u8]) {
        let width = 2 << self.random.below(3);
        let edge = match self.random.below(4) {
            0 => u64::MAX,
            1 => 1 << (8 * width - 1),
            2 => u64::MAX >> 1,
            _ => self.random.below(300) as u64,
        };
        let at = self.random.below((bytes.len() + 1).saturating_sub(width));
        if let Some(place) = bytes.get_mut(at..at + width) {
            place.copy_from_slice(edge.to_le_bytes().get(..width).unwrap_or(&[]));
        }
    }

    /// Drops, duplicates or swaps lines.
    fn lines(&mut self, bytes: &mut Vec<u8>) {
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        if lines.is_empty() {
            return;
        }
        let (one, two) = (self.random.below(lines.len()), self.random.below(lines.len()));
        match self.random.below(3) {
            0 => drop(lines.remove(one)),
            1 => lines.insert(two, lines.get(one).cloned().unwrap_or_default()),
            _ => lines.swap(one, two),
        }
        *bytes = lines.concat();
    }
}

/// Where a token may begin: after the next byte that is not part of a token.
fn after_punctuation(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or(&[]);
    rest.iter().position(|byte| !is_token(*byte)).map_or(bytes.len(), |found| at + found + 1)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

fn token_end(bytes: &[u8], at: usize) -> usize {
    at + bytes.get(at..).unwrap_or(&[]).iter().take_while(|byte| is_token(**byte)).count()
}

fn token_start(bytes: &[u8], at: usize) -> usize {
    at - bytes.get(..at).unwrap_or(&[]).iter().rev().take_while(|byte| is_token(**byte)).count()
}
