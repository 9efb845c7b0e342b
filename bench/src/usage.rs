//! What processes cost, read from /proc: CPU and memory of a process and all its descendants.
//!
//! CPU per request comes from `stat`, which keeps what ended threads and reaped children used, at the price of 10 ms
//! steps; all other CPU comes from `schedstat`, which counts nanoseconds but forgets an ended thread. Memory is the sum
//! of PSS, and pages of memfds and tmpfs files that no mapping shows are added, since the program holds them all the same.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// User and system time, including ended threads and reaped children.
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
    /// Proportional set size, plus pages that only a descriptor holds.
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

/// The words of a process's command line.
pub fn command_line(pid: u32) -> Vec<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(|w| String::from_utf8_lossy(w).into()).collect()
}

/// The short name that the kernel keeps, at most 15 bytes.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

pub fn cpu(pids: &[u32]) -> Cpu {
    let tick = Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    let mut sum = Cpu::default();
    for fields in pids.iter().filter_map(|pid| stat_fields(*pid)) {
        let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
        // Fields 14 to 17 of proc(5): user, system, and both again for reaped children. The list starts at field 3.
        sum.user += tick * (ticks(11) + ticks(13));
        sum.system += tick * (ticks(12) + ticks(14));
    }
    sum
}

/// What the living threads have used since each was started.
pub struct Threads(HashMap<String, Spent>);

#[derive(Clone, Copy, Default)]
pub struct Spent {
    /// Time on a core, user and system together.
    pub on_core: Duration,
    /// How often a thread has gone to sleep by itself: each time means that something had woken it.
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
    /// Thread by thread, so that one that has ended takes nothing away from the others.
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

/// `written` are the folders that the program writes to: on a tmpfs their pages are memory.
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
    // What is mapped stands in PSS already.
    memory.pss += held.saturating_sub(mapped);
    memory.pss += written.iter().map(|folder| tmpfs_bytes(folder)).sum::<u64>();
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
        // A mapping opens with its address range in lower-case hexadecimal; its attributes start with a capital.
        if line.starts_with(|first: char| first.is_ascii_digit() || first.is_ascii_lowercase()) {
            in_memfd = line.contains("/memfd:");
        } else if let (true, Some(rest)) = (in_memfd, line.strip_prefix("Pss:")) {
            bytes += leading_kilobytes(rest).unwrap_or(0);
        }
    }
    bytes
}

fn tmpfs_bytes(folder: &Path) -> u64 {
    const TMPFS: i64 = 0x0102_1994;
    let on_tmpfs = rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == TMPFS);
    if on_tmpfs { blocks_below(folder) } else { 0 }
}

fn blocks_below(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Not followed: a symlink's target is counted where it stands.
        let Ok(meta) = entry.metadata() else { continue };
        bytes += meta.blocks() * 512 + if meta.is_dir() { blocks_below(&entry.path()) } else { 0 };
    }
    bytes
}

/// The fields after the command's name, which may itself hold spaces and parentheses.
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
    fn the_tree_of_this_process_holds_itself_and_its_child() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().expect("sleep starts");
        let found = tree(std::process::id());
        // While the child is within its exec, the kernel shows no command line.
        let end = Instant::now() + Duration::from_secs(10);
        let mut line = command_line(child.id());
        while line != ["sleep", "20"] && Instant::now() < end {
            std::thread::yield_now();
            line = command_line(child.id());
        }
        child.kill().expect("the child is ours");
        child.wait().expect("the child is ours");
        assert!(found.contains(&std::process::id()) && found.contains(&child.id()), "{found:?}");
        assert_eq!(line, ["sleep", "20"]);
    }

    #[test]
    fn a_spinning_process_is_charged_for_its_time_by_both_clocks() {
        let me = [std::process::id()];
        let (ticks, before) = (cpu(&me), threads(&me));
        let end = Instant::now() + Duration::from_secs(10);
        let spun = |at_least: u64| threads(&me).since(&before).on_core > Duration::from_millis(at_least);
        while Instant::now() < end && !spun(100) {
            std::hint::black_box(0);
        }
        assert!(spun(100), "schedstat does not advance");
        // The test threads beside this one may add; a tick or two may not be booked yet.
        assert!(cpu(&me).since(ticks).total() >= Duration::from_millis(60), "stat does not advance");
    }

    #[test]
    fn a_process_that_wakes_up_is_seen_and_one_that_sleeps_is_not() {
        let mut sleeping = std::process::Command::new("sleep").arg("20").spawn().expect("sleep starts");
        let me = [std::process::id()];
        let end = Instant::now() + Duration::from_secs(10);
        // It counts as asleep once its exec and its start are behind it.
        let asleep = |pid: u32| stat_fields(pid).is_some_and(|f| f.first().is_some_and(|state| state == "S"));
        while (name(sleeping.id()) != "sleep" || !asleep(sleeping.id())) && Instant::now() < end {
            std::thread::yield_now();
        }
        let before = (threads(&me), threads(&[sleeping.id()]));
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mine = threads(&me).since(&before.0).sleeps;
        let its = threads(&[sleeping.id()]).since(&before.1).sleeps;
        sleeping.kill().expect("the child is ours");
        sleeping.wait().expect("the child is ours");
        assert!(mine >= 20, "{mine}");
        assert_eq!(its, 0);
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
