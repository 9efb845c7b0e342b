//! Writes the tree of a commit into a candidate directory. In: a commit and a path. Out: files, executables and links. Each
//! object is verified against its name. A submodule is skipped and logged. Limits: `DEPTH_MAX`, `WALK_MAX`, and those of the
//! candidate.

use super::Fault;
use crate::candidate::Candidate;
use gix::bstr::ByteSlice as _;
use gix::object::Kind;
use gix::object::tree::EntryKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nesting of directories; deeper trees are rejected.
const DEPTH_MAX: usize = 64;

/// Time limit for walking a tree: a tree that takes longer is not a configuration.
const WALK_MAX: Duration = Duration::from_secs(60);

pub fn write(
    repository: &gix::Repository,
    commit: gix::ObjectId,
    path: Option<&Path>,
    candidate: &mut Candidate,
) -> Result<(), Fault> {
    let mut walk = Walk { repository, candidate, until: Instant::now() + WALK_MAX };
    let commit_data = walk.object(commit, Kind::Commit)?;
    let parsed = gix::objs::CommitRef::from_bytes(&commit_data, commit.kind());
    let mut tree = parsed.map_err(|error| Fault::Content(format!("the commit {commit} is malformed: {error}")))?.tree();
    let wanted = path.map(normal).filter(|path| !path.as_os_str().is_empty());
    for part in wanted.iter().flat_map(|path| path.iter()) {
        let data = walk.object(tree, Kind::Tree)?;
        let shown = || wanted.as_deref().unwrap_or(Path::new("")).display();
        let found =
            entries(&data, tree.kind()).flatten().find(|entry| entry.filename.to_path().is_ok_and(|name| name == part));
        tree = match found {
            Some(entry) if entry.mode.kind() == EntryKind::Tree => entry.oid.to_owned(),
            Some(_) => return Err(Fault::Content(format!("{} is not a directory in the commit {commit}", shown()))),
            None => return Err(Fault::Content(format!("the commit {commit} has no directory {}", shown()))),
        };
    }
    walk.directory(tree, Path::new(""), 0)
}

/// Nesting of tags.
const TAGS_MAX: usize = 8;

/// The commit that an object is, or that a tag points to.
pub fn commit(repository: &gix::Repository, id: gix::ObjectId) -> Result<gix::ObjectId, Fault> {
    let mut id = id;
    for _ in 0..TAGS_MAX {
        let kind = repository.find_header(id).map_err(|error| Fault::Cache(super::chain(&error)))?.kind();
        if kind != Kind::Tag {
            return Ok(id);
        }
        let data = verified(repository, id, Kind::Tag)?;
        let tag = gix::objs::TagRef::from_bytes(&data, id.kind());
        id = tag.map_err(|error| Fault::Content(format!("the tag {id} is malformed: {error}")))?.target();
    }
    Err(Fault::Content(format!("tags are nested deeper than {TAGS_MAX}")))
}

/// An object, verified against its kind and name: another process may have written what is on disk.
fn verified(repository: &gix::Repository, id: gix::ObjectId, kind: Kind) -> Result<Vec<u8>, Fault> {
    let object = repository.find_object(id).map_err(|error| Fault::Cache(super::chain(&error)))?;
    if object.kind != kind {
        return Err(Fault::Content(format!("{id} is a {}, expected a {kind}", object.kind)));
    }
    let data = object.detach().data;
    match gix::objs::compute_hash(id.kind(), kind, &data) {
        Ok(hash) if hash == id => Ok(data),
        _ => Err(Fault::Cache(format!("the object {id} is damaged"))),
    }
}

struct Walk<'r> {
    repository: &'r gix::Repository,
    candidate: &'r mut Candidate,
    until: Instant,
}

