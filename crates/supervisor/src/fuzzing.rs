//! What the fuzz targets reach beside the public parts. In and out: those parts themselves; nothing else uses this.

pub use crate::handoff::Handoff;
use crate::manager::Manager;
use crate::store::Store;
use std::os::fd::OwnedFd;

/// Takes one datagram of the notify socket; answers whether it said READY.
pub fn receive(store: &mut Store, socket: &OwnedFd) -> Option<bool> {
    store.receive(socket, &Manager::without_descriptors()).map(|notice| notice.ready)
}
