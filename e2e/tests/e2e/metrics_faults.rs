//! Pages of metrics as the field has them: lines that are odd, forged, unordered or too many, answers of another
//! format than was asked for, and apps that listen late. Pages come in by a scrape, samples are looked at on our page
//! and at the far end of remote write, a real Prometheus or a receiver that decodes. Bounded by some dozen scrapes a
//! test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::harness::findings::outcomes;
use crate::harness::ledger::dropped;
use crate::harness::process::resident_kib;
use crate::harness::{
    Exposition, Findings, LogReceiver, Outrigger, PATIENCE, Page, Prometheus, SECOND, Scene, Target, free_port,
    ledger_row, until, within,
};

/// The value that ends a series (prometheus.io/docs/specs/prw/remote_write_spec, "Stale Markers").
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

/// What a receiver got of a metric, in the order in which it came.
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
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970").as_millis()
}

/// How many samples a source dropped under a reason.
fn dropped_under(outrigger: &Outrigger, source: &str, reason: &str) -> u64 {
    let row = ledger_row(&outrigger.admin, &format!("metrics.sources.{source}"));
    row["dropped"][reason].as_u64().unwrap_or(0)
}

/// Numbers that count the rounds of a scrape: none is missing.
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

/// A line whose labels claim a metric's name would be a series with two names, which a receiver refuses for ever. It
/// costs itself: it is counted and named by its number, and the samples around it arrive, all of them.
/// covers: faults 6
#[test]
fn a_forged_metric_name_costs_only_its_line() {
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
    findings.check(odd.is_empty(), || format!("the odd lines have {odd:?}"));
    let bad = dropped_under(&outrigger, "app", "parse_error");
    findings.check(bad > 0 && bad.is_multiple_of(3), || format!("{bad} bad lines are counted, of three in each round"));
    let reports = outcomes(&outrigger);
    findings.check(reports.contains("line 2"), || format!("the status does not name line 2: {reports}"));
    let shown = Exposition::of(&page).expect("the page answers");
    let forged: Vec<_> = shown.series.iter().filter(|series| series.labels.contains_key("__name__")).collect();
    findings.check(forged.is_empty(), || format!("the page has {forged:?}"));
    outrigger.finish();
    prometheus.stop();
}

