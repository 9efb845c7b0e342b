//! One output stream of the app: pipe or terminal → ring, and → Outrigger's stdout or stderr, unchanged. In: readiness of the
//! pipe. Out: every byte in the ring, and passed through. Limits: one chunk of `CHUNK` bytes waits for a slow reader of the
//! output; then the pipe is not read, and the app blocks as it would without Outrigger. (tee(2) would save a copy, but its shared
//! pages cannot be merged: a pipe would be full after 16 small lines.)

use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::ready::{PIPE_BUF, is_writable};
use sys::ring::Ring;

const CHUNK: usize = 64 << 10;

/// A pipe holds 64 KiB, unless its owner raised that to up to 1 MiB (fs.pipe-max-size).
const LAST_CHUNKS: usize = 17;

/// The result of one step of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read again when the pipe has more.
    Moved,
    /// Outrigger's output accepts nothing now.
    Blocked,
    /// The pipe is at its end, or Outrigger's output has no reader any more: the stream is closed.
    Closed,
}

/// The type of Outrigger's output, which decides how it is written to without blocking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A pipe or terminal with its own open file description, which may be non-blocking: a stopped one accepts nothing.
    Reopened,
    /// A pipe that cannot be reopened.
    Pipe,
    /// For instance under systemd, whose journal reads it.
    Socket,
    /// A file or a terminal: it accepts all that is written.
    Other,
}

pub struct Stream {
    pipe: Option<OwnedFd>,
    output: BorrowedFd<'static>,
    /// The same output with its own open file description.
    reopened: Option<OwnedFd>,
    kind: Kind,
    /// None if the output is passed through and not captured.
    ring: Option<Ring>,
    buffer: Box<[u8]>,
    /// The part of `buffer` that Outrigger's output has not accepted yet.
    waiting: std::ops::Range<usize>,
}

impl Stream {
    /// A stream without an app yet.
    pub fn new(output: BorrowedFd<'static>, ring: Option<Ring>) -> Stream {
        let kind = rustix::fs::fstat(output).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        let kind = match kind {
            Ok(rustix::fs::FileType::Fifo) => Kind::Pipe,
            Ok(rustix::fs::FileType::Socket) => Kind::Socket,
            _ => Kind::Other,
        };
        let may_stop = kind == Kind::Pipe || rustix::termios::isatty(output);
        let reopened = if may_stop { reopen(output) } else { None };
        let kind = if reopened.is_some() { Kind::Reopened } else { kind };
        let buffer = vec![0; CHUNK].into_boxed_slice();
        Stream { pipe: None, output, reopened, kind, ring, buffer, waiting: 0..0 }
    }

