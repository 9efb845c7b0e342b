//! Inspects a process tree once or repeatedly: what the processes listen on, write to, and are. In: processes. Out: `Found`. A
//! finding of one pass is not removed by a later pass, since an app may open its log for each line. Limits: those of the parts.

use crate::files::{FILES_MAX, LogFile};
use crate::format::{Format, Guess};
use crate::hints::Hint;
use crate::ports::{Listening, Port};
use crate::process::{Descriptor, Process};
use crate::runtime::Runtime;
use crate::service::{Server, Service};
use crate::{Failure, Target, files, hints, ports, probe, process, runtime};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

/// What was found, with the evidence for it.
#[derive(Clone, Debug)]
pub struct Found {
    pub target: Target,
    pub processes: Vec<(Process, Option<Runtime>)>,
    pub ports: Vec<Port>,
    pub files: Vec<LogFile>,
    /// The command exited but a process of it keeps running: advice for that.
    pub background: Option<String>,
    /// The output of a command that `detect` started.
    pub output: Option<Guess>,
    pub hints: Vec<Hint>,
    /// What could not be read, and how the command exited.
    pub notes: Vec<String>,
}

impl Found {
    pub fn summary(&self) -> String {
        let count = |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
        let endpoints = self.ports.iter().filter(|port| port.metrics().is_some()).count();
        format!(
            "found {}, {}, {} and {}",
            count(self.processes.len(), "process", "processes"),
            count(self.ports.len(), "listening port", "listening ports"),
            count(endpoints, "metrics endpoint", "metrics endpoints"),
            count(self.files.len(), "log file", "log files"),
        )
    }
}

impl Port {
    pub fn server(&self) -> Option<&Server> {
        match &self.service {
            Service::Http(server) => Some(server),
            _ => None,
        }
    }

    pub fn metrics(&self) -> Option<&crate::service::MetricsEndpoint> {
        self.server()?.metrics.as_ref()
    }
}

/// Everything that listens in this network namespace, except Outrigger.
pub fn network() -> Found {
    inspect_network().finish(Target::Network)
}

/// The same without probing any port.
fn inspect_network() -> Inspection {
    let all = process::all();
    let mut local = ports::listening(None);
    let open_of = |process: &Process| process::descriptors(process.pid).unwrap_or_default();
    let sockets_of = |process: &Process| open_of(process).iter().filter_map(Descriptor::socket).collect::<Vec<_>>();
    let own: HashSet<u64> = all.iter().filter(|process| process.is_outrigger()).flat_map(sockets_of).collect();
    local.retain(|socket| !own.contains(&socket.inode));
    let inodes: HashSet<u64> = local.iter().map(|socket| socket.inode).collect();
    let listens = |process: &&Process| sockets_of(process).iter().any(|inode| inodes.contains(inode));
    let listeners: Vec<Process> =
        all.iter().filter(|process| !process.is_outrigger()).filter(listens).cloned().collect();
    let mut inspection = Inspection::default();
    inspection.add(&listeners);
    for socket in local {
        ports::merge(&mut inspection.ports, socket, None, true);
    }
    inspection
}

/// Errors: there is no such process.
pub fn of_process(pid: u32) -> Result<Found, Failure> {
    let tree = process::tree(&process::all(), |process| process.pid == pid);
    if tree.is_empty() {
        return Err(Failure {
            message: format!("no process {pid} to inspect"),
            help: "pass the pid that the app has in this namespace, or omit --pid to inspect only the network",
            code: 1,
        });
    }
    let mut inspection = Inspection::default();
    inspection.add(&tree);
    Ok(inspection.finish(Target::Process(pid)))
}

/// The findings so far.
#[derive(Default)]
pub struct Inspection {
    processes: Vec<(Process, Option<Runtime>)>,
    ports: Vec<Port>,
    files: Vec<LogFile>,
    hints: Vec<Hint>,
    notes: Vec<String>,
}

