//! `footprint`: what we weigh when nothing happens, beside Envoy doing the proxy's part alone.
//!
//! Ours wraps a sleeping app with all four jobs on. Before anything is read, each job must have done its work once (a
//! line at the sink, a scrape, a remote write, a published revision, a proxied request): a program that has not started
//! to work is light. Then five idle seconds pass, memory is read, and the CPU of the next five seconds. Waiting by the
//! clock is the measurement here, not a guess.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::contenders::{self, ENVOY};
use crate::programs;
use crate::receiver::Receiver;
use crate::report::{Limit, OURS, Report, RowId};
use crate::running::{Running, finish, status};
use crate::scratch::{Scratch, free_ports, write};
use crate::usage;

const IDLE: Duration = Duration::from_secs(5);
const WORK_LIMIT: Duration = Duration::from_secs(30);
const APP: [&str; 2] = ["sleep", "600"];
const MEGABYTE: f64 = 1e6;

/// covers: foundation 10, foundation 17
pub fn run(pairs: usize) -> Result<Report, String> {
    let mut report = Report::new("footprint", pairs, &[ENVOY]);
    let rows = Rows::new(&mut report);
    let scratch = Scratch::new()?;
    let scene = Scene { receiver: Receiver::start()?, repository: repository(&scratch) };
    let mut contenders = Vec::new();
    for name in [OURS, ENVOY] {
        match contenders::find(name) {
            Ok(program) => contenders.push((name, program)),
            Err(reason) => report.remark(format!("{name} is missing: {reason}")),
        }
    }
    for (name, program) in &contenders {
        match sizes(&scratch, program) {
            Ok((size, stripped)) => {
                report.record(rows.size, name, 0, size as f64);
                report.record(rows.stripped, name, 0, stripped as f64);
            }
            Err(reason) => report.remark(format!("{name}, size: {reason}")),
        }
    }
    for round in 0..pairs {
        for (name, program) in &contenders {
            eprintln!("  round {} of {pairs}: {name}", round + 1);
            match scene.measure(&scratch, name, program) {
                Ok(weight) => rows.record(&mut report, name, round, &weight),
                Err(reason) => report.remark(format!("{name}: {reason}")),
            }
        }
    }
    report.remark("memory and CPU of ours are those of supervisor and worker; the wrapped app is not counted");
    Ok(report)
}

struct Rows {
    pss: RowId,
    rss: RowId,
    ready: RowId,
    idle_cpu: RowId,
    size: RowId,
    stripped: RowId,
}

impl Rows {
    fn new(report: &mut Report) -> Self {
        Self {
            pss: report.limited_row("idle memory, PSS", "MB", 1, vec![Limit::Ours(15.0)]),
            rss: report.row("idle memory, VmRSS", "MB", 1),
            ready: report.limited_row("exec to ready", "ms", 1, vec![Limit::Ours(100.0)]),
            idle_cpu: report.row("CPU of 5 idle seconds", "ms", 2),
            size: report.row("binary", "bytes", 0),
            stripped: report.limited_row("binary, stripped", "bytes", 0, vec![Limit::Ours(20e6)]),
        }
    }

    fn record(&self, report: &mut Report, name: &'static str, round: usize, weight: &Weight) {
        report.record(self.pss, name, round, weight.memory.pss as f64 / MEGABYTE);
        report.record(self.rss, name, round, weight.memory.rss as f64 / MEGABYTE);
        report.record(self.ready, name, round, weight.ready.as_secs_f64() * 1e3);
        report.record(self.idle_cpu, name, round, weight.idle_cpu.as_secs_f64() * 1e3);
    }
}

struct Weight {
    ready: Duration,
    memory: usage::Memory,
    idle_cpu: Duration,
}

/// The surroundings that all starts share.
struct Scene {
    receiver: Receiver,
    /// The repository's URL, or why there is none.
    repository: Result<String, String>,
}

impl Scene {
    fn measure(&self, scratch: &Scratch, name: &str, program: &Path) -> Result<Weight, String> {
        let folder = scratch.fresh(name)?;
        let [listen, admin, page] = free_ports()?;
        let command = match name {
            ENVOY => contenders::envoy(program, &folder, listen, self.receiver.port, admin)?,
            _ => self.outrigger(program, &folder, [listen, admin, page])?,
        };
        let mut running = Running::start(command, &folder)?;
        let ready = running.ready(admin, "/ready")?;
        if name == OURS {
            self.every_job_has_worked(&running, &folder, page)?;
        }
        await_until("a request through the proxy", || status(listen, "/") == Some(200))
            .map_err(|fault| format!("{fault}: {}", running.last_words()))?;
        std::thread::sleep(IDLE);
        let pids = running.processes(&APP);
        let memory = usage::memory(&pids, &[&folder])?;
        let before = usage::time_on_core(&pids);
        std::thread::sleep(IDLE);
        let idle_cpu = usage::time_on_core(&running.processes(&APP)).saturating_sub(before);
        Ok(Weight { ready, memory, idle_cpu })
    }

