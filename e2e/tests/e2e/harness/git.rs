//! A git repository with an app's configuration, and the four ways to serve it: a path, `git daemon`, `git http-backend`
//! and sshd. In: a scene. Out: URLs. A commit always changes two files together, so that a reader that sees one of each
//! detects a revision that was not published atomically. Servers end with the test.

pub mod hostile;
pub mod objects;
pub mod pack_server;
pub mod relay;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::process::Running;
use super::{Outrigger, PATIENCE, Scene, fixture, get, peer, until};

pub struct Repository {
    root: PathBuf,
    work: PathBuf,
}

impl Repository {
    /// A bare repository with generation 1 on `main`; `None` if git is missing.
    pub fn create(scene: &Scene) -> Option<Self> {
        peer("git")?;
        let repository = Self { root: scene.path("git"), work: scene.path("work") };
        std::fs::create_dir_all(&repository.root).expect("the scene is writable");
        std::fs::create_dir_all(&repository.work).expect("the scene is writable");
        git(&repository.root, &["init", "--quiet", "--bare", "--initial-branch=main", "config.git"]);
        git(&repository.work, &["init", "--quiet", "--initial-branch=main", "."]);
        let bare = repository.bare().display().to_string();
        git(&repository.work, &["remote", "add", "origin", &bare]);
        repository.push(1);
        Some(repository)
    }

    pub fn bare(&self) -> PathBuf {
        self.root.join("config.git")
    }

    /// Commits and pushes a generation: two files of the directory `orders`, equal and of some size, and one outside of it.
    pub fn push(&self, generation: usize) {
        let first = format!("generation={generation:06}\n");
        let text = first.repeat(2000);
        for (name, text) in [("orders/a.conf", &text), ("orders/b.conf", &text), ("other/c.conf", &first)] {
            let path = self.work.join(name);
            std::fs::create_dir_all(path.parent().expect("the file has a parent directory"))
                .expect("the work tree is writable");
            std::fs::write(path, text).expect("the work tree is writable");
        }
        git(&self.work, &["add", "--all"]);
        git(&self.work, &["commit", "--quiet", "--message", &first]);
        git(&self.work, &["push", "--quiet", "origin", "main"]);
    }

    /// Adds an incompressible file to the directory `orders`, as part of the next push.
    pub fn add_noise(&self, bytes: u64) {
        let mut noise = Vec::new();
        let random = std::fs::File::open("/dev/urandom").expect("every system has random bytes");
        random.take(bytes).read_to_end(&mut noise).expect("random bytes do not end");
        std::fs::write(self.work.join("orders/noise"), noise).expect("the work tree is writable");
    }

    pub fn file_url(&self) -> String {
        format!("file://{}", self.bare().display())
    }

    pub fn daemon(&self, scene: &Scene) -> Option<(Running, String)> {
        let daemon = git_program("git-daemon")?;
        let port = scene.port("git_daemon");
        let base = format!("--base-path={}", self.root.display());
        let port_option = format!("--port={port}");
        let options = ["--export-all", "--reuseaddr", "--listen=127.0.0.1", &port_option, &base];
        let running = Running::start(&[&[daemon.as_str()], options.as_slice()].concat());
        await_port(port);
        Some((running, format!("git://127.0.0.1:{port}/config.git")))
    }

    pub fn http(&self, scene: &Scene) -> Option<(Running, String)> {
        let port = scene.port("git_http");
        let running = self.http_at("127.0.0.1", &port.to_string())?;
        Some((running, format!("http://127.0.0.1:{port}/config.git")))
    }

    /// The same at an address; an IPv6 address is in brackets.
    pub fn http_at(&self, address: &str, port: &str) -> Option<Running> {
        git_program("git-http-backend")?;
        let (root, bare) = (self.root.display().to_string(), address.trim_matches(['[', ']']).to_owned());
        let running = Running::start(&[super::python()?, fixture("git_http.py"), port.to_owned(), root, bare]);
        until(PATIENCE, "git over HTTP responds", || {
            let refs = get(&format!("{address}:{port}"), "/config.git/info/refs?service=git-upload-pack");
            refs.is_ok_and(|reply| reply.status == 200)
        });
        Some(running)
    }

