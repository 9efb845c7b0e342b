//! Start times of the system and its processes, from /proc. In: a process id. Out: Unix time in seconds, or none if /proc does
//! not report it.

/// When the system started: the line `btime` of proc_stat(5).
pub fn system() -> Option<i64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// When a process started: field 22 of proc_pid_stat(5), in clock ticks since the start of the system.
pub fn process(pid: i32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process name before it may contain any character.
    let ticks: i64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    Some(system()? + ticks / i64::try_from(rustix::param::clock_ticks_per_second().max(1)).ok()?)
}
