//! The worker killed, or stopped, at random moments under all four jobs: no line of the app is lost, what is repeated was in
//! flight, new connections are answered by the next worker, and the app notices nothing. The random numbers come from a
//! seed that is printed, and `E2E_SEED` repeats a run. Bounded by twenty kills within a minute.

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

/// All four jobs, busy: the app logs a line every two milliseconds, is scraped, configured and asked.
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

/// How many batches a sink may have under way at once. A kill may repeat these and no others.
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

/// Everything running and the app answering through the proxy; `None` where python or git is missing.
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
    until(PATIENCE, "the app answers through the proxy", || {
        get(&front, "/health").is_ok_and(|reply| reply.status == 200)
    });
    let app = outrigger.app();
    Some(Busy { scene, repository, out, file, outrigger, app, front })
}

/// What the clients met while the worker came and went.
#[derive(Default)]
struct Met {
    answered: AtomicUsize,
    /// Connected, but the answer did not come whole: it was in flight when the worker died.
    broken: AtomicUsize,
    /// Could not even connect. Never right: the supervisor holds the listening socket.
    refused: AtomicUsize,
}

/// A client that opens a new connection for each request, one after the other.
fn get_until(stop: &AtomicBool, front: &str, met: &Met) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect(front) else {
            met.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        stream.set_read_timeout(Some(PATIENCE)).ok();
        let mut wire = Wire::new(stream);
        let sent = wire.send("GET /health HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
        let whole = sent.and_then(|()| wire.reply("GET")).is_ok_and(|reply| reply.status == 200 && reply.body.whole);
        let counter = if whole { &met.answered } else { &met.broken };
        counter.fetch_add(1, Ordering::Relaxed);
        // why: the pace of a client, which leaves the rest of the machine to those under test
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Twenty kills at random moments, every promise checked at the end.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 15
#[test]
fn twenty_kills_of_the_worker_lose_nothing_and_the_app_notices_nothing() {
    let busy = need!(start(), "python3 or git is not installed");
    let met = Met::default();
    let mut random = Random::seeded();
    let kills = 20;
    let marks = while_clients_send(&busy.front, &met, || {
        (0..kills).map(|kill| kill_once(&busy, &met, kill, random.below(1200))).collect::<Vec<_>>()
    });
    let (refused, broken) = (met.refused.load(Ordering::Relaxed), met.broken.load(Ordering::Relaxed));
    assert_eq!(refused, 0, "connections are taken at every moment");
    assert!(broken <= kills * CLIENTS, "{broken} answers broken by {kills} kills under {CLIENTS} clients");
    finish(busy, &marks);
}

/// Kills the worker once and waits for the next one to answer: how many batches each receiver had by then.
fn kill_once(busy: &Busy, met: &Met, kill: usize, after_ms: u64) -> (usize, usize) {
    // why: a random moment in the life of a worker that has answered is what is tested
    std::thread::sleep(Duration::from_millis(after_ms));
    let worker = busy.outrigger.worker();
    send_signal(worker, Signal::KILL);
    until(PATIENCE, "the worker is dead", || !is_alive(worker));
    let mark = (busy.out.count(), busy.file.count());
    let before = met.answered.load(Ordering::Relaxed);
    until(PATIENCE, &format!("the next worker answers after kill {kill}"), || {
        met.answered.load(Ordering::Relaxed) > before + CLIENTS && busy.outrigger.find_worker().is_some()
    });
    assert_eq!(busy.outrigger.app(), busy.app, "the app is the same process");
    mark
}

/// The worker stopped for five seconds: the app goes on, nothing is lost, and connections made meanwhile are answered.
/// covers: foundation 4
/// covers: foundation 5
/// covers: foundation 15
#[test]
fn a_worker_stopped_for_five_seconds_blocks_nobody_and_loses_nothing() {
    let busy = need!(start(), "python3 or git is not installed");
    let met = Met::default();
    let marks = while_clients_send(&busy.front, &met, || {
        until(PATIENCE, "some answers", || met.answered.load(Ordering::Relaxed) > 20);
        let worker = busy.outrigger.worker();
        send_signal(worker, Signal::STOP);
        let (stopped, passed_before) = (Instant::now(), lines_passed(&busy));
        let mark = (busy.out.count(), busy.file.count());
        let early = TcpStream::connect(&busy.front);
        assert!(early.is_ok(), "a connection is taken while the worker is stopped: {early:?}");
        until(PATIENCE, "five seconds", || stopped.elapsed() >= 5 * SECOND);
        let passed = lines_passed(&busy) - passed_before;
        assert!(passed > 500, "the app wrote on: {passed} lines in five seconds");
        // The watchdog may have replaced it meanwhile; then there is nothing to continue.
        send_signal(worker, Signal::CONT);
        let before = met.answered.load(Ordering::Relaxed);
        until(PATIENCE, "answers again", || met.answered.load(Ordering::Relaxed) > before + 20);
        vec![mark]
    });
    assert_eq!(met.refused.load(Ordering::Relaxed), 0, "connections are taken at every moment");
    let broken = met.broken.load(Ordering::Relaxed);
    assert!(broken <= CLIENTS, "{broken} answers broken by one stop under {CLIENTS} clients");
    assert_eq!(busy.outrigger.app(), busy.app, "the app is the same process");
    finish(busy, &marks);
}

/// Runs the body while clients open new connections; they are stopped when it ends, however it ends.
fn while_clients_send<T>(front: &str, met: &Met, body: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| get_until(&stop, front, met));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn lines_passed(busy: &Busy) -> usize {
    busy.outrigger.stdout.bytes().iter().filter(|byte| **byte == b'\n').count()
}

/// The four jobs still work, the app ends as ever, and what it wrote is what arrived.
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
    // A killed proxy resets the connections that it had open; Python's server prints that, and it is no fault of the app.
    let faults = exit.stderr.lines().filter_map(|line| line.split_once(": ").map(|(name, _)| name));
    let mut faults = faults.filter(|name| name.ends_with("Error") && !name.contains(' '));
    assert!(faults.all(|name| matches!(name, "ConnectionResetError" | "BrokenPipeError")), "{}", exit.stderr);
    let last = exit.stdout.lines().find_map(|line| number_after(line, "app stopping after "));
    let last = last.expect("the app says how many lines it wrote");
    let passed: Vec<usize> = exit.stdout.lines().filter_map(|line| number_after(line, "app n=")).collect();
    crate::harness::assert_counts_up(&passed, last);
    let first: Vec<usize> = marks.iter().map(|mark| mark.0).collect();
    let second: Vec<usize> = marks.iter().map(|mark| mark.1).collect();
    assert_none_lost(&out, "app n=", last, &first);
    assert_none_lost(&file, "file n=", last, &second);
}

/// Every number arrived, and one that arrived again had first come in one of the batches that were in flight at a kill.
#[track_caller]
fn assert_none_lost(receiver: &LogReceiver, mark: &str, count: usize, kills: &[usize]) {
    receiver.assert_well_formed();
    let batches = receiver.batches();
    let mut first: BTreeMap<usize, usize> = BTreeMap::new();
    let mut repeated = 0;
    for (place, number) in numbers(&batches, mark) {
        let Some(before) = first.insert(number, place) else { continue };
        repeated += 1;
        // The batch came before the kill by no more than may be in flight, and came again after it.
        let in_flight =
            kills.iter().any(|kill| before + IN_FLIGHT >= *kill && before <= kill + IN_FLIGHT && place >= *kill);
        assert!(in_flight, "{mark}{number} came in batch {before} and again in {place}; kills at {kills:?}");
    }
    let missing: Vec<usize> = (0..count).filter(|number| !first.contains_key(number)).take(10).collect();
    assert!(missing.is_empty(), "{mark} lost, the first of them: {missing:?} of {count}");
    assert_eq!(first.len(), count, "nothing was invented");
    eprintln!("{mark} {count} lines in {} batches, {repeated} repeated after {} kills", batches.len(), kills.len());
}

fn numbers<'a>(batches: &'a [Batch], mark: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    batches.iter().enumerate().flat_map(move |(place, batch)| {
        batch.records.iter().filter_map(move |record| Some((place, number_after(&record.message, mark)?)))
    })
}
