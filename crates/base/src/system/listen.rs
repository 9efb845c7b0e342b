//! Listening sockets that outlive a worker. In: an address and a name. Out: the socket that the previous worker stored under
//! that name, or a new one, which is then stored (sd_listen_fds(3), sd_notify(3) FDSTORE). An address in use is an error with
//! the name of the holder if /proc shows it.

use crate::sync::lock;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 4096;

/// A listening socket, with the name under which workers hand it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub name: String,
    /// The component that needs it, for the error message if it cannot be bound.
    pub owner: String,
    /// The key of the address below the component; empty if the component is the key.
    pub key: &'static str,
    pub address: SocketAddr,
    pub count: usize,
}

/// The inherited sockets, and the notify socket that stores new ones.
#[derive(Clone, Default)]
pub struct Sockets {
    inherited: Arc<Mutex<Named>>,
    /// Bound before the process entered the sandbox, and not used yet.
    bound: Arc<Mutex<Named>>,
    notify: Option<Arc<OwnedFd>>,
    /// Sockets to store or remove once this worker is ready. A worker that never becomes ready must not change the store.
    changes: Arc<Mutex<Vec<Change>>>,
    /// Whether the sockets stay open after all Outrigger processes have exited.
    pub outlive_us: bool,
}

type Named = Vec<(String, OwnedFd)>;

/// A change of the fd store.
enum Change {
    Store(String, OwnedFd),
    Forget(String),
}

impl Sockets {
    /// `notify` is the socket of the fd store: the supervisor or systemd.
    pub fn new(inherited: Named, notify: Option<Arc<OwnedFd>>, outlive_us: bool) -> Sockets {
        Sockets {
            inherited: Arc::new(Mutex::new(inherited)),
            bound: Arc::default(),
            notify,
            changes: Arc::default(),
            outlive_us,
        }
    }

