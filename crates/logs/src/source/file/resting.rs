//! Files that are not open: read to their end, or passed over. In: files with their size and time. Out: whether one has changed, and
//! which has a path. Bound: `RESTING_MAX` files.

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
    /// Empty where it has none that is known.
    pub path: PathBuf,
    /// Where it is begun, where no sink has a position in it.
    pub begin: Option<u64>,
    /// The last look did not find it.
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

    /// A file has another path, or none; false where it is not known.
    pub fn rename(&mut self, id: FileId, to: PathBuf) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return false };
        let path = std::mem::replace(&mut file.path, to);
        let to = hash(&file.path);
        self.forget_path(id, &path);
        self.by_path.insert(to, id);
        true
    }

    /// Forgets what two looks did not find, and answers which files those were. After one look the changes of their folders are still
    /// to come, which say where they have gone.
    pub fn retain(&mut self, is_there: impl Fn(FileId) -> bool) -> Vec<FileId> {
        let mut gone = Vec::new();
        for (id, file) in &mut self.files {
            let was_missing = std::mem::replace(&mut file.is_missing, !is_there(*id));
            gone.extend((was_missing && file.is_missing).then_some(*id));
        }
        for id in &gone {
            self.remove(*id);
        }
        gone
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
    fn a_file_is_found_under_the_path_that_it_has() {
        let id = |inode| FileId { device: 1, inode };
        let mut files = RestingFiles::default();
        files.insert(id(1), file("/a"));
        files.insert(id(2), file("/b"));
        assert!(files.rename(id(1), "/c".into()) && !files.rename(id(9), "/c".into()));
        assert_eq!((files.at(Path::new("/a")), files.at(Path::new("/c"))), (None, Some(id(1))));
        // As logrotate does it: the name goes to another file before its old owner has another one.
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
