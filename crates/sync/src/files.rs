//! Removal of Outrigger's own directories, whatever the permissions of their content.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Removes what exists at the path; a missing path is not an error.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                permit(path, 0);
                fs::remove_dir_all(path)
            }
            _ => Err(error),
        }),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Makes Outrigger's own directories writable again, as far as possible.
fn permit(directory: &Path, depth: usize) {
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if depth < PERMIT_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            permit(&entry.path(), depth + 1);
        }
    }
}

/// None of Outrigger's own directories is deeper.
const PERMIT_DEPTH: usize = 128;
