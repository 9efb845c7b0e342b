//! One stream of the app on its way through: pipe or terminal → ring, and → our own stdout or stderr as it was. In: readiness of
//! the pipe. Out: every byte in the ring, and passed through. Bound: one chunk of `CHUNK` bytes waits for a slow reader of our
//! output; then the pipe is not read, and the app waits as it would without us. (tee(2) would spare a copy, but its shared
//! pages cannot be merged: a pipe would be full after 16 small lines.)

use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::ready::{PIPE_BUF, is_writable};
use sys::ring::Ring;

const CHUNK: usize = 64 << 10;

/// A pipe holds 64 KiB, unless its owner asked for up to 1 MiB (fs.pipe-max-size).
const LAST_CHUNKS: usize = 17;

/// What one step of a stream led to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read again when the pipe has more.
    Moved,
    /// Our own output takes nothing now.
    Blocked,
    /// The pipe is at its end, or our output has no reader any more: the stream is over.
    Over,
}

/// What our own output is, which decides how it is written to without blocking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A pipe or terminal as a description of our own, on which we may refuse to wait: one that is stopped takes nothing.
    Own,
    /// A pipe that may not be opened anew.
    Pipe,
    /// As under systemd, whose journal reads it.
    Socket,
    /// A file or a terminal: it takes what it is given.
    Other,
}

