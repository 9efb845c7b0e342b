//! When the system and its processes started, from /proc. In: a process id. Out: seconds since 1970, or none where /proc does not tell.

/// When the system started: the line `btime` of proc_stat(5).
pub fn system() -> Option<i64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// When a process started: field 22 of proc_pid_stat(5), which counts ticks from the start of the system.
pub fn process(pid: i32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let ticks: i64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(system()? + ticks / i64::try_from(rustix::param::clock_ticks_per_second().max(1)).ok()?)
}
