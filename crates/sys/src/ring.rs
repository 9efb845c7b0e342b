//! The capture ring: carries the app's output from the supervisor to the worker, in memory that outlives the worker.
//! In: bytes as read from a pipe. Out: the same bytes in order, and how many were overwritten before they were read.
//! Limits: the capacity set at start. A full ring overwrites the oldest bytes, and the reader learns how many lines were lost.

use crate::shared::{HEADER_BYTES, SLOTS_MAX, SharedHeader, Slot};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Pages below an acknowledged position are released to the system in steps of this size.
const RELEASE_STEP: u64 = 256 << 10;

/// Delivered bytes that stay readable: the last output of an app that crashed.
pub const TAIL_KEPT: u64 = 32 << 10;

/// A ring; the supervisor writes and the worker reads, both through duplicates of one file descriptor.
#[derive(Clone)]
pub struct Ring {
    file: Arc<std::fs::File>,
    header: Arc<SharedHeader>,
    capacity: u64,
}

/// Result of a read.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    pub bytes: usize,
    /// Bytes that were overwritten before this read.
    pub lost: u64,
}

impl Ring {
    /// A ring in memory with no capacity yet: `sized` sets it once the configuration is known.
    pub fn in_memory(name: &str) -> io::Result<Ring> {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, HEADER_BYTES as u64)?;
        // Access to a mapped page that another process truncates raises SIGBUS (mmap(2)): the ring may grow and never shrink.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK)?;
        Ring::over(file)
    }

    /// Opens a ring that another Outrigger process created.
    pub fn over(file: OwnedFd) -> io::Result<Ring> {
        let header = SharedHeader::map(&file)?;
        let capacity = header.get().capacity.load(Ordering::Acquire);
        Ok(Ring { file: Arc::new(file.into()), header: Arc::new(header), capacity })
    }

    /// The same ring with a capacity; the first capacity that was set stays. Both sides call this with the same number, in any
    /// order. Only the header is resident until bytes are written.
    pub fn sized(&self, capacity: u64) -> io::Result<Ring> {
        let known = &self.header.get().capacity;
        let capacity =
            known.compare_exchange(0, capacity, Ordering::AcqRel, Ordering::Acquire).err().unwrap_or(capacity);
        rustix::fs::ftruncate(self.file.as_fd(), HEADER_BYTES as u64 + capacity)?;
        Ok(Ring { capacity, ..self.clone() })
    }

    /// Whether the capacity is set, which implies that the ring has had a writer.
    pub fn is_sized(&self) -> bool {
        self.header.get().capacity.load(Ordering::Acquire) > 0
    }

    /// Appends bytes; never blocks. Of more bytes than the capacity, the last ones are written.
    pub fn push(&self, bytes: &[u8], newlines: u64) -> io::Result<()> {
        let header = self.header.get();
        let head = header.head.load(Ordering::Relaxed);
        let skip = bytes.len().saturating_sub(self.capacity as usize);
        let fitting = bytes.get(skip..).unwrap_or(&[]);
        let start = head + skip as u64;
        let room = (self.capacity - start % self.capacity).min(fitting.len() as u64) as usize;
        let (first, second) = fitting.split_at(room);
        header.writing.store(head + bytes.len() as u64, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.file.write_all_at(first, self.offset(start))?;
        self.file.write_all_at(second, self.offset(start + room as u64))?;
        header.head.store(head + bytes.len() as u64, Ordering::Release);
        header.lines.fetch_add(newlines, Ordering::Release);
        Ok(())
    }

    /// Marks the end of the input.
    pub fn close(&self) {
        self.header.get().closed.store(1, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.header.get().closed.load(Ordering::Acquire) == 1
    }

    pub fn head(&self) -> u64 {
        self.header.get().head.load(Ordering::Acquire)
    }

    /// Copies what follows `position` into the buffer and advances the position past it.
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
            // If the writer wrapped around during the copy, the copy is torn and is repeated from a later position.
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.header.get().writing.load(Ordering::SeqCst).saturating_sub(self.capacity) <= *position {
                *position += wanted as u64;
                return Ok(Read { bytes: wanted, lost });
            }
        }
        Ok(Read { bytes: 0, lost })
    }

    /// The highest position that any worker has read; a restart re-reads bytes before it.
    pub fn read_to(&self) -> u64 {
        self.header.get().read.load(Ordering::Relaxed)
    }

    /// Records that the range up to `position` was read for the first time, and the newlines in it.
    pub fn note_read(&self, position: u64, newlines: u64) {
        let header = self.header.get();
        header.read.fetch_max(position, Ordering::Relaxed);
        header.lines_read.fetch_add(newlines, Ordering::Relaxed);
    }

    /// Once everything is read: how many lines were overwritten before they were read. None while bytes are still unread.
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

    /// Newlines read before a position. The bytes between it and the end of the read range must still be in the ring.
    pub fn lines_read_before(&self, position: u64) -> io::Result<u64> {
        let (read_to, lines) = (self.read_to(), self.header.get().lines_read.load(Ordering::Relaxed));
        Ok(lines.saturating_sub(self.newlines(position, read_to)?))
    }

    /// Lines overwritten between the acknowledged position of a sink and the oldest byte still in the ring, read or not.
    pub fn lines_overwritten(&self, sink: &str, oldest: u64) -> io::Result<u64> {
        let header = self.header.get();
        let (head, lines) = (self.head(), header.lines.load(Ordering::Acquire));
        let retained = self.newlines(oldest, head)?;
        let known = self.lines_acknowledged(sink) + header.lines_lost.load(Ordering::Relaxed);
        Ok(lines.saturating_sub(retained + known))
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

    /// The acknowledged position of a sink, if it has a slot.
    pub fn acknowledged(&self, sink: &str) -> Option<u64> {
        let slot = self.taken_slot(sink)?;
        Some(slot.acknowledged.load(Ordering::Relaxed).min(self.head()))
    }

    /// The newlines read before the acknowledged position of a sink.
    pub fn lines_acknowledged(&self, sink: &str) -> u64 {
        self.taken_slot(sink).map_or(0, |slot| slot.lines.load(Ordering::Relaxed))
    }

    /// Records the acknowledged position of a sink, and the newlines read before it. False if all `SLOTS_MAX` slots are taken by
    /// other sinks.
    pub fn acknowledge(&self, sink: &str, position: u64, lines: u64) -> bool {
        match self.slot(sink) {
            Some(slot) => {
                // A worker that has handed over the ring may still receive a late acknowledgement.
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

    /// Releases the memory between two acknowledged positions, except the newest `TAIL_KEPT` bytes. Returns the end position.
    pub fn release(&self, from: u64, to: u64) -> u64 {
        let to = to.min(self.head().saturating_sub(TAIL_KEPT));
        let to = to - to % RELEASE_STEP;
        // Not near the writer, which may wrap around while the hole is punched.
        if to <= from || self.head().saturating_sub(from) >= self.capacity - self.capacity / 4 {
            return from.max(to);
        }
        let start = from % self.capacity;
        let length = (to - from).min(self.capacity - start);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Without support for holes the memory stays in use up to the capacity, which is the documented limit.
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

    /// The file, passed to a new worker at exec.
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

/// Bytes read at a time to count lines.
const COUNT_CHUNK: usize = 64 << 10;

/// A reader that the writer overtakes this often in one call stops until the next call.
const READ_TRIES: usize = 4;

/// Never zero: zero marks a free slot.
fn owner_of(sink: &str) -> u64 {
    fnv1a(sink.as_bytes()).max(1)
}

/// FNV-1a (draft-eastlake-fnv, section 2): hash of a name or of the start of a file, for persisted positions.
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
    fn bytes_are_read_in_order_over_many_rounds() {
        let ring = ring(32);
        let (mut position, mut sent, mut received) = (0, Vec::new(), Vec::new());
        for round in 0..100u8 {
            let chunk = vec![round; (round % 13) as usize];
            ring.push(&chunk, 0).expect("memory");
            sent.extend_from_slice(&chunk);
            received.extend(read_all(&ring, &mut position).0);
        }
        assert_eq!(sent, received);
    }

    /// Guarantee: overwritten-lines-counted
    #[test]
    fn full_ring_retains_the_newest_and_counts_lost() {
        let ring = ring(16);
        let mut position = 0;
        ring.push(b"one\ntwo\n", 2).expect("memory");
        ring.push(b"three\nfour\nfive\n", 3).expect("memory");
        let (bytes, lost) = read_all(&ring, &mut position);
        assert_eq!((bytes.as_slice(), lost), (&b"three\nfour\nfive\n"[..], 8));
        assert_eq!(ring.take_lines_lost(), None, "not everything is recorded as read");
        ring.note_read(position, 3);
        assert_eq!((ring.take_lines_lost(), ring.take_lines_lost()), (Some(2), Some(0)));
        ring.push(&[b'x'; 40], 0).expect("longer than the ring");
        let (bytes, lost) = read_all(&ring, &mut position);
        assert_eq!((bytes.len(), lost), (16, 24));
    }

    #[test]
    fn lines_overwritten_before_an_ack_are_counted() {
        let ring = ring(16);
        let mut position = 0;
        ring.push(b"a\nb\nc\nd\ne\nf\ng\nh\n", 8).expect("memory");
        read_all(&ring, &mut position);
        ring.note_read(16, 8);
        assert!(ring.acknowledge("main", 4, 2));
        ring.push(b"i\nj\nk\nl\n", 4).expect("memory");
        let mut again = 4;
        let read = ring.read(&mut again, &mut [0u8; 2]).expect("readable");
        assert_eq!((read.lost, again), (4, 10), "c and d are overwritten");
        assert_eq!(ring.lines_read_before(8).expect("readable"), 4);
        assert_eq!(ring.lines_overwritten("main", 8).expect("readable"), 2);
        ring.note_read(24, 4);
        assert_eq!(ring.take_lines_lost(), Some(0), "the lines were read once");
    }

    #[test]
    fn sink_positions_outlive_the_reader() {
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
    fn reading_continues_after_a_released_range() {
        let ring = ring(1 << 20);
        ring.push(&vec![b'a'; 512 << 10], 0).expect("memory");
        assert_eq!(ring.release(0, 300 << 10), 256 << 10);
        ring.push(b"tail", 0).expect("memory");
        let mut position = 512 << 10;
        assert_eq!(read_all(&ring, &mut position).0, b"tail");
    }
}
