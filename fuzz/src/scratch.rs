//! A folder for the files that targets read and write, in memory where the system has a place for that. In: a name. Out: a folder
//! of one's own, per thread. Bound: `remove` leaves nothing; of a process that was killed, the one that watches it removes all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// By this variable the one that watches names the folder to the process that it starts.
pub const VARIABLE: &str = "OUTRIGGER_FUZZ_SCRATCH";

static ROOT: OnceLock<PathBuf> = OnceLock::new();
static SERIAL: AtomicUsize = AtomicUsize::new(0);

/// The folder of this process.
pub fn root() -> &'static Path {
    ROOT.get_or_init(|| {
        let named = std::env::var_os(VARIABLE).map(PathBuf::from);
        let root = named.unwrap_or_else(fresh);
        fs::create_dir_all(&root).expect("a folder for temporary files can be made");
        root
    })
}

/// A name for a folder that nobody else has.
pub fn fresh() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    place.join(format!("outrigger-fuzz-{}", std::process::id()))
}

/// A new empty folder below it.
pub fn folder(name: &str) -> PathBuf {
    let path = root().join(format!("{name}-{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&path).expect("the scratch folder takes another");
    path
}

pub fn remove() {
    if let Some(root) = ROOT.get() {
        // What cannot be removed lies in a place for temporary files.
        let _ = fs::remove_dir_all(root);
    }
}
