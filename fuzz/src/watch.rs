//! The process that runs a target, and the one that watches it. In: a job. Out: the paths of the findings. A panic is caught in
//! the process; an abort, a stack overflow, unbounded memory and a hang end the process, and the current input is in the desk's
//! file. Bounds: `HANG` of CPU per input and `STUCK` without progress; `MEMORY_MAX` for the process, `STACK` for its thread.

use crate::attempt::Failure;
use crate::desk::{self, Desk};
use crate::explore::{Exploration, Seed, Witness};
use crate::scratch;
use crate::targets::Target;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The CPU time that one input may take.
const HANG: Duration = Duration::from_secs(2);

/// An input that waits for something takes no CPU.
const STUCK: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// An allocation above it fails, which aborts the process.
const MEMORY_MAX: u64 = 1 << 30;

/// The stack size of a thread of the worker (std::thread, tokio's blocking threads).
const STACK: usize = 2 << 20;

/// Exits of the process in one job, after which the job is abandoned.
const ENDS_MAX: usize = 10;

/// This variable is set in the watched process.
pub const WATCHED: &str = "OUTRIGGER_FUZZ_WATCHED";

pub struct Job<'a> {
    pub target: &'a Target,
    pub time: Duration,
    pub seed: u64,
    /// Only one input, instead of the corpus and its mutations.
    pub input: Option<PathBuf>,
    pub find_all: bool,
    pub corpus: PathBuf,
    pub findings: PathBuf,
}

/// Runs the job in a separate process. Returns whether anything was found.
pub fn watch(job: &Job<'_>) -> io::Result<bool> {
    let directory = scratch::fresh().join(job.target.name);
    std::fs::create_dir_all(&directory)?;
    let outcome = watch_in(job, &directory);
    let _ = std::fs::remove_dir_all(&directory);
    // Fails unless it is empty: another job of this process may be in progress.
    let _ = std::fs::remove_dir(scratch::fresh());
    outcome
}

fn watch_in(job: &Job<'_>, directory: &Path) -> io::Result<bool> {
    let until = Instant::now() + job.time;
    let mut found = false;
    for round in 0..ENDS_MAX as u64 {
        let left = until.saturating_duration_since(Instant::now());
        let mut child = start(job, directory, job.seed.wrapping_add(round), left)?;
        let Some(why) = wait(&mut child, &directory.join(DESK))? else { return Ok(found) };
        if let Some(code) = why.code() {
            if code != EXIT_FOUND {
                return Err(io::Error::other(format!("the process of `{}` failed", job.target.name)));
            }
            return Ok(true);
        }
        found = true;
        let input = desk::read(&directory.join(DESK)).map(|(_, input)| input).unwrap_or_default();
        let failure = Failure { message: why.message(), place: "the process".into(), functions: Vec::new() };
        let source = job.input.as_ref().map(|path| path.display().to_string());
        Findings { job, last: None }.failed(&input, &failure, source.as_deref());
        if !job.find_all || job.input.is_some() || Instant::now() >= until {
            return Ok(true);
        }
    }
    Ok(found)
}

/// How a process failed.
enum End {
    Code(i32),
    Signal(i32),
    Hang,
    Stuck,
}

impl End {
    fn code(&self) -> Option<i32> {
        match self {
            End::Code(code) => Some(*code),
            _ => None,
        }
    }

    fn message(&self) -> String {
        match self {
            End::Code(code) => format!("the process exited with {code}"),
            End::Signal(signal) => format!(
                "the process was killed by signal {signal}: overflow of a stack of {STACK} bytes, allocations above {MEMORY_MAX} bytes in total, or an abort"
            ),
            End::Hang => format!("this input took more than {HANG:?} of CPU"),
            End::Stuck => format!("this input made no progress for {STUCK:?}"),
        }
    }
}

const EXIT_FOUND: i32 = 1;
const DESK: &str = "desk";

fn start(job: &Job<'_>, directory: &Path, seed: u64, time: Duration) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(job.target.name).args(["--seed", &seed.to_string(), "--for", &format!("{}ms", time.as_millis())]);
    command.arg("--corpus").arg(&job.corpus).arg("--findings").arg(&job.findings);
    if let Some(path) = &job.input {
        command.arg("--input").arg(path);
    }
    if job.find_all {
        command.arg("--all");
    }
    command.env(WATCHED, directory.join(DESK)).env(scratch::VARIABLE, directory).spawn()
}

