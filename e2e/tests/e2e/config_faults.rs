//! Configurations that would start and then fail: endless files, bytes that cannot be passed to a program, addresses that are
//! used twice, secrets under a misspelled key, texts that another tool would parse differently. In: texts. Out: exit codes,
//! locations and times of `validate` and `run`. Bounded by one short process a case, with `MEMORY_KIB` of address space for
//! those that read an endless file.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::outrigger::{binary, configuration, outrigger};
use crate::harness::process::run_to_end;
use crate::harness::{Outrigger, PATIENCE, Scene, Wait};

/// Four times what a command may take that reads one small file.
const SOON: Duration = Duration::from_secs(8);

/// Enough for a command within its limits, and little enough for the machine if a command exceeds them.
const MEMORY_KIB: u64 = 512 << 10;

/// `validate` of a text, as for a wrapped app: exit code and the report.
#[track_caller]
fn validate(text: &str) -> (i32, String) {
    validate_with(text, &["--", "true"])
}

#[track_caller]
fn validate_with(text: &str, arguments: &[&str]) -> (i32, String) {
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", scene.fill(text)).display().to_string();
    let (code, stdout, stderr) = outrigger(&[&["validate", "-c", &config], arguments].concat());
    (code, stdout + &stderr)
}

/// The text is rejected, and the report has all of these.
#[track_caller]
fn assert_rejected(text: &str, parts: &[&str]) {
    let (code, report) = validate(text);
    assert_eq!(code, 1, "rejected:\n{text}\n{report}");
    for part in parts {
        assert!(report.contains(part), "`{part}` in the report of\n{text}\n{report}");
    }
}

/// A command of the product with little memory and a time limit fails; its error has the path and the reason.
#[track_caller]
fn assert_fails_on(arguments: &[&str], path: &str) {
    let binary = binary();
    let limited = format!("ulimit -v {MEMORY_KIB}; exec timeout -s KILL {} \"$@\"", SOON.as_secs());
    let words = [&["sh", "-c", &limited, "sh", binary.as_str()][..], arguments].concat();
    let (code, _, stderr) = run_to_end(&words, PATIENCE);
    assert_eq!(code, 1, "{arguments:?}: 137 means the time limit: {stderr}");
    assert!(stderr.contains(path), "{path} is in the error: {stderr}");
    assert!(!stderr.to_lowercase().contains("out of memory"), "{arguments:?}: {stderr}");
}

fn pipe(scene: &Scene, name: &str) -> String {
    let path = scene.text_path(name);
    let created = Command::new("mkfifo").arg(&path).status();
    assert!(created.is_ok_and(|status| status.success()), "mkfifo creates {path}");
    path
}

/// Rejected immediately: an endless device, a pipe without a writer, a directory, a file whose size is 0 until it is read.
#[test]
fn placeholder_needs_a_regular_file() {
    let scene = Scene::new();
    let sparse = scene.write("sparse", "").display().to_string();
    let file = std::fs::File::options().write(true).open(&sparse).expect("just written");
    file.set_len(4 << 30).expect("sparse files");
    for path in ["/dev/zero".to_owned(), pipe(&scene, "pipe"), scene.text_path("."), sparse] {
        let text = format!("app: {{ environment: {{ set: {{ A: \"${{file:{path}}}\" }} }} }}\n");
        let config = scene.write("outrigger.yaml", text).display().to_string();
        assert_fails_on(&["validate", "-c", &config], &path);
        assert_fails_on(&["run", "-c", &config, "--", "true"], &path);
    }
}

/// The same for the configuration itself, by every command that reads it.
#[test]
fn configuration_must_be_a_regular_file() {
    let scene = Scene::new();
    for path in [pipe(&scene, "pipe.yaml"), "/dev/zero".to_owned()] {
        for command in [&["validate"][..], &["status"], &["run"]] {
            let more: &[&str] = if command == ["run"] { &["--", "true"] } else { &[] };
            assert_fails_on(&[command, &["-c", &path], more].concat(), &path);
        }
    }
}

