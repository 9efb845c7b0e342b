//! HOME for libraries. In: a process without HOME. Out: HOME=/, as container runtimes set it for a user without an entry.
//! Without HOME, the standard library queries the C library's user databases (getpwuid_r(3)). A static program cannot load their
//! modules and crashes with SIGSEGV.

use std::sync::atomic::{AtomicBool, Ordering};

static GIVEN: AtomicBool = AtomicBool::new(false);

/// Sets HOME if it is missing. Does nothing if this process has a second thread.
pub fn provide() {
    if std::env::var_os("HOME").is_none() && crate::process::is_single_threaded() {
        // SAFETY: no other thread exists that could read the environment during the change.
        unsafe { std::env::set_var("HOME", "/") };
        GIVEN.store(true, Ordering::Relaxed);
    }
}

/// Whether Outrigger set HOME: the app must not inherit it.
pub fn is_given() -> bool {
    GIVEN.load(Ordering::Relaxed)
}
