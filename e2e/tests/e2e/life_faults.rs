//! The end of the app, its signals and its restarts where they are not as planned: exit files that are old, empty, no number
//! or no regular file; a second signal beside a dead receiver; an app that goes to the background; signals that were ignored
//! before the start; an app that crashes in a loop. Apps and files come in; exit codes, times, warnings and health go out.
//! Bounded by the deadlines that each configuration sets.

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

/// Four times what a stop takes beside an app that has ended.
const SOON: Duration = Duration::from_secs(8);

/// Beside an app whose end this key tells.
#[track_caller]
fn start_companion(scene: &Scene, key: &str, wait: Wait) -> Outrigger {
    Outrigger::start_and(scene, &format!("app: {{ {STOP}, external: {{ {key}: \"@dir@/done\" }} }}"), &[], wait)
}

/// Puts a whole file into the place of what is there, as `mv` does.
fn replace(scene: &Scene, name: &str, content: &str) {
    let beside = scene.write(&format!("{name}.new"), content);
    std::fs::rename(beside, scene.path(name)).expect("one folder");
}

#[track_caller]
fn make_pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo makes {}", path.display());
}

/// A slow pull of our image: the app in the other container was quicker than our start. Nothing but the file tells of its end.
/// covers: faults 2
#[test]
fn an_exit_file_from_before_our_start_ends_us_or_degrades_health() {
    for (age, code) in [(10, 3), (3600, 0)] {
        let scene = Scene::new();
        let path = scene.write("done", format!("{code}\n"));
        let written = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(&path).expect("our file").set_modified(written).expect("our file");
        let outrigger = start_companion(&scene, "exit_code_file", Wait::Nothing);
        let mut ended = false;
        until(SOON, "it ends as the file says, or warns of the file and is degraded", || {
            ended = !is_alive(outrigger.pid());
            let warned = warns_of(&outrigger.stderr.text(), &path.display().to_string());
            ended || warned && is_degraded(&outrigger, "app*", "done")
        });
        if !ended {
            replace(&scene, "done", &format!("{code}\n"));
        }
        assert_eq!(outrigger.wait(PATIENCE).code, code, "written {age} s before our start");
    }
}

/// A pipe without a writer, where a file of the app is expected: opening it waits, and so does reading it.
fn check_pipe(key: &str) {
    let scene = Scene::new();
    let path = scene.text_path("done");
    make_pipe(&scene.path("done"));
    let outrigger = start_companion(&scene, key, Wait::Nothing);
    until(SOON, "it answers beside a pipe", || outrigger.status_of("/live") == 200);
    let worker = outrigger.worker();
    until(PATIENCE, "a warning names the pipe", || warns_of(&outrigger.stderr.text(), &path));
    until(PATIENCE, "the health names the pipe", || is_degraded(&outrigger, "app*", &path));
    let app = Running::start(&["sleep", "300"]);
    let content = if key == "pid_file" { app.pid().to_string() } else { "0".to_owned() };
    replace(&scene, "done", &content);
    if key == "pid_file" {
        let watched = format!("\"pid\":{}", app.pid());
        until(PATIENCE, "the process is watched", || outrigger.stderr.contains(&watched));
        assert_eq!(outrigger.find_worker(), Some(worker), "the same worker all the time");
        app.signal(Signal::KILL);
    }
    assert_eq!(outrigger.wait(PATIENCE).code, 0, "{key}");
}

/// covers: faults 2
#[test]
fn an_exit_file_that_is_a_pipe_blocks_nothing() {
    check_pipe("exit_code_file");
}

/// covers: faults 2
#[test]
fn a_pid_file_that_is_a_pipe_blocks_nothing() {
    check_pipe("pid_file");
}

/// No number at its beginning, and nothing more is read.
/// covers: faults 2
#[test]
fn an_exit_file_of_four_gigabytes_is_an_end_without_success() {
    let scene = Scene::new();
    File::create(scene.path("large")).expect("the scene takes files").set_len(4 << 30).expect("sparse files");
    let outrigger = start_companion(&scene, "exit_code_file", Wait::Ready);
    std::fs::rename(scene.path("large"), scene.path("done")).expect("one folder");
    until(SOON, "it ends", || !is_alive(outrigger.pid()));
    let exit = outrigger.wait(PATIENCE);
    assert_ne!(exit.code, 0, "{}", exit.stderr);
    assert!(warns_of(&exit.stderr, &scene.text_path("done")), "{}", exit.stderr);
}

