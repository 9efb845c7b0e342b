//! What the fuzz targets reach beside the public parts. In and out: those parts themselves; nothing else uses this.

use crate::fdstore::Store;
pub use crate::reexec_state::ReexecState;
use crate::systemd::Systemd;
use std::os::fd::OwnedFd;

/// Takes one datagram of the notify socket; answers whether it said READY.
pub fn receive(store: &mut Store, socket: &OwnedFd) -> Option<bool> {
    store.receive(socket, &Systemd::without_descriptors()).map(|notice| notice.ready)
}
