//! Unexpected exits, signals and restarts of the app: exit code files that are stale, empty, not a number or not a regular
//! file; a second signal while a receiver is down; an app that goes to the background; signals that were ignored before the
//! start; an app in a crash loop. Apps and files come in; exit codes, times, warnings and health go out. Bounded by the
//! deadlines that each configuration sets.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::init::Orphans;
use crate::harness::outrigger::{binary, configuration, outrigger as command};
use crate::harness::process::{Running, Signal, is_alive, look_up, run_to_end};
use crate::harness::status::{is_degraded, warns_of};
use crate::harness::{
    Answer, Init, LogReceiver, Outrigger, PATIENCE, PLAIN, Scene, Wait, assert_counts_up, fixture, python, until,
    within,
};

const STOP: &str = "stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s }";

/// Four times the duration of a stop after the app has exited.
const SOON: Duration = Duration::from_secs(8);

/// A companion of an app whose exit this key reports.
#[track_caller]
fn start_companion(scene: &Scene, key: &str, wait: Wait) -> Outrigger {
    Outrigger::start_and(scene, &format!("app: {{ {STOP}, external: {{ {key}: \"@dir@/done\" }} }}"), &[], wait)
}

/// Replaces a file atomically, as `mv` does.
fn replace(scene: &Scene, name: &str, content: &str) {
    let new = scene.write(&format!("{name}.new"), content);
    std::fs::rename(new, scene.path(name)).expect("the same directory");
}

#[track_caller]
fn make_pipe(path: &Path) {
    let created = Command::new("mkfifo").arg(path).status();
    assert!(created.is_ok_and(|status| status.success()), "mkfifo creates {}", path.display());
}

/// A slow pull of the Outrigger image: the app in the other container exited before the start. Only the file reports its exit.
#[test]
fn old_exit_file_stops_or_degrades_outrigger() {
    for (age, code) in [(10, 3), (3600, 0)] {
        let scene = Scene::new();
        let path = scene.write("done", format!("{code}\n"));
        let written = SystemTime::now() - Duration::from_secs(age);
        File::options()
            .write(true)
            .open(&path)
            .expect("the test's file")
            .set_modified(written)
            .expect("the test's file");
        let outrigger = start_companion(&scene, "exit_code_file", Wait::Nothing);
        let mut ended = false;
        until(SOON, "Outrigger exits as the file specifies, or warns of the file and is degraded", || {
            ended = !is_alive(outrigger.pid());
            let warned = warns_of(&outrigger.stderr.text(), &path.display().to_string());
            ended || warned && is_degraded(&outrigger, "app*", "done")
        });
        if !ended {
            replace(&scene, "done", &format!("{code}\n"));
        }
        assert_eq!(outrigger.wait(PATIENCE).code, code, "written {age} s before the start");
    }
}

/// A pipe without a writer instead of a file of the app: opening it blocks, and so does reading it.
fn check_pipe(key: &str) {
    let scene = Scene::new();
    let path = scene.text_path("done");
    make_pipe(&scene.path("done"));
    let outrigger = start_companion(&scene, key, Wait::Nothing);
    until(SOON, "the probe responds despite the pipe", || outrigger.status_of("/live") == 200);
    let worker = outrigger.worker();
    until(PATIENCE, "a warning contains the path of the pipe", || warns_of(&outrigger.stderr.text(), &path));
    until(PATIENCE, "the health contains the path of the pipe", || is_degraded(&outrigger, "app*", &path));
    let app = Running::start(&["sleep", "300"]);
    let content = if key == "pid_file" { app.pid().to_string() } else { "0".to_owned() };
    replace(&scene, "done", &content);
    if key == "pid_file" {
        let watched = format!("\"pid\":{}", app.pid());
        until(PATIENCE, "the process is watched", || outrigger.stderr.contains(&watched));
        assert_eq!(outrigger.find_worker(), Some(worker), "the worker was not replaced");
        app.signal(Signal::KILL);
    }
    assert_eq!(outrigger.wait(PATIENCE).code, 0, "{key}");
}

#[test]
fn exit_file_that_is_a_pipe_blocks_nothing() {
    check_pipe("exit_code_file");
}

#[test]
fn pid_file_that_is_a_pipe_blocks_nothing() {
    check_pipe("pid_file");
}

