//! Changes of directories, as a hint (inotify(7)). In: directories. Out: names that appeared, and names that disappeared, with
//! their new names. Events alone miss files: only a periodic scan is reliable. Limits: `WATCHES_MAX` directories; those beyond,
//! and changes that the kernel had no room for, are reported.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use tokio::net::unix::pipe;

const WATCHES_MAX: usize = 1024;
/// Room for events of one read; the longest name takes about 270 bytes (inotify(7)).
const READ_BYTES: usize = 4096;

/// A change of a name.
#[derive(Debug)]
pub enum Change {
    Appeared(PathBuf),
    /// With the new name, if its directory is watched.
    Disappeared(PathBuf, Option<PathBuf>),
    /// The kernel's queue had no room for some changes (fs.inotify.max_queued_events).
    Overflow,
}

pub struct Watch {
    /// Read like a pipe.
    queue: pipe::Receiver,
    directories: HashMap<PathBuf, i32>,
    paths: HashMap<i32, PathBuf>,
}

impl Watch {
    /// An error if the system has no more inotify instances (fs.inotify.max_user_instances): then only scans find files.
    pub fn new() -> io::Result<Watch> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let queue = pipe::Receiver::from_owned_fd_unchecked(queue)?;
        Ok(Watch { queue, directories: HashMap::new(), paths: HashMap::new() })
    }

    /// Watches only these directories, which are sorted. Returns how many are not watched, and the reason.
    pub fn set_directories(&mut self, directories: &[PathBuf]) -> Option<String> {
        let watched = directories.get(..WATCHES_MAX).unwrap_or(directories);
        let is_unwanted = |path: &&PathBuf| watched.binary_search(path).is_err();
        let removed: Vec<PathBuf> = self.directories.keys().filter(is_unwanted).cloned().collect();
        for path in removed {
            if let Some(id) = self.directories.remove(&path) {
                self.paths.remove(&id);
                // The kernel has already removed the watch of a removed directory.
                let _ = inotify::remove_watch(&self.queue, id);
            }
        }
        let flags = WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let mut failed = (0, None);
        for path in watched {
            // Added on every call: another directory may have the name now. A directory that cannot be watched is scanned
            // nevertheless.
            match inotify::add_watch(&self.queue, path, flags) {
                Ok(id) => {
                    if let Some(old) = self.directories.insert(path.clone(), id).filter(|old| *old != id) {
                        self.paths.remove(&old);
                    }
                    self.paths.insert(id, path.clone());
                }
                Err(rustix::io::Errno::NOSPC) => {
                    failed = (failed.0 + 1, Some("fs.inotify.max_user_watches is reached"))
                }
                // The scan reports a directory that is missing or cannot be read.
                Err(_) => {}
            }
        }
        let (count, reason) = match directories.len() - watched.len() {
            0 => (failed.0, failed.1?),
            more => (failed.0 + more, "the limit per source is reached"),
        };
        Some(format!(
            "{count} of {} directories are polled, not watched (inotify): short-lived files may be missed: {reason}",
            directories.len()
        ))
    }

    /// Waits for changes; returns them in their order.
    pub async fn changed(&mut self) -> io::Result<Vec<Change>> {
        let (mut changes, mut moving) = (Vec::new(), HashMap::new());
        let (mut space, mut any) = ([0u8; READ_BYTES], false);
        loop {
            self.queue.readable().await?;
            loop {
                match self.queue.try_read(&mut space) {
                    Ok(count) => {
                        any = true;
                        self.note(space.get(..count).unwrap_or(&[]), &mut changes, &mut moving);
                    }
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                    Err(_) if any => return Ok(changes),
                    Err(_) => break,
                }
            }
        }
    }

    /// Parses events in the kernel's format: directory, kind, cookie, length of the name, name followed by NULs. A move has two
    /// events with one cookie.
    fn note(&self, mut events: &[u8], changes: &mut Vec<Change>, moving: &mut HashMap<u32, usize>) {
        while let Some((head, rest)) = events.split_first_chunk::<16>() {
            let word =
                |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
            let (directory, kind, cookie) = (word(0).cast_signed(), ReadFlags::from_bits_retain(word(4)), word(8));
            let (name, rest) = rest.split_at((word(12) as usize).min(rest.len()));
            events = rest;
            let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty()).map(OsStr::from_bytes);
            if kind.contains(ReadFlags::QUEUE_OVERFLOW) {
                changes.push(Change::Overflow);
            }
            let Some(path) = self.paths.get(&directory).zip(name).map(|(directory, name)| directory.join(name)) else {
                continue;
            };
            if kind.contains(ReadFlags::MOVED_FROM) {
                moving.insert(cookie, changes.len());
                changes.push(Change::Disappeared(path, None));
            } else if kind.contains(ReadFlags::MOVED_TO) {
                match moving.remove(&cookie).and_then(|index| changes.get_mut(index)) {
                    Some(Change::Disappeared(_, to)) => *to = Some(path),
                    _ => changes.push(Change::Appeared(path)),
                }
            } else if kind.contains(ReadFlags::CREATE) {
                changes.push(Change::Appeared(path));
            } else if kind.contains(ReadFlags::DELETE) {
                changes.push(Change::Disappeared(path, None));
            }
        }
    }
}
