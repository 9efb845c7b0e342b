//! The configuration as a user sees it on the command line: validate, explain, schema, placeholders, the demo. In: texts.
//! Out: exit codes and output. Bounded by one short process a case.

use std::process::{Command, Stdio};

use crate::harness::outrigger::{binary, configuration, outrigger};
use crate::harness::process::run_to_end;
use crate::harness::{LogReceiver, Outrigger, PATIENCE, SECOND, Scene};

/// Every fixed public name of this step of the product, in one file.
const EVERY_NAME: &str = r#"
app: { command: ["./orders"], port: 8080, stop: { signal: SIGTERM, drain_timeout: 5s, grace_period: 20s, timeout: 30s } }
state: { dir: "@dir@/state", max_bytes: 256MiB }
limits: { memory: 64MiB }
logs:
  sources:
    app:    { stdio: {} }
    files:  { file: { include: ["@dir@/*.log"], exclude: ["@dir@/debug.log"], read_from: beginning } }
    later:  { file: { include: ["@dir@/*.txt"], read_from: end } }
    access: { proxy: {} }
  stages: [ { parse: { json: {} } }, { set: { service: orders } } ]
  sinks:
    a: { http: { url: "http://127.0.0.1:9/lines", compression: gzip }, inputs: [app, files], required: true, buffer: { max_bytes: 8MiB, when_full: block }, batch: { max_bytes: 1MiB, max_age: 1s } }
    b: { loki: { url: "http://127.0.0.1:3100", labels: { service: orders } } }
    c: { file: { path: "@dir@/archive/orders.log" }, required: false, buffer: { max_bytes: 16MiB, when_full: drop_oldest } }
    d: { stdout: {} }
    e: { blackhole: {} }
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:8080/metrics", interval: 15s } }, process: { process: {} }, proxy: { proxy: {} }, self: { self: {} } }
  sinks: { page: { prometheus: { listen: "127.0.0.1:9464" } }, central: { remote_write: { url: "http://127.0.0.1:9090/api/v1/write" } } }
sync:
  settings: { store: { git: { url: "file:///srv/config.git", ref: main, path: orders/, interval: 10s } }, publish: { symlink: { path: "@dir@/settings" } }, notify: [ { signal: SIGHUP }, { http: { url: "http://127.0.0.1:8080/-/reload" } } ] }
proxy:
  threads: 1
  listeners: { inbound: { listen: "127.0.0.1:8443", direction: inbound, cluster: app }, payments: { listen: "127.0.0.1:9001", direction: outbound, cluster: payments } }
  clusters: { payments: { endpoints: ["127.0.0.1:8080", "127.0.0.1:8081"], balance: { least_request: {} } } }
admin: { listen: "127.0.0.1:9900", socket: "@dir@/run/admin.sock", probes_listen: "127.0.0.1:9901" }
"#;

fn validate(text: &str) -> (i32, String) {
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", scene.fill(text)).display().to_string();
    let (code, _, stderr) = outrigger(&["validate", "-c", &config]);
    (code, stderr)
}

/// A file that uses every fixed name passes.
#[test]
fn a_config_with_every_fixed_name_is_valid() {
    let (code, stderr) = validate(EVERY_NAME);
    assert_eq!(code, 0, "{stderr}");
}

/// An error is shown with its line, a caret, and the nearest name.
#[test]
fn an_unknown_key_suggests_the_nearest_key() {
    let (code, stderr) = validate("admin:\n  lisen: \"127.0.0.1:9900\"\n");
    assert_eq!(code, 1);
    for part in ["outrigger.yaml:2:3", "lisen", "`listen`", "^"] {
        assert!(stderr.contains(part), "{part} in:\n{stderr}");
    }
}

