//! Framing: splits bytes into lines, independent of the sizes of the reads. In: chunks of one stream with their offsets. Out:
//! batches of complete lines. Limits: a line has at most `max_line_bytes` bytes; a longer line is truncated, marked and counted.

use crate::batch::{Batch, Record, Stream};
use bytes::Bytes;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;
use std::time::SystemTime;

pub struct Framer {
    source: Rc<str>,
    pub file: Option<Rc<str>>,
    stream: Stream,
    stream_id: u64,
    max_line_bytes: usize,
    /// The beginning of a line whose end has not been read yet.
    carry: Vec<u8>,
    /// The offset of the carry's first byte; with an empty carry, of the next byte.
    base: u64,
    /// The tail of a line that was too long is being skipped.
    skipping: bool,
    /// The time of the last record. Times of one stream rise, since some receivers retain only one record of each time.
    last_ns: i64,
}

impl Framer {
    pub fn new(source: Rc<str>, file: Option<Rc<str>>, stream: Stream, max_line_bytes: usize, base: u64) -> Framer {
        let mut hasher = DefaultHasher::new();
        (&source, &file, stream).hash(&mut hasher);
        Framer {
            stream_id: hasher.finish(),
            source,
            file,
            stream,
            max_line_bytes: max_line_bytes.max(1),
            carry: Vec::new(),
            base,
            skipping: false,
            last_ns: 0,
        }
    }

    /// Bytes before `base` were lost: the carried bytes belong to a line without an end.
    pub fn jump(&mut self, base: u64) {
        self.carry.clear();
        self.base = base;
        self.skipping = true;
    }

    /// Takes the next bytes; returns the lines that are now complete, if any.
    pub fn take(&mut self, chunk: &[u8]) -> Option<Batch> {
        let chunk = self.skip(chunk)?;
        let Some(last) = memchr::memrchr(b'\n', chunk) else {
            self.carry.extend_from_slice(chunk);
            return self.overlong();
        };
        let mut bytes = std::mem::take(&mut self.carry);
        bytes.reserve_exact(last + 1);
        bytes.extend_from_slice(chunk.get(..=last).unwrap_or(&[]));
        self.carry.extend_from_slice(chunk.get(last + 1..).unwrap_or(&[]));
        let base = self.base;
        self.base += bytes.len() as u64;
        let mut records = Vec::with_capacity(bytes.len() / 128 + 1);
        let (mut time_ns, mut start) = (self.next_ns(), 0);
        for end in memchr::memchr_iter(b'\n', &bytes) {
            records.push(self.record(&bytes, start, end, time_ns));
            (time_ns, start) = (time_ns + 1, end + 1);
        }
        self.last_ns = time_ns - 1;
        Some(self.batch(Bytes::from(bytes), base, records))
    }

    /// The end of the stream: a last line without a newline is a line too.
    pub fn finish(&mut self) -> Option<Batch> {
        if self.carry.is_empty() || self.skipping {
            return None;
        }
        let bytes = Bytes::from(std::mem::take(&mut self.carry));
        self.last_ns = self.next_ns();
        let (base, record) = (self.base, self.record(&bytes, 0, bytes.len(), self.last_ns));
        self.base += bytes.len() as u64;
        Some(self.batch(bytes, base, vec![record]))
    }

