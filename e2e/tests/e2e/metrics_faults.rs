//! Expositions found in the field: lines that are odd, forged, unordered or too many, responses in another format than
//! the requested one, and apps that listen late. In: scraped expositions. Out: samples, checked on Outrigger's endpoint
//! and at the remote-write end, a real Prometheus or a receiver that decodes. Bounded by some dozen scrapes per test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::harness::findings::outcomes;
use crate::harness::ledger::dropped;
use crate::harness::process::resident_kib;
use crate::harness::{
    Exposition, Findings, LogReceiver, Outrigger, PATIENCE, Page, Prometheus, SECOND, Scene, Target, free_port,
    ledger_row, until, within,
};

/// The value that marks the end of a series (prometheus.io/docs/specs/prw/remote_write_spec, "Stale Markers").
const STALE: u64 = 0x7ff0_0000_0000_0002;

/// One sample that a receiver got.
#[derive(Clone, Debug)]
pub struct Written {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    pub time_ms: i64,
}

impl Written {
    pub fn is_stale(&self) -> bool {
        self.value.to_bits() == STALE
    }
}

/// The samples of a metric that a receiver got, in order of arrival.
pub fn written(receiver: &LogReceiver, name: &str) -> Vec<Written> {
    let series = receiver.batches().into_iter().flat_map(|batch| batch.series).filter(|series| series.name() == name);
    let samples = series.flat_map(|series| {
        let labels: BTreeMap<String, String> =
            series.labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect();
        let sample = move |value: f64, time_ms| Written { labels: labels.clone(), value, time_ms };
        series.samples.into_iter().map(move |found| sample(found.value, found.timestamp))
    });
    samples.collect()
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is after the Unix epoch").as_millis()
}

/// How many samples a source dropped for a reason.
fn dropped_under(outrigger: &Outrigger, source: &str, reason: &str) -> u64 {
    let row = ledger_row(&outrigger.admin, &format!("metrics.sources.{source}"));
    row["dropped"][reason].as_u64().unwrap_or(0)
}

/// Whether none of the numbers that count the scrapes is missing.
fn count_up(values: &[f64]) -> bool {
    values.windows(2).all(|pair| pair[1] == pair[0] + 1.0)
}

const TO_PROMETHEUS: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources: { app: { scrape: { url: "http://@target@/metrics", interval: 300ms } } }
  sinks:
    page:    { prometheus: { listen: "127.0.0.1:@page@" } }
    central: { remote_write: { url: "http://@central@/api/v1/write" } }
"#;

/// A line whose labels contain a metric name would be a series with two names, which a receiver always rejects. Only that
/// line is dropped: it is counted and reported with its number, and all samples around it arrive.
#[test]
fn forged_metric_name_drops_only_its_line() {
    let scene = Scene::new();
    let prometheus = need!(Prometheus::start(&scene), "prometheus is not installed");
    let target = Target::start(|_, round| {
        Page::text(format!(
            "first {round}\nodd{{__name__=\"evil\"}} 1\nodd{{a=\"1\",__name__=\"first\"}} 7\n\
             odd{{__name__=\"odd\",z=\"1\"}} 1\nlast {round}\n"
        ))
    });
    scene.set("target", target.address());
    scene.set("central", &prometheus.address);
    let page = format!("127.0.0.1:{}", scene.port("page"));
    let outrigger = Outrigger::start(&scene, TO_PROMETHEUS, &[]);
    target.wait_for_rounds("/metrics", 3, PATIENCE);
    let mut findings = Findings::default();
    for name in ["first", "last"] {
        let enough = || prometheus.values(name).first().is_some_and(|values| values.len() >= 8);
        let arrived = within(10 * SECOND, enough);
        let values = prometheus.values(name);
        findings.check(arrived && values.len() == 1 && count_up(&values[0]), || format!("{name} has {values:?}"));
    }
    let odd = prometheus.values("{__name__=~\"odd|evil\"}");
    findings.check(odd.is_empty(), || format!("the odd lines arrived as {odd:?}"));
    let bad = dropped_under(&outrigger, "app", "parse_error");
    findings.check(bad > 0 && bad.is_multiple_of(3), || format!("{bad} bad lines are counted, with three per round"));
    let reports = outcomes(&outrigger);
    findings.check(reports.contains("line 2"), || format!("the status does not report line 2: {reports}"));
    let shown = Exposition::of(&page).expect("the endpoint responds");
    let forged: Vec<_> = shown.series.iter().filter(|series| series.labels.contains_key("__name__")).collect();
    findings.check(forged.is_empty(), || format!("the endpoint has {forged:?}"));
    outrigger.finish();
    prometheus.stop();
}

