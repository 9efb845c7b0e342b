//! What a compromised worker could do: fault injection tries it from inside, each attempt is denied, and all four jobs work.
//! Without the sandbox the same attempts succeed, so each denial is the sandbox's. Skipped if the kernel has no Landlock.
//! Bounded by one attempt at a time and the harness's `PATIENCE`.

use crate::harness::faults::{self, EACCES, EPERM, inject};
use crate::harness::git::{Repository, published, search_path_with_ssh};
use crate::harness::outrigger::configuration;
use crate::harness::process::is_alive;
use crate::harness::server::Server;
use crate::harness::{Exposition, LogReceiver, Outrigger, PATIENCE, Scene, Wait, fixture, get, python, until};

const NO_PEERS: &str = "python3 or git is not installed";
const NO_SSHD: &str = "sshd, ssh or ssh-keygen is not installed";
const NO_LANDLOCK: &str = "this kernel has no Landlock of version 6 or later";

/// The configuration's directory is granted for reading and the socket's for writing, so each has its own directory.
const BODY: &str = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 3s, timeout: 8s } }
state: { dir: "@dir@/state", max_bytes: 64MiB }
admin: { listen: "127.0.0.1:@admin@", socket: "@dir@/run/admin.sock" }
logs:
  sources:
    app:    { stdio: {} }
    files:  { file: { include: ["@dir@/app/*.log"], read_from: beginning } }
    late:   { file: { include: ["@dir@/late/*.log"], read_from: beginning } }
    access: { proxy: {} }
  sinks:
    out:     { http: { url: "http://@out@/lines" }, inputs: [app, files, late], batch: { max_bytes: 64KiB, max_age: 50ms } }
    records: { file: { path: "@dir@/archive/access.log" }, inputs: [access] }
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 1s } }, process: { process: { interval: 1s } }, proxy: { proxy: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
sync:
  settings:
    store: { git: { url: "@url@", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/settings" } }
    notify: [ { signal: SIGHUP } ]
proxy:
  listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } }
"#;

struct Inside {
    scene: Scene,
    repository: Repository,
    receiver: LogReceiver,
    outrigger: Outrigger,
    app: u32,
    front: String,
    /// Listens, and appears in no configuration.
    unlisted: Server,
}

/// The contents of the scene before the start, except the URL of the repository; `None` if a program is missing.
fn prepared(scene: &Scene) -> Option<(Repository, LogReceiver)> {
    python()?;
    let (repository, receiver) = (Repository::create(scene)?, LogReceiver::start());
    for directory in ["app", "archive", "out"] {
        std::fs::create_dir_all(scene.path(directory)).expect("the scene is writable");
    }
    scene.write("secret", "not for a worker\n");
    scene.set("out", receiver.address());
    scene.port("page");
    Some((repository, receiver))
}

fn start(binary: &str, scene: Scene, parts: (Repository, LogReceiver), url: &str, body: &str) -> Inside {
    let (repository, receiver) = parts;
    scene.set("url", url);
    let front = format!("127.0.0.1:{}", scene.port("front"));
    let python = python().expect("`prepared` found it");
    let (port, log, script) = (scene.port("port").to_string(), scene.text_path("app/app.log"), fixture("app.py"));
    let settings = scene.text_path("out/settings/a.conf");
    let command = [&python, &script, "--port", &port, "--log", &log, "--every", "0.02", "--settings", &settings];
    let path = search_path_with_ssh(&scene);
    let outrigger =
        Outrigger::start_binary(binary, &scene, "config/outrigger.yaml", body, &command, Wait::Ready, |command| {
            command.env("PATH", path);
        });
    let app = outrigger.app();
    Inside { scene, repository, receiver, outrigger, app, front, unlisted: Server::start(drop) }
}

impl Inside {
    /// Whether the kernel supports every restriction.
    fn is_fully_enforced(&self) -> bool {
        self.outrigger.get("/status").json()["sandbox"]["landlock_abi"].as_u64().is_some_and(|version| version >= 6)
    }

    /// Each attempt with the error that denies it.
    fn attempts(&self) -> Vec<(String, &'static str)> {
        let (app, supervisor) = (self.app, self.outrigger.pid());
        let port = self.unlisted.address().rsplit(':').next().map(str::to_owned).expect("an address has a port");
        let file = |action: &str, name: &str| (format!("{action} {}", self.scene.text_path(name)), EACCES);
        vec![
            ("read /etc/shadow".into(), EACCES),
            ("list /".into(), EACCES),
            file("read", "secret"),
            file("list", "."),
            file("write", "stolen"),
            file("write", "config/outrigger.yaml"),
            file("write", "app/app.log"),
            // Opening a process's memory or environment requires ptrace access (ptrace(2), proc_pid_mem(5)).
            (format!("open /proc/{app}/mem"), EACCES),
            (format!("read /proc/{app}/environ"), EACCES),
            (format!("open /proc/{supervisor}/mem"), EACCES),
            (format!("connect {port}"), EACCES),
            (format!("listen {}", self.scene.port("unused")), EACCES),
            (format!("kill {app}"), EPERM),
            (format!("kill {supervisor}"), EPERM),
            ("socket raw".into(), EPERM),
            ("socket packet".into(), EPERM),
            ("socket netlink".into(), EPERM),
        ]
    }

    #[track_caller]
    fn assert_denied(&self, more: &[(&str, &str)]) {
        let attempts = self.attempts();
        let attempts = attempts.iter().map(|(line, error)| (line.as_str(), *error)).chain(more.iter().copied());
        let wrong: Vec<String> = attempts
            .filter_map(|(line, error)| {
                let result = inject(&self.scene, line);
                (result != error).then(|| format!("`{line}`: {result}, expected {error}"))
            })
            .collect();
        assert_eq!(wrong, Vec::<String>::new());
        assert!(!self.scene.path("stolen").exists());
    }

    /// All four jobs do their work.
    #[track_caller]
    fn assert_all_jobs_work(&self) {
        let Inside { scene, repository, receiver, outrigger, front, .. } = self;
        let newest = |mark: &str| receiver.numbers(mark).into_iter().max();
        let before = (newest("app n="), newest("file n="));
        until(PATIENCE, "new lines of stdout and of the file arrive", || {
            newest("app n=") > before.0 && newest("file n=") > before.1
        });
        until(PATIENCE, "the app responds through the proxy", || {
            get(front, "/health").is_ok_and(|reply| reply.status == 200)
        });
        until(PATIENCE, "requests are recorded", || {
            std::fs::read_to_string(scene.path("archive/access.log")).is_ok_and(|text| text.contains("/health"))
        });
        let page = format!("127.0.0.1:{}", scene.value("page"));
        until(PATIENCE, "the app and its process are scraped", || {
            let page = Exposition::of(&page);
            page.is_some_and(|page| {
                let has = |name: &str| page.value(name).is_some_and(|value| value > 0.0);
                has("shop_queue_depth")
                    && has("process_memory_usage_bytes")
                    && has("process_unix_file_descriptor_count")
            })
        });
        repository.push(2);
        until(PATIENCE, "the push is published", || published(&scene.path("out/settings")) == Ok(Some(2)));
        until(PATIENCE, "the app receives its signal", || {
            outrigger.stdout.contains("app reloaded with generation=000002")
        });
    }

    #[track_caller]
    fn finish(self) {
        assert!(is_alive(self.app));
        let exit = self.outrigger.finish();
        assert_eq!(exit.code, 5, "{}", exit.stderr);
    }
}

/// Guarantee: sandbox-denies-the-rest
#[test]
fn unneeded_access_is_denied_and_all_jobs_work() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let scene = Scene::new();
    let parts = need!(prepared(&scene), NO_PEERS);
    let url = parts.0.file_url();
    let inside = start(&binary, scene, parts, &url, BODY);
    need!(inside.is_fully_enforced().then_some(()), NO_LANDLOCK);
    inside.assert_denied(&[("read /etc/passwd", EACCES), ("exec /bin/sh", EPERM), ("exec /usr/bin/env", EPERM)]);
    inside.assert_all_jobs_work();
    assert_enforced(&inside);
    inside.finish();
}

