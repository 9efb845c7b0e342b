//! What a user, a probe and a script can read from a running process: probes, status, ledger, metrics, configuration and the
//! HTML page, over TCP, over the socket and by `outrigger status`. In: requests. Out: compared responses; a few per test.

use std::os::unix::fs::PermissionsExt;

use crate::harness::git::Repository;
use crate::harness::outrigger::outrigger;
use crate::harness::wire::get_over_socket;
use crate::harness::{Exposition, LogReceiver, Outrigger, PATIENCE, Scene, Wait, get, request, until};

/// All four jobs, with peers that need not respond.
const FOUR_JOBS: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { app: { stdio: {} }, access: { proxy: {} } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
metrics:
  sources: { process: { process: {} }, self: { self: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:@page@" } } }
sync:
  settings: { store: { git: { url: "file://@dir@/git/config.git", ref: main, path: orders/, interval: 1s } }, publish: { symlink: { path: "@dir@/settings" } } }
proxy:
  listeners: { front: { listen: "127.0.0.1:@front@", direction: outbound, cluster: back } }
  clusters: { back: { endpoints: ["127.0.0.1:@back@"] } }
admin: { listen: "127.0.0.1:@admin@", socket: "@dir@/run/admin.sock", probes_listen: "127.0.0.1:@probes@" }
"#;

/// Starts all four jobs; `None` if git is missing.
fn four_jobs(receiver: &LogReceiver) -> Option<(Scene, Outrigger)> {
    let scene = Scene::new();
    Repository::create(&scene)?;
    scene.set("receiver", receiver.address());
    for name in ["page", "front", "back", "probes"] {
        scene.port(name);
    }
    let command = ["sh", "-c", "echo hello; exec sleep 300"];
    let outrigger = Outrigger::start_and(&scene, FOUR_JOBS, &command, Wait::Started);
    Some((scene, outrigger))
}

/// The three probes respond on the admin listener and on the probes listener, which serves nothing else.
#[test]
fn probes_listener_serves_only_the_probes() {
    let receiver = LogReceiver::start();
    let (scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    let probes = format!("127.0.0.1:{}", scene.value("probes"));
    for path in ["/started", "/live"] {
        assert_eq!(outrigger.status_of(path), 200, "{path}");
        assert_eq!(get(&probes, path).map(|reply| reply.status).ok(), Some(200), "{path}");
    }
    until(PATIENCE, "both listeners return the same status for /ready", || {
        let ready = outrigger.status_of("/ready");
        matches!(ready, 200 | 503) && get(&probes, "/ready").is_ok_and(|reply| reply.status == ready)
    });
    for path in ["/", "/metrics", "/ledger", "/config", "/status"] {
        assert_eq!(outrigger.status_of(path), 200, "{path} on the admin listener");
        assert_eq!(get(&probes, path).map(|reply| reply.status).ok(), Some(404), "{path} on the probes listener");
    }
    assert_eq!(outrigger.status_of("/no-such-path"), 404);
    outrigger.finish();
}

/// Started never waits for the app; ready does.
/// Guarantee: started-never-waits-for-the-app
#[test]
fn ready_waits_for_the_app_and_started_does_not() {
    let scene = Scene::new();
    for name in ["port", "front"] {
        scene.port(name);
    }
    let python = need!(crate::harness::python(), "python3 is not installed");
    let body = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
"#;
    let go = scene.text_path("go");
    let server = format!("exec '{python}' -m http.server --bind 127.0.0.1 {}", scene.value("port"));
    let script = format!("echo waiting; while [ ! -e '{go}' ]; do sleep 0.05; done; {server}");
    let outrigger = Outrigger::start_and(&scene, body, &["sh", "-c", &script], Wait::Started);
    until(PATIENCE, "the app runs", || outrigger.stdout.contains("waiting"));
    assert_eq!(outrigger.status_of("/ready"), 503, "the app does not listen yet");
    assert_eq!(outrigger.status_of("/live"), 200);
    scene.write("go", "");
    until(PATIENCE, "ready once the app listens", || outrigger.status_of("/ready") == 200);
    outrigger.finish();
}

/// The TCP listener is read-only: it rejects every method that could change something, and nothing changes.
/// Guarantee: changes-only-by-socket
#[test]
fn tcp_listener_rejects_every_change() {
    let receiver = LogReceiver::start();
    let (_scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    let worker = outrigger.worker();
    for path in ["/reload", "/stop", "/config", "/log-level", "/"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let status = request(&outrigger.admin, method, path, &[], b"{}").map(|reply| reply.status);
            let refused = matches!(status, Ok(403..=405));
            assert!(refused, "{method} {path}: {status:?}");
        }
    }
    assert_eq!((outrigger.worker(), outrigger.status_of("/live")), (worker, 200));
    outrigger.finish();
}

/// The status has the health of each subsystem, over TCP, over the socket and by the command; all report the same.
#[test]
fn status_has_the_health_of_each_subsystem() {
    let receiver = LogReceiver::start();
    let (scene, outrigger_process) = need!(four_jobs(&receiver), "git is not installed");
    let socket = scene.path("run/admin.sock");
    let status = outrigger_process.get("/status").json();
    let over_socket = get_over_socket(&socket, "/status").expect("the socket responds").json();
    let config = scene.text_path("outrigger.yaml");
    let socket_text = socket.display().to_string();
    let by_config = outrigger(&["status", "-c", &config]);
    let by_socket = outrigger(&["status", "--socket", &socket_text]);
    for (what, text) in [
        ("/status", status.to_string()),
        ("the socket", over_socket.to_string()),
        ("status -c", by_config.1),
        ("status --socket", by_socket.1),
    ] {
        for subsystem in ["logs", "metrics", "sync", "proxy"] {
            assert!(text.contains(subsystem), "{subsystem} by {what}:\n{text}");
        }
    }
    assert_eq!((by_config.0, by_socket.0), (0, 0), "{}{}", by_config.2, by_socket.2);
    std::fs::rename(scene.path("git/config.git"), scene.path("git/away.git")).expect("the repository can be moved");
    until(PATIENCE, "the health of sync reports the missing store", || {
        outrigger(&["status", "-c", &config]).1.contains("config.git")
    });
    outrigger_process.finish();
}

/// `outrigger status` without a running process reports that and fails.
#[test]
fn status_fails_without_a_running_process() {
    let scene = Scene::new();
    let socket = scene.text_path("run/admin.sock");
    let (code, _, stderr) = outrigger(&["status", "--socket", &socket]);
    assert_ne!(code, 0);
    assert!(stderr.contains(&socket), "{stderr}");
}

/// Only the owner may use the socket.
#[test]
fn only_the_owner_may_use_the_socket() {
    let receiver = LogReceiver::start();
    let (scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    let mode = std::fs::metadata(scene.path("run/admin.sock")).expect("the socket exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    outrigger.finish();
}

/// `/config` shows the running configuration without secrets, neither those of the environment nor those in a URL. The same
/// holds for everything else that Outrigger prints.
/// Guarantee: secrets-never-shown
#[test]
fn no_secret_is_ever_shown() {
    let scene = Scene::new();
    let receiver = LogReceiver::start();
    scene.set("receiver", receiver.address());
    let body = r#"
logs:
  sources: { files: { file: { include: ["@dir@/in.log"], read_from: beginning } } }
  sinks: { main: { http: { url: "http://@receiver@/lines", auth: { bearer: { token: "${E2E_TOKEN}" } } }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
sync:
  settings: { store: { git: { url: "http://robot:hunter2secret@127.0.0.1:1/config.git", ref: main, path: /, interval: 1s } }, publish: { symlink: { path: "@dir@/settings" } } }
"#;
    let secrets = ["open-sesame-42", "hunter2secret"];
    scene.write("in.log", "hello\n");
    let outrigger = Outrigger::start_with(&scene, body, &[], Wait::Nothing, |command| {
        command.env("E2E_TOKEN", secrets[0]);
    });
    receiver.wait_for(1, PATIENCE);
    let sent = receiver.batches()[0].head.header("authorization").map(str::to_owned);
    assert_eq!(sent.as_deref(), Some("Bearer open-sesame-42"), "the receiver gets the secret itself");
    until(PATIENCE, "the status reports the failing fetch", || outrigger.get("/status").text().contains("config.git"));
    let config = outrigger.get("/config").text();
    assert!(config.contains("(secret)"), "{config}");
    assert!(config.contains(&receiver.address()), "values that are not secret are shown: {config}");
    let mut shown = vec![("/config", config)];
    shown.extend(["/status", "/metrics", "/ledger", "/"].map(|path| (path, outrigger.get(path).text())));
    let exit = outrigger.finish();
    shown.push(("the Outrigger log", exit.stderr));
    for (where_shown, text) in shown {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} in {where_shown}:\n{text}");
        }
    }
}

/// `/metrics` has only Outrigger's own metrics, in valid Prometheus text, with the counts of the ledger.
#[test]
fn own_metrics_parse_and_agree_with_the_ledger() {
    let receiver = LogReceiver::start();
    let (_scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    receiver.wait_for(1, PATIENCE);
    let reply = outrigger.get("/metrics");
    assert!(reply.head.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let page = Exposition::parse(&reply.text());
    assert!(!page.series.is_empty());
    assert!(page.series.iter().all(|series| series.name.starts_with("outrigger_")), "{}", reply.text());
    until(PATIENCE, "the metrics count one delivered line", || {
        let page = Exposition::of(&outrigger.admin).expect("the admin listener responds");
        let of_the_sink = |name: &str| name == "logs.sinks.main";
        page.series.iter().any(|series| {
            series.labels.values().any(|value| of_the_sink(value))
                && series.name.contains("delivered")
                && series.value == 1.0
        })
    });
    outrigger.finish();
}

/// The ledger has the JSON structure that scripts rely on.
#[test]
fn ledger_has_its_documented_structure() {
    let receiver = LogReceiver::start();
    let (_scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    receiver.wait_for(1, PATIENCE);
    let ledger = outrigger.get("/ledger").json();
    let rows = ledger["rows"].as_array().expect("rows");
    for (id, kind, type_name) in [
        ("logs.sources.app", "source", "stdio"),
        ("logs.sources.access", "source", "proxy"),
        ("logs.sinks.main", "sink", "http"),
    ] {
        let row = rows.iter().find(|row| row["id"] == id).unwrap_or_else(|| panic!("a row for {id}: {ledger}"));
        assert!(row["kind"] == kind && row["type"] == type_name, "{row}");
        for key in ["received", "delivered", "pending", "replayed"] {
            assert!(row[key].is_u64(), "{key} of {row}");
        }
        assert!(row["dropped"].is_object(), "{row}");
    }
    outrigger.finish();
}

/// The HTML page shows each subsystem and the ledger's rows, loads nothing from other hosts, and needs no third-party script.
#[test]
fn html_page_shows_health_and_is_self_contained() {
    let receiver = LogReceiver::start();
    let (_scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    receiver.wait_for(1, PATIENCE);
    let reply = outrigger.get("/");
    assert_eq!(reply.status, 200);
    assert!(reply.head.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
    let page = reply.text();
    for word in ["logs", "metrics", "sync", "proxy", "logs.sinks.main"] {
        assert!(page.contains(word), "{word} on the page:\n{page}");
    }
    for external in ["src=\"http", "href=\"http", "src=\"//", "@import"] {
        assert!(!page.contains(external), "{external} on the page");
    }
    outrigger.finish();
}

/// The metrics endpoint passes Prometheus' own linter, which wants a type and a help text, base units, and `_total` on counters alone.
#[test]
fn promtool_accepts_the_own_metrics() {
    let promtool = need_peer!("promtool");
    let receiver = LogReceiver::start();
    let (_scene, outrigger) = need!(four_jobs(&receiver), "git is not installed");
    until(PATIENCE, "every subsystem has metrics", || {
        let text = outrigger.get("/metrics").text();
        [
            "outrigger_sync_polls_total",
            "outrigger_component_delivered_records_total",
            "outrigger_proxy_downstream_connections",
        ]
        .iter()
        .all(|name| text.contains(name))
    });
    let text = outrigger.get("/metrics").text();
    let mut linter = std::process::Command::new(promtool);
    linter.args(["check", "metrics"]).stdin(std::process::Stdio::piped());
    linter.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut running = linter.spawn().expect("promtool starts");
    let mut stdin = running.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, text.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = running.wait_with_output().expect("promtool exits");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{text}");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has a help text");
        assert!(!line.ends_with(" untyped"), "{name} has a type");
    }
    outrigger.finish();
}

/// Supervisor and worker are measured from within the sandbox; own log messages and reloads are counted.
#[test]
fn own_processes_log_and_reloads_are_measured() {
    let scene = Scene::new();
    let body = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }";
    let outrigger = Outrigger::start(&scene, body, &["sleep", "300"]);
    let value = |name: &str, key: &str, value: &str| {
        let page = Exposition::parse(&outrigger.get("/metrics").text());
        page.sum(|series| series.name == name && series.labels.get(key).is_some_and(|found| found == value))
    };
    let suffixes = ["resident_memory_bytes", "virtual_memory_bytes", "max_fds", "start_time_seconds", "threads"];
    for process in ["supervisor", "worker"] {
        for suffix in suffixes {
            let name = format!("outrigger_process_{suffix}");
            assert!(value(&name, "process", process).is_some_and(|value| value > 0.0), "{name} of the {process}");
        }
        assert!(value("outrigger_process_cpu_seconds_total", "process", process).is_some(), "CPU of the {process}");
    }
    assert_eq!(value("outrigger_process_threads", "process", "supervisor"), Some(1.0));
    assert_eq!(value("outrigger_config_reloads_total", "result", "failure"), Some(0.0));
    let errors = value("outrigger_log_messages_total", "level", "error").expect("the level is counted");

    scene.write("outrigger.yaml", "app: { prot: 1 }\n");
    let (code, ..) = crate::harness::outrigger::outrigger(&["reload", "--socket", &scene.text_path("run/admin.sock")]);
    assert_eq!(code, 1, "the configuration is invalid");
    until(PATIENCE, "the failed reload is counted", || {
        value("outrigger_config_reloads_total", "result", "failure") == Some(1.0)
    });
    let page = Exposition::parse(&outrigger.get("/metrics").text());
    assert_eq!(page.value("outrigger_config_last_reload_successful"), Some(0.0));
    until(PATIENCE, "the error is logged and counted", || {
        value("outrigger_log_messages_total", "level", "error").is_some_and(|count| count > errors)
    });
    assert_eq!(value("outrigger_config_reloads_total", "result", "failure"), Some(1.0), "one file counts once");

    scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
    until(PATIENCE, "the configuration in use is the last good one again", || {
        let page = Exposition::parse(&outrigger.get("/metrics").text());
        page.value("outrigger_config_last_reload_successful") == Some(1.0)
    });
    until(PATIENCE, "the recovery is logged", || outrigger.stderr.contains("configuration recovered"));
    outrigger.finish();
}

/// `outrigger status` exits 1 if a subsystem failed. The status is that of a running Outrigger with its health changed, since a failed
/// worker is replaced immediately.
#[test]
fn status_exits_1_if_a_subsystem_failed() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &["sleep", "300"]);
    let mut status = outrigger.get("/status").json();
    assert_eq!(status["health"], "ok");
    for (health, code) in [("ok", 0), ("degraded", 0), ("failed", 1)] {
        status["health"] = health.into();
        let socket = scene.text_path(&format!("{health}.sock"));
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("the directory is writable");
        let body = status.to_string();
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("the command connects");
            let mut wire = crate::harness::Wire::new(stream);
            wire.head().expect("a request");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            wire.send(head + &body).expect("the command reads");
        });
        let (printed, stdout, stderr) = crate::harness::outrigger::outrigger(&["status", "--socket", &socket]);
        serving.join().expect("it served");
        assert_eq!(printed, code, "{health}: {stdout}{stderr}");
    }
    outrigger.finish();
}
