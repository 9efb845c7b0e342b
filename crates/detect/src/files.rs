//! Open log files. In: processes. Out: regular files that they have open for writing and that are named like logs, each with a
//! guess at its format. Limits: `FILES_MAX` files; the last `TAIL` bytes of each are read.

use crate::format::{Guess, sniff};
use crate::process::{Descriptor, Process};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

pub const FILES_MAX: usize = 64;
pub const TAIL: u64 = 64 << 10;

const EXTENSIONS: [&str; 4] = ["log", "out", "err", "json"];

/// A log file that a process has open.
#[derive(Clone, Debug)]
pub struct LogFile {
    pub path: PathBuf,
    pub pid: u32,
    pub owner: String,
    pub descriptor: u32,
    /// Device and inode.
    id: (u64, u64),
    pub size: u64,
    /// Outrigger sees the same file at this path.
    pub is_visible: bool,
    pub guess: Guess,
}

/// The log files of one process.
pub fn of_process(process: &Process, open: &[Descriptor]) -> Vec<LogFile> {
    let files = open.iter().filter(|descriptor| is_named_like_a_log(&descriptor.target)).filter_map(|descriptor| {
        let link = descriptor_path(process.pid, descriptor.number);
        // The link resolves to the open file itself, even in another container.
        let metadata = std::fs::metadata(&link).ok().filter(Metadata::is_file)?;
        let is_log = metadata.nlink() > 0 && descriptor.is_open_for_writing(process.pid);
        is_log.then(|| LogFile {
            path: descriptor.target.clone(),
            pid: process.pid,
            owner: process.name.clone(),
            descriptor: descriptor.number,
            id: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            is_visible: false,
            guess: sniff(b"", false),
        })
    });
    files.collect()
}

fn descriptor_path(pid: u32, descriptor: u32) -> PathBuf {
    format!("/proc/{pid}/fd/{descriptor}").into()
}

fn is_named_like_a_log(path: &Path) -> bool {
    if !path.is_absolute() {
        return false;
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    let is_log_directory = |part: Component<'_>| part.as_os_str() == "log" || part.as_os_str() == "logs";
    let directories = path.parent().map(Path::components);
    EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
        || directories.is_some_and(|mut all| all.any(is_log_directory))
}

impl LogFile {
    /// Reads its tail, as late as possible, since it has more lines by then.
    pub fn read(&mut self) {
        let is_same = |found: &Metadata| found.is_file() && (found.dev(), found.ino()) == self.id;
        let open = |path: &Path| {
            // If a pipe has replaced the file, opening it must not block.
            let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
            let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
            let found = file.metadata().ok().filter(|found| is_same(found))?;
            Some((file, found.len()))
        };
        let at_path = open(&self.path);
        self.is_visible = at_path.is_some();
        let opened = at_path.or_else(|| open(&descriptor_path(self.pid, self.descriptor)));
        if let Some((mut file, size)) = opened
            && let Ok(tail) = tail_of(&mut file, size)
        {
            self.size = size;
            self.guess = sniff(&tail, size > TAIL);
        }
    }
}

fn tail_of(file: &mut File, size: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use std::io::Write as _;

    #[test]
    fn logs_are_recognised_by_name_and_directory() {
        let check = |path: &str, expect: bool| assert_eq!(is_named_like_a_log(Path::new(path)), expect, "{path}");
        check("/srv/app.log", true);
        check("/srv/app.OUT", true);
        check("/srv/events.json", true);
        check("/var/log/orders", true);
        check("/srv/logs/today/orders.txt", true);
        check("/srv/logs", false);
        check("/srv/catalog/orders.db", false);
        check("/srv/orders.txt", false);
        check("pipe:[17]", false);
        check("/srv/app.log (deleted)", false);
    }

    #[test]
    fn open_log_is_read_even_if_a_pipe_replaces_it() {
        let directory = std::env::temp_dir().join(format!("detect-files-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("app.log");
        let mut file = File::options().append(true).create(true).open(&path).expect("a file");
        let line = "{\"n\":1,\"text\":\"0123456789012345678901234567890123456789\"}\n";
        file.write_all(line.repeat(2000).as_bytes()).expect("enough space");
        let read_only = File::open(&path).expect("the file exists");
        let process = Process::read(std::process::id()).expect("this process");
        let find = || {
            let open = crate::process::descriptors(process.pid).expect("own descriptors");
            of_process(&process, &open).into_iter().filter(|file| file.path == path).collect::<Vec<_>>()
        };
        let mut found = find();
        assert_eq!(found.len(), 1, "a file that is open only for reading does not count");
        found[0].read();
        assert_eq!((found[0].guess.format, found[0].is_visible), (Format::Json, true));
        assert!(found[0].guess.lines < 2000 && found[0].guess.fit == found[0].guess.lines);
        std::fs::rename(&path, directory.join("app.log.1")).expect("renamed");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        let mut renamed = found.remove(0);
        renamed.read();
        assert_eq!((renamed.guess.format, renamed.is_visible), (Format::Json, false));
        drop((file, read_only));
        assert!(find().is_empty());
        std::fs::remove_dir_all(&directory).expect("own directory");
    }
}
