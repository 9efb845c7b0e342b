//! Out of memory, in dedicated control groups with a limit: an OOM kill is reported, no other kill is reported as one, and
//! with only defaults the app has the memory that it has without Outrigger. In: groups, apps that allocate. Out: exit codes,
//! logs, black boxes. Bounded by the limit of each group.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::faults;
use crate::harness::outrigger::{binary, upgrade};
use crate::harness::process::{Signal, run_to_end, send_signal};
use crate::harness::{Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, python, until, within};

const NO_GROUP: &str = "no control group with a memory limit can be created";
const NO_PYTHON: &str = "python3 is not installed";

const CAPTURED: &str = "app: {}\nlogs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";

/// Allocates memory until the kernel kills it.
const ALLOCATOR: &str = "print('allocating', flush=True)\nheap = []\nwhile True: heap.append(bytearray(1 << 20))";

/// A dedicated control group with a limit, removed at the end.
struct Group(PathBuf);

impl Group {
    fn limited(bytes: u64) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outrigger-e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let old = PathBuf::from("/sys/fs/cgroup/memory").join(&name);
        let new = PathBuf::from("/sys/fs/cgroup").join(&name);
        let (directory, limit) = if std::fs::create_dir(&old).is_ok() {
            (old, "memory.limit_in_bytes")
        } else {
            std::fs::create_dir(&new).ok()?;
            (new, "memory.max")
        };
        let group = Self(directory);
        std::fs::write(group.0.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }

    /// The words in front of a command that start it in the group.
    fn enter(&self) -> [String; 4] {
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        ["sh".to_owned(), "-c".to_owned(), enter, "sh".to_owned()]
    }

    #[track_caller]
    fn start(&self, binary: &str, scene: &Scene, body: &str, command: &[&str], wait: Wait) -> Outrigger {
        Outrigger::start_binary(binary, scene, "outrigger.yaml", body, command, wait, |outrigger| {
            let [shell, words @ ..] = self.enter();
            let mut inside = Command::new(shell);
            inside.args(words).arg(outrigger.get_program()).args(outrigger.get_args());
            *outrigger = inside;
        })
    }

    /// Makes the kernel kill a process in the group.
    fn kill_one(&self, python: &str) {
        let words = [&self.enter()[..], &[python.to_owned(), "-c".to_owned(), ALLOCATOR.to_owned()]].concat();
        assert_eq!(run_to_end(&words, 3 * PATIENCE).0, 137, "the kernel kills the allocating process");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        within(5 * SECOND, || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// In the log line of the exit and in the black box, with its last output.
/// Guarantee: app-crash-recorded
#[test]
fn oom_killed_app_is_reported() {
    let python = need!(python(), NO_PYTHON);
    let group = need!(Group::limited(96 << 20), NO_GROUP);
    let scene = Scene::new();
    let outrigger = group.start(&binary(), &scene, CAPTURED, &[&python, "-c", ALLOCATOR], Wait::Nothing);
    let exit = outrigger.wait(3 * PATIENCE);
    assert_eq!(exit.code, 137, "{}", exit.stderr);
    let reported = exit.stderr.lines().any(|line| line.contains("app OOM-killed"));
    assert!(reported, "the log line of the exit reported it: {}", exit.stderr);
    let boxes = scene.black_boxes();
    assert_eq!((boxes.len(), &boxes[0]["oom_killed"], &boxes[0]["stdout"][0]), (1, &true.into(), &"allocating".into()));
}

/// Earlier OOM kills in the group, and a supervisor that has re-executed itself, do not turn another kill into an OOM kill.
#[test]
fn app_killed_otherwise_is_not_reported_as_oom() {
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

/// The worker is killed before the app, is reported as the OOM-killed process, or exits at its own limit.
#[test]
fn leaking_worker_does_not_take_the_app_with_it() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let group = need!(Group::limited(96 << 20), NO_GROUP);
    let scene = Scene::new();
    let outrigger = group.start(&binary, &scene, CAPTURED, &["sleep", "300"], Wait::Ready);
    let (app, worker) = (outrigger.app(), outrigger.worker());
    faults::send(&scene, "leak 200");
    outrigger.await_other(worker, 3 * PATIENCE);
    assert_eq!(outrigger.app(), app);
    assert!(outrigger.stderr.contains("the previous worker crashed"), "{}", outrigger.stderr.text());
    assert_eq!(outrigger.finish().code, 143);
}

/// With default settings, a receiver that is down takes no memory that the app needs.
/// Guarantee: app-never-blocked-by-a-receiver
#[test]
fn down_receiver_takes_no_memory_from_the_app() {
    let python = need!(python(), NO_PYTHON);
    let group = need!(Group::limited(64 << 20), NO_GROUP);
    let scene = Scene::new();
    scene.port("unused");
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 4s } }\n\
                logs: { sources: { app: { stdio: {} } }, sinks: { out: { http: { url: \"http://127.0.0.1:@unused@/\" } } } }\n";
    // About 28 MiB, and 48 MB of lines through stdout and stderr.
    let app = "import sys\nheap = bytearray(b'x' * (20 << 20))\nline = 'x' * 99 + '\\n'\n\
               for n in range(240000):\n    sys.stdout.write(line)\n    sys.stderr.write(line)\nsys.exit(9)";
    let outrigger = group.start(&binary(), &scene, body, &[&python, "-c", app], Wait::Nothing);
    let exit = outrigger.wait(3 * PATIENCE);
    assert_eq!(exit.code, 9, "{}", exit.stderr.lines().filter(|line| !line.starts_with('x')).collect::<String>());
}

/// A flood of connections with half a request each takes no more memory than allowed: the oldest are closed for newer ones.
/// Guarantee: flood-within-memory-limit
#[test]
fn connection_flood_respects_the_memory_limit() {
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
    assert!(flood.len() > 2000, "{} connections were accepted", flood.len());
    // The oldest are closed, so that later clients are served. A worker that is over its limit in three checks is replaced.
    assert!(crate::harness::get(&front, "/another").is_ok(), "another request during the flood gets a response");
    let newest = flood.last_mut().expect("the last connection was accepted");
    newest.send("\r\n\r\n").expect("the connection is still open");
    // Under memory pressure a long head is rejected with the reason; the newest connections are not closed without a response.
    let response = newest.reply("GET").expect("the request gets a response");
    assert!(
        response.text() == "/half" || response.status == 503 && response.text().contains("memory pressure"),
        "{response:?}"
    );
    assert_eq!(outrigger.worker(), worker, "the same worker serves");
    drop(flood);
    until(3 * PATIENCE, "a long head is accepted again", || {
        let sent = Wire::connect(&front).and_then(|mut wire| {
            wire.send(format!("{half}\r\n\r\n"))?;
            wire.reply("GET")
        });
        sent.is_ok_and(|response| response.text() == "/half")
    });
    assert_eq!(outrigger.worker(), worker);
    outrigger.finish();
}
