//! Configurations that would start and then hurt: files without an end, bytes that no program can be given, addresses that are
//! used twice, secrets under a mistyped key, texts that another tool would read otherwise. Texts come in; exit codes, places
//! and times of `validate` and `run` go out. Bounded by one short process a case, with `MEMORY_KIB` of address space for those
//! that read a file without an end.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::outrigger::{binary, configuration, outrigger};
use crate::harness::process::run_to_end;
use crate::harness::{Outrigger, PATIENCE, Scene, Wait};

/// Four times what a command may take that reads one small file.
const SOON: Duration = Duration::from_secs(8);

/// Enough for a command that keeps its bounds, and for the machine where one does not.
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

/// Refused, and the report has all of these.
#[track_caller]
fn is_refused(text: &str, parts: &[&str]) {
    let (code, report) = validate(text);
    assert_eq!(code, 1, "refused:\n{text}\n{report}");
    for part in parts {
        assert!(report.contains(part), "`{part}` in the report of\n{text}\n{report}");
    }
}

/// A command of the product that has little memory and a time limit; it names the path and says what is wrong with it.
#[track_caller]
fn gives_up_on(arguments: &[&str], path: &str) {
    let binary = binary();
    let limited = format!("ulimit -v {MEMORY_KIB}; exec timeout -s KILL {} \"$@\"", SOON.as_secs());
    let words = [&["sh", "-c", &limited, "sh", binary.as_str()][..], arguments].concat();
    let (code, _, stderr) = run_to_end(&words, PATIENCE);
    assert_eq!(code, 1, "{arguments:?}: 137 is the time limit's: {stderr}");
    assert!(stderr.contains(path), "{path} is named: {stderr}");
    assert!(!stderr.to_lowercase().contains("out of memory"), "{arguments:?}: {stderr}");
}

fn pipe(scene: &Scene, name: &str) -> String {
    let path = scene.text_path(name);
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo makes {path}");
    path
}

/// A device without an end, a pipe without a writer, a directory, and a file whose size is 0 until it is read.
/// covers: faults 2
#[test]
fn a_placeholder_of_no_regular_file_is_refused_at_once() {
    let scene = Scene::new();
    let sparse = scene.write("sparse", "").display().to_string();
    let file = std::fs::File::options().write(true).open(&sparse).expect("just written");
    file.set_len(4 << 30).expect("sparse files");
    for path in ["/dev/zero".to_owned(), pipe(&scene, "pipe"), scene.text_path("."), sparse] {
        let text = format!("app: {{ environment: {{ set: {{ A: \"${{file:{path}}}\" }} }} }}\n");
        let config = scene.write("outrigger.yaml", text).display().to_string();
        gives_up_on(&["validate", "-c", &config], &path);
        gives_up_on(&["run", "-c", &config, "--", "true"], &path);
    }
}

/// The same for the configuration itself, by every command that reads it.
/// covers: faults 2
#[test]
fn a_configuration_that_is_no_regular_file_is_refused_at_once() {
    let scene = Scene::new();
    for path in [pipe(&scene, "pipe.yaml"), "/dev/zero".to_owned()] {
        for command in [&["validate"][..], &["status"], &["run"]] {
            let more: &[&str] = if command == ["run"] { &["--", "true"] } else { &[] };
            gives_up_on(&[command, &["-c", &path], more].concat(), &path);
        }
    }
}

/// No program can be given a zero byte (execve(2) ends a string there), and no path has one.
/// covers: faults 2
#[test]
fn a_zero_byte_in_what_the_app_gets_is_a_mistake_with_its_place() {
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

/// What the app's environment is given may be a password, so that no page and no log of ours shows it.
/// covers: faults 2
#[test]
fn values_of_the_apps_environment_are_never_shown() {
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

/// The place and the key stay, the value is masked: these reports are printed in pipelines.
/// covers: faults 2
#[test]
fn a_secret_under_a_mistyped_key_is_masked_in_the_report() {
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
        assert!(report.contains(key) && report.contains("outrigger.yaml:"), "the key and its place: {report}");
        assert!(!report.contains(SECRET), "the value is masked:\n{report}");
    }
}

/// A shell would expand it, so that a person expects it; what is not done is a mistake and never the text itself.
/// covers: faults 2
#[test]
fn a_placeholder_inside_a_placeholder_is_expanded_or_refused() {
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
        let is_refused = exit.code == 1 && exit.stdout.is_empty() && exit.stderr.contains("outrigger.yaml:1:");
        assert!(is_expanded || is_refused, "{text}: {exit:?}");
    }
}

