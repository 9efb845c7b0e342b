//! Containers and Pods of a test, by podman with runc, separate from everything else of podman on this machine: it has its
//! own images, containers, networks and locks, all inside the scene. In: a scene. Out: exit codes, output and addresses.
//! Limits: one test at a time has containers, and all of them end with it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::outrigger::binary;
use super::process::Running;
use super::{SECOND, Scene, peer, until, workspace};

/// Enough for a build that copies the program into an image, on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(120);

pub const NO_PODMAN: &str = "podman, runc, catatonit, busybox or root is missing, or no container can be run here";

/// The image of the product, as built from `deploy/container/Containerfile`.
pub const IMAGE: &str = "localhost/outrigger:e2e";
/// The image of the Pod's app: a static busybox, a script and two files to serve.
pub const APP_IMAGE: &str = "localhost/outrigger-e2e-app:latest";

pub struct Podman {
    program: PathBuf,
    directory: PathBuf,
    network: String,
    _exclusive: MutexGuard<'static, ()>,
}

impl Podman {
    /// Builds both images; `None` if containers cannot be run.
    pub fn start(scene: &Scene) -> Option<Self> {
        // Two concurrent tests would choose the same free bridge and subnet for their networks.
        static EXCLUSIVE: Mutex<()> = Mutex::new(());
        let exclusive = EXCLUSIVE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Without root a Pod has another network, and files of other users cannot be created for it.
        let program = peer("podman").filter(|_| rustix::process::geteuid().is_root())?;
        let (_runtime, _first, busybox) = (peer("runc")?, peer("catatonit")?, peer("busybox")?);
        let directory = scene.path("podman");
        scene.write("podman/containers.conf", scene.fill(CONTAINERS_CONF));
        std::fs::create_dir_all(directory.join("cni")).expect("the scene is writable");
        let network = format!("e2e-{}", directory.display()).replace(['/', '.'], "-");
        let podman = Self { program, directory, network, _exclusive: exclusive };
        if let Err(why) = podman.try_app(scene, &busybox) {
            eprintln!("podman cannot run a container here: {why}");
            return None;
        }
        podman.build_product(scene, IMAGE, &[]);
        Some(podman)
    }

    /// Builds the product's image from a directory that contains only the program, and returns the image's id.
    pub fn build_product(&self, scene: &Scene, tag: &str, options: &[&str]) -> String {
        // Once only: a second image of the same file must be the same image.
        if !scene.path("image-context/outrigger").exists() {
            scene.program("image-context/outrigger", binary());
        }
        let recipe = workspace().join("deploy/container/Containerfile").display().to_string();
        let context = scene.text_path("image-context");
        // No cache: it does not detect that a build argument for a label has changed.
        let fixed = ["build", "--quiet", "--no-cache", "--timestamp=0", "--identity-label=false"];
        let fixed = [fixed.as_slice(), &["--tag", tag, "--file", &recipe]].concat();
        self.run(&[fixed.as_slice(), options, &[context.as_str()]].concat()).trim().to_owned()
    }

    /// Builds the app's image and runs it once: this fails on a machine without the privileges for containers.
    fn try_app(&self, scene: &Scene, busybox: &std::path::Path) -> Result<(), String> {
        let fixtures = workspace().join("e2e/fixtures/pod");
        let context = scene.path("app-context");
        scene.program("app-context/busybox", busybox);
        for name in ["Containerfile", "app.sh", "index.html", "metrics"] {
            std::fs::copy(fixtures.join(name), context.join(name)).expect("the fixture can be copied");
        }
        let context = context.display().to_string();
        let build: &[&str] = &["build", "--quiet", "--timestamp=0", "--tag", APP_IMAGE, &context];
        let run: &[&str] = &["run", "--rm", "--network=none", APP_IMAGE, "-c", "exit 9"];
        for (words, expected) in [(build, 0), (run, 9)] {
            let (code, stdout, stderr) = self.try_run(words);
            if code != expected {
                return Err(format!("podman {words:?} exited with {code}: {stdout}{stderr}"));
            }
        }
        Ok(())
    }

