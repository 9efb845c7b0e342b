//! Starts a command to look at it, and stops it again. In: a command and a time. Out: `Found`. The app runs in a group of its
//! own, reads nothing, and its output goes to our stderr as it comes. It is looked at until it listens and nothing new was
//! found for `QUIET`, has ended, or the time is over; then its group, and whatever it left behind, gets SIGTERM and after
//! `GRACE` SIGKILL. An interrupt of ours stops it first. Bound: `TAIL` bytes of its output are kept.

use crate::files::TAIL;
use crate::format::{Guess, sniff};
use crate::look::{Found, Sight};
use crate::process::{self, Process};
use crate::{Failure, Target, background};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sys::signal::SavedSignals;

/// Without news for so long, an app that listens has shown itself.
const QUIET: Duration = Duration::from_secs(2);
/// Between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const PACE: Duration = Duration::from_millis(100);

/// Signals that ask us to end: SIGHUP, SIGINT, SIGQUIT, SIGTERM.
const ENDING: [i32; 4] = [1, 2, 3, 15];

/// Errors: the command cannot be started, or a signal came.
pub fn of_command(command: &[OsString], length: Duration) -> Result<Found, Failure> {
    let began = Instant::now();
    let trial = Trial::start(command)?;
    let mut sight = Sight::default();
    let mut news = began;
    let ended = loop {
        let family = trial.family();
        if sight.add(&family) {
            news = Instant::now();
        }
        let ended = trial.ended();
        if ended.is_some() && family.is_empty() {
            break ended;
        }
        if began.elapsed() >= length || sight.has_ports() && news.elapsed() >= QUIET {
            break ended;
        }
        if let Some(signal) = trial.wait() {
            drop(trial);
            return Err(Failure {
                message: format!("interrupted by signal {signal}; the command was stopped"),
                help: "start it again, or look at a process that runs already with --pid",
                code: 128 + signal,
            });
        }
    };
    let is_left = ended.is_some() && !trial.family().is_empty();
    if let Some(how) = ended.filter(|_| !is_left) {
        let after = began.elapsed().as_millis();
        sight.note(format!("the command ended {how} after {after} ms; what it would have done later was not seen"));
    }
    let mut found = sight.finish(Target::Command(command.to_vec()));
    found.background = is_left.then(|| background::advice(command));
    found.output = Some(trial.stop_and_sniff());
    Ok(found)
}

struct Trial {
    child: Child,
    process: Option<Process>,
    signals: Option<(OwnedFd, SavedSignals)>,
    outputs: Vec<JoinHandle<()>>,
    tail: Arc<Mutex<Vec<u8>>>,
    is_stopped: bool,
}

impl Trial {
    fn start(command: &[OsString]) -> Result<Trial, Failure> {
        let Some((program, arguments)) = command.split_first() else { return Err(not_started("", 127)) };
        // What a daemon leaves behind becomes our child, and can be found and stopped.
        let own = rustix::process::getpid();
        if let Err(error) = rustix::process::set_child_subreaper(Some(own)) {
            eprintln!("outrigger: processes that leave the app's family will not be seen: {error}");
        }
        let mut built = Command::new(program);
        built.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = built.spawn().map_err(|error| {
            let (what, code) = match error.kind() {
                io::ErrorKind::NotFound => ("command not found".to_string(), 127),
                _ => (error.to_string(), 126),
            };
            not_started(&format!("{}: {what}", program.to_string_lossy()), code)
        })?;
        // After the start, since a child inherits the mask.
        let signals = sys::signal::block_all().ok();
        let tail = Arc::default();
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let outputs = pipes.into_iter().flatten().map(|pipe| {
            let tail = Arc::clone(&tail);
            std::thread::spawn(move || pass_on(pipe, &tail))
        });
        let outputs = outputs.collect();
        let process = Process::read(child.id());
        Ok(Trial { child, process, signals, outputs, tail, is_stopped: false })
    }

    /// The command, what is below it or in its group, and what was left to us since it began.
    fn family(&self) -> Vec<Process> {
        let (own, child) = (std::process::id(), self.child.id());
        let began = self.process.as_ref().map_or(u64::MAX, |process| process.started);
        process::family(&process::all(), |process| {
            process.pid == child || process.group == child || process.parent == own && process.started >= began
        })
    }

    /// How the command itself ended; it is not waited for yet, so that its id and its group stay its own.
    fn ended(&self) -> Option<String> {
        let pid = Pid::from_child(&self.child);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status: Option<WaitIdStatus> = rustix::process::waitid(WaitId::Pid(pid), options).ok()?;
        let status = status?;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("with code {code}"),
            (_, Some(signal)) => format!("by signal {signal}"),
            _ => "somehow".into(),
        })
    }

    /// Until the next look; a signal that asks us to end comes back at once.
    fn wait(&self) -> Option<i32> {
        let pace = Timespec { tv_sec: 0, tv_nsec: PACE.subsec_nanos().into() };
        let Some((signals, _)) = &self.signals else {
            std::thread::sleep(PACE);
            return None;
        };
        // An interrupted wait is only a shorter one.
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&pace));
        let mut arrived = std::iter::from_fn(|| sys::signal::next(signals)).map(|arrived| arrived.number);
        arrived.find(|signal| ENDING.contains(signal))
    }

    fn stop_and_sniff(mut self) -> Guess {
        self.stop();
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end && self.outputs.iter().any(|output| !output.is_finished()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        sniff(&tail, tail.len() as u64 >= TAIL)
    }

    fn stop(&mut self) {
        if std::mem::replace(&mut self.is_stopped, true) {
            return;
        }
        let mut signal = Signal::TERM;
        let mut end = Instant::now() + GRACE;
        self.signal(signal);
        // A process that cannot be killed must not hold us for ever.
        let last = end + Duration::from_secs(1);
        while !self.family().is_empty() && Instant::now() < last {
            if signal == Signal::KILL || Instant::now() >= end {
                signal = Signal::KILL;
                self.signal(signal);
            }
            // A second request to end shortens the first.
            if self.wait().is_some() {
                end = Instant::now();
            }
        }
        // Its status was seen before, or is of no interest.
        let _ = self.child.try_wait();
        if let Some((_, before)) = self.signals.take() {
            before.restore();
        }
        let _ = rustix::process::set_child_subreaper(None);
    }

    fn signal(&self, signal: Signal) {
        let child = Pid::from_child(&self.child);
        // Whoever has gone already needs none.
        let _ = rustix::process::kill_process_group(child, signal);
        for process in self.family().iter().filter(|process| process.group != self.child.id()) {
            if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.stop();
    }
}

fn not_started(message: &str, code: i32) -> Failure {
    Failure { message: message.to_string(), help: "give the command as you would start it in this folder", code }
}

/// Copies a pipe to our stderr as it is, and keeps its end.
fn pass_on(mut pipe: Box<dyn Read + Send>, tail: &Mutex<Vec<u8>>) {
    let keep = TAIL as usize;
    let mut block = [0; 16 << 10];
    loop {
        let size = match pipe.read(&mut block) {
            Ok(0) => return,
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let bytes = block.get(..size).unwrap_or(&[]);
        // A stderr that nobody reads any more is no reason to stop the app's output.
        let _ = io::stderr().lock().write_all(bytes);
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes);
        let over = tail.len().saturating_sub(keep);
        tail.drain(..over);
    }
}
