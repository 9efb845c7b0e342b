//! From plans to the sandbox: the paths, ports and programs in the configuration, and the few that the worker itself needs. In:
//! checked plans. Out: needs, and grants for the sandbox. `validate` uses the same list to report programs that an image is
//! missing.

use crate::plans::Plans;
use base::system::listen::Listen;
use config::needs::Needs;
use sandbox::Grants;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Everything that the configuration needs from the system.
pub fn needs(plans: &Plans) -> Needs {
    let mut needs = Needs::default();
    plans.components().iter().for_each(|component| needs.add(component.needs()));
    plans.proxy.iter().for_each(|plan| needs.add(plan.needs()));
    // The configuration is re-read at a reload, and an editor replaces it.
    needs.read_replaced(&plans.path);
    plans.files.iter().for_each(|file| needs.read_replaced(file));
    let admin = &plans.config.admin;
    needs.listen.extend(admin_listens(admin));
    admin.socket.iter().for_each(|socket| needs.write_file(socket));
    admin.token_file.iter().for_each(|file| needs.read_replaced(file));
    needs.connect.extend(plans.config.app.port);
    needs.write.push(plans.state_dir.clone());
    if let Some(external) = &plans.config.app.external {
        external.exit_code_file.iter().chain(&external.pid_file).for_each(|file| needs.read_replaced(file));
        if external.process_name.is_some() || external.pid_file.is_some() {
            needs.read.push("/proc".into());
        }
    }
    needs
}

/// The TCP listeners of `admin`.
pub fn admin_listens(admin: &admin::config::Config) -> impl Iterator<Item = Listen> {
    let listeners =
        [("admin/listen", "admin.listen", admin.listen), ("admin/probes", "admin.probes_listen", admin.probes_listen)];
    listeners.into_iter().filter_map(|(name, owner, address)| {
        Some(Listen { name: name.into(), owner: owner.into(), key: "", address: address?.0, count: 1 })
    })
}

/// The needs as grants of the sandbox. Outrigger's own writable directories are created first, since a missing path cannot be
/// granted.
pub fn grants(plans: &Plans) -> Grants {
    let (needs, configured) = (&plans.needs, &plans.config.sandbox);
    let own = [Some(plans.state_dir.as_path()), plans.config.admin.socket.as_deref().and_then(Path::parent)];
    for directory in own.into_iter().flatten().chain(needs.write.iter().map(PathBuf::as_path)) {
        // The component that needs the directory reports a failure.
        let _ = std::fs::create_dir_all(directory);
    }
    let mut grants = Grants {
        read: absolute(needs.read.iter().chain(&configured.allow_read)),
        write: absolute(needs.write.iter().chain(&configured.allow_write)),
        execute: Vec::new(),
        connect: needs.connect.iter().chain(&configured.allow_connect).copied().collect(),
        bind: needs.listen.iter().map(|listen| listen.address.port()).collect(),
        connect_any: false,
        programs: !needs.programs.is_empty(),
    };
    grants.read.extend(base::system::cgroup::directories());
    if grants.programs {
        grants.execute.extend(needs.programs.iter().flat_map(|program| find(program)));
        grants.execute.extend(LIBRARIES.map(PathBuf::from).into_iter().filter(|path| path.exists()));
    }
    grants
}

/// The directories that a worker may write, in the form that the supervisor compares with a path.
pub fn written(needs: &Needs) -> Vec<Vec<u8>> {
    let real =
        |path: &PathBuf| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone());
    needs.write.iter().map(|path| real(path).into_os_string().into_vec()).collect()
}

/// A granted path, and the file that it referred to when it was granted.
pub struct Mark {
    path: PathBuf,
    /// Device and inode: a rule applies to them and not to the name.
    granted: Option<(u64, u64)>,
}

/// Marks of the paths whose replacement requires a new worker: missing paths, directories, and files that the plans read by their
/// own name, such as resolv.conf and certificate bundles, which are replaced by their owners. Any other replaced file does not
/// require one: editors replace files, and so does Outrigger in its state directory.
pub fn marks(grants: &Grants, needs: &Needs) -> Vec<Mark> {
    let own: Vec<PathBuf> = absolute(needs.read.iter());
    let paths = grants.read.iter().chain(&grants.write);
    let marks = paths.map(|path| Mark { path: path.clone(), granted: identity(path) });
    let is_watched = |mark: &Mark| mark.granted.is_none() || mark.path.is_dir() || own.contains(&mark.path);
    marks.filter(is_watched).collect()
}

impl Mark {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path now refers to a file that was not granted.
    pub fn has_changed(&self) -> bool {
        identity(&self.path).is_some_and(|now| Some(now) != self.granted)
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// The libraries of a dynamically linked program (ld.so(8)), and the shell with which git runs ssh.
const LIBRARIES: [&str; 9] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/bin/sh",
    "/usr/bin/sh",
    "/etc/ssl/openssl.cnf",
];

fn absolute<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        paths.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// A program by its path, or all programs of that name in PATH: the first may be a script that calls the next.
fn find(program: &str) -> Vec<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file()).into_iter().collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).filter(|path| path.is_file()).collect()
}

/// The programs of the configuration, and the app's own, that this system is missing, as messages.
pub fn missing_programs(plans: &Plans) -> Vec<String> {
    let app = plans.app.app.as_ref().and_then(|app| app.argv.first());
    let app = app.and_then(|program| String::from_utf8(program.clone()).ok());
    // A relative path is relative to the app's directory.
    let app = app.filter(|program| !program.contains('/') || program.starts_with('/'));
    let programs = plans.needs.programs.iter().chain(&app).filter(|program| find(program).is_empty());
    let mut missing: Vec<String> = programs
        .map(|program| format!("program `{program}` is not installed, and the configuration requires it"))
        .collect();
    missing.sort();
    missing.dedup();
    missing
}