impl Walk<'_> {
    fn object(&self, id: gix::ObjectId, kind: Kind) -> Result<Vec<u8>, Fault> {
        if Instant::now() > self.until {
            return Err(Fault::Content(format!("walking the tree takes longer than {WALK_MAX:?}")));
        }
        verified(self.repository, id, kind)
    }

    fn directory(&mut self, tree: gix::ObjectId, at: &Path, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::Content(format!("directories are nested deeper than {DEPTH_MAX}")));
        }
        self.candidate.directory().map_err(Fault::Content)?;
        let data = self.object(tree, Kind::Tree)?;
        for entry in entries(&data, tree.kind()) {
            let entry =
                entry.map_err(|error| Fault::Content(format!("a tree of {} is malformed: {error}", at.display())))?;
            let name = entry.filename.to_path();
            let name =
                name.map_err(|_| Fault::Content(format!("a file name in {} cannot be written here", at.display())))?;
            let path = at.join(name);
            // A `.git` directory would make the revision a repository, with hooks that run (CVE-2014-9390).
            if is_dot_git(entry.filename) {
                return Err(Fault::Content(format!(
                    "{} is a name reserved by git, which is not allowed in a revision",
                    path.display()
                )));
            }
            if entry.filename.contains(&b'/') {
                return Err(Fault::Content(format!("{} in one tree is not a file name", path.display())));
            }
            let id = entry.oid.to_owned();
            match entry.mode.kind() {
                EntryKind::Tree => {
                    self.is_a(id, Kind::Tree, &path)?;
                    self.directory(id, &path, depth + 1)?;
                }
                EntryKind::Link => {
                    let data = self.sized(id, &path)?;
                    let target = data.to_path();
                    let target = target
                        .map_err(|_| Fault::Content(format!("the link {} cannot be written here", path.display())))?;
                    self.candidate.link(&path, target).map_err(Fault::Content)?;
                }
                EntryKind::Blob | EntryKind::BlobExecutable => {
                    let data = self.sized(id, &path)?;
                    let executable = entry.mode.kind() == EntryKind::BlobExecutable;
                    self.candidate.file(&path, &data, executable).map_err(Fault::Content)?;
                }
                EntryKind::Commit => {
                    self.candidate.directory().map_err(Fault::Content)?;
                    tracing::warn!(path = %path.display(), "submodule skipped (not supported)");
                }
            }
        }
        Ok(())
    }

    /// The size of the object at `path`, which must have the kind of its mode.
    fn is_a(&self, id: gix::ObjectId, kind: Kind, path: &Path) -> Result<u64, Fault> {
        let header = self.repository.find_header(id).map_err(|error| Fault::Cache(super::chain(&error)))?;
        match header.kind() == kind {
            true => Ok(header.size()),
            false => {
                let text = format!("{}: {id} is a {}, expected a {kind}", path.display(), header.kind());
                Err(Fault::Content(text))
            }
        }
    }

    /// A file's content, after a check of its size, which is in its header.
    fn sized(&self, id: gix::ObjectId, path: &Path) -> Result<Vec<u8>, Fault> {
        let size = self.is_a(id, Kind::Blob, path)?;
        self.candidate.expect(path, size).map_err(Fault::Content)?;
        self.object(id, Kind::Blob)
    }
}

fn entries(data: &[u8], hash: gix::hash::Kind) -> gix::objs::TreeRefIter<'_> {
    gix::objs::TreeRefIter::from_bytes(data, hash)
}

/// `.git` in any case, also as file systems fold it (git's own rule, core.protectHFS and core.protectNTFS).
fn is_dot_git(name: &gix::bstr::BStr) -> bool {
    let plain: String = name.to_str_lossy().chars().filter(|c| !is_ignorable(*c)).collect();
    let plain = plain.trim_end_matches([' ', '.']).to_ascii_lowercase();
    plain == ".git" || plain == "git~1" || plain.starts_with(".git:")
}

/// Characters that HFS+ ignores in names.
fn is_ignorable(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

/// `orders/` and `./orders` are `orders`.
pub fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}
