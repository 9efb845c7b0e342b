//! What the sandbox enforces. In: the outcome of each step. Out: a value for the status, and sentences for operators.
//! Limits: one sentence per missing feature, and each granted path at most once.

use serde::Serialize;
use std::path::PathBuf;

/// The restrictions that the kernel enforces from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// The Landlock ABI version in effect; none without Landlock.
    pub landlock_abi: Option<u8>,
    /// Only granted paths can be opened, created, renamed, removed or executed. (Attributes of all paths can still be read.)
    pub filesystem: bool,
    /// Only granted TCP ports can be listened on and, without `connect_any`, connected to.
    pub tcp: bool,
    /// Signals and abstract Unix sockets cannot reach a process outside.
    pub signals: bool,
    /// Only the system calls that Outrigger needs are allowed.
    pub seccomp: bool,
    pub no_new_privs: bool,
    /// All capability sets are empty, also for user 0.
    pub capabilities_dropped: bool,
    pub core_dumps_disabled: bool,
    /// Features that the kernel does not support or denied, one sentence each.
    pub missing: Vec<String>,
    /// Granted paths that do not exist and therefore are not granted: a sandbox cannot be extended later.
    pub absent_paths: Vec<PathBuf>,
}

impl Holds {
    pub(crate) fn report_missing(&mut self, sentence: String) {
        self.missing.push(sentence);
    }
}