pub struct Stream {
    pipe: Option<OwnedFd>,
    output: BorrowedFd<'static>,
    /// The same as a description of our own.
    own: Option<OwnedFd>,
    kind: Kind,
    /// None where the output is passed on and not captured.
    ring: Option<Ring>,
    buffer: Box<[u8]>,
    /// The part of `buffer` that our own output has not taken yet.
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
        let own = if may_stop { reopened(output) } else { None };
        let kind = if own.is_some() { Kind::Own } else { kind };
        let buffer = vec![0; CHUNK].into_boxed_slice();
        Stream { pipe: None, output, own, kind, ring, buffer, waiting: 0..0 }
    }

    /// Makes a pipe for the next app; answers the end that it gets, which the user that it becomes may open anew.
    pub fn attach(&mut self, user: Option<&sys::process::User>) -> io::Result<OwnedFd> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // An app that gives up its rights itself, as nginx does for its workers, must still be able to open /dev/stdout.
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

    /// Reads from this descriptor from now on: a pipe, or a terminal's other side. What the one before still held is over.
    pub fn read_from(&mut self, source: OwnedFd) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&source, rustix::fs::OFlags::NONBLOCK)?;
        if self.pipe.is_some() {
            self.cut();
        }
        self.pipe = Some(source);
        Ok(())
    }

    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Our output, where something waits for it to take more.
    pub fn blocked_output(&self) -> Option<BorrowedFd<'_>> {
        let blocked = self.pipe.is_some() && !self.waiting.is_empty();
        blocked.then_some(self.taker())
    }

    fn taker(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or(self.output, AsFd::as_fd)
    }

    /// Moves one chunk. Errors of the ring are not possible short of a machine without memory, and then the app goes on.
    pub fn step(&mut self) -> Step {
        if !self.waiting.is_empty() && self.pass_on() != Step::Moved {
            return self.end_if_over();
        }
        let Some(pipe) = &self.pipe else { return Step::Over };
        match rustix::io::read(pipe, &mut self.buffer[..]) {
            Ok(0) => self.over(),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or(&[]);
                if let Some(ring) = &self.ring {
                    let newlines = memchr::memchr_iter(b'\n', bytes).count() as u64;
                    let _ = ring.push(bytes, newlines);
                }
                self.waiting = 0..count;
                match self.pass_on() {
                    Step::Over => self.over(),
                    step => step,
                }
            }
            Err(Errno::AGAIN) => Step::Blocked,
            Err(Errno::INTR) => Step::Moved,
            Err(_) => self.over(),
        }
    }

    fn end_if_over(&mut self) -> Step {
        if self.pipe.is_none() { Step::Over } else { Step::Blocked }
    }

    /// Writes what waits to our own output. O_NONBLOCK is never set on what we share with others. A pipe that may not be opened
    /// anew takes PIPE_BUF bytes without blocking when poll says so (pipe(7)) and nobody else is quicker; anything else takes what
    /// it is given.
    fn pass_on(&mut self) -> Step {
        while !self.waiting.is_empty() {
            if matches!(self.kind, Kind::Pipe | Kind::Socket) && !is_writable(self.taker()) {
                return Step::Blocked;
            }
            let most = if self.kind == Kind::Pipe { PIPE_BUF } else { CHUNK };
            let end = self.waiting.end.min(self.waiting.start + most);
            let bytes = &self.buffer[self.waiting.start..end];
            let written = match self.kind {
                Kind::Socket => rustix::net::send(self.taker(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
                Kind::Own | Kind::Pipe | Kind::Other => rustix::io::write(self.taker(), bytes),
            };
            match written {
                Ok(count) => self.waiting.start += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Step::Blocked,
                Err(Errno::PIPE) => {
                    self.over();
                    return Step::Over;
                }
                // A full disk or a lost terminal under our stdout must not stop the app.
                Err(_) => self.waiting.start = self.waiting.end,
            }
        }
        Step::Moved
    }

    /// The end of the time after the app's end: what is still in the pipe goes into the ring, and as much of it to our output
    /// as that takes at once. Bound: `LAST_CHUNKS`.
    pub fn cut(&mut self) {
        for _ in 0..LAST_CHUNKS {
            let _ = self.pass_on();
            self.waiting = 0..0;
            if self.pipe.is_none() || self.step() == Step::Over {
                return;
            }
        }
        self.over();
    }

    /// Closes the pipe. Where our output lost its reader, the app now gets the SIGPIPE that it would have got without us.
    fn over(&mut self) -> Step {
        self.pipe = None;
        Step::Over
    }

    /// After the last app: no reader of the ring needs to wait for more.
    pub fn finish(&mut self) {
        self.cut();
        self.ring.iter().for_each(Ring::close);
    }
}

/// The same pipe or terminal, opened once more without blocking. The flag is on this description alone, and on nobody else's.
fn reopened(output: BorrowedFd<'_>) -> Option<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&output));
    open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> (Stream, OwnedFd, OwnedFd, Ring) {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        // The stream borrows its output for the life of the process; the test leaks one descriptor for that.
        let output: &'static OwnedFd = Box::leak(Box::new(write));
        let ring = Ring::in_memory("test").and_then(|ring| ring.sized(1 << 20)).expect("memfd");
        let mut stream = Stream::new(output.as_fd(), Some(ring.clone()));
        let app = stream.attach(None).expect("a pipe");
        (stream, app, read, ring)
    }

    #[test]
    fn what_the_app_writes_is_in_the_ring_and_passed_through_unchanged() {
        let (mut stream, app, seen, ring) = stream();
        rustix::io::write(&app, b"a line\nhalf").expect("room");
        assert!(stream.step() == Step::Moved);
        let mut buffer = [0; 64];
        let count = rustix::io::read(&seen, &mut buffer).expect("passed through");
        assert_eq!(&buffer[..count], b"a line\nhalf");
        let (mut position, mut copy) = (0, [0; 64]);
        assert_eq!(ring.read(&mut position, &mut copy).expect("readable").bytes, 11);
        ring.note_read(position, 1);
        assert_eq!(ring.take_lines_lost(), Some(0), "one newline was written");
        drop(app);
        assert!(stream.step() == Step::Over);
        assert!(!ring.is_closed(), "an app that is started again writes to the same ring");
        let again = stream.attach(None).expect("another pipe");
        rustix::io::write(&again, b"and on\n").expect("room");
        stream.finish();
        assert_eq!((ring.head(), ring.is_closed()), (18, true), "what was in the pipe is in the ring");
    }

    #[test]
    fn a_reader_that_stops_reading_holds_the_app_and_not_us() {
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
        assert!(stream.blocked_output().is_some(), "it waits for our output");
        let (mut passed, mut buffer) = (0, [0; 8192]);
        drop(app);
        while stream.step() != Step::Over || passed < written {
            passed += rustix::io::read(&seen, &mut buffer).expect("open");
        }
        assert_eq!(passed, written, "nothing is lost");
    }

    #[test]
    fn when_our_output_has_no_reader_the_app_learns_it_as_without_us() {
        let (mut stream, app, seen, _ring) = stream();
        drop(seen);
        rustix::io::write(&app, b"x").expect("room");
        assert!(stream.step() == Step::Over);
        assert!(matches!(rustix::io::write(&app, b"y"), Err(Errno::PIPE)));
    }
}