/// No program argument can have a NUL byte (execve(2) ends a string there), and no path has one.
#[test]
fn a_nul_byte_is_an_error_with_its_location() {
    let cases = [
        "app: { command: [\"./or\\0ders\"] }",
        "app: { command: [\"./orders\", \"--flag=\\0\"] }",
        "app: { command: [\"./orders\"], working_directory: \"/srv\\0/orders\" }",
        "app: { command: [\"./orders\"], environment: { set: { MODE: \"a\\0b\" } } }",
        "app: { command: [\"./orders\"], environment: { set: { \"MO\\0DE\": prod } } }",
        "logs: { sources: { a: { file: { include: [\"/x\"] } } }, sinks: { b: { file: { path: \"/x\\0y\" } } } }",
    ];
    for text in cases {
        let (code, report) = validate_with(text, &[]);
        assert!(code == 1 && report.contains("outrigger.yaml:1:"), "{text}: {report}");
    }
    let scene = Scene::new();
    let exit = Outrigger::start_and(&scene, cases[0], &[], Wait::Nothing).wait(SOON);
    assert!(exit.code == 1 && exit.stderr.contains("outrigger.yaml:1:18"), "{exit:?}");
}

const SECRET: &str = "hunter2-never-shown";

/// A value for the app's environment may be a password, so no HTTP response and no log of Outrigger shows it.
/// Guarantee: secrets-never-shown
#[test]
fn values_of_the_app_environment_are_never_shown() {
    let scene = Scene::new();
    let body = format!("app: {{ environment: {{ set: {{ DB_PASSWORD: {SECRET}, MODE: prod }} }} }}");
    let script = format!("[ \"$DB_PASSWORD\" = {SECRET} ] && echo given; exec sleep 300");
    let running = Outrigger::start(&scene, &body, &["sh", "-c", &script]);
    crate::harness::until(PATIENCE, "the app has it", || running.stdout.contains("given"));
    let config = running.get("/config").text();
    assert!(config.contains("DB_PASSWORD"), "the name is shown: {config}");
    let mut shown: Vec<String> = ["/config", "/status", "/metrics", "/"].map(|path| running.get(path).text()).into();
    shown.push(outrigger(&["status", "--socket", &scene.text_path("run/admin.sock")]).1);
    shown.push(running.finish().stderr);
    for text in shown {
        assert!(!text.contains(SECRET), "{SECRET} in {text}");
    }
}

/// The report has the location and the key, and masks the value: CI pipelines print these reports.
/// Guarantee: secrets-never-shown
#[test]
fn a_secret_under_a_misspelled_key_is_masked() {
    let sink = |client: &str| {
        format!(
            "logs:\n  sources: {{ app: {{ stdio: {{}} }} }}\n  sinks:\n    out:\n      http:\n        \
             url: http://127.0.0.1:9/\n{client}\n"
        )
    };
    let at = |indent: usize, text: &str| format!("{}{text}", " ".repeat(indent));
    let bearer = |key: &str| sink(&[at(8, "auth:"), at(10, "bearer:"), at(12, &format!("{key}: {SECRET}"))].join("\n"));
    let cases = [
        (bearer("tokn"), "tokn"),
        (sink(&at(8, &format!("auth: {{ basic: {{ username: a, passwrd: {SECRET} }} }}"))), "passwrd"),
        (sink(&at(8, &format!("auth: {{ sigv4: {{ region: a, service: b, secret_acess_key: {SECRET} }} }}"))), "acess"),
        (sink(&at(8, &format!("haeders: {{ X-Key: {SECRET} }}"))), "haeders"),
        (format!("app: {{ environment: {{ sett: {{ DB_PASSWORD: {SECRET} }} }} }}"), "sett"),
        (format!("app:\n  environment:\n    DB_PASSWORD: {SECRET}\n"), "DB_PASSWORD"),
        (format!("app: {{ environment: {{ set: {{ DB_PASSWORD: [{SECRET}] }} }} }}"), "DB_PASSWORD"),
        (format!("app: {{ environment: {{ set: {{ A=B: {SECRET} }} }} }}"), "A=B"),
        (format!("app: {{ enviroment: {{ set: {{ DB_PASSWORD: {SECRET} }} }} }}"), "enviroment"),
        (format!("admin: {{ socket: /run/admin.sock, tokn: {SECRET} }}"), "tokn"),
        (format!("app: {{ env_vars: {{ DB_PASSWORD: {SECRET} }} }}"), "env_vars"),
        (format!("limits: {{ vault: {{ inner: [{SECRET}] }} }}"), "vault"),
    ];
    for (text, key) in cases {
        let (code, report) = validate(&text);
        assert_eq!(code, 1, "{text}\n{report}");
        assert!(report.contains(key) && report.contains("outrigger.yaml:"), "the key and its location: {report}");
        assert!(!report.contains(SECRET), "the value is masked:\n{report}");
    }
}

