//! Landlock: which paths, TCP ports and processes can be reached. In: the grants. Out: a ruleset, and then its enforcement.
//! Bounds: the interface's versions 1 to 7, and of a version that the kernel lacks only its own part is missing. Landlock guards
//! neither UDP nor sockets of unix that have a path, nor the attributes of files (stat).

use crate::{Grants, Holds};
use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::path::Path;
use std::sync::OnceLock;

/// The newest version that was tried. What a later one can refuse is left alone until somebody has looked.
const NEWEST: ABI = ABI::V7;
/// Rights that a file can have; a ruleset refuses the others for it.
const OF_FILES: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | WriteFile | ReadFile | Truncate | IoctlDev});
const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
/// No devices, no pipes with a name: nothing of ours makes them.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | RemoveFile | RemoveDir | MakeReg | MakeDir | MakeSym | MakeSock | Refer
});
const EXECUTE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir | Execute});
const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});

/// Keeps /proc/self in the kernel's cache: procfs forgets an unused folder when memory is short, and makes another inode for it
/// later, which the rule would no longer match.
static OURSELVES: OnceLock<PathFd> = OnceLock::new();

pub(crate) fn ruleset(grants: &Grants, holds: &mut Holds) -> Option<RulesetCreated> {
    let mut ruleset = match handled(grants) {
        Ok(ruleset) => ruleset,
        Err(error) => {
            holds.lack(format!("Landlock cannot be set up: {error}"));
            return None;
        }
    };
    let granted = [(&grants.read, READ), (&grants.write, WRITE), (&grants.execute, EXECUTE)];
    for (paths, rights) in granted {
        for path in paths {
            grant(&mut ruleset, path, rights, holds);
        }
    }
    for (path, rights) in [("/dev/null", DEVICE), ("/proc/self", READ)] {
        // An image without them is no fault of the configuration.
        if Path::new(path).exists() {
            grant(&mut ruleset, Path::new(path), rights, holds);
        }
    }
    if let Ok(folder) = PathFd::new("/proc/self") {
        OURSELVES.get_or_init(|| folder);
    }
    let binding = grants.bind.iter().map(|port| (port, AccessNet::BindTcp));
    // Without a handled right to connect a rule for it would be a mistake.
    let connecting = grants.connect.iter().filter(|_| !grants.connect_any).map(|port| (port, AccessNet::ConnectTcp));
    for (port, right) in binding.chain(connecting) {
        if let Err(error) = (&mut ruleset).add_rule(NetPort::new(*port, right)) {
            holds.lack(format!("TCP port {port} cannot be granted: {error}"));
        }
    }
    Some(ruleset)
}

/// What is refused unless a rule grants it.
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

/// Symlinks are followed now, and the rule is on what they lead to.
fn grant(ruleset: &mut RulesetCreated, path: &Path, rights: BitFlags<AccessFs>, holds: &mut Holds) {
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(error) => return cannot_open(path, error, holds),
    };
    let kind = rustix::fs::fstat(&opened).map(|facts| FileType::from_raw_mode(facts.st_mode));
    let rights = match kind {
        Ok(FileType::Directory) => rights,
        _ => rights & OF_FILES,
    };
    if let Err(error) = ruleset.add_rule(PathBeneath::new(opened, rights)) {
        // A pipe or socket behind /dev/stdout lies on no file system of a path, and Landlock neither guards nor grants it.
        if !matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
            holds.lack(format!("{} cannot be granted: {error}", path.display()));
        }
    }
}

fn cannot_open(path: &Path, error: PathFdError, holds: &mut Holds) {
    let source = match error {
        PathFdError::OpenCall { source, .. } => source,
        other => return holds.lack(format!("{} is not granted: {other}", path.display())),
    };
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NOTDIR) if holds.absent_paths.iter().any(|known| known == path) => {}
        Some(Errno::NOENT | Errno::NOTDIR) => holds.absent_paths.push(path.to_path_buf()),
        _ => holds.lack(format!("{} cannot be opened, and is not granted: {source}", path.display())),
    }
}

pub(crate) fn restrict(ruleset: RulesetCreated, holds: &mut Holds) {
    match ruleset.restrict_self() {
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => none(&status.landlock, holds),
        Ok(status) => enforced(&status.landlock, holds),
        Err(error) => holds.lack(format!("Landlock refused to be put in force: {error}")),
    }
}

fn none(status: &LandlockStatus, holds: &mut Holds) {
    let why = match status {
        LandlockStatus::NotEnabled => "Landlock is built into this kernel and not enabled (`lsm=` of its command line)",
        _ => "this kernel (before Linux 5.13), or a filter of the container around us, has no Landlock",
    };
    holds.lack(format!("{why}: paths, TCP ports and signals are not limited"));
}

fn enforced(status: &LandlockStatus, holds: &mut Holds) {
    let LandlockStatus::Available { effective_abi, .. } = status else {
        return none(status, holds);
    };
    let abi = (*effective_abi).min(NEWEST);
    holds.landlock_abi = u8::try_from(abi as i32).ok();
    holds.filesystem = true;
    holds.tcp = abi >= ABI::V4;
    holds.signals = abi >= ABI::V6;
    let needs = [
        (ABI::V2, "5.19", "a file cannot be renamed or linked from one folder to another"),
        (ABI::V3, "6.2", "files outside can be truncated"),
        (ABI::V4, "6.7", "TCP ports are not limited"),
        (ABI::V5, "6.10", "devices inside granted folders can be controlled (ioctl)"),
        (ABI::V6, "6.12", "abstract unix sockets outside can be reached"),
    ];
    for (version, linux, sentence) in needs {
        if abi < version {
            holds.lack(format!(
                "{sentence}: Landlock has version {abi} here, and Linux {linux} brings version {version}"
            ));
        }
    }
}
