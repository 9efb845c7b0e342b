//! Programs that act as PID 1, Outrigger and its peers, with a common start: the same scenario runs against each of them.
//! In: an init with its options and an app's command. Out: the running pair, killed with all its descendants when the test
//! ends. Limits: what one scenario starts.

use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use super::outrigger::{binary, configuration};
use super::process::{Process, Running, Signal, children, descendants, send_signal};
use super::{PATIENCE, Scene, fixture, peer, python, until};

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Ours,
    DumbInit,
    Tini,
}

#[derive(Clone, Debug)]
pub struct Init {
    kind: Kind,
    program: String,
}

/// What a scenario requires of an init, in the numbers of dumb-init's and tini's options.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Only the app gets signals, not its process group.
    pub single: bool,
    /// The replacement of each signal; 0 drops it.
    pub rewrite: &'a [(i32, i32)],
    /// Exit codes that are mapped to 0.
    pub success: &'a [i32],
    /// More of Outrigger's configuration, next to `app`.
    pub body: &'a str,
}

pub const PLAIN: Options<'static> = Options { single: false, rewrite: &[], success: &[], body: "" };

impl Init {
    pub fn ours() -> Self {
        Self { kind: Kind::Ours, program: binary() }
    }

    pub fn dumb_init() -> Option<Self> {
        Some(Self { kind: Kind::DumbInit, program: peer("dumb-init")?.display().to_string() })
    }

    /// As a subreaper, which Outrigger is without an option.
    pub fn tini() -> Option<Self> {
        Some(Self { kind: Kind::Tini, program: peer("tini")?.display().to_string() })
    }

    pub fn is_ours(&self) -> bool {
        self.kind == Kind::Ours
    }

    pub fn name(&self) -> &str {
        match self.kind {
            Kind::Ours => "outrigger",
            Kind::DumbInit => "dumb-init",
            Kind::Tini => "tini",
        }
    }

    /// The complete command that runs the app under this init.
    pub fn command(&self, scene: &Scene, options: Options<'_>, app: &[&str]) -> Vec<String> {
        let mut words = vec![self.program.clone()];
        match self.kind {
            Kind::Ours => {
                let config = scene.write("outrigger.yaml", configuration(scene, &body(options)));
                words.extend(["run", "-c", &config.display().to_string(), "--"].map(str::to_owned));
            }
            Kind::DumbInit => {
                words.extend(options.single.then(|| "--single-child".to_owned()));
                for (from, to) in options.rewrite {
                    words.extend(["--rewrite".to_owned(), format!("{from}:{to}")]);
                }
            }
            Kind::Tini => {
                words.push("-s".to_owned());
                words.extend((!options.single).then(|| "-g".to_owned()));
                words.extend(options.success.iter().flat_map(|code| ["-e".to_owned(), code.to_string()]));
                words.push("--".to_owned());
            }
        }
        words.extend(app.iter().map(|word| (*word).to_owned()));
        words
    }

    pub fn start(&self, options: Options<'_>, app: &[&str]) -> Supervised {
        self.start_under(&[], options, app)
    }

    /// With a launcher that prepares the process and then execs the init, or starts it.
    pub fn start_under(&self, launcher: &[&str], options: Options<'_>, app: &[&str]) -> Supervised {
        self.start_with(launcher, options, app, |_| {})
    }

    /// As above, with a hook that can change how the process is started.
    pub fn start_with(
        &self,
        launcher: &[&str],
        options: Options<'_>,
        app: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Supervised {
        let scene = Scene::new();
        let words = self.command(&scene, options, app);
        let words: Vec<&str> = launcher.iter().copied().chain(words.iter().map(String::as_str)).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        prepare(&mut command);
        let running = Running::spawn(command);
        Supervised { running, name: self.name().to_owned(), orphans: Orphans::default(), _scene: scene }
    }

    /// Starts the app that reports each signal it gets, and waits until it handles all of them.
    #[track_caller]
    pub fn start_with_reports(&self, options: Options<'_>) -> Option<Supervised> {
        let (python, script) = (python()?, fixture("signals.py"));
        let supervised = self.start(options, &[&python, &script]);
        supervised.await_output("ready");
        Some(supervised)
    }
}

/// An init and its app, which is its child.
pub struct Supervised {
    pub running: Running,
    name: String,
    /// All descendants seen so far, so that none outlives the test, even if the init has crashed.
    orphans: Orphans,
    _scene: Scene,
}

impl Supervised {
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Sends a signal to the init, by its number.
    #[track_caller]
    pub fn signal(&self, number: i32) {
        self.orphans.note(&descendants(self.pid()));
        send_signal(self.pid(), Signal::from_named_raw(number).expect("a signal with a name"));
    }

