//! Writes the proposal to a new file, atomically. In: a path and a text. Out: the file, with the permissions that the user's
//! umask allows. It replaces a file only with `force`, and then by one rename.

use crate::Failure;
use rustix::fs::{CWD, RenameFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Errors: the file exists already, or cannot be written.
pub fn new_file(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let temporary = temporary_path(path);
    let written = write(&temporary, text).and_then(|()| publish(&temporary, path, force));
    if written.is_err() {
        // The file may not have been created.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure {
            message: format!("cannot write {}: {error}", path.display()),
            help: "choose a writable directory with -o",
            code: 1,
        },
    })
}

pub fn exists(path: &Path) -> Failure {
    Failure {
        message: format!("{} already exists and was not changed", path.display()),
        help: "choose another name with -o, or replace it with --force",
        code: 1,
    }
}

/// In the same directory, so that one rename is enough.
fn temporary_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn publish(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    if force {
        std::fs::rename(from, to)?;
    } else {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system does not support the flag; a hard link does not replace anything either.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::hard_link(from, to)?;
                std::fs::remove_file(from)?;
            }
            renamed => renamed?,
        }
    }
    let directory = to.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_needs_force_and_no_temp_file_remains() {
        let directory = std::env::temp_dir().join(format!("detect-write-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("outrigger.yaml");
        let read = || std::fs::read_to_string(&path).expect("the file exists");
        new_file(&path, "one", false).expect("written");
        assert_eq!(read(), "one");
        let refused = new_file(&path, "two", false).expect_err("the file exists");
        assert!(refused.message.contains("already exists") && refused.help.contains("--force"));
        assert_eq!(read(), "one");
        new_file(&path, "three", true).expect("replaced");
        assert_eq!(read(), "three");
        let nowhere = new_file(&directory.join("none/outrigger.yaml"), "x", false).expect_err("no directory");
        assert!(nowhere.message.contains("cannot write"));
        assert_eq!(std::fs::read_dir(&directory).expect("own directory").count(), 1);
        std::fs::remove_dir_all(&directory).expect("own directory");
    }
}
