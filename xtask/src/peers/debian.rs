//! Peers that Debian packages, installed through apt when this is root on Debian.
//! In: the table below. Out: for each peer its program, or why it is missing.
//! Bound: a program that is already there is never touched, whoever installed it; nothing that apt installs is started.

use super::{Line, tail};
use crate::shell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Peer {
    /// The program that tests start.
    program: &'static str,
    /// The package that brings it.
    package: &'static str,
    /// What makes it say its version.
    question: &'static [&'static str],
}

const fn peer(program: &'static str, package: &'static str, question: &'static [&'static str]) -> Peer {
    Peer { program, package, question }
}

const PEERS: [Peer; 24] = [
    peer("git", "git", &["--version"]),
    // sshd has no question for its version, but tells it in the complaint about a wrong one.
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
    // The app of those Pods, since no image can be assumed to be had.
    peer("busybox", "busybox-static", &["--help"]),
    peer("systemd-analyze", "systemd", &["--version"]),
];

/// The units these packages bring. Where systemd runs, one that came with a package of ours is disabled, so that the
/// next boot does not start it either.
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

/// Debian asks this program before it starts a service; 101 means no.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_ASIDE: &str = "/usr/sbin/policy-rc.d.before-outrigger-peers";
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
        Some(path) => Ok((path, peer.question)),
        None if reason.is_empty() => Err(format!("package {} brought no such program", peer.package)),
        None => Err(reason.to_string()),
    };
    Line { name: peer.program, found }
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<_> =
        PEERS.iter().filter(|peer| shell::find(peer.program).is_none()).map(|peer| peer.package).collect();
    if !python_makes_environments() {
        missing.push("python3-venv");
    }
    missing
}

/// Debian ships Python without the module that fills a new virtual environment with pip.
fn python_makes_environments() -> bool {
    // An environment that stands already proves it, without the cost of starting Python.
    super::python::environment_stands()
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

/// All at once is fast; when that fails twice, one by one, so that one bad package costs only itself.
fn install_all_or_each(missing: &[&str], log: &Path) -> Result<(), String> {
    for _attempt in 0..2 {
        // Lists may be old or absent; a failed update is told by the install that follows it.
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
    // The log is a convenience; without it the reason below still stands.
    let _ = fs::write(log, entry);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("apt-get {} failed: {}", words[0], tail(&stderr))),
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|facts| facts.uid() == 0)
}

/// sshd refuses to start without this directory, which only its service would make.
fn prepare_sshd() {
    if is_root() && shell::find("sshd").is_some() && !Path::new("/run/sshd").exists() {
        // Where this fails, sshd's own message says what it misses.
        let _ = fs::create_dir_all("/run/sshd");
    }
}

/// While it lives, Debian starts no service; dropped, the machine's own policy stands again.
struct NoServiceStarts;

impl NoServiceStarts {
    fn begin() -> Result<Self, String> {
        // A run that was killed may have left ours behind, and the machine's own one aside.
        let left_behind = fs::read_to_string(POLICY).is_ok_and(|text| text == POLICY_TEXT);
        if !left_behind && Path::new(POLICY).exists() {
            fs::rename(POLICY, POLICY_ASIDE).map_err(|error| format!("cannot put {POLICY} aside: {error}"))?;
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
        let restored = match Path::new(POLICY_ASIDE).exists() {
            true => fs::rename(POLICY_ASIDE, POLICY),
            false => fs::remove_file(POLICY),
        };
        if let Err(error) = restored {
            eprintln!("peers: {POLICY} could not be put back: {error}. help: remove it by hand");
        }
    }
}

/// Only units of packages that this run installed: a service that a person runs stays theirs.
fn disable_units(installed: &[&str]) {
    let systemd = PathBuf::from("/run/systemd/system");
    if !systemd.exists() || shell::find("systemctl").is_none() {
        return;
    }
    let units = UNITS.iter().filter(|(package, _)| installed.contains(package)).map(|(_, unit)| unit);
    for unit in units {
        // A unit that is not there needs no disabling.
        let _ = Command::new("systemctl").args(["disable", "--now", unit]).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 9
    #[test]
    fn every_unit_belongs_to_a_package_of_the_table() {
        for (package, unit) in UNITS {
            assert!(PEERS.iter().any(|peer| peer.package == package), "{unit} is of no package: {package}");
        }
    }

    /// covers: foundation 9
    #[test]
    fn a_missing_peer_says_why() {
        let absent = peer("no-such-program-anywhere", "no-such-package", &[]);
        let why = line(&absent, "not root").found.expect_err("it is not on PATH");
        assert_eq!(why, "not root");
        let why = line(&absent, "").found.expect_err("it is not on PATH");
        assert!(why.contains("no-such-package"), "{why}");
    }
}