    /// While the tail of an overlong line is skipped: the bytes after its newline.
    fn skip<'c>(&mut self, chunk: &'c [u8]) -> Option<&'c [u8]> {
        if !self.skipping {
            return (!chunk.is_empty()).then_some(chunk);
        }
        let rest = match memchr::memchr(b'\n', chunk) {
            Some(end) => {
                self.skipping = false;
                self.base += end as u64 + 1;
                chunk.get(end + 1..).unwrap_or(&[])
            }
            None => {
                self.base += chunk.len() as u64;
                &[]
            }
        };
        (!rest.is_empty()).then_some(rest)
    }

    /// A line that exceeds the limit before its end was read is delivered now, truncated.
    fn overlong(&mut self) -> Option<Batch> {
        // A CR at the end may be part of the line terminator.
        let ends_in_cr = usize::from(self.carry.last() == Some(&b'\r'));
        if self.carry.len() <= self.max_line_bytes + ends_in_cr {
            return None;
        }
        let line = std::mem::take(&mut self.carry);
        let base = self.base;
        self.base += line.len() as u64;
        self.skipping = true;
        self.last_ns = self.next_ns();
        let mut record = self.record(&line, 0, line.len(), self.last_ns);
        record.truncated = true;
        Some(self.batch(Bytes::from(line), base, vec![record]))
    }

    fn next_ns(&self) -> i64 {
        rising(now_ns(), self.last_ns)
    }

    /// A line without its terminator: LF, or CR LF. A line that is too long is cut between characters.
    fn record(&self, bytes: &[u8], start: usize, end: usize, time_ns: i64) -> Record {
        let line_end = match bytes.get(start..end) {
            Some([.., b'\r']) => end - 1,
            _ => end,
        };
        let mut length = (line_end - start).min(self.max_line_bytes);
        if length < line_end - start {
            // RFC 3629, 3: bytes inside a character begin with the bits 10, and there are at most three.
            let inside = |at: usize| bytes.get(start + at).is_some_and(|byte| byte & 0xc0 == 0x80);
            let least = length.saturating_sub(3);
            length = (least..=length).rev().find(|at| !inside(*at)).filter(|at| *at > 0).unwrap_or(length);
        }
        Record {
            start: start as u32,
            end: (start + length) as u32,
            time_ns,
            own_time: false,
            fields_start: 0,
            fields_end: 0,
            parsed: false,
            truncated: length < line_end - start,
        }
    }

    /// Skips bytes at the beginning of a line that are not part of it.
    pub fn skip_bytes(&mut self, bytes: u64) {
        self.base += bytes;
    }

    /// Whether a line has begun and has no end yet.
    pub fn has_partial_line(&self) -> bool {
        !self.carry.is_empty()
    }

    fn batch(&self, bytes: Bytes, base: u64, records: Vec<Record>) -> Batch {
        Batch {
            bytes,
            base,
            records,
            fields: Vec::new(),
            common: Vec::new(),
            source: self.source.clone(),
            file: self.file.clone(),
            stream: self.stream,
            stream_id: self.stream_id,
            ack: None,
        }
    }
}

/// A time later than the last one, unless the clock was set back.
pub fn rising(time_ns: i64, last_ns: i64) -> i64 {
    const SET_BACK: i64 = 1_000_000_000;
    if last_ns - time_ns > SET_BACK { time_ns } else { time_ns.max(last_ns + 1) }
}

pub fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits the text into chunks of every size; all sizes must return the expected lines.
    fn check(text: &str, max_line_bytes: usize, expect: &[&str]) {
        for size in 1..=text.len().max(1) {
            let mut framer = Framer::new("s".into(), None, Stream::None, max_line_bytes, 1000);
            let mut lines = Vec::new();
            let mut collect = |batch: Option<Batch>| {
                if let Some(batch) = batch {
                    for record in &batch.records {
                        lines.push(String::from_utf8_lossy(batch.line(record)).into_owned());
                        let at = (batch.base + u64::from(record.start) - 1000) as usize;
                        assert_eq!(
                            &text.as_bytes()[at..at + batch.line(record).len()],
                            batch.line(record),
                            "offsets match"
                        );
                    }
                }
            };
            text.as_bytes().chunks(size).for_each(|chunk| collect(framer.take(chunk)));
            collect(framer.finish());
            assert_eq!(lines, expect, "{text:?} in chunks of {size}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_read_sizes() {
        check("one\ntwo\n", 100, &["one", "two"]);
        check("one\n\nlast without end", 100, &["one", "", "last without end"]);
        check("", 100, &[]);
        check("\n", 100, &[""]);
    }

    #[test]
    fn long_line_is_truncated_neighbours_intact() {
        for size in [1, 3, 1000] {
            let text = format!("before\n{}\nafter\n", "x".repeat(50));
            let mut framer = Framer::new("s".into(), None, Stream::None, 10, 0);
            let batches: Vec<Batch> = text.as_bytes().chunks(size).filter_map(|chunk| framer.take(chunk)).collect();
            let lines: Vec<(String, bool)> = batches
                .iter()
                .flat_map(|batch| {
                    batch.records.iter().map(|r| (String::from_utf8_lossy(batch.line(r)).into_owned(), r.truncated))
                })
                .collect();
            assert_eq!(
                lines,
                [("before".into(), false), ("x".repeat(10), true), ("after".into(), false)],
                "chunks of {size}"
            );
        }
    }
}