/// A failed Job must not look like one that succeeded.
/// covers: faults 2
#[test]
fn an_exit_file_without_an_exit_code_is_no_success() {
    for text in ["abc", "300", "-1", "0x0"] {
        let scene = Scene::new();
        let outrigger = start_companion(&scene, "exit_code_file", Wait::Ready);
        replace(&scene, "done", text);
        let exit = outrigger.wait(SOON);
        assert_ne!(exit.code, 0, "{text:?}: {}", exit.stderr);
        assert!(warns_of(&exit.stderr, &scene.text_path("done")), "{text:?}: {}", exit.stderr);
    }
}

/// `echo 3 > done` creates the file and then writes it. The file is looked at every 250 ms, so that one look falls between.
/// covers: faults 2
#[test]
fn an_exit_file_that_is_still_empty_is_read_again() {
    let scene = Scene::new();
    let outrigger = start_companion(&scene, "exit_code_file", Wait::Ready);
    scene.write("done", "");
    let ends = within(Duration::from_millis(260), || outrigger.status_of("/ready") != 200);
    scene.write("done", "3\n");
    let exit = outrigger.wait(PATIENCE);
    assert_eq!((ends, exit.code), (false, 3), "an empty file is no end: {}", exit.stderr);
}

/// Sent while the receiver is waited for, with nearly all of the deadline left.
#[track_caller]
/// The process has ended before its tombstone is whole, or leaves none: what is not known is no success.
/// covers: faults 2
#[test]
fn a_process_that_ends_before_its_exit_file_is_written_has_its_code() {
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
        until(PATIENCE, "its end is seen", || outrigger.stderr.contains("app process exited"));
        if let Some(text) = late {
            replace(&scene, "done", text);
        }
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, code, "{late:?}: {}", exit.stderr);
    }
}

/// The choice of who wants the app to end with us, whatever ends us.
/// covers: faults 2
#[test]
fn an_app_ends_with_a_killed_supervisor_where_that_is_asked_for() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP}, signals: {{ parent_death: SIGTERM }} }}");
    let script = "trap 'echo told > \"$0\"; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", script, &scene.text_path("told")]);
    until(PATIENCE, "the app is up", || outrigger.stdout.contains("up"));
    let supervisor = outrigger.pid();
    crate::harness::process::send_signal(supervisor, Signal::KILL);
    until(PATIENCE, "the app was told", || scene.path("told").exists());
    outrigger.wait(PATIENCE);
}

fn ends_at_once_with(outrigger: Outrigger, second: Signal, code: i32) {
    outrigger.signal(second);
    until(SOON, "the second signal ends the wait for the receiver", || !is_alive(outrigger.pid()));
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, code, "{}", exit.stderr);
}

const DEAD: &str =
    "sinks: { main: { http: { url: \"http://@receiver@/lines\" }, batch: { max_bytes: 1MiB, max_age: 50ms } } }";

/// The lines are kept, not dropped: the next start delivers them.
/// covers: faults 2
#[test]
fn a_second_signal_after_the_apps_end_keeps_its_lines_at_once() {
    let script = "trap 'exit 6' TERM; echo n=000000; while :; do sleep 0.05; done";
    for second in [Signal::TERM, Signal::INT] {
        let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Hang));
        scene.set("receiver", receiver.address());
        let body = format!(
            "app: {{ stop: {{ drain_timeout: 1s, grace_period: 5s, timeout: 30s }} }}\n\
             logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, {DEAD} }}"
        );
        let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", script], Wait::Started);
        receiver.wait_for_refused(1, PATIENCE);
        outrigger.signal(Signal::TERM);
        until(PATIENCE, "the app's end", || outrigger.stderr.contains("app exited"));
        ends_at_once_with(outrigger, second, 6);
        receiver.answer(Answer::Accept);
        let outrigger = Outrigger::start_and(&scene, &body, &["sleep", "300"], Wait::Started);
        receiver.wait_for(1, PATIENCE);
        assert_counts_up(&receiver.numbers("n="), 1);
        outrigger.finish();
    }
}

