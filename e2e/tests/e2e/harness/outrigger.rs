//! The program under test: starts it from a scene's configuration with an optional command, waits for it, finds its worker
//! and its app by process id, and stops it. In: a configuration text. Out: exit code, output and admin responses. It never
//! outlives its test: dropping it kills the supervisor and all descendants.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::process::{Captured, Running, Signal, children, descendants, has_ended, is_alive, run_to_end};
use super::wire::{Reply, get};
use super::{PATIENCE, SECOND, Scene, ledger_balances, until, within, workspace};

/// The condition that the start of the program waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wait {
    Ready,
    Started,
    Nothing,
}

pub struct Outrigger {
    running: Running,
    pub admin: String,
    pub stdout: Captured,
    pub stderr: Captured,
}

#[derive(Debug)]
pub struct Exit {
    pub code: i32,
    pub took: Duration,
    pub stdout: String,
    pub stderr: String,
}

/// The binary at `OUTRIGGER_BIN`, else the newest that the `ci` profile built: cargo writes it to `target/ci`, or to a
/// directory named after the platform if the build specifies one.
pub fn binary() -> String {
    if let Some(path) = std::env::var_os("OUTRIGGER_BIN") {
        assert!(Path::new(&path).is_file(), "OUTRIGGER_BIN is the path of a program: {}", path.display());
        return path.to_string_lossy().into_owned();
    }
    let target = workspace().join("target");
    let platforms = std::fs::read_dir(&target).into_iter().flatten().flatten().map(|entry| entry.path().join("ci"));
    let built = platforms.chain([target.join("ci")]).map(|directory| directory.join("outrigger"));
    let dated = built.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    let (_, newest) = dated.max().expect("a program in target/ci; build it by: cargo build --profile ci");
    newest.display().to_string()
}

/// Runs one of the program's commands that exit by themselves: exit code, stdout, stderr.
#[track_caller]
pub fn outrigger(arguments: &[&str]) -> (i32, String, String) {
    let binary = binary();
    let command: Vec<&str> = [binary.as_str()].into_iter().chain(arguments.iter().copied()).collect();
    super::process::run_to_end(&command, PATIENCE)
}

impl Outrigger {
    /// Starts it and waits until it is ready. Without a command it runs as a companion.
    #[track_caller]
    pub fn start(scene: &Scene, body: &str, command: &[&str]) -> Self {
        Self::start_and(scene, body, command, Wait::Ready)
    }

    #[track_caller]
    pub fn start_and(scene: &Scene, body: &str, command: &[&str], wait: Wait) -> Self {
        Self::start_with(scene, body, command, wait, |_| {})
    }

    /// As above, with a hook that can change how the process is started: its environment, its directory.
    #[track_caller]
    pub fn start_with(
        scene: &Scene,
        body: &str,
        command: &[&str],
        wait: Wait,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        Self::start_binary(&binary(), scene, "outrigger.yaml", body, command, wait, prepare)
    }

    /// As above, with another binary, and its configuration in a file of this name.
    #[track_caller]
    pub fn start_binary(
        binary: &str,
        scene: &Scene,
        file: &str,
        body: &str,
        command: &[&str],
        wait: Wait,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let config = scene.write(file, configuration(scene, body));
        let mut built = Command::new(binary);
        built.arg("run").arg("-c").arg(config);
        if !command.is_empty() {
            built.arg("--").args(command);
        }
        prepare(&mut built);
        let running = Running::spawn(built);
        let (stdout, stderr) = (running.stdout.clone(), running.stderr.clone());
        let admin = format!("127.0.0.1:{}", scene.value("admin"));
        let mut started = Self { running, admin, stdout, stderr };
        match wait {
            Wait::Ready => started.await_success("/ready"),
            Wait::Started => started.await_success("/started"),
            Wait::Nothing => {}
        }
        started
    }