    #[track_caller]
    pub fn await_output(&self, text: &str) {
        until(PATIENCE, &format!("the app of {} prints {text:?}", self.name), || self.running.stdout.contains(text));
    }

    /// The signals that the app of `start_with_reports` got, in order.
    pub fn reports(&self) -> Vec<i32> {
        let text = self.running.stdout.text();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().filter_map(|line| line.strip_prefix("got ")?.parse().ok()).collect()
    }

    /// Waits until this number of signals has arrived, and fails unless they are these.
    #[track_caller]
    pub fn await_report(&self, expected: &[i32]) {
        let what = format!("the app of {} reports {expected:?}", self.name);
        until(PATIENCE, &what, || self.reports().len() >= expected.len());
        assert_eq!(self.reports(), expected, "{}", self.name);
    }

    /// The app of the init: its child that no longer has the init's own name.
    #[track_caller]
    pub fn app(&self) -> u32 {
        let mut found = None;
        until(PATIENCE, &format!("the app of {}", self.name), || {
            found = children(self.pid()).into_iter().find(|child| !self.is_own(child));
            found.is_some()
        });
        found.expect("just found").pid
    }

    /// The children that are neither the app nor part of the init itself.
    pub fn adopted(&self, init: u32, app: u32) -> Vec<Process> {
        children(init).into_iter().filter(|child| child.pid != app && !self.is_own(child)).collect()
    }

    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        self.orphans.note(&descendants(self.pid()));
        self.running.wait(limit)
    }

    /// The kernel stores 15 bytes of a name, so that Outrigger's worker is called `outrigger-worke`.
    fn is_own(&self, child: &Process) -> bool {
        child.name.starts_with(&self.name)
    }
}

/// Processes that no other process kills: an orphan outlives its init, and would keep open what it inherited from the test.
#[derive(Default)]
pub struct Orphans(Mutex<Vec<u32>>);

impl Orphans {
    pub fn note(&self, pids: &[u32]) {
        self.0.lock().expect("no holder panics").extend(pids);
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        for pid in self.0.get_mut().into_iter().flatten() {
            // The parent first, so that it does not restart its children.
            let below = descendants(*pid);
            send_signal(*pid, Signal::KILL);
            below.into_iter().for_each(|pid| send_signal(pid, Signal::KILL));
        }
    }
}

/// Outrigger's configuration for the options. Default values are omitted, so that the defaults themselves are tested.
fn body(options: Options<'_>) -> String {
    let mut app = vec!["stop: { drain_timeout: 1s, grace_period: 10s, timeout: 15s }".to_owned()];
    let mut signals = Vec::new();
    signals.extend(options.single.then(|| "process_group: false".to_owned()));
    if !options.rewrite.is_empty() {
        let pairs: Vec<String> =
            options.rewrite.iter().map(|(from, to)| format!("{}: {}", name(*from), name(*to))).collect();
        signals.push(format!("rewrite: {{ {} }}", pairs.join(", ")));
    }
    if !signals.is_empty() {
        app.push(format!("signals: {{ {} }}", signals.join(", ")));
    }
    if !options.success.is_empty() {
        app.push(format!("success_exit_codes: {:?}", options.success));
    }
    format!("app: {{ {} }}\n{}", app.join(", "), options.body)
}

fn name(number: i32) -> String {
    let names = "none HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN \
                 TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";
    let index = usize::try_from(number).expect("a signal is not negative");
    let name = names.split_whitespace().nth(index).unwrap_or_else(|| panic!("signal {number} has a name"));
    if number == 0 { name.to_owned() } else { format!("SIG{name}") }
}
