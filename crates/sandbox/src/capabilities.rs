//! Drops all capabilities. In: nothing. Out: empty sets, including the ambient and the bounding set.
//! Limits: operations that need one, such as listening on port 443 or giving a file to a group, must happen before.

use crate::Holds;
use rustix::io::{self, Errno};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// The bounding set has a bit for each capability of the running kernel, known to this code or not.
const CAPABILITIES_MAX: u32 = 64;
const NONE: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

pub(crate) fn drop_all(holds: &mut Holds) {
    match empty_sets() {
        Ok(()) => holds.capabilities_dropped = true,
        Err(error) => holds.report_missing(format!("cannot drop capabilities: {error}")),
    }
}

fn empty_sets() -> io::Result<()> {
    // First, while CAP_SETPCAP is available. Without it the set cannot be used either: no_new_privs.
    if thread::capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set()?;
    }
    thread::clear_ambient_capability_set()?;
    // A parent that started this process without capabilities may also deny the call (systemd's @system-service).
    if thread::capabilities(None)? != NONE {
        thread::set_capabilities(None, NONE)?;
    }
    match thread::capabilities(None)? == NONE {
        true => Ok(()),
        false => Err(Errno::PERM),
    }
}

fn empty_bounding_set() -> io::Result<()> {
    for bit in 0..CAPABILITIES_MAX {
        match thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // The kernel has no capability with this number: end of its list.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
