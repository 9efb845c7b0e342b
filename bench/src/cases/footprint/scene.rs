//! The surroundings that all measures share: receiver, repository, the contenders, and how each is started.
//!
//! In: what is to run beside which app. Out: a started program whose parts have each worked once (a line at the sink, a
//! scrape, a remote write, a published revision, a proxied request): one that has not begun to work is light. Whatever
//! does not come within its limit is a fault, and the program is stopped when its guard is dropped.

use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::time::{Duration, Instant};

use super::INITS;
use super::parts::{Part, Places, Ports, configuration};
use crate::contenders::{self, ENVOY};
use crate::programs;
use crate::receiver::Receiver;
use crate::report::{OURS, Report};
use crate::running::{Running, finish};
use crate::scratch::{Scratch, free_ports, write};
use crate::usage;

const WORK_LIMIT: Duration = Duration::from_secs(30);
/// The name that the worker gives itself, cut by the kernel.
const WORKER: &str = "outrigger-worke";

pub struct Scene {
    pub scratch: Scratch,
    receiver: Receiver,
    /// The repository's URL, or why there is none.
    repository: Result<String, String>,
    contenders: Vec<(&'static str, PathBuf)>,
}

/// An app to wrap.
pub struct App {
    pub command: Vec<String>,
    /// The command line that it shows once it runs, by which it is told from those who started it.
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

    /// An app that says one line, which goes through the capture, and then does nothing.
    pub fn says_one_line() -> Self {
        Self { command: ["sh", "-c", "echo started; exec sleep 600"].map(str::to_owned).to_vec(), ..Self::asleep() }
    }
}

/// A contender at work.
pub struct AtWork {
    pub running: Running,
    pub folder: PathBuf,
    pub ports: Ports,
    /// Exec to ready; an init has no such moment.
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

    /// The worker, where there is one and no other takes its place just now.
    pub fn worker(&self) -> Result<u32, String> {
        match self.workers()[..] {
            [pid] => Ok(pid),
            ref pids => Err(format!("one process named {WORKER} was expected, not {}", pids.len())),
        }
    }

    pub fn explain(&self, fault: String) -> String {
        format!("{fault}: {}", self.running.last_words())
    }

    fn is_app(&self, pid: u32) -> bool {
        usage::command_line(pid) == self.app
    }
}

impl Scene {
    pub fn lay(report: &mut Report) -> Result<Self, String> {
        let scratch = Scratch::new()?;
        let mut contenders = Vec::new();
        for name in [OURS, ENVOY].into_iter().chain(INITS) {
            match contenders::find(name) {
                Ok(program) => contenders.push((name, program)),
                Err(reason) => report.remark(format!("{name} is missing: {reason}")),
            }
        }
        Ok(Self { receiver: Receiver::start()?, repository: repository(&scratch), contenders, scratch })
    }

    /// Nothing where it is missing, which has been remarked.
    pub fn program(&self, name: &str) -> Option<&Path> {
        self.contenders.iter().find(|(known, _)| *known == name).map(|(_, program)| program.as_path())
    }

