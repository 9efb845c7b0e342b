//! Receivers with unusual responses, full disks, and configurations of logs that cannot work. In: scripted receivers,
//! small volumes, texts. Out: how often each line was sent, what a restart repeats, and the messages of `validate`.
//! Bounded by some thousand lines and a few seconds of rejections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::harness::ledger::dropped;
use crate::harness::log_files::{
    LogFiles, await_degraded, missing_and_repeated, numbered, outcome, replace_worker, settle, warnings,
};
use crate::harness::process::{Signal, run_to_end, send_signal};
use crate::harness::server::Server;
use crate::harness::volume::{NO_VOLUME, Volume};
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wait, Wire, ledger_row, number_after, until, within,
};

const FAST: &str = "poll_interval: 50ms, scan_interval: 200ms";

/// A receiver that responds with scripted bytes and closes, and records when each body arrived.
struct Scripted {
    server: Server,
    requests: Arc<Mutex<Vec<Received>>>,
}

/// When a request arrived, and its body.
type Received = (Instant, Vec<u8>);

impl Scripted {
    /// `respond` gets the index of the request, starting at 0.
    fn start(respond: impl Fn(usize) -> String + Send + Sync + 'static) -> Self {
        let requests = Arc::<Mutex<Vec<Received>>>::default();
        let received = requests.clone();
        let server = Server::start(move |stream| {
            let mut wire = Wire::new(stream);
            let Ok(Some(head)) = wire.head() else { return };
            let Ok(body) = wire.request_body(&head) else { return };
            let number = {
                let mut received = received.lock().expect("no holder panics");
                received.push((Instant::now(), body.bytes));
                received.len() - 1
            };
            // A client may have disconnected already.
            wire.send(respond(number)).ok();
        });
        Self { server, requests }
    }

    fn times(&self) -> Vec<Instant> {
        self.requests.lock().expect("no holder panics").iter().map(|(time, _)| *time).collect()
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.requests.lock().expect("no holder panics").iter().map(|(_, body)| body.clone()).collect()
    }
}

/// A sink for each receiver, by name.
fn with_sinks(files: LogFiles, receivers: &BTreeMap<&str, Scripted>) -> LogFiles {
    let sink = |(name, receiver): (&&str, &Scripted)| {
        let endpoint = format!("http://{}/lines", receiver.server.address());
        format!("    {name}: {{ http: {{ url: \"{endpoint}\", compression: none }}, batch: {{ max_age: 50ms }} }}\n")
    };
    let sinks: String = receivers.iter().map(sink).collect();
    files.and(&sinks)
}

const ACCEPTED: &str = "HTTP/1.1 204 No Content\r\n\r\n";