/// Samples that no receiver takes, since their time is in seconds, stands still, goes back, or is told twice in one
/// page, are dropped alone: none of the good samples around them is lost, and what is dropped is counted.
/// covers: faults 6
#[test]
fn samples_with_a_bad_time_are_dropped_alone() {
    const GOOD: usize = 10;
    const ODD: u64 = 5;
    let scene = Scene::new();
    let prometheus = need!(Prometheus::start(&scene), "prometheus is not installed");
    let began = now_ms();
    let target = Target::start(move |_, round| {
        let mut text: String = (0..GOOD).map(|number| format!("good{{i=\"{number}\"}} {round}\n")).collect();
        // The first samples of a new Prometheus must be of today: it goes by the first time that it sees.
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
        let whole = series.iter().all(|values| count_up(values));
        let expected = if name == "good" { GOOD } else { 1 };
        findings.check(arrived && whole && series.len() == expected, || format!("{name} has {series:?}"));
    }
    let fixed = prometheus.values("fixed");
    findings
        .check(fixed == [[3.0]], || format!("the series with one fixed time has {fixed:?}, expected its first sample"));
    let (rounds, source) = (target.rounds("/metrics") as u64, ledger_row(&outrigger.admin, "metrics.sources.app"));
    let sink = ledger_row(&outrigger.admin, "metrics.sinks.central");
    let lost = dropped(&source) + dropped(&sink);
    findings.check(lost > 0 && lost <= ODD * rounds, || {
        format!("{lost} samples are dropped, of at most {} that are odd: {source} {sink}", ODD * rounds)
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

/// Outrigger with a source for each of these names, which asks for the path of that name five times a second.
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

/// Waits until the receiver has the sample `tick` of so many rounds of a source.
#[track_caller]
fn wait_for_ticks(receiver: &LogReceiver, source: &str, rounds: f64) {
    until(PATIENCE, &format!("{rounds} rounds of {source} at the receiver"), || {
        let mut ticks = written(receiver, "tick").into_iter().filter(|sample| sample.labels["job"] == source);
        ticks.any(|sample| sample.value >= rounds)
    });
}

/// Words that Go's ParseFloat reads, with their values, and words that it does not read. Hexadecimal numbers and
/// underscores are of the Go language and not of the format.
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
        findings.check(arrived, || format!("`{word}` is not read as {value}"));
        findings.check(shown.is_some_and(|found| found == value || is_same(found)), || {
            format!("`{word}` stands on the page as {shown:?}")
        });
    }
    let wrong: BTreeSet<String> = written(receiver, "none").iter().map(|sample| sample.labels["as"].clone()).collect();
    findings.check(wrong.is_empty(), || format!("{wrong:?} are read as numbers"));
    let bad = dropped_under(outrigger, "numbers", "parse_error");
    findings.check(bad > 0 && bad.is_multiple_of(NO_NUMBERS.len() as u64), || {
        format!("{bad} bad lines are counted, of {} in each round", NO_NUMBERS.len())
    });
}

/// For three rounds all samples are there; from then on some have no value, no number or no time, and one line is gone.
fn ends_page(round: usize) -> String {
    let (value, time, none) = if round < 3 { ("5", "", " 5") } else { ("bad", " soon", "") };
    let there = if round < 3 { "gone 5\n" } else { "" };
    format!("value {value}\ntime 5{time}\nnothing{{a=\"1\"}}{none}\n{there}stays 5\ntick {round}\n")
}

fn check_ends(findings: &mut Findings, receiver: &LogReceiver, page: &Exposition) {
    for name in ["value", "time", "nothing", "gone"] {
        let samples = written(receiver, name);
        let stale: Vec<usize> = (0..samples.len()).filter(|place| samples[*place].is_stale()).collect();
        findings
            .check(stale == [3], || format!("`{name}` ends at {stale:?} of {} samples, expected [3]", samples.len()));
        findings.check(page.value(name).is_none(), || format!("`{name}` is still on the page"));
    }
    findings.check(!written(receiver, "stays").iter().any(Written::is_stale), || "`stays` ended".to_owned());
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
        findings.check(stale == 0, || format!("`{name}` ended {stale} times, and was there in each round"));
        let rising = samples.windows(2).all(|pair| pair[0].time_ms < pair[1].time_ms);
        findings.check(rising, || format!("`{name}` has two samples at one time"));
    }
}

/// Comments that are none of the format's (the reference parser wants one `#`, a blank, and the word), and comments of
/// no encoding.
const COMMENTS: &[u8] =
    b"## TYPE b counter\nb 1\n#TYPE c counter\nc 1\n#HELP d no help\nd 1\n# # TYPE e counter\ne 1\n\
    # caf\xe9\n#\xff\xfe\x00\n#\n# TYPE f gauge\n# HELP f Real help.\nf 1\n";

fn check_comments(findings: &mut Findings, outrigger: &Outrigger, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    for name in ["b", "c", "d", "e"] {
        findings.check(lines.contains(&format!("# TYPE {name} untyped").as_str()), || {
            let found = lines.iter().find(|line| line.starts_with(&format!("# TYPE {name} ")));
            format!("the page has {found:?}, though no comment gives `{name}` a type")
        });
        findings.check(!text.contains(&format!("# HELP {name}")), || format!("`{name}` has help"));
        findings.check(lines.contains(&format!("{name} 1").as_str()), || format!("`{name}` is not on the page"));
    }
    for line in ["# TYPE f gauge", "# HELP f Real help."] {
        findings.check(lines.contains(&line), || format!("the page lacks `{line}`"));
    }
    let bad = dropped_under(outrigger, "comments", "parse_error");
    findings.check(bad == 0, || format!("{bad} comments are counted as bad lines"));
    let reports = outcomes(outrigger);
    findings.check(!reports.contains("comments:"), || format!("comments are a fault: {reports}"));
}

/// Pages as they are in the field are read as the reference parser reads them: numbers in every spelling; a series
/// without a sample in a round ends; labels in another order are the same series; comments are comments, whatever
/// bytes they hold.
/// covers: faults 6
#[test]
fn odd_pages_are_read_as_prometheus_reads_them() {
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
    let text = crate::harness::get(&page, "/metrics").expect("the page answers").text();
    let shown = Exposition::parse(&text);
    check_numbers(&mut findings, &outrigger, &receiver, &shown);
    check_ends(&mut findings, &receiver, &shown);
    check_order(&mut findings, &receiver);
    check_comments(&mut findings, &outrigger, &text);
    receiver.assert_well_formed();
    outrigger.finish();
}

const LIMIT: usize = 100;

/// From its second round on, as many new series as are allowed stand in front of the known ones.
fn pushy_page(round: usize) -> String {
    let fresh = (0..LIMIT).filter(|_| round > 0).map(|number| format!("fresh{{r=\"{round}\",i=\"{number}\"}} 1\n"));
    let known = (0..LIMIT - 1).map(|number| format!("known{{i=\"{number}\"}} {round}\n"));
    fresh.collect::<String>() + &known.collect::<String>() + &format!("tick {round}\n")
}

/// Half as many again as are allowed, always the same ones.
fn crowd_page(round: usize) -> String {
    let lines = (0..LIMIT + LIMIT / 2).map(|number| format!("crowd{{i=\"{number}\"}} {round}\n"));
    format!("tick {round}\n") + &lines.collect::<String>()
}

/// A target has at most `max_series` series, whatever stands in front: known ones keep their place, and what is over
/// it is counted.
/// covers: faults 6
#[test]
fn series_max_holds_and_known_series_stay() {
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
            format!("{source}: {counted} samples are counted as over the limit, of {over} in each round")
        });
    }
    let known = written(&receiver, "known");
    let (stale, newest) = (known.iter().filter(|sample| sample.is_stale()).count(), known.last().map(|s| s.value));
    findings.check(stale == 0, || format!("known series ended {stale} times"));
    findings.check(newest.is_some_and(|value| value >= 7.0), || format!("the newest known sample is {newest:?}"));
    let shown = Exposition::of(&page).expect("the page answers");
    let count = |name: &str| shown.series.iter().filter(|series| series.name == name).count();
    findings.check(count("known") == LIMIT - 1, || format!("{} known series on the page", count("known")));
    findings.check(count("fresh") == 0, || format!("{} new series on the page", count("fresh")));
    findings.check(count("crowd") < LIMIT, || format!("{} of the crowd on the page", count("crowd")));
    outrigger.finish();
}