/// The help says what to write instead of what looks right and is something else in YAML 1.2.
/// covers: faults 2
#[test]
fn the_usual_slips_of_yaml_are_named_with_what_to_write() {
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

/// The kernel says "no such file" of a script that is there: what is missing is named.
/// covers: faults 2
#[test]
fn a_missing_interpreter_is_named_with_its_script() {
    // The second is a script with line ends of Windows.
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

/// Found along PATH, where the name alone would say that the script is missing.
/// covers: faults 2
#[test]
fn a_missing_interpreter_of_a_script_along_path_is_named() {
    let scene = Scene::new();
    let script = scene.script("bin/orders", "#!/nowhere/python3\n").display().to_string();
    let path = format!("app: {{ environment: {{ set: {{ PATH: \"{}:/usr/bin:/bin\" }} }} }}", scene.text_path("bin"));
    let exit = Outrigger::start_and(&scene, &path, &["orders"], Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.code, 127, "{exit:?}");
    assert!(exit.stderr.contains(&format!("interpreter /nowhere/python3 of {script}")), "{}", exit.stderr);
}

/// What a person corrects is seen at once: a second run for the rest costs a second round of the pipeline.
/// covers: faults 2
#[test]
fn mistakes_of_form_and_of_meaning_come_in_one_report() {
    let both = "app:\n  prot: 8080\nproxy:\n  listeners:\n    a: { listen: \"127.0.0.1:18001\", direction: outbound, cluster: b }\n";
    is_refused(both, &["outrigger.yaml:2:3", "`prot`", "outrigger.yaml:5:", "`b`"]);
    let stop = "app: { stop: { drain_timeout: 20s, grace_period: 20s, timeout: 30s } }\n";
    let logs = "logs:\n  sources: { a: { file: { include: [\"/x\"], strat: end } } }\n  sinks: { b: { blackhole: {}, inputs: [nope] } }\n";
    is_refused(&format!("{stop}{logs}"), &["outrigger.yaml:1:", "`strat`", "`nope`", "outrigger.yaml:4:"]);
    let app = "app: { port: 18001, signals: { rewrite: { SIGKILL: SIGTERM } }, prot: 1 }\n";
    let admin = "admin: { listen: \"127.0.0.1:18001\", token: \"\" }\nlimits: { memory: 1MiB }\n";
    is_refused(&format!("{app}{admin}"), &["`prot`", "SIGKILL", "`token`", "limits", "18001", "5 errors found"]);
    let two = "app: { signals: { rewrite: { SIGKILL: SIGTERM } } }\nadmin: { listen: \"127.0.0.1:18001\", probes: \"127.0.0.1:18001\" }\n";
    is_refused(two, &["SIGKILL", "18001", "2 errors found"]);
}

/// Each address can be listened on once; the second holder would be our own worker, and the report would blame it.
/// covers: faults 2
#[test]
fn one_address_for_two_listeners_is_refused() {
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
        is_refused(&text, &["18001", "outrigger.yaml:"]);
    }
    let apart = "admin: { listen: \"127.0.0.1:18001\", probes_listen: \"127.0.0.2:18001\" }\n";
    assert_eq!(validate(apart).0, 0, "two addresses with one port are two");
}

/// A listener there takes the app's connections, and then leads them to itself.
/// covers: faults 2
#[test]
fn a_listener_on_the_apps_own_port_is_refused() {
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
        is_refused(&text, &["18001", "outrigger.yaml:"]);
    }
    let apart = listener("127.0.0.2:18001", "app").replace("@clusters@", "");
    assert_eq!(validate(&format!("{app}{apart}")).0, 0, "beside the app on another address");
}

/// For a pipeline: what only warns fails it as well. Without a warning nothing changes, and a mistake stays one.
/// covers: faults 10
#[test]
fn validate_fails_on_warnings_where_they_are_denied() {
    // A user is for an app that is started here, and without a command there is none.
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

/// Nothing of the above is read too strictly: the configuration of the other tests passes.
/// covers: faults 10
#[test]
fn a_sound_configuration_passes_with_warnings_denied() {
    let scene = Scene::new();
    let body = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";
    let config = scene.write("outrigger.yaml", configuration(&scene, body)).display().to_string();
    let began = Instant::now();
    let (code, _, stderr) = outrigger(&["validate", "--deny-warnings", "-c", &config, "--", "true"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}
