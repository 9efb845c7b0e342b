//! A real Pod: an app and Outrigger in two containers that share a network and a volume, played from a Kubernetes manifest
//! by podman, with the image from `deploy/`. Lines, samples, configuration and requests come in; all four jobs, the stop
//! order and the end of a Job go out. Bounded by the deadlines in the Pod's configuration.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::harness::git::{Repository, published};
use crate::harness::podman::{NO_PODMAN, Podman};
use crate::harness::{
    Answer, Exposition, LogReceiver, PATIENCE, SECOND, Scene, assert_counts_up, fixture, get, ledger_balances, until,
};

/// A Pod that was started, and the receiver outside it.
struct Pod {
    // Ends before the bridge that it listens on.
    receiver: LogReceiver,
    podman: Podman,
    manifest: PathBuf,
    repository: Repository,
    name: String,
}

impl Pod {
    /// `None` where containers cannot be run. The environment is the app's: `{ name: A, value: "b" }`.
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
        std::fs::create_dir_all(&shared).expect("the scene takes folders");
        // As the kubelet makes an emptyDir: both containers have users of their own.
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).expect("it is our folder");
        let read = |name: &str| std::fs::read_to_string(fixture(name)).expect("the fixture is there");
        scene.write("settings/outrigger.yaml", scene.fill(&read("pod/outrigger.yaml")));
        let manifest = scene.write("pod.yaml", scene.fill(&read("pod/pod.yaml")));
        podman.play(&manifest);
        // The bridge has its address only once the first Pod stands on it; until then the sink tries again.
        let receiver = LogReceiver::start_at(scene.value("receiver"), Answer::Accept);
        Some(Self { receiver, podman, manifest, repository, name })
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }
}

/// Published on this machine's loopback by the Pod's ports.
fn published_at(scene: &Scene, port: &str) -> String {
    format!("127.0.0.1:{}", scene.value(port))
}

/// Logs, metrics, configuration and proxy, from an image without a shell, with a user that is nobody, a root that cannot
/// be written and no capability; and at the end the order of a stop: the app's last lines arrive.
/// covers: attachment 7
/// covers: attachment 10
#[test]
fn a_pod_has_all_four_jobs_and_stops_in_order() {
    let scene = Scene::new();
    let pod = need!(Pod::start(&scene, ""), NO_PODMAN);
    let (app, outrigger) = (pod.container("app"), pod.container("outrigger"));
    let probes = published_at(&scene, "probes");
    until(PATIENCE, "the Pod is ready", || get(&probes, "/ready").is_ok_and(|reply| reply.status == 200));

    pod.receiver.wait_for(100, PATIENCE);
    let page = published_at(&scene, "page");
    until(PATIENCE, "the app's series is on the page", || {
        Exposition::of(&page).is_some_and(|page| page.value("orders_total") == Some(7.0))
    });
    let front = published_at(&scene, "front");
    let reply = get(&front, "/index.html").expect("the inbound listener answers");
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello from the app\n"));
    for generation in 1..=2 {
        if generation == 2 {
            pod.repository.push(2);
        }
        until(PATIENCE, "the app has the configuration", || {
            pod.receiver.messages().iter().any(|line| line == &format!("sees generation={generation:06}"))
        });
    }
    assert_eq!(published(&scene.path("shared/config/current")), Ok(Some(2)), "whole, as a reader outside finds it");

    for question in ["started", "ready", "live"] {
        // As the kubelet asks where no port is open: there is no shell and no curl to ask with.
        pod.podman.run(&["exec", &outrigger, "/outrigger", "probe", question, "--socket", "/run/outrigger/admin.sock"]);
    }
    assert_no_rights(&pod.podman, &outrigger);
    ledger_balances(&published_at(&scene, "admin"));
    // Both get their signal at once, and the network stays until both have ended, as with a kubelet. `podman pod stop` takes the
    // network away meanwhile, and `podman stop` sends its signal twice.
    pod.podman.run(&["kill", "--signal=TERM", &app, &outrigger]);
    until(PATIENCE, "both have ended", || !pod.podman.is_running(&app) && !pod.podman.is_running(&outrigger));
    assert_eq!(pod.podman.exit_code(&app, SECOND), 7, "the app's own: {}", pod.podman.logs(&app));
    assert_eq!(pod.podman.exit_code(&outrigger, SECOND), 7, "the tombstone's: {}", pod.podman.logs(&outrigger));
    let log = std::fs::read_to_string(scene.path("shared/log/app.log")).expect("the app wrote its lines");
    let written = log.lines().filter(|line| line.starts_with("line=")).count();
    assert_counts_up(&pod.receiver.numbers("line="), written);
    pod.receiver.assert_well_formed();
    pod.podman.down(&pod.manifest);
}

/// What the kernel says of the process in the container, and what the container has no program for.
fn assert_no_rights(podman: &Podman, container: &str) {
    let pid = podman.run(&["inspect", "--format={{.State.Pid}}", container]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("the process is there");
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
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", pid.trim())).expect("the process is there");
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("it has a root");
    assert!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro")), "{root}");
    for shell in ["/bin/sh", "/bin/bash", "/busybox", "sh"] {
        let (code, _, _) = podman.try_run(&["exec", container, shell, "-c", "true"]);
        assert_ne!(code, 0, "there is no {shell}");
    }
}

/// A Job: the app ends by itself, its tombstone ends the companion, and nothing keeps the Pod running.
/// covers: attachment 4
/// covers: attachment 10
#[test]
fn a_pod_as_a_job_ends_when_its_app_has_ended() {
    let scene = Scene::new();
    let environment = "{ name: LINES, value: \"150\" }, { name: CODE, value: \"3\" }";
    let pod = need!(Pod::start(&scene, environment), NO_PODMAN);
    let (app, outrigger) = (pod.container("app"), pod.container("outrigger"));
    assert_eq!(pod.podman.exit_code(&app, 40 * SECOND), 3, "{}", pod.podman.logs(&app));
    let code = pod.podman.exit_code(&outrigger, PATIENCE);
    assert_eq!(code, 3, "the code that the tombstone holds: {}", pod.podman.logs(&outrigger));
    assert_counts_up(&pod.receiver.numbers("line="), 150);
    let state = pod.podman.run(&["pod", "inspect", "--format={{.State}}", &pod.name]);
    assert!(["Exited", "Degraded"].contains(&state.trim()), "only the empty first container is left: {state}");
    pod.podman.down(&pod.manifest);
}

/// A Job's lines are at the receiver even when it was away while the app ran.
/// covers: attachment 4
/// covers: attachment 10
#[test]
fn a_job_whose_receiver_comes_back_late_loses_no_line() {
    let scene = Scene::new();
    let environment = "{ name: LINES, value: \"150\" }, { name: CODE, value: \"0\" }";
    let pod = need!(Pod::start(&scene, environment), NO_PODMAN);
    pod.receiver.answer(Answer::Status(503));
    assert_eq!(pod.podman.exit_code(&pod.container("app"), 40 * SECOND), 0);
    pod.receiver.answer(Answer::Accept);
    let outrigger = pod.container("outrigger");
    assert_eq!(pod.podman.exit_code(&outrigger, 40 * SECOND), 0, "{}", pod.podman.logs(&outrigger));
    // The worker gives way to one that may read the new folder while a batch is on its way: that batch may come twice.
    let mut numbers = pod.receiver.numbers("line=");
    numbers.sort_unstable();
    numbers.dedup();
    assert_counts_up(&numbers, 150);
    pod.podman.down(&pod.manifest);
}