/// A shell would expand it, so users expect it; if it is not expanded, it is an error and never the literal text.
#[test]
fn a_nested_placeholder_is_expanded_or_rejected() {
    let cases = [
        ("${E2E_NOT_SET:-${E2E_INNER}}", "inner"),
        ("${E2E_NOT_SET:-a ${E2E_INNER} b}", "a inner b"),
        ("${E2E_NOT_SET:-${E2E_NEITHER:-last}}", "last"),
    ];
    for (text, expanded) in cases {
        let scene = Scene::new();
        let body = format!("app: {{ environment: {{ set: {{ A: \"{text}\" }} }} }}");
        let command = ["sh", "-c", "echo \"got [$A]\""];
        let running = Outrigger::start_with(&scene, &body, &command, Wait::Nothing, |command| {
            command.env("E2E_INNER", "inner").env_remove("E2E_NOT_SET").env_remove("E2E_NEITHER");
        });
        let exit = running.wait(PATIENCE);
        let is_expanded = exit.code == 0 && exit.stdout.contains(&format!("got [{expanded}]"));
        let is_rejected = exit.code == 1 && exit.stdout.is_empty() && exit.stderr.contains("outrigger.yaml:1:");
        assert!(is_expanded || is_rejected, "{text}: {exit:?}");
    }
}

/// The help shows what to write instead of text that looks valid and means something else in YAML 1.2.
#[test]
fn common_yaml_errors_suggest_a_fix() {
    let flow = |pattern: &str, more: &str| {
        let source = format!("a: {{ file: {{ include: [{pattern}] }} }}");
        format!("logs: {{ sources: {{ {source} }}, sinks: {{ b: {{ blackhole: {{}}{more} }} }} }}\n")
    };
    let block = "logs:\n  sources:\n    a:\n      file:\n        include:\n          - *.log\n  sinks: { b: { blackhole: {} } }\n";
    let helps = |text: &str, parts: &[&str]| {
        let (code, report) = validate(text);
        let mut help = report.lines().filter(|line| line.trim_start().starts_with("help:"));
        let helps = help.any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(code == 1 && helps, "a help with {parts:?} for\n{text}\n{report}");
    };
    for text in [&flow("*.log", ""), &flow("/var/log/x, *", ""), block] {
        helps(text, &["quote", "*"]);
    }
    for (word, instead) in [("yes", "true"), ("on", "true"), ("off", "false"), ("No", "false")] {
        helps(&flow("/x", &format!(", required: {word}")), &[instead]);
    }
}

/// The kernel reports "no such file" for a script that exists: the error has the missing interpreter.
#[test]
fn a_missing_interpreter_is_reported() {
    // The second is a script with Windows line ends.
    for (first, interpreter) in [("#!/nowhere/python3", "/nowhere/python3"), ("#!/bin/sh\r", "/bin/sh")] {
        let scene = Scene::new();
        let script = scene.script("orders", &format!("{first}\necho started\n")).display().to_string();
        let exit = Outrigger::start_and(&scene, "", &[&script], Wait::Nothing).wait(PATIENCE);
        assert!([126, 127].contains(&exit.code), "{exit:?}");
        let mut lines = exit.stderr.lines();
        let named =
            lines.any(|line| line.contains("interpreter") && line.contains(interpreter) && line.contains(&script));
        assert!(named, "the interpreter {interpreter:?} of {script}: {}", exit.stderr);
    }
}

/// The script is found in PATH; its name alone would suggest that the script is missing.
#[test]
fn a_missing_interpreter_in_path_is_reported() {
    let scene = Scene::new();
    let script = scene.script("bin/orders", "#!/nowhere/python3\n").display().to_string();
    let path = format!("app: {{ environment: {{ set: {{ PATH: \"{}:/usr/bin:/bin\" }} }} }}", scene.text_path("bin"));
    let exit = Outrigger::start_and(&scene, &path, &["orders"], Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.code, 127, "{exit:?}");
    assert!(exit.stderr.contains(&format!("interpreter /nowhere/python3 of {script}")), "{}", exit.stderr);
}