/// Samples that no receiver accepts, because their timestamp is in seconds, is constant, decreases, or occurs twice in one
/// exposition, are the only ones dropped: none of the good samples around them is lost, and dropped samples are counted.
#[test]
fn only_samples_with_bad_timestamps_are_dropped() {
    const GOOD: usize = 10;
    const ODD: u64 = 5;
    let scene = Scene::new();
    let prometheus = need!(Prometheus::start(&scene), "prometheus is not installed");
    let began = now_ms();
    let target = Target::start(move |_, round| {
        let mut text: String = (0..GOOD).map(|number| format!("good{{i=\"{number}\"}} {round}\n")).collect();
        // The first samples of a new Prometheus must be current: it uses the first timestamp that it sees.
        if round >= 3 {
            let (seconds, back) = (now_ms() / 1000, began - 1000 * round as u128);
            text.push_str(&format!("seconds {round} {seconds}\nfixed {round} {began}\nback {round} {back}\n"));
            text.push_str(&format!("twice {round}\ntwice {}\n", round + 1000));
        }
        Page::text(text + &format!("last {round}\n"))
    });
    scene.set("target", target.address());
    scene.set("central", &prometheus.address);
    scene.port("page");
    let outrigger = Outrigger::start(&scene, TO_PROMETHEUS, &[]);
    let mut findings = Findings::default();
    for name in ["good", "last"] {
        let enough = || prometheus.values(name).first().is_some_and(|values| values.len() >= 13);
        let arrived = within(10 * SECOND, enough);
        let series = prometheus.values(name);
        let complete = series.iter().all(|values| count_up(values));
        let expected = if name == "good" { GOOD } else { 1 };
        findings.check(arrived && complete && series.len() == expected, || format!("{name} has {series:?}"));
    }
    let fixed = prometheus.values("fixed");
    findings.check(fixed == [[3.0]], || {
        format!("the series with a constant timestamp has {fixed:?}, expected its first sample")
    });
    let (rounds, source) = (target.rounds("/metrics") as u64, ledger_row(&outrigger.admin, "metrics.sources.app"));
    let sink = ledger_row(&outrigger.admin, "metrics.sinks.central");
    let lost = dropped(&source) + dropped(&sink);
    findings.check(lost > 0 && lost <= ODD * rounds, || {
        format!("{lost} samples are dropped, expected at most the {} odd ones: {source} {sink}", ODD * rounds)
    });
    outrigger.finish();
    prometheus.stop();
}

const TO_RECEIVER: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources: { @sources@ }
  sinks:
    page:    { prometheus: { listen: "127.0.0.1:@page@" } }
    central: { remote_write: { url: "http://@central@/api/v1/write" } }
"#;

/// Outrigger with a source for each of these names, which scrapes the path of that name five times a second.
fn start(scene: &Scene, target: &Target, receiver: &LogReceiver, sources: &[(&str, &str)]) -> (Outrigger, String) {
    let address = target.address();
    let source = |(name, more): &(&str, &str)| {
        format!("{name}: {{ scrape: {{ url: \"http://{address}/{name}\", interval: 200ms{more} }} }}")
    };
    scene.set("sources", sources.iter().map(source).collect::<Vec<_>>().join(", "));
    scene.set("central", receiver.address());
    let page = format!("127.0.0.1:{}", scene.port("page"));
    (Outrigger::start(scene, TO_RECEIVER, &[]), page)
}

/// Waits until the receiver has the sample `tick` of this many rounds of a source.
#[track_caller]
fn wait_for_ticks(receiver: &LogReceiver, source: &str, rounds: f64) {
    until(PATIENCE, &format!("{rounds} rounds of {source} at the receiver"), || {
        let mut ticks = written(receiver, "tick").into_iter().filter(|sample| sample.labels["job"] == source);
        ticks.any(|sample| sample.value >= rounds)
    });
}

