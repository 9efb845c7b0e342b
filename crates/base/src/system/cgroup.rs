//! The control group of this process, version 1 or 2: its memory limit, and the file that counts OOM kills. In:
//! /proc/self/cgroup and the mounts under /sys/fs/cgroup (cgroups(7)). Out: paths and numbers, or none if they are unavailable.

use std::path::{Path, PathBuf};

/// The memory limit of this group, if it has one.
pub fn memory_limit() -> Option<u64> {
    let (directory, version) = directory()?;
    let file = if version == 2 { "memory.max" } else { "memory.limit_in_bytes" };
    let limit: u64 = std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()?;
    // In version 1 "unlimited" is a number close to the maximum.
    (limit < 1 << 60).then_some(limit)
}

/// The file with the line `oom_kill N`.
pub fn oom_file() -> Option<PathBuf> {
    let (directory, version) = directory()?;
    let file = directory.join(if version == 2 { "memory.events" } else { "memory.oom_control" });
    file.exists().then_some(file)
}

/// The directories that must be readable for this.
pub fn directories() -> Vec<PathBuf> {
    directory().into_iter().map(|(directory, _)| directory).collect()
}

fn directory() -> Option<(PathBuf, u8)> {
    let (path, version) = memory_path(&std::fs::read_to_string("/proc/self/cgroup").ok()?)?;
    let root = Path::new(if version == 2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
    let own = root.join(path.trim_start_matches('/'));
    // In a container the directory of the group is often mounted as the root.
    [own, root.to_path_buf()]
        .into_iter()
        .find(|directory| directory.join("memory.events").exists() || directory.join("memory.oom_control").exists())
        .map(|directory| (directory, version))
}

/// The group of the memory controller, and its version: `0::/path`, or `N:…memory…:/path`.
fn memory_path(text: &str) -> Option<(String, u8)> {
    let lines = || {
        text.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
    };
    let first = lines().find(|(_, controllers, _)| controllers.split(',').any(|one| one == "memory"));
    let second = lines().find(|(number, controllers, _)| *number == "0" && controllers.is_empty());
    match (first, second) {
        (Some((_, _, path)), _) => Some((path.to_string(), 1)),
        (None, Some((_, _, path))) => Some((path.to_string(), 2)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_group_is_found_in_both_versions() {
        let both = "9:name=systemd:/\n4:memory:/pods/a\n3:cpu,cpuacct:/\n0::/\n";
        assert_eq!(memory_path(both), Some(("/pods/a".into(), 1)));
        assert_eq!(memory_path("0::/system.slice/orders.service\n"), Some(("/system.slice/orders.service".into(), 2)));
        assert_eq!(memory_path("3:cpu:/\n"), None);
    }
}