/// If ssh is needed, programs may run: only those that are listed, with all that they need, and under the same limits.
#[test]
fn a_git_store_over_ssh_allows_no_other_program() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let scene = Scene::new();
    let parts = need!(prepared(&scene), NO_PEERS);
    let (sshd, url) = need!(parts.0.sshd(&scene), NO_SSHD);
    // The test's ssh is a script with keys in the scene; the system's ssh needs no such entries.
    let dir = scene.text_path("");
    let keys = ["ssh_config", "known_hosts", "user_key", "user_key.pub", "bin"]
        .map(|name| format!("\"{dir}{name}\""))
        .join(", ");
    let ssh = scene.value("ssh");
    let body = format!("{BODY}sandbox: {{ allow_read: [{keys}, \"{ssh}\"] }}\n");
    let inside = start(&binary, scene, parts, &url, &body);
    need!(inside.is_fully_enforced().then_some(()), NO_LANDLOCK);
    inside.assert_denied(&[("exec /usr/bin/env", EACCES)]);
    inside.assert_all_jobs_work();
    assert_enforced(&inside);
    inside.finish();
    sshd.stop();
}

#[test]
fn without_the_sandbox_the_same_attempts_succeed() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let scene = Scene::new();
    let parts = need!(prepared(&scene), NO_PEERS);
    let url = parts.0.file_url();
    let body = format!("{BODY}sandbox: {{ enabled: false }}\n");
    let inside = start(&binary, scene, parts, &url, &body);
    assert!(inside.outrigger.get("/status").json()["sandbox"].is_null());
    let is_root = rustix::process::geteuid().is_root();
    let mut attempts: Vec<String> = inside.attempts().into_iter().map(|(line, _)| line).collect();
    attempts.push("exec /bin/sh".into());
    // Excluded: what only root may do, and what would change the test itself.
    attempts
        .retain(|line| is_root || !(line.starts_with("socket") || line.contains("/proc/") || line.contains("shadow")));
    attempts.retain(|line| !line.starts_with("write") || line.ends_with("stolen"));
    let denied: Vec<String> = attempts.into_iter().filter(|line| inject(&inside.scene, line) != "done").collect();
    assert_eq!(denied, Vec::<String>::new());
    assert!(inside.scene.path("stolen").exists());
    assert!(inside.outrigger.stderr.contains("the sandbox is off by configuration"));
    inside.finish();
}

