//! What the app finds around it: its variables without our secrets, its directory, its user, its limits, its umask; and what
//! is said when the kernel ends it for want of memory. Configurations come in, the app's own report goes out. Some of it
//! needs root, and is skipped by name elsewhere.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::process::run_to_end;
use crate::harness::{Exit, Outrigger, PATIENCE, Scene, Wait, fixture, python, until};

const CAPTURED: &str = "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";

/// Runs a script to its end with these words under `app`, and variables that the test's own start gives us.
#[track_caller]
fn run(body: &str, variables: &[(&str, &str)], script: &str) -> Exit {
    let scene = Scene::new();
    let prepare = |command: &mut Command| {
        command.envs(variables.iter().copied());
    };
    let outrigger = Outrigger::start_with(&scene, body, &["sh", "-c", script], Wait::Nothing, prepare);
    outrigger.wait(PATIENCE)
}

/// Nobody takes what that sink has, which the end would wait for.
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

/// What our configuration uses as a secret is not the app's to see, in its environment or in that of its children.
/// covers: attachment 1
/// covers: attachment 6
#[test]
fn variables_that_hold_our_secrets_are_taken_from_the_app() {
    let exit = run(
        &format!("app: {{ {QUICK} }}\n{SECRETIVE}"),
        &VARIABLES,
        "env | grep ^E2E_ | sort; sh -c env | grep -c ^E2E_",
    );
    assert_eq!(exit.stdout, "E2E_OTHER=untouched\nE2E_PLAIN=orders\n2\n", "{}", exit.stderr);
}

/// covers: attachment 1
/// covers: attachment 6
#[test]
fn a_secret_that_is_kept_stays() {
    let body = format!("app: {{ {QUICK}, environment: {{ pass: [E2E_TOKEN] }} }}\n{SECRETIVE}");
    let exit = run(&body, &VARIABLES, "env | grep ^E2E_ | sort");
    assert_eq!(exit.stdout, "E2E_OTHER=untouched\nE2E_PLAIN=orders\nE2E_TOKEN=t0ken\n", "{}", exit.stderr);
}

/// covers: attachment 1
#[test]
fn variables_are_set_and_removed_as_the_configuration_says() {
    let body = "app: { environment: { set: { E2E_MODE: prod, E2E_OTHER: \"two words = ü\", E2E_EMPTY: \"\", \
                E2E_FROM: \"${E2E_PLAIN}!\" }, unset: [E2E_PLAIN, E2E_NEVER_THERE] } }";
    let exit = run(body, &VARIABLES, "env | grep ^E2E_ | sort");
    let expected =
        "E2E_EMPTY=\nE2E_FROM=orders!\nE2E_KEY=k3y\nE2E_MODE=prod\nE2E_OTHER=two words = ü\nE2E_TOKEN=t0ken\n";
    assert_eq!(exit.stdout, expected, "{}", exit.stderr);
}

/// The search path that the app gets is the one along which its command is looked up.
/// covers: attachment 1
#[test]
fn a_search_path_that_is_set_finds_the_command() {
    let scene = Scene::new();
    scene.script("tools/own-tool", "#!/bin/sh\necho found\n");
    let body = "app: { environment: { set: { PATH: \"@dir@/tools:/usr/bin:/bin\" } } }";
    let exit = Outrigger::start_and(&scene, body, &["own-tool"], Wait::Nothing).wait(PATIENCE);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "found\n"), "{}", exit.stderr);
}

/// covers: attachment 1
#[test]
fn the_app_starts_in_its_directory_and_we_stand_in_the_root() {
    let scene = Scene::new();
    let folder = scene.write("work/here", "").parent().expect("it has a folder").canonicalize().expect("it is there");
    let script = "pwd -P; cat here && echo readable; exec sleep 300";
    let body = "app: { working_directory: \"@dir@/work\" }";
    let outrigger = Outrigger::start_and(&scene, body, &["sh", "-c", script], Wait::Ready);
    until(PATIENCE, "it tells", || outrigger.stdout.contains("readable"));
    assert_eq!(outrigger.stdout.lines()[0], folder.display().to_string());
    let ours = |pid: u32| std::fs::read_link(format!("/proc/{pid}/cwd")).expect("it runs");
    assert_eq!(ours(outrigger.pid()), PathBuf::from("/"), "so that no volume is held");
    outrigger.finish();
}

