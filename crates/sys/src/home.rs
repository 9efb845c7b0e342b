//! HOME for libraries. In: a process without one. Out: `/`, as container runtimes give to a user without an entry. Without it the
//! standard library asks the C library's databases of users (getpwuid_r(3)), whose modules a static program cannot load: it ends by
//! SIGSEGV.

use std::sync::atomic::{AtomicBool, Ordering};

static GIVEN: AtomicBool = AtomicBool::new(false);

/// Sets HOME where it is missing. Does nothing where this process has a second thread.
pub fn provide() {
    if std::env::var_os("HOME").is_none() && crate::process::is_single_threaded() {
        // SAFETY: there is no other thread that could read the environment meanwhile.
        unsafe { std::env::set_var("HOME", "/") };
        GIVEN.store(true, Ordering::Relaxed);
    }
}

/// Whether HOME is ours, and none of the app.
pub fn is_given() -> bool {
    GIVEN.load(Ordering::Relaxed)
}
