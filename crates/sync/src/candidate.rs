//! A candidate for publication: files written next to the published revision, on the same volume. In: files of a store. Out: a
//! directory whose every byte is on disk, or the reason why it is rejected. Limits: `Limits`, for which directories count as
//! files; paths stay inside, links resolve inside, also through other links, and nothing but plain files, directories and such
//! links is written.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_files: usize,
    pub max_bytes: u64,
}

/// A directory under construction; removed on drop unless it was finished.
pub struct Candidate {
    root: PathBuf,
    limits: Limits,
    files: usize,
    bytes: u64,
    links: BTreeMap<PathBuf, PathBuf>,
    finished: bool,
}

impl Candidate {
    /// `root` must not exist yet; its parent must.
    pub fn new(root: PathBuf, limits: Limits) -> io::Result<Candidate> {
        fs::create_dir(&root)?;
        // The umask must not decide who can read the app's configuration.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        Ok(Candidate { root, limits, files: 0, bytes: 0, links: BTreeMap::new(), finished: false })
    }

    pub fn file(&mut self, path: &Path, content: &[u8], executable: bool) -> Result<(), String> {
        self.count(content.len() as u64)?;
        let target = self.inside(path)?;
        let mode = if executable { 0o755 } else { 0o644 };
        let write = || {
            let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&target)?;
            file.write_all(content)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.sync_all()
        };
        write().map_err(|error| format!("{}: {error}", target.display()))
    }

    /// Checks the size of the next file: it is rejected before its content is in memory.
    pub fn expect(&self, path: &Path, size: u64) -> Result<(), String> {
        if self.bytes.saturating_add(size) > self.limits.max_bytes {
            let (size, max) = (config::unit::ByteSize(size), config::unit::ByteSize(self.limits.max_bytes));
            return Err(format!("{} has {size}: the revision exceeds max_bytes = {max}", path.display()));
        }
        Ok(())
    }

    /// Counts a directory, empty or not: it costs as much work as a file.
    pub fn directory(&mut self) -> Result<(), String> {
        self.count(0)
    }

    /// Creates a link that points to something within the revision.
    pub fn link(&mut self, path: &Path, target: &Path) -> Result<(), String> {
        self.count(0)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        if !stays_inside(directory, target) {
            return Err(format!("the link {} points out of the revision, to {}", path.display(), target.display()));
        }
        let link = self.inside(path)?;
        std::os::unix::fs::symlink(target, &link).map_err(|error| format!("{}: {error}", link.display()))?;
        self.links.insert(path.to_path_buf(), target.to_path_buf());
        Ok(())
    }

    /// Syncs all directories, innermost first, so that a crash leaves the complete candidate or none.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        for link in self.links.keys() {
            if !resolves_inside(link, &self.links) {
                let text = format!("the link {} leads out of the revision, through other links", link.display());
                return Err(io::Error::other(text));
            }
        }
        sync_directories(&self.root)?;
        self.finished = true;
        Ok(self.root.clone())
    }

    fn count(&mut self, bytes: u64) -> Result<(), String> {
        self.files += 1;
        self.bytes += bytes;
        if self.files > self.limits.max_files {
            return Err(format!("the revision has more files than max_files = {}", self.limits.max_files));
        }
        if self.bytes > self.limits.max_bytes {
            return Err(format!(
                "the revision has more bytes than max_bytes = {}",
                config::unit::ByteSize(self.limits.max_bytes)
            ));
        }
        Ok(())
    }

    /// The path below the root, with its directories created. Rejects a path that would leave the root.
    fn inside(&self, path: &Path) -> Result<PathBuf, String> {
        let plain = path.components().all(|part| matches!(part, Component::Normal(_))) && path.file_name().is_some();
        if !plain {
            return Err(format!("the path {} would leave the revision", path.display()));
        }
        let target = self.root.join(path);
        let mut directory = self.root.clone();
        for part in path.parent().into_iter().flat_map(Path::components) {
            directory.push(part);
            match fs::create_dir(&directory) {
                Ok(()) => {
                    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // An earlier link must not redirect this file.
                    if !fs::symlink_metadata(&directory).is_ok_and(|meta| meta.is_dir()) {
                        return Err(format!(
                            "the path {} goes through something that is not a directory",
                            path.display()
                        ));
                    }
                }
                Err(error) => return Err(format!("{}: {error}", directory.display())),
            }
        }
        Ok(target)
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// Resolves a link as the kernel would (path_resolution(7)): every component that is a link itself is resolved from its own
/// directory. A loop does not resolve, and so not to the outside.
fn resolves_inside(link: &Path, links: &BTreeMap<PathBuf, PathBuf>) -> bool {
    const FOLLOWED_MAX: usize = 40;
    let mut here = PathBuf::new();
    let mut parts: VecDeque<OsString> = link.iter().map(OsString::from).collect();
    let mut followed = 0;
    while let Some(part) = parts.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(name)) => here.push(name),
            Some(Component::ParentDir) if !here.pop() => return false,
            Some(Component::RootDir | Component::Prefix(_)) => return false,
            _ => continue,
        }
        if let Some(target) = links.get(&here) {
            followed += 1;
            if followed > FOLLOWED_MAX {
                return true;
            }
            here.pop();
            target.iter().rev().for_each(|part| parts.push_front(part.to_os_string()));
        }
    }
    true
}

