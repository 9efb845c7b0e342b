//! The capture ring: the app's bytes on their way from the supervisor to the worker, in memory that outlives the worker.
//! In: bytes as they came from a pipe. Out: the same bytes in order, and how many were overwritten before they were read.
//! Bound: the capacity chosen at start; when it is full the oldest bytes go, and the reader learns how many lines that were.

use crate::shared::{HEADER_BYTES, SLOTS_MAX, SharedHeader, Slot};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages below an acknowledged position are given back to the system in steps of this size.
const RELEASE_STEP: u64 = 256 << 10;

/// What was delivered and still can be read: the last words of an app that crashed.
pub const TAIL_KEPT: u64 = 32 << 10;

/// A ring; the supervisor writes, the worker reads, both through copies of one descriptor.
#[derive(Clone)]
pub struct Ring {
    file: Arc<std::fs::File>,
    header: Arc<SharedHeader>,
    capacity: u64,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    pub bytes: usize,
    /// Bytes that were overwritten before this read.
    pub lost: u64,
}

impl Ring {
    /// A ring in memory without room for any byte yet: `sized` gives it that, once the configuration is known.
    pub fn in_memory(name: &str) -> io::Result<Ring> {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, HEADER_BYTES as u64)?;
        // Whoever maps a page that another process cuts off dies of SIGBUS (mmap(2)): the ring may grow and never shrink.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK)?;
        Ring::over(file)
    }

    /// The ring that another process of ours made.
    pub fn over(file: OwnedFd) -> io::Result<Ring> {
        let header = SharedHeader::map(&file)?;
        let capacity = header.get().capacity.load(Ordering::Acquire);
        Ok(Ring { file: Arc::new(file.into()), header: Arc::new(header), capacity })
    }

    /// The same ring with a capacity; the one it was first given stays. Both sides call this with the same number, in any
    /// order. Nothing but the header is resident until bytes are written.
    pub fn sized(&self, capacity: u64) -> io::Result<Ring> {
        let known = &self.header.get().capacity;
        let capacity =
            known.compare_exchange(0, capacity, Ordering::AcqRel, Ordering::Acquire).err().unwrap_or(capacity);
        rustix::fs::ftruncate(self.file.as_fd(), HEADER_BYTES as u64 + capacity)?;
        Ok(Ring { capacity, ..self.clone() })
    }

    /// Whether it has been given a capacity, and so has had a writer.
    pub fn is_sized(&self) -> bool {
        self.header.get().capacity.load(Ordering::Acquire) > 0
    }

    /// Appends bytes; never blocks. More than the capacity keeps the last part.
    pub fn push(&self, bytes: &[u8], newlines: u64) -> io::Result<()> {
        let header = self.header.get();
        let head = header.head.load(Ordering::Relaxed);
        let skip = bytes.len().saturating_sub(self.capacity as usize);
        let kept = bytes.get(skip..).unwrap_or(&[]);
        let start = head + skip as u64;
        let room = (self.capacity - start % self.capacity).min(kept.len() as u64) as usize;
        let (first, second) = kept.split_at(room);
        header.writing.store(head + bytes.len() as u64, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.file.write_all_at(first, self.offset(start))?;
        self.file.write_all_at(second, self.offset(start + room as u64))?;
        header.head.store(head + bytes.len() as u64, Ordering::Release);
        header.lines.fetch_add(newlines, Ordering::Release);
        Ok(())
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.header.get().closed.store(1, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.header.get().closed.load(Ordering::Acquire) == 1
    }

    pub fn head(&self) -> u64 {
        self.header.get().head.load(Ordering::Acquire)
    }

    /// Copies what follows `position` into the buffer and moves the position behind it.
    pub fn read(&self, position: &mut u64, buffer: &mut [u8]) -> io::Result<Read> {
        let mut lost = 0;
        for _ in 0..READ_TRIES {
            let head = self.head();
            let oldest =
                self.header.get().writing.load(Ordering::SeqCst).max(head).saturating_sub(self.capacity).min(head);
            if *position < oldest || *position > head {
                lost += oldest.saturating_sub(*position);
                *position = oldest;
            }
            let start = *position % self.capacity;
            let wanted = (head - *position).min(self.capacity - start).min(buffer.len() as u64) as usize;
            let target = buffer.get_mut(..wanted).unwrap_or(&mut []);
            self.file.read_exact_at(target, self.offset(*position))?;
            // The writer may have come round while we copied: then what we have is torn, and is read again from later on.
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.header.get().writing.load(Ordering::SeqCst).saturating_sub(self.capacity) <= *position {
                *position += wanted as u64;
                return Ok(Read { bytes: wanted, lost });
            }
        }
        Ok(Read { bytes: 0, lost })
    }

    /// How far any worker has read: what lies before it is read again after a restart.
    pub fn read_to(&self) -> u64 {
        self.header.get().read.load(Ordering::Relaxed)
    }

    /// Notes that the range up to `position` was read for the first time, and the newlines in it.
    pub fn note_read(&self, position: u64, newlines: u64) {
        let header = self.header.get();
        header.read.fetch_max(position, Ordering::Relaxed);
        header.lines_read.fetch_add(newlines, Ordering::Relaxed);
    }

    /// Once everything is read: how many lines were overwritten before they could be. None while bytes are still to come.
    pub fn take_lines_lost(&self) -> Option<u64> {
        let header = self.header.get();
        let (before, lines) = (self.head(), header.lines.load(Ordering::Acquire));
        if before != self.read_to() || before != self.head() {
            return None;
        }
        let known = header.lines_read.load(Ordering::Relaxed) + header.lines_lost.load(Ordering::Relaxed);
        let lost = lines.saturating_sub(known);
        header.lines_lost.fetch_add(lost, Ordering::Relaxed);
        Some(lost)
    }

    /// Newlines among what was read before a position. What lies between it and the end of what was read must still be there.
    pub fn lines_read_before(&self, position: u64) -> io::Result<u64> {
        let (read_to, lines) = (self.read_to(), self.header.get().lines_read.load(Ordering::Relaxed));
        Ok(lines.saturating_sub(self.newlines(position, read_to)?))
    }

    /// Lines that are gone between what a sink has acknowledged and the oldest byte that is still here, read or not.
    pub fn lines_overwritten(&self, sink: &str, oldest: u64) -> io::Result<u64> {
        let header = self.header.get();
        let (head, lines) = (self.head(), header.lines.load(Ordering::Acquire));
        let here = self.newlines(oldest, head)?;
        let known = self.lines_acknowledged(sink) + header.lines_lost.load(Ordering::Relaxed);
        Ok(lines.saturating_sub(here + known))
    }

    fn newlines(&self, from: u64, to: u64) -> io::Result<u64> {
        let (mut position, mut count) = (from, 0);
        let mut chunk = vec![0u8; COUNT_CHUNK];
        while position < to {
            let room = (to - position).min(COUNT_CHUNK as u64) as usize;
            match self.read(&mut position, chunk.get_mut(..room).unwrap_or(&mut []))?.bytes {
                0 => break,
                bytes => {
                    count += chunk.get(..bytes).unwrap_or(&[]).iter().filter(|byte| **byte == b'\n').count() as u64
                }
            }
        }
        Ok(count)
    }

    /// How far a sink has acknowledged, if it has a position here.
    pub fn acknowledged(&self, sink: &str) -> Option<u64> {
        let slot = self.taken_slot(sink)?;
        Some(slot.acknowledged.load(Ordering::Relaxed).min(self.head()))
    }

    /// The newlines that were read before what a sink has acknowledged.
    pub fn lines_acknowledged(&self, sink: &str) -> u64 {
        self.taken_slot(sink).map_or(0, |slot| slot.lines.load(Ordering::Relaxed))
    }

    /// Notes how far a sink has acknowledged, and the newlines that were read before that. False where all `SLOTS_MAX` places are
    /// taken by other sinks.
    pub fn acknowledge(&self, sink: &str, position: u64, lines: u64) -> bool {
        match self.slot(sink) {
            Some(slot) => {
                // A worker that has given the ring over may still hear of a late delivery.
                slot.acknowledged.fetch_max(position, Ordering::Release);
                slot.lines.fetch_max(lines, Ordering::Release);
                true
            }
            None => false,
        }
    }

    fn taken_slot(&self, sink: &str) -> Option<&Slot> {
        let owner = owner_of(sink);
        self.header.get().slots.iter().find(|slot| slot.owner.load(Ordering::Relaxed) == owner)
    }

    fn slot(&self, sink: &str) -> Option<&Slot> {
        self.taken_slot(sink).or_else(|| {
            let owner = owner_of(sink);
            let slots = self.header.get().slots.iter();
            slots
                .take(SLOTS_MAX)
                .find(|slot| slot.owner.compare_exchange(0, owner, Ordering::Relaxed, Ordering::Relaxed).is_ok())
        })
    }

    /// Gives the memory between two acknowledged positions back, but for the newest `TAIL_KEPT` bytes. Answers how far it came.
    pub fn release(&self, from: u64, to: u64) -> u64 {
        let to = to.min(self.head().saturating_sub(TAIL_KEPT));
        let to = to - to % RELEASE_STEP;
        // Not near the writer, which may come round while the hole is made.
        if to <= from || self.head().saturating_sub(from) >= self.capacity - self.capacity / 4 {
            return from.max(to);
        }
        let start = from % self.capacity;
        let length = (to - from).min(self.capacity - start);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where holes are not supported the memory stays in use up to the capacity, which is the stated bound.
        let _ = rustix::fs::fallocate(self.file.as_fd(), flags, self.offset(from), length);
        from + length
    }

    /// The newest bytes, delivered or not, at most `TAIL_KEPT`.
    pub fn tail(&self) -> io::Result<Vec<u8>> {
        let mut position = self.head().saturating_sub(TAIL_KEPT.min(self.capacity));
        let mut tail = vec![0; TAIL_KEPT as usize];
        let mut count = 0;
        while let Some(rest) = tail.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match self.read(&mut position, rest)?.bytes {
                0 => break,
                more => count += more,
            }
        }
        tail.truncate(count);
        Ok(tail)
    }

    /// The descriptor, for a worker that is executed anew.
    pub fn file(&self) -> &std::fs::File {
        &self.file
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    fn offset(&self, position: u64) -> u64 {
        HEADER_BYTES as u64 + position % self.capacity
    }
}

/// How much is read at a time to count lines.
const COUNT_CHUNK: usize = 64 << 10;

/// A reader that is overtaken this often in one call gives up until the next.
const READ_TRIES: usize = 4;

/// Never zero: zero marks a free slot.
fn owner_of(sink: &str) -> u64 {
    fnv1a(sink.as_bytes()).max(1)
}

/// FNV-1a (draft-eastlake-fnv, section 2): a name or the beginning of a file as a number, for positions that are kept.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(capacity: u64) -> Ring {
        Ring::in_memory("test").and_then(|ring| ring.sized(capacity)).expect("memfd")
    }

    fn read_all(ring: &Ring, position: &mut u64) -> (Vec<u8>, u64) {
        let (mut all, mut lost, mut buffer) = (Vec::new(), 0, [0u8; 7]);
        loop {
            let read = ring.read(position, &mut buffer).expect("readable");
            lost += read.lost;
            if read.bytes == 0 {
                return (all, lost);
            }
            all.extend_from_slice(&buffer[..read.bytes]);
        }
    }

    #[test]
    fn bytes_come_out_in_order_over_many_rounds() {
        let ring = ring(32);
        let (mut position, mut sent, mut got) = (0, Vec::new(), Vec::new());
        for round in 0..100u8 {
            let chunk = vec![round; (round % 13) as usize];
            ring.push(&chunk, 0).expect("memory");
            sent.extend_from_slice(&chunk);
            got.extend(read_all(&ring, &mut position).0);
        }
        assert_eq!(sent, got);
    }

    /// Guarantee: overwritten-lines-counted
    #[test]
    fn a_full_ring_keeps_the_newest_and_counts_what_went() {
        let ring = ring(16);
        let mut position = 0;
        ring.push(b"one\ntwo\n", 2).expect("memory");
        ring.push(b"three\nfour\nfive\n", 3).expect("memory");
        let (bytes, lost) = read_all(&ring, &mut position);
        assert_eq!((bytes.as_slice(), lost), (&b"three\nfour\nfive\n"[..], 8));
        assert_eq!(ring.take_lines_lost(), None, "not all was noted as read");
        ring.note_read(position, 3);
        assert_eq!((ring.take_lines_lost(), ring.take_lines_lost()), (Some(2), Some(0)));
        ring.push(&[b'x'; 40], 0).expect("longer than the ring");
        let (bytes, lost) = read_all(&ring, &mut position);
        assert_eq!((bytes.len(), lost), (16, 24));
    }

    #[test]
    fn lines_that_were_read_and_overwritten_before_they_were_acknowledged_are_known() {
        let ring = ring(16);
        let mut position = 0;
        ring.push(b"a\nb\nc\nd\ne\nf\ng\nh\n", 8).expect("memory");
        read_all(&ring, &mut position);
        ring.note_read(16, 8);
        assert!(ring.acknowledge("main", 4, 2));
        ring.push(b"i\nj\nk\nl\n", 4).expect("memory");
        let mut again = 4;
        let read = ring.read(&mut again, &mut [0u8; 2]).expect("readable");
        assert_eq!((read.lost, again), (4, 10), "c and d are gone");
        assert_eq!(ring.lines_read_before(8).expect("readable"), 4);
        assert_eq!(ring.lines_overwritten("main", 8).expect("readable"), 2);
        ring.note_read(24, 4);
        assert_eq!(ring.take_lines_lost(), Some(0), "they were read once");
    }

    #[test]
    fn positions_of_sinks_outlive_the_reader() {
        let ring = ring(1024);
        ring.push(&[b'x'; 100], 0).expect("memory");
        assert_eq!(ring.acknowledged("main"), None);
        assert!(ring.acknowledge("main", 60, 6) && ring.acknowledge("copy", 10, 1));
        let next_worker = ring.clone();
        assert_eq!((next_worker.acknowledged("main"), next_worker.acknowledged("copy")), (Some(60), Some(10)));
        for sink in 0..SLOTS_MAX - 2 {
            assert!(ring.acknowledge(&format!("s{sink}"), 1, 0));
        }
        assert!(!ring.acknowledge("one too many", 1, 0));
    }

    #[test]
    fn a_released_range_reads_on_behind_it() {
        let ring = ring(1 << 20);
        ring.push(&vec![b'a'; 512 << 10], 0).expect("memory");
        assert_eq!(ring.release(0, 300 << 10), 256 << 10);
        ring.push(b"tail", 0).expect("memory");
        let mut position = 512 << 10;
        assert_eq!(read_all(&ring, &mut position).0, b"tail");
    }
}