/// It does not begin with a number, and nothing more is read.
#[test]
fn huge_exit_file_is_an_unsuccessful_exit() {
    let scene = Scene::new();
    File::create(scene.path("large")).expect("the scene is writable").set_len(4 << 30).expect("sparse files");
    let outrigger = start_companion(&scene, "exit_code_file", Wait::Ready);
    std::fs::rename(scene.path("large"), scene.path("done")).expect("the same directory");
    until(SOON, "Outrigger exits", || !is_alive(outrigger.pid()));
    let exit = outrigger.wait(PATIENCE);
    assert_ne!(exit.code, 0, "{}", exit.stderr);
    assert!(warns_of(&exit.stderr, &scene.text_path("done")), "{}", exit.stderr);
}

/// A failed Job must not look like one that succeeded.
#[test]
fn exit_file_without_a_code_is_not_a_success() {
    for text in ["abc", "300", "-1", "0x0"] {
        let scene = Scene::new();
        let outrigger = start_companion(&scene, "exit_code_file", Wait::Ready);
        replace(&scene, "done", text);
        let exit = outrigger.wait(SOON);
        assert_ne!(exit.code, 0, "{text:?}: {}", exit.stderr);
        assert!(warns_of(&exit.stderr, &scene.text_path("done")), "{text:?}: {}", exit.stderr);
    }
}

/// `echo 3 > done` creates the file and then writes it. The file is polled every 250 ms, so that one poll happens in between.
#[test]
fn empty_exit_file_is_read_again() {
    let scene = Scene::new();
    let outrigger = start_companion(&scene, "exit_code_file", Wait::Ready);
    scene.write("done", "");
    let ends = within(Duration::from_millis(260), || outrigger.status_of("/ready") != 200);
    scene.write("done", "3\n");
    let exit = outrigger.wait(PATIENCE);
    assert_eq!((ends, exit.code), (false, 3), "an empty file is not an exit: {}", exit.stderr);
}

/// The process exits before its exit code file is complete, or writes none: an unknown code is not a success.
#[test]
fn exit_file_written_after_the_exit_has_its_code() {
    for (late, code) in [(Some("3\n"), 3), (Some("0\n"), 0), (None, 1)] {
        let scene = Scene::new();
        let app = Running::start(&["sleep", "300"]);
        scene.write("app.pid", app.pid().to_string());
        let body =
            format!("app: {{ {STOP}, external: {{ exit_code_file: \"@dir@/done\", pid_file: \"@dir@/app.pid\" }} }}");
        let outrigger = Outrigger::start_and(&scene, &body, &[], Wait::Ready);
        let watched = format!("\"pid\":{}", app.pid());
        until(PATIENCE, "the process is watched", || outrigger.stderr.contains(&watched));
        app.signal(Signal::KILL);
        until(PATIENCE, "its exit is detected", || outrigger.stderr.contains("the app's process exited"));
        if let Some(text) = late {
            replace(&scene, "done", text);
        }
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, code, "{late:?}: {}", exit.stderr);
    }
}

/// For users who want the app to exit with Outrigger, whatever ends Outrigger.
/// Guarantee: supervisor-kill-spares-the-app
#[test]
fn parent_death_ends_app_of_a_killed_supervisor() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP}, signals: {{ parent_death: SIGTERM }} }}");
    let script = "trap 'echo signalled > \"$0\"; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", script, &scene.text_path("signalled")]);
    until(PATIENCE, "the app is up", || outrigger.stdout.contains("up"));
    let supervisor = outrigger.pid();
    crate::harness::process::send_signal(supervisor, Signal::KILL);
    until(PATIENCE, "the app was signalled", || scene.path("signalled").exists());
    outrigger.wait(PATIENCE);
}

/// The second signal is sent while Outrigger waits for the receiver, with nearly all of the deadline left.
#[track_caller]
fn ends_immediately_with(outrigger: Outrigger, second: Signal, code: i32) {
    outrigger.signal(second);
    until(SOON, "the second signal ends the wait for the receiver", || !is_alive(outrigger.pid()));
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, code, "{}", exit.stderr);
}

const UNAVAILABLE: &str =
    "sinks: { main: { http: { url: \"http://@receiver@/lines\" }, batch: { max_bytes: 1MiB, max_age: 50ms } } }";

/// The lines are retained, not dropped: the next start delivers them.
#[test]
fn second_signal_after_app_exit_retains_lines() {
    let script = "trap 'exit 6' TERM; echo n=000000; while :; do sleep 0.05; done";
    for second in [Signal::TERM, Signal::INT] {
        let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Hang));
        scene.set("receiver", receiver.address());
        let body = format!(
            "app: {{ stop: {{ drain_timeout: 1s, grace_period: 5s, timeout: 30s }} }}\n\
             logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, {UNAVAILABLE} }}"
        );
        let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", script], Wait::Started);
        receiver.wait_for_refused(1, PATIENCE);
        outrigger.signal(Signal::TERM);
        until(PATIENCE, "the app's exit", || outrigger.stderr.contains("app exited"));
        ends_immediately_with(outrigger, second, 6);
        receiver.answer(Answer::Accept);
        let outrigger = Outrigger::start_and(&scene, &body, &["sleep", "300"], Wait::Started);
        receiver.wait_for(1, PATIENCE);
        assert_counts_up(&receiver.numbers("n="), 1);
        outrigger.finish();
    }
}