    /// sshd on a free port with new keys. The client side is a directory with an `ssh` in it: a client that is to be accepted
    /// has this directory first in its search path.
    pub fn sshd(&self, scene: &Scene) -> Option<(Running, String)> {
        let (sshd, ssh, keygen) = (peer("sshd")?, peer("ssh")?, peer("ssh-keygen")?);
        let port = scene.port("sshd");
        for key in ["host_key", "user_key"] {
            let created =
                Command::new(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(scene.path(key)).status();
            assert!(created.is_ok_and(|status| status.success()), "ssh-keygen creates {key}");
        }
        let host_key = std::fs::read_to_string(scene.path("host_key.pub")).expect("ssh-keygen created the key");
        scene.write("known_hosts", format!("[127.0.0.1]:{port} {host_key}"));
        scene.set("ssh", ssh.display());
        let git_directory = peer("git")?.parent()?.display().to_string();
        scene.set("git_directory", git_directory);
        scene.write("sshd_config", scene.fill(SSHD_CONFIG));
        scene.write("ssh_config", scene.fill(SSH_CONFIG));
        scene.script("bin/ssh", &scene.fill("#!/bin/sh\nexec @ssh@ -F @dir@/ssh_config \"$@\"\n"));
        if rustix::process::geteuid().is_root() {
            // Debian's sshd requires this directory when root starts it; its service creates it at boot.
            std::fs::create_dir_all("/run/sshd").ok();
        }
        let running = Running::start(&[&sshd.display().to_string(), "-D", "-e", "-f", &scene.text_path("sshd_config")]);
        await_port(port);
        let user = std::process::Command::new("id").arg("-un").output().expect("id is installed").stdout;
        let user = String::from_utf8_lossy(&user).trim().to_owned();
        Some((running, format!("ssh://{user}@127.0.0.1:{port}{}", self.bare().display())))
    }
}

/// The environment in which `ssh` finds the keys of `Repository::sshd`.
pub fn search_path_with_ssh(scene: &Scene) -> String {
    format!("{}:{}", scene.path("bin").display(), std::env::var("PATH").unwrap_or_default())
}

/// What a reader finds at the published path, which it opens once: the generation if both files exist and are equal, `None`
/// if nothing is published yet, and the error otherwise.
pub fn published(to: &Path) -> Result<Option<usize>, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(directory) = openat(CWD, to, flags | OFlags::DIRECTORY, Mode::empty()) else { return Ok(None) };
    let read = |name: &str| {
        let file = openat(&directory, name, flags, Mode::empty()).map_err(|error| format!("{name}: {error}"))?;
        let mut text = String::new();
        std::fs::File::from(file).read_to_string(&mut text).map_err(|error| format!("{name}: {error}"))?;
        Ok::<String, String>(text)
    };
    let (first, second) = (read("a.conf")?, read("b.conf")?);
    if first != second {
        let starts = (first.lines().next().unwrap_or("empty"), second.lines().next().unwrap_or("empty"));
        return Err(format!("two files of different commits: {starts:?}"));
    }
    super::number_after(&first, "generation=").map(Some).ok_or_else(|| "files without a generation".to_owned())
}

/// Waits until the entry `settings` has published this generation.
#[track_caller]
pub fn await_generation(scene: &Scene, generation: usize, what: &str) {
    super::until(super::PATIENCE, &format!("generation {generation}, {what}"), || {
        published(&scene.path("out/settings")) == Ok(Some(generation))
    });
}

/// Runs git for the test itself, without the git configuration of the user that runs the tests.
pub fn git(directory: &Path, arguments: &[&str]) {
    let output = git_command(directory, arguments).output().expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn git_command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(directory).args(["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "gc.auto=0"]);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").args(arguments);
    command
}

/// The commit that is published: the last part of the link's target.
pub fn published_commit(to: &Path) -> Option<String> {
    let target = std::fs::read_link(to).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// What sync reports in the status: its health and its message. Empty if there is no response.
pub fn sync_state(outrigger: &Outrigger) -> (String, String) {
    let status: serde_json::Value = serde_json::from_str(&outrigger.get_quietly("/status")).unwrap_or_default();
    let subsystems = status["subsystems"].as_array().cloned().unwrap_or_default();
    let sync = subsystems.into_iter().find(|row| row["name"] == "sync").unwrap_or_default();
    let text = |name: &str| sync[name].as_str().unwrap_or_default().to_owned();
    (text("health"), text("message"))
}

/// Waits until sync is degraded and its message contains all of these words.
#[track_caller]
pub fn await_refusal(outrigger: &Outrigger, limit: std::time::Duration, words: &[&str]) -> String {
    let mut last = (String::new(), String::new());
    let seen = super::within(limit, || {
        last = sync_state(outrigger);
        last.0 == "degraded" && words.iter().all(|word| last.1.contains(word))
    });
    assert!(seen, "within {limit:?} sync is degraded by {words:?}; it reports {last:?}");
    last.1
}

/// One of git's own programs, from the directory of git's programs.
fn git_program(name: &str) -> Option<String> {
    let output = Command::new("git").arg("--exec-path").output().ok()?;
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let path = directory.join(name);
    path.is_file().then(|| path.display().to_string())
}

fn await_port(port: u16) {
    until(PATIENCE, "the server accepts connections", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
}

const SSHD_CONFIG: &str = "\
Port @sshd@
ListenAddress 127.0.0.1
HostKey @dir@/host_key
AuthorizedKeysFile @dir@/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
SetEnv PATH=@dir@/server:@git_directory@:/usr/bin:/bin
";

const SSH_CONFIG: &str = "\
Host *
  IdentityFile @dir@/user_key
  IdentitiesOnly yes
  UserKnownHostsFile @dir@/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
";
