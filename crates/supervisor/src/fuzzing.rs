//! Private parts that the fuzz targets use. In and out: those parts themselves; nothing else uses this.

use crate::fdstore::Store;
pub use crate::reexec_state::ReexecState;
use crate::systemd::Systemd;
use std::os::fd::OwnedFd;

/// Receives one datagram of the notify socket; returns whether it has READY.
pub fn receive(store: &mut Store, socket: &OwnedFd) -> Option<bool> {
    store.receive(socket, &Systemd::without_descriptors()).map(|notification| notification.ready)
}
