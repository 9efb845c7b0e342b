//! Writes the tree of a commit into a staging directory. In: a commit and a path. Out: files, executables and links. A
//! submodule is passed over, and said once.

use crate::staging::Staging;
use gix::bstr::ByteSlice as _;
use gix::object::tree::EntryKind;
use std::path::{Path, PathBuf};

/// Folders within folders; deeper trees are refused.
const DEPTH_MAX: usize = 64;

pub fn write(
    repository: &gix::Repository,
    commit: gix::ObjectId,
    path: Option<&Path>,
    staging: &mut Staging,
) -> Result<(), String> {
    let tree = repository
        .find_object(commit)
        .and_then(|object| object.peel_to_kind(gix::object::Kind::Tree))
        .map_err(|error| super::chain(&error))?
        .into_tree();
    let tree = match path.map(normal).filter(|path| !path.as_os_str().is_empty()) {
        None => tree,
        Some(path) => {
            let entry = tree.lookup_entry_by_path(&path).map_err(|error| super::chain(&error))?;
            let entry = entry.ok_or_else(|| format!("the commit {commit} has no folder {}", path.display()))?;
            let object = entry.object().map_err(|error| super::chain(&error))?;
            object.try_into_tree().map_err(|_| format!("{} is no folder in the commit {commit}", path.display()))?
        }
    };
    folder(&tree, Path::new(""), 0, staging)
}

fn folder(tree: &gix::Tree<'_>, at: &Path, depth: usize, staging: &mut Staging) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("folders are nested deeper than {DEPTH_MAX}"));
    }
    for entry in tree.iter() {
        let entry = entry.map_err(|error| super::chain(&error))?;
        let name = entry
            .filename()
            .to_path()
            .map_err(|_| format!("a file name in {} cannot be written here", at.display()))?;
        let path = at.join(name);
        let kind = entry.mode().kind();
        if kind == EntryKind::Commit {
            tracing::warn!(path = %path.display(), "a submodule is not resolved and left out");
            continue;
        }
        let object = entry.object().map_err(|error| super::chain(&error))?;
        match kind {
            EntryKind::Tree => folder(&object.into_tree(), &path, depth + 1, staging)?,
            EntryKind::Link => {
                let target =
                    object.data.to_path().map_err(|_| format!("the link {} cannot be written here", path.display()))?;
                staging.link(&path, target)?;
            }
            EntryKind::Blob => staging.file(&path, &object.data, false)?,
            EntryKind::BlobExecutable => staging.file(&path, &object.data, true)?,
            EntryKind::Commit => {}
        }
    }
    Ok(())
}

/// `orders/` and `./orders` are `orders`.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}
