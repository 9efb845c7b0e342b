//! Resource usage from /proc: CPU and memory of a process and all its descendants.
//!
//! CPU per request is from `stat`, which includes exited threads and reaped children, in steps of 10 ms; all other CPU
//! is from `schedstat`, which counts nanoseconds but does not include exited threads. Memory is the sum of PSS, plus
//! unmapped pages of memfds and of tmpfs files, since the program holds them too.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// User and system time, including exited threads and reaped children.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }

    pub fn total(self) -> Duration {
        self.user + self.system
    }
}

/// Memory of a set of processes, in bytes.
pub struct Memory {
    /// Proportional set size, plus pages that only a file descriptor holds.
    pub pss: u64,
    /// Sum of VmRSS; counts shared pages once per process.
    pub rss: u64,
}

/// `root` and every living descendant, in no particular order.
pub fn tree(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(parent) = stat_fields(pid).and_then(|fields| fields.get(1)?.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// The arguments of a process's command line.
pub fn command_line(pid: u32) -> Vec<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(|w| String::from_utf8_lossy(w).into()).collect()
}

/// The short name in the kernel, at most 15 bytes.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

pub fn cpu(pids: &[u32]) -> Cpu {
    let tick = Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    let mut sum = Cpu::default();
    for fields in pids.iter().filter_map(|pid| stat_fields(*pid)) {
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
        // Fields 14 to 17 of proc(5): user, system, and both again for reaped children. The list starts at field 3.
        sum.user += tick * (ticks(11) + ticks(13));
        sum.system += tick * (ticks(12) + ticks(14));
    }
    sum
}

/// The usage of the running threads since the start of each.
pub struct Threads(HashMap<String, Spent>);

#[derive(Clone, Copy, Default)]
pub struct Spent {
    /// Time on a core, user and system together.
    pub on_core: Duration,
    /// Voluntary context switches: each means that the thread had been woken.
    pub sleeps: u64,
}

pub fn threads(pids: &[u32]) -> Threads {
    let mut threads = HashMap::new();
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let (time, status) = (text("schedstat"), text("status"));
            let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let number = |text: Option<&str>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            let on_core = Duration::from_nanos(number(time.split_whitespace().next()));
            let spent = Spent { on_core, sleeps: number(sleeps) };
            threads.insert(thread.file_name().to_string_lossy().into_owned(), spent);
        }
    }
    Threads(threads)
}

impl Threads {
    /// Per thread, so that an exited thread does not reduce the sum.
    pub fn since(&self, earlier: &Self) -> Spent {
        let mut sum = Spent::default();
        for (thread, spent) in &self.0 {
            let before = earlier.0.get(thread).copied().unwrap_or_default();
            sum.on_core += spent.on_core.saturating_sub(before.on_core);
            sum.sleeps += spent.sleeps.saturating_sub(before.sleeps);
        }
        sum
    }
}

/// `written` are the directories that the program writes to: on a tmpfs their pages count as memory.
pub fn memory(pids: &[u32], written: &[&Path]) -> Result<Memory, String> {
    let mut memory = Memory { pss: 0, rss: 0 };
    let mut memfds = HashSet::new();
    let mut held = 0;
    let mut mapped = 0;
    for pid in pids {
        memory.pss += kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?;
        memory.rss += kilobytes(&format!("/proc/{pid}/status"), "VmRSS:")?;
        mapped += mapped_memfd(*pid);
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let path = descriptor.path();
            let named_memfd = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"));
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            if named_memfd && memfds.insert((meta.dev(), meta.ino())) {
                held += meta.blocks() * 512;
            }
        }
    }
    // Mapped pages are already included in PSS.
    memory.pss += held.saturating_sub(mapped);
    memory.pss += written.iter().map(|directory| tmpfs_bytes(directory)).sum::<u64>();
    Ok(memory)
}

/// The largest resident set since the start, summed over the processes, in bytes.
pub fn peak_rss(pids: &[u32]) -> Result<u64, String> {
    pids.iter().map(|pid| kilobytes(&format!("/proc/{pid}/status"), "VmHWM:")).sum()
}

