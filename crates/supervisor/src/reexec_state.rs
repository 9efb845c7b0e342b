//! What a process of Outrigger passes to the program that it execs: descriptors and numbers by name, in one environment
//! variable of lines `name=value`. In: descriptors that lose their close-on-exec flag. Out: the same in the new program. Limits:
//! the 128 KiB that one variable may have (execve(2)).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use sys::process::{Command, ExecPlan};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReexecState {
    entries: Vec<(String, i64)>,
    descriptors: Vec<i32>,
}

impl ReexecState {
    pub fn number(&mut self, name: &str, value: i64) {
        self.entries.push((name.to_string(), value));
    }

    /// Records a descriptor, and keeps it open across the exec.
    pub fn descriptor(&mut self, name: &str, fd: &impl AsFd) {
        let fd = fd.as_fd();
        if rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).is_ok() {
            self.number(name, fd.as_raw_fd().into());
            self.descriptors.push(fd.as_raw_fd());
        }
    }

    pub fn value(&self, name: &str) -> Option<i64> {
        self.entries.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// Takes a descriptor, once.
    pub fn claim(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.entries.iter().position(|(known, _)| known == name)?;
        let (_, number) = self.entries.swap_remove(at);
        sys::process::claim(i32::try_from(number).ok()?)
    }

    /// Takes all descriptors whose name begins with `prefix`; returns the rest of each name.
    pub fn claim_named(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let (matching, others) =
            std::mem::take(&mut self.entries).into_iter().partition(|(name, _)| name.starts_with(prefix));
        self.entries = others;
        let claimed = |(name, number): (String, i64)| {
            let fd = sys::process::claim(i32::try_from(number).ok()?)?;
            Some((name.get(prefix.len()..)?.to_string(), fd))
        };
        matching.into_iter().filter_map(claimed).collect()
    }

    /// Replaces this process by a program that gets the same arguments. Returns only if that failed.
    pub fn exec(&self, binary: &[u8], variable: &str) -> io::Error {
        let named = [variable.as_bytes(), b"="].concat();
        let others = std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        let command = Command {
            argv: [binary.to_vec()].into_iter().chain(std::env::args_os().skip(1).map(OsString::into_vec)).collect(),
            environment: others
                .filter(|entry| !entry.starts_with(&named))
                .chain([[&named, self.text().as_bytes()].concat()])
                .collect(),
            ..Command::default()
        };
        match ExecPlan::new(&command) {
            Ok(plan) => io::Error::from_raw_os_error(plan.exec()),
            Err(error) => error,
        }
    }

    /// After a failed exec: makes the descriptors close-on-exec again.
    pub fn withdraw(&self) {
        for number in &self.descriptors {
            sys::process::close_on_exec(*number);
        }
    }

    /// What the previous program passed to this one.
    pub fn from_environment(variable: &str) -> Option<ReexecState> {
        std::env::var(variable).ok().map(|text| ReexecState::parse(&text))
    }

    pub fn text(&self) -> String {
        self.entries.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    pub fn parse(text: &str) -> ReexecState {
        let entry = |line: &str| {
            let (name, value) = line.rsplit_once('=')?;
            Some((name.to_string(), value.parse().ok()?))
        };
        ReexecState { entries: text.lines().filter_map(entry).collect(), descriptors: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_name_and_claimed_once() {
        let (read, _write) = rustix::pipe::pipe().expect("a pipe");
        let mut saved = ReexecState::default();
        saved.number("generation", 7);
        saved.descriptor("stored proxy/a=b", &read);
        let mut found = ReexecState::parse(&saved.text());
        assert_eq!(found.entries, saved.entries);
        assert_eq!((found.value("generation"), found.value("other")), (Some(7), None));
        std::mem::forget(read);
        let stored = found.claim_named("stored ");
        assert_eq!(stored.first().map(|(name, _)| name.as_str()), Some("proxy/a=b"));
        assert!(found.claim_named("stored ").is_empty());
        assert_eq!(ReexecState::parse("no value\n=\nx=y\n"), ReexecState::default(), "invalid lines are skipped");
    }
}
