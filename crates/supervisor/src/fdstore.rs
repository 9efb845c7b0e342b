//! The descriptor store: listening sockets that outlive a worker, by systemd's protocol (sd_notify(3), FDSTORE). In:
//! datagrams from the worker. Out: the descriptors for the next worker, and for whoever started us. Bound: `STORED_MAX` descriptors, names of
//! `NAME_MAX` bytes; one more is closed and refused.

use crate::plan::STORED_MAX;
use crate::systemd::Systemd;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

pub const NAME_MAX: usize = 128;

/// A datagram of ours is one or two short lines.
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

/// What a datagram told beside descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    pub ready: bool,
}

impl Store {
    /// With what was kept for us before we started.
    pub fn new(kept: Vec<(String, OwnedFd)>) -> Store {
        let mut store = Store { entries: Vec::with_capacity(STORED_MAX) };
        for (name, fd) in kept {
            store.add(name.as_bytes(), fd);
        }
        store
    }

    /// Takes one datagram from the socket; None where none waits.
    pub(crate) fn receive(&mut self, socket: &OwnedFd, manager: &Systemd) -> Option<Notice> {
        let mut text = [0u8; DATAGRAM_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags).ok()?;
        if received.bytes == 0 {
            return None;
        }
        // A datagram that is cut is none of ours, and where it was cut may look like a line of ours.
        let whole = !received.flags.contains(ReturnFlags::TRUNC);
        let text = text.get(..received.bytes).filter(|_| whole).unwrap_or(&[]);
        let value = |key: &[u8]| text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key));
        let name = value(b"FDNAME=").unwrap_or(b"stored");
        let stores = value(b"FDSTORE=") == Some(b"1");
        if value(b"FDSTOREREMOVE=") == Some(b"1") {
            self.entries.retain(|stored| stored.name() != name);
            manager.forget(name);
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds.filter(|_| stores) {
                    manager.store(name, fd.as_fd());
                    self.add(name, fd);
                }
            }
        }
        Some(Notice { ready: value(b"READY=") == Some(b"1") })
    }

    /// Several descriptors may share a name: the members of a reuse-port group.
    fn add(&mut self, name: &[u8], fd: OwnedFd) {
        if self.entries.len() < STORED_MAX && name.len() <= NAME_MAX {
            let mut stored = Stored { name: [0; NAME_MAX], length: name.len(), fd };
            if let Some(place) = stored.name.get_mut(..name.len()) {
                place.copy_from_slice(name);
            }
            self.entries.push(stored);
        }
    }

    pub(crate) fn named(&self) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, &OwnedFd)> {
        self.entries.iter().map(|stored| (String::from_utf8_lossy(stored.name()), &stored.fd))
    }

    /// The descriptors for a new worker. Called in its process, where the copies are its own.
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
    fn descriptors_are_kept_by_name_and_removed_by_name() {
        let (worker, ours) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .expect("a pair");
        let (kept, _other) = rustix::pipe::pipe().expect("a pipe");
        let (mut store, manager) = (Store::new(Vec::new()), Systemd::without_descriptors());
        send(&worker, "READY=1\n", None);
        assert_eq!(store.receive(&ours, &manager), Some(Notice { ready: true }));
        send(&worker, "FDSTORE=1\nFDNAME=proxy/in", Some(&kept));
        send(&worker, "FDSTORE=1\nFDNAME=admin", Some(&kept));
        send(&worker, "WATCHDOG=1", Some(&kept));
        send(&worker, "FDSTOREREMOVE=1\nFDNAME=admin", None);
        while store.receive(&ours, &manager).is_some() {}
        let named: Vec<String> = store.into_named().into_iter().map(|(name, _)| name).collect();
        assert_eq!(named, ["proxy/in"], "a descriptor sent without FDSTORE is closed");
    }
}
