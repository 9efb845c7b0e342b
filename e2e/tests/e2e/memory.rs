//! Memory that runs out, in control groups with a limit of their own: who is killed is named, nobody is named wrongly, and with
//! defaults alone the app has what it has without us. In: groups, apps that eat. Out: exit codes, logs, black boxes. Bounded by the
//! limit of each group.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::faults;
use crate::harness::outrigger::{binary, upgrade};
use crate::harness::process::{Signal, run_to_end, send_signal};
use crate::harness::{Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, python, until, within};

const NO_GROUP: &str = "no control group with a memory limit can be made";
const NO_PYTHON: &str = "python3 is not installed";

const CAPTURED: &str = "app: {}\nlogs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";

/// Takes what there is and more, and ends by the kernel alone.
const EATER: &str = "print('eating', flush=True)\nkept = []\nwhile True: kept.append(bytearray(1 << 20))";

/// A control group of its own with a limit, removed at the end.
struct Group(PathBuf);

impl Group {
    fn limited(bytes: u64) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outrigger-e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let old = PathBuf::from("/sys/fs/cgroup/memory").join(&name);
        let new = PathBuf::from("/sys/fs/cgroup").join(&name);
        let (folder, limit) = if std::fs::create_dir(&old).is_ok() {
            (old, "memory.limit_in_bytes")
        } else {
            std::fs::create_dir(&new).ok()?;
            (new, "memory.max")
        };
        let group = Self(folder);
        std::fs::write(group.0.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }

    /// What starts a command inside.
    fn enter(&self) -> [String; 4] {
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        ["sh".to_owned(), "-c".to_owned(), enter, "sh".to_owned()]
    }

    #[track_caller]
    fn start(&self, binary: &str, scene: &Scene, body: &str, command: &[&str], wait: Wait) -> Outrigger {
        Outrigger::start_binary(binary, scene, "outrigger.yaml", body, command, wait, |ours| {
            let [shell, words @ ..] = self.enter();
            let mut inside = Command::new(shell);
            inside.args(words).arg(ours.get_program()).args(ours.get_args());
            *ours = inside;
        })
    }