/// Without a wrapped app there is only the receiver to wait for.
#[test]
fn second_signal_ends_a_companion_immediately() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(503)));
    scene.set("receiver", receiver.address());
    scene.write("in.log", "n=000000\n");
    let body = format!(
        "app: {{ stop: {{ drain_timeout: 1s, grace_period: 5s, timeout: 30s }} }}\n\
         logs: {{ sources: {{ files: {{ file: {{ include: [\"@dir@/in.log\"] }} }} }}, {UNAVAILABLE} }}"
    );
    let outrigger = Outrigger::start_and(&scene, &body, &[], Wait::Started);
    receiver.wait_for_refused(1, PATIENCE);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "the stop begins", || outrigger.stderr.contains("stopping"));
    ends_immediately_with(outrigger, Signal::TERM, 0);
}

/// nginx as Debian's own configuration runs it: in the background. Returns the command; nginx writes nginx.pid once it runs in the background.
fn background_nginx(scene: &Scene, nginx: &str) -> [String; 3] {
    scene.port("port");
    scene.set("log", scene.text_path("nginx.log"));
    let text = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture exists");
    let config = scene.write("nginx.conf", scene.fill(&text.replace("daemon off;", "daemon on;")));
    [nginx.to_owned(), "-c".to_owned(), config.display().to_string()]
}

/// The PID of an app's orphan, which is killed however the test ends.
fn orphan_from(pid_file: &Path) -> (u32, Orphans) {
    let mut pid = None;
    until(PATIENCE, "the app in the background has written its process id", || {
        pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        pid.is_some()
    });
    let (pid, left) = (pid.expect("just read"), Orphans::default());
    left.note(&[pid]);
    (pid, left)
}

/// The exit code stays 0, as the app returned it; but a warning reports that a process keeps running without Outrigger.
#[track_caller]
fn check_left_behind(scene: &Scene, command: &[&str], pid_file: &str, name: &str) {
    let (binary, config) =
        (binary(), scene.write("outrigger.yaml", configuration(scene, &format!("app: {{ {STOP} }}"))));
    let config = config.display().to_string();
    let words = [&[binary.as_str(), "run", "-c", &config, "--"], command].concat();
    let (code, _, stderr) = run_to_end(&words, PATIENCE);
    let (pid, _left) = orphan_from(&scene.path(pid_file));
    assert_eq!(code, 0, "{stderr}");
    assert!(look_up(pid).is_some_and(|process| process.name == name), "it keeps running, as without Outrigger");
    // The supervisor may report it itself, in a plain line.
    let number = pid.to_string();
    let warns = |line: &&str| line.starts_with("outrigger:") || warns_of(line, "");
    let warned = stderr.lines().filter(warns).any(|line| line.contains(name) || line.contains(&number));
    assert!(warned, "a warning contains {name} or {pid}: {stderr}");
}

#[test]
fn app_in_the_background_is_reported_at_the_exit() {
    let nginx = need_peer!("nginx");
    let scene = Scene::new();
    let [program, option, config] = background_nginx(&scene, &nginx);
    check_left_behind(&scene, &[&program, &option, &config], "nginx.pid", "nginx");
}

/// A generated configuration that starts the app in the background would exit immediately: it gets the app's foreground option.
#[test]
fn detect_and_init_suggest_the_foreground_option() {
    let nginx = need_peer!("nginx");
    let redis = need_peer!("redis-server");
    let scene = Scene::new();
    let [program, option, config] = background_nginx(&scene, &nginx);
    let (port, directory) = (scene.port("redis").to_string(), scene.text_path("."));
    let nginx = [program.as_str(), &option, &config];
    let redis = [redis.as_str(), "--daemonize", "yes", "--port", &port, "--dir", &directory];
    for (app, flag) in [(&nginx[..], "daemon off"), (&redis, "--daemonize no")] {
        let (code, text, stderr) = command(&[&["detect", "--timeout", "3s", "--"], app].concat());
        assert_eq!(code, 0, "{stderr}");
        for output in [&text, &stderr] {
            assert!(output.contains(flag) && output.contains("background"), "`{flag}` in:\n{text}\n{stderr}");
        }
        let written = scene.text_path("proposal.yaml");
        let (code, _, stderr) = command(&[&["init", "--timeout", "3s", "--force", "-o", &written, "--"], app].concat());
        let text = std::fs::read_to_string(&written).unwrap_or_default();
        assert!(code == 0 && text.contains(flag), "`{flag}` in:\n{text}\n{stderr}");
        let (code, _, stderr) = command(&["validate", "-c", &written]);
        assert_eq!(code, 0, "{stderr}");
    }
}