fn refusal(status: &str, retry_after: &str) -> String {
    format!("HTTP/1.1 {status}\r\nRetry-After: {retry_after}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// The time this many seconds from now, in a format of RFC 9110, 5.6.7, and as an instant. Fractions of a second are cut.
fn date(seconds: u64, form: &str) -> (String, Instant) {
    let (now, instant) = (SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"), Instant::now());
    let then = Duration::from_secs(now.as_secs() + seconds);
    let (code, text, _) = run_to_end(
        &["env", "LC_ALL=C", "date", "-u", "-d", &format!("@{}", then.as_secs()), &format!("+{form}")],
        PATIENCE,
    );
    assert_eq!(code, 0, "date prints a date");
    (text.trim().to_owned(), instant + (then - now))
}

/// `Retry-After` only lengthens a delay: 0 leaves the own backoff, which grows, and seconds and both usual formats
/// of a date (RFC 9110, 10.2.3) are respected.
/// Guarantee: retry-after-honoured
#[test]
fn retry_after_is_a_lower_bound() {
    let (imf, imf_at) = date(4, "%a, %d %b %Y %H:%M:%S GMT");
    let (rfc850, rfc850_at) = date(4, "%A, %d-%b-%y %H:%M:%S GMT");
    let done = Arc::<AtomicBool>::default();
    let until_done = |rejection: String| {
        let done = done.clone();
        let accepts = move || done.load(Ordering::SeqCst);
        Scripted::start(move |_| if accepts() { ACCEPTED.to_owned() } else { rejection.clone() })
    };
    let once = |rejection: String| {
        Scripted::start(move |number| if number == 0 { rejection.clone() } else { ACCEPTED.to_owned() })
    };
    let receivers = BTreeMap::from([
        ("zero", until_done(refusal("429 Too Many Requests", "0"))),
        ("zero503", until_done(refusal("503 Service Unavailable", "0"))),
        ("past", until_done(refusal("429 Too Many Requests", "Sun, 06 Nov 1994 08:49:37 GMT"))),
        ("two", once(refusal("429 Too Many Requests", "2"))),
        ("imf", once(refusal("503 Service Unavailable", &imf))),
        ("rfc850", once(refusal("429 Too Many Requests", &rfc850))),
    ]);
    let files = with_sinks(LogFiles::new(&["in"], &["in/*.log"], FAST), &receivers);
    files.append("in/a.log", numbered(0..10));
    let outrigger = files.start();
    let dated = ["two", "imf", "rfc850"];
    until(PATIENCE, "requests with a delay are retried", || dated.iter().all(|name| receivers[name].times().len() > 1));
    // If the dates were respected, they have passed here.
    until(PATIENCE, "the dates have passed", || Instant::now() > imf_at.max(rfc850_at));
    let counts = ["zero", "zero503", "past"].map(|name| (name, receivers[name].times().len()));
    let early = |name: &str, at: Instant| at.saturating_duration_since(receivers[name].times()[1]);
    let two = receivers["two"].times()[0] + 2 * SECOND;
    let early = [("two", early("two", two)), ("imf", early("imf", imf_at)), ("rfc850", early("rfc850", rfc850_at))];
    // Delays of 250 ms, 500 ms, 1 s and 2 s, each a quarter shorter: five requests in 4 s; four times as many are too
    // many.
    let in_range = counts.iter().all(|(_, count)| (2..=20).contains(count));
    assert!(
        in_range && early.iter().all(|(_, early)| early.is_zero()),
        "requests within four seconds: {counts:?}; retried too early by: {early:?}"
    );
    done.store(true, Ordering::SeqCst);
    outrigger.finish();
    let again = counts.iter().all(|(name, count)| receivers[name].times().len() > *count);
    assert!(again, "rejected lines are delivered at the stop");
}

/// The status decides, even if the response body is truncated: neither accepted nor rejected lines are sent again.
#[test]
fn status_line_decides_despite_a_truncated_body() {
    let cut = |head: &'static str| Scripted::start(move |_| head.to_owned());
    let receivers = BTreeMap::from([
        ("short", cut("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")),
        ("empty", cut("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")),
        ("chunked", cut("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok")),
        ("broken", cut("HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n")),
        ("refused", cut("HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\nline 1 is")),
    ]);
    let files = with_sinks(LogFiles::new(&["in"], &["in/*.log"], FAST), &receivers);
    let outrigger = files.start();
    files.append("in/a.log", numbered(0..10));
    until(PATIENCE, "each receiver gets a request", || receivers.values().all(|receiver| !receiver.times().is_empty()));
    files.append("in/a.log", numbered(10..20));
    let row = |name: &str| ledger_row(&outrigger.admin, &format!("logs.sinks.{name}"));
    let account = |name: &str| (row(name)["delivered"].as_u64().unwrap_or(0), dropped(&row(name)));
    let expected = |name: &str| if name == "refused" { (0, 20) } else { (20, 0) };
    within(5 * SECOND, || receivers.keys().all(|name| account(name) == expected(name)));
    let repeated = |name: &str| {
        let bodies = receivers[name].bodies().concat();
        let sent = String::from_utf8_lossy(&bodies).into_owned();
        let times = |number: &usize| sent.matches(&format!("n={number:06}")).count();
        // A rejected batch may be split and sent again, to find the offending line.
        (0..20).filter(|number| name != "refused" && times(number) > 1).count()
    };
    let names = receivers.keys().filter(|name| account(name) != expected(name) || repeated(name) > 0);
    let wrong: Vec<_> =
        names.map(|name| (*name, account(name), receivers[name].times().len(), repeated(name))).collect();
    assert_eq!(wrong, [], "name, delivered and dropped, requests, lines that were sent more than once");
    outrigger.finish();
}

/// A checkpoint that does not fit on a full state volume waits for space: until then the logs are degraded, with one warning
/// and not one per checkpoint, and a later kill repeats nothing.
#[test]
fn checkpoints_wait_for_space_on_a_full_volume() {
    let files = LogFiles::new(&["in"], &["in/*.log"], FAST);
    let volume = need!(Volume::new(&files.scene, "state", "64k", 0), NO_VOLUME);
    files.append("in/first.log", numbered(0..1));
    let outrigger = volume.start(&files.scene, files.body());
    files.receiver.wait_for(1, PATIENCE);
    settle(&outrigger, "logs.sinks.main");
    volume.fill(&outrigger);
    // Checkpoints of 200 files need more than the one available block.
    for number in 0..200 {
        files.append(&format!("in/{number:03}.log"), numbered(1 + number * 5..1 + number * 5 + 5));
    }
    files.receiver.wait_for(1001, PATIENCE);
    settle(&outrigger, "logs.sinks.main");
    let degraded = within(5 * SECOND, || outcome(&outrigger).0 == "degraded");
    let (state, warned) = (outcome(&outrigger), warnings(&outrigger).len());
    volume.free(&outrigger);
    within(5 * SECOND, || outcome(&outrigger).0 == "ok");
    let recovered = outcome(&outrigger).0 == "ok";
    replace_worker(&outrigger);
    files.append("in/last.log", numbered(1001..1002));
    until(PATIENCE, "a line after the kill", || files.sorted().contains(&1001));
    settle(&outrigger, "logs.sinks.main");
    let repeated = missing_and_repeated(&files.sorted(), 0..1001).1;
    assert!(
        degraded && recovered && warned <= 4 && repeated == 0,
        "{repeated} of 1,001 lines were repeated; on the full volume: {warned} warnings, {state:?}; recovered with space: {recovered}"
    );
    outrigger.finish();
}

const LINES: usize = 8000;

fn line(number: usize) -> String {
    format!("a line of just ninety-seven bytes {} n={number:06}\n", "x".repeat(53))
}

/// In a file that is `raw` or JSON: the number of lines that are nowhere complete, and what is neither a line nor the
/// beginning of one.
fn missing_and_fused(text: &str, json: bool) -> (usize, Vec<String>) {
    let begins = if json { "{\"message\":\"a line of just" } else { "a line of just" };
    let message = |found: &str| match json {
        true => Some(serde_json::from_str::<serde_json::Value>(found).ok()?["message"].as_str()?.to_owned()),
        false => Some(found.to_owned()),
    };
    let (mut complete, mut fused) = (vec![false; LINES], Vec::new());
    for found in text.lines() {
        let number = number_after(found, "n=").filter(|number| *number < LINES);
        if let Some(number) =
            number.filter(|number| message(found).is_some_and(|text| text == line(*number).trim_end()))
        {
            complete[number] = true;
        } else if found.matches("a line of").count() > 1 || !(found.starts_with(begins) || begins.starts_with(found)) {
            fused.push(found.to_owned());
        }
    }
    (complete.iter().filter(|complete| !**complete).count(), fused)
}

/// A line that a full disk truncated in a sink's file stays a separate line when another worker continues the file: no
/// two lines are fused, and each is complete.
#[test]
fn line_cut_by_a_full_disk_stays_separate() {
    let mut wrong = Vec::new();
    for format in ["raw", "json"] {
        let sink = "    copy: { file: { path: \"@dir@/out/copy\", format: @format@ }, batch: { max_age: 50ms } }\n";
        let files = LogFiles::new(&["in", "out"], &["in/*.log"], FAST).and(sink);
        files.scene.set("format", format);
        let volume = need!(Volume::new(&files.scene, "out", "8m", 7_900_000), NO_VOLUME);
        let outrigger = volume.start(&files.scene, files.body());
        let read = || std::fs::read_to_string(volume.path(&outrigger, "copy")).unwrap_or_default();
        files.append("in/a.log", (0..LINES).map(line).collect::<String>());
        await_degraded(&outrigger, &["out/copy"]);
        // Killed while the disk is still full, so that the next worker opens the file with the truncated line.
        let before = outrigger.worker();
        send_signal(before, Signal::KILL);
        until(PATIENCE, "another worker", || outrigger.find_worker().is_some_and(|worker| worker != before));
        volume.free(&outrigger);
        outrigger.await_other(before, PATIENCE);
        let last = format!("n={:06}", LINES - 1);
        until(PATIENCE, "the last line", || read().contains(&last));
        settle(&outrigger, "logs.sinks.copy");
        let (missing, fused) = missing_and_fused(&read(), format == "json");
        if missing > 0 || !fused.is_empty() {
            wrong.push((format, missing, fused));
        }
        outrigger.finish();
    }
    assert!(wrong.is_empty(), "format, lines that are nowhere complete, lines that are fused: {wrong:?}");
}

/// Lines read by a killed worker are in its sink's buffer, and those no longer in the ring are lost with the worker: each
/// missing line is counted.
/// Guarantee: overwritten-lines-counted
#[test]
fn lines_lost_with_a_killed_worker_are_counted() {
    const LINES: usize = 20_000;
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(503)));
    scene.set("receiver", receiver.address());
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 9s } }\n\
                logs:\n  sources: { app: { stdio: { buffer: { max_bytes: 1MiB } } } }\n  \
                sinks: { main: { http: { url: \"http://@receiver@/lines\" }, batch: { max_age: 50ms } } }\n";
    let script =
        format!("i=0; while [ $i -lt {LINES} ]; do echo n=$i {}; i=$((i+1)); done; exec sleep 300", "q".repeat(90));
    let outrigger = Outrigger::start(&scene, body, &["sh", "-c", &script]);
    until(PATIENCE, "all lines are read", || ledger_row(&outrigger.admin, "logs.sources.app")["received"] == LINES);
    let worker = outrigger.worker();
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    receiver.answer(Answer::Accept);
    until(PATIENCE, "the last line", || receiver.newest("n=") == Some(LINES - 1));
    let row = || ledger_row(&outrigger.admin, "logs.sources.app");
    until(PATIENCE, "nothing is pending", || row()["pending"] == 0);
    let (missing, repeated) = missing_and_repeated(&receiver.sorted("n="), 0..LINES);
    assert!(missing > 0, "the ring cannot hold all lines");
    assert_eq!((dropped(&row()) as usize, repeated), (missing, 0), "{}", row());
    assert!(outrigger.stderr.contains("log records dropped before they could be read"));
    outrigger.finish();
}

/// What only optional sinks have not delivered at a stop is lost, and reported as lost: the backlog is for required sinks.
#[test]
fn output_for_optional_sinks_is_reported_lost() {
    for (required, expected) in [(false, "logs.sinks.main: 1 lost"), (true, "logs.sinks.main: 1 persisted")] {
        let scene = Scene::new();
        scene.port("closed");
        scene.set("required", required);
        let body = r#"
app: { stop: { drain_timeout: 0s, grace_period: 1s, timeout: 2s } }
logs:
  sources: { app: { stdio: {} } }
  sinks: { main: { http: { url: "http://127.0.0.1:@closed@/lines" }, required: @required@ } }
"#;
        let outrigger = Outrigger::start_and(&scene, body, &["sh", "-c", "echo the only line"], Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert!(exit.stderr.contains(expected), "required: {required}: {}", exit.stderr);
        assert_eq!(scene.path("state/logs/backlog").join("app.stdout").exists(), required);
    }
}
