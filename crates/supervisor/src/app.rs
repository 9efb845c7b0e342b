//! The app as a child: start it, signal it, learn how it ended, start it again. In: the plan. Out: its state. An app that
//! cannot be executed ends with 127 (not found) or 126 (not executable), as in a shell (POSIX.1-2024, XCU 2.8.2).

use crate::message::Ended;
use crate::plan::{Plan, Restart, When};
use rustix::io::Errno;
use rustix::process::WaitStatus;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};
use sys::process::{ChildSetup, ExecPlan, StartError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs in another container, or there is none.
    Elsewhere,
    /// The worker's gates have not passed yet.
    Waiting,
    Running {
        pid: i32,
        since: Instant,
    },
    /// Between an end and the next start.
    Paused {
        until: Instant,
    },
    Ended,
}

pub struct App {
    pub state: State,
    /// How it ended the last time.
    pub ended: Option<Ended>,
    /// Starts after the first.
    pub restarts: u32,
    /// Restarts in the present row.
    row: u32,
    wait: Duration,
    /// A worker knows how it ended.
    pub heard: bool,
    pub kills: Kills,
}

impl App {
    pub fn new(elsewhere: bool) -> App {
        let state = if elsewhere { State::Elsewhere } else { State::Waiting };
        App { state, ended: None, restarts: 0, row: 0, wait: Duration::ZERO, heard: false, kills: Kills::default() }
    }

    /// Starts it; one that cannot be started has ended.
    pub fn start(&mut self, plan: &Plan, exec: &ExecPlan, setup: &ChildSetup<'_>, now: Instant) {
        self.kills.tick(plan.oom_file.as_deref(), now);
        match sys::process::start(exec, setup) {
            Ok(pid) => self.state = State::Running { pid, since: now },
            Err(error) => {
                let code = report(plan, exec, error);
                // What the system lacks now it may have later; what the app lacks it will lack again.
                let restarts =
                    matches!(error, StartError::Setup(_)) && self.again(&plan.restart, Duration::ZERO, false);
                self.over(Ended { restarts, ..Ended::with_code(code) }, &plan.restart, now);
            }
        }
    }

    /// It has ended, and is started again after a pause where the end says so.
    fn over(&mut self, ended: Ended, restart: &Restart, now: Instant) {
        self.state =
            if ended.restarts { State::Paused { until: now + spread(self.pause(restart)) } } else { State::Ended };
        (self.ended, self.heard) = (Some(ended), false);
    }

