//! What other processes can create at a path that the program reads: pipes, devices, directories, links, huge and changing
//! files. In: a kind and a path. Out: the file, and the monitored time and memory of the program. Limits: the file is
//! removed on drop, and no process monitored here uses more than `DATA_MOST`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::process::{Running, descendants};
use super::{Outrigger, SECOND, get};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A named pipe without a writer: opening it blocks forever.
    Fifo,
    /// A device without an end, in a directory that the program may read.
    Zero,
    /// A device without an end that accepts no byte.
    Full,
    Directory,
    /// A symlink to itself.
    Loop,
    /// A symlink to a valid file outside of what the sandbox grants.
    Outside,
    /// A symlink to /dev/zero.
    ToZero,
    /// 2 GB without an allocated block.
    Sparse,
    /// A valid file that no user may read.
    Unreadable,
    /// Alternately a new valid file and a pipe, thousands of times a second.
    Swapped,
    /// The same, with a file of 2 GB as a third state.
    Changing,
}

impl Kind {
    /// Every kind except `Swapped`, which is a part of `Changing`.
    pub const ALL: [Self; 10] = [
        Self::Fifo,
        Self::Zero,
        Self::Full,
        Self::Directory,
        Self::Loop,
        Self::Outside,
        Self::ToZero,
        Self::Sparse,
        Self::Unreadable,
        Self::Changing,
    ];

    /// A message that describes the file contains one of these words.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::Fifo => &["pipe", "fifo", "regular file"],
            Self::Zero | Self::Full | Self::ToZero => &["device", "regular file"],
            Self::Directory => &["directory", "regular file"],
            Self::Loop => &["symbolic link", "symlink", "loop"],
            Self::Sparse => &["bytes", "large", "mib"],
            Self::Outside | Self::Unreadable => &["permission denied", "sandbox"],
            Self::Swapped | Self::Changing => &[""],
        }
    }
}

/// The file at a path; removed on drop.
pub struct Laid {
    path: PathBuf,
    changing: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

const SPARSE: u64 = 2 << 30;

/// Creates the file in place of what is at the path. `text` is the content of a valid file there; `aside` is a directory
/// of the same file system to which the program has no access. `None` if this machine does not allow such a file.
pub fn lay(kind: Kind, path: &Path, aside: &Path, text: &[u8]) -> Option<Laid> {
    clear(path);
    fs::create_dir_all(path.parent().expect("the path has a parent directory")).expect("the scene is writable");
    fs::create_dir_all(aside).expect("the scene is writable");
    let mut laid = Laid { path: path.to_owned(), changing: None };
    match kind {
        Kind::Fifo => create_fifo(path),
        Kind::Zero => create_device(path, 5)?,
        Kind::Full => create_device(path, 7)?,
        Kind::Directory => fs::create_dir(path).expect("the path is free"),
        Kind::Loop => symlink(path.file_name().expect("the path has a file name"), path).expect("the path is free"),
        Kind::Outside => {
            let good = aside.join("good");
            fs::write(&good, text).expect("the scene is writable");
            symlink(good, path).expect("the path is free");
        }
        Kind::ToZero => symlink("/dev/zero", path).expect("the path is free"),
        Kind::Sparse => create_sparse(path),
        Kind::Unreadable => {
            fs::write(path, text).expect("the scene is writable");
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("the test owns the file");
        }
        Kind::Swapped => laid.changing = Some(change(path, &[create_pipe(aside)], text)),
        Kind::Changing => laid.changing = Some(change(path, &[create_pipe(aside), create_huge(aside)], text)),
    }
    Some(laid)
}

fn create_fifo(path: &Path) {
    let created = mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0);
    created.expect("every user may create a named pipe");
}

/// Memory devices have the major number 1 (Linux, Documentation/admin-guide/devices.txt).
fn create_device(path: &Path, minor: u32) -> Option<()> {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, minor)).ok()
}

fn create_sparse(path: &Path) {
    let file = fs::File::create(path).expect("the scene is writable");
    file.set_len(SPARSE).expect("the file system supports sparse files");
}

fn create_pipe(aside: &Path) -> PathBuf {
    let pipe = aside.join("pipe");
    clear(&pipe);
    create_fifo(&pipe);
    pipe
}

fn create_huge(aside: &Path) -> PathBuf {
    let huge = aside.join("huge");
    clear(&huge);
    create_sparse(&huge);
    huge
}

