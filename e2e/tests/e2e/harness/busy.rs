//! Outrigger doing all four jobs under a steady load, for tests that replace workers: an app (`examples/busy_app.rs`) that writes
//! 10,000 numbered lines a second and serves 1,000 requests a second through Outrigger, over new and keep-alive connections, and
//! some more directly. In: a binary. Out: what a test inspects, and at the end the guarantees: no line lost, the app unaffected,
//! the ledger balanced, nothing left running. Limits: the rate of the loads and the harness's `PATIENCE`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::git::Repository;
use super::load::{BIG, Death, Kind, Load, Met};
use super::process::{Signal, children, is_alive, send_signal};
use super::{LogReceiver, Outrigger, PATIENCE, Scene, Wait, example, number_after, until};

pub const NO_GIT: &str = "git is not installed";

/// Requests a second of each kind.
const EACH_PER_SECOND: u32 = 500;

/// Requests a second sent directly to the app.
const DIRECT_PER_SECOND: u32 = 100;

/// The socket is in a separate directory: the worker may write there, so that no binary from there is trusted.
pub const BODY: &str = r#"
app: { port: @port@, stop: { drain_timeout: 5s, grace_period: 5s, timeout: 20s } }
admin: { listen: "127.0.0.1:@admin@", socket: "@dir@/run/admin.sock" }
limits: { memory: 96MiB }
logs:
  sources: { app: { stdio: {} }, access: { proxy: {} } }
  sinks:
    out:     { http: { url: "http://@out@/lines" }, inputs: [app], batch: { max_bytes: 256KiB, max_age: 100ms } }
    records: { file: { path: "@dir@/access/access.log" }, inputs: [access] }
