//! Landlock: restricts paths, TCP ports and processes. In: the grants. Out: a ruleset, and then its enforcement.
//! Limits: ABI versions 1 to 7; if the kernel does not support a version, only the features of that version are missing. Landlock
//! restricts neither UDP nor Unix sockets with a path, nor file attributes (stat).

use crate::{Grants, Holds};
use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::path::Path;
use std::sync::OnceLock;

/// The newest tested version. What later versions can restrict stays unrestricted until it is reviewed.
const NEWEST: ABI = ABI::V7;
/// Accesses that apply to files; a ruleset rejects other accesses for a file.
const OF_FILES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | WriteFile | ReadFile | Truncate | IoctlDev});
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// No devices and no named pipes: Outrigger does not create any.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | RemoveFile | RemoveDir | MakeReg | MakeDir | MakeSym | MakeSock | Refer
});
const EXECUTE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});

/// Pins /proc/self in the kernel's cache: under memory pressure procfs evicts an unused directory and later creates another inode
/// for it, which the rule would not match.
static PROC_SELF: OnceLock<PathFd> = OnceLock::new();

pub(crate) fn ruleset(grants: &Grants, holds: &mut Holds) -> Option<RulesetCreated> {
    let mut ruleset = match handled(grants) {
        Ok(ruleset) => ruleset,
        Err(error) => {
            holds.report_missing(format!("cannot create the Landlock ruleset: {error}"));
            return None;
        }
    };
    let granted = [(&grants.read, READ), (&grants.write, WRITE), (&grants.execute, EXECUTE)];
    for (paths, access) in granted {
        for path in paths {
            grant(&mut ruleset, path, access, holds);
        }
    }
    for (path, access) in [("/dev/null", DEVICE), ("/proc/self", READ)] {
        // An image without them is not a configuration error.
        if Path::new(path).exists() {
            grant(&mut ruleset, Path::new(path), access, holds);
        }
    }
    if let Ok(directory) = PathFd::new("/proc/self") {
        PROC_SELF.get_or_init(|| directory);
    }
    let binding = grants.bind.iter().map(|port| (port, AccessNet::BindTcp));
    // A rule for connecting is an error if the ruleset does not handle connecting.
    let connecting = grants.connect.iter().filter(|_| !grants.connect_any).map(|port| (port, AccessNet::ConnectTcp));
    for (port, access) in binding.chain(connecting) {
        if let Err(error) = (&mut ruleset).add_rule(NetPort::new(*port, access)) {
            holds.report_missing(format!("cannot grant TCP port {port}: {error}"));
        }
    }
    Some(ruleset)
}

/// The accesses that are denied unless a rule grants them.
fn handled(grants: &Grants) -> Result<RulesetCreated, RulesetError> {
    let net = match grants.connect_any {
        true => AccessNet::BindTcp.into(),
        false => AccessNet::from_all(NEWEST),
    };
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(net)?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

/// Symlinks are resolved now, and the rule applies to their target.
fn grant(ruleset: &mut RulesetCreated, path: &Path, access: BitFlags<AccessFs>, holds: &mut Holds) {
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(error) => return cannot_open(path, error, holds),
    };
    let kind = rustix::fs::fstat(&opened).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let access = match kind {
        Ok(FileType::Directory) => access,
        _ => access & OF_FILES,
    };
    if let Err(error) = ruleset.add_rule(PathBeneath::new(opened, access)) {
        // A pipe or socket behind /dev/stdout is on a file system without paths; Landlock neither restricts nor grants it.
        if !matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
            holds.report_missing(format!("cannot grant {}: {error}", path.display()));
        }
    }
}

fn cannot_open(path: &Path, error: PathFdError, holds: &mut Holds) {
    let source = match error {
        PathFdError::OpenCall { source, .. } => source,
        other => return holds.report_missing(format!("cannot grant {}: {other}", path.display())),
    };
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NOTDIR) if holds.absent_paths.iter().any(|known| known == path) => {}
        Some(Errno::NOENT | Errno::NOTDIR) => holds.absent_paths.push(path.to_path_buf()),
        _ => holds.report_missing(format!("cannot open {}, so it is not granted: {source}", path.display())),
    }
}

pub(crate) fn restrict(ruleset: RulesetCreated, holds: &mut Holds) {
    match ruleset.restrict_self() {
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => not_enforced(&status.landlock, holds),
        Ok(status) => enforced(&status.landlock, holds),
        Err(error) => holds.report_missing(format!("cannot enforce the Landlock ruleset: {error}")),
    }
}

fn not_enforced(status: &LandlockStatus, holds: &mut Holds) {
    let reason = match status {
        LandlockStatus::NotEnabled => "Landlock is built into this kernel but not enabled (`lsm=` on its command line)",
        _ => "Landlock is not supported by this kernel (before Linux 5.13) or is blocked by a filter of the container",
    };
    holds.report_missing(format!("{reason}: paths, TCP ports and signals are not restricted"));
}

fn enforced(status: &LandlockStatus, holds: &mut Holds) {
    let LandlockStatus::Available { effective_abi, .. } = status else {
        return not_enforced(status, holds);
    };
    let abi = (*effective_abi).min(NEWEST);
    holds.landlock_abi = u8::try_from(abi as i32).ok();
    holds.filesystem = true;
    holds.tcp = abi >= ABI::V4;
    holds.signals = abi >= ABI::V6;
    let needs = [
        (ABI::V2, "5.19", "a file cannot be renamed or linked from one directory to another"),
        (ABI::V3, "6.2", "files outside can be truncated"),
        (ABI::V4, "6.7", "TCP ports are not restricted"),
        (ABI::V5, "6.10", "devices in granted directories can be controlled (ioctl)"),
        (ABI::V6, "6.12", "abstract Unix sockets outside can be reached"),
    ];
    for (version, linux, sentence) in needs {
        if abi < version {
            holds.report_missing(format!(
                "{sentence}: this kernel has Landlock version {abi}; version {version} requires Linux {linux}"
            ));
        }
    }
}
