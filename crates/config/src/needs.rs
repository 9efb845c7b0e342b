//! What a part of the configuration needs from the system beside memory: files, TCP ports, programs. In: plans. Out: one list for
//! the sandbox of the worker, and for `validate`, which says what an image lacks.

use base::system::listen::Listen;
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files and folders that are read.
    pub read: Vec<PathBuf>,
    /// Folders in which files are made, replaced and removed.
    pub write: Vec<PathBuf>,
    /// TCP ports that are connected to.
    pub connect: Vec<u16>,
    /// Programs that are started, by name or path.
    pub programs: Vec<String>,
    /// Addresses that are listened on.
    pub listen: Vec<Listen>,
}

impl Needs {
    pub fn add(&mut self, other: Needs) {
        self.read.extend(other.read);
        self.write.extend(other.write);
        self.connect.extend(other.connect);
        self.programs.extend(other.programs);
        self.listen.extend(other.listen);
    }

    /// A file that may be replaced by another of the same name, as editors and mounted secrets do it: its folder is read.
    pub fn read_replaced(&mut self, file: &Path) {
        self.read.push(parent(file));
    }

    /// A file that is written: its folder.
    pub fn write_file(&mut self, file: &Path) {
        self.write.push(parent(file));
    }
}

fn parent(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A path without `.` and `..`, by its text alone: links on the way are not looked at.
pub fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

/// The folder of a pattern: everything before the first part with a wildcard.
pub fn pattern_directory(pattern: &str) -> PathBuf {
    let is_plain = |part: &&str| !part.contains(['*', '?', '[']);
    let parts: Vec<&str> = pattern.split('/').collect();
    let plain = parts.iter().take_while(|part| is_plain(part)).count();
    // A pattern without a wildcard is a file, which may be rotated.
    let directory = parts.get(..plain.min(parts.len() - 1)).unwrap_or(&[]).join("/");
    if directory.is_empty() {
        PathBuf::from(if pattern.starts_with('/') { "/" } else { "." })
    } else {
        PathBuf::from(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_needs_the_folder_before_its_first_wildcard() {
        for (pattern, directory) in [
            ("/var/log/app/*.log", "/var/log/app"),
            ("/var/log/app/out.log", "/var/log/app"),
            ("/var/log/*/out.log", "/var/log"),
            ("/*.log", "/"),
            ("logs/a-[0-9].log", "logs"),
            ("out.log", "."),
        ] {
            assert_eq!(pattern_directory(pattern), Path::new(directory), "{pattern}");
        }
    }
}
