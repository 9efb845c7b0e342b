//! What the supervisor needs from the configuration: flat values. A worker reads the configuration and sends the plan
//! as bytes, so that the supervisor has no parser and none of a parser's memory. Limits: `PLAN_MAX` bytes.

use std::time::Duration;
use sys::process::{Command, User};
use sys::signal::SIGNAL_MAX;

/// The plan of one app, or of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// None for an external app.
    pub app: Option<Command>,
    /// The capacity of the two capture rings. None: the app inherits Outrigger's stdout and stderr as they are.
    pub capture_bytes: Option<u64>,
    /// The exit of an external app is detected, so that a stop can wait for it.
    pub awaits_end: bool,
    /// A dedicated pseudo-terminal for the app.
    pub pty: bool,
    /// The app gets its own process group, and signals go to that group; otherwise only to the app.
    pub group: bool,
    pub rewrites: Rewrites,
    /// The signal that requests the app to stop.
    pub stop_signal: i32,
    /// How long inbound traffic may drain before the app gets its signal.
    pub drain: Duration,
    /// How long the app may take after its signal, before its group is killed.
    pub grace: Duration,
    /// From the first stop request to Outrigger's exit.
    pub deadline: Duration,
    /// How long to wait for the worker's start gates, and whether the app is not started after that.
    pub gate: Duration,
    pub gate_fails: bool,
    pub restart: Restart,
    /// Exit codes that count as success, and become 0.
    pub success: Vec<u8>,
    /// Directories in which a worker may write: no program is executed from there.
    pub written: Vec<Vec<u8>>,
    /// The file of the app's control group that counts OOM kills.
    pub oom_file: Option<Vec<u8>>,
}

/// When an app that has exited is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    OnFailure,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    pub when: When,
    /// The backoff before the first restart, doubled each time up to `wait_max`.
    pub wait: Duration,
    pub wait_max: Duration,
    /// Maximum restarts in a row; 0 for no maximum.
    pub max: u32,
    /// A run of this length resets the restarts in a row.
    pub reset: Duration,
}

/// What to do with a signal that Outrigger gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    Drop,
    To(i32),
    /// Starts a new worker from the binary on disk.
    Upgrade,
}

/// By signal number; a signal that is not listed is not rewritten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrites(pub Vec<(i32, Rewrite)>);

impl Rewrites {
    /// Whether something was configured for a signal.
    pub fn has(&self, signal: i32) -> bool {
        self.0.iter().any(|(from, _)| *from == signal)
    }

    pub fn of(&self, signal: i32) -> Rewrite {
        self.0.iter().find(|(from, _)| *from == signal).map_or(Rewrite::To(signal), |(_, to)| *to)
    }
}

/// Listening sockets that are held for the next worker.
pub const STORED_MAX: usize = 256;

/// A worker that makes no progress for this long is killed and replaced, before a platform with failing probes would restart the
/// container, and the app with it.
pub const WATCHDOG: Duration = Duration::from_secs(10);

/// How long a worker may take to show progress after that time: the timer is late after a suspend or in a frozen control group.
pub const WATCHDOG_DOUBT: Duration = Duration::from_secs(2);

/// The backoff before a failed worker is started again: doubled from the first up to `RESTART_MOST`, reset after `RESTART_CALM`.
pub const RESTART_FIRST: Duration = Duration::from_millis(10);
pub const RESTART_MOST: Duration = Duration::from_secs(5);
pub const RESTART_CALM: Duration = Duration::from_secs(1);

/// How long a worker that replaces another may take until it is ready.
pub const READY_MOST: Duration = Duration::from_secs(20);

/// How long a replaced worker may take in addition to its drain, for the handover and its last deliveries.
pub const LEAVE_MOST: Duration = Duration::from_secs(6);

/// How long the app's pipes are read after its exit: a grandchild may hold them open forever.
pub const PIPE_LINGER: Duration = Duration::from_secs(1);

/// The largest plan. Arguments and environment of one program are at most 2 MiB on Linux (execve(2)).
pub const PLAN_MAX: usize = 4 << 20;

