//! Changes of folders, as a hint (inotify(7)). In: folders. Out: names that came, and names that went away, with where they went.
//! Whoever relies on it alone misses files: a scan from time to time is the truth. Bound: `WATCHES_MAX` folders; those beyond, and
//! changes that the kernel had no room for, are told.

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

/// What happened to a name.
#[derive(Debug)]
pub enum Change {
    Came(PathBuf),
    /// Went away, and where to, as far as that folder is watched.
    Gone(PathBuf, Option<PathBuf>),
    /// The kernel's queue had no room for some (fs.inotify.max_queued_events).
    Lost,
}

pub struct Watch {
    /// Read like a pipe.
    queue: pipe::Receiver,
    directories: HashMap<PathBuf, i32>,
    paths: HashMap<i32, PathBuf>,
}

impl Watch {
    /// An error where the system has no more of these queues (fs.inotify.max_user_instances): then scans alone find files.
    pub fn new() -> io::Result<Watch> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let queue = pipe::Receiver::from_owned_fd_unchecked(queue)?;
        Ok(Watch { queue, directories: HashMap::new(), paths: HashMap::new() })
    }

    /// Watches these folders, which are sorted, and those of before no more. Answers how many are not watched, and why.
    pub fn set_directories(&mut self, directories: &[PathBuf]) -> Option<String> {
        let watched = directories.get(..WATCHES_MAX).unwrap_or(directories);
        let is_unwanted = |path: &&PathBuf| watched.binary_search(path).is_err();
        let gone: Vec<PathBuf> = self.directories.keys().filter(is_unwanted).cloned().collect();
        for path in gone {
            if let Some(id) = self.directories.remove(&path) {
                self.paths.remove(&id);
                // A folder that was removed has taken its watch along.
                let _ = inotify::remove_watch(&self.queue, id);
            }
        }
        let flags = WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let mut refused = (0, None);
        for path in watched {
            // Added anew each time: another folder may have the name now. One that cannot be watched is scanned all the same.
            match inotify::add_watch(&self.queue, path, flags) {
                Ok(id) => {
                    if let Some(old) = self.directories.insert(path.clone(), id).filter(|old| *old != id) {
                        self.paths.remove(&old);
                    }
                    self.paths.insert(id, path.clone());
                }
                Err(rustix::io::Errno::NOSPC) => {
                    refused = (refused.0 + 1, Some("fs.inotify.max_user_watches is reached"))
                }
                // One that is not there, or cannot be read, is for the scan to tell.
                Err(_) => {}
            }
        }
        let (count, why) = match directories.len() - watched.len() {
            0 => (refused.0, refused.1?),
            more => (refused.0 + more, "more are not watched at a time"),
        };
        Some(format!(
            "{count} of {} directories are polled, not watched (inotify): short-lived files may be missed: {why}",
            directories.len()
        ))
    }

    /// Waits for changes; answers them in their order.
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

    /// Events as the kernel writes them: folder, kind, cookie, length of the name, name with NULs behind it. A move has two
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
                changes.push(Change::Lost);
            }
            let Some(path) = self.paths.get(&directory).zip(name).map(|(directory, name)| directory.join(name)) else {
                continue;
            };
            if kind.contains(ReadFlags::MOVED_FROM) {
                moving.insert(cookie, changes.len());
                changes.push(Change::Gone(path, None));
            } else if kind.contains(ReadFlags::MOVED_TO) {
                match moving.remove(&cookie).and_then(|index| changes.get_mut(index)) {
                    Some(Change::Gone(_, to)) => *to = Some(path),
                    _ => changes.push(Change::Came(path)),
                }
            } else if kind.contains(ReadFlags::CREATE) {
                changes.push(Change::Came(path));
            } else if kind.contains(ReadFlags::DELETE) {
                changes.push(Change::Gone(path, None));
            }
        }
    }
}
