//! One look, or several, at a family of processes: what they listen on, write to, and are. In: processes. Out: `Found`. What
//! was seen once stays found, since an app may open its log for each line. Bound: those of the parts.

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

/// What was found, and by what it was told.
#[derive(Clone, Debug)]
pub struct Found {
    pub target: Target,
    pub processes: Vec<(Process, Option<Runtime>)>,
    pub ports: Vec<Port>,
    pub files: Vec<LogFile>,
    /// The command ended, and something of it runs on: what to do about that.
    pub background: Option<String>,
    /// The output of a command that we started.
    pub output: Option<Guess>,
    pub hints: Vec<Hint>,
    /// What could not be seen, and how the command ended.
    pub notes: Vec<String>,
}

impl Found {
    pub fn summary(&self) -> String {
        let count = |number: usize, one: &str, many: &str| format!("{number} {}", if number == 1 { one } else { many });
        let pages = self.ports.iter().filter(|port| port.page().is_some()).count();
        format!(
            "found {}, {}, {} and {}",
            count(self.processes.len(), "process", "processes"),
            count(self.ports.len(), "listening port", "listening ports"),
            count(pages, "page of metrics", "pages of metrics"),
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

    pub fn page(&self) -> Option<&crate::service::Page> {
        self.server()?.page.as_ref()
    }
}

/// Everything that listens in this network namespace, but for ourselves.
pub fn network() -> Found {
    in_network().finish(Target::Network)
}

/// The same without a question to any port.
fn in_network() -> Sight {
    let all = process::all();
    let mut here = ports::listening(None);
    let open_of = |process: &Process| process::descriptors(process.pid).unwrap_or_default();
    let sockets_of = |process: &Process| open_of(process).iter().filter_map(Descriptor::socket).collect::<Vec<_>>();
    let ours: HashSet<u64> = all.iter().filter(|process| process.is_outrigger()).flat_map(sockets_of).collect();
    here.retain(|socket| !ours.contains(&socket.inode));
    let inodes: HashSet<u64> = here.iter().map(|socket| socket.inode).collect();
    let listens = |process: &&Process| sockets_of(process).iter().any(|inode| inodes.contains(inode));
    let family: Vec<Process> = all.iter().filter(|process| !process.is_outrigger()).filter(listens).cloned().collect();
    let mut sight = Sight::default();
    sight.add(&family);
    for socket in here {
        ports::merge(&mut sight.ports, socket, None, true);
    }
    sight
}

/// Errors: there is no such process.
pub fn of_process(pid: u32) -> Result<Found, Failure> {
    let family = process::family(&process::all(), |process| process.pid == pid);
    if family.is_empty() {
        return Err(Failure {
            message: format!("there is no process {pid} to look at"),
            help: "give the id of the app's process as this namespace sees it, or nothing to look at the network alone",
            code: 1,
        });
    }
    let mut sight = Sight::default();
    sight.add(&family);
    Ok(sight.finish(Target::Process(pid)))
}

/// What was seen so far.
#[derive(Default)]
pub struct Sight {
    processes: Vec<(Process, Option<Runtime>)>,
    ports: Vec<Port>,
    files: Vec<LogFile>,
    hints: Vec<Hint>,
    notes: Vec<String>,
}

impl Sight {
    /// Looks at all of them; answers whether a port or a file is new.
    pub fn add(&mut self, family: &[Process]) -> bool {
        let here: HashMap<u64, Listening> =
            ports::listening(None).into_iter().map(|socket| (socket.inode, socket)).collect();
        let before = (self.ports.len(), self.files.len());
        for process in family {
            self.meet(process);
            let open = match process::descriptors(process.pid) {
                Ok(open) => open,
                // It has just ended.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let note = format!(
                        "the open files of pid {} ({}) cannot be seen: {error}; run as its user or as root",
                        process.pid, process.name
                    );
                    self.note(note);
                    continue;
                }
            };
            self.add_ports(process, &open, &here);
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

    /// A process that was not met yet, or became another program since.
    fn meet(&mut self, process: &Process) {
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

    fn add_ports(&mut self, process: &Process, open: &[Descriptor], here: &HashMap<u64, Listening>) {
        let inodes: Vec<u64> = open.iter().filter_map(Descriptor::socket).collect();
        let owner = (process.pid, process.name.clone());
        for inode in &inodes {
            if let Some(socket) = here.get(inode) {
                ports::merge(&mut self.ports, *socket, Some(owner.clone()), true);
            }
        }
        if namespace(Some(process.pid)) == namespace(None) {
            return;
        }
        let there = ports::listening(Some(process.pid)).into_iter();
        for socket in there.filter(|socket| inodes.contains(&socket.inode) && !here.contains_key(&socket.inode)) {
            ports::merge(&mut self.ports, socket, Some(owner.clone()), false);
        }
    }

    fn add_file(&mut self, file: LogFile) {
        if self.files.iter().any(|known| known.path == file.path) {
            return;
        }
        if self.files.len() == FILES_MAX {
            self.note(format!("more than {FILES_MAX} log files are open; the rest was left out"));
            return;
        }
        self.files.push(file);
    }

    /// Asks the ports and reads the ends of the files.
    pub fn finish(mut self, target: Target) -> Found {
        probe::probe_all(&mut self.ports);
        self.files.iter_mut().for_each(LogFile::read);
        // A launcher may have become the app under the same name.
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

/// A file of JSON that holds no lines of it is data and no log.
fn is_data(file: &LogFile) -> bool {
    file.path.extension().is_some_and(|ending| ending == "json") && file.guess.format != Format::Json
}

/// What the network namespace of a process is called; None where it cannot be seen.
fn namespace(pid: Option<u32>) -> Option<PathBuf> {
    let of = pid.map_or("self".to_string(), |pid| pid.to_string());
    std::fs::read_link(format!("/proc/{of}/ns/net")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_there_is_a_mistake() {
        let failure = of_process(u32::MAX).map(|found| found.summary()).expect_err("no such process");
        assert!(failure.message.contains(&u32::MAX.to_string()) && failure.code == 1);
    }

    #[test]
    fn our_own_sockets_are_not_found() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let number = held.local_addr().expect("bound").port();
        assert!(in_network().ports.iter().all(|port| port.number != number));
    }
}
