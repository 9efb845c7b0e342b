//! The app's environment: its variables without Outrigger's secrets, its directory, user, limits and umask; and the report
//! of an OOM kill. Configurations come in, the app's own report goes out. Some tests need root, and are skipped by name
//! without it.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::process::run_to_end;
use crate::harness::{Exit, Outrigger, PATIENCE, Scene, Wait, fixture, python, until};

const CAPTURED: &str = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";

/// Runs a script to completion with this configuration, and with variables in Outrigger's own environment.
#[track_caller]
fn run(body: &str, variables: &[(&str, &str)], script: &str) -> Exit {
    let scene = Scene::new();
    let prepare = |command: &mut Command| {
        command.envs(variables.iter().copied());
    };
    let outrigger = Outrigger::start_with(&scene, body, &["sh", "-c", script], Wait::Nothing, prepare);
    outrigger.wait(PATIENCE)
}

/// No receiver accepts the lines of that sink, and a stop would wait for it.
const QUICK: &str = "stop: { drain_timeout: 1s, grace_period: 1s, timeout: 3s }";

/// A sink whose secrets come from variables; nothing listens there.
const SECRETIVE: &str = r#"logs:
  sources: { app: { stdio: {} } }
  sinks:
    out:
      http:
        url: "http://127.0.0.1:9/${E2E_PLAIN}"
        auth: { bearer: { token: "${E2E_TOKEN}" } }
        headers: { X-Key: "key ${E2E_KEY}" }
      required: false
"#;

const VARIABLES: [(&str, &str); 4] =
    [("E2E_TOKEN", "t0ken"), ("E2E_KEY", "k3y"), ("E2E_PLAIN", "orders"), ("E2E_OTHER", "untouched")];

/// The app does not see the secrets of the configuration, in its environment or in that of its children.
/// Guarantee: secrets-hidden-from-the-app
#[test]
fn secret_variables_are_hidden_from_the_app() {
    let exit = run(
        &format!("app: {{ {QUICK} }}\n{SECRETIVE}"),
        &VARIABLES,
        "env | grep ^E2E_ | sort; sh -c env | grep -c ^E2E_",
    );
    assert_eq!(exit.stdout, "E2E_OTHER=untouched\nE2E_PLAIN=orders\n2\n", "{}", exit.stderr);
}

#[test]
fn passed_secret_variable_reaches_the_app() {
    let body = format!("app: {{ {QUICK}, environment: {{ pass: [E2E_TOKEN] }} }}\n{SECRETIVE}");
    let exit = run(&body, &VARIABLES, "env | grep ^E2E_ | sort");
    assert_eq!(exit.stdout, "E2E_OTHER=untouched\nE2E_PLAIN=orders\nE2E_TOKEN=t0ken\n", "{}", exit.stderr);
}

#[test]
fn variables_are_set_and_unset_as_configured() {
    let body = "app: { environment: { set: { E2E_MODE: prod, E2E_OTHER: \"two words = ü\", E2E_EMPTY: \"\", \
                E2E_FROM: \"${E2E_PLAIN}!\" }, unset: [E2E_PLAIN, E2E_NEVER_THERE] } }";
    let exit = run(body, &VARIABLES, "env | grep ^E2E_ | sort");
    let expected =
        "E2E_EMPTY=\nE2E_FROM=orders!\nE2E_KEY=k3y\nE2E_MODE=prod\nE2E_OTHER=two words = ü\nE2E_TOKEN=t0ken\n";
    assert_eq!(exit.stdout, expected, "{}", exit.stderr);
}

/// The app's command is looked up in the PATH that the app gets.
#[test]
fn command_is_looked_up_in_the_configured_path() {
    let scene = Scene::new();
    scene.script("tools/own-tool", "#!/bin/sh\necho found\n");
    let body = "app: { environment: { set: { PATH: \"@dir@/tools:/usr/bin:/bin\" } } }";
    let exit = Outrigger::start_and(&scene, body, &["own-tool"], Wait::Nothing).wait(PATIENCE);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "found\n"), "{}", exit.stderr);
}

