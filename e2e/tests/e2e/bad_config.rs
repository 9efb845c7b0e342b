//! Invalid configurations, and paths and addresses that cannot be used: each has its clear message. The app is not started if
//! the error is in the configuration, and runs unaffected if it is in the environment. In: texts. Out: messages and exit
//! codes. Bounded by one short process a case.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::outrigger::{binary, outrigger};
use crate::harness::process::{Running, run_to_end};
use crate::harness::{
    Exposition, LogReceiver, Outrigger, PATIENCE, SECOND, Scene, Wait, assert_counts_up, python, until,
};

/// Ten errors of ten kinds, each alone on the line that its comment gives.
const TEN_ERRORS: &str = r#"app: { port: eighty }                                  # line 1: not a number
stat: { max: 64MiB }                                   # line 2: unknown section
limits: { memory: 64 elephants }                       # line 3: not a size
logs:
  sources:
    files: { file: { include: { one: log } } }         # line 6: a list is expected
    other: { fil: {} }                                 # line 7: unknown kind
  sinks:
    out: { http: { compression: gzip } }               # line 9: endpoint is missing
    copy: { file: { path: "/tmp/copy", paht: "/tmp" } }  # line 10: unknown key
metrics:
  sources:
    app: { scrape: { url: "http://127.0.0.1:1/metrics", interval: soon } } # line 13: not a duration
proxy:
  threads: many                                        # line 15: not a number
  listeners:
    front: { listen: "127.0.0.1:1", direction: sideways, cluster: back } # line 17: not a direction
  clusters: { back: { endpoints: ["127.0.0.1:2"] } }
"#;

const ERROR_LINES: [usize; 10] = [1, 2, 3, 6, 7, 9, 10, 13, 15, 17];

/// The locations `outrigger.yaml:LINE:COLUMN` in the output.
fn locations(printed: &str) -> Vec<(usize, usize)> {
    let after_name = printed.split("outrigger.yaml:").skip(1);
    after_name
        .filter_map(|rest| {
            let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
            Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
        })
        .collect()
}

/// A file with ten different errors gives ten diagnostics in one run, each with its line and column.
/// Guarantee: all-errors-in-one-run
#[test]
fn ten_errors_are_ten_diagnostics_in_one_run() {
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", TEN_ERRORS).display().to_string();
    let (code, stdout, stderr) = outrigger(&["validate", "-c", &config]);
    assert_eq!(code, 1);
    assert_eq!(stdout, "", "all of it goes to stderr");
    let found = locations(&stderr);
    let mut lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    lines.dedup();
    assert_eq!(lines, ERROR_LINES, "in the order of the file:\n{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error")).count(), 10, "{stderr}");
    assert!(found.iter().all(|(_, column)| *column > 0));
}

/// With the same errors `run` exits with 1 before the app starts.
/// Guarantee: invalid-start-stops-before-the-app
#[test]
fn config_errors_exit_1_before_the_app_starts() {
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", TEN_ERRORS).display().to_string();
    let mark = scene.text_path("the-app-ran");
    let (code, _, stderr) = outrigger(&["run", "-c", &config, "--", "touch", &mark]);
    assert_eq!(code, 1);
    assert_eq!(locations(&stderr).len(), 10, "{stderr}");
    assert!(!Path::new(&mark).exists(), "the app was not started");
}

/// Files that are not a configuration: `validate` and `run` reject each with its own clear message.
#[test]
fn unreadable_file_is_reported_with_the_reason() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("dir.yaml")).expect("the directory can be created");
    scene.write("empty.yaml", "");
    scene.write("blank.yaml", "# nothing but a comment\n\n");
    scene.write("latin1.yaml", b"app:\n  command: [\"caf\xe9\"]\n");
    scene.write("broken.yaml", "app:\n  command: [\"unclosed\n");
    let cases: [(&str, &[&str]); 6] = [
        ("missing.yaml", &["missing.yaml", "no such file"]),
        ("dir.yaml", &["dir.yaml", "directory"]),
        ("empty.yaml", &["empty.yaml", "empty"]),
        ("blank.yaml", &["blank.yaml", "empty"]),
        ("latin1.yaml", &["latin1.yaml", "utf-8", "2"]),
        ("broken.yaml", &["broken.yaml:2:"]),
    ];
    for (file, expected) in cases {
        let path = scene.text_path(file);
        for command in [&["validate", "-c", &path][..], &["run", "-c", &path, "--", "true"]] {
            let (code, _, stderr) = outrigger(command);
            let printed = stderr.to_lowercase();
            assert_eq!(code, 1, "{command:?}: {stderr}");
            for part in expected {
                assert!(printed.contains(part), "{command:?} reports {part}:\n{stderr}");
            }
        }
    }
}

/// A file without read permission is rejected with the reason. Root may read it anyway: then the command runs as another user.
#[test]
fn forbidden_file_is_reported_with_the_reason() {
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", "limits: { memory: 64MiB }\n");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o000)).expect("the test owns the file");
    let program = scene.program("outrigger", binary());
    let words = [program.display().to_string(), "validate".into(), "-c".into(), config.display().to_string()];
    let command = if rustix::process::geteuid().is_root() {
        let setpriv = need_peer!("setpriv");
        [&[setpriv, "--reuid=65534".into(), "--clear-groups".into()], &words[..]].concat()
    } else {
        words.to_vec()
    };
    let (code, _, stderr) = run_to_end(&command, PATIENCE);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.to_lowercase().contains("permission denied"), "{stderr}");
    assert!(stderr.contains("outrigger.yaml"), "{stderr}");
}

