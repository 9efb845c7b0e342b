//! A real Pod: an app and Outrigger in two containers that share a network and a volume, run from a Kubernetes manifest
//! by podman, with the image from `deploy/`. In: lines, samples, configuration and requests. Out: all four jobs, the stop
//! order and the end of a Job. Bounded by the deadlines in the Pod's configuration.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::harness::git::{Repository, published};
use crate::harness::podman::{NO_PODMAN, Podman};
use crate::harness::{
    Answer, Exposition, LogReceiver, PATIENCE, SECOND, Scene, assert_counts_up, fixture, get, ledger_balances, until,
};

/// A started Pod, and the receiver outside it.
struct Pod {
    // Dropped before the bridge that it listens on.
    receiver: LogReceiver,
    podman: Podman,
    manifest: PathBuf,
    repository: Repository,
    name: String,
}

impl Pod {
    /// `None` if containers cannot be run. The environment is the app's: `{ name: A, value: "b" }`.
    fn start(scene: &Scene, environment: &str) -> Option<Self> {
        let repository = Repository::create(scene)?;
        let podman = Podman::start(scene)?;
        let gateway = podman.gateway();
        scene.set("receiver", format!("{gateway}:{}", crate::harness::free_port()));
        for port in ["front", "page", "probes"] {
            scene.port(port);
        }
        let name = format!("pod-{}", scene.value("front"));
        scene.set("pod", &name);
        scene.set("environment", environment);
        let shared = scene.path("shared");
        std::fs::create_dir_all(&shared).expect("a directory of the scene can be created");
        // The mode of an emptyDir of the kubelet: each container has its own user.
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).expect("the test owns the directory");
        let read = |name: &str| std::fs::read_to_string(fixture(name)).expect("the fixture exists");
        scene.write("settings/outrigger.yaml", scene.fill(&read("pod/outrigger.yaml")));
        let manifest = scene.write("pod.yaml", scene.fill(&read("pod/pod.yaml")));
        podman.play(&manifest);
        // The bridge has its address only once the first Pod is attached to it; until then the sink retries.
        let receiver = LogReceiver::start_at(scene.value("receiver"), Answer::Accept);
        Some(Self { receiver, podman, manifest, repository, name })
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }
}

/// A port of the Pod, published on this machine's loopback.
fn published_at(scene: &Scene, port: &str) -> String {
    format!("127.0.0.1:{}", scene.value(port))
}

/// Logs, metrics, configuration and proxy, from an image without a shell, with an unprivileged user, a read-only root and
/// no capability; and at the end the order of a stop: the app's last lines arrive.
#[test]
fn a_pod_has_all_four_jobs_and_stops_in_order() {
    let scene = Scene::new();
    let pod = need!(Pod::start(&scene, ""), NO_PODMAN);
    let (app, outrigger) = (pod.container("app"), pod.container("outrigger"));
    let probes = published_at(&scene, "probes");
    until(PATIENCE, "the Pod is ready", || get(&probes, "/ready").is_ok_and(|reply| reply.status == 200));

    pod.receiver.wait_for(100, PATIENCE);
    let page = published_at(&scene, "page");
    until(PATIENCE, "the app's series is exposed", || {
        Exposition::of(&page).is_some_and(|page| page.value("orders_total") == Some(7.0))
    });
    let front = published_at(&scene, "front");
    let reply = get(&front, "/index.html").expect("the inbound listener responds");
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello from the app\n"));
    for generation in 1..=2 {
        if generation == 2 {
            pod.repository.push(2);
        }
        until(PATIENCE, "the app has the configuration", || {
            pod.receiver.messages().iter().any(|line| line == &format!("sees generation={generation:06}"))
        });
    }
    assert_eq!(published(&scene.path("shared/config/current")), Ok(Some(2)), "complete for a reader outside the Pod");

    for probe in ["started", "ready", "live"] {
        // An exec probe, as the kubelet runs it if no port is open: the image has no shell and no curl.
        pod.podman.run(&["exec", &outrigger, "/outrigger", "probe", probe, "--socket", "/run/outrigger/admin.sock"]);
    }
    assert_unprivileged(&pod.podman, &outrigger);
    ledger_balances(&published_at(&scene, "admin"));
    // Both get their signal simultaneously, and the network stays until both have exited, as with a kubelet. `podman pod stop`
    // removes the network before that, and `podman stop` sends its signal twice.
    pod.podman.run(&["kill", "--signal=TERM", &app, &outrigger]);
    until(PATIENCE, "both have exited", || !pod.podman.is_running(&app) && !pod.podman.is_running(&outrigger));
    assert_eq!(pod.podman.exit_code(&app, SECOND), 7, "the app's own exit code: {}", pod.podman.logs(&app));
    assert_eq!(
        pod.podman.exit_code(&outrigger, SECOND),
        7,
        "the code in the exit code file: {}",
        pod.podman.logs(&outrigger)
    );
    let log = std::fs::read_to_string(scene.path("shared/log/app.log")).expect("the app wrote its lines");
    let written = log.lines().filter(|line| line.starts_with("line=")).count();
    assert_counts_up(&pod.receiver.numbers("line="), written);
    pod.receiver.assert_well_formed();
    pod.podman.down(&pod.manifest);
}