/// `${ENV}`, `${ENV:-default}` and `${file:…}` are expanded in values; a missing one is an error with its location.
#[test]
fn placeholders_expand_env_defaults_and_files() {
    let scene = Scene::new();
    let receiver = LogReceiver::start();
    scene.set("receiver", receiver.address());
    scene.write("name.txt", "from-a-file");
    let body = r#"
logs:
  sources: { app: { stdio: {} } }
  stages: [ { set: { first: "${E2E_FIRST}", second: "${E2E_NOT_SET:-from-the-default}", third: "${file:@dir@/name.txt}" } } ]
  sinks: { out: { http: { url: "http://@receiver@/lines", compression: none }, batch: { max_bytes: 1MiB, max_age: 100ms } } }
"#;
    let command = ["sh", "-c", "echo hello; exec sleep 60"];
    let outrigger = Outrigger::start_with(&scene, body, &command, crate::harness::Wait::Ready, |command| {
        command.env("E2E_FIRST", "from-the-environment").env_remove("E2E_NOT_SET");
    });
    receiver.wait_for(1, PATIENCE);
    let record = &receiver.records()[0];
    assert_eq!(record.field("first"), "from-the-environment");
    assert_eq!(record.field("second"), "from-the-default");
    assert_eq!(record.field("third"), "from-a-file");
    outrigger.finish();
    let (code, stderr) = validate("state:\n  dir: \"${E2E_SURELY_NOT_SET}/state\"\n");
    assert_eq!(code, 1);
    for part in ["outrigger.yaml:2:8", "E2E_SURELY_NOT_SET"] {
        assert!(stderr.contains(part), "{part} in:\n{stderr}");
    }
}

/// Durations and sizes without a unit, or with an unknown one, are errors that show what to write.
#[test]
fn durations_and_sizes_need_their_units() {
    let (code, stderr) = validate("app:\n  stop:\n    drain_timeout: 5 parsecs\nlimits:\n  memory: 64 elephants\n");
    assert_eq!(code, 1);
    for part in ["outrigger.yaml:3:20", "outrigger.yaml:5:11"] {
        assert!(stderr.contains(part), "{part} in:\n{stderr}");
    }
}

/// `explain` prints the documentation of each kind and an example that is itself valid.
#[test]
fn explain_prints_documentation_and_an_example() {
    let kinds = [
        ("logs.sources.stdio", "stdio"),
        ("logs.sources.file", "include"),
        ("logs.sources.proxy", "proxy"),
        ("logs.stages.parse", "json"),
        ("logs.stages.set", "set"),
        ("logs.sinks.http", "url"),
        ("logs.sinks.loki", "labels"),
        ("logs.sinks.file", "path"),
        ("logs.sinks.stdout", "stdout"),
        ("logs.sinks.blackhole", "blackhole"),
        ("metrics.sources.scrape", "url"),
        ("metrics.sources.process", "process"),
        ("metrics.sources.proxy", "proxy"),
        ("metrics.sources.self", "self"),
        ("metrics.sinks.prometheus", "listen"),
        ("metrics.sinks.remote_write", "url"),
        ("sync.store.git", "ref"),
    ];
    for (kind, word) in kinds {
        let (code, stdout, stderr) = outrigger(&["explain", kind]);
        assert_eq!(code, 0, "explain {kind}: {stderr}");
        assert!(stdout.contains(word), "{word} in the explanation of {kind}:\n{stdout}");
        assert!(stdout.to_lowercase().contains("example"), "an example in the explanation of {kind}:\n{stdout}");
    }
}

/// An unknown kind is rejected, and the error suggests the nearest one.
#[test]
fn explain_suggests_the_nearest_kind() {
    let (code, stdout, stderr) = outrigger(&["explain", "logs.sinks.lokki"]);
    assert_ne!(code, 0);
    assert!(stderr.contains("logs.sinks.loki"), "{stdout}{stderr}");
}

