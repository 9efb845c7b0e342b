//! All files that match path patterns. In: patterns. Out: paths with device, inode, size and time, and what could not be listed.
//! Names are matched as text; bytes that are not UTF-8 count as U+FFFD. Limits: `DEPTH_MAX` levels of directories, `ENTRIES_MAX`
//! names in total.

use crate::checkpoint::FileId;
use glob::{MatchOptions, Pattern};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

const DEPTH_MAX: usize = 32;
const ENTRIES_MAX: usize = 1_000_000;
/// Pipes and the like that one scan reports.
const SPECIAL_MAX: usize = 16;

/// `*` and `?` stay within one name.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

pub struct Match {
    pub path: PathBuf,
    pub id: FileId,
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub modified: i64,
}

/// When a file was modified last, in nanoseconds since the epoch.
pub fn modified_ns(meta: &Metadata) -> i64 {
    meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
}

/// One scan of the patterns.
#[derive(Default)]
pub struct Walk {
    pub matches: Vec<Match>,
    /// The directories in which files matched or could match.
    pub directories: Vec<PathBuf>,
    /// Pipes, devices and sockets that match, and what they are: they are never read.
    pub special: Vec<(PathBuf, FileId, String)>,
    /// The first error of a path that could not be read.
    pub unreadable: Option<String>,
    excluded: Vec<Pattern>,
    /// Files that may have another name than when they were read: found by their inode.
    sought: HashSet<FileId>,
    /// The inodes of `sought`, which a directory entry has without a stat of the file.
    inodes: HashSet<u64>,
    known: HashSet<FileId>,
    entries: usize,
}

impl Walk {
    pub fn new(exclude: &[String], sought: &[FileId]) -> Walk {
        let (sought, inodes) = (sought.iter().copied().collect(), sought.iter().map(|file| file.inode).collect());
        Walk { excluded: parse(exclude), sought, inodes, ..Walk::default() }
    }

    pub fn pattern(&mut self, pattern: &str) {
        let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
        self.below(PathBuf::from("/"), &parts, 0);
    }

    /// Adds a path regardless of its name.
    pub fn path(&mut self, path: PathBuf) {
        self.file(path, false);
    }

    /// `by_name`: the pattern has no wildcards, so the operator wants exactly this file.
    fn file(&mut self, path: PathBuf, by_name: bool) {
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                let id = FileId::of(&meta);
                if self.known.insert(id) {
                    self.matches.push(Match { path, id, size: meta.len(), modified: modified_ns(&meta) });
                }
            }
            Ok(meta) if by_name => {
                let error = io::Error::other(base::system::file::not_regular(meta.file_type()));
                self.cannot(&path, &error);
            }
            Ok(meta) if meta.is_dir() || self.special.len() >= SPECIAL_MAX => {}
            Ok(meta) => self.special.push((path, FileId::of(&meta), base::system::file::not_regular(meta.file_type()))),
            // A file renamed in the meantime is found under its new name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.cannot(&path, &error),
        }
    }

    fn below(&mut self, directory: PathBuf, parts: &[&str], depth: usize) {
        let Some((part, rest)) = parts.split_first() else { return };
        if depth > DEPTH_MAX {
            return;
        }
        if *part == "**" {
            self.directories.push(directory.clone());
            self.below(directory.clone(), rest, depth);
            return self.each(&directory, |walk, entry| {
                // Symlinks to directories are not followed: they may form a loop.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk.below(entry.path(), parts, depth + 1);
                }
            });
        }
        let plain = !part.contains(['*', '?', '[']);
        if plain && !rest.is_empty() {
            return self.below(directory.join(part), rest, depth);
        }
        let Ok(pattern) = Pattern::new(part) else { return };
        // A directory or a file may be created here.
        self.directories.push(directory.clone());
        if rest.is_empty() && plain && self.sought.is_empty() {
            return self.candidate(directory.join(part), true);
        }
        self.each(&directory, |walk, entry| {
            if matches(&pattern, &entry.file_name()) {
                match rest.is_empty() {
                    true => walk.candidate(entry.path(), plain),
                    false if entry.path().is_dir() => walk.below(entry.path(), rest, depth + 1),
                    false => {}
                }
            } else if rest.is_empty() && walk.inodes.contains(&entry.ino()) {
                walk.sought_path(entry.path());
            }
        });
    }

    fn candidate(&mut self, path: PathBuf, by_name: bool) {
        if !self.excluded.iter().any(|rule| rule.matches(&path.to_string_lossy())) {
            self.file(path, by_name);
        }
    }

    fn sought_path(&mut self, path: PathBuf) {
        let meta = std::fs::symlink_metadata(&path);
        let id = meta.map(|meta| FileId::of(&meta));
        if id.is_ok_and(|id| self.sought.contains(&id)) {
            self.path(path);
        }
    }

    fn each(&mut self, directory: &Path, mut visit: impl FnMut(&mut Walk, &DirEntry)) {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            // The directory may be created later, or this is a file next to directories that match.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return,
            Err(error) => return self.cannot(directory, &error),
        };
        for entry in entries {
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                let text =
                    format!("more than {ENTRIES_MAX} directory entries match; the remaining entries are not scanned");
                self.unreadable.get_or_insert(text);
                return;
            }
            match entry {
                Ok(entry) => visit(self, &entry),
                Err(error) => return self.cannot(directory, &error),
            }
        }
    }

    fn cannot(&mut self, path: &Path, error: &io::Error) {
        self.unreadable.get_or_insert_with(|| cannot_read(path, error));
    }
}