fn mapped_memfd(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut in_memfd = false;
    let mut bytes = 0;
    for line in maps.lines() {
        // A mapping begins with its address range in lower-case hexadecimal; its attributes start with a capital.
        if line.starts_with(|first: char| first.is_ascii_digit() || first.is_ascii_lowercase()) {
            in_memfd = line.contains("/memfd:");
        } else if let (true, Some(rest)) = (in_memfd, line.strip_prefix("Pss:")) {
            bytes += leading_kilobytes(rest).unwrap_or(0);
        }
    }
    bytes
}

fn tmpfs_bytes(directory: &Path) -> u64 {
    const TMPFS: i64 = 0x0102_1994;
    let on_tmpfs = rustix::fs::statfs(directory).is_ok_and(|found| found.f_type == TMPFS);
    if on_tmpfs { blocks_below(directory) } else { 0 }
}

fn blocks_below(directory: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Symlinks are not followed: a target is counted in its own directory.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += meta.blocks() * 512 + if meta.is_dir() { blocks_below(&entry.path()) } else { 0 };
    }
    bytes
}

/// The fields after the command's name, which may itself contain spaces and parentheses.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn kilobytes(path: &str, key: &str) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key)).ok_or_else(|| format!("{path} has no {key}"))?;
    leading_kilobytes(rest).ok_or_else(|| format!("{path}: {key} is not a number"))
}

fn leading_kilobytes(text: &str) -> Option<u64> {
    Some(text.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_tree_includes_this_process_and_its_child() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().expect("sleep starts");
        let found = tree(std::process::id());
        // During exec, the kernel shows no command line.
        let end = Instant::now() + Duration::from_secs(10);
        let mut line = command_line(child.id());
        while line != ["sleep", "20"] && Instant::now() < end {
            std::thread::yield_now();
            line = command_line(child.id());
        }
        child.kill().expect("the test started the child");
        child.wait().expect("the test started the child");
        assert!(found.contains(&std::process::id()) && found.contains(&child.id()), "{found:?}");
        assert_eq!(line, ["sleep", "20"]);
    }

    #[test]
    fn stat_and_schedstat_count_a_spinning_process() {
        let me = [std::process::id()];
        let (ticks, before) = (cpu(&me), threads(&me));
        let end = Instant::now() + Duration::from_secs(10);
        let spun = |at_least: u64| threads(&me).since(&before).on_core > Duration::from_millis(at_least);
        while Instant::now() < end && !spun(100) {
            std::hint::black_box(0);
        }
        assert!(spun(100), "schedstat does not advance");
        // Other test threads may add time; a tick or two may not be accounted yet.
        assert!(cpu(&me).since(ticks).total() >= Duration::from_millis(60), "stat does not advance");
    }

    #[test]
    fn only_wake_ups_count_as_sleeps() {
        let mut sleeping = std::process::Command::new("sleep").arg("20").spawn().expect("sleep starts");
        let me = [std::process::id()];
        let end = Instant::now() + Duration::from_secs(10);
        // It counts as asleep after its exec and its start.
        let asleep = |pid: u32| stat_fields(pid).is_some_and(|f| f.first().is_some_and(|state| state == "S"));
        while (name(sleeping.id()) != "sleep" || !asleep(sleeping.id())) && Instant::now() < end {
            std::thread::yield_now();
        }
        let before = (threads(&me), threads(&[sleeping.id()]));
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let own = threads(&me).since(&before.0).sleeps;
        let other = threads(&[sleeping.id()]).since(&before.1).sleeps;
        sleeping.kill().expect("the test started the child");
        sleeping.wait().expect("the test started the child");
        assert!(own >= 20, "{own}");
        assert_eq!(other, 0);
    }

    #[test]
    fn a_memfd_that_is_only_written_counts_as_memory() {
        let me = [std::process::id()];
        let before = memory(&me, &[]).expect("this process can be read").pss;
        let memfd = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).expect("memfds exist");
        let mut file = fs::File::from(memfd);
        std::io::copy(&mut std::io::Read::take(std::io::repeat(1), 32 << 20), &mut file).expect("memory for 32 MiB");
        let after = memory(&me, &[]).expect("this process can be read").pss;
        assert!(after - before > 30 << 20, "{before} → {after}");
    }
}
