//! Pooled read buffers, in use only while they contain bytes. In: sockets. Out: bytes. Limits: a buffer grows to the
//! listener's `max_header_bytes`, a pool retains `POOL_MAX` of them per thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

/// Fits most heads, and a page of body.
pub const FIRST_BYTES: usize = 16 << 10;

/// The size of a buffer once a read has filled it: bodies then take fewer reads.
const BULK_BYTES: usize = 128 << 10;

/// Up to this many bytes are copied into an allocation of their exact size during a wait for more.
const FEW_BYTES: usize = 4 << 10;

const POOL_MAX: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not yet consumed: `bytes[start..end]`. It allocates nothing until something is read.
#[derive(Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// A read has filled the entire buffer: a large body is arriving.
    bulk: bool,
}

impl Buffer {
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or(&[])
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Removes bytes at the front; an empty buffer returns to the pool.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.is_empty() {
            self.release();
        }
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        if self.bulk && self.bytes.len() == BULK_BYTES {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() == FIRST_BYTES {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < POOL_MAX {
                    pool.push(bytes);
                }
            });
        }
    }

    /// Room to read into, up to `most` bytes in total. Empty if the buffer is full at that size.
    fn room(&mut self, most: usize) -> &mut [u8] {
        if self.bytes.is_empty() && self.bulk && most >= BULK_BYTES {
            self.bytes = vec![0; BULK_BYTES];
        } else if self.bytes.is_empty() {
            self.bytes = POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; FIRST_BYTES]);
        }
        if self.start > 0 && self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() && self.end < FIRST_BYTES {
            // Bytes in an allocation of their exact size move back to a full-size buffer.
            let mut full = POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; FIRST_BYTES]);
            if let Some(front) = full.get_mut(..self.end) {
                front.copy_from_slice(self.bytes.get(..self.end).unwrap_or(&[]));
            }
            self.bytes = full;
        } else if self.end == self.bytes.len() && self.end < most {
            let grown = (self.bytes.len() * 2).min(most.max(FIRST_BYTES));
            self.bytes.resize(grown, 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or(&mut [])
    }

    /// Reads once, and waits while nothing is available. 0 is the end of the stream, or a buffer that is full at `most`.
    pub async fn read(&mut self, stream: &mut ReadHalf<'_>, most: usize) -> io::Result<usize> {
        poll_fn(|context| {
            // After a read that was shorter than its room, tokio knows that the socket is empty and makes no system call.
            if stream.as_ref().poll_read_ready(context).is_pending() {
                self.shrink();
                return Poll::Pending;
            }
            let room = self.room(most);
            if room.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let mut read = ReadBuf::new(room);
            match Pin::new(&mut *stream).poll_read(context, &mut read) {
                Poll::Ready(Ok(())) => {
                    let count = read.filled().len();
                    self.bulk = count >= FIRST_BYTES;
                    self.end += count;
                    Poll::Ready(Ok(count))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.shrink();
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// While nothing arrives, a connection holds no more memory than its bytes need.
    fn shrink(&mut self) {
        if self.is_empty() {
            self.bulk = false;
            self.release();
        } else if self.bytes.len() >= FIRST_BYTES && self.filled().len() <= FEW_BYTES {
            let few = self.filled().to_vec();
            (self.start, self.end) = (0, 0);
            self.bulk = false;
            self.release();
            self.end = few.len();
            self.bytes = few;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.bulk = false;
        self.release();
    }
}

thread_local! {
    static HEADS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A pooled vector in which a head is assembled, for one request.
pub struct Scratch(pub Vec<u8>);

impl Scratch {
    pub fn lend() -> Scratch {
        Scratch(HEADS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(FIRST_BYTES)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        if bytes.capacity() <= 2 * FIRST_BYTES {
            bytes.clear();
            HEADS.with_borrow_mut(|pool| {
                if pool.len() < POOL_MAX {
                    pool.push(bytes);
                }
            });
        }
    }
}

/// Writes all bytes. A short write waits until the socket accepts more, `idle` at most each time.
pub async fn write_all(stream: &TcpStream, mut bytes: &[u8], idle: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or(&[]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::timeout(idle, poll_fn(|c| stream.poll_write_ready(c)))
                    .await
                    .map_err(|_| io::ErrorKind::TimedOut)??;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