/// The error of a file that cannot be read, with the fix if a symlink points to a path that the sandbox does not allow.
pub fn cannot_read(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    let real = path.canonicalize().ok().filter(|real| error.kind() == io::ErrorKind::PermissionDenied && real != path);
    match real.as_deref().and_then(Path::parent) {
        Some(directory) => format!(
            "cannot read {shown}: {error}; symlink target {} is outside the sandbox: add it to sandbox.allow_read",
            directory.display()
        ),
        None => format!("cannot read {shown}: {error}"),
    }
}

/// Patterns of a source, parsed once; invalid patterns were rejected before.
pub struct Patterns {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Patterns {
    pub fn new(include: &[String], exclude: &[String]) -> Patterns {
        Patterns { include: parse(include), exclude: parse(exclude) }
    }

    /// Whether a file of this path would be read.
    pub fn match_path(&self, path: &Path) -> bool {
        let text = path.to_string_lossy();
        self.include.iter().any(|pattern| pattern.matches_with(&text, OPTIONS))
            && !self.exclude.iter().any(|pattern| pattern.matches(&text))
    }
}

fn parse(patterns: &[String]) -> Vec<Pattern> {
    patterns.iter().filter_map(|text| Pattern::new(text).ok()).collect()
}

fn matches(pattern: &Pattern, name: &OsStr) -> bool {
    pattern.matches_with(&name.to_string_lossy(), OPTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn patterns_match_non_utf8_and_nested_names() {
        let dir = std::env::temp_dir().join(format!("outrigger-walk-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("a/b/c")).expect("created");
        std::fs::create_dir_all(dir.join("d")).expect("created");
        let odd = OsStr::from_bytes(b"odd-\xff.log");
        for name in [Path::new("a/x.log"), Path::new("a/b/c/y.log"), Path::new("d/z.txt"), &Path::new("d").join(odd)] {
            std::fs::write(dir.join(name), "text").expect("written");
        }
        let check = |pattern: &str, exclude: &[String], expect: &[&Path]| {
            let mut walk = Walk::new(exclude, &[]);
            walk.pattern(&format!("{}/{pattern}", dir.display()));
            let mut found: Vec<PathBuf> = walk.matches.into_iter().map(|found| found.path).collect();
            found.sort();
            let expect: Vec<PathBuf> = expect.iter().map(|path| dir.join(path)).collect();
            assert_eq!(found, expect, "{pattern}");
        };
        let odd = Path::new("d").join(odd);
        check("*/*.log", &[], &[Path::new("a/x.log"), &odd]);
        check("d/odd-?.log", &[], &[&odd]);
        check("**/*.log", &[], &[Path::new("a/b/c/y.log"), Path::new("a/x.log"), &odd]);
        check("**/*.log", &[format!("{}/a/**", dir.display())], &[&odd]);
        check("a/x.log", &[], &[Path::new("a/x.log")]);
        check("none/*.log", &[], &[]);

        let moved = std::fs::metadata(dir.join("d/z.txt")).expect("exists");
        let id = FileId::of(&moved);
        let mut walk = Walk::new(&[], &[id]);
        walk.pattern(&format!("{}/*/z.log", dir.display()));
        assert_eq!(walk.matches.len(), 1, "found by its inode in a directory of the pattern");
        let _ = std::fs::remove_dir_all(&dir);
    }
}
