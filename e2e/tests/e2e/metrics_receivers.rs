//! Metric receivers and targets in edge cases of HTTP: a `Retry-After` of zero, URLs with percent-encoded users and
//! without a path, empty and invalid labels, and a stop while targets and receivers hang. Servers of the test record head
//! and time of each request; bounded by the deadline of a stop.

use std::time::{Duration, Instant};

use crate::harness::outrigger::outrigger;
use crate::harness::process::{has_ended, run_to_end};
use crate::harness::{
    Answer, Findings, LogReceiver, Outrigger, PATIENCE, Page, SECOND, Scene, Target, Wait, free_port, until, within,
};
use crate::metrics_faults::written;

/// An HTTP date (RFC 9110, 5.6.7) this many seconds from now.
fn http_date(seconds_from_now: u32) -> String {
    let when = format!("now + {seconds_from_now} seconds");
    let command = ["env", "LC_ALL=C", "date", "-u", "-d", &when, "+%a, %d %b %Y %H:%M:%S GMT"];
    let (code, date, _) = run_to_end(&command, PATIENCE);
    assert_eq!(code, 0, "date(1) prints a date");
    date.trim_end().to_owned()
}

const RETRYING: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { files: { file: { include: ["@dir@/in.log"] } } }
  sinks: { lines: { http: { url: "http://@receiver@/lines" } } }
metrics:
  sources: { self: { self: { interval: 100ms } } }
  sinks:
    zero:   { remote_write: { url: "http://@receiver@/zero" } }
    past:   { remote_write: { url: "http://@receiver@/past" } }
    future: { remote_write: { url: "http://@receiver@/future" } }
"#;

/// `Retry-After` is a lower limit in addition to Outrigger's own backoff, and never causes an immediate retry; a date in
/// the future is waited for (RFC 9110, 10.2.3).
/// Guarantee: retry-after-honoured
#[test]
fn retry_after_never_shortens_the_backoff() {
    /// Requests that a receiver rejects, and the minimum time for all of them.
    const REFUSED: usize = 4;
    const LEAST: Duration = Duration::from_millis(300);
    let scene = Scene::new();
    let receiver = Target::start(|request, round| match request.head.target() {
        "/future" if round == 0 => Page::status("503 Service Unavailable", &format!("Retry-After: {}", http_date(4))),
        "/past" if round < REFUSED => {
            Page::status("429 Too Many Requests", "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT")
        }
        "/zero" | "/lines" if round < REFUSED => Page::status("503 Service Unavailable", "Retry-After: 0"),
        _ => Page::status("200 OK", "X-Taken: yes"),
    });
    scene.set("receiver", receiver.address());
    scene.write("in.log", "a line\n");
    let outrigger = Outrigger::start(&scene, RETRYING, &[]);
    let mut findings = Findings::default();
    for path in ["/zero", "/past", "/lines"] {
        receiver.wait_for_rounds(path, REFUSED, PATIENCE);
        let times = receiver.times(path);
        let took = times[REFUSED - 1] - times[0];
        findings.check(took >= LEAST, || format!("{path}: {REFUSED} requests within {took:?}"));
        receiver.wait_for_rounds(path, REFUSED + 1, PATIENCE);
    }
    receiver.wait_for_rounds("/future", 2, PATIENCE);
    let times = receiver.times("/future");
    // A date has a resolution of one second: four seconds are more than three.
    findings.check(times[1] - times[0] > Duration::from_millis(2500), || {
        format!("a receiver with a date 4 s ahead got a retry after {:?}", times[1] - times[0])
    });
    outrigger.finish();
}

const URLS: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { files: { file: { include: ["@dir@/in.log"] } } }
  sinks: { lines: { http: { url: "http://a%2Fb:c%25d@@receiver@/lines" } } }
metrics:
  sources:
    named:  { scrape: { url: "http://u%40x:p%3Aw@@target@/named", interval: 300ms } }
    plain:  { scrape: { url: "http://u+x:p+w@@target@/plain", interval: 300ms } }
    query:  { scrape: { url: "http://@bare@?x=1", interval: 300ms } }
    bare:   { scrape: { url: "http://@bare@", interval: 300ms } }
  sinks:
    central: { remote_write: { url: "http://caf%C3%A9:p%20w@@receiver@/write", external_labels: { zone: "", region: eu } } }
    query:   { remote_write: { url: "http://@other@?tenant=a", external_labels: { zone: "" } } }
    decoded: { remote_write: { url: "http://@decoder@/api/v1/write", external_labels: { zone: "", region: eu } } }