    fn outrigger(&self, program: &Path, folder: &Path, [listen, admin, page]: [u16; 3]) -> Result<Command, String> {
        let repository = self.repository.as_ref().map_err(|fault| format!("no repository to follow: {fault}"))?;
        let logs = folder.join("logs");
        std::fs::create_dir(&logs).map_err(|e| format!("cannot create {}: {e}", logs.display()))?;
        write(&logs.join("orders.log"), "{\"level\":\"info\",\"message\":\"an order was paid\"}\n")?;
        let (place, receiver) = (folder.display(), self.receiver.port);
        let text = format!(
            r#"app: {{ port: {receiver}, stop: {{ drain: 1s, grace: 2s, deadline: 5s }} }}
state: {{ dir: "{place}/state" }}
logs:
  sources:
    app: {{ stdio: {{}} }}
    files: {{ file: {{ include: ["{place}/logs/*.log"], start: beginning }} }}
  sinks:
    main: {{ http: {{ endpoint: "http://127.0.0.1:{receiver}/lines", compression: gzip }}, from: [app, files] }}
metrics:
  sources:
    app: {{ scrape: {{ url: "http://127.0.0.1:{receiver}/metrics", every: 5s }} }}
    process: {{ process: {{}} }}
    self: {{ self: {{}} }}
  sinks:
    page: {{ prometheus: {{ listen: "127.0.0.1:{page}" }} }}
    central: {{ remote_write: {{ url: "http://127.0.0.1:{receiver}/api/v1/write" }} }}
sync:
  settings: {{ from: {{ git: {{ url: "{repository}", ref: main, path: orders/ }} }}, to: "{place}/settings", every: 10s }}
proxy:
  threads: 1
  listeners: {{ inbound: {{ listen: "127.0.0.1:{listen}", direction: inbound, to: app }} }}
admin: {{ listen: "127.0.0.1:{admin}", socket: "{place}/admin.sock" }}
"#
        );
        let path = folder.join("outrigger.yaml");
        write(&path, &text)?;
        let mut command = Command::new(program);
        // The shell's line goes through the capture; then the shell becomes the sleeping app.
        command.arg("run").arg("-c").arg(path).args(["--", "sh", "-c", "echo started; exec sleep 600"]);
        Ok(command)
    }

    fn every_job_has_worked(&self, running: &Running, folder: &Path, page: u16) -> Result<(), String> {
        // The counts go on from one start to the next, so only what is added counts.
        let seen = ["/lines", "/metrics", "/api/v1/write"].map(|path| (path, self.receiver.count(path)));
        // A second line, after the count was read, is one that this start must deliver.
        let line = "{\"level\":\"info\",\"message\":\"another order was paid\"}\n";
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(folder.join("logs/orders.log"))
            .map_err(|e| format!("cannot open the app's log: {e}"))?;
        std::io::Write::write_all(&mut file, line.as_bytes())
            .map_err(|e| format!("cannot write the app's log: {e}"))?;
        let with_output = |fault: String| format!("{fault}: {}", running.last_words());
        for (path, count) in seen {
            let what = format!("a request for {path}");
            await_until(&what, || self.receiver.count(path) > count).map_err(with_output)?;
        }
        await_until("a published revision", || folder.join("settings/settings.yaml").is_file()).map_err(with_output)?;
        await_until("the page of metrics", || status(page, "/metrics") == Some(200)).map_err(with_output)
    }
}

fn await_until(what: &str, condition: impl Fn() -> bool) -> Result<(), String> {
    let limit = Instant::now() + WORK_LIMIT;
    while !condition() {
        if Instant::now() > limit {
            return Err(format!("not idle but stuck, {what} did not come within {WORK_LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Bytes of the binary as it is, and of a copy without symbols.
fn sizes(scratch: &Scratch, program: &Path) -> Result<(u64, u64), String> {
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(|e| format!("{}: {e}", path.display()));
    let copy = scratch.fresh("stripped")?.join("binary");
    let mut strip = Command::new(programs::system("strip").map_err(|_| "strip is not installed".to_owned())?);
    strip.arg("--strip-all").arg("-o").arg(&copy).arg(program);
    finish(strip, Duration::from_secs(60))?;
    Ok((size(program)?, size(&copy)?))
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
