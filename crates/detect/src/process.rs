//! Reads processes from /proc. In: process ids. Out: the process tree, open file descriptors, arguments and variables. A process
//! that exits while it is read is omitted. Limits: `PROCESSES_MAX` processes, `DESCRIPTORS_MAX` file descriptors of each,
//! `TEXT_MAX` bytes of arguments and of variables.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub const PROCESSES_MAX: usize = 8192;
pub const DESCRIPTORS_MAX: usize = 4096;
const TEXT_MAX: u64 = 256 << 10;

/// O_ACCMODE and O_RDONLY of open(2), as in the octal `flags` of fdinfo.
const ACCESS_MODE: u32 = 3;
const READ_ONLY: u32 = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub group: u32,
    /// At most 15 bytes, since the kernel truncates it.
    pub name: String,
    /// Clock ticks since boot.
    pub started: u64,
}

/// One open file descriptor: its number and the target of its link.
#[derive(Clone, Debug)]
pub struct Descriptor {
    pub number: u32,
    pub target: PathBuf,
}

impl Process {
    pub fn read(pid: u32) -> Option<Process> {
        let stat = read_start(Path::new(&format!("/proc/{pid}/stat")), 4096).ok()?;
        let process = Process::parse(pid, &String::from_utf8_lossy(&stat))?;
        Some(process)
    }

    /// Fields of proc_pid_stat(5). The name may contain spaces and parentheses, so it ends at the last parenthesis. None for a
    /// zombie.
    fn parse(pid: u32, stat: &str) -> Option<Process> {
        let (start, end) = (stat.find('(')?, stat.rfind(')')?);
        let columns: Vec<&str> = stat.get(end + 1..)?.split_whitespace().collect();
        if matches!(*columns.first()?, "Z" | "X") {
            return None;
        }
        Some(Process {
            pid,
            parent: columns.get(1)?.parse().ok()?,
            group: columns.get(2)?.parse().ok()?,
            name: stat.get(start + 1..end)?.to_string(),
            started: columns.get(19)?.parse().ok()?,
        })
    }

    /// Outrigger itself: this process, or one that runs next to the app already.
    pub fn is_outrigger(&self) -> bool {
        self.pid == std::process::id() || matches!(self.name.as_str(), "outrigger" | "outrigger-worke")
    }
}

pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.take(PROCESSES_MAX).filter_map(Process::read).collect()
}

/// Processes that `is_root` selects, and all their descendants, in the order of their start. Outrigger's processes are omitted,
/// but their descendants are not.
pub fn tree(all: &[Process], is_root: impl Fn(&Process) -> bool) -> Vec<Process> {
    let mut selected: BTreeSet<u32> =
        all.iter().filter(|process| is_root(process)).map(|process| process.pid).collect();
    loop {
        let is_child = |process: &&Process| selected.contains(&process.parent) && !selected.contains(&process.pid);
        let next: Vec<u32> = all.iter().filter(is_child).map(|process| process.pid).collect();
        if next.is_empty() {
            break;
        }
        selected.extend(next);
    }
    let is_selected = |process: &&Process| selected.contains(&process.pid) && !process.is_outrigger();
    let mut tree: Vec<Process> = all.iter().filter(is_selected).cloned().collect();
    tree.sort_by_key(|process| (process.started, process.pid));
    tree
}

/// Errors: the process belongs to another user, or has exited.
pub fn descriptors(pid: u32) -> io::Result<Vec<Descriptor>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().take(DESCRIPTORS_MAX);
    let open = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some(Descriptor { number, target: std::fs::read_link(entry.path()).ok()? })
    });
    Ok(open.collect())
}

impl Descriptor {
    /// The inode of a socket: `socket:[123]`.
    pub fn socket(&self) -> Option<u64> {
        self.target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    }

    pub fn is_open_for_writing(&self, pid: u32) -> bool {
        let info = read_start(Path::new(&format!("/proc/{pid}/fdinfo/{}", self.number)), 4096).unwrap_or_default();
        let info = String::from_utf8_lossy(&info);
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
        flags.is_some_and(|flags| flags & ACCESS_MODE != READ_ONLY)
    }
}

/// The command line; empty if it cannot be read.
pub fn arguments(pid: u32) -> Vec<String> {
    strings(&format!("/proc/{pid}/cmdline"))
}

/// The environment at the process's start; empty if it cannot be read.
pub fn variables(pid: u32) -> Vec<(String, String)> {
    let pairs = strings(&format!("/proc/{pid}/environ"));
    let split = |pair: String| pair.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()));
    pairs.into_iter().filter_map(split).collect()
}

/// NUL-terminated strings.
fn strings(path: &str) -> Vec<String> {
    let bytes = read_start(Path::new(path), TEXT_MAX).unwrap_or_default();
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

pub fn read_start(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_stat(stat: &str, expect: Option<(&str, u32, u32, u64)>) {
        let seen = Process::parse(7, stat);
        let seen = seen.as_ref().map(|p| (p.name.as_str(), p.parent, p.group, p.started));
        assert_eq!(seen, expect, "{stat}");
    }

    #[test]
    fn stat_line_is_parsed_with_any_process_name() {
        let rest = "5 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 9912 1 1";
        check_stat(&format!("7 (a) b) ( c) S {rest}"), Some(("a) b) ( c", 5, 7, 9912)));
        check_stat(&format!("7 (zombie) Z {rest}"), None);
        check_stat("7 (cut) S 5 7", None);
        check_stat("", None);
    }

    fn process(pid: u32, parent: u32, name: &str) -> Process {
        Process { pid, parent, group: pid, name: name.into(), started: u64::from(pid) }
    }

    #[test]
    fn tree_has_all_descendants_but_outrigger() {
        let all = [
            process(1, 0, "init"),
            process(20, 10, "outrigger-worke"),
            process(21, 10, "orders"),
            process(30, 21, "child"),
            process(10, 1, "outrigger"),
            process(40, 1, "other"),
        ];
        let check = |root: u32, expect: &[u32]| {
            let tree = tree(&all, |process| process.pid == root);
            assert_eq!(tree.iter().map(|process| process.pid).collect::<Vec<_>>(), expect);
        };
        check(10, &[21, 30]);
        check(21, &[21, 30]);
        check(40, &[40]);
        check(99, &[]);
    }

    #[test]
    fn own_arguments_variables_and_fds_are_read() {
        let pid = std::process::id();
        assert!(Process::read(pid).is_some_and(|process| process.pid == pid && process.is_outrigger()));
        assert_eq!(arguments(pid).len(), std::env::args().count());
        assert!(variables(pid).iter().any(|(name, _)| name == "PATH"));
        let file = File::options().append(true).open("/dev/null").expect("/dev/null exists");
        let open = descriptors(pid).expect("own descriptors");
        let is_file = |descriptor: &&Descriptor| descriptor.number == std::os::fd::AsRawFd::as_raw_fd(&file) as u32;
        assert!(open.iter().find(is_file).expect("the file is open").is_open_for_writing(pid));
        assert!(descriptors(u32::MAX).is_err() && Process::read(u32::MAX).is_none());
    }
}
