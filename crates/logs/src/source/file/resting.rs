//! Files that are not open: read to their end, or skipped. In: files with their size and time. Out: whether a file has changed,
//! and which file has a path. Limits: `RESTING_MAX` files.

use crate::checkpoint::FileId;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use sys::ring::fnv1a;

const RESTING_MAX: usize = 100_000;

/// A file as it was when it was closed.
#[derive(Clone, PartialEq, Eq)]
pub struct Resting {
    pub size: u64,
    pub modified: i64,
    /// Empty if no path is known.
    pub path: PathBuf,
    /// The offset at which reading starts if no sink has a checkpoint of the file.
    pub begin: Option<u64>,
    /// The last scan did not find it.
    pub is_missing: bool,
}

#[derive(Default)]
pub struct RestingFiles {
    files: HashMap<FileId, Resting>,
    /// By the hash of the path, so that a path is in memory once.
    by_path: HashMap<u64, FileId>,
}

impl RestingFiles {
    pub fn get(&self, id: FileId) -> Option<&Resting> {
        self.files.get(&id)
    }

    pub fn insert(&mut self, id: FileId, file: Resting) {
        self.remove(id);
        if self.files.len() < RESTING_MAX {
            self.by_path.insert(hash(&file.path), id);
            self.files.insert(id, file);
        }
    }

    pub fn remove(&mut self, id: FileId) -> Option<Resting> {
        let file = self.files.remove(&id)?;
        self.forget_path(id, &file.path);
        Some(file)
    }

    /// The file that was under a path.
    pub fn at(&self, path: &Path) -> Option<FileId> {
        let id = *self.by_path.get(&hash(path))?;
        self.files.get(&id).filter(|file| file.path == path).map(|_| id)
    }

    /// A file has another path, or none; false if the file is unknown.
    pub fn rename(&mut self, id: FileId, to: PathBuf) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return false };
        let path = std::mem::replace(&mut file.path, to);
        let to = hash(&file.path);
        self.forget_path(id, &path);
        self.by_path.insert(to, id);
        true
    }

    /// Forgets files that two scans did not find, and returns them. After one scan the changes of their directories may still be
    /// pending, which report the new names.
    pub fn retain(&mut self, exists: impl Fn(FileId) -> bool) -> Vec<FileId> {
        let mut missing = Vec::new();
        for (id, file) in &mut self.files {
            let was_missing = std::mem::replace(&mut file.is_missing, !exists(*id));
            missing.extend((was_missing && file.is_missing).then_some(*id));
        }
        for id in &missing {
            self.remove(*id);
        }
        missing
    }

    /// Another file may have the path by now.
    fn forget_path(&mut self, id: FileId, path: &Path) {
        if self.by_path.get(&hash(path)) == Some(&id) {
            self.by_path.remove(&hash(path));
        }
    }
}

fn hash(path: &Path) -> u64 {
    fnv1a(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Resting {
        Resting { size: 1, modified: 2, path: path.into(), begin: None, is_missing: false }
    }

    #[test]
    fn files_are_found_by_their_current_path() {
        let id = |inode| FileId { device: 1, inode };
        let mut files = RestingFiles::default();
        files.insert(id(1), file("/a"));
        files.insert(id(2), file("/b"));
        assert!(files.rename(id(1), "/c".into()) && !files.rename(id(9), "/c".into()));
        assert_eq!((files.at(Path::new("/a")), files.at(Path::new("/c"))), (None, Some(id(1))));
        // As with logrotate: another file takes the name before the old file has a new name.
        files.insert(id(3), file("/b"));
        files.rename(id(2), "/b.1".into());
        assert_eq!((files.at(Path::new("/b")), files.at(Path::new("/b.1"))), (Some(id(3)), Some(id(2))));
        assert!(files.retain(|file| file != id(3)).is_empty() && files.at(Path::new("/b")) == Some(id(3)));
        assert!(files.retain(|_| true).is_empty(), "it was found again");
        assert!(files.retain(|file| file != id(3)).is_empty());
        assert_eq!(files.retain(|file| file != id(3)), [id(3)]);
        assert_eq!((files.at(Path::new("/b")), files.get(id(2)).map(|file| file.size)), (None, Some(1)));
        assert!(files.remove(id(2)).is_some() && files.at(Path::new("/b.1")).is_none());
    }
}