/// Checks the process in the container by what the kernel reports, and that the container has no shell.
fn assert_unprivileged(podman: &Podman, container: &str) {
    let pid = podman.run(&["inspect", "--format={{.State.Pid}}", container]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("the process runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "65532 65532 65532 65532");
    assert_eq!(field("Gid:"), "65532 65532 65532 65532");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", pid.trim())).expect("the process runs");
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("it has a root mount");
    assert!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro")), "{root}");
    for shell in ["/bin/sh", "/bin/bash", "/busybox", "sh"] {
        let (code, _, _) = podman.try_run(&["exec", container, shell, "-c", "true"]);
        assert_ne!(code, 0, "there is no {shell}");
    }
}

/// A Job: the app exits by itself, its exit code file ends the companion, and nothing keeps the Pod running.
/// Guarantee: companion-exits-with-its-app
#[test]
fn pod_of_a_job_ends_after_its_app() {
    let scene = Scene::new();
    let environment = "{ name: LINES, value: \"150\" }, { name: CODE, value: \"3\" }";
    let pod = need!(Pod::start(&scene, environment), NO_PODMAN);
    let (app, outrigger) = (pod.container("app"), pod.container("outrigger"));
    assert_eq!(pod.podman.exit_code(&app, 40 * SECOND), 3, "{}", pod.podman.logs(&app));
    let code = pod.podman.exit_code(&outrigger, PATIENCE);
    assert_eq!(code, 3, "the code in the exit code file: {}", pod.podman.logs(&outrigger));
    assert_counts_up(&pod.receiver.numbers("line="), 150);
    let state = pod.podman.run(&["pod", "inspect", "--format={{.State}}", &pod.name]);
    assert!(["Exited", "Degraded"].contains(&state.trim()), "only the empty first container is left: {state}");
    pod.podman.down(&pod.manifest);
}

/// A Job's lines reach the receiver even if it was unavailable while the app ran.
#[test]
fn job_with_a_late_receiver_loses_no_line() {
    let scene = Scene::new();
    let environment = "{ name: LINES, value: \"150\" }, { name: CODE, value: \"0\" }";
    let pod = need!(Pod::start(&scene, environment), NO_PODMAN);
    pod.receiver.answer(Answer::Status(503));
    assert_eq!(pod.podman.exit_code(&pod.container("app"), 40 * SECOND), 0);
    pod.receiver.answer(Answer::Accept);
    let outrigger = pod.container("outrigger");
    assert_eq!(pod.podman.exit_code(&outrigger, 40 * SECOND), 0, "{}", pod.podman.logs(&outrigger));
    // The worker is replaced by one that may read the new directory while a batch is in flight: that batch may be sent twice.
    let mut numbers = pod.receiver.numbers("line=");
    numbers.sort_unstable();
    numbers.dedup();
    assert_counts_up(&numbers, 150);
    pod.podman.down(&pod.manifest);
}