#[test]
fn app_starts_in_its_directory_outrigger_in_root() {
    let scene = Scene::new();
    let file = scene.write("work/here", "");
    let directory = file.parent().expect("a directory").canonicalize().expect("the directory exists");
    let script = "pwd -P; cat here && echo readable; exec sleep 300";
    let body = "app: { working_directory: \"@dir@/work\" }";
    let outrigger = Outrigger::start_and(&scene, body, &["sh", "-c", script], Wait::Ready);
    until(PATIENCE, "the app reports", || outrigger.stdout.contains("readable"));
    assert_eq!(outrigger.stdout.lines()[0], directory.display().to_string());
    let cwd = |pid: u32| std::fs::read_link(format!("/proc/{pid}/cwd")).expect("the process runs");
    assert_eq!(cwd(outrigger.pid()), PathBuf::from("/"), "Outrigger keeps no volume busy");
    outrigger.finish();
}

/// Relative paths in the configuration and the configuration's own path refer to the directory in which Outrigger was started.
#[test]
fn relative_paths_survive_the_change_to_root() {
    let scene = Scene::new();
    let body = "app: {}\nlogs: { sources: { app: { stdio: {} } }, sinks: { lines: { file: { path: \"lines\" } } } }\n\
                state: { dir: state }\n";
    let config = crate::harness::outrigger::configuration(&scene, body);
    scene.write("outrigger.yaml", config);
    scene.script("own-tool", "#!/bin/sh\necho from the app\n");
    let mut command = Command::new(crate::harness::outrigger::binary());
    command.args(["run", "--", "./own-tool"]).current_dir(scene.path("."));
    let mut running = crate::harness::process::Running::spawn(command);
    assert_eq!(running.wait(PATIENCE), 0, "{}", running.stderr.text());
    let lines = std::fs::read_to_string(scene.path("lines")).expect("the sink wrote next to the configuration");
    assert!(lines.contains("from the app"), "{lines}");
    assert!(scene.path("state").is_dir());
}

#[test]
fn missing_working_directory_is_reported() {
    let exit = run("app: { working_directory: /no/such/place }", &[], "echo ran");
    assert_eq!(exit.stdout, "");
    assert!([1, 126, 127].contains(&exit.code), "{}", exit.code);
    assert!(exit.stderr.contains("/no/such/place"), "{}", exit.stderr);
}

fn is_root() -> Option<()> {
    rustix::process::geteuid().is_root().then_some(())
}

/// The UID of an unprivileged user; `nobody` on every Linux.
const UNPRIVILEGED: &str = "65534";

#[test]
fn only_the_app_runs_as_the_configured_user() {
    need!(is_root(), "changing the user needs root");
    let script = "echo uid=$(id -u) gid=$(id -g) groups=$(id -G); exec sleep 300";
    let id = |flag: &str| run_to_end(&["id", flag, UNPRIVILEGED], PATIENCE).1.trim().to_owned();
    let (name, group) = (id("-nu"), id("-g"));
    let group = if group.is_empty() { UNPRIVILEGED.to_owned() } else { group };
    let with_group = format!("{name}:daemon");
    let cases = [
        ("65534:65534", format!("uid={UNPRIVILEGED} gid=65534 groups=65534\n")),
        ("65534:12345", format!("uid={UNPRIVILEGED} gid=12345 groups=12345\n")),
        (name.as_str(), format!("uid={UNPRIVILEGED} gid={group} groups={group}\n")),
        (with_group.as_str(), format!("uid={UNPRIVILEGED} gid=1 groups=1\n")),
    ];
    for (user, expected) in cases {
        let scene = Scene::new();
        let outrigger =
            Outrigger::start_and(&scene, &format!("app: {{ user: \"{user}\" }}"), &["sh", "-c", script], Wait::Ready);
        until(PATIENCE, "the app reports", || outrigger.stdout.contains("groups="));
        assert_eq!(outrigger.stdout.text(), expected, "{user}");
        let uid = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
            status.lines().find_map(|line| line.strip_prefix("Uid:").map(|ids| ids.trim().to_owned())).expect("a line")
        };
        assert_eq!(uid(outrigger.pid()), "0\t0\t0\t0", "Outrigger stays root");
        assert!(uid(outrigger.app()).starts_with(UNPRIVILEGED));
        assert_eq!(outrigger.finish().code, 143, "Outrigger can still signal the app");
    }
}

