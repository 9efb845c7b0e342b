//! The app as a child process: start, signal, reap and restart it. In: the plan. Out: its state. An app that
//! cannot be executed exits with 127 (not found) or 126 (not executable), as in a shell (POSIX.1-2024, XCU 2.8.2).

use crate::message::Ended;
use crate::plan::{Plan, Restart, When};
use rustix::io::Errno;
use rustix::process::WaitStatus;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use sys::process::{ChildSetup, ExecPlan, StartError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The app runs in another container, or there is no app.
    External,
    /// The worker's start gates have not opened yet.
    Waiting,
    Running {
        pid: i32,
        since: Instant,
    },
    /// Between an exit and the next start.
    Backoff {
        until: Instant,
    },
    Ended,
}

pub struct App {
    pub state: State,
    /// How the app exited last.
    pub ended: Option<Ended>,
    /// Starts after the first.
    pub restarts: u32,
    /// Restarts in a row so far.
    consecutive: u32,
    wait: Duration,
    /// A worker knows how the app exited.
    pub exit_acknowledged: bool,
    pub kills: Kills,
}

impl App {
    pub fn new(external: bool) -> App {
        let state = if external { State::External } else { State::Waiting };
        App {
            state,
            ended: None,
            restarts: 0,
            consecutive: 0,
            wait: Duration::ZERO,
            exit_acknowledged: false,
            kills: Kills::default(),
        }
    }

    /// Starts the app; one that cannot be started has exited, and the reason is returned.
    pub fn start(&mut self, plan: &Plan, exec: &ExecPlan, setup: &ChildSetup<'_>, now: Instant) -> Result<(), String> {
        self.kills.mark_seen(plan.oom_file.as_deref(), now);
        match sys::process::start(exec, setup) {
            Ok(pid) => {
                self.state = State::Running { pid, since: now };
                Ok(())
            }
            Err(error) => {
                let (code, reason) = explain(plan, exec, error);
                // A shortage of the system may be temporary; an error of the app itself would recur.
                let temporary = matches!(error, StartError::Setup(_));
                let mut ended = Ended { not_started: true, ..Ended::with_code(code) };
                self.decide_restart(&mut ended, &plan.restart, Duration::ZERO, temporary, false);
                self.record_exit(ended, &plan.restart, now);
                Err(reason)
            }
        }
    }

    /// Records the exit; with `ended.restarts` the app is started again after a backoff.
    fn record_exit(&mut self, ended: Ended, restart: &Restart, now: Instant) {
        self.state = if ended.restarts {
            State::Backoff { until: now + jittered(self.next_backoff(restart)) }
        } else {
            State::Ended
        };
        (self.ended, self.exit_acknowledged) = (Some(ended), false);
    }

