//! A directory for the files that targets read and write, in memory if the system has /dev/shm. In: a name. Out: a separate
//! directory per thread. Bound: `remove` deletes everything; after a process was killed, the watching process does that.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The variable with which the watching process passes the directory to the process that it starts.
pub const VARIABLE: &str = "OUTRIGGER_FUZZ_SCRATCH";

static ROOT: OnceLock<PathBuf> = OnceLock::new();
static SERIAL: AtomicUsize = AtomicUsize::new(0);

/// The directory of this process.
pub fn root() -> &'static Path {
    ROOT.get_or_init(|| {
        let named = std::env::var_os(VARIABLE).map(PathBuf::from);
        let root = named.unwrap_or_else(fresh);
        fs::create_dir_all(&root).expect("the temporary directory is writable");
        root
    })
}

/// A name for a directory that no other process uses.
pub fn fresh() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    parent.join(format!("outrigger-fuzz-{}", std::process::id()))
}

/// A new empty directory below it.
pub fn directory(name: &str) -> PathBuf {
    let path = root().join(format!("{name}-{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&path).expect("the scratch directory is writable");
    path
}

pub fn remove() {
    if let Some(root) = ROOT.get() {
        // If this fails, the files remain in a directory for temporary files.
        let _ = fs::remove_dir_all(root);
    }
}
