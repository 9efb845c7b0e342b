//! What a part of the configuration needs from the system besides memory: files, TCP ports, programs. In: plans. Out: one list
//! for the sandbox of the worker, and for `validate`, which reports what an image is missing.

use base::system::listen::Listen;
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files and directories that are read.
    pub read: Vec<PathBuf>,
    /// Directories in which files are created, replaced and removed.
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

    /// A file that may be replaced by another of the same name, as editors and mounted secrets do: reads its directory.
    pub fn read_replaced(&mut self, file: &Path) {
        self.read.push(parent(file));
    }

    /// A file that is written: needs its directory.
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

/// A path without `.` and `..`, normalized lexically: symlinks are not resolved.
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

/// The directory of a pattern: everything before the first component with a wildcard.
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
    fn pattern_needs_the_directory_before_wildcards() {
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
