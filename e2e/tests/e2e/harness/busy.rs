//! Outrigger at work on all four jobs under a steady load, for tests of workers that come and go: an app that writes 10,000 numbered
//! lines a second, its serving half in the test, 1,000 requests a second over fresh and kept connections. In: a binary. Out: what a
//! test wants to look at, and at the end the promises: no line lost, the app untouched, the ledger in balance, nothing left behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::git::Repository;
use super::load::{self, Death, Kind, Load, Met};
use super::process::{Signal, children, is_alive, send_signal};
use super::server::Server;
use super::{LogReceiver, Outrigger, PATIENCE, Scene, Wait, number_after, python, until};

pub const NO_PEERS: &str = "python3 or git is not installed";

/// Requests a second of each kind.
const EACH_PER_SECOND: u32 = 500;

/// The socket has a folder of its own: the worker may write there, so that no binary from there is trusted.
pub const BODY: &str = r#"
app: { port: @port@, stop: { drain: 5s, grace: 5s, deadline: 20s } }
admin: { listen: "127.0.0.1:@admin@", socket: "@dir@/run/admin.sock" }
limits: { memory: 96MiB }
logs:
  sources: { app: { stdio: {} }, access: { proxy: {} } }
  sinks:
    out:     { http: { endpoint: "http://@out@/lines" }, from: [app], batch: { max: 256KiB, wait: 100ms } }
    records: { file: { path: "@dir@/access/access.log" }, from: [access] }
