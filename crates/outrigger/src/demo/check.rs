//! `outrigger demo --check`: checks that each of the four subsystems delivers. In: a demo that is ready. Out: a line per
//! subsystem.

use super::{Demo, get, repository};
use std::time::{Duration, Instant};

/// Requests sent through the proxy.
const REQUESTS: usize = 50;

/// How long each subsystem may take to deliver.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

type Checked = Result<String, String>;
type Check<'a> = (&'static str, &'a dyn Fn(&Demo) -> Checked);

/// Runs all checks, in the order in which a user would inspect them; true if all passed.
pub fn all(demo: &Demo) -> bool {
    let checks: [Check<'_>; 5] =
        [("proxy", &proxy), ("logs", &logs), ("metrics", &metrics), ("sync", &sync), ("ledger", &ledger)];
    let mut passed = true;
    for (subsystem, check) in checks {
        match check(demo) {
            Ok(text) => println!("{subsystem}: ok: {text}"),
            Err(text) => {
                println!("{subsystem}: failed: {text}");
                passed = false;
            }
        }
    }
    passed
}

fn proxy(demo: &Demo) -> Checked {
    for number in 0..REQUESTS {
        match get(demo.proxy_port, &format!("/check/{number}")) {
            Ok((200, body)) if body == "hello\n" => {}
            other => return Err(format!("request {number} got {other:?}")),
        }
    }
    Ok(format!("{REQUESTS} requests served by the app"))
}

fn logs(demo: &Demo) -> Checked {
    let expected: Vec<String> = (0..REQUESTS).map(|number| format!("/check/{number}")).collect();
    await_ok(|| {
        let text = std::fs::read_to_string(demo.delivered()).map_err(|error| error.to_string())?;
        let lines: Vec<serde_json::Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let paths = |source: &str| -> Vec<String> {
            let matching = lines.iter().filter(|line| line["source"] == source && line["service"] == "demo");
            matching
                .filter_map(|line| line["path"].as_str().map(str::to_string))
                .filter(|path| path.starts_with("/check/"))
                .collect()
        };
        let (app, access) = (paths("app"), paths("access"));
        if app == expected && access == expected {
            return Ok(format!("{REQUESTS} lines of the app and {REQUESTS} access records, in order"));
        }
        Err(format!("{} lines of the app and {} access records of {REQUESTS} each", app.len(), access.len()))
    })
}

fn metrics(demo: &Demo) -> Checked {
    await_ok(|| {
        let (_, page) = get(demo.metrics_port, "/metrics").map_err(|error| error.to_string())?;
        let value = |start: &str| -> f64 {
            let lines = page.lines().filter(|line| line.starts_with(start));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let (app, proxy) = (value("demo_requests_total "), value("http_server_request_duration_seconds_count{"));
        let memory = value("process_memory_usage_bytes ");
        if app == REQUESTS as f64 && proxy == REQUESTS as f64 && memory > 0.0 {
            return Ok(format!(
                "the app counts {app} requests, the proxy {proxy}, the process has {:.1} MB",
                memory / 1e6
            ));
        }
        Err(format!("the app counts {app} requests, the proxy {proxy}, of {REQUESTS}; memory {memory}"))
    })
}

fn sync(demo: &Demo) -> Checked {
    repository::commit(&demo.repository(), "ahoy")?;
    let started_at = Instant::now();
    await_ok(|| {
        let published =
            std::fs::read_to_string(demo.settings().join("greeting.txt")).map_err(|error| error.to_string())?;
        // The request goes directly to the app, so that the counters of the proxy do not change.
        let (_, served) = get(demo.app_port, "/").map_err(|error| error.to_string())?;
        if published == "ahoy\n" && served == "ahoy\n" {
            return Ok(format!(
                "a commit was published and the app had read it after {:.1} s",
                started_at.elapsed().as_secs_f64()
            ));
        }
        Err(format!("published is {published:?}, and the app serves {served:?}"))
    })
}

fn ledger(demo: &Demo) -> Checked {
    await_ok(|| {
        let (_, text) = get(demo.admin_port, "/ledger").map_err(|error| error.to_string())?;
        let ledger: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let rows = ledger["rows"].as_array().ok_or("no rows")?;
        for row in rows {
            let number = |key: &str| row[key].as_u64().unwrap_or(0);
            let dropped: u64 =
                row["dropped"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
            if number("received") != number("delivered") + number("merged") + number("pending") + dropped {
                return Err(format!("a row does not balance: {row}"));
            }
            if dropped > 0 || (row["kind"] == "sink" && number("pending") > 0) {
                return Err(format!("not everything is delivered: {row}"));
            }
        }
        Ok(format!("{} rows balance, nothing dropped, nothing pending", rows.len()))
    })
}

/// Retries until the check passes or `CHECK_TIMEOUT` elapses; then returns the last error.
fn await_ok(attempt: impl Fn() -> Checked) -> Checked {
    let until = Instant::now() + CHECK_TIMEOUT;
    loop {
        match attempt() {
            Ok(text) => return Ok(text),
            Err(text) if Instant::now() > until => return Err(text),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
