//! What holds. In: the outcome of each step. Out: a value for the status, and sentences for people.
//! Bounds: a sentence for each thing that is missing, and each granted path at most once.

use serde::Serialize;
use std::path::PathBuf;

/// What the kernel enforces from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// The version of Landlock's interface in force; nothing where there is no Landlock.
    pub landlock_abi: Option<u8>,
    /// Only granted paths can be opened, made, renamed, removed or executed. (Their attributes can still be read.)
    pub filesystem: bool,
    /// Only granted TCP ports can be listened on and, but for `connect_any`, connected to.
    pub tcp: bool,
    /// No signal and no abstract unix socket reaches a process outside.
    pub signals: bool,
    /// Only the system calls that our own code needs are answered.
    pub seccomp: bool,
    pub no_new_privs: bool,
    /// None is left in any set, also for user 0.
    pub capabilities_dropped: bool,
    pub core_dumps_disabled: bool,
    /// What the kernel lacks or refused, a sentence each.
    pub missing: Vec<String>,
    /// Granted paths that do not exist, and therefore are not granted: a sandbox cannot be widened later.
    pub absent_paths: Vec<PathBuf>,
}

impl Holds {
    pub(crate) fn lack(&mut self, sentence: String) {
        self.missing.push(sentence);
    }
}
