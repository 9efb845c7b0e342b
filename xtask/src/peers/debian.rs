//! Peers that Debian packages, installed through apt when this is root on Debian.
//! In: the table below. Out: for each peer its program, or why it is missing.
//! Bound: an existing program is never changed; no service that apt installs is started.

use super::{Line, tail};
use crate::shell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Peer {
    /// The program that tests start.
    program: &'static str,
    /// The package that contains it.
    package: &'static str,
    /// The arguments that print its version.
    version_arguments: &'static [&'static str],
}

const fn peer(program: &'static str, package: &'static str, version_arguments: &'static [&'static str]) -> Peer {
    Peer { program, package, version_arguments }
}

const PEERS: [Peer; 24] = [
    peer("git", "git", &["--version"]),
    // sshd has no option for its version, but prints it in the error about an unknown option.
    peer("sshd", "openssh-server", &["-V"]),
    peer("ssh", "openssh-client", &["-V"]),
    peer("nginx", "nginx", &["-v"]),
    peer("redis-server", "redis-server", &["--version"]),
    peer("haproxy", "haproxy", &["-v"]),
    peer("prometheus", "prometheus", &["--version"]),
    peer("wrk", "wrk", &["-v"]),
    peer("h2load", "nghttp2-client", &["--version"]),
    peer("python3", "python3", &["--version"]),
    peer("node", "nodejs", &["--version"]),
    peer("javac", "default-jdk-headless", &["-version"]),
    peer("curl", "curl", &["--version"]),
    // The program without the service that the package `dnsmasq` would start.
    peer("dnsmasq", "dnsmasq-base", &["--version"]),
    peer("strace", "strace", &["-V"]),
    peer("rsyslogd", "rsyslog", &["-v"]),
    peer("dumb-init", "dumb-init", &["--version"]),
    peer("tini", "tini", &["--version"]),
    // Containers and Pods: podman runs them by conmon and runc, catatonit is a Pod's first process.
    peer("podman", "podman", &["--version"]),
    peer("conmon", "conmon", &["--version"]),
    peer("runc", "runc", &["--version"]),
    peer("catatonit", "catatonit", &["--version"]),
    // The app of those Pods, since no registry may be available.
    peer("busybox", "busybox-static", &["--help"]),
    peer("systemd-analyze", "systemd", &["--version"]),
];

/// The units of these packages. If systemd runs, units of packages that this task installed are disabled, so that the next boot
/// does not start them either.
const UNITS: [(&str, &str); 9] = [
    ("openssh-server", "ssh.service"),
    ("nginx", "nginx.service"),
    ("redis-server", "redis-server.service"),
    ("haproxy", "haproxy.service"),
    ("prometheus", "prometheus.service"),
    ("rsyslog", "rsyslog.service"),
    ("podman", "podman.socket"),
    ("podman", "podman-auto-update.timer"),
    ("podman", "podman-restart.service"),
];

/// Debian runs this program before it starts a service; exit code 101 denies the start.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_BACKUP: &str = "/usr/sbin/policy-rc.d.before-outrigger-peers";
const POLICY_TEXT: &str = "#!/bin/sh\n# outrigger peers: removed when the installation ends\nexit 101\n";

pub fn install(directory: &Path) -> Vec<Line> {
    let missing: Vec<&'static str> = missing_packages();
    let reason = match missing.is_empty() {
        true => String::new(),
        false => install_packages(&missing, &directory.join("apt.log")).err().unwrap_or_default(),
    };
    prepare_sshd();
    PEERS.iter().map(|peer| line(peer, &reason)).collect()
}

fn line(peer: &Peer, reason: &str) -> Line {
    let found = match shell::find(peer.program) {
        Some(path) => Ok((path, peer.version_arguments)),
        None if reason.is_empty() => Err(format!("package {} has no such program", peer.package)),
        None => Err(reason.to_string()),
    };
    Line { name: peer.program, found }
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<_> =
        PEERS.iter().filter(|peer| shell::find(peer.program).is_none()).map(|peer| peer.package).collect();
    if !python_creates_environments() {
        missing.push("python3-venv");
    }
    missing
}

