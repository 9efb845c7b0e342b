//! The state directory: one directory, one lock. In: small named files of the subsystems. Out: the same files,
//! complete after a crash: written to a temporary file, synced, renamed. If the directory is not writable, everything runs
//! without durability and reports it. Limits: `max` bytes per file; a larger one is rejected and reported.

use crate::system::file;
use crate::telemetry::MetricDesc;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Counts files of an unsupported version.
pub static FILES_RESET: MetricDesc = MetricDesc::counter(
    "outrigger_state_files_reset_total",
    &["file"],
    "State files that a newer version wrote and that were reset.",
);

/// The first line of a state file: its kind and version. The first version of each kind has no such line.
pub struct Mark {
    pub what: &'static str,
    pub version: u32,
}

/// The parsed first line of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Marked<'t> {
    /// The supported version, and the content after the line.
    Ours(&'t [u8]),
    Other(u32),
    None,
}

impl Mark {
    /// Maximum length of the line.
    pub const LINE_MAX: usize = 64;

    pub fn line(&self) -> String {
        format!("outrigger {} {}\n", self.what, self.version)
    }

    pub fn of<'t>(&self, text: &'t [u8]) -> Marked<'t> {
        let line =
            text.iter().take(Self::LINE_MAX).position(|byte| *byte == b'\n').and_then(|end| text.split_at_checked(end));
        let Some((line, rest)) = line else { return Marked::None };
        let begin = format!("outrigger {} ", self.what);
        let version = line.strip_prefix(begin.as_bytes()).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        match version {
            Some(version) if version == self.version => Marked::Ours(rest.get(1..).unwrap_or(&[])),
            Some(other) => Marked::Other(other),
            None => Marked::None,
        }
    }
}

/// The directory, shared by all subsystems. `dir` is `None` without durability.
#[derive(Clone)]
pub struct StateDir {
    inner: Arc<Inner>,
}

struct Inner {
    dir: Option<PathBuf>,
    error: Option<String>,
    max: u64,
    serial: AtomicU64,
    lock: Mutex<Option<File>>,
}

impl StateDir {
    /// Opens and locks the directory; after any error it has no durability, and `error` returns the reason.
    pub fn open(dir: &Path, max: u64) -> StateDir {
        match Self::lock(dir) {
            Ok(lock) => Self::with(Some(dir.to_path_buf()), None, max, Some(lock)),
            Err(error) => Self::without(format!(
                "state directory {} is not usable: {error}; checkpoints are not persisted",
                dir.display()
            )),
        }
    }

    pub fn without(error: String) -> StateDir {
        Self::with(None, Some(error), 0, None)
    }

    fn with(dir: Option<PathBuf>, error: Option<String>, max: u64, lock: Option<File>) -> StateDir {
        StateDir { inner: Arc::new(Inner { dir, error, max, serial: AtomicU64::new(0), lock: Mutex::new(lock) }) }
    }

    fn lock(dir: &Path) -> io::Result<File> {
        fs::create_dir_all(dir)?;
        let lock = file::open_own(&dir.join("lock"), OpenOptions::new().create(true).truncate(false).write(true))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
            |error| match error {
                rustix::io::Errno::WOULDBLOCK => {
                    io::Error::other("locked by another Outrigger process; use a separate state.dir for each")
                }
                other => other.into(),
            },
        )?;
        // A test write, since a directory can be lockable on a full or read-only volume.
        let probe = dir.join("probe");
        // Remove the file of a crashed process, or any other entry of that name.
        match fs::remove_file(&probe) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", probe.display())));
            }
            _ => {}
        }
        file::open_own(&probe, OpenOptions::new().create_new(true).write(true))?.write_all(b"ok")?;
        fs::remove_file(&probe)?;
        Ok(lock)
    }

    /// Unlocks the directory for another process; nothing may be written here afterwards.
    pub fn release(&self) {
        *crate::sync::lock(&self.inner.lock) = None;
    }

    /// The reason if nothing is persisted.
    pub fn error(&self) -> Option<&str> {
        self.inner.error.as_deref()
    }

    /// Maximum size of a file in bytes.
    pub fn max(&self) -> u64 {
        self.inner.max
    }

    /// The path of a file or directory of a subsystem, if there is durability; creates its parent directories.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let dir = self.inner.dir.as_ref()?;
        for (end, _) in name.match_indices('/') {
            // An error shows when the file itself is opened.
            let _ = own_directory(&dir.join(name.get(..end).unwrap_or_default()));
        }
        Some(dir.join(name))
    }

    /// The directory itself.
    pub fn dir(&self) -> Option<&Path> {
        self.inner.dir.as_deref()
    }

    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(path) = self.path(name) else {
            return Ok(None);
        };
        match file::read(&path, self.inner.max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file atomically: a crash leaves the old file or the new file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(path) = self.path(name) else {
            return Ok(());
        };
        if bytes.len() as u64 > self.inner.max {
            return Err(io::Error::other(format!("{name}: {} bytes exceeds state.max_bytes", bytes.len())));
        }
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("tmp{}-{serial}", std::process::id()));
        let write = || {
            // It may contain data that only Outrigger should read, such as a configuration with a secret.
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })
    }
}

/// Creates a directory of Outrigger; removes a file in its place, and follows no symlink.
fn own_directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    fs::create_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("outrigger-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn files_are_persisted_and_a_second_lock_fails() {
        let dir = temp("hold");
        let state = StateDir::open(&dir, 100);
        assert_eq!(state.error(), None);
        state.write("logs/a", b"one").expect("writable");
        assert_eq!(state.read("logs/a").expect("readable").as_deref(), Some(&b"one"[..]));
        assert_eq!(state.read("logs/b").expect("readable"), None);
        assert!(state.write("big", &[0; 101]).is_err(), "over the budget");
        let second = StateDir::open(&dir, 100);
        assert!(second.error().is_some_and(|text| text.contains("another Outrigger process")), "{:?}", second.error());
        drop(state);
        assert_eq!(StateDir::open(&dir, 100).error(), None);
        let _ = fs::remove_dir_all(&dir);
    }

    #[test]
    fn version_is_parsed_from_the_first_line() {
        const MARK: Mark = Mark { what: "left", version: 2 };
        let text = format!("{}a\nb", MARK.line());
        assert_eq!(MARK.of(text.as_bytes()), Marked::Ours(b"a\nb"));
        for (text, expect) in [
            ("outrigger left 3\n", Marked::Other(3)),
            ("outrigger left 10\nx", Marked::Other(10)),
            ("outrigger left over\n", Marked::None),
            ("outrigger other 2\n", Marked::None),
            ("outrigger left 2", Marked::None),
            ("", Marked::None),
        ] {
            assert_eq!(MARK.of(text.as_bytes()), expect, "{text}");
        }
    }

    #[test]
    fn unusable_directory_disables_durability() {
        let file = temp("file");
        fs::write(&file, b"").expect("a file where the directory should be");
        let state = StateDir::open(&file, 100);
        assert!(state.error().is_some_and(|text| text.contains("not persisted")));
        assert!(state.write("x", b"1").is_ok());
        assert_eq!(state.read("x").expect("no file"), None);
        let _ = fs::remove_file(&file);
    }
}