/// Replaces the path with a new valid file, exchanges it with one of the others and back, repeatedly, until `stop` is set.
fn change(path: &Path, others: &[PathBuf], text: &[u8]) -> (Arc<AtomicBool>, JoinHandle<()>) {
    let (path, others, text) = (path.to_owned(), others.to_vec(), text.to_owned());
    fs::write(&path, &text).expect("the scene is writable");
    let stop = Arc::new(AtomicBool::new(false));
    let changing = std::thread::spawn({
        let stop = stop.clone();
        move || {
            for other in others.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let replacement = other.with_extension("fresh");
                fs::write(&replacement, &text).expect("the scene is writable");
                fs::rename(&replacement, &path).expect("both are on the same file system");
                for _ in 0..2 {
                    // why: each state lasts briefly, and readers get processor time
                    std::thread::sleep(Duration::from_micros(20));
                    renameat_with(CWD, &path, CWD, other, RenameFlags::EXCHANGE).expect("both files exist");
                }
            }
        }
    });
    (stop, changing)
}

impl Drop for Laid {
    fn drop(&mut self) {
        if let Some((stop, changing)) = self.changing.take() {
            stop.store(true, Ordering::Relaxed);
            changing.join().ok();
        }
        clear(&self.path);
    }
}

/// Removes the file at a path. Unblocks a process that waits for the other end of a pipe.
fn clear(path: &Path) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        fs::remove_dir_all(path).ok();
        return;
    }
    if meta.file_type().is_fifo() {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty()).ok();
    }
    fs::remove_file(path).ok();
}

/// The limit of resident memory of the supervisor and of the worker, each.
pub const RESIDENT_MOST_MIB: u64 = 200;

/// The time limits of a probe's response, and of a command that has nothing to wait for.
pub const ANSWER_MOST: Duration = Duration::from_secs(2);
pub const COMMAND_MOST: Duration = Duration::from_secs(8);

/// An allocation beyond this fails, so that a file without an end fails a test and does not exhaust the machine's memory.
const DATA_MOST: u64 = 1 << 30;

/// Applies to a process and all processes that it starts from now on.
pub fn limit_memory(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(DATA_MOST), maximum: Some(DATA_MOST) };
    // A process that has exited already needs no limit.
    prlimit(pid, Resource::Data, limit).ok();
}

/// The result of a monitored command.
#[derive(Debug)]
pub struct Watched {
    /// `None` if it did not exit in time or used too much memory, and was killed.
    pub code: Option<i32>,
    pub stderr: String,
    /// The peak resident memory of one of its processes.
    pub most_mib: u64,
    pub took: Duration,
}

impl Watched {
    /// The error, if any: it hung, or used too much memory.
    pub fn error_text(&self) -> Option<String> {
        if self.most_mib > RESIDENT_MOST_MIB {
            return Some(format!("{} MiB", self.most_mib));
        }
        self.code.is_none().then(|| format!("hung for {:?}", self.took))
    }
}

/// Runs a command that should exit by itself within `COMMAND_MOST`.
pub fn run_watched(command: &[&OsStr]) -> Watched {
    let mut built = Command::new(command.first().expect("a command has a program"));
    built.args(command.get(1..).unwrap_or_default());
    let mut running = Running::spawn(built);
    limit_memory(running.pid());
    let (began, mut most_mib) = (Instant::now(), 0);
    let ended = super::within(COMMAND_MOST, || {
        let all = std::iter::once(running.pid()).chain(descendants(running.pid()));
        most_mib = most_mib.max(all.map(peak_mib).max().unwrap_or(0));
        running.ended().is_some() || most_mib > RESIDENT_MOST_MIB
    });
    let took = began.elapsed();
    let code = (ended && running.ended().is_some()).then(|| running.wait(SECOND));
    Watched { code, stderr: running.stderr.text(), most_mib, took }
}

/// The peak resident memory of a process (proc_pid_status(5), VmHWM); 0 if it has exited.
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Monitors a running program for this time: probes get responses in time, no process uses too much memory, and the worker
/// is not replaced. Returns the first error.
pub fn observe(outrigger: &Outrigger, worker: u32, during: Duration) -> Option<String> {
    let began = Instant::now();
    while began.elapsed() < during {
        for path in ["/live", "/ready"] {
            let sent = Instant::now();
            let reply = get(&outrigger.admin, path);
            let took = sent.elapsed();
            match reply {
                Err(error) => return Some(format!("{path}: no response after {took:.1?}: {error}")),
                Ok(_) if took > ANSWER_MOST => return Some(format!("{path}: response after {took:.1?}")),
                Ok(reply) if path == "/live" && reply.status != 200 => return Some(format!("/live: {}", reply.text())),
                Ok(_) => {}
            }
        }
        let mib = [outrigger.pid(), worker].map(peak_mib).into_iter().max().unwrap_or(0);
        if mib > RESIDENT_MOST_MIB {
            return Some(format!("{mib} MiB"));
        }
        if outrigger.find_worker() != Some(worker) {
            return Some("the worker has exited".to_owned());
        }
        // why: the probe interval, so that monitoring leaves the processors to the monitored program
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}