"#;

/// A user and password in a URL are percent-decoded before they are sent (RFC 3986, 2.1; RFC 7617, 2), and a plus stays
/// a plus; a URL without a path requests `/` (RFC 9112, 3.2.1); an empty label is not sent.
#[test]
fn urls_are_decoded_and_empty_labels_not_sent() {
    let (scene, decoder) = (Scene::new(), LogReceiver::start());
    let page = || Page::text("up_and_well 1\n");
    let (target, bare) = (Target::start(move |_, _| page()), Target::start(move |_, _| page()));
    let taken = || Page::status("200 OK", "X-Taken: yes");
    let (receiver, other) = (Target::start(move |_, _| taken()), Target::start(move |_, _| taken()));
    for (name, address) in [
        ("target", target.address()),
        ("bare", bare.address()),
        ("receiver", receiver.address()),
        ("other", other.address()),
        ("decoder", decoder.address()),
    ] {
        scene.set(name, address);
    }
    scene.write("in.log", "a line\n");
    let outrigger = Outrigger::start(&scene, URLS, &[]);
    let mut findings = Findings::default();
    // printf 'u@x:p:w' | base64, and so on.
    let credentials = [
        (&target, "/named", "Basic dUB4OnA6dw=="),
        (&target, "/plain", "Basic dSt4OnArdw=="),
        (&receiver, "/write", "Basic Y2Fmw6k6cCB3"),
        (&receiver, "/lines", "Basic YS9iOmMlZA=="),
    ];
    for (server, path, expected) in credentials {
        server.wait_for_rounds(path, 1, PATIENCE);
        let head = server.heads(path).pop().expect("just requested");
        let sent = head.header("authorization");
        findings.check(sent == Some(expected), || format!("{path} got {sent:?}, expected {expected}"));
    }
    for (server, path) in [(&bare, "/?x=1"), (&bare, "/"), (&other, "/?tenant=a")] {
        let requested = within(5 * SECOND, || server.rounds(path) > 0);
        findings.check(requested, || format!("{path} was not requested"));
    }
    until(PATIENCE, "samples at the receiver", || !written(&decoder, "up_and_well").is_empty());
    let samples = written(&decoder, "up_and_well");
    findings.check(samples.iter().all(|sample| !sample.labels.contains_key("zone")), || {
        format!("an empty label is sent: {:?}", samples[0].labels)
    });
    assert!(samples.iter().all(|sample| sample.labels["region"] == "eu"), "{:?}", samples[0].labels);
    outrigger.finish();
}

/// A label name that no receiver accepts is a configuration error, reported with its location before anything starts.
#[test]
fn invalid_label_names_are_rejected() {
    let scene = Scene::new();
    let mut findings = Findings::default();
    for name in ["my-label", "1a", "a b", "", "caf\u{e9}", "a.b", "__name__"] {
        let text = format!(
            "metrics:\n  sources: {{ self: {{ self: {{}} }} }}\n  sinks:\n    central:\n      remote_write:\n        \
             url: \"http://127.0.0.1:1/write\"\n        external_labels:\n          zone: \"\"\n          \"{name}\": x\n"
        );
        let config = scene.write("outrigger.yaml", text).display().to_string();
        let (code, _, stderr) = outrigger(&["validate", "-c", &config]);
        let reported = stderr.contains("outrigger.yaml:9:") && stderr.contains(&format!("`{name}`"));
        findings.check(code == 1 && reported, || format!("the label `{name}`: exit {code}, {stderr}"));
    }
    let valid = r#"
metrics:
  sources: { self: { self: {} } }
  sinks: { central: { remote_write: { url: "http://127.0.0.1:1/write", external_labels: { zone: "", _a1: x } } } }
"#;
    let config = scene.write("outrigger.yaml", valid).display().to_string();
    let (code, _, stderr) = outrigger(&["validate", "-c", &config]);
    findings.check(code == 0, || format!("an empty label and `_a1` are rejected: {stderr}"));
}

