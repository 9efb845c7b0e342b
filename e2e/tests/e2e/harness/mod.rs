//! The base of every test: a scene (directory, ports, configuration text), conditions with a limit, and the search for
//! peers. In: what a test needs. Out: running processes that end with the test. Limits: those given to `until`, and
//! `Drop`, which stops every process that a panicking test started.

pub mod faults;
pub mod booted;
pub mod busy;
pub mod callers;
pub mod certificates;
pub mod exposition;
pub mod findings;
pub mod git;
pub mod hostile;
pub mod init;
pub mod ledger;
pub mod load;
pub mod log_files;
pub mod names;
pub mod outrigger;
pub mod podman;
pub mod process;
pub mod prometheus;
pub mod proto;
pub mod proxied;
pub mod random;
pub mod raw_app;
pub mod receiver;
pub mod server;
pub mod target;
pub mod status;
pub mod terminal;
pub mod volume;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

pub use exposition::Exposition;
pub use findings::Findings;
pub use init::{Init, PLAIN, Supervised};
pub use ledger::{ledger_balances, ledger_row};
pub use outrigger::{Exit, Outrigger, Wait};
pub use prometheus::Prometheus;
pub use proxied::Proxied;
pub use raw_app::{Next, RawApp};
pub use receiver::{Answer, LogReceiver};
pub use target::{Page, Target};
pub use terminal::Terminal;
pub use wire::{Wire, get, request};

pub const SECOND: Duration = Duration::from_secs(1);

/// How long a step may take on a loaded machine of two cores before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The environment of one test: its own directory, and the values to substitute in its configuration text.
pub struct Scene {
    directory: PathBuf,
    values: Mutex<BTreeMap<String, String>>,
}

impl Scene {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short, because a Unix socket's path has to fit into 108 bytes.
        let name = format!("outrigger-e2e-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let scene = Self { directory, values: Mutex::default() };
        scene.set("dir", scene.directory.display());
        scene.set("admin", free_port());
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn text_path(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file of the scene, and creates its parent directories.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        let parent = path.parent().expect("a file of the scene has a parent directory");
        std::fs::create_dir_all(parent).expect("the scene is writable");
        std::fs::write(&path, content).expect("the scene is writable");
        path
    }

    /// Writes an executable script of the scene.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let text = self.write(&format!("{name}.text"), text);
        let script = self.program(name, &text);
        std::fs::remove_file(text).expect("the test owns the file");
        script
    }

    /// Copies a program by `install`: a file that this process has open for writing is also open in every child that another
    /// test forks at that time, and the kernel refuses to execute the file (ETXTBSY) until that child calls exec.
    pub fn program(&self, name: &str, from: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        let copied = Command::new("install").args(["-D", "-m", "755"]).arg(from.as_ref()).arg(&path).status();
        assert!(copied.is_ok_and(|status| status.success()), "install creates {}", path.display());
        path
    }

    /// The black box files: the records of unexpected exits.
    pub fn black_boxes(&self) -> Vec<serde_json::Value> {
        let files = std::fs::read_dir(self.path("state/black_box")).into_iter().flatten().flatten();
        let boxes = files.filter(|entry| entry.file_name().to_string_lossy().ends_with(".json"));
        let text = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path()).ok();
        boxes.filter_map(text).map(|text| serde_json::from_str(&text).expect("JSON")).collect()
    }

    /// Sets the value of `@name@` in configuration texts.
    pub fn set(&self, name: &str, value: impl Display) {
        self.values.lock().expect("no test panics while it sets a value").insert(name.to_owned(), value.to_string());
    }

    /// A free port, also available to configuration texts as `@name@`.
    pub fn port(&self, name: &str) -> u16 {
        let port = free_port();
        self.set(name, port);
        port
    }

    pub fn value(&self, name: &str) -> String {
        let values = self.values.lock().expect("no test panics while it sets a value");
        values.get(name).cloned().unwrap_or_else(|| panic!("the scene has no value @{name}@"))
    }

    pub fn fill(&self, text: &str) -> String {
        let values = self.values.lock().expect("no test panics while it sets a value");
        values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the scene is retained in {}", self.directory.display());
        } else {
            std::fs::remove_dir_all(&self.directory).ok();
        }
    }
}