/// The first number of an encoded plan: a worker of another version may use another format.
const VERSION: u64 = 2;

impl Plan {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder(Vec::new());
        out.number(VERSION);
        out.number(u64::from(self.app.is_some()));
        if let Some(app) = &self.app {
            out.list(&app.argv);
            out.list(&app.environment);
            out.list(app.directory.as_slice());
            out.number(u64::from(app.user.is_some()));
            if let Some(user) = &app.user {
                let ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
                out.numbers(&ids.map(u64::from).collect::<Vec<_>>());
            }
            out.number(u64::try_from(app.parent_death).unwrap_or(0));
        }
        let restart = match self.restart.when {
            When::Never => 0,
            When::OnFailure => 1,
            When::Always => 2,
        };
        out.numbers(&[
            self.capture_bytes.map_or(0, |bytes| bytes.max(1)),
            u64::from(self.awaits_end),
            u64::from(self.pty),
            u64::from(self.group),
            u64::from(self.stop_signal.unsigned_abs()),
            nanos(self.drain),
            nanos(self.grace),
            nanos(self.deadline),
            nanos(self.gate),
            u64::from(self.gate_fails),
            restart,
            nanos(self.restart.wait),
            nanos(self.restart.wait_max),
            u64::from(self.restart.max),
            nanos(self.restart.reset),
        ]);
        let rewrites = self.rewrites.0.iter().map(|(from, to)| {
            let to = match to {
                Rewrite::Drop => 0,
                Rewrite::To(signal) => u64::from(signal.unsigned_abs()),
                Rewrite::Upgrade => UPGRADE,
            };
            u64::from(from.unsigned_abs()) << 32 | to
        });
        out.numbers(&rewrites.collect::<Vec<_>>());
        out.list(std::slice::from_ref(&self.success));
        out.list(&self.written);
        out.list(self.oom_file.as_slice());
        out.0
    }

    /// None for bytes that no `encode` of this version has written.
    pub fn decode(bytes: &[u8]) -> Option<Plan> {
        let mut input = Decoder(bytes);
        if input.number()? != VERSION {
            return None;
        }
        let app = match input.number()? {
            0 => None,
            _ => Some(input.command()?),
        };
        let numbers: [u64; 15] = input.numbers()?.try_into().ok()?;
        let [
            capture,
            awaits_end,
            pty,
            group,
            signal,
            drain,
            grace,
            deadline,
            gate,
            gate_fails,
            when,
            wait,
            wait_max,
            max,
            reset,
        ] = numbers;
        let rewrites = input.numbers()?.into_iter().map(|pair| {
            let to = match pair & u64::from(u32::MAX) {
                0 => Rewrite::Drop,
                UPGRADE => Rewrite::Upgrade,
                signal => Rewrite::To(signal_number(signal)?),
            };
            Some((signal_number(pair >> 32)?, to))
        });
        Some(Plan {
            app,
            capture_bytes: (capture > 0).then_some(capture),
            awaits_end: awaits_end == 1,
            pty: pty == 1,
            group: group == 1,
            rewrites: Rewrites(rewrites.collect::<Option<_>>()?),
            stop_signal: signal_number(signal)?,
            drain: Duration::from_nanos(drain),
            grace: Duration::from_nanos(grace),
            deadline: Duration::from_nanos(deadline),
            gate: Duration::from_nanos(gate),
            gate_fails: gate_fails == 1,
            restart: Restart {
                when: [When::Never, When::OnFailure, When::Always].get(usize::try_from(when).ok()?).copied()?,
                wait: Duration::from_nanos(wait),
                wait_max: Duration::from_nanos(wait_max),
                max: u32::try_from(max).ok()?,
                reset: Duration::from_nanos(reset),
            },
            success: input.list()?.into_iter().next()?,
            written: input.list()?,
            oom_file: input.list()?.into_iter().next(),
        })
    }
}

/// Greater than every signal number.
const UPGRADE: u64 = 255;