metrics:
  sources: { process: { process: { every: 1s } }, proxy: { proxy: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
sync:
  settings: { from: { git: { url: "@url@", ref: main, path: orders/ } }, to: "@dir@/out/settings", every: 1s }
proxy:
  threads: @threads@
  listeners:
    inbound: { listen: "127.0.0.1:@front@", direction: inbound, to: app }
    outbound: { listen: "127.0.0.1:@way@", direction: outbound, to: shop }
  clusters: { shop: { endpoints: ["127.0.0.1:@port@"] } }
"#;

/// Writes numbered lines at a pace, says a word on SIGUSR1, and ends with a code of its own on SIGTERM.
pub const WRITER: &str = r#"
import os, signal, sys, time
over, begun, number, rate = [], time.monotonic(), 0, int(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
signal.signal(signal.SIGUSR1, lambda *_: sys.stderr.write('app got SIGUSR1\n') and sys.stderr.flush())
out = sys.stdout.buffer
while not over:
    due = int((time.monotonic() - begun) * rate)
    out.write(b''.join(b'n=%07d\n' % n for n in range(number, due)))
    out.flush()
    number = max(number, due)
    time.sleep(0.01)
out.write(b'app stopping after %07d\n' % number)
out.flush()
sys.exit(5)
"#;

/// Four batches of a sink, each of what its size allows.
const IN_FLIGHT: usize = 4 * 2600;

pub const LINES_PER_SECOND: &str = "10000";

pub struct Busy {
    pub scene: Scene,
    pub receiver: LogReceiver,
    pub outrigger: Outrigger,
    pub app: u32,
    pub front: String,
    /// The outbound listener, which leads to the same server.
    pub way: String,
    pub fresh: Load,
    pub kept: Load,
    _parts: (Repository, Server),
    descriptors: usize,
}

impl Busy {
    /// Everything at work; `None` where a program is missing.
    pub fn start(binary: &str) -> Option<Self> {
        Self::start_with(binary, 1)
    }

    /// With so many threads of the proxy.
    pub fn start_with(binary: &str, threads: u32) -> Option<Self> {
        let python = python()?;
        let scene = Scene::new();
        let git = Repository::create(&scene)?;
        let receiver = LogReceiver::start();
        std::fs::create_dir_all(scene.path("access")).expect("the scene takes folders");
        scene.set("threads", threads);
        scene.set("out", receiver.address());
        scene.set("url", git.file_url());
        scene.port("page");
        let way = format!("127.0.0.1:{}", scene.port("way"));
        let front = format!("127.0.0.1:{}", scene.port("front"));
        let server = load::serve_on(scene.port("port"));
        let command = [&python, "-c", WRITER, LINES_PER_SECOND];
        let outrigger = Outrigger::start_binary(binary, &scene, "outrigger.yaml", BODY, &command, Wait::Ready, |_| {});
        let fresh = Load::start(Kind::Fresh, &front, EACH_PER_SECOND);
        let kept = Load::start(Kind::Kept, &front, EACH_PER_SECOND);
        let app = outrigger.app();
        let parts = (git, server);
        let mut busy = Self { scene, receiver, outrigger, app, front, way, fresh, kept, _parts: parts, descriptors: 0 };
        busy.await_service(PATIENCE);
        busy.descriptors = descriptors(busy.outrigger.pid());
        busy.receiver.wait_for(1000, PATIENCE);
        // What a start leaves in the loads is no part of what is measured.
        busy.longest_pause();
        Some(busy)
    }

    /// Everything works again: both loads are answered, and lines arrive that are newer than any so far.
    #[track_caller]
    pub fn await_service(&self, limit: Duration) {
        let newest = self.receiver.newest("n=");
        self.fresh.await_more(200, limit);
        self.kept.await_more(200, limit);
        until(limit, "new lines arrive", || self.receiver.newest("n=") > newest);
    }

    /// Waits for a worker other than this one that answers, and for the end of this one: when it was seen to be gone.
    #[track_caller]
    pub fn await_next(&self, before: u32, limit: Duration) -> Instant {
        until(limit, "the worker is gone", || !is_alive(before));
        let gone = Instant::now();
        until(limit, "another worker is ready", || {
            self.outrigger.find_worker().is_some_and(|pid| pid != before) && self.outrigger.status_of("/ready") == 200
        });
        gone
    }

    /// The longest time without an answer since it was last asked, over both loads.
    pub fn longest_pause(&self) -> Duration {
        self.fresh.take_longest_pause().max(self.kept.take_longest_pause())
    }

    #[track_caller]
    pub fn kill_worker(&self) -> Death {
        let worker = self.outrigger.worker();
        let from = Instant::now();
        send_signal(worker, Signal::KILL);
        Death { from, to: self.await_next(worker, PATIENCE) }
    }

    /// As many descriptors as at the start, and no child that nobody waited for.
    #[track_caller]
    pub fn assert_supervisor_is_clean(&self) {
        let pid = self.outrigger.pid();
        let is_clean = || {
            let zombies = children(pid).iter().filter(|child| child.state == 'Z').count();
            (descriptors(pid), zombies, children(pid).len())
        };
        let wanted = (self.descriptors, 0, 2);
        let clean = super::within(PATIENCE, || is_clean() == wanted);
        assert!(clean, "descriptors, zombies, children: {:?} and not {wanted:?}\n{}", is_clean(), listing(pid));
    }

    /// Ends the loads, then everything, and prints the account. Answers what the loads met. Lines came twice no more often than what
    /// may have been under way when a worker ended, so many times.
    #[track_caller]
    pub fn finish(self, workers_ended: usize) -> (Met, Met) {
        let Self { scene, receiver, outrigger, app, fresh, kept, .. } = self;
        let (fresh, kept) = (fresh.finish(), kept.finish());
        assert!(is_alive(app), "the app is the same process");
        assert_eq!(outrigger.app(), app);
        let exit = outrigger.finish();
        assert_eq!(exit.code, 5, "the app's own exit code; {}", exit.stderr);
        let last = exit.stdout.lines().rev().find_map(|line| number_after(line, "app stopping after "));
        let last = last.expect("the app says how many lines it wrote");
        receiver.assert_well_formed();
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        receiver.numbers("n=").into_iter().for_each(|number| *times.entry(number).or_default() += 1);
        let lost: Vec<usize> = (0..last).filter(|number| !times.contains_key(number)).collect();
        assert!(lost.is_empty(), "{} of {last} lines lost, the first: {:?}", lost.len(), &lost[..lost.len().min(10)]);
        assert_eq!(times.len(), last, "nothing was invented");
        let repeated: usize = times.values().map(|times| times - 1).sum();
        assert!(
            repeated <= workers_ended * IN_FLIGHT,
            "{repeated} lines came again after {workers_ended} workers ended"
        );
        let passed = exit.stdout.lines().filter(|line| line.starts_with("n=")).count();
        assert_eq!(passed, last, "every line was passed through");
        drop(scene);
        eprintln!(
            "{workers_ended} workers ended: {} + {} answered, {} + {} failed, {} retried, {repeated} lines twice",
            fresh.answered,
            kept.answered,
            fresh.failures.len(),
            kept.failures.len(),
            kept.retried
        );
        (fresh, kept)
    }
}

pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn listing(pid: u32) -> String {
    let folder = format!("/proc/{pid}/fd");
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let links = names.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| format!("{}\n", link.display())).collect()
}

/// What a process runs.
pub fn executable(pid: u32) -> String {
    let link = std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe"));
    link.map_or_else(|error| error.to_string(), |path| path.display().to_string())
}