    /// What a supervisor that replaces itself passes to the next program.
    pub fn numbers(&self, now: Instant) -> [(&'static str, i64); 7] {
        let (pid, ran) = match self.state {
            State::Running { pid, since } => (pid, now.saturating_duration_since(since)),
            _ => (0, Duration::ZERO),
        };
        let saturated = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        [
            ("app", pid.into()),
            ("app ran", saturated(ran.as_secs())),
            ("restarts", self.restarts.into()),
            ("restarts in a row", self.consecutive.into()),
            ("restart wait", saturated(crate::message::millis(self.wait))),
            ("kills seen", saturated(self.kills.seen)),
            ("exit acknowledged", self.exit_acknowledged.into()),
        ]
    }

    /// Adopts an app that already runs, or is external.
    pub fn resumed(value: impl Fn(&str) -> Option<i64>, now: Instant) -> Option<App> {
        let number = |key| value(key).and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        let pid = i32::try_from(value("app")?).ok()?;
        let since = now.checked_sub(Duration::from_secs(number("app ran"))).unwrap_or(now);
        Some(App {
            state: if pid == 0 { State::External } else { State::Running { pid, since } },
            ended: None,
            restarts: u32::try_from(number("restarts")).ok()?,
            consecutive: u32::try_from(number("restarts in a row")).ok()?,
            wait: Duration::from_millis(number("restart wait")),
            exit_acknowledged: number("exit acknowledged") == 1,
            kills: Kills { seen: number("kills seen"), unmatched: 0, at: Some(now) },
        })
    }

    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Whether the app has exited and was not started again since.
    pub fn has_ended(&self) -> bool {
        self.pid().is_none() && self.ended.is_some()
    }

    /// Signals the app's process group, or only the app if it has no group of its own.
    pub fn signal(&self, signal: i32, group: bool) {
        let Some(pid) = self.pid() else { return };
        // An app that left its group, or has none, is signalled by its pid.
        if !group || sys::process::kill(pid, signal, true).is_err() {
            let _ = sys::process::kill(pid, signal, false);
        }
    }

    /// Applies the app's exit; returns how it exited, and whether it is started again.
    pub fn reaped(&mut self, status: WaitStatus, plan: &Plan, stopping: bool, now: Instant) -> Ended {
        let signal = status.terminating_signal().unwrap_or(0);
        let code = if signal > 0 { 128 + signal } else { status.exit_status().unwrap_or(1) };
        let ran = match self.state {
            State::Running { since, .. } => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        let mut ended = Ended {
            signal,
            core_dumped: signal > 0 && status.as_raw() & CORE_DUMPED != 0,
            out_of_memory: signal == SIGKILL && self.kills.is_victim(plan.oom_file.as_deref(), now),
            ..Ended::with_code(code)
        };
        self.decide_restart(&mut ended, &plan.restart, ran, !stopping, is_success(plan, code));
        self.record_exit(ended, &plan.restart, now);
        ended
    }

    /// Sets whether the app is started again after a run of this length. `possible`: no stop is in progress, and the error of a
    /// start may be temporary.
    fn decide_restart(&mut self, ended: &mut Ended, restart: &Restart, ran: Duration, possible: bool, success: bool) {
        if ran >= restart.reset {
            (self.consecutive, self.wait) = (0, Duration::ZERO);
        }
        let wanted = match restart.when {
            When::Never => false,
            When::OnFailure => !success,
            When::Always => true,
        };
        let allowed = restart.max == 0 || self.consecutive < restart.max;
        ended.restarts = possible && wanted && allowed;
        ended.limit_reached = possible && wanted && !allowed;
    }

    fn next_backoff(&mut self, restart: &Restart) -> Duration {
        (self.consecutive, self.restarts) = (self.consecutive + 1, self.restarts + 1);
        self.wait = if self.wait.is_zero() { restart.wait } else { (self.wait * 2).min(restart.wait_max) };
        self.wait
    }

    /// A stop began while the app waited for its first or next start.
    pub fn cancel(&mut self) {
        if matches!(self.state, State::Waiting | State::Backoff { .. }) {
            self.state = State::Ended;
            self.ended.iter_mut().for_each(|ended| ended.restarts = false);
        }
    }

    /// Logs how the app exited if no worker did so, such as one that hangs or was killed together with the app.
    pub fn log_unacknowledged_exit(&self) {
        let Some(ended) = self.ended.filter(|ended| !self.exit_acknowledged && !ended.restarts && ended.code != 0)
        else {
            return;
        };
        if ended.not_started {
            // Its reason has been logged.
            return;
        }
        let how = match ended {
            Ended { out_of_memory: true, .. } => ", OOM-killed".into(),
            Ended { core_dumped: true, signal, .. } => format!(", killed by signal {signal} with a core dump"),
            Ended { signal: 0, .. } => String::new(),
            Ended { signal, .. } => format!(", killed by signal {signal}"),
        };
        let code = ended.code;
        eprintln!("outrigger: app exited with code {code}{how}; no worker running, black box not written");
    }

    /// The exit code of Outrigger.
    pub fn code(&self, plan: &Plan) -> i32 {
        let code = match (self.state, self.ended) {
            (State::Running { .. }, _) => 128 + SIGKILL,
            (_, Some(ended)) => ended.code,
            (_, None) => 0,
        };
        if is_success(plan, code) { 0 } else { code }
    }
}

fn is_success(plan: &Plan, code: i32) -> bool {
    code == 0 || u8::try_from(code).is_ok_and(|code| plan.success.contains(&code))
}

/// A backoff, up to a tenth shorter or longer: a hundred apps that crash together must not restart together.
fn jittered(backoff: Duration) -> Duration {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    backoff * (900 + nanos / 1000 % 201) / 1000
}

/// The kernel's OOM kills in Outrigger's control group, as far as their victims are known.
#[derive(Default)]
pub struct Kills {
    seen: u64,
    /// Those of them without a known victim yet.
    unmatched: u64,
    at: Option<Instant>,
}

/// A victim is reaped within this time after its kill. The victim of an older kill was not a child of the supervisor.
const REAPED_WITHIN: Duration = Duration::from_secs(2);

impl Kills {
    /// Marks all kills as seen: those without a victim among the children, and those before the supervisor sends SIGKILL.
    pub fn mark_seen(&mut self, file: Option<&[u8]>, now: Instant) {
        (self.seen, self.unmatched, self.at) = (oom_kill_count(file), 0, Some(now));
    }

    /// Whether a process that was killed by SIGKILL is a victim: each OOM kill has one.
    pub fn is_victim(&mut self, file: Option<&[u8]>, now: Instant) -> bool {
        let count = oom_kill_count(file);
        self.match_kill(count, now)
    }

    fn match_kill(&mut self, count: u64, now: Instant) -> bool {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) > REAPED_WITHIN) {
            self.unmatched = 0;
        }
        self.unmatched += count.saturating_sub(self.seen);
        (self.seen, self.at) = (count, Some(now));
        let is_victim = self.unmatched > 0;
        self.unmatched = self.unmatched.saturating_sub(1);
        is_victim
    }
}

