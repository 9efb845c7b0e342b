//! The end of an app that runs in another container. In: a tombstone, a process name or a file with a process id. Out: its exit code,
//! once. Processes are watched by a pidfd (pidfd_open(2)), which needs a shared process namespace; files are looked at again and
//! again, since a shared volume tells nobody of changes in another container.

use super::External;
use base::runtime::health::Health;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A file that is older than our own start by no more than this may be of an app that was quicker than we: the other container starts
/// when it likes, and times of files are kept in seconds. An older one may as well be of a life before, on a volume that outlives
/// its containers.
const OLD: i64 = 5;

/// More is in neither of the two files.
const FILE_MAX: u64 = 64;

/// A file that is there and empty may be about to be written; after this it means that whoever made it has no more to say.
const EMPTY_WAIT: Duration = Duration::from_secs(1);

/// The exit code of an app whose own code cannot be read: no success.
const UNKNOWN: i32 = 1;

/// What health calls the exit file.
const PART: &str = "app.external.exit_code_file";

/// A file that was there when we started, or has come since.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    changed: (i64, i64),
}

/// What a look at the files showed.
struct Seen {
    tombstone: Option<(Stamp, Vec<u8>)>,
    pid: Option<i32>,
    trouble: Option<String>,
}

/// Waits for the first sign of the end, and tells it. `since`: when we started, in seconds since 1970.
pub async fn watch(external: External, since: i64, health: Arc<Health>, gone: impl Fn(i32)) {
    let path = external.exit_code_file.clone().unwrap_or_default();
    let since = since - OLD;
    let mut watched: Option<(i32, OwnedFd)> = None;
    let mut old: Option<Stamp> = None;
    let mut empty_since: Option<Instant> = None;
    health.component(PART, "exit_code_file");
    loop {
        let Some(seen) = look(&external, since).await else { return };
        note(&health, seen.trouble);
        if let Some((stamp, text)) = seen.tombstone {
            let is_new = old.is_none_or(|old| old != stamp);
            if is_new && stamp.changed.0 < since {
                // Clocks tell no lives apart: it may be of this one, or of one before on the same volume.
                old = Some(stamp);
                let shown = path.display();
                let text = format!(
                    "stale exit-code file {shown} ignored: older than this process; delete it when the app starts"
                );
                tracing::warn!("{text}");
                health.fault(PART, text);
            } else if is_new
                && text.trim_ascii().is_empty()
                && empty_since.get_or_insert_with(Instant::now).elapsed() < EMPTY_WAIT
            {
                // Between its creation and its first byte.
            } else if is_new {
                let code = code_of(&path, &text);
                tracing::info!(code, "app exited (exit-code file found)");
                return gone(code);
            }
        }
        let by_name = || external.process_name.as_deref().filter(|_| watched.is_none()).and_then(find_process);
        // A file that names another process than before is right: it was of a life before, or the app has started itself anew.
        let other = seen.pid.or_else(by_name).filter(|pid| watched.as_ref().is_none_or(|(watched, _)| watched != pid));
        let opened = other.and_then(|pid| Some((pid, pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?)));
        if let Some((pid, _)) = opened {
            tracing::info!(pid, "watching the app's process");
        }
        watched = opened.or(watched);
        tokio::time::sleep(LOOK_EVERY).await;
        // A pidfd becomes readable when its process has ended; unlike a process id it never means another one.
        if watched.as_ref().is_some_and(|(_, process)| sys::ready::is_readable(process.as_fd())) {
            tracing::info!("app process exited");
            return gone(code_of_ended(&external, since, old).await);
        }
    }
}

/// The code of an app whose process has ended: of a child of somebody else it is not told, but its container may write the
/// tombstone still.
async fn code_of_ended(external: &External, since: i64, old: Option<Stamp>) -> i32 {
    let Some(path) = &external.exit_code_file else { return 0 };
    let ended = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(seen) = look(external, since).await else { return UNKNOWN };
        let is_late = ended.elapsed() >= EMPTY_WAIT;
        match seen.tombstone.filter(|(stamp, _)| old != Some(*stamp)) {
            Some((_, text)) if is_late || !text.trim_ascii().is_empty() => return code_of(path, &text),
            None if is_late => {
                tracing::warn!(file = %path.display(), "app process exited without writing the exit-code file; exit code 1");
                return UNKNOWN;
            }
            _ => {}
        }
    }
}

fn note(health: &Health, trouble: Option<String>) {
    const FILE: &str = "app.external.exit_code_file file";
    match trouble {
        Some(text) => {
            if health.fault(FILE, text.clone()) {
                tracing::warn!(error = text, "cannot watch for the app's exit");
            }
        }
        None => drop(health.recovered(FILE)),
    }
}

/// Reads the files on a thread that may block: a volume of others may be slow, or hold anything. None at our own end.
async fn look(external: &External, since: i64) -> Option<Seen> {
    let (tombstone, pid_file) = (external.exit_code_file.clone(), external.pid_file.clone());
    let look = move || {
        let mut trouble = None;
        let tombstone = tombstone.and_then(|path| read_tombstone(&path, &mut trouble));
        let pid = pid_file.and_then(|path| read_pid(&path, since, &mut trouble));
        Seen { tombstone, pid, trouble }
    };
    tokio::task::spawn_blocking(look).await.ok()
}

/// A tombstone that is there, and its text.
pub fn read_tombstone(path: &Path, trouble: &mut Option<String>) -> Option<(Stamp, Vec<u8>)> {
    let meta = std::fs::metadata(path).ok()?;
    let stamp = Stamp { inode: (meta.dev(), meta.ino()), changed: (meta.mtime(), meta.mtime_nsec()) };
    match base::system::file::read(path, FILE_MAX) {
        Ok(text) => Some((stamp, text)),
        // Of a regular file it is the content that is wrong: no code.
        Err(_) if meta.is_file() => Some((stamp, b"?".to_vec())),
        Err(error) => {
            *trouble = Some(error.to_string());
            None
        }
    }
}

/// The code as text. One that is no number from 0 to 255 is no success; an empty file is one.
pub fn code_of(path: &Path, text: &[u8]) -> i32 {
    let text = String::from_utf8_lossy(text.trim_ascii());
    if text.is_empty() {
        return 0;
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|code| digits && (0..256).contains(code)) {
        Some(code) => code,
        None => {
            let (file, text) = (path.display(), text.chars().take(FILE_MAX as usize).collect::<String>());
            tracing::warn!(%file, text, "invalid exit code in the exit-code file (expected 0–255); using 1");
            UNKNOWN
        }
    }
}

/// The process in a file. One that started after an old file was written has the number of another: the file is of a life before.
pub fn read_pid(path: &Path, since: i64, trouble: &mut Option<String>) -> Option<i32> {
    let written = std::fs::metadata(path).ok()?.mtime();
    let text = match base::system::file::read(path, FILE_MAX) {
        Ok(text) => text,
        Err(error) => {
            *trouble = Some(error.to_string());
            return None;
        }
    };
    let pid: i32 = std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok().filter(|pid| *pid > 0)?;
    let has_changed =
        written < since && base::system::start_time::process(pid).is_some_and(|started| started > written + CLOCKS);
    (!has_changed).then_some(pid)
}

/// What two clocks may differ: the kernel counts starts from its own, in whole seconds since it started.
const CLOCKS: i64 = 2;

/// A process by its name as the kernel keeps it (proc_pid_comm(5), at most 15 bytes).
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