/// Paths in the configuration and the configuration's own are meant as whoever started us meant them.
/// covers: attachment 1
#[test]
fn relative_paths_hold_although_we_leave_the_directory() {
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
    let lines = std::fs::read_to_string(scene.path("lines")).expect("the sink wrote beside the configuration");
    assert!(lines.contains("from the app"), "{lines}");
    assert!(scene.path("state").is_dir());
}

/// covers: attachment 1
#[test]
fn a_directory_that_is_not_there_is_named() {
    let exit = run("app: { working_directory: /no/such/place }", &[], "echo ran");
    assert_eq!(exit.stdout, "");
    assert!([1, 126, 127].contains(&exit.code), "{}", exit.code);
    assert!(exit.stderr.contains("/no/such/place"), "{}", exit.stderr);
}

fn is_root() -> Option<()> {
    rustix::process::geteuid().is_root().then_some(())
}

/// What a user has whose number nobody else uses; `nobody` on every Linux.
const NOBODY: &str = "65534";

/// covers: attachment 1
/// covers: attachment 6
#[test]
fn the_app_runs_as_its_user_and_we_do_not() {
    need!(is_root(), "changing the user needs root");
    let get = "echo uid=$(id -u) gid=$(id -g) groups=$(id -G); exec sleep 300";
    let group = run_to_end(&["id", "-g", "nobody"], PATIENCE).1.trim().to_owned();
    let group = if group.is_empty() { NOBODY.to_owned() } else { group };
    let cases = [
        ("65534:65534", format!("uid={NOBODY} gid=65534 groups=65534\n")),
        ("65534:12345", format!("uid={NOBODY} gid=12345 groups=12345\n")),
        ("nobody", format!("uid={NOBODY} gid={group} groups={group}\n")),
        ("nobody:daemon", format!("uid={NOBODY} gid=1 groups=1\n")),
    ];
    for (user, expected) in cases {
        let scene = Scene::new();
        let outrigger =
            Outrigger::start_and(&scene, &format!("app: {{ user: \"{user}\" }}"), &["sh", "-c", get], Wait::Ready);
        until(PATIENCE, "it tells", || outrigger.stdout.contains("groups="));
        assert_eq!(outrigger.stdout.text(), expected, "{user}");
        let uid = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            status.lines().find_map(|line| line.strip_prefix("Uid:").map(|ids| ids.trim().to_owned())).expect("a line")
        };
        assert_eq!(uid(outrigger.pid()), "0\t0\t0\t0", "we keep ours");
        assert!(uid(outrigger.app()).starts_with(NOBODY));
        assert_eq!(outrigger.finish().code, 143, "and may still signal it");
    }
}

/// The pipe that we put there belongs to the app's user, so that /dev/stdout opens as it does at a terminal.
/// covers: attachment 1
/// covers: attachment 6
#[test]
fn an_app_with_another_user_can_open_its_output_again() {
    need!(is_root(), "changing the user needs root");
    let script = "id -u; echo out > /dev/stdout; echo err > /dev/stderr; echo also > /proc/self/fd/1";
    let exit = run(&format!("app: {{ user: \"{NOBODY}:{NOBODY}\" }}\n{CAPTURED}"), &[], script);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, "65534\nout\nalso\n"), "{}", exit.stderr);
    assert!(exit.stderr.lines().any(|line| line == "err"), "{}", exit.stderr);
}

/// covers: attachment 1
#[test]
fn the_same_user_can_open_its_output_again() {
    for logs in ["", CAPTURED] {
        let exit = run(&format!("app: {{}}\n{logs}"), &[], "echo out > /dev/stdout; echo more >> /dev/stdout");
        assert_eq!((exit.code, exit.stdout.as_str()), (0, "out\nmore\n"), "{}", exit.stderr);
    }
}

/// covers: attachment 1
#[test]
fn a_user_that_does_not_exist_is_refused_before_anything_starts() {
    for user in ["no-such-user", "nobody:no-such-group", "-5", "4294967296"] {
        let exit = run(&format!("app: {{ user: \"{user}\" }}"), &[], "echo ran");
        assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{user}: {}", exit.stderr);
        let named = user.split(':').next_back().expect("one part");
        assert!(exit.stderr.contains(named), "{user}: {}", exit.stderr);
    }
}