/// Words that Go's ParseFloat parses, with their values, and words that it does not parse. Hexadecimal numbers and
/// underscores belong to the Go language and not to the format.
const NUMBERS: [(&str, f64); 18] = [
    ("NaN", f64::NAN),
    ("Nan", f64::NAN),
    ("nan", f64::NAN),
    ("NAN", f64::NAN),
    ("Inf", f64::INFINITY),
    ("inf", f64::INFINITY),
    ("+inf", f64::INFINITY),
    ("-INF", f64::NEG_INFINITY),
    ("Infinity", f64::INFINITY),
    ("+InFiNiTy", f64::INFINITY),
    ("-infinity", f64::NEG_INFINITY),
    (".5", 0.5),
    ("5.", 5.0),
    ("+1", 1.0),
    ("-0", -0.0),
    ("1E3", 1000.0),
    ("1e-400", 0.0),
    ("12345678901234567890", 12345678901234567890.0),
];
const NO_NUMBERS: [&str; 12] =
    ["0x1p-2", "1_000", "infinit", "nanx", "+nan", "-NaN", "1e400", "--1", "1e", ".", "e5", "1,5"];

fn numbers_page(round: usize) -> String {
    let good = NUMBERS.iter().map(|(word, _)| format!("number{{as=\"{word}\"}} {word}\n"));
    let bad = NO_NUMBERS.iter().map(|word| format!("none{{as=\"{word}\"}} {word}\n"));
    good.chain(bad).collect::<String>() + &format!("tick {round}\n")
}

fn check_numbers(findings: &mut Findings, outrigger: &Outrigger, receiver: &LogReceiver, page: &Exposition) {
    let sent = written(receiver, "number");
    for (word, value) in NUMBERS {
        let is_same = |found: f64| found.to_bits() == value.to_bits() || found.is_nan() && value.is_nan();
        let arrived = sent.iter().any(|sample| sample.labels["as"] == word && is_same(sample.value));
        let shown = page.sum(|series| series.name == "number" && series.labels["as"] == word);
        findings.check(arrived, || format!("`{word}` is not parsed as {value}"));
        findings.check(shown.is_some_and(|found| found == value || is_same(found)), || {
            format!("`{word}` is exposed as {shown:?}")
        });
    }
    let wrong: BTreeSet<String> = written(receiver, "none").iter().map(|sample| sample.labels["as"].clone()).collect();
    findings.check(wrong.is_empty(), || format!("{wrong:?} are parsed as numbers"));
    let bad = dropped_under(outrigger, "numbers", "parse_error");
    findings.check(bad > 0 && bad.is_multiple_of(NO_NUMBERS.len() as u64), || {
        format!("{bad} bad lines are counted, with {} per round", NO_NUMBERS.len())
    });
}

/// For three rounds all samples are valid; after that some have no value, no number or no timestamp, and one line is removed.
fn ends_page(round: usize) -> String {
    let (value, time, none) = if round < 3 { ("5", "", " 5") } else { ("bad", " soon", "") };
    let last = if round < 3 { "removed 5\n" } else { "" };
    format!("value {value}\ntime 5{time}\nnothing{{a=\"1\"}}{none}\n{last}stays 5\ntick {round}\n")
}

fn check_ends(findings: &mut Findings, receiver: &LogReceiver, page: &Exposition) {
    for name in ["value", "time", "nothing", "removed"] {
        let samples = written(receiver, name);
        let stale: Vec<usize> = (0..samples.len()).filter(|index| samples[*index].is_stale()).collect();
        findings.check(stale == [3], || {
            format!("`{name}` is stale at {stale:?} of {} samples, expected [3]", samples.len())
        });
        findings.check(page.value(name).is_none(), || format!("`{name}` is still exposed"));
    }
    findings.check(!written(receiver, "stays").iter().any(Written::is_stale), || "`stays` became stale".to_owned());
}

/// The same series written differently in each round.
fn order_page(round: usize) -> String {
    let other = round % 2 == 1;
    let lines = [
        ["m1{a=\"1\",b=\"2\"}", "m1{b=\"2\",a=\"1\"}"],
        ["m2{a=\"1\",b=\"2\",}", "m2 { a = \"1\" , b = \"2\" }"],
        ["m3{a=\"1\"}", "m3{a=\"1\",b=\"\"}"],
        ["m4", "m4{}"],
        ["m5_bucket{le=\"1\",a=\"1\"}", "m5_bucket{a=\"1\",le=\"1\"}"],
    ];
    lines.iter().map(|line| format!("{} {round}\n", line[usize::from(other)])).collect::<String>()
        + &format!("tick {round}\n")
}