/// The bit of a wait status that reports a core dump (wait(2), WCOREDUMP).
const CORE_DUMPED: i32 = 0x80;
const SIGKILL: i32 = 9;

/// How many OOM kills a control group has had: the value of `oom_kill` (cgroup v2 memory.events, v1
/// memory.oom_control).
fn oom_kill_count(file: Option<&[u8]>) -> u64 {
    let Some(file) = file else { return 0 };
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(file, flags, rustix::fs::Mode::empty()) else { return 0 };
    let mut text = [0u8; 512];
    let count = rustix::io::read(&file, &mut text).unwrap_or(0);
    let lines = text.get(..count).unwrap_or(&[]).split(|byte| *byte == b'\n');
    let number =
        lines.filter_map(|line| line.strip_prefix(b"oom_kill ")).find_map(|digits| std::str::from_utf8(digits).ok());
    number.and_then(|digits| digits.trim().parse().ok()).unwrap_or(0)
}

/// Why the app could not be started, and the exit code for that.
fn explain(plan: &Plan, exec: &ExecPlan, error: StartError) -> (i32, String) {
    let app = plan.app.as_ref();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = app.and_then(|app| app.argv.first()).map_or("the app".into(), |name| text(name));
    let (code, reason) = match error {
        StartError::Exec(number) => match Errno::from_raw_os_error(number) {
            Errno::NOENT => match exec.file() {
                Some(file) => {
                    let missing = match sys::process::interpreter(&file) {
                        Some(interpreter) => format!("interpreter {}", text(&interpreter)),
                        None => "the dynamic loader (ld.so(8))".into(),
                    };
                    return (127, format!("{missing} of {} not found", file.display()));
                }
                None => (127, "command not found".into()),
            },
            Errno::ACCESS => (126, "permission denied".into()),
            Errno::NOEXEC => {
                (126, "cannot execute: not a program for this machine, and it has no interpreter line (#!)".into())
            }
            _ => (126, "cannot execute".into()),
        },
        StartError::Directory(_) => {
            let directory = app.and_then(|app| app.directory.as_deref()).unwrap_or_default();
            (126, format!("cannot start: cannot enter app.working_directory: {}", text(directory)))
        }
        StartError::User(_) => (126, "cannot start: app.user requires root (CAP_SETUID, CAP_SETGID)".into()),
        StartError::Setup(_) => (126, "cannot start: out of processes, sessions or file descriptors".into()),
    };
    (code, format!("{name}: {reason}"))
}

