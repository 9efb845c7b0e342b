//! The admin socket's file. In: a path, a mode, a group. Out: a listening socket that no other user could open at any time, or an
//! error. It is created under a temporary name and then renamed over the path, so that the path always resolves to a worker; and
//! it is created before the sandbox is entered, which does not allow chown.

use base::system::groups;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Connections that wait to be accepted: as many as are served concurrently.
const BACKLOG: i32 = net::serve::CONNECTIONS_MAX as i32;

pub const GROUP_HELP: &str = "use a group of /etc/group, or its number";

/// Mode and group of the file.
#[derive(Clone, Copy, Debug)]
pub struct Permissions {
    pub mode: u32,
    pub group: Option<u32>,
}

/// A listening socket, still under its temporary name.
#[derive(Debug)]
pub struct Prepared {
    socket: Option<OwnedFd>,
    temporary: PathBuf,
    path: PathBuf,
}

/// The result of taking the path.
#[derive(Debug)]
pub enum Taken {
    Bound(tokio::net::UnixListener),
    /// Another process listens on it.
    InUse(Prepared),
}

/// Creates the socket with its permissions. The error is a sentence.
pub fn prepare(path: &Path, permissions: Permissions) -> Result<Prepared, String> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut temporary = OsString::from(path);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let address = SocketAddrUnix::new(&temporary)
        .map_err(|_| "the path is too long for a socket; choose one of at most 96 bytes".to_string())?;
    // Left by a killed process with the same process ID.
    let _ = fs::remove_file(&temporary);
    let socket = open().map_err(|error| failed(error.into()))?;
    // The file gets the mode that the socket has before bind, so that other users can never connect, and the umask, which all
    // threads share, stays unchanged.
    let bound =
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).and_then(|()| rustix::net::bind(&socket, &address));
    bound.map_err(|error| failed(error.into()))?;
    // From here on the file is removed on failure.
    let mut prepared = Prepared { socket: None, temporary, path: path.to_path_buf() };
    set_permissions(&prepared.temporary, permissions)?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    prepared.socket = Some(socket);
    Ok(prepared)
}

impl Prepared {
    /// Renames it over the path if no process listens there: the file of a killed process is replaced.
    pub fn take(mut self) -> Result<Taken, String> {
        match fs::symlink_metadata(&self.path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err("path exists and is not a socket; remove it or choose another path".into());
            }
            Ok(_) if has_listener(&self.path)? => return Ok(Taken::InUse(self)),
            Ok(_) | Err(_) => {}
        }
        fs::rename(&self.temporary, &self.path).map_err(failed)?;
        let socket = self.socket.take().ok_or("the socket was already taken")?;
        tokio::net::UnixListener::from_std(socket.into()).map(Taken::Bound).map_err(failed)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Fails after a rename, which is fine.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Whether a process listens. A full queue has a listener, too (connect(2): EAGAIN).
fn has_listener(path: &Path) -> Result<bool, String> {
    let connected = SocketAddrUnix::new(path).and_then(|address| rustix::net::connect(&open()?, &address));
    match connected {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(failed(error.into())),
    }
}

/// The group first: with the mode first, Outrigger's own group could briefly connect.
fn set_permissions(path: &Path, permissions: Permissions) -> Result<(), String> {
    if let Some(group) = permissions.group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(|error| {
            format!("cannot change its group to {group}: {error}; run as root or as a member of that group")
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(permissions.mode))
        .map_err(|error| format!("cannot set mode {:04o}: {error}", permissions.mode))
}

fn failed(error: io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; create the directory and chown it to the user Outrigger runs as, or choose another path"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount a writable directory there, such as an emptyDir",
        _ => "",
    };
    format!("{error}{help}")
}

/// The ID of a group, given as a number or by its name in /etc/group.
pub fn group_number(group: &str) -> Result<u32, String> {
    if !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()) {
        // The largest number means "unchanged" (chown(2)).
        let number = group.parse().ok().filter(|number| *number != u32::MAX);
        return number.ok_or_else(|| format!("`{group}` is too large for a group ID"));
    }
    let table =
        fs::read_to_string("/etc/group").map_err(|error| format!("cannot look up `{group}` in /etc/group: {error}"))?;
    groups::group(&table, group).ok_or_else(|| format!("there is no group `{group}` in /etc/group"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn with_socket(name: &str, test: impl FnOnce(&Path)) {
        let directory = std::env::temp_dir().join(format!("outrigger-admin-{}-{name}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        test(&directory.join("deep/admin.sock"));
        fs::remove_dir_all(&directory).expect("the directory exists");
    }

    fn files(path: &Path) -> usize {
        fs::read_dir(path.parent().expect("a directory")).expect("the directory exists").count()
    }

    #[test]
    fn the_socket_file_never_has_other_permissions() {
        with_socket("mode", |path| {
            // Every process may change the group of its files to its own group.
            let group = rustix::process::getegid().as_raw();
            for mode in [0o600, 0o660, 0o666] {
                let prepared = prepare(path, Permissions { mode, group: Some(group) }).expect("the socket is created");
                let meta = fs::metadata(&prepared.temporary).expect("the file exists");
                assert_eq!((meta.mode() & 0o7777, meta.gid()), (mode, group));
                assert!(matches!(prepared.take(), Ok(Taken::Bound(_))));
                let meta = fs::metadata(path).expect("the file exists");
                assert_eq!((meta.mode() & 0o7777, meta.gid(), files(path)), (mode, group, 1));
            }
        });
    }

    #[test]
    fn only_a_stale_socket_file_is_replaced() {
        with_socket("stale", |path| {
            let prepared = || prepare(path, Permissions { mode: 0o600, group: None }).expect("the socket is created");
            let first = prepared().take().expect("the path is bound");
            assert!(matches!(prepared().take(), Ok(Taken::InUse(_))));
            assert_eq!(files(path), 1, "an unused temporary file is removed");
            drop(first);
            let second = prepared().take();
            assert!(matches!(second, Ok(Taken::Bound(_))), "a file without a listener is replaced");
            assert!(std::os::unix::net::UnixStream::connect(path).is_ok());
            fs::remove_file(path).expect("the file exists");
            fs::write(path, "precious").expect("a file");
            assert!(prepared().take().is_err_and(|error| error.contains("not a socket")));
            assert_eq!((fs::read_to_string(path).expect("the file still exists"), files(path)), ("precious".into(), 1));
        });
    }

    #[test]
    fn a_group_may_be_a_number() {
        assert_eq!(group_number("1000"), Ok(1000));
        assert!(group_number("4294967295").is_err() && group_number("").is_err());
    }
}