/// Without root there is nothing to change cluster: that is said, and the app is not started as somebody else.
/// covers: attachment 1
/// covers: attachment 6
#[test]
fn a_change_of_user_that_is_not_permitted_starts_nothing() {
    need!(is_root(), "giving root up needs root");
    let scene = Scene::new();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(scene.path("."), open).expect("it is our folder");
    let body = "app: { user: \"12345:12345\" }";
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
    // A copy, since the way to the binary need not be open to everybody.
    let copy = scene.program("copy", crate::harness::outrigger::binary());
    let config = config.display().to_string();
    let drop = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    let ours = [&copy.display().to_string(), "run", "-c", &config, "--", "echo", "ran"];
    let (code, stdout, stderr) = run_to_end(&[&drop[..], &ours].concat(), PATIENCE);
    assert_ne!(code, 0, "{stderr}");
    assert_eq!(stdout, "", "{stderr}");
    assert!(stderr.contains("app.user"), "what could not be done is named: {stderr}");
}

/// With every option that surrounds the app, all that none of them names is as without us.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn limits_umask_and_niceness_are_the_apps_own_in_every_mode() {
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
        let ours = [crate::harness::outrigger::binary(), "run".into(), "-c".into(), config, "--".into()];
        let words = ["sh".to_owned(), "-c".to_owned(), script.clone(), "sh".to_owned()].into_iter().chain(ours);
        let (code, stdout, stderr) = run_to_end(&words.collect::<Vec<String>>(), PATIENCE);
        assert_eq!(code, 0, "{stderr}");
        for what in ["umask", "files", "core", "niceness", "masked", "ignored", "directory"] {
            assert_eq!(parse(&stdout)[what], alone[what], "{what} with {body}");
        }
    }
}

/// A worker of ours writes no core, which could hold secrets; the app's own may be wanted.
/// covers: attachment 6
#[test]
fn the_worker_dumps_no_core_and_the_app_may() {
    let scene = Scene::new();
    let prepared = ["sh", "-c", "ulimit -S -c 8192; exec \"$@\"", "sh"];
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, "app: {}"));
    let config = config.display().to_string();
    let binary = crate::harness::outrigger::binary();
    let ours = [binary.as_str(), "run", "-c", &config, "--", "sleep", "300"];
    let running = crate::harness::process::Running::start(&[&prepared[..], &ours].concat());
    let below = || crate::harness::process::children(running.pid());
    let named = |name: &str| below().into_iter().find(|child| child.name.starts_with(name)).map(|child| child.pid);
    until(PATIENCE, "the app and the worker run", || named("sleep").is_some() && named("outrigger").is_some());
    let limit = |pid: Option<u32>| {
        let text = std::fs::read_to_string(format!("/proc/{}/limits", pid.expect("just seen"))).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a line");
        line.split_whitespace().next().map(str::to_owned)
    };
    // dash counts in blocks of 512 bytes.
    assert_eq!(limit(named("sleep")).as_deref(), Some("4194304"));
    until(PATIENCE, "the worker gives its right up", || limit(named("outrigger")).as_deref() == Some("0"));
    running.stop();
}

/// What is taken out of the app's environment is not to be had from ours either, by an app that is the same user as we are.
/// covers: attachment 1
/// covers: attachment 6
#[test]
fn the_app_cannot_read_our_secrets_in_proc() {
    need!(is_root(), "giving root up needs root");
    let scene = Scene::new();
    std::fs::set_permissions(scene.path("."), std::fs::Permissions::from_mode(0o777)).expect("it is our folder");
    let body = "app: {}\nlogs: { sources: { app: { stdio: {} } }, sinks: { out: { http: { url: \"http://127.0.0.1:9/\", \
                auth: { bearer: { token: \"${E2E_SECRET}\" } } }, required: false } } }\nstate: { dir: \"@dir@/own\" }\n\
                admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/own/admin.sock\" }";
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
    let copy = scene.program("copy", crate::harness::outrigger::binary());
    let script = "echo mine: $(tr '\\0' '\\n' < /proc/self/environ | grep -c E2E_SECRET); \
                  for of in $PPID $(cat /proc/$PPID/task/$PPID/children); do cat /proc/$of/environ /proc/$of/mem | tr '\\0' '\\n'; done";
    let (copy, config) = (copy.display().to_string(), config.display().to_string());
    let drop = ["env", "E2E_SECRET=topsecret", "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
    let ours = [&copy, "run", "-c", &config, "--", "sh", "-c", script];
    let (_, stdout, stderr) = run_to_end(&[&drop[..], &ours].concat(), 2 * PATIENCE);
    assert!(stdout.contains("mine: 0"), "it ran, without the secret: {stdout} {stderr}");
    assert!(stderr.contains("denied"), "it was refused a look at ours: {stderr}");
    assert!(!stdout.contains("topsecret"), "{stdout}");
}