/// A listener whose address is in use fails the start; the error has the address and its holder. The app is not started.
/// Guarantee: invalid-start-stops-before-the-app
#[test]
fn an_address_in_use_is_reported_with_its_holder() {
    let python = need!(python(), "python3 is not installed");
    let holder_scene = Scene::new();
    let taken = holder_scene.port("taken").to_string();
    let holder = Running::start(&[&python, "-m", "http.server", "--bind", "127.0.0.1", &taken]);
    until(PATIENCE, "the holder listens", || TcpStream::connect(format!("127.0.0.1:{taken}")).is_ok());
    let cases = [
        "admin: { listen: \"127.0.0.1:@taken@\" }",
        "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@taken@\" } } } }",
        "proxy: { listeners: { front: { listen: \"127.0.0.1:@taken@\", direction: outbound, cluster: back } }, clusters: { back: { endpoints: [\"127.0.0.1:1\"] } } }",
    ];
    for body in cases {
        let scene = Scene::new();
        scene.set("taken", &taken);
        let mark = scene.text_path("the-app-ran");
        let outrigger = Outrigger::start_and(&scene, body, &["touch", &mark], Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, 1, "{body}: {}", exit.stderr);
        assert!(exit.stderr.contains(&format!("127.0.0.1:{taken}")), "the address: {}", exit.stderr);
        let pid = holder.pid().to_string();
        assert!(exit.stderr.contains(&pid) || exit.stderr.contains("python"), "the holder: {}", exit.stderr);
        assert!(!Path::new(&mark).exists(), "{body}: the app was not started");
    }
    holder.stop();
}

/// The status reports a log file that cannot be written with its path; the app and the other sink are unaffected, and the stop
/// finishes in time.
#[test]
fn an_unwritable_log_file_breaks_nothing_else() {
    let scene = Scene::new();
    let receiver = LogReceiver::start();
    scene.set("receiver", receiver.address());
    scene.write("in-the-way", "a file where a directory is expected");
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 8s } }
logs:
  sources: { app: { stdio: {} } }
  sinks:
    broken: { file: { path: "@dir@/in-the-way/orders.log" } }
    out:    { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 1MiB, max_age: 100ms } }
"#;
    let command = ["sh", "-c", "i=0; while [ $i -lt 500 ]; do printf 'n=%06d\\n' $i; i=$((i+1)); done; exec sleep 60"];
    let outrigger = Outrigger::start_and(&scene, body, &command, Wait::Started);
    receiver.wait_for(500, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 500);
    until(PATIENCE, "the status has the path", || outrigger.get("/status").text().contains("in-the-way/orders.log"));
    let row = crate::harness::ledger_row(&outrigger.admin, "logs.sinks.broken");
    assert_eq!(row["delivered"], 0, "{row}");
    let exit = outrigger.finish();
    assert!(exit.took < 10 * SECOND, "{:?}", exit.took);
    assert!(exit.stderr.contains("in-the-way/orders.log"), "{}", exit.stderr);
}

/// Without a state directory everything runs without durability; status and metrics report it.
#[test]
fn an_unwritable_state_directory_stops_no_job() {
    let scene = Scene::new();
    let receiver = LogReceiver::start();
    scene.set("receiver", receiver.address());
    scene.write("in-the-way", "a file where a directory is expected");
    let sinks = r#"
logs:
  sources: { app: { stdio: {} }, files: { file: { include: ["@dir@/*.log"], read_from: beginning } } }
  sinks: { out: { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
"#;
    scene.write("app.log", "file n=000001\n");
    let command = ["sh", "-c", "echo stdio n=000002; exec sleep 60"];
    let unwritable = format!("state: {{ dir: \"@dir@/in-the-way/state\", max_bytes: 64MiB }}\n{sinks}");
    let outrigger = Outrigger::start(&scene, &unwritable, &command);
    receiver.wait_for(2, PATIENCE);
    let status = outrigger.get("/status").text();
    assert!(status.contains("in-the-way/state"), "the status has the directory: {status}");
    let without = state_metrics(&outrigger);
    outrigger.finish();
    let outrigger = Outrigger::start(&scene, sinks, &command);
    receiver.wait_for(4, PATIENCE);
    let with = state_metrics(&outrigger);
    assert!(!outrigger.get("/status").text().contains("in-the-way/state"));
    outrigger.finish();
    assert_ne!(without, with, "the metrics distinguish a run without durability from one with it");
}

/// Outrigger's own series about the state directory or a subsystem's state.
fn state_metrics(outrigger: &Outrigger) -> Vec<String> {
    let page = Exposition::of(&outrigger.admin).expect("the admin listener has metrics");
    let about_state =
        page.series.iter().filter(|series| series.name.contains("state") && !series.name.contains("bytes"));
    about_state.map(|series| format!("{series:?}")).collect()
}