fn check_order(findings: &mut Findings, receiver: &LogReceiver) {
    for name in ["m1", "m2", "m3", "m4", "m5_bucket"] {
        let samples = written(receiver, name);
        let series: BTreeSet<_> = samples.iter().map(|sample| &sample.labels).collect();
        findings.check(series.len() == 1, || format!("`{name}` has the series {series:?}"));
        let stale = samples.iter().filter(|sample| sample.is_stale()).count();
        findings.check(stale == 0, || format!("`{name}` became stale {stale} times, though each round has it"));
        let rising = samples.windows(2).all(|pair| pair[0].time_ms < pair[1].time_ms);
        findings.check(rising, || format!("`{name}` has two samples with one timestamp"));
    }
}

/// Comments that are not part of the format (the reference parser requires one `#`, a blank, and the word), and comments
/// in no valid encoding.
const COMMENTS: &[u8] =
    b"## TYPE b counter\nb 1\n#TYPE c counter\nc 1\n#HELP d no help\nd 1\n# # TYPE e counter\ne 1\n\
    # caf\xe9\n#\xff\xfe\x00\n#\n# TYPE f gauge\n# HELP f Real help.\nf 1\n";

fn check_comments(findings: &mut Findings, outrigger: &Outrigger, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for name in ["b", "c", "d", "e"] {
        findings.check(lines.contains(&format!("# TYPE {name} untyped").as_str()), || {
            let found = lines.iter().find(|line| line.starts_with(&format!("# TYPE {name} ")));
            format!("the endpoint has {found:?}, though no comment gives `{name}` a type")
        });
        findings.check(!text.contains(&format!("# HELP {name}")), || format!("`{name}` has help"));
        findings.check(lines.contains(&format!("{name} 1").as_str()), || format!("`{name}` is not exposed"));
    }
    for line in ["# TYPE f gauge", "# HELP f Real help."] {
        findings.check(lines.contains(&line), || format!("`{line}` is not exposed"));
    }
    let bad = dropped_under(outrigger, "comments", "parse_error");
    findings.check(bad == 0, || format!("{bad} comments are counted as bad lines"));
    let reports = outcomes(outrigger);
    findings.check(!reports.contains("comments:"), || format!("comments are reported as a fault: {reports}"));
}

/// Expositions found in the field are parsed as the reference parser does: numbers in every spelling; a series without
/// a sample in a round becomes stale; labels in another order are the same series; comments are comments, whatever bytes
/// they contain.
#[test]
fn odd_expositions_parse_as_in_prometheus() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let target = Target::start(|request, round| match request.head.target() {
        "/numbers" => Page::text(numbers_page(round)),
        "/ends" => Page::text(ends_page(round)),
        "/order" => Page::text(order_page(round)),
        _ => Page::text([COMMENTS, format!("tick {round}\n").as_bytes()].concat()),
    });
    let sources = [("numbers", ""), ("ends", ""), ("order", ""), ("comments", "")];
    let (outrigger, page) = start(&scene, &target, &receiver, &sources);
    for (source, _) in sources {
        wait_for_ticks(&receiver, source, 10.0);
    }
    let mut findings = Findings::default();
    let text = crate::harness::get(&page, "/metrics").expect("the endpoint responds").text();
    let shown = Exposition::parse(&text);
    check_numbers(&mut findings, &outrigger, &receiver, &shown);
    check_ends(&mut findings, &receiver, &shown);
    check_order(&mut findings, &receiver);
    check_comments(&mut findings, &outrigger, &text);
    receiver.assert_well_formed();
    outrigger.finish();
}

const LIMIT: usize = 100;

/// From its second round on, as many new series as are allowed precede the known ones.
fn pushy_page(round: usize) -> String {
    let fresh = (0..LIMIT).filter(|_| round > 0).map(|number| format!("fresh{{r=\"{round}\",i=\"{number}\"}} 1\n"));
    let known = (0..LIMIT - 1).map(|number| format!("known{{i=\"{number}\"}} {round}\n"));
    fresh.collect::<String>() + &known.collect::<String>() + &format!("tick {round}\n")
}

/// Half as many again as are allowed, always the same series.
fn crowd_page(round: usize) -> String {
    let lines = (0..LIMIT + LIMIT / 2).map(|number| format!("crowd{{i=\"{number}\"}} {round}\n"));
    format!("tick {round}\n") + &lines.collect::<String>()
}

