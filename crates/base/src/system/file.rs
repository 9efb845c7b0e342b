//! Small files that other processes write. In: a path and a limit. Out: the bytes, or an error sentence. Opening never blocks,
//! neither on the other end of a pipe nor on a device. Limits: `max` bytes, regardless of the reported file size.

use rustix::fs::OFlags;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Opens a regular file; symlinks are followed.
pub fn open(path: &Path) -> io::Result<File> {
    open_regular(path, OpenOptions::new().read(true), OFlags::empty()).map_err(|error| with_path(path, &error))
}

/// Opens a file that only Outrigger writes, with `options`. A symlink in its place is an error: it may point elsewhere.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    open_regular(path, options.mode(0o600), OFlags::NOFOLLOW).map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => {
            io::Error::other(format!("{}: expected a regular file, found a symlink", path.display()))
        }
        _ => with_path(path, &error),
    })
}

/// Opens a regular file with `options` and further flags; the caller adds the path to the error.
pub fn open_regular(path: &Path, options: &mut OpenOptions, flags: OFlags) -> io::Result<File> {
    let file = options.custom_flags((OFlags::NONBLOCK | flags).bits().cast_signed()).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(io::Error::other(not_regular(kind)))
}

/// The error for a file that is not a regular file.
pub fn not_regular(kind: FileType) -> String {
    let found = match kind {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_char_device() || kind.is_block_device() => "a device",
        _ if kind.is_socket() => "a socket",
        _ => "a special file",
    };
    format!("expected a regular file, found {found}")
}

/// Detects a file that was changed or replaced. Its size and mtime may be unchanged (`cp -p`, Nix, ostree), but then the inode or
/// the ctime differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Follows symlinks; None if the file does not exist.
    pub fn of(path: &Path) -> Option<Stamp> {
        let meta = std::fs::metadata(path).ok()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Some(Stamp { device: meta.dev(), inode: meta.ino(), size: meta.size(), changed })
    }
}

/// The complete file; an error if it is larger than `max`.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| with_path(path, &error))?;
    if bytes.len() as u64 > max {
        let text = format!("{} is larger than the limit of {} bytes", path.display(), max);
        return Err(io::Error::other(text));
    }
    Ok(bytes)
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let dir = std::env::temp_dir().join(format!("outrigger-file-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory");
        let (pipe, plain, sparse, link) = (dir.join("pipe"), dir.join("plain"), dir.join("sparse"), dir.join("link"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
        std::fs::write(&plain, "12345").expect("written");
        File::create(&sparse).and_then(|file| file.set_len(2 << 30)).expect("a sparse file");
        std::os::unix::fs::symlink("plain", &link).expect("a link");
        let check = |path: &Path, max: u64, expect: Result<&[u8], &str>| match (read(path, max), expect) {
            (Ok(bytes), Ok(expect)) => assert_eq!(bytes, expect),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expect) => panic!("{}: got {got:?}, expected {expect:?}", path.display()),
        };
        check(&plain, 5, Ok(b"12345"));
        check(&link, 5, Ok(b"12345"));
        check(&plain, 4, Err("limit of 4 bytes"));
        check(&sparse, 64, Err("limit of 64 bytes"));
        check(&pipe, 64, Err("found a named pipe"));
        check(&dir, 64, Err("found a directory"));
        check(Path::new("/dev/zero"), 64, Err("found a device"));
        check(&dir.join("none"), 64, Err("none: No such file"));
        let _ = std::fs::remove_dir_all(&dir);
    }
}