/// Without an app of ours there is only the receiver to wait for.
/// covers: faults 2
#[test]
fn a_second_signal_to_a_companion_ends_it_at_once() {
    let (scene, receiver) = (Scene::new(), LogReceiver::answering(Answer::Status(503)));
    scene.set("receiver", receiver.address());
    scene.write("in.log", "n=000000\n");
    let body = format!(
        "app: {{ stop: {{ drain_timeout: 1s, grace_period: 5s, timeout: 30s }} }}\n\
         logs: {{ sources: {{ files: {{ file: {{ include: [\"@dir@/in.log\"] }} }} }}, {DEAD} }}"
    );
    let outrigger = Outrigger::start_and(&scene, &body, &[], Wait::Started);
    receiver.wait_for_refused(1, PATIENCE);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "the stop", || outrigger.stderr.contains("stopping"));
    ends_at_once_with(outrigger, Signal::TERM, 0);
}

/// nginx as Debian's own configuration runs it: in the background. Its process id comes with the command, once it has a number.
fn background_nginx(scene: &Scene, nginx: &str) -> [String; 3] {
    scene.port("port");
    scene.set("log", scene.text_path("nginx.log"));
    let text = std::fs::read_to_string(fixture("nginx.conf")).expect("the fixture is there");
    let config = scene.write("nginx.conf", scene.fill(&text.replace("daemon off;", "daemon on;")));
    [nginx.to_owned(), "-c".to_owned(), config.display().to_string()]
}

/// Ends what an app left behind, whatever becomes of the test.
fn leftover(pid_file: &Path) -> (u32, Orphans) {
    let mut pid = None;
    until(PATIENCE, "the app in the background has written its process id", || {
        pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        pid.is_some()
    });
    let (pid, left) = (pid.expect("just read"), Orphans::default());
    left.note(&[pid]);
    (pid, left)
}

/// The exit code stays 0, since the app said so; but a person hears that something goes on without us.
#[track_caller]
fn check_left_behind(scene: &Scene, command: &[&str], pid_file: &str, name: &str) {
    let (binary, config) =
        (binary(), scene.write("outrigger.yaml", configuration(scene, &format!("app: {{ {STOP} }}"))));
    let config = config.display().to_string();
    let words = [&[binary.as_str(), "run", "-c", &config, "--"], command].concat();
    let (code, _, stderr) = run_to_end(&words, PATIENCE);
    let (pid, _left) = leftover(&scene.path(pid_file));
    assert_eq!(code, 0, "{stderr}");
    assert!(look_up(pid).is_some_and(|process| process.name == name), "it lives on, as it would without us");
    // The supervisor may say it itself, in a plain line.
    let number = pid.to_string();
    let warns = |line: &&str| line.starts_with("outrigger:") || warns_of(line, "");
    let warned = stderr.lines().filter(warns).any(|line| line.contains(name) || line.contains(&number));
    assert!(warned, "a warning names {name} ({pid}): {stderr}");
}

/// covers: faults 2
#[test]
fn an_app_that_goes_to_the_background_is_named_at_the_end() {
    let nginx = need_peer!("nginx");
    let scene = Scene::new();
    let [program, option, config] = background_nginx(&scene, &nginx);
    check_left_behind(&scene, &[&program, &option, &config], "nginx.pid", "nginx");
}

/// A proposal that starts the app in the background would end with it at once: the option that keeps it in the foreground is given.
/// covers: faults 2
#[test]
fn detect_and_init_give_the_option_that_keeps_an_app_in_the_foreground() {
    let nginx = need_peer!("nginx");
    let redis = need_peer!("redis-server");
    let scene = Scene::new();
    let [program, option, config] = background_nginx(&scene, &nginx);
    let (port, folder) = (scene.port("redis").to_string(), scene.text_path("."));
    let nginx = [program.as_str(), &option, &config];
    let redis = [redis.as_str(), "--daemonize", "yes", "--port", &port, "--dir", &folder];
    for (app, flag) in [(&nginx[..], "daemon off"), (&redis, "--daemonize no")] {
        let (code, text, stderr) = command(&[&["detect", "--timeout", "3s", "--"], app].concat());
        assert_eq!(code, 0, "{stderr}");
        for said in [&text, &stderr] {
            assert!(said.contains(flag) && said.contains("background"), "`{flag}` in:\n{text}\n{stderr}");
        }
        let written = scene.text_path("proposal.yaml");
        let (code, _, stderr) = command(&[&["init", "--timeout", "3s", "--force", "-o", &written, "--"], app].concat());
        let text = std::fs::read_to_string(&written).unwrap_or_default();
        assert!(code == 0 && text.contains(flag), "`{flag}` in:\n{text}\n{stderr}");
        let (code, _, stderr) = command(&["validate", "-c", &written]);
        assert_eq!(code, 0, "{stderr}");
    }
}