/// Users see everything to fix in one run: a second run for the rest costs a second run of the CI pipeline.
/// Guarantee: all-errors-in-one-run
#[test]
fn structural_and_semantic_errors_in_one_report() {
    let both = "app:\n  prot: 8080\nproxy:\n  listeners:\n    a: { listen: \"127.0.0.1:18001\", direction: outbound, cluster: b }\n";
    assert_rejected(both, &["outrigger.yaml:2:3", "`prot`", "outrigger.yaml:5:", "`b`"]);
    let stop = "app: { stop: { drain_timeout: 20s, grace_period: 20s, timeout: 30s } }\n";
    let logs = "logs:\n  sources: { a: { file: { include: [\"/x\"], strat: end } } }\n  sinks: { b: { blackhole: {}, inputs: [nope] } }\n";
    assert_rejected(&format!("{stop}{logs}"), &["outrigger.yaml:1:", "`strat`", "`nope`", "outrigger.yaml:4:"]);
    let app = "app: { port: 18001, signals: { rewrite: { SIGKILL: SIGTERM } }, prot: 1 }\n";
    let admin = "admin: { listen: \"127.0.0.1:18001\", token: \"\" }\nlimits: { memory: 1MiB }\n";
    assert_rejected(
        &format!("{app}{admin}"),
        &["`prot`", "SIGKILL", "`admin.token`", "limits", "18001", "5 errors found"],
    );
    let two = "app: { signals: { rewrite: { SIGKILL: SIGTERM } } }\nadmin: { listen: \"127.0.0.1:18001\", probes: \"127.0.0.1:18001\" }\n";
    assert_rejected(two, &["SIGKILL", "18001", "2 errors found"]);
}

/// An entry with an error hides no error of another entry, and causes none.
#[test]
fn one_invalid_entry_hides_no_other_error() {
    let logs = "logs:\n  sources: { a: { stdio: {} } }\n  sinks:\n    b: { loki: { ulr: \"http://127.0.0.1:9\" } }\n    c: { blackhole: {}, inputs: [nope] }\n";
    let proxy = "proxy:\n  listeners:\n    d: { listen: \"127.0.0.1:18001\", cluster: e }\n    f: { listen: \"127.0.0.1:18002\", cluster: nope }\n  clusters: { e: { endpoints: 3 } }\n";
    let (code, report) = validate(&format!("{logs}{proxy}"));
    assert_eq!(code, 1, "{report}");
    for part in [
        "`ulr` in `logs.sinks.b.loki`",
        "unknown log source `nope`",
        "`proxy.clusters.e.endpoints`",
        "unknown cluster `nope`",
    ] {
        assert!(report.contains(part), "`{part}` in {report}");
    }
    assert!(!report.contains("unknown cluster `e`") && !report.contains("warning"), "{report}");
    assert!(report.ends_with("5 errors found\n"), "{report}");
    let port = "app: { port: eighty }\nproxy: { listeners: { a: { listen: \"127.0.0.1:18001\", cluster: app } } }\n";
    let (code, report) = validate(port);
    assert!(code == 1 && report.ends_with("1 error found\n"), "the cluster `app` has an invalid port: {report}");
}

/// Errors of values do not hide each other, nor those of other sections, and a value is reported once.
#[test]
fn errors_of_values_are_all_reported_once() {
    let admin = "admin: { listen: \"127.0.0.1:18001\", token: \"abc def\", socket_mode: \"999\" }\n";
    let metrics =
        "metrics: { sources: { a: { self: {} } }, sinks: { b: { prometheus: { listen: \"127.0.0.1:18001\" } } } }\n";
    let (code, report) = validate(&format!("limits: {{ memory: 64 elephants }}\n{admin}{metrics}"));
    assert_eq!(code, 1, "{report}");
    for part in ["64 elephants", "`999` is not an octal", "`admin.token`", "address `127.0.0.1:18001` is already used"]
    {
        assert_eq!(report.matches(part).count() - usize::from(part == "64 elephants"), 1, "`{part}` in {report}");
    }
    assert!(report.ends_with("4 errors found\n"), "{report}");
}