    /// Those of `names` that are here, in that order.
    pub fn present<'a>(&'a self, names: &'a [&'static str]) -> impl Iterator<Item = (&'static str, &'a Path)> {
        names.iter().filter_map(|name| Some((*name, self.program(name)?)))
    }

    /// Writes our configuration into `folder`; the command that wraps `app` with it.
    pub fn ours(
        &self,
        program: &Path,
        folder: &Path,
        parts: &[Part],
        app: &App,
    ) -> Result<(Vec<String>, Ports), String> {
        let repository = match &self.repository {
            Err(fault) if parts.contains(&Part::Sync) => return Err(format!("no repository to follow: {fault}")),
            repository => repository.as_deref().unwrap_or_default(),
        };
        let [listen, admin, page] = free_ports()?;
        let ports = Ports { listen, admin, page };
        if parts.contains(&Part::Logs) {
            let logs = folder.join("logs");
            std::fs::create_dir(&logs).map_err(|e| format!("cannot create {}: {e}", logs.display()))?;
            write(&logs.join("orders.log"), "{\"level\":\"info\",\"message\":\"an order was paid\"}\n")?;
        }
        let path = folder.join("outrigger.yaml");
        write(&path, &configuration(parts, &Places { folder, repository, receiver: self.receiver.port, ports }))?;
        let words = [&program.to_string_lossy(), "run", "-c", &path.to_string_lossy(), "--"].map(str::to_owned);
        Ok((words.into_iter().chain(app.command.iter().cloned()).collect(), ports))
    }

    /// Ours around `app`, when every part has worked once.
    pub fn wrap(&self, program: &Path, parts: &[Part], app: App) -> Result<AtWork, String> {
        let folder = self.scratch.fresh(OURS)?;
        let (words, ports) = self.ours(program, &folder, parts, &app)?;
        let mut running = Running::start(command(&words), &folder)?;
        let ready = Some(running.ready(ports.admin, "/ready")?);
        let at_work = AtWork { running, folder, ports, ready, app: app.shows };
        self.every_part_has_worked(&at_work, parts).map_err(|fault| at_work.explain(fault))?;
        Ok(at_work)
    }

    /// The same with the app's stdout in a pipe, for apps that write: nothing is awaited but readiness.
    pub fn wrap_piped(&self, program: &Path, parts: &[Part], app: App) -> Result<(AtWork, ChildStdout), String> {
        let folder = self.scratch.fresh(OURS)?;
        let (words, ports) = self.ours(program, &folder, parts, &app)?;
        let (mut running, stdout) = Running::start_piped(command(&words), &folder)?;
        let ready = Some(running.ready(ports.admin, "/ready")?);
        Ok((AtWork { running, folder, ports, ready, app: app.shows }, stdout))
    }

    /// An init around `app`, with the app's stdout in a pipe.
    pub fn init_piped(&self, name: &str, program: &Path, app: App) -> Result<(AtWork, ChildStdout), String> {
        let folder = self.scratch.fresh(name)?;
        let mut command = Command::new(program);
        command.args(contenders::wrapped(name, &app.command));
        let (running, stdout) = Running::start_piped(command, &folder)?;
        let at_work =
            AtWork { running, folder, ports: Ports { listen: 0, admin: 0, page: 0 }, ready: None, app: app.shows };
        await_until("the app", || at_work.running.processes(&[]).iter().any(|pid| at_work.is_app(*pid)))?;
        Ok((at_work, stdout))
    }

    pub fn envoy(&self, program: &Path) -> Result<AtWork, String> {
        let folder = self.scratch.fresh(ENVOY)?;
        let [listen, admin] = free_ports()?;
        let command = contenders::envoy(program, &folder, listen, self.receiver.port, admin)?;
        let mut running = Running::start(command, &folder)?;
        let ready = Some(running.ready(admin, "/ready")?);
        let ports = Ports { listen, admin, page: 0 };
        let at_work = AtWork { running, folder, ports, ready, app: Vec::new() };
        let answers = || Part::Proxy.has_worked(&at_work.folder, ports);
        await_until("a request through the proxy", answers).map_err(|fault| at_work.explain(fault))?;
        Ok(at_work)
    }

    fn every_part_has_worked(&self, at_work: &AtWork, parts: &[Part]) -> Result<(), String> {
        // The counts go on from one start to the next, so only what is added counts.
        let paths = parts.iter().flat_map(|part| part.requests());
        let seen: Vec<_> = paths.map(|path| (path, self.receiver.count(path))).collect();
        if parts.contains(&Part::Logs) {
            // A second line, after the count was read, is one that this start must deliver.
            let line = "{\"level\":\"info\",\"message\":\"another order was paid\"}\n";
            let file = std::fs::OpenOptions::new().append(true).open(at_work.folder.join("logs/orders.log"));
            file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()))
                .map_err(|e| format!("cannot write the app's log: {e}"))?;
        }
        for (path, count) in seen {
            await_until(&format!("a request for {path}"), || self.receiver.count(path) > count)?;
        }
        for part in parts {
            await_until(part.name(), || part.has_worked(&at_work.folder, at_work.ports))?;
        }
        Ok(())
    }
}

pub fn command(words: &[String]) -> Command {
    let mut words = words.iter();
    // An empty list starts the empty name, which fails with its reason.
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
            return Err(format!("not idle but stuck, {what} did not come within {limit:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A small git repository with one commit, as a `file://` URL. The person's own git configuration stays out of it.
fn repository(scratch: &Scratch) -> Result<String, String> {
    let folder = scratch.fresh("repository")?;
    let git = programs::system("git")?;
    std::fs::create_dir(folder.join("orders")).map_err(|e| format!("cannot create the repository: {e}"))?;
    write(&folder.join("orders/settings.yaml"), "currency: EUR\nlimit: 100\n")?;
    for arguments in ["init --quiet --initial-branch=main", "add .", "commit --quiet --message=settings"] {
        let mut command = Command::new(&git);
        command.current_dir(&folder).args(["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]);
        command.args(arguments.split(' ')).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        finish(command, Duration::from_secs(20))?;
    }
    Ok(format!("file://{}", folder.display()))
}
