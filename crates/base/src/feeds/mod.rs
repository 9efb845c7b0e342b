//! Bounded typed channels between subsystems, which never refer to each other; `compose.rs` of the binary creates them. In and
//! out: the payloads below. A full feed rejects items, the sender counts them, and no sender waits: the request path does not
//! block on its own access record.

pub mod revisions;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// Access records from the proxy threads to the logs: JSON objects, one per line.
#[derive(Debug, Default)]
pub struct AccessBatch {
    pub lines: Vec<u8>,
    /// The end of each record in `lines`, including the newline.
    pub ends: Vec<u32>,
}

/// The sending end of a feed, which is limited by bytes.
pub struct FeedSender<T> {
    queue: mpsc::UnboundedSender<(T, usize)>,
    shared: Arc<Shared>,
}

pub struct FeedReceiver<T> {
    queue: mpsc::UnboundedReceiver<(T, usize)>,
    shared: Arc<Shared>,
}

struct Shared {
    bytes: AtomicUsize,
    max_bytes: usize,
    rejected: AtomicU64,
}

/// A feed that buffers at most `max_bytes` bytes of payload.
pub fn feed<T>(max_bytes: usize) -> (FeedSender<T>, FeedReceiver<T>) {
    let shared = Arc::new(Shared { bytes: AtomicUsize::new(0), max_bytes, rejected: AtomicU64::new(0) });
    // Unbounded in items, bounded in bytes by `Shared`: an item has at least one record.
    let (sender, receiver) = mpsc::unbounded_channel();
    (FeedSender { queue: sender, shared: shared.clone() }, FeedReceiver { queue: receiver, shared })
}

impl<T> Clone for FeedSender<T> {
    fn clone(&self) -> Self {
        FeedSender { queue: self.queue.clone(), shared: self.shared.clone() }
    }
}

impl<T> FeedSender<T> {
    /// Sends an item, or counts its records as rejected if the feed is full or its receiver is dropped.
    pub fn offer(&self, item: T, bytes: usize, records: u64) -> bool {
        let before = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes <= self.shared.max_bytes && self.queue.send((item, bytes)).is_ok() {
            return true;
        }
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.rejected.fetch_add(records, Ordering::Relaxed);
        false
    }
}

impl<T> FeedReceiver<T> {
    pub async fn next(&mut self) -> Option<T> {
        let (item, bytes) = self.queue.recv().await?;
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(item)
    }

    pub fn try_next(&mut self) -> Option<T> {
        let (item, bytes) = self.queue.try_recv().ok()?;
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(item)
    }

    /// Records rejected since the last call, for the ledger of the receiver.
    pub fn take_refused(&self) -> u64 {
        self.shared.rejected.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_feed_rejects_and_counts_until_it_is_read() {
        let (sender, mut receiver) = feed::<&str>(10);
        assert!(sender.offer("a", 6, 1));
        assert!(!sender.offer("b", 6, 3));
        assert_eq!(receiver.try_next(), Some("a"));
        assert!(sender.offer("c", 6, 1));
        assert_eq!(receiver.take_refused(), 3);
        assert_eq!(receiver.take_refused(), 0);
        drop(receiver);
        assert!(!sender.offer("d", 1, 1), "a feed without a receiver rejects");
    }
}