/// The pipe for the app's output belongs to the app's user, so that /dev/stdout opens as it does at a terminal.
#[test]
fn app_with_another_user_can_reopen_its_output() {
    need!(is_root(), "changing the user needs root");
    let script = "id -u; echo out > /dev/stdout; echo err > /dev/stderr; echo also > /proc/self/fd/1";
    let exit = run(&format!("app: {{ user: \"{UNPRIVILEGED}:{UNPRIVILEGED}\" }}\n{CAPTURED}"), &[], script);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "65534\nout\nalso\n"), "{}", exit.stderr);
    assert!(exit.stderr.lines().any(|line| line == "err"), "{}", exit.stderr);
}

#[test]
fn app_with_the_same_user_can_reopen_its_output() {
    for logs in ["", CAPTURED] {
        let exit = run(&format!("app: {{}}\n{logs}"), &[], "echo out > /dev/stdout; echo more >> /dev/stdout");
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "out\nmore\n"), "{}", exit.stderr);
    }
}

#[test]
fn unknown_user_is_rejected_before_the_start() {
    for user in ["no-such-user", "root:no-such-group", "-5", "4294967296"] {
        let exit = run(&format!("app: {{ user: \"{user}\" }}"), &[], "echo ran");
        assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{user}: {}", exit.stderr);
        let invalid = user.split(':').next_back().expect("one part");
        assert!(exit.stderr.contains(invalid), "{user}: {}", exit.stderr);
    }
}

/// Without root the user cannot be changed: this is reported, and the app is not started as another user.
#[test]
fn denied_change_of_user_starts_nothing() {
    need!(is_root(), "dropping root needs root");
    let scene = Scene::new();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(scene.path("."), open).expect("the directory is the test's");
    let body = "app: { user: \"12345:12345\" }";
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
    // A copy, since the directories above the binary may not be accessible to every user.
    let copy = scene.program("copy", crate::harness::outrigger::binary());
    let config = config.display().to_string();
    let drop = ["setpriv", "--reuid", UNPRIVILEGED, "--regid", UNPRIVILEGED, "--clear-groups"];
    let outrigger = [&copy.display().to_string(), "run", "-c", &config, "--", "echo", "ran"];
    let (code, stdout, stderr) = run_to_end(&[&drop[..], &outrigger].concat(), PATIENCE);
    assert_ne!(code, 0, "{stderr}");
    assert_eq!(stdout, "", "{stderr}");
    assert!(stderr.contains("app.user"), "the message contains the key: {stderr}");
}

/// With every option around the app, everything that the options do not set is the same as without Outrigger.
#[test]
fn limits_umask_and_niceness_are_inherited() {
    let python = need!(python(), "python3 is not installed");
    let script = format!(
        "umask 027; ulimit -S -c 4096; ulimit -S -n 321; nice -n 5 \"$@\" '{python}' '{}' < /dev/null",
        fixture("environment.py")
    );
    let (code, alone, _) = run_to_end(&["sh", "-c", &script], PATIENCE);
    assert_eq!(code, 0);
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("one line of JSON");
    let alone = parse(&alone);
    for body in ["app: {}", "app: {}\nsandbox: { enabled: true }", "app: {}\nlimits: { memory: 32MiB }"] {
        let scene = Scene::new();
        let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
        let config = config.display().to_string();
        let outrigger = [crate::harness::outrigger::binary(), "run".into(), "-c".into(), config, "--".into()];
        let words = ["sh".to_owned(), "-c".to_owned(), script.clone(), "sh".to_owned()].into_iter().chain(outrigger);
        let (code, stdout, stderr) = run_to_end(&words.collect::<Vec<String>>(), PATIENCE);
        assert_eq!(code, 0, "{stderr}");
        for what in ["umask", "files", "core", "niceness", "masked", "ignored", "directory"] {
            assert_eq!(parse(&stdout)[what], alone[what], "{what} with {body}");
        }
    }
}