/// Waits for a condition; at the limit the test fails and reports what it waited for.
#[track_caller]
pub fn until(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(within(limit, condition), "timed out after {limit:?}: {what}");
}

pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        // why: the polling interval of every condition, so that no other code has to sleep
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An unused port below the kernel's range of ephemeral ports: an outgoing connection could otherwise use it before the
/// program binds it. No port is returned twice.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU32::new(std::process::id().wrapping_mul(61) % 14_000));
    for _ in 0..14_000 {
        let offset = next.fetch_add(1, Ordering::Relaxed) % 14_000;
        let port = 18_000 + u16::try_from(offset).expect("less than 14,000");
        if is_free(port) {
            return port;
        }
    }
    panic!("no free port between 18000 and 32000");
}

/// Binds without listening: a child that another test forks at this time holds the socket until it calls exec. A listening socket
/// would keep the port in use until then, a socket that is only bound does not.
fn is_free(port: u16) -> bool {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    set_socket_reuseaddr(&socket, true).expect("every socket supports the option");
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace")
}

pub fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name).display().to_string()
}

/// A program under `examples/`: next to this test's own binary, else the newest that the `ci` profile built.
#[track_caller]
pub fn example(name: &str) -> String {
    let own = std::env::current_exe().expect("the path of the test binary is known");
    let sibling = own.ancestors().nth(2).map(|profile| profile.join("examples").join(name));
    if let Some(path) = sibling.filter(|path| path.is_file()) {
        return path.display().to_string();
    }
    let platforms = std::fs::read_dir(workspace().join("target")).into_iter().flatten().flatten();
    let built = platforms.map(|entry| entry.path().join("ci/examples").join(name));
    let dated = built.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    let (_, newest) =
        dated.max().expect("an example in target; build it by: cargo build -p e2e --examples --profile ci");
    newest.display().to_string()
}

/// The path of a peer's program: on the search path, in the system's directories for servers, or among the peers that
/// `cargo xtask peers` installed.
pub fn peer(name: &str) -> Option<PathBuf> {
    let peers = workspace().join("target/peers");
    let mut directories: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    directories.extend(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/lib/git-core"].map(PathBuf::from));
    directories.push(peers.join("bin"));
    if let Ok(entries) = std::fs::read_dir(&peers) {
        directories.extend(entries.flatten().map(|entry| entry.path().join("bin")));
    }
    directories.into_iter().map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// The interpreter itself: the shim of a version manager would cost every test a quarter of a second.
pub fn python() -> Option<String> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let shim = peer("python3")?;
        let output =
            std::process::Command::new(shim).args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        Path::new(&path).is_file().then_some(path)
    };
    FOUND.get_or_init(find).clone()
}

/// Records a test that cannot run here in the file from which the skipped tests are counted by name.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    let Some(path) = std::env::var_os("OUTRIGGER_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let mut file = file.expect("OUTRIGGER_SKIPS is the path of a writable file");
    // One write per line, so that the lines of concurrent tests do not interleave.
    file.write_all(format!("{test}\t{reason}\n").as_bytes()).expect("the list of skipped tests is writable");
}

/// Unwraps the value, or skips this test, recorded by its name with the reason.
macro_rules! need {
    ($value:expr, $reason:expr) => {
        match $value {
            Some(value) => value,
            None => {
                fn here() {}
                let name = std::any::type_name_of_val(&here).trim_end_matches("::here").trim_start_matches("e2e::");
                $crate::harness::skip(name, $reason);
                return;
            }
        }
    };
}

/// The path of a peer's program as text, or this test is skipped.
macro_rules! need_peer {
    ($name:literal) => {
        need!($crate::harness::peer($name).map(|path| path.display().to_string()), concat!($name, " is not installed"))
    };
}

/// The number that follows `mark` in a line: all fixtures write `n=000123`.
pub fn number_after(text: &str, mark: &str) -> Option<usize> {
    let digits = text.split(mark).nth(1)?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Fails unless the numbers are exactly 0, 1, 2 … `count` - 1, and reports where they first differ.
#[track_caller]
pub fn assert_counts_up(numbers: &[usize], count: usize) {
    let wrong = numbers.iter().enumerate().find(|(index, number)| index != *number);
    assert_eq!(wrong, None, "the first number that differs, as (index, number)");
    assert_eq!(numbers.len(), count, "how many numbers arrived");
}