/// A name without its path, a path with the name of an entry, a reason and a metric are explained, too.
#[test]
fn explain_finds_names_that_users_see() {
    for (name, part) in [
        ("loki", "logs.sinks.loki\n"),
        ("app.stop.timeout", "Type: duration, default \"30s\""),
        ("logs.sinks.main.loki.url", "Type: url"),
        ("logs.sinks.loki.auth", "Exactly one of:\n  basic (mapping, kind)"),
        ("logs.stages.0", "parse (mapping, kind)"),
        ("proxy.listeners.inbound", "listen (address, required)"),
        ("buffer_full", "A bounded buffer was full"),
        ("outrigger_app_up", "outrigger_app_up (gauge: no labels)"),
    ] {
        let (code, stdout, stderr) = outrigger(&["explain", name]);
        assert!(code == 0 && stdout.contains(part), "`{part}` for {name}: {stdout}{stderr}");
    }
    let (code, _, stderr) = outrigger(&["explain", "auth.bearer"]);
    assert!(code == 1 && stderr.contains("use the whole path: logs.sinks.http.auth.bearer,"), "{stderr}");
}

/// The schema is JSON and has the kinds, so that an editor can complete them.
#[test]
fn schema_is_json_and_has_every_section() {
    let (code, stdout, stderr) = outrigger(&["schema"]);
    assert_eq!(code, 0, "{stderr}");
    let schema: serde_json::Value = serde_json::from_str(&stdout).expect("the schema is JSON");
    let properties = schema["properties"].as_object().expect("the schema describes an object");
    for section in ["app", "state", "limits", "logs", "metrics", "sync", "proxy", "admin"] {
        assert!(properties.contains_key(section), "{section} in {:?}", properties.keys());
    }
    for kind in ["loki", "remote_write", "least_request", "stdio"] {
        assert!(stdout.contains(&format!("\"{kind}\"")), "{kind} in the schema");
    }
}

/// Without `-c`, `outrigger.yaml` of the working directory is read.
#[test]
fn the_default_file_is_outrigger_yaml() {
    let scene = Scene::new();
    scene.write("outrigger.yaml", configuration(&scene, "limits: { memory: 64MiB }"));
    let program = binary();
    let line = format!("cd '{}' && exec '{program}' validate", scene.path(".").display());
    let (code, _, stderr) = run_to_end(&["sh", "-c", &line], PATIENCE);
    assert_eq!(code, 0, "{stderr}");
    std::fs::remove_file(scene.path("outrigger.yaml")).expect("it was just written");
    let (code, _, stderr) = run_to_end(&["sh", "-c", &line], PATIENCE);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("outrigger.yaml"), "{stderr}");
}

/// An unknown command is rejected with the usage, and help and version exist.
#[test]
fn the_command_line_has_help_and_version() {
    let (code, stdout, _) = outrigger(&["--help"]);
    assert_eq!(code, 0);
    for command in ["run", "validate", "explain", "schema", "status", "demo"] {
        assert!(stdout.contains(command), "{command} in:\n{stdout}");
    }
    let (code, stdout, _) = outrigger(&["--version"]);
    assert_eq!((code, stdout.contains("outrigger")), (0, true), "{stdout}");
    let (code, _, stderr) = outrigger(&["runn"]);
    assert_ne!(code, 0);
    assert!(stderr.contains("run"), "{stderr}");
}

/// The demo's check runs all four jobs, prints a line for each, and exits 0; it leaves nothing running.
#[test]
fn the_demo_checks_itself() {
    let scene = Scene::new();
    let program = binary();
    let line = format!("cd '{}' && exec '{program}' demo --check", scene.path(".").display());
    let (code, stdout, stderr) = run_to_end(&["sh", "-c", &line], 50 * SECOND);
    assert_eq!(code, 0, "{stdout}{stderr}");
    for job in ["logs", "metrics", "sync", "proxy"] {
        let lines = stdout.lines().filter(|line| line.contains(job)).count();
        assert!(lines >= 1, "a line about {job} in:\n{stdout}");
    }
}

/// The first configuration in the README is valid unchanged, with the command of the README.
#[test]
fn the_configuration_of_the_readme_is_valid() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("the README exists");
    let (_, rest) = readme.split_once("```yaml\n").expect("the README has a configuration");
    let (yaml, _) = rest.split_once("```").expect("the configuration has an end");
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", yaml).display().to_string();
    let (code, _, stderr) = outrigger(&["validate", "-c", &config, "--", "python3", "-m", "http.server", "8080"]);
    assert_eq!(code, 0, "{stderr}");
}