/// /status and the kernel report the same about the process.
#[track_caller]
fn assert_enforced(inside: &Inside) {
    let sandbox = inside.outrigger.get("/status").json()["sandbox"].clone();
    for part in
        ["filesystem", "tcp", "signals", "seccomp", "no_new_privs", "capabilities_dropped", "core_dumps_disabled"]
    {
        assert_eq!(sandbox[part], true, "{part}: {sandbox}");
    }
    assert_eq!(sandbox["missing"].as_array().map(Vec::len), Some(0), "{sandbox}");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", inside.outrigger.worker())).expect("the worker runs");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
}

#[test]
fn a_new_worker_reads_a_directory_created_later() {
    let scene = Scene::new();
    let parts = need!(prepared(&scene), NO_PEERS);
    let url = parts.0.file_url();
    let inside = start(&crate::harness::outrigger::binary(), scene, parts, &url, BODY);
    let worker = inside.outrigger.worker();
    let absent = inside.outrigger.get("/status").json()["sandbox"]["absent_paths"].to_string();
    assert!(absent.contains("/late"), "/status lists the missing path: {absent}");
    inside.scene.write("late/a.log", "late n=000001\n");
    until(PATIENCE, "its lines arrive", || inside.receiver.numbers("late n=") == [1]);
    until(PATIENCE, "another worker reads it, since a sandbox cannot be extended", || !is_alive(worker));
    inside.assert_all_jobs_work();
    inside.finish();
}

/// Some scripts clear a log directory by removing and re-creating it; the sandbox granted the previous directory only.
#[test]
fn a_recreated_directory_is_read() {
    let scene = Scene::new();
    let parts = need!(prepared(&scene), NO_PEERS);
    let url = parts.0.file_url();
    std::fs::create_dir_all(scene.path("late")).expect("the scene is writable");
    let inside = start(&crate::harness::outrigger::binary(), scene, parts, &url, BODY);
    inside.scene.write("late/a.log", "late n=000001\n");
    until(PATIENCE, "its lines arrive", || inside.receiver.numbers("late n=") == [1]);
    std::fs::remove_dir_all(inside.scene.path("late")).expect("the test created it");
    inside.scene.write("late/b.log", "late n=000002\n");
    until(PATIENCE, "lines of the new directory arrive", || inside.receiver.numbers("late n=") == [1, 2]);
    inside.finish();
}

/// A file that is mounted or renamed over the configuration is still read: the sandbox grants its directory.
#[test]
fn a_configuration_replaced_by_rename_is_read() {
    let scene = Scene::new();
    let parts = need!(prepared(&scene), NO_PEERS);
    let url = parts.0.file_url();
    let inside = start(&crate::harness::outrigger::binary(), scene, parts, &url, BODY);
    let text = configuration(&inside.scene, &BODY.replace("drain_timeout: 1s", "drain_timeout: 1500ms"));
    let newer = inside.scene.write("config/newer", text);
    std::fs::rename(newer, inside.scene.path("config/outrigger.yaml")).expect("both are in one directory");
    until(PATIENCE, "the new configuration is served", || inside.outrigger.get_quietly("/config").contains("1500ms"));
    inside.finish();
}

/// What the supervisor relies on, the plan of the app and the last good configuration, cannot be changed by any worker that holds
/// it open: a program or a text from inside a sandbox would be a sandbox escape.
#[test]
fn workers_cannot_write_the_supervisors_inputs() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "app: { restart: { policy: on_failure } }\n", &["sleep", "300"]);
    let trusted = ["outrigger-plan", "outrigger-text", "outrigger-good"];
    for round in ["at first", "after an upgrade"] {
        let mut seen = 0;
        for pid in [outrigger.pid(), outrigger.worker()] {
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs").flatten() {
                let name = std::fs::read_link(entry.path()).unwrap_or_default().display().to_string();
                if !trusted.iter().any(|trusted| name.contains(trusted)) {
                    continue;
                }
                seen += 1;
                let opened = std::fs::File::options().write(true).open(entry.path());
                let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, b"app: {}"));
                assert!(written.is_err(), "{round}: {name} of process {pid} can be written");
            }
        }
        assert!(seen > 0, "at least one trusted file is open");
        let worker = outrigger.worker();
        assert_eq!(crate::harness::outrigger::upgrade(&scene, None).0, 0);
        outrigger.await_other(worker, PATIENCE);
    }
    outrigger.finish();
}