/// Debian ships Python without the module that installs pip into a new virtual environment.
fn python_creates_environments() -> bool {
    // An existing environment proves it, without the cost of starting Python.
    super::python::environment_exists()
        || shell::find("python3").is_some_and(|python| {
            Command::new(python)
                .args(["-c", "import venv, ensurepip"])
                .stderr(std::process::Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
}

fn install_packages(missing: &[&str], log: &Path) -> Result<(), String> {
    let by_hand = format!("install by hand: apt-get install --no-install-recommends {}", missing.join(" "));
    if shell::find("apt-get").is_none() {
        return Err(format!("no apt-get on this machine; {by_hand}"));
    }
    if !is_root() {
        return Err(format!("not root; {by_hand}"));
    }
    eprintln!("peers: installing {} (log: {})", missing.join(" "), log.display());
    let _no_service_starts = NoServiceStarts::begin()?;
    let outcome = install_all_or_each(missing, log);
    disable_units(missing);
    outcome
}

/// One apt run is fast; if it fails twice, packages are installed one by one, so that a bad package affects only itself.
fn install_all_or_each(missing: &[&str], log: &Path) -> Result<(), String> {
    for _attempt in 0..2 {
        // Lists may be old or missing; the install that follows reports a failed update.
        let _ = apt(&["update"], log);
        if apt_install(missing, log).is_ok() {
            return Ok(());
        }
    }
    let failures: Vec<_> = missing
        .iter()
        .filter_map(|package| apt_install(&[package], log).err().map(|why| format!("{package}: {why}")))
        .collect();
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("; ")),
    }
}

fn apt_install(packages: &[&str], log: &Path) -> Result<(), String> {
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(packages);
    apt(&words, log)
}

fn apt(words: &[&str], log: &Path) -> Result<(), String> {
    let output = Command::new("apt-get")
        .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confold"])
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .map_err(|error| format!("apt-get could not be started: {error}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let entry = format!("{}\n{stderr}", String::from_utf8_lossy(&output.stdout));
    // The log is a convenience; the reason below does not depend on it.
    let _ = fs::write(log, entry);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("apt-get {} failed: {}", words[0], tail(&stderr))),
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|facts| facts.uid() == 0)
}

/// sshd does not start without this directory, which only its service would create.
fn prepare_sshd() {
    if is_root() && shell::find("sshd").is_some() && !Path::new("/run/sshd").exists() {
        // If this fails, sshd's own message reports the missing directory.
        let _ = fs::create_dir_all("/run/sshd");
    }
}

/// While this value exists, Debian starts no service; when dropped, it restores the machine's own policy.
struct NoServiceStarts;

impl NoServiceStarts {
    fn begin() -> Result<Self, String> {
        // A run that was killed may have left this policy in place, with the machine's own one in the backup.
        let is_stale = fs::read_to_string(POLICY).is_ok_and(|text| text == POLICY_TEXT);
        if !is_stale && Path::new(POLICY).exists() {
            fs::rename(POLICY, POLICY_BACKUP).map_err(|error| format!("cannot rename {POLICY}: {error}"))?;
        }
        let guard = Self;
        fs::write(POLICY, POLICY_TEXT)
            .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
            .map_err(|error| format!("cannot write {POLICY}, without which services would start: {error}"))?;
        Ok(guard)
    }
}

impl Drop for NoServiceStarts {
    fn drop(&mut self) {
        let restored = match Path::new(POLICY_BACKUP).exists() {
            true => fs::rename(POLICY_BACKUP, POLICY),
            false => fs::remove_file(POLICY),
        };
        if let Err(error) = restored {
            eprintln!("peers: cannot restore {POLICY}: {error}. help: remove it by hand");
        }
    }
}

/// Only units of packages that this run installed: a service of the user is not changed.
fn disable_units(installed: &[&str]) {
    let systemd = PathBuf::from("/run/systemd/system");
    if !systemd.exists() || shell::find("systemctl").is_none() {
        return;
    }
    let units = UNITS.iter().filter(|(package, _)| installed.contains(package)).map(|(_, unit)| unit);
    for unit in units {
        // A missing unit need not be disabled.
        let _ = Command::new("systemctl").args(["disable", "--now", unit]).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_belongs_to_a_package_of_the_table() {
        for (package, unit) in UNITS {
            assert!(PEERS.iter().any(|peer| peer.package == package), "{unit} has an unknown package: {package}");
        }
    }

    #[test]
    fn a_missing_peer_has_its_reason() {
        let absent = peer("no-such-program-anywhere", "no-such-package", &[]);
        let why = line(&absent, "not root").found.expect_err("it is not on PATH");
        assert_eq!(why, "not root");
        let why = line(&absent, "").found.expect_err("it is not on PATH");
        assert!(why.contains("no-such-package"), "{why}");
    }
}
