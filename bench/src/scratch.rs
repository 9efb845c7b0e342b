//! The resources that a run uses: a scratch directory, free ports and two cores.
//!
//! The directory is removed when its owner is dropped. Ports are free when picked; another program may take one before
//! its server binds, and then that start fails with its error instead of measuring the wrong program.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

pub struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    pub fn new() -> Result<Self, String> {
        let directory = std::env::temp_dir().join(format!("outrigger-bench-{}", std::process::id()));
        std::fs::create_dir(&directory).map_err(|e| format!("cannot create {}: {e}", directory.display()))?;
        Ok(Self { directory })
    }

    /// A fresh subdirectory for one start of one program.
    pub fn fresh(&self, name: &str) -> Result<PathBuf, String> {
        let directory = self.directory.join(name);
        if directory.exists() {
            std::fs::remove_dir_all(&directory).map_err(|e| format!("cannot empty {}: {e}", directory.display()))?;
        }
        std::fs::create_dir(&directory).map_err(|e| format!("cannot create {}: {e}", directory.display()))?;
        Ok(directory)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(fault) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("bench: cannot remove {}: {fault}", self.directory.display());
        }
    }
}

pub fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// `N` different free loopback ports; all are bound until the last is known.
pub fn free_ports<const N: usize>() -> Result<[u16; N], String> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free loopback port: {e}"))?;
        *port = listener.local_addr().map_err(|e| e.to_string())?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// The first two cores that this process may use: one for the proxy, one for everything that is not measured.
pub fn two_cores() -> Result<[usize; 2], String> {
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|e| format!("cannot query the cores: {e}"))?;
    let mut cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    match (cores.next(), cores.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => Err("two cores are needed: one for the proxy, one for load and app".to_owned()),
    }
}