metrics:
  sources: { process: { process: { interval: 1s } }, proxy: { proxy: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
sync:
  settings: { store: { git: { url: "@url@", ref: main, path: orders/, interval: 1s } }, publish: { symlink: { path: "@dir@/out/settings" } } }
proxy:
  threads: @threads@
  listeners:
    inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app }
    outbound: { listen: "127.0.0.1:@way@", direction: outbound, cluster: shop }
  clusters: { shop: { endpoints: ["127.0.0.1:@port@"] } }
"#;

/// The lines of four batches of a sink, each of the maximum size.
const IN_FLIGHT: usize = 4 * 2600;

pub const LINES_PER_SECOND: usize = 10_000;

pub struct Busy {
    pub scene: Scene,
    pub receiver: LogReceiver,
    pub outrigger: Outrigger,
    pub app: u32,
    pub front: String,
    /// The outbound listener, which routes to the same server.
    pub way: String,
    pub fresh: Load,
    pub kept: Load,
    /// Bypasses Outrigger: whatever happens to Outrigger, the app responds.
    direct: Load,
    began: Instant,
    pub git: Repository,
    descriptors: usize,
}

impl Busy {
    /// Starts everything; `None` if a program is missing.
    pub fn start(binary: &str) -> Option<Self> {
        Self::start_with(binary, 1)
    }

    /// With this number of proxy threads.
    pub fn start_with(binary: &str, threads: u32) -> Option<Self> {
        let scene = Scene::new();
        let git = Repository::create(&scene)?;
        let receiver = LogReceiver::start();
        std::fs::create_dir_all(scene.path("access")).expect("the scene is writable");
        scene.set("threads", threads);
        scene.set("out", receiver.address());
        scene.set("url", git.file_url());
        scene.port("page");
        let way = format!("127.0.0.1:{}", scene.port("way"));
        let front = format!("127.0.0.1:{}", scene.port("front"));
        let port = scene.port("port").to_string();
        let command = [&example("busy_app"), &LINES_PER_SECOND.to_string(), &port, &BIG.to_string()];
        let command = command.map(String::as_str);
        let outrigger = Outrigger::start_binary(binary, &scene, "outrigger.yaml", BODY, &command, Wait::Ready, |_| {});
        let began = Instant::now();
        let fresh = Load::start(Kind::Fresh, &front, EACH_PER_SECOND);
        let kept = Load::start(Kind::Kept, &front, EACH_PER_SECOND);
        let direct = Load::start(Kind::Fresh, &format!("127.0.0.1:{port}"), DIRECT_PER_SECOND);
        let app = outrigger.app();
        let mut busy =
            Self { scene, receiver, outrigger, app, front, way, fresh, kept, direct, began, git, descriptors: 0 };
        busy.await_service(PATIENCE);
        busy.descriptors = descriptors(busy.outrigger.pid());
        busy.receiver.wait_for(1000, PATIENCE);
        // Resets the measurement, which must not include the start.
        busy.longest_pause();
        Some(busy)
    }

    /// Waits until everything works again: both loads get responses, and lines arrive that are newer than any so far.
    #[track_caller]
    pub fn await_service(&self, limit: Duration) {
        let newest = self.receiver.newest("n=");
        self.fresh.await_more(200, limit);
        self.kept.await_more(200, limit);
        self.direct.await_more(20, limit);
        until(limit, "new lines arrive", || self.receiver.newest("n=") > newest);
    }

    /// Waits for the exit of this worker and for another one that is ready. Returns when the exit was detected.
    #[track_caller]
    pub fn await_next(&self, before: u32, limit: Duration) -> Instant {
        until(limit, "the worker has exited", || !is_alive(before));
        let exited = Instant::now();
        self.outrigger.await_other(before, limit);
        exited
    }

    /// The longest time without a response since the previous call, over both loads.
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

    /// As many file descriptors as at the start, and no zombie.
    #[track_caller]
    pub fn assert_supervisor_is_clean(&self) {
        let pid = self.outrigger.pid();
        let is_clean = || {
            let zombies = children(pid).iter().filter(|child| child.state == 'Z').count();
            (descriptors(pid), zombies, children(pid).len())
        };
        let wanted = (self.descriptors, 0, 2);
        let clean = super::within(PATIENCE, || is_clean() == wanted);
        assert!(clean, "file descriptors, zombies, children: {:?}, expected {wanted:?}\n{}", is_clean(), listing(pid));
    }

    /// Stops the loads, then everything, and prints the totals. Returns the results of the loads. At most as many lines are
    /// repeated as may have been in flight when a worker exited, times the number of workers that exited.
    #[track_caller]
    pub fn finish(self, workers_ended: usize) -> (Met, Met) {
        let Self { scene, receiver, outrigger, app, fresh, kept, direct, began, .. } = self;
        let (fresh, kept, direct) = (fresh.finish(), kept.finish(), direct.finish());
        let lines_due = began.elapsed().as_millis() as usize * LINES_PER_SECOND / 1000;
        direct.assert_none_failed();
        assert!(is_alive(app), "the app is the same process");
        assert_eq!(outrigger.app(), app);
        let exit = outrigger.finish();
        assert_eq!(exit.code, 5, "the app's own exit code; {}", exit.stderr);
        let (last, repeated) = assert_lines(&receiver, &exit.stdout, workers_ended);
        drop(scene);
        eprintln!(
            "{workers_ended} workers exited: {} + {} of {} + {} succeeded, {} + {} failed, {} retried, slowest {:?} and {:?}; \
             {last} of {lines_due} lines, {repeated} repeated; directly to the app {} of {} succeeded, slowest {:?}",
            fresh.answered,
            kept.answered,
            fresh.due,
            kept.due,
            fresh.failures.len(),
            kept.failures.len(),
            kept.retried,
            fresh.slowest,
            kept.slowest,
            direct.answered,
            direct.due,
            direct.slowest
        );
        // The guarantees depend on the load. A client waits for its response before it sends the next request, so that a busy
        // machine lowers the rate; with less than half of the rate the test would not be valid.
        assert!(last * 2 >= lines_due, "{last} of {lines_due} lines");
        for met in [&fresh, &kept, &direct] {
            assert!(
                met.answered * 2 >= met.due,
                "{:?}: {} responses of {} that were due",
                met.kind,
                met.answered,
                met.due
            );
        }
        (fresh, kept)
    }
}

/// Every line that the app wrote arrived and was passed through. Returns how many there were, and how many were repeated.
#[track_caller]
fn assert_lines(receiver: &LogReceiver, stdout: &str, workers_ended: usize) -> (usize, usize) {
    let last = stdout.lines().rev().find_map(|line| number_after(line, "app stopping after "));
    let last = last.expect("the app reports how many lines it wrote");
    receiver.assert_well_formed();
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    receiver.numbers("n=").into_iter().for_each(|number| *times.entry(number).or_default() += 1);
    let lost: Vec<usize> = (0..last).filter(|number| !times.contains_key(number)).collect();
    assert!(lost.is_empty(), "{} of {last} lines lost, the first: {:?}", lost.len(), &lost[..lost.len().min(10)]);
    assert_eq!(times.len(), last, "no line arrived that the app did not write");
    let repeated: usize = times.values().map(|times| times - 1).sum();
    assert!(
        repeated <= workers_ended * IN_FLIGHT,
        "{repeated} lines were repeated after {workers_ended} workers exited"
    );
    let passed = stdout.lines().filter(|line| line.starts_with("n=")).count();
    assert_eq!(passed, last, "every line was passed through");
    (last, repeated)
}

pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn listing(pid: u32) -> String {
    let directory = format!("/proc/{pid}/fd");
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let links = names.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| format!("{}\n", link.display())).collect()
}

/// The executable of a process.
pub fn executable(pid: u32) -> String {
    let link = std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe"));
    link.map_or_else(|error| error.to_string(), |path| path.display().to_string())
}
