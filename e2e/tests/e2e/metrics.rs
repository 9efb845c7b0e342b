//! The app's metrics reach Prometheus in two ways: it scrapes Outrigger's endpoint, and it receives remote write.
//! A real app and a real Prometheus; queries through its API are the proof. Bounded by one scrape per second.

use std::time::Duration;

use crate::harness::process::Running;
use crate::harness::{Answer, Exposition, LogReceiver, Outrigger, PATIENCE, Scene, fixture, get, peer, python, until};

const BOTH_WAYS: &str = r#"
app: { port: @port@ }
metrics:
  sources:
    app:     { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 1s } }
    process: { process: {} }
    self:    { self: {} }
  sinks:
    page:    { prometheus: { listen: "127.0.0.1:@page@" } }
    central: { remote_write: { url: "http://@central@/api/v1/write" } }
"#;

/// The Python app's command line at the scene's port.
fn app(scene: &Scene) -> Option<Vec<String>> {
    let (port, log) = (scene.port("port").to_string(), scene.text_path("app.log"));
    Some([python()?, fixture("app.py"), "--port".into(), port, "--log".into(), log].to_vec())
}

fn start(scene: &Scene, body: &str, command: &[String]) -> Outrigger {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    Outrigger::start(scene, body, &command)
}

/// The app counts orders: one for each request.
fn order(scene: &Scene, orders: usize) {
    let address = format!("127.0.0.1:{}", scene.value("port"));
    until(PATIENCE, "the app serves", || get(&address, "/health").is_ok());
    for _ in 0..orders {
        assert_eq!(get(&address, "/order").expect("the app responds").status, 200);
    }
}

fn prometheus(scene: &Scene) -> Option<Running> {
    let program = peer("prometheus")?.display().to_string();
    let port = scene.port("prometheus");
    scene.set("central", format!("127.0.0.1:{port}"));
    scene.port("page");
    let config = scene.write("prometheus.yml", scene.fill(PROMETHEUS));
    let running = Running::start(&[
        program,
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", scene.path("tsdb").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
        "--web.enable-remote-write-receiver".to_owned(),
    ]);
    until(PATIENCE, "Prometheus is ready", || {
        get(&scene.value("central"), "/-/ready").is_ok_and(|reply| reply.status == 200)
    });
    Some(running)
}

