//! The exit of an app that runs in another container. In: an exit-code file, a process name or a file with a process ID. Out: its
//! exit code, once. Processes are watched by a pidfd (pidfd_open(2)), which requires a shared process namespace; files are
//! polled, since a shared volume sends no notifications of changes made in another container.

use super::External;
use base::runtime::health::Health;
use base::system::process::{ProcessStat, boot_time};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A file that is at most this much older than Outrigger's start may be of the current app: the other container may start
/// earlier, and file times have a resolution of seconds. An older file may be of a previous run, on a volume that outlives its
/// containers.
const STALE_AFTER: i64 = 5;

/// Neither of the two files is longer.
const FILE_MAX: u64 = 64;

/// An empty file may be about to be written; after this time it counts as complete.
const EMPTY_WAIT: Duration = Duration::from_secs(1);

/// The exit code of an app whose own code cannot be read: a failure.
const UNKNOWN: i32 = 1;

/// The name of the exit-code file in health.
const PART: &str = "app.external.exit_code_file";

/// The identity and modification time of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    changed: (i64, i64),
}

/// The result of one poll of the files.
struct Polled {
    exit_code: Option<(Stamp, Vec<u8>)>,
    pid: Option<i32>,
    error: Option<String>,
}

/// Waits for the first indication of the exit and reports it. `since`: when Outrigger started, as Unix time in seconds.
pub async fn watch(external: External, since: i64, health: Arc<Health>, on_exit: impl Fn(i32)) {
    let path = external.exit_code_file.clone().unwrap_or_default();
    let since = since - STALE_AFTER;
    let mut watched: Option<(i32, OwnedFd)> = None;
    let mut old: Option<Stamp> = None;
    let mut empty_since: Option<Instant> = None;
    health.component(PART, "exit_code_file");
    loop {
        let Some(polled) = poll(&external, since).await else { return };
        note(&health, polled.error);
        if let Some((stamp, text)) = polled.exit_code {
            let is_new = old.is_none_or(|old| old != stamp);
            if is_new && stamp.changed.0 < since {
                // The time alone does not decide: the file may be of this run or of a previous one on the same volume.
                old = Some(stamp);
                let shown = path.display();
                let message = format!(
                    "stale exit-code file {shown} ignored: older than this process; delete it when the app starts"
                );
                tracing::warn!(component = "app", "{message}");
                health.fault(PART, message);
            } else if is_new
                && text.trim_ascii().is_empty()
                && empty_since.get_or_insert_with(Instant::now).elapsed() < EMPTY_WAIT
            {
                // Created, but not written yet.
            } else if is_new {
                let code = code_of(&path, &text);
                tracing::info!(component = "app", code, "exit-code file found");
                return on_exit(code);
            }
        }
        let by_name = || external.process_name.as_deref().filter(|_| watched.is_none()).and_then(find_process);
        // A new process ID replaces the previous one: the old file was of a previous run, or the app has restarted itself.
        let other =
            polled.pid.or_else(by_name).filter(|pid| watched.as_ref().is_none_or(|(watched, _)| watched != pid));
        let opened = other.and_then(|pid| Some((pid, pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?)));
        if let Some((pid, _)) = opened {
            tracing::info!(component = "app", pid, "watching the app's process");
        }
        watched = opened.or(watched);
        tokio::time::sleep(POLL_INTERVAL).await;
        // A pidfd becomes readable when its process has exited; unlike a process ID it is never reused.
        if watched.as_ref().is_some_and(|(_, process)| sys::ready::is_readable(process.as_fd())) {
            tracing::info!(component = "app", "the app's process exited");
            return on_exit(code_after_exit(&external, since, old).await);
        }
    }
}

