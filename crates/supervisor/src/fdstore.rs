//! The file descriptor store: listening sockets that outlive a worker, by systemd's protocol (sd_notify(3), FDSTORE). In:
//! datagrams from the worker. Out: the descriptors for the next worker, and for the service manager. Limits: `STORED_MAX`
//! descriptors, names of `NAME_MAX` bytes; any further descriptor is closed and rejected.

use crate::plan::STORED_MAX;
use crate::systemd::Systemd;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

pub const NAME_MAX: usize = 128;

/// A datagram of a worker is one or two short lines.
const DATAGRAM_MAX: usize = 512;
/// Descriptors in one datagram.
const FDS_MAX: usize = 4;

struct Stored {
    name: [u8; NAME_MAX],
    length: usize,
    fd: OwnedFd,
}

pub struct Store {
    entries: Vec<Stored>,
}

/// What a datagram reported in addition to descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    pub ready: bool,
}

impl Store {
    /// With the descriptors that were stored before this process started.
    pub fn new(stored: Vec<(String, OwnedFd)>) -> Store {
        let mut store = Store { entries: Vec::with_capacity(STORED_MAX) };
        for (name, fd) in stored {
            store.add(name.as_bytes(), fd);
        }
        store
    }

    /// Receives one datagram from the socket; None if none is waiting.
    pub(crate) fn receive(&mut self, socket: &OwnedFd, systemd: &Systemd) -> Option<Notification> {
        let mut text = [0u8; DATAGRAM_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags).ok()?;
        if received.bytes == 0 {
            return None;
        }
        // A truncated datagram is not from a worker, and its truncated line may look like one from a worker.
        let complete = !received.flags.contains(ReturnFlags::TRUNC);
        let text = text.get(..received.bytes).filter(|_| complete).unwrap_or(&[]);
        let value = |key: &[u8]| text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key));
        let name = value(b"FDNAME=").unwrap_or(b"stored");
        let stores = value(b"FDSTORE=") == Some(b"1");
        if value(b"FDSTOREREMOVE=") == Some(b"1") {
            self.entries.retain(|stored| stored.name() != name);
            systemd.forget(name);
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds.filter(|_| stores) {
                    systemd.store(name, fd.as_fd());
                    self.add(name, fd);
                }
            }
        }
        Some(Notification { ready: value(b"READY=") == Some(b"1") })
    }

    /// Several descriptors may share a name: the members of a reuse-port group.
    fn add(&mut self, name: &[u8], fd: OwnedFd) {
        if self.entries.len() < STORED_MAX && name.len() <= NAME_MAX {
            let mut stored = Stored { name: [0; NAME_MAX], length: name.len(), fd };
            if let Some(target) = stored.name.get_mut(..name.len()) {
                target.copy_from_slice(name);
            }
            self.entries.push(stored);
        }
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, &OwnedFd)> {
        self.entries.iter().map(|stored| (String::from_utf8_lossy(stored.name()), &stored.fd))
    }

    /// The descriptors for a new worker. Called in the worker's process, which has its own copies.
    pub fn into_named(self) -> Vec<(String, OwnedFd)> {
        self.entries
            .into_iter()
            .map(|stored| (String::from_utf8_lossy(stored.name()).into_owned(), stored.fd))
            .collect()
    }
}

impl Stored {
    fn name(&self) -> &[u8] {
        self.name.get(..self.length).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    fn send(socket: &OwnedFd, text: &str, fd: Option<&OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty()).expect("sent");
    }

    #[test]
    fn descriptors_are_stored_and_removed_by_name() {
        let (worker, supervisor) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .expect("a pair");
        let (fd, _other) = rustix::pipe::pipe().expect("a pipe");
        let (mut store, systemd) = (Store::new(Vec::new()), Systemd::without_descriptors());
        send(&worker, "READY=1\n", None);
        assert_eq!(store.receive(&supervisor, &systemd), Some(Notification { ready: true }));
        send(&worker, "FDSTORE=1\nFDNAME=proxy/in", Some(&fd));
        send(&worker, "FDSTORE=1\nFDNAME=admin", Some(&fd));
        send(&worker, "WATCHDOG=1", Some(&fd));
        send(&worker, "FDSTOREREMOVE=1\nFDNAME=admin", None);
        while store.receive(&supervisor, &systemd).is_some() {}
        let named: Vec<String> = store.into_named().into_iter().map(|(name, _)| name).collect();
        assert_eq!(named, ["proxy/in"], "a descriptor sent without FDSTORE is closed");
    }
}