/// covers: faults 2
#[test]
fn a_process_that_leaves_the_apps_session_is_named_at_the_end() {
    let setsid = need_peer!("setsid");
    let scene = Scene::new();
    let pid_file = scene.text_path("sleep.pid");
    let child = format!("echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 300");
    let script = format!("{setsid} sh -c '{child}' & while [ ! -e {pid_file} ]; do sleep 0.02; done; exit 0");
    check_left_behind(&scene, &["sh", "-c", &script], "sleep.pid", "sleep");
}

/// As `nohup` and `&` of a shell start a program: what they had it ignore is not for the app either, even where the app handles it.
/// covers: faults 2
#[test]
fn a_signal_that_was_ignored_at_our_start_does_not_reach_the_app() {
    let (python, script) = (need!(python(), "python3 is not installed"), fixture("signals.py"));
    for (name, number) in [("HUP", 1), ("QUIT", 3)] {
        let ignoring = format!("trap '' {name}; exec \"$@\"");
        let mut supervised = Init::ours().start_under(&["sh", "-c", &ignoring, "sh"], PLAIN, &[&python, &script]);
        supervised.await_output("ready");
        for signal in [number, 10] {
            supervised.signal(signal);
        }
        supervised.await_report(&[10]);
        // The fixture ends by no signal of its own accord: the second one ends its grace.
        supervised.signal(15);
        supervised.await_report(&[10, 15]);
        supervised.signal(15);
        assert_eq!(supervised.wait(PATIENCE), 137, "{name}");
    }
}

/// An app that sets its signals back to their defaults, as some runtimes do at their start, dies of what is sent on.
/// covers: faults 2
#[test]
fn nohup_keeps_an_app_alive_that_set_its_signals_back() {
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
    until(PATIENCE, "it lives or has died", || {
        supervised.running.stdout.contains("alive") || supervised.running.ended().is_some()
    });
    assert!(supervised.running.stdout.contains("alive"), "the app died: {:?}", supervised.running.ended());
    supervised.signal(15);
    assert_eq!(supervised.wait(PATIENCE), 143);
}

/// The status says how the app ends and how often it was started again, by `/status` and by the command.
/// covers: faults 2
/// covers: faults 7
#[test]
fn a_crash_loop_is_degraded_with_the_exit_and_the_count_of_restarts() {
    let cases = [
        ("exit 3", ", max_restarts: 6", ["exited with 3", "restart 6 of 6"]),
        ("kill -9 $$", "", ["killed by signal 9", "restart 2"]),
    ];
    for (script, bound, parts) in cases {
        let scene = Scene::new();
        let body =
            format!("app: {{ {STOP}, restart: {{ policy: on_failure, backoff: 400ms, max_backoff: 400ms{bound} }} }}");
        let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", script], Wait::Started);
        let text_of_app = || {
            let status: serde_json::Value = serde_json::from_str(&outrigger.get_quietly("/status")).unwrap_or_default();
            let row =
                status["subsystems"].as_array().into_iter().flatten().find(|row| row.to_string().contains("\"app\""));
            row.map_or_else(String::new, ToString::to_string)
        };
        let mut last = String::new();
        let tells = within(SOON, || {
            let text = text_of_app();
            last = if text.is_empty() { std::mem::take(&mut last) } else { text };
            last.contains("degraded") && parts.iter().all(|part| last.contains(part))
        });
        assert!(tells, "degraded with {parts:?}, and not {last}");
        if bound.is_empty() {
            let (code, table, stderr) = command(&["status", "--socket", &scene.text_path("run/admin.sock")]);
            assert!(code == 0 && table.contains("degraded") && table.contains(parts[0]), "{table}{stderr}");
            outrigger.finish();
        } else {
            assert_eq!(outrigger.wait(PATIENCE).code, 3);
        }
    }
}