    /// `count` listening sockets on one address, as a reuse-port group if `count` is above 1. Adopts stored sockets.
    pub fn tcp(&self, name: &str, address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, String> {
        let mut group = self.take_bound(name);
        if !group.is_empty() {
            return Ok(group);
        }
        group = self.adopt(name, address);
        if group.is_empty() {
            // SO_REUSEPORT would silently join another process's group: bind once without it to detect a conflict.
            bind(address, false).map_err(|error| taken(address, &error))?;
        }
        while group.len() < count {
            // Always with SO_REUSEPORT, so that the next worker may have more threads.
            let socket = bind(address, true).map_err(|error| taken(address, &error))?;
            self.store(name, &socket);
            group.push(socket);
        }
        Ok(group)
    }

    /// Binds before the process enters the sandbox; `tcp` returns these sockets. Errors start with the owner of the address.
    pub fn bind_early(&self, listens: &[Listen]) -> Vec<String> {
        let mut errors = Vec::new();
        for listen in listens {
            match self.tcp(&listen.name, listen.address, listen.count) {
                Ok(group) => {
                    let bound = group.into_iter().map(|socket| (listen.name.clone(), OwnedFd::from(socket)));
                    lock(&self.bound).extend(bound);
                }
                Err(error) => errors.push(format!("{}: {error}", listen.owner)),
            }
        }
        errors
    }

    fn adopt(&self, name: &str, address: SocketAddr) -> Vec<TcpListener> {
        let mut inherited = lock(&self.inherited);
        // Also by address: a listener may have been renamed since the last worker.
        let has_address = |fd: &OwnedFd| {
            rustix::net::getsockname(fd).ok().and_then(|local| SocketAddr::try_from(local).ok()) == Some(address)
        };
        let (matching, others) =
            std::mem::take(&mut *inherited).into_iter().partition(|(stored, fd)| stored == name || has_address(fd));
        *inherited = others;
        let listeners = matching.into_iter().map(|(_, fd)| TcpListener::from(fd));
        // If the address changed in the configuration, the old socket is closed here and a new one is bound.
        let (same, changed): (Vec<_>, Vec<_>) =
            listeners.partition(|listener| listener.local_addr().is_ok_and(|local| local == address));
        if !changed.is_empty() {
            lock(&self.changes).push(Change::Forget(name.to_string()));
            same.iter().for_each(|listener| self.store(name, listener));
        }
        for listener in &same {
            // A socket that a previous process shut down when it exited listens again.
            let _ = rustix::net::listen(listener, BACKLOG);
        }
        same
    }

    /// Closes the stored sockets that no component has requested.
    pub fn forget_rest(&self) {
        for (name, _) in lock(&self.inherited).drain(..) {
            self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
        }
    }

    fn take_bound(&self, name: &str) -> Vec<TcpListener> {
        let mut bound = lock(&self.bound);
        let (matching, others) = std::mem::take(&mut *bound).into_iter().partition(|(known, _)| known == name);
        *bound = others;
        matching.into_iter().map(|(_, fd)| TcpListener::from(fd)).collect()
    }

    fn store(&self, name: &str, socket: &TcpListener) {
        match socket.as_fd().try_clone_to_owned() {
            Ok(copy) => lock(&self.changes).push(Change::Store(name.to_string(), copy)),
            Err(error) => tracing::warn!(%error, name, "cannot pass a listening socket to the supervisor (fd store)"),
        }
    }

    /// Reports this worker as ready, and updates the fd store.
    pub fn ready(&self) {
        for change in lock(&self.changes).drain(..) {
            match change {
                Change::Store(name, socket) => {
                    self.notify(&format!("FDSTORE=1\nFDNAME={name}"), Some(&TcpListener::from(socket)));
                }
                Change::Forget(name) => self.notify(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None),
            }
        }
        self.notify("READY=1", None);
    }

    /// Sends one notification in systemd's protocol, if there is a notify socket.
    pub fn notify(&self, text: &str, socket: Option<&TcpListener>) {
        let Some(notify) = &self.notify else { return };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = socket.map(|socket| [socket.as_fd()]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        // Blocks if the queue is full (net.unix.max_dgram_qlen is 10): the supervisor drains it immediately, and a socket that is
        // not stored would be lost with this worker.
        let text = [IoSlice::new(text.as_bytes())];
        if let Err(error) = rustix::net::sendmsg(notify, &text, &mut control, SendFlags::NOSIGNAL) {
            tracing::warn!(%error, "cannot send to the notify socket");
        }
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, shared)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The error message for an address that cannot be bound.
pub fn taken(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder(address.port()) {
            Some(holder) => {
                format!("{address}: address already in use by {holder}; stop it, or choose another address")
            }
            None => format!("{address}: address already in use by an unknown process; choose another address"),
        },
        io::ErrorKind::PermissionDenied => {
            format!("{address}: {error}; ports below 1024 require CAP_NET_BIND_SERVICE; use a port ≥ 1024")
        }
        io::ErrorKind::AddrNotAvailable => format!("{address}: {error}; this machine has no such address"),
        _ => format!("{address}: {error}"),
    }
}

/// The process that listens on a TCP port: name and pid of the process with a file descriptor of the socket's inode.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().flat_map(|table| table.lines().skip(1)).find_map(|line| listening_inode(line, port))?;
    let link = format!("socket:[{inode}]");
    let is_number = |name: &std::ffi::OsStr| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
    for process in std::fs::read_dir("/proc").ok()?.flatten().filter(|entry| is_number(&entry.file_name())) {
        let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == Path::new(&link))) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// Columns of /proc/net/tcp (proc_net(5)): local address is the 2nd, state the 4th (0A is LISTEN), inode the 10th.
fn listening_inode(line: &str, port: u16) -> Option<&str> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = columns.get(1)?.rsplit_once(':')?;
    let listens = *columns.get(3)? == "0A" && u16::from_str_radix(local_port, 16) == Ok(port);
    listens.then(|| columns.get(9).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_for_an_address_in_use_has_its_holder() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = held.local_addr().expect("bound");
        for count in [1, 2] {
            let error = Sockets::default().tcp("x", address, count).expect_err("taken");
            assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        }
    }

    #[test]
    fn stored_socket_is_adopted_with_its_backlog() {
        let first = Sockets::default().tcp("proxy/in", "127.0.0.1:0".parse().expect("an address"), 1).expect("bound");
        let address = first[0].local_addr().expect("bound");
        let _queued = std::net::TcpStream::connect(address).expect("queued by the kernel");
        let stored = first.into_iter().map(|socket| ("proxy/in".to_string(), OwnedFd::from(socket))).collect();
        let next = Sockets::new(stored, None, false);
        let adopted = next.tcp("proxy/in", address, 1).expect("adopted");
        adopted[0].set_nonblocking(false).expect("blocking mode");
        assert!(adopted[0].accept().is_ok());
    }
}