    #[track_caller]
    fn await_success(&mut self, path: &str) {
        let mut ended = None;
        let succeeded = within(PATIENCE, || {
            ended = self.running.ended();
            ended.is_some() || self.status_of(path) == 200
        });
        if let Some(status) = ended {
            panic!("it exited ({status}) before {path} returned 200");
        }
        assert!(succeeded, "{path} returns 200 within {PATIENCE:?}");
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The status code of a path of the admin listener; 0 if there is no response.
    pub fn status_of(&self, path: &str) -> u16 {
        get(&self.admin, path).map_or(0, |reply| reply.status)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        get(&self.admin, path).unwrap_or_else(|error| panic!("the admin listener serves {path}: {error}"))
    }

    /// The response body of a path; empty if there is no response.
    pub fn get_quietly(&self, path: &str) -> String {
        get(&self.admin, path).map_or_else(|_| String::new(), |reply| reply.text())
    }

    /// The worker: the supervisor's child that has the program's name.
    pub fn find_worker(&self) -> Option<u32> {
        let workers = children(self.pid()).into_iter();
        workers
            .filter(|child| child.name.starts_with("outrigger-work") && child.state != 'Z')
            .map(|child| child.pid)
            .next()
    }

    /// Waits until another worker than this one runs and is ready.
    #[track_caller]
    pub fn await_other(&self, before: u32, limit: Duration) {
        until(limit, "another worker is ready", || {
            self.find_worker().is_some_and(|pid| pid != before) && self.status_of("/ready") == 200
        });
    }

    #[track_caller]
    pub fn worker(&self) -> u32 {
        let mut found = None;
        until(PATIENCE, "a worker of the supervisor", || {
            found = self.find_worker();
            found.is_some()
        });
        found.expect("just found")
    }

    /// The app: the supervisor's other child.
    #[track_caller]
    pub fn app(&self) -> u32 {
        let mut found = None;
        until(PATIENCE, "the app of the supervisor", || {
            found = children(self.pid()).into_iter().find(|child| !child.name.starts_with("outrigger"));
            found.is_some()
        });
        found.expect("just found").pid
    }

    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// The end of nearly every test: the ledger balances, SIGTERM terminates the program in time, and no process of it remains.
    #[track_caller]
    pub fn finish(self) -> Exit {
        ledger_balances(&self.admin);
        self.terminate(40 * SECOND)
    }

    /// Sends SIGTERM and waits for the exit, without a check of the ledger.
    #[track_caller]
    pub fn terminate(self, limit: Duration) -> Exit {
        self.signal(Signal::TERM);
        self.wait(limit)
    }

    /// Waits for an exit that has another cause.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Exit {
        let below = descendants(self.pid());
        let began = Instant::now();
        let code = self.running.wait(limit);
        let took = began.elapsed();
        let exited = within(2 * SECOND, || !below.iter().any(|pid| is_alive(*pid)));
        assert!(exited, "all of {below:?} exit");
        Exit { code, took, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    /// Kills all processes of the program (SIGKILL), as in a power failure: none of them can shut down gracefully.
    /// Waits until all have exited: a worker that is still exiting holds ports that the next start needs.
    #[track_caller]
    pub fn kill_all(self) {
        let below = descendants(self.pid());
        drop(self);
        until(PATIENCE, "all processes have exited", || below.iter().all(|pid| has_ended(*pid)));
    }
}

/// `outrigger upgrade` of the program that runs in a scene: exit code, stdout and stderr.
pub fn upgrade(scene: &Scene, to: Option<&str>) -> (i32, String) {
    upgrade_at(&scene.text_path("run/admin.sock"), to)
}

/// The same by the path of the admin socket.
pub fn upgrade_at(socket: &str, to: Option<&str>) -> (i32, String) {
    let binary = binary();
    let mut command = vec![binary.as_str(), "upgrade", "--socket", socket];
    command.extend(to.into_iter().flat_map(|path| ["--binary", path]));
    let (code, stdout, stderr) = run_to_end(&command, UPGRADED);
    (code, stdout + &stderr)
}

/// Another worker has 20 s to become ready; four times that on a loaded machine.
const UPGRADED: Duration = Duration::from_secs(80);

/// The body with the scene's values substituted, and with the state directory and admin listener added if it has none.
/// They follow the body, so that line numbers in it do not change.
pub fn configuration(scene: &Scene, body: &str) -> String {
    let mut text = body.to_owned();
    if !body.lines().any(|line| line.starts_with("state:")) {
        text.push_str("\nstate: { dir: \"@dir@/state\", max_bytes: 64MiB }");
    }
    if !body.lines().any(|line| line.starts_with("admin:")) {
        text.push_str("\nadmin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/run/admin.sock\" }\n");
    }
    scene.fill(&text)
}