const HANGING: &str = r#"
app: { stop: { drain_timeout: 20s, grace_period: 10s, timeout: 60s } }
metrics:
  sources:
    hangs: { scrape: { url: "http://@target@/hangs", interval: 60s } }
    half:  { scrape: { url: "http://@target@/half", interval: 60s } }
    self:  { self: { interval: 200ms } }
  sinks: { @sinks@ }
"#;

/// The last scrape has a limit of two seconds; four times that on a shared machine.
const CUT: Duration = Duration::from_secs(8);

/// A stop does not wait for a scrape that hangs, before its response or in the middle of it: the scrape is cancelled, and
/// the app gets its signal.
/// Guarantee: hung-target-contained
#[test]
fn a_hanging_scrape_does_not_delay_a_stop() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let target = hanging_target(&scene);
    scene.set(
        "sinks",
        format!("central: {{ remote_write: {{ url: \"http://{}/api/v1/write\" }} }}", receiver.address()),
    );
    let handles = scene.path("handles");
    let script = format!("trap 'exit 3' TERM; : > {}; while :; do sleep 0.05; done", handles.display());
    let outrigger = Outrigger::start_and(&scene, HANGING, &["sh", "-c", &script], Wait::Started);
    until(PATIENCE, "the app handles its signal", || handles.exists());
    target.wait_for_rounds("/hangs", 1, PATIENCE);
    target.wait_for_rounds("/half", 1, PATIENCE);
    let app = outrigger.app();
    let began = Instant::now();
    outrigger.signal(crate::harness::process::Signal::TERM);
    let mut findings = Findings::default();
    until(90 * SECOND, "the app has its signal", || has_ended(app));
    let signalled = began.elapsed();
    findings.check(signalled < CUT, || format!("the app got its signal after {signalled:?}"));
    let exit = outrigger.wait(90 * SECOND);
    findings.check(began.elapsed() < 2 * CUT, || format!("Outrigger exited after {:?}", began.elapsed()));
    assert_eq!(exit.code, 3, "{}", exit.stderr);
}

fn hanging_target(scene: &Scene) -> Target {
    let target = Target::start(|request, _| match request.head.target() {
        "/hangs" => Page::hanging(),
        _ => Page::half("up_and_well 1\n"),
    });
    scene.set("target", target.address());
    target
}

/// The exit code of an app that exits by itself is returned soon, whatever hangs: targets, and metric receivers that are
/// silent, absent or busy.
#[test]
fn app_exit_is_not_delayed_by_metric_receivers() {
    /// A dead receiver has its own short limit: far below the deadline of the stop, and below Outrigger's timeout of
    /// 30 s.
    const SOON: Duration = Duration::from_secs(20);
    let (scene, silent) = (Scene::new(), LogReceiver::answering(Answer::Hang));
    let busy = LogReceiver::answering(Answer::Status(503));
    let target = hanging_target(&scene);
    let addresses = [silent.address(), format!("127.0.0.1:{}", free_port()), busy.address()];
    let sink = |(number, address): (usize, &String)| {
        format!("sink{number}: {{ remote_write: {{ url: \"http://{address}/api/v1/write\" }} }}")
    };
    scene.set("sinks", addresses.iter().enumerate().map(sink).collect::<Vec<_>>().join(", "));
    let script = format!("until [ -e {} ]; do sleep 0.05; done; exit 7", scene.text_path("go"));
    let outrigger = Outrigger::start_and(&scene, HANGING, &["sh", "-c", &script], Wait::Started);
    target.wait_for_rounds("/hangs", 1, PATIENCE);
    silent.wait_for_refused(1, PATIENCE);
    busy.wait_for_refused(2, PATIENCE);
    scene.write("go", "");
    let began = Instant::now();
    let exit = outrigger.wait(90 * SECOND);
    let mut findings = Findings::default();
    findings.check(began.elapsed() < SOON, || format!("exit after {:?}", began.elapsed()));
    findings.check(exit.code == 7, || format!("the exit code is {}", exit.code));
}