/// A target has at most `max_series` series, whatever their order: known series are retained, and the excess is
/// counted.
/// Guarantee: max-series-holds
#[test]
fn max_series_is_enforced_and_known_series_stay() {
    let (scene, receiver) = (Scene::new(), LogReceiver::start());
    let target = Target::start(|request, round| match request.head.target() {
        "/pushy" => Page::text(pushy_page(round)),
        _ => Page::text(crowd_page(round)),
    });
    let limit = format!(", max_series: {LIMIT}");
    let (outrigger, page) = start(&scene, &target, &receiver, &[("pushy", &limit), ("crowd", &limit)]);
    let mut findings = Findings::default();
    for (source, over) in [("pushy", LIMIT), ("crowd", LIMIT / 2 + 1)] {
        wait_for_ticks(&receiver, source, 8.0);
        let samples = ["known", "fresh", "crowd", "tick"].into_iter().flat_map(|name| written(&receiver, name));
        let series: BTreeSet<_> =
            samples.filter(|sample| sample.labels["job"] == source).map(|sample| sample.labels).collect();
        findings.check(series.len() <= LIMIT, || format!("{source}: {} series, {LIMIT} allowed", series.len()));
        let counted = dropped_under(&outrigger, source, "series_limit");
        findings.check(counted > 0 && counted.is_multiple_of(over as u64), || {
            format!("{source}: {counted} samples are counted as over the limit, with {over} per round")
        });
    }
    let known = written(&receiver, "known");
    let (stale, newest) = (known.iter().filter(|sample| sample.is_stale()).count(), known.last().map(|s| s.value));
    findings.check(stale == 0, || format!("known series became stale {stale} times"));
    findings.check(newest.is_some_and(|value| value >= 7.0), || format!("the newest known sample is {newest:?}"));
    let shown = Exposition::of(&page).expect("the endpoint responds");
    let count = |name: &str| shown.series.iter().filter(|series| series.name == name).count();
    findings.check(count("known") == LIMIT - 1, || format!("{} known series are exposed", count("known")));
    findings.check(count("fresh") == 0, || format!("{} new series are exposed", count("fresh")));
    findings.check(count("crowd") < LIMIT, || format!("{} series of the crowd are exposed", count("crowd")));
    outrigger.finish();
}

/// OpenMetrics 1.0: exemplars after buckets, timestamps in seconds.
fn open_metrics_page() -> Page {
    let now = now_ms();
    let (seconds, rest) = (now / 1000, now % 1000);
    Page::typed(
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        format!(
            "# TYPE hits counter\n# HELP hits All hits.\nhits_total 17 {seconds}.{rest:03}\n# TYPE taken histogram\n\
             taken_bucket{{le=\"0.5\"}} 3 # {{trace_id=\"abc\"}} 0.3 {seconds}.{rest:03}\n\
             taken_bucket{{le=\"+Inf\"}} 5 # {{trace_id=\"def\"}} 0.9\ntaken_count 5\ntaken_sum 2.5\n# EOF\n"
        ),
    )
}

/// One gauge `delimited 1` (io.prometheus.client.MetricFamily, delimited by its length).
fn protobuf_page() -> Page {
    let mut family = b"\x0a\x09delimited\x18\x01\x22\x0b\x12\x09\x09".to_vec();
    family.extend_from_slice(&1f64.to_le_bytes());
    family.insert(0, u8::try_from(family.len()).expect("it is short"));
    Page::typed("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", family)
}

/// A body that compresses to a thousandth: 64 MiB of comments, followed by a sample.
fn bomb_page() -> Page {
    let comment = "# ".to_owned() + &"x".repeat(1021) + "\n";
    Page::text(comment.repeat(64 << 10) + "bomb 1\n").gzip()
}