/// The code of an app whose process has exited: the kernel reports it only to the parent, but the app's container may still write
/// the exit-code file.
async fn code_after_exit(external: &External, since: i64, old: Option<Stamp>) -> i32 {
    let Some(path) = &external.exit_code_file else { return 0 };
    let exited_at = Instant::now();
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let Some(polled) = poll(external, since).await else { return UNKNOWN };
        let is_late = exited_at.elapsed() >= EMPTY_WAIT;
        match polled.exit_code.filter(|(stamp, _)| old != Some(*stamp)) {
            Some((_, text)) if is_late || !text.trim_ascii().is_empty() => return code_of(path, &text),
            None if is_late => {
                tracing::warn!(component = "app", path = %path.display(), "app process exited without writing the exit-code file; exit code 1");
                return UNKNOWN;
            }
            _ => {}
        }
    }
}

fn note(health: &Health, error: Option<String>) {
    const FILE: &str = "app.external.exit_code_file file";
    match error {
        Some(error) => {
            if health.fault(FILE, error.clone()) {
                tracing::warn!(component = "app", error, "cannot watch for the app's exit");
            }
        }
        None => drop(health.recovered(FILE)),
    }
}

/// Reads the files on a blocking thread: the volume may be slow, and the paths may be of any file type. None if the runtime
/// stops.
async fn poll(external: &External, since: i64) -> Option<Polled> {
    let (exit_code_file, pid_file) = (external.exit_code_file.clone(), external.pid_file.clone());
    let read = move || {
        let mut error = None;
        let exit_code = exit_code_file.and_then(|path| read_exit_code_file(&path, &mut error));
        let pid = pid_file.and_then(|path| read_pid(&path, since, &mut error));
        Polled { exit_code, pid, error }
    };
    tokio::task::spawn_blocking(read).await.ok()
}

/// The exit-code file, if it exists, and its text.
pub fn read_exit_code_file(path: &Path, failure: &mut Option<String>) -> Option<(Stamp, Vec<u8>)> {
    let meta = std::fs::metadata(path).ok()?;
    let stamp = Stamp { inode: (meta.dev(), meta.ino()), changed: (meta.mtime(), meta.mtime_nsec()) };
    match base::system::file::read(path, FILE_MAX) {
        Ok(text) => Some((stamp, text)),
        // If it is a regular file, its content is invalid: not a code.
        Err(_) if meta.is_file() => Some((stamp, b"?".to_vec())),
        Err(error) => {
            *failure = Some(error.to_string());
            None
        }
    }
}

/// Parses the code. Text that is not a number from 0 to 255 is a failure; an empty file is a success.
pub fn code_of(path: &Path, text: &[u8]) -> i32 {
    let text = String::from_utf8_lossy(text.trim_ascii());
    if text.is_empty() {
        return 0;
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|code| digits && (0..256).contains(code)) {
        Some(code) => code,
        None => {
            let (path, value) = (path.display(), text.chars().take(FILE_MAX as usize).collect::<String>());
            tracing::warn!(component = "app", %path, value, "invalid exit code in the exit-code file (expected 0–255); using 1");
            UNKNOWN
        }
    }
}

/// The process in a file. A process that started after an old file was written has reused the ID: the file is of a previous run.
pub fn read_pid(path: &Path, since: i64, failure: &mut Option<String>) -> Option<i32> {
    let written = std::fs::metadata(path).ok()?.mtime();
    let text = match base::system::file::read(path, FILE_MAX) {
        Ok(text) => text,
        Err(error) => {
            *failure = Some(error.to_string());
            return None;
        }
    };
    let pid: i32 = std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok().filter(|pid| *pid > 0)?;
    let has_changed =
        written < since && started_at(pid).is_some_and(|started_at| started_at > written + CLOCK_TOLERANCE);
    (!has_changed).then_some(pid)
}

/// In Unix time.
fn started_at(pid: i32) -> Option<i64> {
    Some(ProcessStat::read(pid)?.start_time(boot_time()?) as i64)
}

/// Tolerance between two clocks: the kernel counts start times on its own clock, in full seconds since boot.
const CLOCK_TOLERANCE: i64 = 2;

/// A process by its name in the kernel (proc_pid_comm(5), at most 15 bytes).
fn find_process(name: &str) -> Option<i32> {
    let short = name.get(..name.len().min(15)).unwrap_or(name);
    let mut pids: Vec<i32> = std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == short))
        .collect();
    pids.sort_unstable();
    pids.first().copied()
}