/// The app's ends of its standard streams, until it has been started.
#[derive(Default)]
pub struct AppEnds {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTART: Restart = Restart {
        when: When::OnFailure,
        wait: Duration::from_secs(1),
        wait_max: Duration::from_secs(3),
        max: 4,
        reset: Duration::from_secs(60),
    };

    #[test]
    fn restarted_app_has_not_exited() {
        let mut app = App::new(false);
        app.state = State::Running { pid: 7, since: Instant::now() };
        app.ended = Some(Ended::with_code(3));
        assert!(!app.has_ended());
        app.state = State::Ended;
        assert!(app.has_ended());
        assert!(!App::new(false).has_ended(), "an app that never ran has not exited");
    }

    #[test]
    fn app_state_survives_a_reexec() {
        let now = Instant::now();
        let mut app = App::new(false);
        app.state = State::Running { pid: 7, since: now.checked_sub(Duration::from_secs(9)).expect("after boot") };
        app.next_backoff(&RESTART);
        app.kills.match_kill(4, now);
        let saved = app.numbers(now);
        let taken = App::resumed(|key| saved.iter().find(|(name, _)| *name == key).map(|(_, number)| *number), now);
        let taken = taken.expect("all keys are present");
        assert_eq!(taken.state, app.state);
        assert_eq!((taken.restarts, taken.consecutive, taken.wait, taken.kills.seen), (1, 1, RESTART.wait, 4));
        assert!(App::resumed(|_| None, now).is_none());
    }

    #[test]
    fn oom_kill_has_one_victim_and_expires() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        assert!(!kills.match_kill(0, now));
        assert!(kills.match_kill(2, now) && kills.match_kill(2, now), "a group that was killed together");
        assert!(!kills.match_kill(2, now), "the third SIGKILL came from another process");
        assert!(kills.match_kill(4, now));
        assert!(!kills.match_kill(4, now + REAPED_WITHIN * 2), "the victim of an old kill was not a child");
        assert!(kills.match_kill(5, now + REAPED_WITHIN * 2));
    }

    #[test]
    fn restarts_back_off_stop_at_max_and_reset() {
        let mut app = App::new(false);
        let short_run = Duration::from_millis(5);
        let decided = |app: &mut App, restart: &Restart, ran, success| {
            let mut ended = Ended::with_code(1);
            app.decide_restart(&mut ended, restart, ran, true, success);
            (ended.restarts, ended.limit_reached)
        };
        let mut waits = Vec::new();
        while decided(&mut app, &RESTART, short_run, false).0 {
            waits.push(app.next_backoff(&RESTART).as_secs());
        }
        assert_eq!(waits, [1, 2, 3, 3], "four restarts in a row are the limit");
        assert_eq!(decided(&mut app, &RESTART, short_run, false), (false, true), "the limit is reported");
        assert_eq!(
            decided(&mut app, &RESTART, RESTART.reset, false),
            (true, false),
            "a run of `reset` resets the count"
        );
        assert_eq!(app.next_backoff(&RESTART), RESTART.wait);
        assert_eq!(decided(&mut app, &RESTART, short_run, true), (false, false), "success is not a failure");
        assert!(decided(&mut app, &Restart { when: When::Always, ..RESTART }, short_run, true).0);
        assert_eq!(decided(&mut app, &Restart { when: When::Never, ..RESTART }, short_run, false), (false, false));
        assert!(decided(&mut app, &Restart { max: 0, ..RESTART }, short_run, false).0, "0 means no limit");
        assert_eq!(app.restarts, 5);
    }
}