/// A credential that is given twice, not at all or empty would lose every record at run time.
#[test]
fn credentials_are_checked_before_the_start() {
    let sink = |auth: &str| {
        format!(
            "logs: {{ sources: {{ a: {{ stdio: {{}} }} }}, sinks: {{ b: {{ http: {{ url: \"http://h/\", auth: {{ {auth} }} }} }} }} }}"
        )
    };
    for auth in ["bearer: {}", "bearer: { token: a, token_file: /b }"] {
        assert_rejected(&sink(auth), &["`logs.sinks.b.http.auth.bearer` needs exactly one of token and token_file"]);
    }
    let basic = "basic: { username: a, password: b, password_file: /c }";
    assert_rejected(&sink(basic), &["`logs.sinks.b.http.auth.basic` needs exactly one of password and password_file"]);
    assert_rejected(&sink("bearer: { token: \"\" }"), &["`logs.sinks.b.http.auth.bearer.token` is empty"]);
    let (code, report) = validate(&sink("bearer: { token_file: /nowhere/token }"));
    assert!(code == 0 && report.contains("bearer.token_file`: cannot read /nowhere/token"), "{report}");
}

/// An interpolated value is shown nowhere, and changes no other word of a message.
#[test]
fn interpolated_values_leave_messages_intact() {
    let scene = Scene::new();
    let text = "app: { prot: 1, environment: { set: { A: \"${A}\", B: \"${B}\" } } }\nstate: 3\n";
    let config = scene.write("outrigger.yaml", text).display().to_string();
    let mut command = std::process::Command::new(binary());
    command.args(["validate", "-c", &config]).env("A", "port").env("B", "expected");
    let report = String::from_utf8(command.output().expect("it starts").stderr).expect("UTF-8");
    assert!(report.contains("did you mean `port`?"), "{report}");
    assert!(report.contains("`state`: expected a mapping, found a number"), "{report}");
}

/// A long line is shown around its error.
#[test]
fn errors_in_a_long_line_are_shown() {
    let keys: String = (0..60).map(|number| format!("KEY_{number}: value, ")).collect();
    let (code, report) = validate(&format!("app: {{ environment: {{ set: {{ {keys} }} }}, prot: 1 }}"));
    assert_eq!(code, 1, "{report}");
    let lines: Vec<&str> = report.lines().collect();
    let caret = lines.iter().position(|line| line.contains('^')).expect("a caret");
    let column = lines[caret].find('^').expect("just found");
    assert_eq!(lines[caret - 1].get(column..column + 4), Some("prot"), "{report}");
}

/// What is valid and has no effect, or fails only where it runs, is a warning.
#[test]
fn validate_warns_of_what_fails_later() {
    let sources = "sources: { a: { stdio: {} }, b: { file: { include: [/x] } } }";
    let cases = [
        (format!("logs: {{ {sources}, sinks: {{ c: {{ blackhole: {{}}, inputs: [a] }} }} }}"), "no sink reads `logs.sources.b`"),
        ("metrics: { sources: { a: { process: {} } } }".into(), "`metrics.sources` has no sink"),
        ("app: { working_directory: $HOME }".into(), "write `${HOME}` for the variable, or `$$HOME` for this text"),
        (
            "logs: { sources: { a: { stdio: {} } }, sinks: { c: { http: { url: \"https://h/\", tls: { ca_file: /nowhere/ca.crt } } } } }".into(),
            "`logs.sinks.c.http.tls.ca_file`: cannot read /nowhere/ca.crt",
        ),
    ];
    for (text, part) in cases {
        let (code, report) = validate(&text);
        assert!(code == 0 && report.contains("warning: ") && report.contains(part), "`{part}` in {report}");
        assert_eq!(validate_with(&text, &["--deny-warnings", "--", "true"]).0, 1, "{text}");
    }
    assert_rejected(
        "metrics: { sources: { a: { scrape: { url: \"https://h/\", tls: { cert_file: /a } } } } }",
        &["`cert_file` in `metrics.sources.a.scrape.tls` requires `key_file`"],
    );
}