/// A response is parsed as its head declares it, or the scrape fails and the status reports what was received; it is never
/// parsed partially. The request lists the accepted encodings, and the decompressed size is limited.
#[test]
fn other_formats_are_parsed_or_reported() {
    let (scene, receiver, bomb) = (Scene::new(), LogReceiver::start(), bomb_page());
    let target = Target::start(move |request, round| match request.head.target() {
        "/open" => open_metrics_page(),
        "/proto" => protobuf_page(),
        "/squeezed" => Page::text("squeezed 1\n").gzip(),
        "/html" => Page::typed("text/html; charset=utf-8", "html 1\n"),
        "/bomb" => bomb.clone(),
        "/negotiated" => {
            let accepts = request.head.header("accept-encoding").is_some_and(|value| value.contains("gzip"));
            let page = Page::text(format!("negotiated 1\ntick {round}\n"));
            if accepts { page.gzip() } else { page }
        }
        _ => Page::status("404 Not Found", "X-Why: nothing is here"),
    });
    let sources = [
        ("open", ""),
        ("proto", ""),
        ("squeezed", ""),
        ("html", ""),
        ("bomb", ", max_body_bytes: 1MiB"),
        ("negotiated", ""),
    ];
    let (outrigger, _) = start(&scene, &target, &receiver, &sources);
    for (source, _) in sources {
        target.wait_for_rounds(&format!("/{source}"), 3, PATIENCE);
    }
    wait_for_ticks(&receiver, "negotiated", 5.0);
    let mut findings = Findings::default();
    // A target that is faulty from the start may be treated as a starting target for some time.
    let reports = |word: &str| within(PATIENCE, || outcomes(&outrigger).to_lowercase().contains(word));
    let expected = [("hits_total", 17.0), ("taken_bucket", 3.0), ("taken_bucket", 5.0), ("taken_count", 5.0)];
    let open: Vec<Written> = expected
        .iter()
        .map(|(name, _)| *name)
        .collect::<BTreeSet<_>>()
        .iter()
        .flat_map(|n| written(&receiver, n))
        .collect();
    let now = now_ms() as i64;
    let is_now = |sample: &Written| (sample.time_ms - now).abs() < 60_000;
    let found = |(name, value): &(&str, f64)| open.iter().any(|s| s.labels["__name__"] == *name && s.value == *value);
    let complete = expected.iter().all(found) && open.iter().all(is_now);
    findings.check(complete || open.is_empty() && reports("openmetrics"), || {
        let arrived = open.iter().map(|s| format!("{} {} {}", s.labels["__name__"], s.value, s.time_ms));
        format!("OpenMetrics is parsed partially: {:?}; {}", arrived.collect::<BTreeSet<_>>(), outcomes(&outrigger))
    });
    for (source, name, word) in [("proto", "delimited", "protobuf"), ("squeezed", "squeezed", "gzip")] {
        let parsed = written(&receiver, name).iter().any(|sample| sample.value == 1.0);
        findings.check(parsed || reports(word), || {
            format!("{source} is neither parsed nor reported with `{word}`: {}", outcomes(&outrigger))
        });
    }
    let html = reports("text/html") && written(&receiver, "html").is_empty();
    findings.check(html, || format!("an HTML page is parsed, or not reported: {}", outcomes(&outrigger)));
    findings.check(written(&receiver, "bomb").is_empty(), || "a body of 64 MiB passed max_body_bytes".to_owned());
    findings.check(reports("bomb:"), || {
        format!("the body over max_body_bytes is not in the status: {}", outcomes(&outrigger))
    });
    let head = target.heads("/negotiated").pop().expect("it was requested");
    findings.check(head.header("accept-encoding").is_some(), || format!("no Accept-Encoding: {:?}", head.headers));
    findings
        .check(!written(&receiver, "negotiated").is_empty(), || "the negotiated encoding is not decoded".to_owned());
    let resident = resident_kib(outrigger.worker()) / 1024;
    findings.check(resident < 150, || format!("the worker uses {resident} MiB"));
    outrigger.finish();
}

/// A receiver that is down loses only its own samples: the endpoint keeps serving as many series as the default limits allow.
/// Guarantee: metrics-outage-contained
#[test]
fn down_receiver_does_not_affect_the_endpoint() {
    const SERIES: usize = 30_000;
    let scene = Scene::new();
    let target = Target::start(|_, round| {
        let series = |number| {
            format!(
                "http_requests_total{{handler=\"/api/v1/customers/{number}/orders\",method=\"GET\",code=\"200\"}} {round}\n"
            )
        };
        Page::text((0..SERIES).map(series).collect::<String>())
    });
    scene.set("target", target.address());
    scene.set("unused", free_port());
    let page = format!("127.0.0.1:{}", scene.port("page"));
    let body = r#"
metrics:
  sources: { app: { scrape: { url: "http://@target@/metrics", interval: 500ms } } }
  sinks:
    page: { prometheus: { listen: "127.0.0.1:@page@" } }
    central: { remote_write: { url: "http://127.0.0.1:@unused@/write" } }
"#;
    let outrigger = Outrigger::start(&scene, body, &[]);
    let row = || ledger_row(&outrigger.admin, "metrics.sinks.central");
    until(PATIENCE, "samples are dropped, the oldest first", || dropped(&row()) > 3 * SERIES as u64);
    let source = ledger_row(&outrigger.admin, "metrics.sources.app");
    assert_eq!(dropped(&source), 0, "no scrape is skipped: {source}");
    let text = crate::harness::get(&page, "/metrics").expect("the endpoint responds").text();
    assert_eq!(text.lines().filter(|line| line.starts_with("http_requests_total{")).count(), SERIES);
    outrigger.finish();
}