fn signal_number(number: u64) -> Option<i32> {
    i32::try_from(number).ok().filter(|signal| (1..=SIGNAL_MAX).contains(signal))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Numbers of eight bytes, and lists that begin with their length.
struct Encoder(Vec<u8>);

impl Encoder {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn numbers(&mut self, numbers: &[u64]) {
        self.number(numbers.len() as u64);
        numbers.iter().for_each(|number| self.number(*number));
    }

    fn list(&mut self, list: &[Vec<u8>]) {
        self.number(list.len() as u64);
        for bytes in list {
            self.number(bytes.len() as u64);
            self.0.extend_from_slice(bytes);
        }
    }
}

struct Decoder<'a>(&'a [u8]);

impl Decoder<'_> {
    fn command(&mut self) -> Option<Command> {
        let (argv, environment) = (self.list()?, self.list()?);
        let directory = self.list()?.into_iter().next();
        let user = match self.number()? {
            0 => None,
            _ => {
                let ids: Option<Vec<u32>> = self.numbers()?.into_iter().map(|id| u32::try_from(id).ok()).collect();
                let (first, groups) = ids.as_deref()?.split_at_checked(2)?;
                Some(User { uid: *first.first()?, gid: *first.get(1)?, groups: groups.to_vec() })
            }
        };
        let parent_death = i32::try_from(self.number()?).ok()?;
        Some(Command { argv, environment, directory, user, parent_death })
    }

    fn number(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn numbers(&mut self) -> Option<Vec<u64>> {
        let count = self.number()?;
        (0..count).map(|_| self.number()).collect()
    }

    fn list(&mut self) -> Option<Vec<Vec<u8>>> {
        let count = self.number()?;
        (0..count)
            .map(|_| {
                let length = usize::try_from(self.number()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Some(bytes.to_vec())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            app: Some(Command {
                argv: vec![b"./app".to_vec(), b"".to_vec(), b"\xff two".to_vec()],
                environment: vec![b"A=1".to_vec()],
                directory: Some(b"/srv".to_vec()),
                parent_death: 15,
                user: Some(User { uid: 7, gid: 8, groups: vec![9, 10] }),
            }),
            capture_bytes: Some(1 << 20),
            awaits_end: true,
            pty: true,
            group: false,
            rewrites: Rewrites(vec![(15, Rewrite::To(3)), (1, Rewrite::Drop), (12, Rewrite::Upgrade)]),
            stop_signal: 15,
            drain: Duration::from_millis(1500),
            grace: Duration::from_secs(2),
            deadline: Duration::from_secs(30),
            gate: Duration::MAX.min(Duration::from_secs(1 << 30)),
            gate_fails: true,
            restart: Restart {
                when: When::OnFailure,
                wait: Duration::from_secs(1),
                wait_max: Duration::from_secs(300),
                max: 5,
                reset: Duration::from_secs(600),
            },
            success: vec![0, 143],
            written: vec![b"/var/lib/outrigger".to_vec()],
            oom_file: Some(b"/sys/fs/cgroup/memory.events".to_vec()),
        }
    }

    #[test]
    fn plan_round_trips_and_truncation_is_rejected() {
        let full = plan();
        let companion = Plan { app: None, capture_bytes: None, oom_file: None, ..plan() };
        for plan in [full, companion] {
            let bytes = plan.encode();
            assert_eq!(Plan::decode(&bytes), Some(plan));
            for cut in 0..bytes.len() {
                assert_eq!(Plan::decode(&bytes[..cut]), None, "cut at {cut}");
            }
        }
        let mut other = plan().encode();
        other[0] = 99;
        assert_eq!(Plan::decode(&other), None, "another version");
        // A length that is too large to allocate is detected before anything is allocated.
        other[..8].copy_from_slice(&VERSION.to_le_bytes());
        other[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Plan::decode(&other), None);
    }

    #[test]
    fn unlisted_signal_is_not_rewritten() {
        let rewrites = plan().rewrites;
        assert_eq!((rewrites.of(15), rewrites.of(1)), (Rewrite::To(3), Rewrite::Drop));
        assert_eq!((rewrites.of(12), rewrites.of(10)), (Rewrite::Upgrade, Rewrite::To(10)));
    }
}