    /// Creates a pipe for the next start of the app; returns the app's end, which the app's user may reopen.
    pub fn attach(&mut self, user: Option<&sys::process::User>) -> io::Result<OwnedFd> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // An app that drops its privileges itself, as nginx does for its workers, must still be able to open /dev/stdout.
        let _ = rustix::fs::fchmod(&write, rustix::fs::Mode::from_raw_mode(0o622));
        if let Some(user) = user {
            let _ = rustix::fs::fchown(
                &write,
                Some(rustix::fs::Uid::from_raw(user.uid)),
                Some(rustix::fs::Gid::from_raw(user.gid)),
            );
        }
        self.read_from(read)?;
        Ok(write)
    }

    /// Reads from this descriptor from now on: a pipe, or a side of a pseudo-terminal. The previous one is drained and closed.
    pub fn read_from(&mut self, source: OwnedFd) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&source, rustix::fs::OFlags::NONBLOCK)?;
        if self.pipe.is_some() {
            self.drain_and_close();
        }
        self.pipe = Some(source);
        Ok(())
    }

    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Outrigger's output, if bytes wait for it to accept more.
    pub fn blocked_output(&self) -> Option<BorrowedFd<'_>> {
        let blocked = self.pipe.is_some() && !self.waiting.is_empty();
        blocked.then_some(self.effective_output())
    }

    fn effective_output(&self) -> BorrowedFd<'_> {
        self.reopened.as_ref().map_or(self.output, AsFd::as_fd)
    }

    /// Moves one chunk. The ring can fail only on a machine without memory, and then the app keeps running.
    pub fn step(&mut self) -> Step {
        if !self.waiting.is_empty() && self.pass_on() != Step::Moved {
            return self.closed_or_blocked();
        }
        let Some(pipe) = &self.pipe else { return Step::Closed };
        match rustix::io::read(pipe, &mut self.buffer[..]) {
            Ok(0) => self.close(),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or(&[]);
                if let Some(ring) = &self.ring {
                    let newlines = memchr::memchr_iter(b'\n', bytes).count() as u64;
                    let _ = ring.push(bytes, newlines);
                }
                self.waiting = 0..count;
                match self.pass_on() {
                    Step::Closed => self.close(),
                    step => step,
                }
            }
            Err(Errno::AGAIN) => Step::Blocked,
            Err(Errno::INTR) => Step::Moved,
            Err(_) => self.close(),
        }
    }

    fn closed_or_blocked(&mut self) -> Step {
        if self.pipe.is_none() { Step::Closed } else { Step::Blocked }
    }

    /// Writes the waiting bytes to Outrigger's output. O_NONBLOCK is never set on a description that other processes share. A
    /// pipe that cannot be reopened accepts PIPE_BUF bytes without blocking if poll reports it writable (pipe(7)) and no other
    /// writer is faster; any other output accepts all that is written.
    fn pass_on(&mut self) -> Step {
        while !self.waiting.is_empty() {
            if matches!(self.kind, Kind::Pipe | Kind::Socket) && !is_writable(self.effective_output()) {
                return Step::Blocked;
            }
            let most = if self.kind == Kind::Pipe { PIPE_BUF } else { CHUNK };
            let end = self.waiting.end.min(self.waiting.start + most);
            let bytes = &self.buffer[self.waiting.start..end];
            let written = match self.kind {
                Kind::Socket => {
                    rustix::net::send(self.effective_output(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
                }
                Kind::Reopened | Kind::Pipe | Kind::Other => rustix::io::write(self.effective_output(), bytes),
            };
            match written {
                Ok(count) => self.waiting.start += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Step::Blocked,
                Err(Errno::PIPE) => {
                    self.close();
                    return Step::Closed;
                }
                // A full disk or a lost terminal of Outrigger's stdout must not stop the app.
                Err(_) => self.waiting.start = self.waiting.end,
            }
        }
        Step::Moved
    }

    /// The time after the app's exit has expired: what is still in the pipe goes into the ring, and as much of it to Outrigger's
    /// output as that accepts immediately. Limit: `LAST_CHUNKS`.
    pub fn drain_and_close(&mut self) {
        for _ in 0..LAST_CHUNKS {
            let _ = self.pass_on();
            self.waiting = 0..0;
            if self.pipe.is_none() || self.step() == Step::Closed {
                return;
            }
        }
        self.close();
    }

    /// Closes the pipe. If Outrigger's output lost its reader, the app now gets SIGPIPE, as it would without Outrigger.
    fn close(&mut self) -> Step {
        self.pipe = None;
        Step::Closed
    }

    /// After the app's last run: no reader of the ring needs to wait for more.
    pub fn finish(&mut self) {
        self.drain_and_close();
        self.ring.iter().for_each(Ring::close);
    }
}

/// Reopens the pipe or terminal with O_NONBLOCK. The flag is set only on this open file description, which no other process has.
fn reopen(output: BorrowedFd<'_>) -> Option<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&output));
    open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> (Stream, OwnedFd, OwnedFd, Ring) {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        // The stream borrows its output for the lifetime of the process; the test leaks one descriptor for that.
        let output: &'static OwnedFd = Box::leak(Box::new(write));
        let ring = Ring::in_memory("test").and_then(|ring| ring.sized(1 << 20)).expect("memfd");
        let mut stream = Stream::new(output.as_fd(), Some(ring.clone()));
        let app = stream.attach(None).expect("a pipe");
        (stream, app, read, ring)
    }

    #[test]
    fn app_output_is_captured_and_passed_unchanged() {
        let (mut stream, app, seen, ring) = stream();
        rustix::io::write(&app, b"a line\nhalf").expect("the pipe has room");
        assert!(stream.step() == Step::Moved);
        let mut buffer = [0; 64];
        let count = rustix::io::read(&seen, &mut buffer).expect("passed through");
        assert_eq!(&buffer[..count], b"a line\nhalf");
        let (mut position, mut copy) = (0, [0; 64]);
        assert_eq!(ring.read(&mut position, &mut copy).expect("readable").bytes, 11);
        ring.note_read(position, 1);
        assert_eq!(ring.take_lines_lost(), Some(0), "one newline was written");
        drop(app);
        assert!(stream.step() == Step::Closed);
        assert!(!ring.is_closed(), "an app that is started again writes to the same ring");
        let second = stream.attach(None).expect("another pipe");
        rustix::io::write(&second, b"and on\n").expect("the pipe has room");
        stream.finish();
        assert_eq!((ring.head(), ring.is_closed()), (18, true), "what was in the pipe is in the ring");
    }

    #[test]
    fn stalled_reader_blocks_only_the_app() {
        let (mut stream, app, seen, _ring) = stream();
        rustix::fs::fcntl_setfl(&app, rustix::fs::OFlags::NONBLOCK).expect("a flag");
        let chunk = [b'x'; 4096];
        let mut written = 0;
        loop {
            let step = stream.step();
            match rustix::io::write(&app, &chunk) {
                Ok(count) => written += count,
                Err(_) if step == Step::Blocked => break,
                Err(_) => {}
            }
        }
        assert!(stream.blocked_output().is_some(), "bytes wait for the output");
        let (mut passed, mut buffer) = (0, [0; 8192]);
        drop(app);
        while stream.step() != Step::Closed || passed < written {
            passed += rustix::io::read(&seen, &mut buffer).expect("open");
        }
        assert_eq!(passed, written, "nothing is lost");
    }

    #[test]
    fn app_gets_epipe_if_the_output_has_no_reader() {
        let (mut stream, app, seen, _ring) = stream();
        drop(seen);
        rustix::io::write(&app, b"x").expect("the pipe has room");
        assert!(stream.step() == Step::Closed);
        assert!(matches!(rustix::io::write(&app, b"y"), Err(Errno::PIPE)));
    }
}
