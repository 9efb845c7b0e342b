//! The end of an app that runs in another container. In: a tombstone, a process name or a file with a process id. Out: its exit code,
//! once. Processes are watched by a pidfd (pidfd_open(2)), which needs a shared process namespace; files are looked at again and
//! again, since a shared volume tells nobody of changes in another container.

use super::End;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A tombstone that is older than our own start by more than this is of a life before: a volume outlives a restart of its
/// containers, which takes ten seconds or more. A younger one may be of an app that was quicker than we.
const OLD: i64 = 5;

/// Waits for the first sign of the end, and tells it. `since`: when we started, in seconds since 1970.
pub async fn watch(end: End, since: i64, gone: impl Fn(i32)) {
    let mut watched: Option<(i32, OwnedFd)> = None;
    let read_tombstone = |path: &Path| read_tombstone(path, since - OLD);
    loop {
        if let Some(code) = end.tombstone.as_deref().and_then(read_tombstone) {
            tracing::info!(code, "the app has left its tombstone");
            return gone(code);
        }
        let by_file = end.pid_file.as_deref().and_then(|path| read_pid(path, since - OLD));
        let by_name = || end.process.as_deref().filter(|_| watched.is_none()).and_then(find_process);
        // A file that names another process than before is right: it was of a life before, or the app has started itself anew.
        let other = by_file.or_else(by_name).filter(|pid| watched.as_ref().is_none_or(|(watched, _)| watched != pid));
        let opened = other.and_then(|pid| Some((pid, pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?)));
        if let Some((pid, _)) = opened {
            tracing::info!(pid, "watching the app's process");
        }
        watched = opened.or(watched);
        tokio::time::sleep(LOOK_EVERY).await;
        // A pidfd becomes readable when its process has ended; unlike a process id it never means another one.
        if watched.as_ref().is_some_and(|(_, process)| sys::ready::is_readable(process.as_fd())) {
            tracing::info!("the app's process has ended");
            // Its container may still be writing the tombstone. Of a child of somebody else the code is not told.
            tokio::time::sleep(LOOK_EVERY).await;
            return gone(end.tombstone.as_deref().and_then(read_tombstone).unwrap_or(0));
        }
    }
}

/// The code in a tombstone that is not older; one that holds no number means 0.
fn read_tombstone(path: &Path, not_before: i64) -> Option<i32> {
    if std::fs::metadata(path).ok()?.mtime() < not_before {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().parse().ok().filter(|code| (0..256).contains(code)).unwrap_or(0))
}

/// The process in a file. One that started after an old file was written has the number of another: the file is of a life before.
fn read_pid(path: &Path, old: i64) -> Option<i32> {
    let written = std::fs::metadata(path).ok()?.mtime();
    let pid: i32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let is_another = written < old && base::started::process(pid).is_some_and(|started| started > written + CLOCKS);
    (!is_another).then_some(pid)
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
