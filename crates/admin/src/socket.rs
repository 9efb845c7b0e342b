//! The admin socket's file. In: a path, a mode, a group. Out: a socket that listens and that nobody else could open at any
//! moment, or why there is none. It is made under a name of its own and then renamed over the path, so that the path leads to a
//! worker at every moment; and before the sandbox closes, since nobody may give a file to a group from within.

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

/// Connections that wait until they are accepted: as many as are served at a time.
const BACKLOG: i32 = net::serve::CONNECTIONS_MAX as i32;

pub const GROUP_HELP: &str = "name a group of /etc/group, or write its number";

/// How the file is made.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    pub mode: u32,
    pub group: Option<u32>,
}

/// A socket that listens, under a name that nobody knows yet.
#[derive(Debug)]
pub struct Prepared {
    socket: Option<OwnedFd>,
    made: PathBuf,
    path: PathBuf,
}

/// What became of taking the path.
#[derive(Debug)]
pub enum Taken {
    Ours(tokio::net::UnixListener),
    /// Another process answers on it.
    Held(Prepared),
}

/// Makes the socket with its rights. The error is a sentence.
pub fn prepare(path: &Path, rights: Rights) -> Result<Prepared, String> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut made = OsString::from(path);
    made.push(format!(".{}", std::process::id()));
    let made = PathBuf::from(made);
    let address = SocketAddrUnix::new(&made)
        .map_err(|_| "the path is too long for a socket; choose one of at most 96 bytes".to_string())?;
    // Left by a process of our number that was killed.
    let _ = fs::remove_file(&made);
    let socket = open().map_err(|error| failed(error.into()))?;
    // The file gets the mode that the socket has before it is bound: there is no moment at which others could connect, and
    // the umask, which belongs to all threads, stays as it is.
    let bound =
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).and_then(|()| rustix::net::bind(&socket, &address));
    bound.map_err(|error| failed(error.into()))?;
    // From here on the file is removed where anything fails.
    let mut prepared = Prepared { socket: None, made, path: path.to_path_buf() };
    open_up(&prepared.made, rights)?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
    prepared.socket = Some(socket);
    Ok(prepared)
}

impl Prepared {
    /// Renames it over the path, where nobody answers there: a file of a process that was killed is replaced.
    pub fn take(mut self) -> Result<Taken, String> {
        match fs::symlink_metadata(&self.path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err("path exists and is not a socket; remove it or choose another path".into());
            }
            Ok(_) if is_held(&self.path)? => return Ok(Taken::Held(self)),
            Ok(_) | Err(_) => {}
        }
        fs::rename(&self.made, &self.path).map_err(failed)?;
        let socket = self.socket.take().ok_or("it was taken before")?;
        tokio::net::UnixListener::from_std(socket.into()).map(Taken::Ours).map_err(failed)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Gone already where it was renamed.
        let _ = fs::remove_file(&self.made);
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Whether somebody listens. A queue that is full has somebody behind it, too (connect(2): EAGAIN).
fn is_held(path: &Path) -> Result<bool, String> {
    let connected = SocketAddrUnix::new(path).and_then(|address| rustix::net::connect(&open()?, &address));
    match connected {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(failed(error.into())),
    }
}

/// The group first: with the mode first, our own group could connect for a moment.
fn open_up(path: &Path, rights: Rights) -> Result<(), String> {
    if let Some(group) = rights.group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(|error| {
            format!("it cannot be given to group {group}: {error}; run as root or as a member of that group")
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(rights.mode))
        .map_err(|error| format!("it cannot get mode {:04o}: {error}", rights.mode))
}

fn failed(error: io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; create the directory and chown it to the user Outrigger runs as, or choose another path"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount a writable folder there, such as an emptyDir",
        _ => "",
    };
    format!("{error}{help}")
}

/// The number of a group, given as such or by its name in /etc/group.
pub fn group_number(group: &str) -> Result<u32, String> {
    if !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()) {
        // The largest number stands for "unchanged" (chown(2)).
        let number = group.parse().ok().filter(|number| *number != u32::MAX);
        return number.ok_or_else(|| format!("`{group}` is larger than the number of any group"));
    }
    let table = fs::read_to_string("/etc/group")
        .map_err(|error| format!("`{group}` cannot be looked up in /etc/group: {error}"))?;
    groups::group(&table, group).ok_or_else(|| format!("there is no group `{group}` in /etc/group"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn with_socket(name: &str, test: impl FnOnce(&Path)) {
        let folder = std::env::temp_dir().join(format!("outrigger-admin-{}-{name}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        test(&folder.join("deep/admin.sock"));
        fs::remove_dir_all(&folder).expect("the folder was made");
    }

    fn files(path: &Path) -> usize {
        fs::read_dir(path.parent().expect("a folder")).expect("the folder was made").count()
    }

    #[test]
    fn the_file_has_the_mode_and_the_group_that_were_asked_for_before_anybody_knows_it() {
        with_socket("mode", |path| {
            // Our own group is one that anybody may give a file to.
            let group = rustix::process::getegid().as_raw();
            for mode in [0o600, 0o660, 0o666] {
                let prepared = prepare(path, Rights { mode, group: Some(group) }).expect("made");
                let meta = fs::metadata(&prepared.made).expect("the file is there");
                assert_eq!((meta.mode() & 0o7777, meta.gid()), (mode, group));
                assert!(matches!(prepared.take(), Ok(Taken::Ours(_))));
                let meta = fs::metadata(path).expect("the file is there");
                assert_eq!((meta.mode() & 0o7777, meta.gid(), files(path)), (mode, group, 1));
            }
        });
    }

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else_is() {
        with_socket("dead", |path| {
            let prepared = || prepare(path, Rights { mode: 0o600, group: None }).expect("made");
            let first = prepared().take().expect("taken");
            assert!(matches!(prepared().take(), Ok(Taken::Held(_))));
            assert_eq!(files(path), 1, "what was not taken is removed");
            drop(first);
            let second = prepared().take();
            assert!(matches!(second, Ok(Taken::Ours(_))), "a file that nobody answers on is replaced");
            assert!(std::os::unix::net::UnixStream::connect(path).is_ok());
            fs::remove_file(path).expect("the file is there");
            fs::write(path, "precious").expect("a file");
            assert!(prepared().take().is_err_and(|why| why.contains("not a socket")));
            assert_eq!((fs::read_to_string(path).expect("still there"), files(path)), ("precious".into(), 1));
        });
    }

    #[test]
    fn a_group_may_be_given_as_its_number() {
        assert_eq!(group_number("1000"), Ok(1000));
        assert!(group_number("4294967295").is_err() && group_number("").is_err());
    }
}
