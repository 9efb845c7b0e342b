//! The environment that all measurements share: receiver, repository, the peers, and how each is started.
//!
//! In: the program and the app. Out: a started program whose parts have each worked once (a line at the sink, a scrape, a
//! remote write, a published revision, a proxied request), since a program that has not worked yet uses less. A part that
//! exceeds its limit is an error, and the program is stopped when its guard is dropped.

use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::time::{Duration, Instant};

use super::INITS;
use super::parts::{Part, Places, Ports, configuration};
use crate::peers::{self, ENVOY};
use crate::programs;
use crate::receiver::Receiver;
use crate::report::{OURS, Report};
use crate::running::{Running, finish};
use crate::scratch::{Scratch, free_ports, write};
use crate::usage;

const WORK_LIMIT: Duration = Duration::from_secs(30);
/// The name that the worker sets for itself, truncated by the kernel.
const WORKER: &str = "outrigger-worke";

pub struct Scene {
    pub scratch: Scratch,
    receiver: Receiver,
    /// The repository's URL, or the error.
    repository: Result<String, String>,
    peers: Vec<(&'static str, PathBuf)>,
}

/// An app to wrap.
pub struct App {
    pub command: Vec<String>,
    /// Its command line once it runs, which distinguishes it from its parents.
    pub shows: Vec<String>,
}

impl App {
    pub fn of(command: Vec<String>) -> Self {
        Self { shows: command.clone(), command }
    }

    /// An app that does nothing.
    pub fn asleep() -> Self {
        Self::of(["sleep", "600"].map(str::to_owned).to_vec())
    }

    /// An app that prints one line, which goes through the capture, and then does nothing.
    pub fn prints_one_line() -> Self {
        Self { command: ["sh", "-c", "echo started; exec sleep 600"].map(str::to_owned).to_vec(), ..Self::asleep() }
    }
}

/// A started program.
pub struct AtWork {
    pub running: Running,
    pub directory: PathBuf,
    pub ports: Ports,
    /// Exec to ready; an init has no readiness.
    pub ready: Option<Duration>,
    app: Vec<String>,
}

impl AtWork {
    /// All processes but the app.
    pub fn processes(&self) -> Vec<u32> {
        self.running.processes(&self.app)
    }

    pub fn workers(&self) -> Vec<u32> {
        let mut pids = self.processes();
        pids.retain(|pid| usage::name(*pid) == WORKER);
        pids
    }

    /// The worker, if there is exactly one and no handover is in progress.
    pub fn worker(&self) -> Result<u32, String> {
        match self.workers()[..] {
            [pid] => Ok(pid),
            ref pids => Err(format!("one process named {WORKER} was expected, not {}", pids.len())),
        }
    }

    pub fn explain(&self, fault: String) -> String {
        format!("{fault}: {}", self.running.last_lines())
    }

    fn is_app(&self, pid: u32) -> bool {
        usage::command_line(pid) == self.app
    }
}

impl Scene {
    pub fn create(report: &mut Report) -> Result<Self, String> {
        let scratch = Scratch::new()?;
        let mut peers = Vec::new();
        for name in [OURS, ENVOY].into_iter().chain(INITS) {
            match peers::find(name) {
                Ok(program) => peers.push((name, program)),
                Err(reason) => report.remark(format!("{name} is missing: {reason}")),
            }
        }
        Ok(Self { receiver: Receiver::start()?, repository: repository(&scratch), peers, scratch })
    }

    /// `None` if it is missing, which a remark reports.
    pub fn program(&self, name: &str) -> Option<&Path> {
        self.peers.iter().find(|(known, _)| *known == name).map(|(_, program)| program.as_path())
    }

