//! One process as /proc reports it. In: a process id. Out: its times, threads and memory, or none if the process does not exist.

/// Fields of proc_pid_stat(5), in its units.
#[derive(Clone, Copy, Debug)]
pub struct ProcessStat {
    pub session: i32,
    pub user_ticks: u64,
    pub system_ticks: u64,
    /// Of reaped children.
    pub children_user_ticks: u64,
    pub children_system_ticks: u64,
    pub threads: u64,
    /// Since the start of the system.
    pub start_ticks: u64,
    pub virtual_bytes: u64,
    pub resident_pages: u64,
}

impl ProcessStat {
    pub fn read(pid: i32) -> Option<ProcessStat> {
        ProcessStat::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields by their numbers in proc_pid_stat(5); the name in parentheses may contain anything, so counting starts after it.
    pub fn parse(text: &str) -> Option<ProcessStat> {
        let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        let positive = |field: usize| number(field).map(|value| u64::try_from(value).unwrap_or(0));
        Some(ProcessStat {
            session: i32::try_from(number(6)?).ok()?,
            user_ticks: positive(14)?,
            system_ticks: positive(15)?,
            children_user_ticks: positive(16)?,
            children_system_ticks: positive(17)?,
            threads: positive(20)?,
            start_ticks: positive(22)?,
            virtual_bytes: positive(23)?,
            resident_pages: positive(24)?,
        })
    }

    /// Without children.
    pub fn cpu_seconds(&self) -> f64 {
        (self.user_ticks + self.system_ticks) as f64 / ticks_per_second()
    }

    pub fn resident_bytes(&self) -> f64 {
        self.resident_pages as f64 * rustix::param::page_size() as f64
    }

    /// Unix time in seconds, with the boot time of the system.
    pub fn start_time(&self, boot_time: i64) -> f64 {
        boot_time as f64 + self.start_ticks as f64 / ticks_per_second()
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

/// The soft limit of open file descriptors in the text of /proc/PID/limits; none if it is unlimited.
pub fn max_descriptors(limits: &str) -> Option<u64> {
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
        assert!((0.0..600.0).contains(&(now - stat.start_time(boot_time().expect("/proc/stat")))));
        let limits = std::fs::read_to_string("/proc/self/limits").expect("a limit");
        assert!(max_descriptors(&limits).is_some_and(|max| max > 0));
        assert!(ProcessStat::read(i32::MAX).is_none());
    }
}