/// Waits for the exit; `None` if it succeeded.
fn wait(child: &mut Child, desk: &Path) -> io::Result<Option<End>> {
    let (mut number, mut cpu, mut since) = (None, Duration::ZERO, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match (status.code(), status.signal()) {
                (Some(0), _) => None,
                (Some(code), _) => Some(End::Code(code)),
                (None, signal) => Some(End::Signal(signal.unwrap_or(0))),
            });
        }
        let (now, used) = (desk::number(desk), cpu_of(child.id()).unwrap_or_default());
        if now != number {
            (number, cpu, since) = (now, used, Instant::now());
        }
        // Before the first input the process reads its corpus and creates the target's files.
        let over = match used.saturating_sub(cpu) > HANG && number.is_some() {
            true => Some(End::Hang),
            false if since.elapsed() > STUCK => Some(End::Stuck),
            false => None,
        };
        if let Some(end) = over {
            child.kill()?;
            child.wait()?;
            return Ok(Some(end));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Fields 14 and 15 of proc_pid_stat(5), in ticks.
fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let all = ticks()? + ticks()?;
    Some(Duration::from_millis(all * 1000 / rustix::param::clock_ticks_per_second().max(1)))
}

/// The watched side: runs the job in this process; returns the exit code.
pub fn work(job: &Job<'_>, desk: &Path) -> io::Result<i32> {
    let limit = rustix::process::Rlimit { current: Some(MEMORY_MAX), maximum: Some(MEMORY_MAX) };
    rustix::process::setrlimit(rustix::process::Resource::Data, limit)?;
    let seeds = match &job.input {
        Some(path) => vec![Seed { name: path.display().to_string(), bytes: std::fs::read(path)? }],
        None => seeds(&job.corpus.join(job.target.name))?,
    };
    let exploration = Exploration::new(job.target, Desk::open(desk)?, job.find_all);
    let started = Instant::now();
    let until = started + if job.input.is_some() { Duration::ZERO } else { job.time };
    let tally = std::thread::scope(|scope| {
        let mut findings = Findings { job, last: None };
        let run = move || exploration.run(&seeds, job.seed, until, &mut findings);
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run)?;
        thread.join().map_err(|_| io::Error::other("the loop itself failed"))
    })?;
    println!(
        "{:<15} {:>9} inputs, {:>5} shapes, {:>4} kept, {} failures, {:.1} s, seed {}",
        job.target.name,
        tally.inputs,
        tally.shapes,
        tally.kept,
        tally.failures,
        started.elapsed().as_secs_f64(),
        job.seed
    );
    Ok(if tally.failures > 0 { EXIT_FOUND } else { 0 })
}

/// The files of a directory, ordered by name.
pub fn seeds(directory: &Path) -> io::Result<Vec<Seed>> {
    let entries = std::fs::read_dir(directory)
        .map_err(|error| io::Error::new(error.kind(), format!("the corpus {}: {error}", directory.display())))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    paths.sort();
    let read = |path: PathBuf| Ok(Seed { bytes: std::fs::read(&path)?, name: path.display().to_string() });
    paths.into_iter().map(read).collect()
}

/// Writes failing inputs to files and prints their paths.
struct Findings<'a, 'j> {
    job: &'a Job<'j>,
    /// The last file and the place of its failure: a smaller input with the same place replaces it.
    last: Option<(PathBuf, String)>,
}

impl Witness for Findings<'_, '_> {
    fn failed(&mut self, input: &[u8], failure: &Failure, seed: Option<&str>) {
        let path = match seed {
            Some(name) => PathBuf::from(name),
            None => self.write(input, &failure.place).unwrap_or_else(|error| {
                eprintln!("cannot write the finding: {error}");
                PathBuf::from("(not written)")
            }),
        };
        eprintln!("\n{}: {}\n  at {}", self.job.target.name, printable(&failure.message), failure.place);
        failure.functions.iter().for_each(|function| eprintln!("  in {function}"));
        eprintln!("  input {}: {}", path.display(), shown(input));
        eprintln!("  again: cargo xtask fuzz {} --input {}\n", self.job.target.name, path.display());
    }
}

impl Findings<'_, '_> {
    fn write(&mut self, input: &[u8], place: &str) -> io::Result<PathBuf> {
        std::fs::create_dir_all(&self.job.findings)?;
        let path = self.job.findings.join(format!("{}-{:016x}", self.job.target.name, sys::ring::fnv1a(input)));
        std::fs::write(&path, input)?;
        let last = self.last.replace((path.clone(), place.to_string()));
        if let Some((larger, _)) = last.filter(|(larger, of)| of == place && *larger != path) {
            std::fs::remove_file(larger)?;
        }
        Ok(path)
    }
}

/// A message may quote the input, which must not reach a terminal unescaped.
fn printable(message: &str) -> String {
    const MESSAGE_MAX: usize = 2000;
    let escape = |c: char| match c.is_control() && c != '\n' {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    message.chars().take(MESSAGE_MAX).map(escape).collect()
}

/// The beginning of an input, escaped.
fn shown(input: &[u8]) -> String {
    const SHOWN_MAX: usize = 400;
    let start = input.get(..SHOWN_MAX).unwrap_or(input);
    let more = if input.len() > SHOWN_MAX { format!(" … {} bytes", input.len()) } else { String::new() };
    format!("\"{}\"{more}", start.escape_ascii())
}