    /// The programs of `names` that exist, in that order.
    pub fn present<'a>(&'a self, names: &'a [&'static str]) -> impl Iterator<Item = (&'static str, &'a Path)> {
        names.iter().filter_map(|name| Some((*name, self.program(name)?)))
    }

    /// Writes Outrigger's configuration into `directory`; returns the command that wraps `app` with it.
    pub fn ours(
        &self,
        program: &Path,
        directory: &Path,
        parts: &[Part],
        app: &App,
    ) -> Result<(Vec<String>, Ports), String> {
        let repository = match &self.repository {
            Err(fault) if parts.contains(&Part::Sync) => return Err(format!("no repository: {fault}")),
            repository => repository.as_deref().unwrap_or_default(),
        };
        let [listen, admin, page] = free_ports()?;
        let ports = Ports { listen, admin, page };
        if parts.contains(&Part::Logs) {
            let logs = directory.join("logs");
            std::fs::create_dir(&logs).map_err(|e| format!("cannot create {}: {e}", logs.display()))?;
            write(&logs.join("orders.log"), "{\"level\":\"info\",\"message\":\"an order was paid\"}\n")?;
        }
        let path = directory.join("outrigger.yaml");
        write(&path, &configuration(parts, &Places { directory, repository, receiver: self.receiver.port, ports }))?;
        let words = [&program.to_string_lossy(), "run", "-c", &path.to_string_lossy(), "--"].map(str::to_owned);
        Ok((words.into_iter().chain(app.command.iter().cloned()).collect(), ports))
    }

    /// Outrigger around `app`, once every part has worked.
    pub fn wrap(&self, program: &Path, parts: &[Part], app: App) -> Result<AtWork, String> {
        let directory = self.scratch.fresh(OURS)?;
        let (words, ports) = self.ours(program, &directory, parts, &app)?;
        let mut running = Running::start(command(&words), &directory)?;
        let ready = Some(running.ready(ports.admin, "/ready")?);
        let at_work = AtWork { running, directory, ports, ready, app: app.shows };
        self.every_part_has_worked(&at_work, parts).map_err(|fault| at_work.explain(fault))?;
        Ok(at_work)
    }

    /// The same with the app's stdout in a pipe, for apps that write: only readiness is awaited.
    pub fn wrap_piped(&self, program: &Path, parts: &[Part], app: App) -> Result<(AtWork, ChildStdout), String> {
        let directory = self.scratch.fresh(OURS)?;
        let (words, ports) = self.ours(program, &directory, parts, &app)?;
        let (mut running, stdout) = Running::start_piped(command(&words), &directory)?;
        let ready = Some(running.ready(ports.admin, "/ready")?);
        Ok((AtWork { running, directory, ports, ready, app: app.shows }, stdout))
    }

    /// An init around `app`, with the app's stdout in a pipe.
    pub fn init_piped(&self, name: &str, program: &Path, app: App) -> Result<(AtWork, ChildStdout), String> {
        let directory = self.scratch.fresh(name)?;
        let mut command = Command::new(program);
        command.args(peers::wrapped(name, &app.command));
        let (running, stdout) = Running::start_piped(command, &directory)?;
        let at_work =
            AtWork { running, directory, ports: Ports { listen: 0, admin: 0, page: 0 }, ready: None, app: app.shows };
        await_until("the app", || at_work.running.processes(&[]).iter().any(|pid| at_work.is_app(*pid)))?;
        Ok((at_work, stdout))
    }

    pub fn envoy(&self, program: &Path) -> Result<AtWork, String> {
        let directory = self.scratch.fresh(ENVOY)?;
        let [listen, admin] = free_ports()?;
        let command = peers::envoy(program, &directory, listen, self.receiver.port, admin)?;
        let mut running = Running::start(command, &directory)?;
        let ready = Some(running.ready(admin, "/ready")?);
        let ports = Ports { listen, admin, page: 0 };
        let at_work = AtWork { running, directory, ports, ready, app: Vec::new() };
        let responds = || Part::Proxy.has_worked(&at_work.directory, ports);
        await_until("a request through the proxy", responds).map_err(|fault| at_work.explain(fault))?;
        Ok(at_work)
    }

    fn every_part_has_worked(&self, at_work: &AtWork, parts: &[Part]) -> Result<(), String> {
        // The counts are shared by all starts, so only increments matter.
        let paths = parts.iter().flat_map(|part| part.requests());
        let seen: Vec<_> = paths.map(|path| (path, self.receiver.count(path))).collect();
        if parts.contains(&Part::Logs) {
            // A second line, written after the count was read, must be delivered by this start.
            let line = "{\"level\":\"info\",\"message\":\"another order was paid\"}\n";
            let file = std::fs::OpenOptions::new().append(true).open(at_work.directory.join("logs/orders.log"));
            file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
                .map_err(|e| format!("cannot write the app's log: {e}"))?;
        }
        for (path, count) in seen {
            await_until(&format!("a request for {path}"), || self.receiver.count(path) > count)?;
        }
        for part in parts {
            await_until(part.name(), || part.has_worked(&at_work.directory, at_work.ports))?;
        }
        Ok(())
    }
}

pub fn command(words: &[String]) -> Command {
    let mut words = words.iter();
    // An empty list runs an empty program name, which fails with its reason.
    let mut command = Command::new(words.next().map(String::as_str).unwrap_or_default());
    command.args(words);
    command
}

pub fn await_until(what: &str, condition: impl FnMut() -> bool) -> Result<(), String> {
    await_within(WORK_LIMIT, what, condition)
}

pub fn await_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() > end {
            return Err(format!("timeout after {limit:?} waiting for {what}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A small git repository with one commit, as a `file://` URL. The user's git configuration is not used.
fn repository(scratch: &Scratch) -> Result<String, String> {
    let directory = scratch.fresh("repository")?;
    let git = programs::system("git")?;
    std::fs::create_dir(directory.join("orders")).map_err(|e| format!("cannot create the repository: {e}"))?;
    write(&directory.join("orders/settings.yaml"), "currency: EUR\nlimit: 100\n")?;
    for arguments in ["init --quiet --initial-branch=main", "add .", "commit --quiet --message=settings"] {
        let mut command = Command::new(&git);
        command.current_dir(&directory).args(["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]);
        command.args(arguments.split(' ')).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        finish(command, Duration::from_secs(20))?;
    }
    Ok(format!("file://{}", directory.display()))
}