/// Each address can be bound once; the second holder would be Outrigger's own worker, and the report would blame it.
#[test]
fn one_address_for_two_listeners_is_rejected() {
    let admin = "admin: { listen: \"127.0.0.1:18001\" }\n";
    let page = |name: &str| format!("{name}: {{ prometheus: {{ listen: \"127.0.0.1:18001\" }} }}");
    let metrics = |sinks: &str| format!("metrics: {{ sources: {{ self: {{ self: {{}} }} }}, sinks: {{ {sinks} }} }}\n");
    let proxy = "proxy: { listeners: { a: { listen: \"@at@\", direction: outbound, cluster: b } }, clusters: { b: { endpoints: [\"127.0.0.1:9\"] } } }\n";
    let cases = [
        "admin: { listen: \"127.0.0.1:18001\", probes_listen: \"127.0.0.1:18001\" }\n".to_owned(),
        "admin: { listen: \"127.0.0.1:18001\", probes_listen: \"0.0.0.0:18001\" }\n".to_owned(),
        format!("{admin}{}", metrics(&page("page"))),
        metrics(&format!("{}, {}", page("page"), page("other"))),
        format!("{admin}{}", proxy.replace("@at@", "127.0.0.1:18001")),
        format!("{admin}{}", proxy.replace("@at@", "0.0.0.0:18001")),
    ];
    for text in cases {
        assert_rejected(&text, &["18001", "outrigger.yaml:"]);
    }
    let apart = "admin: { listen: \"127.0.0.1:18001\", probes_listen: \"127.0.0.2:18001\" }\n";
    assert_eq!(validate(apart).0, 0, "two addresses with the same port are distinct");
}

/// A listener there accepts the app's connections, and then routes them to itself.
#[test]
fn a_listener_on_the_apps_own_port_is_rejected() {
    let listener = |at: &str, to: &str| {
        format!(
            "proxy: {{ listeners: {{ a: {{ listen: \"{at}\", direction: inbound, cluster: {to} }} }}, @clusters@ }}\n"
        )
    };
    let app = "app: { port: 18001 }\n";
    let itself = "clusters: { b: { endpoints: [\"127.0.0.1:18001\"] } }";
    let cases = [
        format!("{app}{}", listener("127.0.0.1:18001", "app").replace("@clusters@", "")),
        format!("{app}{}", listener("0.0.0.0:18001", "app").replace("@clusters@", "")),
        format!("{app}admin: {{ listen: \"127.0.0.1:18001\" }}\n"),
        listener("127.0.0.1:18001", "b").replace("@clusters@", itself),
        listener("0.0.0.0:18001", "b").replace("@clusters@", itself),
    ];
    for text in cases {
        assert_rejected(&text, &["18001", "outrigger.yaml:"]);
    }
    let apart = listener("127.0.0.2:18001", "app").replace("@clusters@", "");
    assert_eq!(validate(&format!("{app}{apart}")).0, 0, "next to the app, on another address");
}

/// For CI pipelines: a warning fails them as well. Without a warning nothing changes, and an error remains one.
#[test]
fn validate_fails_on_denied_warnings() {
    // `user` applies to an app that Outrigger starts, and without a command there is none.
    let cases = [
        ("app: { user: nobody }\n", 0, true),
        ("limits: { memory: 64MiB }\n", 0, false),
        ("app: { prot: 1 }\n", 1, true),
    ];
    for (text, plain, denied) in cases {
        let (code, report) = validate_with(text, &[]);
        assert_eq!(code, plain, "{text}{report}");
        let (code, report) = validate_with(text, &["--deny-warnings"]);
        assert_eq!(code != 0, denied, "{text}{report}");
        assert!(!denied || report.contains("outrigger.yaml:1:"), "{text}{report}");
    }
}

/// None of the checks above is too strict: the configuration of the other tests passes.
#[test]
fn a_valid_config_passes_with_denied_warnings() {
    let scene = Scene::new();
    let body = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";
    let config = scene.write("outrigger.yaml", configuration(&scene, body)).display().to_string();
    let began = Instant::now();
    let (code, _, stderr) = outrigger(&["validate", "--deny-warnings", "-c", &config, "--", "true"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}