    /// The address of this machine for the Pods of this test, on their own network.
    pub fn gateway(&self) -> String {
        self.run(&["network", "create", &self.network]);
        let shown = self.run(&["network", "inspect", &self.network]);
        let networks: serde_json::Value = serde_json::from_str(&shown).unwrap_or_else(|why| panic!("{why}: {shown}"));
        let found = networks[0]["subnets"][0]["gateway"].as_str();
        found.unwrap_or_else(|| panic!("a network with a gateway: {shown}")).to_owned()
    }

    /// Starts the Pod of a Kubernetes manifest, in the network of this test.
    pub fn play(&self, manifest: &std::path::Path) {
        let manifest = manifest.display().to_string();
        self.run(&["kube", "play", "--network", &self.network, "--log-driver=k8s-file", &manifest]);
    }

    pub fn down(&self, manifest: &std::path::Path) {
        self.run(&["kube", "down", &manifest.display().to_string()]);
    }

    /// The output of a container so far, stdout and stderr.
    pub fn logs(&self, container: &str) -> String {
        let (_, stdout, stderr) = self.try_run(&["logs", container]);
        stdout + &stderr
    }

    pub fn is_running(&self, container: &str) -> bool {
        let (_, state, _) = self.try_run(&["inspect", "--format={{.State.Running}}", container]);
        state.trim() == "true"
    }

    /// Waits until a container exits and returns its exit code.
    #[track_caller]
    pub fn exit_code(&self, container: &str, limit: Duration) -> i32 {
        until(limit, &format!("{container} exits"), || !self.is_running(container));
        let code = self.run(&["inspect", "--format={{.State.ExitCode}}", container]);
        code.trim().parse().unwrap_or_else(|_| panic!("the exit code of {container} is a number: {code}"))
    }

    /// Runs podman until it exits and returns its stdout; any failure fails the test.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.try_run(arguments);
        assert_eq!(code, 0, "podman {arguments:?}: {stdout}{stderr}");
        stdout
    }

    #[track_caller]
    pub fn try_run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut running = self.spawn(arguments);
        let code = running.wait(LIMIT);
        (code, running.stdout.text(), running.stderr.text())
    }

    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(&self.program);
        let inside = |name: &str| self.directory.join(name);
        command.arg("--root").arg(inside("root")).arg("--runroot").arg(inside("run"));
        // vfs leaves no mount, however a test ends.
        command.arg("--tmpdir").arg(inside("tmp")).arg("--storage-driver=vfs").args(arguments);
        command.env("CONTAINERS_CONF", inside("containers.conf"));
        Running::spawn(command)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (_, names, _) = self.try_run(&["ps", "--all", "--format={{.Names}}"]);
            for name in names.split_whitespace() {
                let logs = self.logs(name);
                let lines: Vec<&str> = logs.lines().collect();
                eprintln!("--- {name}:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
        // Errors are ignored: what does not exist any more needs no removal.
        for words in [
            ["pod", "rm", "--all", "--force", "--time=1"].as_slice(),
            &["rm", "--all", "--force", "--time=1", "--volumes"],
            &["network", "rm", "--force", &self.network],
        ] {
            let mut running = self.spawn(words);
            super::within(60 * SECOND, || running.ended().is_some());
        }
        // The address leases of the network, which its plugin does not remove.
        std::fs::remove_dir_all(PathBuf::from("/var/lib/cni/networks").join(&self.network)).ok();
    }
}

/// cgroupfs, since systemd runs on few machines that run tests; explicit limits, since the defaults are higher than a
/// container inside a container may request; locks in files, since those in shared memory are shared by the machine.
const CONTAINERS_CONF: &str = "\
[containers]
default_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]
log_driver = \"k8s-file\"
[engine]
runtime = \"runc\"
cgroup_manager = \"cgroupfs\"
events_logger = \"file\"
lock_type = \"file\"
[network]
network_config_dir = \"@dir@/podman/cni\"
";