impl Inspection {
    /// Inspects all of `processes`; returns whether a port or a file is new.
    pub fn add(&mut self, processes: &[Process]) -> bool {
        let local: HashMap<u64, Listening> =
            ports::listening(None).into_iter().map(|socket| (socket.inode, socket)).collect();
        let before = (self.ports.len(), self.files.len());
        for process in processes {
            self.add_process(process);
            let open = match process::descriptors(process.pid) {
                Ok(open) => open,
                // It has just exited.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let note = format!(
                        "cannot read the open files of pid {} ({}): {error}; run as its user or as root",
                        process.pid, process.name
                    );
                    self.note(note);
                    continue;
                }
            };
            self.add_ports(process, &open, &local);
            for file in files::of_process(process, &open) {
                self.add_file(file);
            }
        }
        before != (self.ports.len(), self.files.len())
    }

    pub fn has_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// A process that is not known yet, or that has executed another program since.
    fn add_process(&mut self, process: &Process) {
        let known = self.processes.iter().position(|(known, _)| known.pid == process.pid);
        if known.is_some_and(|known| self.processes.get(known).is_some_and(|(known, _)| known.name == process.name)) {
            return;
        }
        if let Some(known) = known {
            self.processes.remove(known);
        }
        for hint in hints::of_variables(&process::variables(process.pid)) {
            if !self.hints.contains(&hint) {
                self.hints.push(hint);
            }
        }
        self.processes.push((process.clone(), runtime::of_process(process)));
    }

    fn add_ports(&mut self, process: &Process, open: &[Descriptor], local: &HashMap<u64, Listening>) {
        let inodes: Vec<u64> = open.iter().filter_map(Descriptor::socket).collect();
        let owner = (process.pid, process.name.clone());
        for inode in &inodes {
            if let Some(socket) = local.get(inode) {
                ports::merge(&mut self.ports, *socket, Some(owner.clone()), true);
            }
        }
        if namespace(Some(process.pid)) == namespace(None) {
            return;
        }
        let remote = ports::listening(Some(process.pid)).into_iter();
        for socket in remote.filter(|socket| inodes.contains(&socket.inode) && !local.contains_key(&socket.inode)) {
            ports::merge(&mut self.ports, socket, Some(owner.clone()), false);
        }
    }

    fn add_file(&mut self, file: LogFile) {
        if self.files.iter().any(|known| known.path == file.path) {
            return;
        }
        if self.files.len() == FILES_MAX {
            self.note(format!("more than {FILES_MAX} log files are open; the rest was skipped"));
            return;
        }
        self.files.push(file);
    }

    /// Probes the ports and reads the tails of the files.
    pub fn finish(mut self, target: Target) -> Found {
        probe::probe_all(&mut self.ports);
        self.files.iter_mut().for_each(LogFile::read);
        // A launcher may have executed the app under the same name.
        for (process, runtime) in &mut self.processes {
            if Process::read(process.pid).is_some_and(|now| now.started == process.started) {
                *runtime = runtime::of_process(process);
            }
        }
        self.files.retain(|file| file.guess.format != Format::Binary && !is_data(file));
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        Found {
            target,
            processes: self.processes,
            ports: self.ports,
            files: self.files,
            background: None,
            output: None,
            hints: self.hints,
            notes: self.notes,
        }
    }
}

/// A .json file without JSON lines is data, not a log.
fn is_data(file: &LogFile) -> bool {
    file.path.extension().is_some_and(|ending| ending == "json") && file.guess.format != Format::Json
}

/// The id of a process's network namespace; None if it cannot be read.
fn namespace(pid: Option<u32>) -> Option<PathBuf> {
    let of = pid.map_or("self".to_string(), |pid| pid.to_string());
    std::fs::read_link(format!("/proc/{of}/ns/net")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_process_is_an_error() {
        let failure = of_process(u32::MAX).map(|found| found.summary()).expect_err("no such process");
        assert!(failure.message.contains(&u32::MAX.to_string()) && failure.code == 1);
    }

    #[test]
    fn own_sockets_are_not_reported() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let number = listener.local_addr().expect("bound").port();
        assert!(inspect_network().ports.iter().all(|port| port.number != number));
    }
}