/// OpenMetrics 1.0: exemplars behind buckets, times in seconds.
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

/// A page that compresses to a thousandth: 64 MiB of comments, and a sample behind them.
fn bomb_page() -> Page {
    let comment = "# ".to_owned() + &"x".repeat(1021) + "\n";
    Page::text(comment.repeat(64 << 10) + "bomb 1\n").gzip()
}

/// An answer is read as what its head says it is, or the scrape fails and the status names what came; it is never read
/// by halves. The encodings that are read are said, and what is inflated is bounded.
/// covers: faults 6
#[test]
fn answers_of_another_format_are_read_or_named() {
    let (scene, receiver, bomb) = (Scene::new(), LogReceiver::start(), bomb_page());
    let target = Target::start(move |request, round| match request.head.target() {
        "/open" => open_metrics_page(),
        "/proto" => protobuf_page(),
        "/squeezed" => Page::text("squeezed 1\n").gzip(),
        "/people" => Page::typed("text/html; charset=utf-8", "people 1\n"),
        "/bomb" => bomb.clone(),
        "/asked" => {
            let accepts = request.head.header("accept-encoding").is_some_and(|value| value.contains("gzip"));
            let page = Page::text(format!("asked 1\ntick {round}\n"));
            if accepts { page.gzip() } else { page }
        }
        _ => Page::status("404 Not Found", "X-Why: nothing is here"),
    });
    let sources = [
        ("open", ""),
        ("proto", ""),
        ("squeezed", ""),
        ("people", ""),
        ("bomb", ", max_body_bytes: 1MiB"),
        ("asked", ""),
    ];
    let (outrigger, _) = start(&scene, &target, &receiver, &sources);
    for (source, _) in sources {
        target.wait_for_rounds(&format!("/{source}"), 3, PATIENCE);
    }
    wait_for_ticks(&receiver, "asked", 5.0);
    let mut findings = Findings::default();
    // What was wrong from the start may be taken for a target that starts, for a while.
    let names = |word: &str| within(PATIENCE, || outcomes(&outrigger).to_lowercase().contains(word));
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
    let whole = expected.iter().all(found) && open.iter().all(is_now);
    findings.check(whole || open.is_empty() && names("openmetrics"), || {
        let came = open.iter().map(|s| format!("{} {} {}", s.labels["__name__"], s.value, s.time_ms));
        format!("OpenMetrics is read by halves: {:?}; {}", came.collect::<BTreeSet<_>>(), outcomes(&outrigger))
    });
    for (source, name, word) in [("proto", "delimited", "protobuf"), ("squeezed", "squeezed", "gzip")] {
        let read = written(&receiver, name).iter().any(|sample| sample.value == 1.0);
        findings.check(read || names(word), || {
            format!("{source} is neither read nor named by `{word}`: {}", outcomes(&outrigger))
        });
    }
    let html = names("text/html") && written(&receiver, "people").is_empty();
    findings.check(html, || format!("a page for people is read, or not named: {}", outcomes(&outrigger)));
    findings.check(written(&receiver, "bomb").is_empty(), || "a page of 64 MiB passed max_body_bytes".to_owned());
    findings.check(names("bomb:"), || {
        format!("the page over max_body_bytes is not in the status: {}", outcomes(&outrigger))
    });
    let head = target.heads("/asked").pop().expect("it was asked for");
    findings.check(head.header("accept-encoding").is_some(), || format!("no Accept-Encoding: {:?}", head.headers));
    findings.check(!written(&receiver, "asked").is_empty(), || "what was asked for is not read".to_owned());
    let resident = resident_kib(outrigger.worker()) / 1024;
    findings.check(resident < 150, || format!("the worker has {resident} MiB"));
    outrigger.finish();
}

/// A receiver that is away costs its own samples alone: the page goes on with as many series as the default limits take.
/// covers: faults 6
#[test]
fn a_receiver_that_is_away_leaves_the_page_its_memory() {
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
    scene.set("nobody", free_port());
    let page = format!("127.0.0.1:{}", scene.port("page"));
    let body = r#"
metrics:
  sources: { app: { scrape: { url: "http://@target@/metrics", interval: 500ms } } }
  sinks:
    page: { prometheus: { listen: "127.0.0.1:@page@" } }
    central: { remote_write: { url: "http://127.0.0.1:@nobody@/write" } }
"#;
    let outrigger = Outrigger::start(&scene, body, &[]);
    let row = || ledger_row(&outrigger.admin, "metrics.sinks.central");
    until(PATIENCE, "samples are dropped, the oldest first", || dropped(&row()) > 3 * SERIES as u64);
    let source = ledger_row(&outrigger.admin, "metrics.sources.app");
    assert_eq!(dropped(&source), 0, "no scrape is left out: {source}");
    let text = crate::harness::get(&page, "/metrics").expect("the page answers").text();
    assert_eq!(text.lines().filter(|line| line.starts_with("http_requests_total{")).count(), SERIES);
    outrigger.finish();
}
