//! The sandbox of the worker. In: what it may reach, taken from its configuration. Out: the calling process with no more rights than
//! that, for good, and a list of what holds. Bounds: one call, before the process starts a second thread, since each of the three
//! parts (Landlock, capabilities, seccomp) is a property of a thread that later threads and programs inherit. What the kernel
//! cannot do is reported and never stops the start. There is deliberately no way out and no way to widen it.

mod calls;
mod capabilities;
mod holds;
mod landlock;
mod seccomp;

pub use holds::Holds;

use rustix::process::{Resource, Rlimit};
use std::path::PathBuf;

/// What the worker may reach. Whatever is not named here, or by [`enter`], is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Files and folders (with all below) to read.
    pub read: Vec<PathBuf>,
    /// Files to read and write; folders below which files, folders, sockets and symlinks may be made, renamed and removed.
    pub write: Vec<PathBuf>,
    /// Programs, and folders of libraries: to read and execute. Nothing is executed unless `programs` is set, too.
    pub execute: Vec<PathBuf>,
    /// TCP ports to connect to, at any address: Landlock knows no addresses, and nothing of UDP.
    pub connect: Vec<u16>,
    /// TCP ports to listen on.
    pub bind: Vec<u16>,
    /// No limit on the ports to connect to.
    pub connect_any: bool,
    /// May start other programs. They inherit the sandbox.
    pub programs: bool,
}

/// Puts the calling process into the sandbox; it must have one thread. /dev/null and /proc/self are granted always. Descriptors that
/// are open already stay as they are: what needs a right that no grant gives (a privileged port, a file's group) is done before.
///
/// The order matters: paths are opened while they can be, capabilities go while nothing refuses to drop them, Landlock needs
/// `no_new_privs`, and the filter of system calls comes last because it refuses what sets up all the rest.
pub fn enter(grants: &Grants) -> Holds {
    let mut holds = Holds::default();
    end_core_dumps(&mut holds);
    let ruleset = landlock::ruleset(grants, &mut holds);
    capabilities::drop_all(&mut holds);
    forbid_new_privileges(&mut holds);
    if let Some(ruleset) = ruleset {
        landlock::restrict(ruleset, &mut holds);
    }
    seccomp::restrict(grants, &mut holds);
    holds
}

/// A core dump would hold every secret that the worker has.
fn end_core_dumps(holds: &mut Holds) {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    match rustix::process::setrlimit(Resource::Core, none) {
        Ok(()) => holds.core_dumps_disabled = true,
        Err(error) => holds.lack(format!("core dumps cannot be turned off: {error}")),
    }
}

/// No setuid program and no file capability gives anything back.
fn forbid_new_privileges(holds: &mut Holds) {
    match rustix::thread::set_no_new_privs(true) {
        Ok(()) => holds.no_new_privs = true,
        Err(error) => holds.lack(format!("no_new_privs cannot be set: {error}")),
    }
}