#[test]
fn process_outside_the_apps_session_is_reported() {
    let setsid = need_peer!("setsid");
    let scene = Scene::new();
    let pid_file = scene.text_path("sleep.pid");
    let child = format!("echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 300");
    let script = format!("{setsid} sh -c '{child}' & while [ ! -e {pid_file} ]; do sleep 0.02; done; exit 0");
    check_left_behind(&scene, &["sh", "-c", &script], "sleep.pid", "sleep");
}

/// As `nohup` and a shell's `&` start a program: a signal ignored by them does not reach the app, even if the app handles it.
#[test]
fn signal_ignored_at_start_is_not_forwarded() {
    let (python, script) = (need!(python(), "python3 is not installed"), fixture("signals.py"));
    for (name, number) in [("HUP", 1), ("QUIT", 3)] {
        let ignoring = format!("trap '' {name}; exec \"$@\"");
        let mut supervised = Init::ours().start_under(&["sh", "-c", &ignoring, "sh"], PLAIN, &[&python, &script]);
        supervised.await_output("ready");
        for signal in [number, 10] {
            supervised.signal(signal);
        }
        supervised.await_report(&[10]);
        // The fixture exits on no signal: the second SIGTERM ends its grace period.
        supervised.signal(15);
        supervised.await_report(&[10, 15]);
        supervised.signal(15);
        assert_eq!(supervised.wait(PATIENCE), 137, "{name}");
    }
}

/// An app that resets its signals to their defaults, as some runtimes do at startup, would be killed by a forwarded signal.
#[test]
fn nohup_protects_an_app_that_resets_its_signals() {
    let python = need!(python(), "python3 is not installed");
    let nohup = need_peer!("nohup");
    let app = "import signal, time\n\
               signal.signal(signal.SIGHUP, signal.SIG_DFL)\n\
               signal.signal(signal.SIGUSR1, lambda *_: print('alive', flush=True))\n\
               print('ready', flush=True)\n\
               while True: time.sleep(0.05)\n";
    let mut supervised = Init::ours().start_under(&[&nohup], PLAIN, &[&python, "-c", app]);
    supervised.await_output("ready");
    supervised.signal(1);
    supervised.signal(10);
    until(PATIENCE, "the app is alive or has exited", || {
        supervised.running.stdout.contains("alive") || supervised.running.ended().is_some()
    });
    assert!(supervised.running.stdout.contains("alive"), "the app exited: {:?}", supervised.running.ended());
    supervised.signal(15);
    assert_eq!(supervised.wait(PATIENCE), 143);
}

/// The status reports how the app exits and how often it was restarted, in `/status` and in the command.
#[test]
fn crash_loop_is_degraded_with_exit_and_restarts() {
    let cases = [
        ("exit 3", ", max_restarts: 6", ["exited with 3", "restart 6 of 6"]),
        ("kill -9 $$", "", ["killed by signal 9", "restart 2"]),
    ];
    for (script, limit, parts) in cases {
        let scene = Scene::new();
        let body =
            format!("app: {{ {STOP}, restart: {{ policy: on_failure, backoff: 400ms, max_backoff: 400ms{limit} }} }}");
        let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", script], Wait::Started);
        let text_of_app = || {
            let status: serde_json::Value = serde_json::from_str(&outrigger.get_quietly("/status")).unwrap_or_default();
            let row =
                status["subsystems"].as_array().into_iter().flatten().find(|row| row.to_string().contains("\"app\""));
            row.map_or_else(String::new, ToString::to_string)
        };
        let mut last = String::new();
        let reported = within(SOON, || {
            let text = text_of_app();
            last = if text.is_empty() { std::mem::take(&mut last) } else { text };
            last.contains("degraded") && parts.iter().all(|part| last.contains(part))
        });
        assert!(reported, "degraded with {parts:?}, and not {last}");
        if limit.is_empty() {
            let (code, table, stderr) = command(&["status", "--socket", &scene.text_path("run/admin.sock")]);
            assert!(code == 0 && table.contains("degraded") && table.contains(parts[0]), "{table}{stderr}");
            outrigger.finish();
        } else {
            assert_eq!(outrigger.wait(PATIENCE).code, 3);
        }
    }
}
