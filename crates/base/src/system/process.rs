//! One process as /proc reports it. In: a process id. Out: its times, threads and memory, or none if the process does not exist.

/// Fields of proc_pid_stat(5), in its units.
#[derive(Clone, Copy, Debug)]
pub struct ProcessStat {
    pub session: i32,
    /// Including the times of reaped children, so that the sum does not decrease when one exits.
    pub user_ticks: u64,
    pub system_ticks: u64,
    pub threads: u64,
    /// Since the start of the system.
    pub start_ticks: u64,
    pub virtual_bytes: u64,
    pub resident_pages: u64,
}

impl ProcessStat {
    /// Fields by their numbers in proc_pid_stat(5); the name in parentheses may contain anything, so counting starts after it.
    pub fn read(pid: i32) -> Option<ProcessStat> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        let positive = |field: usize| number(field).map(|value| u64::try_from(value).unwrap_or(0));
        Some(ProcessStat {
            session: i32::try_from(number(6)?).ok()?,
            user_ticks: positive(14)? + positive(16)?,
            system_ticks: positive(15)? + positive(17)?,
            threads: positive(20)?,
            start_ticks: positive(22)?,
            virtual_bytes: positive(23)?,
            resident_pages: positive(24)?,
        })
    }

    pub fn cpu_seconds(&self) -> f64 {
        (self.user_ticks + self.system_ticks) as f64 / ticks_per_second()
    }

    pub fn resident_bytes(&self) -> f64 {
        self.resident_pages as f64 * rustix::param::page_size() as f64
    }

    /// Unix time in seconds.
    pub fn start_time(&self) -> Option<f64> {
        Some(boot_time()? as f64 + self.start_ticks as f64 / ticks_per_second())
    }
}

pub fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second().max(1) as f64
}

/// When the system started, in Unix time: the line `btime` of proc_stat(5).
pub fn boot_time() -> Option<i64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Open file descriptors. Since Linux 6.2 the size of the directory is their number (proc(5)); on older kernels, and without access to
/// the process, it is none.
pub fn open_descriptors(pid: i32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/fd")).ok().map(|meta| meta.len()).filter(|count| *count > 0)
}

/// The soft limit of open file descriptors; none if it is unlimited.
pub fn max_descriptors(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_process_has_a_stat() {
        let pid = i32::try_from(std::process::id()).expect("a process id");
        let stat = ProcessStat::read(pid).expect("this process runs");
        assert!(stat.resident_bytes() > 0.0 && stat.threads > 0 && stat.virtual_bytes > 0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!((0.0..600.0).contains(&(now - stat.start_time().expect("/proc/stat"))));
        assert!(max_descriptors(pid).is_some_and(|max| max > 0));
        assert!(ProcessStat::read(i32::MAX).is_none());
    }
}
