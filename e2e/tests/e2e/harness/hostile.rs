//! What others can lay at a path that the program reads: pipes, devices, folders, links, huge and changing files. A
//! kind and a path come in; the file, and a watch over the program's time and memory beside it, come out. Bounded:
//! what is laid is gone when it is dropped, and no process watched here takes more than `DATA_MOST`.

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
    /// A named pipe that nobody writes to: opening it waits for ever.
    Fifo,
    /// A device that has no end, in a directory that the program may read.
    Zero,
    /// One that has no end and takes no byte.
    Full,
    Directory,
    /// A symlink to itself.
    Loop,
    /// A symlink to a good file, outside of what the sandbox grants.
    Outside,
    /// A symlink to /dev/zero.
    ToZero,
    /// 2 GB without a block on the disk.
    Sparse,
    /// A good file that nobody may read.
    Unreadable,
    /// By turns a new good file and a pipe, thousands of times a second.
    Swapped,
    /// The same with 2 GB as a third.
    Changing,
}

impl Kind {
    /// Every kind but `Swapped`, which is a part of `Changing`.
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

    /// One of these stands in a message that says what it is.
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

/// What lies at a path until it is dropped.
pub struct Laid {
    path: PathBuf,
    changing: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

const SPARSE: u64 = 2 << 30;

/// Lays it in the place of whatever is at the path. `text` is what a good file has there; `aside` is a directory of
/// the same file system that the program is not granted. `None` where this machine lets nobody make it.
pub fn lay(kind: Kind, path: &Path, aside: &Path, text: &[u8]) -> Option<Laid> {
    clear(path);
    fs::create_dir_all(path.parent().expect("it lies in a directory")).expect("the scene takes directories");
    fs::create_dir_all(aside).expect("the scene takes directories");
    let mut laid = Laid { path: path.to_owned(), changing: None };
    match kind {
        Kind::Fifo => make_fifo(path),
        Kind::Zero => make_device(path, 5)?,
        Kind::Full => make_device(path, 7)?,
        Kind::Directory => fs::create_dir(path).expect("the path is free"),
        Kind::Loop => symlink(path.file_name().expect("it has a name"), path).expect("the path is free"),
        Kind::Outside => {
            let good = aside.join("good");
            fs::write(&good, text).expect("the scene takes files");
            symlink(good, path).expect("the path is free");
        }
        Kind::ToZero => symlink("/dev/zero", path).expect("the path is free"),
        Kind::Sparse => make_sparse(path),
        Kind::Unreadable => {
            fs::write(path, text).expect("the scene takes files");
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).expect("it is our file");
        }
        Kind::Swapped => laid.changing = Some(change(path, &[pipe(aside)], text)),
        Kind::Changing => laid.changing = Some(change(path, &[pipe(aside), huge(aside)], text)),
    }
    Some(laid)
}

fn make_fifo(path: &Path) {
    let made = mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0);
    made.expect("everybody may make a named pipe");
}

/// Memory devices have the major number 1 (Linux, Documentation/admin-guide/devices.txt).
fn make_device(path: &Path, minor: u32) -> Option<()> {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, minor)).ok()
}

fn make_sparse(path: &Path) {
    let file = fs::File::create(path).expect("the scene takes files");
    file.set_len(SPARSE).expect("the file system has sparse files");
}

fn pipe(aside: &Path) -> PathBuf {
    let pipe = aside.join("pipe");
    clear(&pipe);
    make_fifo(&pipe);
    pipe
}

fn huge(aside: &Path) -> PathBuf {
    let huge = aside.join("huge");
    clear(&huge);
    make_sparse(&huge);
    huge
}

/// A new good file takes the path, is exchanged with one of the others and back, by turns, until it is told to stop.
fn change(path: &Path, others: &[PathBuf], text: &[u8]) -> (Arc<AtomicBool>, JoinHandle<()>) {
    let (path, others, text) = (path.to_owned(), others.to_vec(), text.to_owned());
    fs::write(&path, &text).expect("the scene takes files");
    let stop = Arc::new(AtomicBool::new(false));
    let changing = std::thread::spawn({
        let stop = stop.clone();
        move || {
            for other in others.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let fresh = other.with_extension("fresh");
                fs::write(&fresh, &text).expect("the scene takes files");
                fs::rename(&fresh, &path).expect("they are on one file system");
                for _ in 0..2 {
                    // why: each state lasts for a moment, and a processor is left to those who read
                    std::thread::sleep(Duration::from_micros(20));
                    renameat_with(CWD, &path, CWD, other, RenameFlags::EXCHANGE).expect("both are there");
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

/// Removes whatever is at a path. A process that waits for the other end of a pipe is let go.
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

/// What supervisor and worker may each have in memory.
pub const RESIDENT_MOST_MIB: u64 = 200;

/// How soon a probe is answered, and how soon a command ends that has nothing to wait for.
pub const ANSWER_MOST: Duration = Duration::from_secs(2);
pub const COMMAND_MOST: Duration = Duration::from_secs(8);

/// An allocation beyond this fails, so that a file without an end costs a test and not the machine.
const DATA_MOST: u64 = 1 << 30;

/// For a process and all that it starts from now on.
pub fn limit_memory(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let limit = Rlimit { current: Some(DATA_MOST), maximum: Some(DATA_MOST) };
    // A process that has ended already needs no limit.
    prlimit(pid, Resource::Data, limit).ok();
}

/// How a command ended that was watched.
#[derive(Debug)]
pub struct Watched {
    /// `None` where it did not end in time or took too much memory, and was killed.
    pub code: Option<i32>,
    pub stderr: String,
    /// The most that one of its processes had in memory.
    pub most_mib: u64,
    pub took: Duration,
}

impl Watched {
    /// What is wrong with its end: it hung, or took too much.
    pub fn error_text(&self) -> Option<String> {
        if self.most_mib > RESIDENT_MOST_MIB {
            return Some(format!("{} MiB", self.most_mib));
        }
        self.code.is_none().then(|| format!("hung for {:?}", self.took))
    }
}

/// Runs a command that should end by itself within `COMMAND_MOST`.
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

/// The most that a process ever had in memory (proc_pid_status(5), VmHWM); 0 when it is gone.
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Watches a program that runs, for a while: probes are answered in time, nobody takes too much memory, and the worker
/// stays. Answers the first trouble.
pub fn observe(outrigger: &Outrigger, worker: u32, during: Duration) -> Option<String> {
    let began = Instant::now();
    while began.elapsed() < during {
        for path in ["/live", "/ready"] {
            let asked = Instant::now();
            let reply = get(&outrigger.admin, path);
            let took = asked.elapsed();
            match reply {
                Err(error) => return Some(format!("{path} has no answer after {took:.1?}: {error}")),
                Ok(_) if took > ANSWER_MOST => return Some(format!("{path} is answered after {took:.1?}")),
                Ok(reply) if path == "/live" && reply.status != 200 => return Some(format!("/live: {}", reply.text())),
                Ok(_) => {}
            }
        }
        let mib = [outrigger.pid(), worker].map(peak_mib).into_iter().max().unwrap_or(0);
        if mib > RESIDENT_MOST_MIB {
            return Some(format!("{mib} MiB"));
        }
        if outrigger.find_worker() != Some(worker) {
            return Some("the worker is gone".to_owned());
        }
        // why: the pace of the probes, so that the watch leaves the processors to what it watches
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}