const PROMETHEUS: &str = "\
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
  - job_name: the-page
    static_configs: [ { targets: [ \"127.0.0.1:@page@\" ] } ]
";

/// The values of all series that an instant query returns.
fn query(scene: &Scene, expression: &str) -> Vec<f64> {
    let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let reply = get(&scene.value("central"), &format!("/api/v1/query?query={escaped}")).expect("the API responds");
    let body = reply.json();
    let found = body["data"]["result"].as_array().cloned().unwrap_or_else(|| panic!("{expression}: {body}"));
    found.iter().filter_map(|series| series["value"][1].as_str()?.parse().ok()).collect()
}

/// Prometheus scrapes Outrigger's endpoint and receives its remote write; its API returns the app's series from both,
/// with the app's own values, for counters and histogram.
/// Guarantee: series-reach-prometheus
#[test]
fn app_series_reach_prometheus_both_ways() {
    let scene = Scene::new();
    let command = need!(app(&scene), "python3 is not installed");
    let prometheus = need!(prometheus(&scene), "prometheus is not installed");
    let outrigger = start(&scene, BOTH_WAYS, &command);
    order(&scene, 17);
    // Scraped series have the label `job` of Prometheus; written series have the labels that Outrigger set.
    for (way, job) in [("scrape", "job=\"the-page\""), ("remote write", "job!=\"the-page\"")] {
        let series = [
            (format!("shop_orders_total{{kind=\"book\",{job}}}"), 17.0),
            (format!("shop_queue_depth{{{job}}}"), 3.0),
            (format!("shop_order_seconds_bucket{{le=\"+Inf\",{job}}}"), 17.0),
            (format!("shop_order_seconds_sum{{{job}}}"), 0.25),
            (format!("shop_order_seconds_count{{{job}}}"), 17.0),
        ];
        for (expression, value) in series {
            let what = format!("{expression} is {value} by {way}");
            until(PATIENCE, &what, || query(&scene, &expression) == [value]);
        }
        let own = format!("count({{__name__=~\"outrigger_.*\",{job}}})");
        until(PATIENCE, &format!("Outrigger's own series by {way}"), || {
            query(&scene, &own).iter().any(|count| *count > 5.0)
        });
        let process = format!("count({{__name__=~\"process_.*\",{job}}})");
        until(PATIENCE, &format!("the process series by {way}"), || !query(&scene, &process).is_empty());
    }
    until(PATIENCE, "several consecutive scrapes succeeded", || {
        query(&scene, "min_over_time(up{job=\"the-page\"}[5s])") == [1.0]
    });
    outrigger.finish();
    prometheus.stop();
}

/// The endpoint serves Prometheus text with types and help and the app's series unchanged. It has Outrigger's own series
/// only if `self` is a source.
#[test]
fn endpoint_has_only_series_of_its_sources() {
    let scene = Scene::new();
    let command = need!(app(&scene), "python3 is not installed");
    scene.port("page");
    let body = r#"
app: { port: @port@ }
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 1s } } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
"#;
    let outrigger = start(&scene, body, &command);
    order(&scene, 4);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    until(PATIENCE, "the app's counter is exposed", || {
        let orders = Exposition::of(&page).and_then(|page| page.value("shop_orders_total"));
        orders == Some(4.0)
    });
    let reply = get(&page, "/metrics").expect("the endpoint responds");
    assert!(reply.head.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    let text = reply.text();
    for line in [
        "# HELP shop_orders_total Orders taken.",
        "# TYPE shop_orders_total counter",
        "# TYPE shop_order_seconds histogram",
        "# TYPE shop_queue_depth gauge",
    ] {
        assert!(text.contains(line), "{line} in:\n{text}");
    }
    let parsed = Exposition::parse(&text);
    let buckets = parsed.series.iter().filter(|series| series.name == "shop_order_seconds_bucket").count();
    assert_eq!(buckets, 3, "{text}");
    assert!(parsed.names_with("outrigger_").is_empty(), "`self` is not a source here:\n{text}");
    assert!(Exposition::of(&outrigger.admin).expect("Outrigger's own metrics").names_with("shop_").is_empty());
    outrigger.finish();
}

/// The process source measures the app, not Outrigger.
#[test]
fn the_process_source_measures_the_app() {
    let python = need!(python(), "python3 is not installed");
    let scene = Scene::new();
    scene.port("page");
    let body = r#"
metrics:
  sources: { process: { process: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
"#;
    let big = "data = b'x' * (120 << 20); import time; time.sleep(300)";
    let outrigger = Outrigger::start(&scene, body, &[&python, "-c", big]);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    until(2 * PATIENCE, "a memory usage above 120 MB is exposed", || {
        let page = Exposition::of(&page);
        let memory = page.and_then(|page| page.sum(|series| series.name == "process_memory_usage_bytes"));
        memory.is_some_and(|bytes| bytes > 120e6)
    });
    outrigger.finish();
}

/// Series that an app no longer exposes are removed from the endpoint, and return with the app: stale values are not served.
/// Guarantee: stale-series-removed
#[test]
fn series_of_a_stopped_target_are_removed() {
    let scene = Scene::new();
    let command = need!(app(&scene), "python3 is not installed");
    scene.port("page");
    let body = r#"
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:@port@/metrics", interval: 1s } } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
"#;
    let outrigger = Outrigger::start(&scene, body, &[]);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    let is_exposed = || Exposition::of(&page).is_some_and(|page| page.value("shop_queue_depth") == Some(3.0));
    for _ in 0..2 {
        let app = Running::start(&command);
        until(PATIENCE, "the app's series are exposed", is_exposed);
        app.stop();
        until(PATIENCE, "the app's series are removed", || !is_exposed());
    }
    outrigger.finish();
}

/// A remote-write receiver that fails temporarily loses no relevant sample: the writes are retried.
#[test]
fn remote_write_is_retried_after_errors() {
    let scene = Scene::new();
    let command = need!(app(&scene), "python3 is not installed");
    let receiver = LogReceiver::answering(Answer::Status(500));
    scene.set("central", receiver.address());
    scene.port("page");
    let outrigger = start(&scene, BOTH_WAYS, &command);
    order(&scene, 3);
    receiver.wait_for_refused(3, PATIENCE);
    receiver.answer(Answer::Accept);
    until(2 * PATIENCE, "the app's counter by remote write", || {
        let batches = receiver.batches();
        let series = batches.iter().flat_map(|batch| &batch.series);
        let mut orders = series.filter(|series| series.name() == "shop_orders_total");
        orders.any(|series| series.samples.iter().any(|sample| sample.value == 3.0 && sample.timestamp > 0))
    });
    for batch in receiver.batches() {
        assert_eq!(batch.head.header("content-encoding"), Some("snappy"));
        assert_eq!(batch.head.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(batch.head.header("x-prometheus-remote-write-version"), Some("0.1.0"));
        for series in &batch.series {
            let names: Vec<&String> = series.labels.iter().map(|label| &label.name).collect();
            assert!(names.is_sorted(), "labels are sorted by name: {names:?}");
        }
    }
    receiver.assert_well_formed();
    outrigger.finish();
}

/// A target that hangs fails only its own scrape, never the endpoint.
/// Guarantee: hung-target-contained
#[test]
fn hanging_target_does_not_block_the_endpoint() {
    let scene = Scene::new();
    let target = LogReceiver::answering(Answer::Hang);
    scene.set("target", target.address());
    scene.port("page");
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 5s } }
metrics:
  sources: { app: { scrape: { url: "http://@target@/metrics", interval: 1s } }, self: { self: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
"#;
    let outrigger = Outrigger::start(&scene, body, &[]);
    target.wait_for_refused(1, PATIENCE);
    let page = format!("127.0.0.1:{}", scene.value("page"));
    let began = std::time::Instant::now();
    assert!(Exposition::of(&page).is_some_and(|page| !page.names_with("outrigger_").is_empty()));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    outrigger.finish();
}