/// The worker writes no core dump, which could contain secrets; the app's own may be wanted.
#[test]
fn worker_writes_no_core_dump_and_the_app_may() {
    let scene = Scene::new();
    let prepared = ["sh", "-c", "ulimit -S -c 8192; exec \"$@\"", "sh"];
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, "app: {}"));
    let config = config.display().to_string();
    let binary = crate::harness::outrigger::binary();
    let outrigger = [binary.as_str(), "run", "-c", &config, "--", "sleep", "300"];
    let running = crate::harness::process::Running::start(&[&prepared[..], &outrigger].concat());
    let below = || crate::harness::process::children(running.pid());
    let named = |name: &str| below().into_iter().find(|child| child.name.starts_with(name)).map(|child| child.pid);
    until(PATIENCE, "the app and the worker run", || named("sleep").is_some() && named("outrigger").is_some());
    let limit = |pid: Option<u32>| {
        let text =
            std::fs::read_to_string(format!("/proc/{}/limits", pid.expect("just seen"))).expect("the process runs");
        let line = text.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a line");
        line.split_whitespace().next().map(str::to_owned)
    };
    // dash counts in blocks of 512 bytes.
    assert_eq!(limit(named("sleep")).as_deref(), Some("4194304"));
    until(PATIENCE, "the worker sets its core limit to 0", || limit(named("outrigger")).as_deref() == Some("0"));
    running.stop();
}

/// A secret removed from the app's environment cannot be read from Outrigger's either, by an app with the same user.
/// Guarantee: secrets-hidden-from-the-app
#[test]
fn app_cannot_read_outriggers_secrets_in_proc() {
    need!(is_root(), "dropping root needs root");
    let scene = Scene::new();
    std::fs::set_permissions(scene.path("."), std::fs::Permissions::from_mode(0o777))
        .expect("the directory is the test's");
    let body = "app: {}\nlogs: { sources: { app: { stdio: {} } }, sinks: { out: { http: { url: \"http://127.0.0.1:9/\", \
                auth: { bearer: { token: \"${E2E_SECRET}\" } } }, required: false } } }\nstate: { dir: \"@dir@/own\" }\n\
                admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/own/admin.sock\" }";
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
    let copy = scene.program("copy", crate::harness::outrigger::binary());
    let script = "echo mine: $(tr '\\0' '\\n' < /proc/self/environ | grep -c E2E_SECRET); \
                  for of in $PPID $(cat /proc/$PPID/task/$PPID/children); do cat /proc/$of/environ /proc/$of/mem | tr '\\0' '\\n'; done";
    let (copy, config) = (copy.display().to_string(), config.display().to_string());
    let drop =
        ["env", "E2E_SECRET=topsecret", "setpriv", "--reuid", UNPRIVILEGED, "--regid", UNPRIVILEGED, "--clear-groups"];
    let outrigger = [&copy, "run", "-c", &config, "--", "sh", "-c", script];
    let (_, stdout, stderr) = run_to_end(&[&drop[..], &outrigger].concat(), 2 * PATIENCE);
    assert!(stdout.contains("mine: 0"), "the app ran, without the secret: {stdout} {stderr}");
    assert!(stderr.contains("denied"), "access to Outrigger's files was denied: {stderr}");
    assert!(!stdout.contains("topsecret"), "{stdout}");
}