/// Six common jobs, each as a whole file: ship log files, scrape and remote write, follow a branch over ssh, balance between
/// endpoints, all four as a companion, and all four with a wrapped command.
#[test]
fn configurations_of_common_jobs_are_valid() {
    let files = [
        r#"
logs:
  sources: { app: { file: { include: ["/var/log/orders/*.log"] } } }
  stages: [ { parse: { json: {} } } ]
  sinks: { loki: { loki: { url: "http://loki:3100", labels: { app: orders } } } }
"#,
        r#"
metrics:
  sources:
    app: { scrape: { url: "http://127.0.0.1:8080/metrics" } }
    itself: { self: {} }
  sinks:
    central: { remote_write: { url: "http://prometheus:9090/api/v1/write" }, buffer: { max_bytes: 16MiB } }
"#,
        r#"
sync:
  config:
    store: { git: { url: "ssh://git@git.example/config.git", ref: main, ssh: { key_file: /run/secrets/id } } }
    publish: { symlink: { path: "@dir@/config" } }
    notify: [ { http: { url: "http://127.0.0.1:8080/-/reload" } } ]
"#,
        r#"
proxy:
  listeners: { payments: { listen: "127.0.0.1:9001", cluster: payments } }
  clusters: { payments: { endpoints: ["10.0.0.5:8443", "10.0.0.6:8443"] } }
"#,
        r#"
app: { port: 8080 }
logs:
  sources: { files: { file: { include: ["@dir@/*.log"] } }, access: { proxy: {} } }
  stages: [ { parse: { json: {} } } ]
  sinks: { loki: { loki: { url: "http://loki:3100", labels: { app: orders } } } }
metrics:
  sources: { app: { scrape: { url: "http://127.0.0.1:8080/metrics" } }, requests: { proxy: {} } }
  sinks: { page: { prometheus: { listen: "0.0.0.0:9464" } } }
sync:
  config: { store: { git: { url: "https://git.example/config.git" } }, publish: { symlink: { path: "@dir@/orders" } } }
proxy: { listeners: { inbound: { listen: "0.0.0.0:8443", cluster: app } } }
admin: { probes_listen: "0.0.0.0:9901" }
"#,
        r#"
app: { command: [sleep, "300"], port: 8080 }
logs: { sources: { app: { stdio: {} } }, sinks: { loki: { loki: { url: "http://loki:3100", labels: { app: orders } } } } }
metrics: { sources: { process: { process: {} } }, sinks: { page: { prometheus: { listen: "0.0.0.0:9464" } } } }
sync:
  config: { store: { git: { url: "https://git.example/config.git" } }, publish: { symlink: { path: "@dir@/orders" } }, notify: [ { signal: SIGHUP } ] }
proxy: { listeners: { inbound: { listen: "0.0.0.0:8443", cluster: app } } }
admin: { probes_listen: "0.0.0.0:9901" }
"#,
    ];
    for file in files {
        let (code, stderr) = validate(file);
        assert_eq!(code, 0, "{file}\n{stderr}");
    }
}

/// A reader that closes early, as `head` does, is not an error; a full disk is an error of the command.
#[test]
fn closed_output_is_no_error_and_lost_output_is() {
    let scene = Scene::new();
    let wrong = scene.write("wrong.yaml", "app: { prot: 1 }\n").display().to_string();
    let cases: [(&[&str], i32); 4] =
        [(&["explain"], 0), (&["explain", "logs.sources.file"], 0), (&["schema"], 0), (&["validate", "-c", &wrong], 1)];
    for (arguments, code) in cases {
        let mut command = Command::new(binary());
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        // Both ends are closed before anything is written.
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().expect("it exits");
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
    for arguments in [&["schema"][..], &["explain"], &["detect"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("every Linux has it");
        let output =
            Command::new(binary()).args(arguments).stdout(full).stderr(Stdio::piped()).output().expect("it runs");
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && printed.contains("cannot write the output"),
            "{arguments:?}: {printed}"
        );
    }
}
