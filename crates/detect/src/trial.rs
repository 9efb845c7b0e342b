//! Starts a command, inspects it, and stops it again. In: a command and a timeout. Out: `Found`. The app runs in a separate
//! process group, its stdin is empty, and its output is forwarded to stderr immediately. It is inspected until it listens and
//! nothing new was found for `QUIET`, it exits, or the timeout expires; then its group and its orphans get SIGTERM, and SIGKILL
//! after `GRACE`. An interrupt of Outrigger stops the app first. Limits: `TAIL` bytes of its output are retained.

use crate::files::TAIL;
use crate::format::{Guess, sniff};
use crate::inspect::{Found, Inspection};
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

/// After this time without a new finding, the inspection of an app that listens is complete.
const QUIET: Duration = Duration::from_secs(2);
/// Between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// The interval of inspections.
const INTERVAL: Duration = Duration::from_millis(100);

/// Signals that terminate Outrigger: SIGHUP, SIGINT, SIGQUIT, SIGTERM.
const TERMINATING: [i32; 4] = [1, 2, 3, 15];

/// Errors: the command cannot be started, or a signal arrived.
pub fn of_command(command: &[OsString], timeout: Duration) -> Result<Found, Failure> {
    let began = Instant::now();
    let trial = Trial::start(command)?;
    let mut inspection = Inspection::default();
    let mut last_finding = began;
    let exit = loop {
        let processes = trial.processes();
        if inspection.add(&processes) {
            last_finding = Instant::now();
        }
        let exit = trial.exit_status();
        if exit.is_some() && processes.is_empty() {
            break exit;
        }
        if began.elapsed() >= timeout || inspection.has_ports() && last_finding.elapsed() >= QUIET {
            break exit;
        }
        if let Some(signal) = trial.wait() {
            drop(trial);
            return Err(Failure {
                message: format!("interrupted by signal {signal}; the command was stopped"),
                help: "run it again, or inspect a running process with --pid",
                code: 128 + signal,
            });
        }
    };
    let has_orphans = exit.is_some() && !trial.processes().is_empty();
    if let Some(exit) = exit.filter(|_| !has_orphans) {
        let after = began.elapsed().as_millis();
        inspection.note(format!("the command {exit} after {after} ms; later activity could not be inspected"));
    }
    let mut found = inspection.finish(Target::Command(command.to_vec()));
    found.background = has_orphans.then(|| background::advice(command));
    found.output = Some(trial.stop_and_sniff());
    Ok(found)
}

struct Trial {
    child: Child,
    process: Option<Process>,
    signals: Option<(OwnedFd, SavedSignals)>,
    /// A terminating signal that arrived before they were blocked.
    noted: Option<i32>,
    outputs: Vec<JoinHandle<()>>,
    tail: Arc<Mutex<Vec<u8>>>,
    is_stopped: bool,
}

impl Trial {
    fn start(command: &[OsString]) -> Result<Trial, Failure> {
        let Some((program, arguments)) = command.split_first() else { return Err(not_started("", 127)) };
        // Orphans of a daemon are re-parented to this process, so that they can be found and stopped.
        let own = rustix::process::getpid();
        if let Err(error) = rustix::process::set_child_subreaper(Some(own)) {
            crate::note(&format!("outrigger: cannot track processes that leave the app's process tree: {error}\n"));
        }
        let mut built = Command::new(program);
        built.args(arguments).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // An interrupt between the start and the mask would leave the app behind.
        sys::signal::note_until_blocked(&TERMINATING);
        let mut child = built.spawn().map_err(|error| {
            let (reason, code) = match error.kind() {
                io::ErrorKind::NotFound => ("command not found".to_string(), 127),
                _ => (error.to_string(), 126),
            };
            not_started(&format!("{}: {reason}", program.to_string_lossy()), code)
        })?;
        // After the start, since a child inherits the signal mask.
        let signals = sys::signal::block_all().ok();
        let noted = sys::signal::end_noting(&TERMINATING);
        let tail = Arc::default();
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let outputs = pipes.into_iter().flatten().map(|pipe| {
            let tail = Arc::clone(&tail);
            std::thread::spawn(move || forward(pipe, &tail))
        });
        let outputs = outputs.collect();
        let process = Process::read(child.id());
        Ok(Trial { child, process, signals, noted, outputs, tail, is_stopped: false })
    }

    /// The command, its descendants and its group, and orphans re-parented to this process since the command started.
    fn processes(&self) -> Vec<Process> {
        let (own, child) = (std::process::id(), self.child.id());
        let began = self.process.as_ref().map_or(u64::MAX, |process| process.started);
        process::tree(&process::all(), |process| {
            process.pid == child || process.group == child || process.parent == own && process.started >= began
        })
    }

    /// How the command itself exited. It is not reaped yet, so that its pid and group are not reused.
    fn exit_status(&self) -> Option<String> {
        let pid = Pid::from_child(&self.child);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status: Option<WaitIdStatus> = rustix::process::waitid(WaitId::Pid(pid), options).ok()?;
        let status = status?;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (_, Some(signal)) => format!("was terminated by signal {signal}"),
            _ => "exited with an unknown status".into(),
        })
    }

    /// Waits until the next inspection; returns immediately with a terminating signal.
    fn wait(&self) -> Option<i32> {
        if self.noted.is_some() {
            return self.noted;
        }
        let interval = Timespec { tv_sec: 0, tv_nsec: INTERVAL.subsec_nanos().into() };
        let Some((signals, _)) = &self.signals else {
            std::thread::sleep(INTERVAL);
            return None;
        };
        // EINTR only shortens the wait.
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&interval));
        let mut arrived = std::iter::from_fn(|| sys::signal::next(signals)).map(|arrived| arrived.number);
        arrived.find(|signal| TERMINATING.contains(signal))
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
        // A process that cannot be killed must not block this loop forever.
        let last = end + Duration::from_secs(1);
        while !self.processes().is_empty() && Instant::now() < last {
            if signal == Signal::KILL || Instant::now() >= end {
                signal = Signal::KILL;
                self.signal(signal);
            }
            // A second terminating signal ends the grace period.
            if self.wait().is_some() {
                end = Instant::now();
            }
        }
        // The status was read before or is not needed.
        let _ = self.child.try_wait();
        if let Some((_, saved)) = self.signals.take() {
            saved.restore();
        }
        let _ = rustix::process::set_child_subreaper(None);
    }

    fn signal(&self, signal: Signal) {
        let child = Pid::from_child(&self.child);
        // Processes that have exited need no signal.
        let _ = rustix::process::kill_process_group(child, signal);
        for process in self.processes().iter().filter(|process| process.group != self.child.id()) {
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
    Failure { message: message.to_string(), help: "give the command as you would run it in this directory", code }
}

/// Copies a pipe to stderr unchanged, and retains its tail.
fn forward(mut pipe: Box<dyn Read + Send>, tail: &Mutex<Vec<u8>>) {
    let max = TAIL as usize;
    let mut block = [0; 16 << 10];
    loop {
        let size = match pipe.read(&mut block) {
            Ok(0) => return,
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let bytes = block.get(..size).unwrap_or(&[]);
        // A closed stderr must not stop the app's output.
        let _ = io::stderr().lock().write_all(bytes);
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes);
        let excess = tail.len().saturating_sub(max);
        tail.drain(..excess);
    }
}