    /// What a supervisor that replaces itself leaves to the next program.
    pub fn numbers(&self, now: Instant) -> [(&'static str, i64); 7] {
        let (pid, ran) = match self.state {
            State::Running { pid, since } => (pid, now.saturating_duration_since(since)),
            _ => (0, Duration::ZERO),
        };
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        [
            ("app", pid.into()),
            ("app ran", whole(ran.as_secs())),
            ("restarts", self.restarts.into()),
            ("restarts in a row", self.row.into()),
            ("restart wait", whole(crate::message::millis(self.wait))),
            ("kills seen", whole(self.kills.seen)),
            ("end heard", self.heard.into()),
        ]
    }

    /// Takes up an app that runs already, or is elsewhere.
    pub fn resumed(value: impl Fn(&str) -> Option<i64>, now: Instant) -> Option<App> {
        let number = |key| value(key).and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        let pid = i32::try_from(value("app")?).ok()?;
        let since = now.checked_sub(Duration::from_secs(number("app ran"))).unwrap_or(now);
        Some(App {
            state: if pid == 0 { State::Elsewhere } else { State::Running { pid, since } },
            ended: None,
            restarts: u32::try_from(number("restarts")).ok()?,
            row: u32::try_from(number("restarts in a row")).ok()?,
            wait: Duration::from_millis(number("restart wait")),
            heard: number("end heard") == 1,
            kills: Kills { seen: number("kills seen"), open: 0, at: Some(now) },
        })
    }

    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Whether it is over now; one that was started again since has only ended before.
    pub fn has_ended(&self) -> bool {
        self.pid().is_none() && self.ended.is_some()
    }

    /// Signals the app's whole group, or where it has none of its own, the app.
    pub fn signal(&self, signal: i32, group: bool) {
        let Some(pid) = self.pid() else { return };
        // An app that left its group, or has none, is still the app.
        if !group || sys::process::kill(pid, signal, true).is_err() {
            let _ = sys::process::kill(pid, signal, false);
        }
    }

    /// Applies its end; answers how it ended, and whether it is started again.
    pub fn reaped(&mut self, status: WaitStatus, plan: &Plan, stopping: bool, now: Instant) -> Ended {
        let signal = status.terminating_signal().unwrap_or(0);
        let code = if signal > 0 { 128 + signal } else { status.exit_status().unwrap_or(1) };
        let ran = match self.state {
            State::Running { since, .. } => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        let mut ended = Ended {
            code,
            signal,
            core_dumped: signal > 0 && status.as_raw() & CORE_DUMPED != 0,
            out_of_memory: signal == SIGKILL && self.kills.of_one(plan.oom_file.as_deref(), now),
            restarts: false,
        };
        ended.restarts = !stopping && self.again(&plan.restart, ran, is_success(plan, code));
        self.over(ended, &plan.restart, now);
        ended
    }

    fn again(&mut self, restart: &Restart, ran: Duration, success: bool) -> bool {
        if ran >= restart.reset {
            (self.row, self.wait) = (0, Duration::ZERO);
        }
        let wanted = match restart.when {
            When::Never => false,
            When::OnFailure => !success,
            When::Always => true,
        };
        let allowed = restart.max == 0 || self.row < restart.max;
        wanted && allowed
    }

    fn pause(&mut self, restart: &Restart) -> Duration {
        (self.row, self.restarts) = (self.row + 1, self.restarts + 1);
        self.wait = if self.wait.is_zero() { restart.wait } else { (self.wait * 2).min(restart.wait_max) };
        self.wait
    }

    /// A stop came while it was waiting for its start, or for its next one.
    pub fn cancel(&mut self) {
        if matches!(self.state, State::Waiting | State::Paused { .. }) {
            self.state = State::Ended;
            self.ended.iter_mut().for_each(|ended| ended.restarts = false);
        }
    }

    /// Says how the app ended where no worker was there to do it, as one that hangs or has died with it.
    pub fn log_unacknowledged_exit(&self) {
        let Some(ended) = self.ended.filter(|ended| !self.heard && !ended.restarts && ended.code != 0) else { return };
        let how = match ended {
            Ended { out_of_memory: true, .. } => ", killed for want of memory (oom_killed)",
            Ended { core_dumped: true, .. } => ", and left a core dump",
            _ => "",
        };
        let (code, signal) = (ended.code, ended.signal);
        eprintln!(
            "outrigger: app exited with code {code} (signal {signal}){how}; no worker running, black box not written"
        );
    }

    /// The code that we end with.
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

/// A pause, up to a tenth shorter or longer: a hundred apps that crash together shall not come back together.
fn spread(pause: Duration) -> Duration {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    pause * (900 + nanos / 1000 % 201) / 1000
}

/// The kernel's kills for want of memory in our control group, as far as it is known whom they met.
#[derive(Default)]
pub struct Kills {
    seen: u64,
    /// Of those, without a victim yet.
    open: u64,
    at: Option<Instant>,
}

/// A victim is reaped this soon after its kill. A kill that is older met a process that was not ours to reap.
const REAPED_WITHIN: Duration = Duration::from_secs(2);

impl Kills {
    /// Takes note of kills that nobody of ours was the victim of, and of those before a SIGKILL of our own.
    pub fn tick(&mut self, file: Option<&[u8]>, now: Instant) {
        (self.seen, self.open, self.at) = (kills(file), 0, Some(now));
    }

    /// Whether a process that died of SIGKILL is a victim: each kill has one.
    pub fn of_one(&mut self, file: Option<&[u8]>, now: Instant) -> bool {
        let count = kills(file);
        self.counted(count, now)
    }

    fn counted(&mut self, count: u64, now: Instant) -> bool {
        if self.at.is_some_and(|at| now.saturating_duration_since(at) > REAPED_WITHIN) {
            self.open = 0;
        }
        self.open += count.saturating_sub(self.seen);
        (self.seen, self.at) = (count, Some(now));
        let is_victim = self.open > 0;
        self.open = self.open.saturating_sub(1);
        is_victim
    }
}

/// The bit of a wait status that says that a core was written (wait(2), WCOREDUMP).
const CORE_DUMPED: i32 = 0x80;
const SIGKILL: i32 = 9;

/// How often the kernel has killed in a control group: the number behind `oom_kill` (cgroup v2 memory.events, v1
/// memory.oom_control).
fn kills(file: Option<&[u8]>) -> u64 {
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

/// Says why the app could not be started; answers the exit code for that.
fn report(plan: &Plan, exec: &ExecPlan, error: StartError) -> i32 {
    let name = plan.app.as_ref().and_then(|app| app.argv.first()).map_or(&b"the app"[..], Vec::as_slice);
    let directory = plan.app.as_ref().and_then(|app| app.directory.as_deref()).unwrap_or(b"");
    let (code, why): (i32, &[u8]) = match error {
        StartError::Exec(number) => match Errno::from_raw_os_error(number) {
            Errno::NOENT => match exec.file() {
                Some(file) => {
                    let missing = match sys::process::interpreter(&file) {
                        Some(interpreter) => [b"interpreter ", interpreter.as_slice()].concat(),
                        None => b"the dynamic loader (ld.so(8))".to_vec(),
                    };
                    let file = file.as_os_str().as_bytes();
                    for part in [b"outrigger: ", missing.as_slice(), b" of ", file, b" not found\n"] {
                        let _ = rustix::io::write(rustix::stdio::stderr(), part);
                    }
                    return 127;
                }
                None => (127, b": command not found\n"),
            },
            Errno::ACCESS => (126, b": permission denied\n"),
            Errno::NOEXEC => {
                (126, b": cannot be executed: it is no program of this machine, and names no interpreter\n")
            }
            _ => (126, b": cannot be executed\n"),
        },
        StartError::Directory(_) => (126, b": cannot start: app.working_directory cannot be entered: "),
        StartError::User(_) => (126, b": cannot start: app.user needs the rights of root (CAP_SETUID, CAP_SETGID)\n"),
        StartError::Setup(_) => (126, b": cannot start: out of processes, sessions or file descriptors\n"),
    };
    for part in [b"outrigger: ", name, why] {
        let _ = rustix::io::write(rustix::stdio::stderr(), part);
    }
    if let StartError::Directory(_) = error {
        for part in [directory, b"\n"] {
            let _ = rustix::io::write(rustix::stdio::stderr(), part);
        }
    }
    code
}

/// The ends of the app's own outputs, until it has been started.
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
    fn an_app_that_was_started_again_has_not_ended() {
        let mut app = App::new(false);
        app.state = State::Running { pid: 7, since: Instant::now() };
        app.ended = Some(Ended::with_code(3));
        assert!(!app.has_ended());
        app.state = State::Ended;
        assert!(app.has_ended());
        assert!(!App::new(false).has_ended(), "nor has one that never ran");
    }

    #[test]
    fn what_is_left_to_the_next_program_is_the_app_as_it_was() {
        let now = Instant::now();
        let mut app = App::new(false);
        app.state = State::Running { pid: 7, since: now.checked_sub(Duration::from_secs(9)).expect("after boot") };
        app.pause(&RESTART);
        app.kills.counted(4, now);
        let left = app.numbers(now);
        let taken = App::resumed(|key| left.iter().find(|(name, _)| *name == key).map(|(_, number)| *number), now);
        let taken = taken.expect("all is there");
        assert_eq!(taken.state, app.state);
        assert_eq!((taken.restarts, taken.row, taken.wait, taken.kills.seen), (1, 1, RESTART.wait, 4));
        assert!(App::resumed(|_| None, now).is_none());
    }

    #[test]
    fn a_kill_for_want_of_memory_has_one_victim_and_is_forgotten_after_a_while() {
        let (mut kills, now) = (Kills::default(), Instant::now());
        assert!(!kills.counted(0, now));
        assert!(kills.counted(2, now) && kills.counted(2, now), "a group that was killed together");
        assert!(!kills.counted(2, now), "the third was killed by somebody");
        assert!(kills.counted(4, now));
        assert!(!kills.counted(4, now + REAPED_WITHIN * 2), "an old kill had a victim that was not ours");
        assert!(kills.counted(5, now + REAPED_WITHIN * 2));
    }

    #[test]
    fn restarts_wait_longer_each_time_end_at_the_limit_and_begin_anew_after_a_calm_run() {
        let mut app = App::new(false);
        let catch_up = Duration::from_millis(5);
        let mut waits = Vec::new();
        while app.again(&RESTART, catch_up, false) {
            waits.push(app.pause(&RESTART).as_secs());
        }
        assert_eq!(waits, [1, 2, 3, 3], "four in a row are the limit");
        assert!(app.again(&RESTART, RESTART.reset, false), "a calm run begins a new row");
        assert_eq!(app.pause(&RESTART), RESTART.wait);
        assert!(!app.again(&RESTART, catch_up, true), "success is no failure");
        assert!(app.again(&Restart { when: When::Always, ..RESTART }, catch_up, true));
        assert!(!app.again(&Restart { when: When::Never, ..RESTART }, catch_up, false));
        assert!(app.again(&Restart { max: 0, ..RESTART }, catch_up, false), "0 is no limit");
        assert_eq!(app.restarts, 5);
    }
}