    /// Has the kernel kill somebody in it.
    fn kill_one(&self, python: &str) {
        let words = [&self.enter()[..], &[python.to_owned(), "-c".to_owned(), EATER.to_owned()]].concat();
        assert_eq!(run_to_end(&words, 3 * PATIENCE).0, 137, "the kernel kills the eater");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        within(5 * SECOND, || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// In the line of its end and in the black box, with its last words.
/// covers: attachment 1
/// covers: attachment 2
/// covers: attachment 8
#[test]
fn an_app_killed_for_want_of_memory_is_reported_so() {
    let python = need!(python(), NO_PYTHON);
    let group = need!(Group::limited(96 << 20), NO_GROUP);
    let scene = Scene::new();
    let outrigger = group.start(&binary(), &scene, CAPTURED, &[&python, "-c", EATER], Wait::Nothing);
    let exit = outrigger.wait(3 * PATIENCE);
    assert_eq!(exit.code, 137, "{}", exit.stderr);
    let reports = exit.stderr.lines().any(|line| line.contains("app OOM-killed"));
    assert!(reports, "the line of its end says so: {}", exit.stderr);
    let boxes = scene.black_boxes();
    assert_eq!((boxes.len(), &boxes[0]["oom_killed"], &boxes[0]["stdout"][0]), (1, &true.into(), &"eating".into()));
}

/// Kills of the kernel's before our time, and a supervisor that has replaced itself, make no kill of somebody's one of the kernel's.
/// covers: attachment 1
/// covers: attachment 3
#[test]
fn an_app_that_somebody_killed_is_not_said_to_lack_memory() {
    let python = need!(python(), NO_PYTHON);
    let group = need!(Group::limited(96 << 20), NO_GROUP);
    group.kill_one(&python);
    for upgraded in [false, true] {
        let scene = Scene::new();
        let outrigger = group.start(&binary(), &scene, CAPTURED, &["sleep", "300"], Wait::Ready);
        if upgraded {
            let worker = outrigger.worker();
            assert_eq!(upgrade(&scene, None).0, 0);
            outrigger.await_other(worker, PATIENCE);
        }
        send_signal(outrigger.app(), Signal::KILL);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, 137, "{}", exit.stderr);
        let boxes = scene.black_boxes();
        assert_eq!((boxes.len(), &boxes[0]["oom_killed"]), (1, &false.into()), "upgraded: {upgraded}");
    }
}

/// The worker gives way before the app does, is named as what the kernel killed, or ends itself at its own limit.
/// covers: attachment 2
#[test]
fn a_worker_that_leaks_in_a_small_container_falls_alone() {
    let door = need!(faults::binary(), faults::NO_FAULTS);
    let group = need!(Group::limited(96 << 20), NO_GROUP);
    let scene = Scene::new();
    let outrigger = group.start(&door, &scene, CAPTURED, &["sleep", "300"], Wait::Ready);
    let (app, worker) = (outrigger.app(), outrigger.worker());
    faults::send(&scene, "leak 200");
    outrigger.await_other(worker, 3 * PATIENCE);
    assert_eq!(outrigger.app(), app);
    assert!(outrigger.stderr.contains("the previous worker crashed"), "{}", outrigger.stderr.text());
    assert_eq!(outrigger.finish().code, 143);
}

/// With every setting at its default, a receiver that is down takes nothing from the app that it needs.
/// covers: attachment 2
#[test]
fn with_a_dead_receiver_an_app_in_a_small_container_has_what_it_has_alone() {
    let python = need!(python(), NO_PYTHON);
    let group = need!(Group::limited(64 << 20), NO_GROUP);
    let scene = Scene::new();
    scene.port("nobody");
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 4s } }\n\
                logs: { sources: { app: { stdio: {} } }, sinks: { out: { http: { url: \"http://127.0.0.1:@nobody@/\" } } } }\n";
    // About 28 MiB, and 48 MB of lines through stdout and stderr.
    let app = "import sys\nkept = bytearray(b'x' * (20 << 20))\nline = 'x' * 99 + '\\n'\n\
               for n in range(240000):\n    sys.stdout.write(line)\n    sys.stderr.write(line)\nsys.exit(9)";
    let outrigger = group.start(&binary(), &scene, body, &[&python, "-c", app], Wait::Nothing);
    let exit = outrigger.wait(3 * PATIENCE);
    assert_eq!(exit.code, 9, "{}", exit.stderr.lines().filter(|line| !line.starts_with('x')).collect::<String>());
}

/// A flood of connections with half a request each takes no more memory than allowed: the oldest give way to those that come later.
/// covers: attachment 2
#[test]
fn a_flood_of_connections_does_not_take_more_memory_than_allowed() {
    let scene = Scene::new();
    let app = RawApp::echoing_targets();
    scene.set("port", app.address().rsplit(':').next().expect("a port"));
    let front = format!("127.0.0.1:{}", scene.port("front"));
    let body = "app: { port: @port@ }\nlimits: { memory: 24MiB }\n\
                proxy: { threads: 1, listeners: { inbound: { listen: \"127.0.0.1:@front@\", direction: inbound, cluster: app, request_headers_timeout: 60s } } }\n";
    let outrigger = Outrigger::start(&scene, body, &[]);
    let worker = outrigger.worker();
    let half = format!("GET /half HTTP/1.1\r\nHost: app\r\nX-Long: {}", "x".repeat(24 << 10));
    let mut flood: Vec<_> = (0..2500)
        .map_while(|_| {
            let mut wire = Wire::connect(&front).ok()?;
            wire.send(&half).ok()?;
            Some(wire)
        })
        .collect();
    assert!(flood.len() > 2000, "{} connections were taken", flood.len());
    // The oldest give way, so that whoever comes later is answered. A worker that is over its limit for three looks is replaced.
    assert!(crate::harness::get(&front, "/beside").is_ok(), "a request beside the flood is answered");
    let newest = flood.last_mut().expect("the last was let in");
    newest.send("\r\n\r\n").expect("it is still open");
    // While memory is short a long head is refused with its reason; nobody who was let in last is closed without a word.
    let answer = newest.reply("GET").expect("it is answered");
    assert!(
        answer.text() == "/half" || answer.status == 503 && answer.text().contains("memory pressure"),
        "{answer:?}"
    );
    assert_eq!(outrigger.worker(), worker, "the same worker serves");
    drop(flood);
    until(3 * PATIENCE, "a long head is taken again", || {
        let sent = Wire::connect(&front).and_then(|mut wire| {
            wire.send(format!("{half}\r\n\r\n"))?;
            wire.reply("GET")
        });
        sent.is_ok_and(|answer| answer.text() == "/half")
    });
    assert_eq!(outrigger.worker(), worker);
    outrigger.finish();
}
