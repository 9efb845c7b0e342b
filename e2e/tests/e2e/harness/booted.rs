//! A real systemd as PID 1 of its own namespaces, with the units of `deploy/systemd` and no others. In: a scene, drop-ins
//! and files. Out: systemctl, properties and the process id of a unit. It shares this machine's network, so that a test
//! reaches the listeners of a unit; it writes only to memory, which is released when it exits.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::outrigger::binary;
use super::process::{Running, children};
use super::{PATIENCE, SECOND, Scene, fixture, peer, until, within, workspace};

pub const NO_SYSTEMD: &str = "systemd cannot be started in its own namespaces: not root, or a program is missing";

/// The targets on which the units of `deploy/` depend, by name or by default.
const TARGETS: [&str; 7] = ["e2e", "sysinit", "basic", "shutdown", "multi-user", "network-online", "umount"];

pub struct Booted {
    running: Running,
    /// PID 1 of the namespaces, by its process id outside of them.
    init: u32,
    cgroup: PathBuf,
}

impl Booted {
    /// Boots with the units, the program, and the contents of the scene's directory `files`; `None` if that is not possible.
    pub fn start(scene: &Scene) -> Option<Self> {
        let unshare = peer("unshare")?;
        for program in ["nsenter", "pivot_root", "systemctl", "systemd-sysusers"] {
            peer(program)?;
        }
        if !rustix::process::geteuid().is_root() || !Path::new("/lib/systemd/systemd").exists() {
            return None;
        }
        install_files(scene);
        let cgroup = create_cgroup(scene)?;
        // The shell first moves itself into the new control group, so that the cgroup namespace has it as its root.
        let script = "echo 0 > \"$0/cgroup.procs\"; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&cgroup).arg(unshare);
        command.args(["--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup", "--kill-child", "sh"]);
        command.arg(fixture("systemd/boot.sh")).arg(scene.path("boot"));
        let mut booted = Self { running: Running::spawn(command), init: 0, cgroup };
        let up = within(PATIENCE, || booted.is_up());
        if !up {
            eprintln!("systemd did not come up: {}", booted.running.stderr.text());
        }
        up.then_some(booted)
    }

    fn is_up(&mut self) -> bool {
        let Some(init) = children(self.running.pid()).into_iter().find(|child| child.name == "systemd") else {
            return self.running.ended().is_some_and(|_| false);
        };
        self.init = init.pid;
        let (_, state, _) = self.enter(&["systemctl", "is-system-running"]);
        ["running", "degraded"].contains(&state.trim())
    }

    /// Runs a program inside the namespaces: exit code, stdout, stderr.
    #[track_caller]
    pub fn enter(&self, command: &[&str]) -> (i32, String, String) {
        let target = format!("--target={}", self.init);
        let enter = ["nsenter", &target, "--mount", "--pid", "--cgroup", "--"];
        super::process::run_to_end(&[enter.as_slice(), command].concat(), 3 * PATIENCE)
    }

    #[track_caller]
    pub fn systemctl(&self, arguments: &[&str]) {
        let (code, stdout, stderr) = self.enter(&[&["systemctl"], arguments].concat());
        assert_eq!(code, 0, "systemctl {arguments:?}: {stdout}{stderr}\n{}", self.report());
    }

    /// A property of a unit, as `systemctl show` prints it.
    #[track_caller]
    pub fn show(&self, unit: &str, property: &str) -> String {
        let (_, value, stderr) = self.enter(&["systemctl", "show", "--value", "--property", property, unit]);
        assert!(stderr.is_empty(), "{stderr}");
        value.trim().to_owned()
    }

    #[track_caller]
    pub fn number(&self, unit: &str, property: &str) -> u64 {
        let value = self.show(unit, property);
        value.parse().unwrap_or_else(|_| panic!("{property} of {unit} is a number: {value}"))
    }

    /// The unit's main process, by its process id outside of the namespaces.
    #[track_caller]
    pub fn main_process(&self, unit: &str) -> u32 {
        let inside = self.number(unit, "MainPID");
        let outside = super::process::descendants(self.init).into_iter().find(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or("");
            ids.split_whitespace().last() == Some(&inside.to_string())
        });
        outside.unwrap_or_else(|| panic!("{unit} has a main process {inside}"))
    }

    /// How the runs of all units have ended so far, as `result code status`.
    pub fn ends(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("/run/units.log")).unwrap_or_default();
        log.lines().filter_map(|line| line.strip_prefix("ended: ").map(str::to_owned)).collect()
    }

    /// The path of a file inside the namespaces, for this process.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// The output of the units, and that of systemd itself.
    pub fn report(&self) -> String {
        let log = std::fs::read_to_string(self.path("/run/units.log")).unwrap_or_default();
        format!("{log}--- systemd:\n{}", self.running.stderr.text())
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() && self.init != 0 {
            eprintln!("--- units:\n{}", self.report());
        }
        if self.init != 0 {
            // When PID 1 exits, the kernel kills every process of the namespace (pid_namespaces(7)).
            super::process::send_signal(self.init, super::process::Signal::KILL);
        }
        within(5 * SECOND, || self.running.ended().is_some());
        // Empty once all its processes have exited; a directory that is not removed holds nothing.
        within(5 * SECOND, || remove_cgroup(&self.cgroup));
    }
}

/// Output to a file, followed by how each run of the unit ended: systemd unloads a unit once it has stopped.
const DROP_IN: &str = "\
[Service]
StandardOutput=append:/run/units.log
StandardError=append:/run/units.log
ExecStopPost=/bin/sh -c 'echo \"ended: $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS\"'
";

/// The units as shipped, each with one drop-in that sends its output to a file: there is no journal here.
fn install_files(scene: &Scene) {
    for directory in ["mem", "root"] {
        std::fs::create_dir_all(scene.path("boot").join(directory)).expect("the scene is writable");
    }
    let copy = |from: &Path, to: &str| {
        let text = std::fs::read(from).unwrap_or_else(|why| panic!("{}: {why}", from.display()));
        scene.write(&format!("boot/files/{to}"), text)
    };
    for target in TARGETS {
        copy(Path::new(&fixture("systemd/target")), &format!("etc/systemd/e2e/{target}.target"));
    }
    let deploy = workspace().join("deploy/systemd");
    for unit in ["outrigger.service", "outrigger@.service"] {
        copy(&deploy.join(unit), &format!("etc/systemd/e2e/{unit}"));
        scene.write(&format!("boot/files/etc/systemd/e2e/{unit}.d/10-output.conf"), DROP_IN);
    }
    copy(&deploy.join("outrigger.sysusers"), "usr/lib/sysusers.d/outrigger.conf");
    scene.program("boot/files/usr/local/bin/outrigger", binary());
}

/// A control group below that of the test in the hierarchy that systemd uses (version 2, even if version 1 has the controllers).
fn create_cgroup(scene: &Scene) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let boot = scene.path("boot");
    let name = boot.parent()?.file_name()?;
    let group = Path::new(mount.split(' ').nth(4)?).join(own).join(name);
    std::fs::create_dir(&group).ok()?;
    Some(group)
}

fn remove_cgroup(group: &Path) -> bool {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    std::fs::remove_dir(group).is_ok() || !group.exists()
}

/// Waits until a unit is in this state.
#[track_caller]
pub fn await_state(booted: &Booted, unit: &str, state: &str) {
    until(PATIENCE, &format!("{unit} is {state}"), || booted.show(unit, "ActiveState") == state);
}
