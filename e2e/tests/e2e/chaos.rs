//! The worker is killed, or stopped, at random times under all four jobs: no line of the app is lost, only what was in flight is
//! repeated, the next worker serves new connections, and the app is unaffected. The random numbers come from a seed that is
//! printed, and `E2E_SEED` repeats a run. Bounded by twenty kills within a minute.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::git::{Repository, published};
use crate::harness::process::{Signal, is_alive, send_signal};
use crate::harness::random::Random;
use crate::harness::receiver::Batch;
use crate::harness::{
    Exposition, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wire, fixture, get, number_after, python, until,
};

/// All four jobs, busy: the app logs a line every two milliseconds, is scraped, configured and sent requests.
const FOUR_JOBS: &str = r#"
app: { port: @port@, stop: { drain_timeout: 2s, grace_period: 5s, timeout: 20s } }
logs:
  sources:
    app:    { stdio: {} }
    files:  { file: { include: ["@dir@/app.log"], read_from: beginning } }
    access: { proxy: {} }
  sinks:
    out:     { http: { url: "http://@out@/lines", compression: gzip }, inputs: [app], batch: { max_bytes: 64KiB, max_age: 100ms } }
    file:    { loki: { url: "http://@file@", labels: { service: shop } }, inputs: [files], batch: { max_bytes: 64KiB, max_age: 100ms } }
    records: { file: { path: "@dir@/access.log" }, inputs: [access] }
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 1s } }, process: { process: {} }, proxy: { proxy: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
sync:
  settings:
    store: { git: { url: "@url@", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/settings" } }
    notify: [ { signal: SIGHUP } ]
proxy:
  listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } }
"#;

/// How many batches a sink may have in flight. A kill may repeat these and no others.
const IN_FLIGHT: usize = 4;

const CLIENTS: usize = 2;

struct Busy {
    scene: Scene,
    repository: Repository,
    out: LogReceiver,
    file: LogReceiver,
    outrigger: Outrigger,
    app: u32,
    front: String,
}

/// Starts everything and waits until the app responds through the proxy; `None` if python or git is missing.
fn start() -> Option<Busy> {
    let scene = Scene::new();
    let python = python()?;
    let repository = Repository::create(&scene)?;
    let (out, file) = (LogReceiver::start(), LogReceiver::start());
    scene.set("out", out.address());
    scene.set("file", file.address());
    scene.set("url", repository.file_url());
    scene.port("page");
    let front = format!("127.0.0.1:{}", scene.port("front"));
    let (port, log, script) = (scene.port("port").to_string(), scene.text_path("app.log"), fixture("app.py"));
    let settings = scene.text_path("settings/a.conf");
    let command = [&python, &script, "--port", &port, "--log", &log, "--every", "0.002", "--settings", &settings];
    let outrigger = Outrigger::start(&scene, FOUR_JOBS, &command);
    until(PATIENCE, "the app responds through the proxy", || {
        get(&front, "/health").is_ok_and(|reply| reply.status == 200)
    });
    let app = outrigger.app();
    Some(Busy { scene, repository, out, file, outrigger, app, front })
}

/// The results of the clients while workers are replaced.
#[derive(Default)]
struct Results {
    answered: AtomicUsize,
    /// Connected, but the response is incomplete: it was in flight when the worker died.
    broken: AtomicUsize,
    /// Could not connect. Always an error: the supervisor holds the listening socket.
    refused: AtomicUsize,
}

/// A client that opens a new connection for each request, one after the other.
fn get_until(stop: &AtomicBool, front: &str, results: &Results) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect(front) else {
            results.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        stream.set_read_timeout(Some(PATIENCE)).ok();
        let mut wire = Wire::new(stream);
        let sent = wire.send("GET /health HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
        let complete = sent.and_then(|()| wire.reply("GET")).is_ok_and(|reply| reply.status == 200 && reply.body.whole);
        let counter = if complete { &results.answered } else { &results.broken };
        counter.fetch_add(1, Ordering::Relaxed);
        // why: the pace of a client, which leaves the CPU to the processes under test
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Twenty kills at random times, with every guarantee checked at the end.
/// Guarantee: no-loss-on-worker-kill
#[test]
fn twenty_worker_kills_lose_no_line() {
    let busy = need!(start(), "python3 or git is not installed");
    let results = Results::default();
    let mut random = Random::seeded();
    let kills = 20;
    let marks = while_clients_send(&busy.front, &results, || {
        (0..kills).map(|kill| kill_once(&busy, &results, kill, random.below(1200))).collect::<Vec<_>>()
    });
    let (refused, broken) = (results.refused.load(Ordering::Relaxed), results.broken.load(Ordering::Relaxed));
    assert_eq!(refused, 0, "connections are accepted at all times");
    assert!(broken <= kills * CLIENTS, "{broken} responses cut off by {kills} kills under {CLIENTS} clients");
    finish(busy, &marks);
}

/// Kills the worker once and waits until the next one responds. Returns how many batches each receiver had after the kill.
fn kill_once(busy: &Busy, results: &Results, kill: usize, after_ms: u64) -> (usize, usize) {
    // why: the test kills at a random time after the worker has responded
    std::thread::sleep(Duration::from_millis(after_ms));
    let worker = busy.outrigger.worker();
    send_signal(worker, Signal::KILL);
    until(PATIENCE, "the worker has exited", || !is_alive(worker));
    let mark = (busy.out.count(), busy.file.count());
    let before = results.answered.load(Ordering::Relaxed);
    until(PATIENCE, &format!("the next worker responds after kill {kill}"), || {
        results.answered.load(Ordering::Relaxed) > before + CLIENTS && busy.outrigger.find_worker().is_some()
    });
    assert_eq!(busy.outrigger.app(), busy.app, "the app is the same process");
    mark
}

/// A worker is stopped for five seconds: the app keeps running, nothing is lost, and connections of that time are served.
#[test]
fn a_stopped_worker_blocks_and_loses_nothing() {
    let busy = need!(start(), "python3 or git is not installed");
    let results = Results::default();
    let marks = while_clients_send(&busy.front, &results, || {
        until(PATIENCE, "some responses", || results.answered.load(Ordering::Relaxed) > 20);
        let worker = busy.outrigger.worker();
        send_signal(worker, Signal::STOP);
        let (stopped, passed_before) = (Instant::now(), lines_passed(&busy));
        let mark = (busy.out.count(), busy.file.count());
        let early = TcpStream::connect(&busy.front);
        assert!(early.is_ok(), "a connection is accepted while the worker is stopped: {early:?}");
        until(PATIENCE, "five seconds", || stopped.elapsed() >= 5 * SECOND);
        let passed = lines_passed(&busy) - passed_before;
        assert!(passed > 500, "the app kept writing: {passed} lines in five seconds");
        // The watchdog may have replaced it already; then there is nothing to continue.
        send_signal(worker, Signal::CONT);
        let before = results.answered.load(Ordering::Relaxed);
        until(PATIENCE, "responses again", || results.answered.load(Ordering::Relaxed) > before + 20);
        vec![mark]
    });
    assert_eq!(results.refused.load(Ordering::Relaxed), 0, "connections are accepted at all times");
    let broken = results.broken.load(Ordering::Relaxed);
    assert!(broken <= CLIENTS, "{broken} responses cut off by one stop under {CLIENTS} clients");
    assert_eq!(busy.outrigger.app(), busy.app, "the app is the same process");
    finish(busy, &marks);
}

/// Runs the body while clients open new connections; they are stopped when it ends, however it ends.
fn while_clients_send<T>(front: &str, results: &Results, body: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| get_until(&stop, front, results));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn lines_passed(busy: &Busy) -> usize {
    busy.outrigger.stdout.bytes().iter().filter(|byte| **byte == b'\n').count()
}

/// The four jobs still work, the app exits as usual, and exactly what it wrote has arrived.
fn finish(busy: Busy, marks: &[(usize, usize)]) {
    let Busy { scene, repository, out, file, outrigger, app, .. } = busy;
    let to = scene.path("settings");
    repository.push(2);
    until(PATIENCE, "a push is still published", || published(&to) == Ok(Some(2)));
    until(PATIENCE, "the app still gets its signal", || {
        outrigger.stdout.contains("app reloaded with generation=000002")
    });
    let page = format!("127.0.0.1:{}", scene.value("page"));
    until(PATIENCE, "the app is still scraped", || {
        Exposition::of(&page).and_then(|page| page.value("shop_queue_depth")) == Some(3.0)
    });
    assert!(is_alive(app));
    let exit = outrigger.finish();
    assert_eq!(exit.code, 5, "the app's own exit code");
    assert!(!exit.stdout.contains("Traceback"), "{}", exit.stdout);
    // A killed proxy resets the connections that it had open; Python's server prints that; it is not an error of the app.
    let faults = exit.stderr.lines().filter_map(|line| line.split_once(": ").map(|(name, _)| name));
    let mut faults = faults.filter(|name| name.ends_with("Error") && !name.contains(' '));
    assert!(faults.all(|name| matches!(name, "ConnectionResetError" | "BrokenPipeError")), "{}", exit.stderr);
    let last = exit.stdout.lines().find_map(|line| number_after(line, "app stopping after "));
    let last = last.expect("the app prints how many lines it wrote");
    let passed: Vec<usize> = exit.stdout.lines().filter_map(|line| number_after(line, "app n=")).collect();
    crate::harness::assert_counts_up(&passed, last);
    let first: Vec<usize> = marks.iter().map(|mark| mark.0).collect();
    let second: Vec<usize> = marks.iter().map(|mark| mark.1).collect();
    assert_none_lost(&out, "app n=", last, &first);
    assert_none_lost(&file, "file n=", last, &second);
}

/// Every number arrived; a repeated number first arrived in a batch that was in flight at a kill.
#[track_caller]
fn assert_none_lost(receiver: &LogReceiver, mark: &str, count: usize, kills: &[usize]) {
    receiver.assert_well_formed();
    let batches = receiver.batches();
    let mut first: BTreeMap<usize, usize> = BTreeMap::new();
    let mut repeated = 0;
    for (place, number) in numbers(&batches, mark) {
        let Some(before) = first.insert(number, place) else { continue };
        repeated += 1;
        // The batch arrived before the kill by no more than may be in flight, and again after it.
        let in_flight =
            kills.iter().any(|kill| before + IN_FLIGHT >= *kill && before <= kill + IN_FLIGHT && place >= *kill);
        assert!(in_flight, "{mark}{number} arrived in batch {before} and again in {place}; kills at {kills:?}");
    }
    let missing: Vec<usize> = (0..count).filter(|number| !first.contains_key(number)).take(10).collect();
    assert!(missing.is_empty(), "{mark} lost, the first of them: {missing:?} of {count}");
    assert_eq!(first.len(), count, "no unknown number arrived");
    eprintln!("{mark} {count} lines in {} batches, {repeated} repeated after {} kills", batches.len(), kills.len());
}

fn numbers<'a>(batches: &'a [Batch], mark: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    batches.iter().enumerate().flat_map(move |(place, batch)| {
        batch.records.iter().filter_map(move |record| Some((place, number_after(&record.message, mark)?)))
    })
}
