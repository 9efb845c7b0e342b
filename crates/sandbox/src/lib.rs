//! The sandbox of the worker. In: the grants, derived from its configuration. Out: the calling process, permanently
//! restricted to the grants, and a list of what is enforced. Limits: one call, before the process starts a second thread, since
//! each of the three parts (Landlock, capabilities, seccomp) is a property of a thread that later threads and programs inherit.
//! Features that the kernel does not support are reported and never prevent the start. By design a process cannot leave or
//! extend its sandbox.

mod calls;
mod capabilities;
mod holds;
mod landlock;
mod seccomp;

pub use holds::Holds;

use rustix::process::{Resource, Rlimit};
use std::path::PathBuf;

/// What the worker may access. Everything that is not listed here, or granted by [`enter`], is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Files, and directories with their contents, to read.
    pub read: Vec<PathBuf>,
    /// Files to read and write; directories in which files, directories, sockets and symlinks may be created, renamed, removed.
    pub write: Vec<PathBuf>,
    /// Programs, and library directories, to read and execute. Execution also requires `programs`.
    pub execute: Vec<PathBuf>,
    /// TCP ports to connect to, at any address: Landlock does not restrict addresses or UDP.
    pub connect: Vec<u16>,
    /// TCP ports to listen on.
    pub bind: Vec<u16>,
    /// Connecting to any port is allowed.
    pub connect_any: bool,
    /// Starting programs is allowed. They inherit the sandbox.
    pub programs: bool,
}

/// Puts the calling process, which must have one thread, into the sandbox. /dev/null and /proc/self are always granted. Open file
/// descriptors stay usable: an operation that no grant allows (a privileged port, a file's group) must happen before.
///
/// The order matters: paths are opened while that is allowed, capabilities are dropped while that is allowed, Landlock requires
/// `no_new_privs`, and the system call filter is last because it denies the setup of all other parts.
pub fn enter(grants: &Grants) -> Holds {
    let mut holds = Holds::default();
    disable_core_dumps(&mut holds);
    let ruleset = landlock::ruleset(grants, &mut holds);
    capabilities::drop_all(&mut holds);
    forbid_new_privileges(&mut holds);
    if let Some(ruleset) = ruleset {
        landlock::restrict(ruleset, &mut holds);
    }
    seccomp::restrict(grants, &mut holds);
    holds
}

/// A core dump would contain every secret of the worker.
fn disable_core_dumps(holds: &mut Holds) {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    match rustix::process::setrlimit(Resource::Core, none) {
        Ok(()) => holds.core_dumps_disabled = true,
        Err(error) => holds.report_missing(format!("cannot disable core dumps: {error}")),
    }
}

/// Setuid programs and file capabilities restore no privileges.
fn forbid_new_privileges(holds: &mut Holds) {
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => holds.no_new_privs = true,
        Err(error) => holds.report_missing(format!("cannot set no_new_privs: {error}")),
    }
}