fn stays_inside(directory: &Path, target: &Path) -> bool {
    let mut depth = directory.components().count();
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

fn sync_directories(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, limits: Limits) -> (PathBuf, Candidate) {
        let root = std::env::temp_dir().join(format!("outrigger-candidate-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        (root.clone(), Candidate::new(root, limits).expect("a directory"))
    }

    /// Guarantee: escaping-revision-rejected
    #[test]
    fn escaping_paths_and_links_are_rejected() {
        let (root, mut candidate) = candidate("leave", Limits { max_files: 100, max_bytes: 100 });
        assert!(candidate.file(Path::new("a/b"), b"x", true).is_ok());
        assert!(candidate.link(Path::new("a/up"), Path::new("../a/b")).is_ok());
        for path in ["../x", "/x", "a/../../x", "", "."] {
            assert!(candidate.file(Path::new(path), b"", false).is_err(), "{path}");
        }
        for target in ["../../x", "/etc/passwd", "../.."] {
            assert!(candidate.link(Path::new("a/l"), Path::new(target)).is_err(), "{target}");
        }
        assert!(candidate.link(Path::new("d"), Path::new("a")).is_ok());
        assert!(candidate.file(Path::new("d/through"), b"", false).is_err(), "through a link");
        let mode = fs::metadata(root.join("a/b")).expect("written").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        drop(candidate);
        assert!(!root.exists(), "an unfinished candidate leaves nothing");
    }

    #[test]
    fn links_escaping_through_links_are_rejected() {
        let links = |pairs: &[(&str, &str)]| -> BTreeMap<PathBuf, PathBuf> {
            pairs.iter().map(|(from, to)| (from.into(), to.into())).collect()
        };
        for (pairs, link, inside) in [
            (&[("a/h/up", "root"), ("a/h/root", "."), ("leak", "a/h/up/../../etc/passwd")][..], "leak", true),
            (&[("a/h/up", "../.."), ("leak", "a/h/up/../etc/passwd")], "leak", false),
            (&[("a/up", ".."), ("b", "a/up/../x")], "b", false),
            (&[("a/up", ".."), ("b", "a/up/x")], "b", true),
            (&[("a", "b"), ("b", "a")], "a", true),
            (&[("d/e/f", "../../g"), ("g", "d")], "d/e/f", true),
            (&[("d/x", "../y"), ("y", ".")], "d/x", true),
            (&[("y", "."), ("z", "y/y/y/..")], "z", false),
        ] {
            assert_eq!(resolves_inside(Path::new(link), &links(pairs)), inside, "{pairs:?}");
        }
        let (_, mut candidate) = candidate("through", Limits { max_files: 100, max_bytes: 100 });
        assert!(candidate.link(Path::new("a/up"), Path::new("..")).is_ok());
        assert!(candidate.link(Path::new("leak"), Path::new("a/up/../etc")).is_ok());
        assert!(candidate.finish().is_err_and(|error| error.to_string().contains("leads out")));
    }

    #[test]
    fn a_rejection_reports_the_exceeded_limit() {
        let (_, mut candidate) = candidate("limits", Limits { max_files: 2, max_bytes: 10 });
        assert!(candidate.file(Path::new("a"), b"12345", false).is_ok());
        assert!(candidate.file(Path::new("b"), b"123456", false).is_err_and(|text| text.contains("max_bytes = 10")));
        assert!(candidate.file(Path::new("c"), b"", false).is_err_and(|text| text.contains("max_files = 2")));
    }
}
