//! The scenarios of dumb-init's own tests, run against Outrigger, and against dumb-init itself if it is installed, to
//! verify the scenario. Signals and commands come in; what the app got, exit codes and remaining processes go out. Its
//! scenarios at a terminal are in `init_terminal.rs`.

use std::time::Duration;

use crate::harness::init::Options;
use crate::harness::outrigger::{configuration, outrigger};
use crate::harness::process::{Signal, children, descendants, is_alive, look_up, run_to_end, send_signal};
use crate::harness::{Init, Outrigger, PATIENCE, PLAIN, SECOND, Scene, Supervised, Wait, fixture, python, until};

const ALONE: Options<'static> = Options { single: true, ..PLAIN };

/// A shell with four programs in two pipelines, one of them in the background.
const PIPELINES: &str = "sleep 300 | cat & sleep 300 | cat; true";

/// Starts it and returns the PIDs of the shell and its four programs.
#[track_caller]
fn start_pipelines(init: &Init, options: Options<'_>) -> (Supervised, Vec<u32>) {
    let supervised = init.start(options, &["sh", "-c", PIPELINES]);
    let shell = supervised.app();
    let named = |name: &str| {
        let below = descendants(shell).into_iter().filter_map(look_up);
        below.filter(|process| process.name == name).map(|process| process.pid).collect::<Vec<u32>>()
    };
    until(PATIENCE, "both pipelines run", || named("sleep").len() == 2 && named("cat").len() == 2);
    let programs = [vec![shell], named("sleep"), named("cat")].concat();
    (supervised, programs)
}

fn living(pids: &[u32]) -> usize {
    pids.iter().filter(|pid| is_alive(**pid)).count()
}

/// dumb-init: setsid_signals_entire_group.
/// Guarantee: signals-forwarded
#[test]
fn signals_reach_the_apps_process_group() {
    let scenario = |init: Init| {
        let (mut supervised, programs) = start_pipelines(&init, PLAIN);
        supervised.signal(15);
        supervised.wait(PATIENCE);
        until(PATIENCE, &format!("none of the five is left by {}", init.name()), || living(&programs) == 0);
    };
    scenario(Init::ours());
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
}

/// dumb-init: no_setsid_doesnt_signal_entire_group.
#[test]
fn without_a_group_only_the_app_gets_the_signal() {
    let scenario = |init: Init| {
        let (mut supervised, programs) = start_pipelines(&init, ALONE);
        supervised.signal(15);
        assert_eq!(supervised.wait(PATIENCE), 143, "{}", init.name());
        assert_eq!(living(&programs), 4, "{} signalled only the shell", init.name());
    };
    scenario(Init::ours());
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
}

/// The app exits while a program that it started, and that reports its signals, keeps running.
#[track_caller]
fn outlived_by_a_child(init: &Init, options: Options<'_>, python: &str) -> (Supervised, u32) {
    let scene = Scene::new();
    let (go, script) = (scene.text_path("go"), fixture("signals.py"));
    // It exits once the file exists, which is when its child handles signals.
    let shell = format!("{python} {script} & while [ ! -e {go} ]; do sleep 0.02; done; exit 6");
    let mut supervised = init.start(options, &["sh", "-c", &shell]);
    supervised.await_output("ready pid=");
    let child = crate::harness::number_after(&supervised.running.stdout.text(), "ready pid=").expect("a number");
    std::fs::write(go, "").expect("the scene is writable");
    let child = u32::try_from(child).expect("a process id");
    assert_eq!(supervised.wait(PATIENCE), 6, "{}: the app's own code", init.name());
    (supervised, child)
}

/// dumb-init: all_processes_receive_term_on_exit_if_setsid.
#[test]
fn orphans_get_sigterm_when_the_app_exits() {
    let python = need!(python(), "python3 is not installed");
    let scenario = |init: Init| {
        let (supervised, child) = outlived_by_a_child(&init, PLAIN, &python);
        supervised.await_report(&[15]);
        assert!(is_alive(child), "{} does not kill it", init.name());
    };
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// dumb-init: processes_dont_receive_term_on_exit_if_no_setsid.
#[test]
fn without_a_group_orphans_get_no_sigterm() {
    let python = need!(python(), "python3 is not installed");
    let scenario = |init: Init| {
        let (supervised, child) = outlived_by_a_child(&init, ALONE, &python);
        // That exactly these signals arrive shows that no SIGTERM came before them.
        for (sent, signal) in [Signal::HUP, Signal::INT, Signal::QUIT].into_iter().enumerate() {
            send_signal(child, signal);
            supervised.await_report(&[1, 2, 3][..=sent]);
        }
    };
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// dumb-init: fails_nonzero_with_bad_exec. It exits with 2; a shell, tini and Outrigger exit with 127.
#[test]
fn missing_command_fails_and_is_reported() {
    let scenario = |init: Init, options: Options<'_>, expected: i32| {
        for command in [&["/does-not-exist"][..], &["/does-not-exist", "-c", "argument"]] {
            let mut supervised = init.start(options, command);
            let code = supervised.wait(PATIENCE);
            assert_eq!(code, expected, "{} {command:?}", init.name());
            let stderr = supervised.running.stderr.text();
            assert!(stderr.contains("/does-not-exist"), "{}: {stderr}", init.name());
        }
    };
    scenario(Init::ours(), PLAIN, 127);
    scenario(Init::ours(), ALONE, 127);
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), PLAIN, 2);
}

/// The message of a failed exec is one plain line.
#[test]
fn missing_command_message_is_a_plain_line() {
    let mut supervised = Init::ours().start(PLAIN, &["./nothing"]);
    assert_eq!(supervised.wait(PATIENCE), 127);
    let lines = supervised.running.stderr.lines();
    assert!(lines.iter().any(|line| line == "outrigger: ./nothing: command not found"), "{lines:?}");
}

/// dumb-init: no_arguments_prints_usage, exits_invalid_with_invalid_args.
#[test]
fn wrong_arguments_print_the_usage_and_exit_1() {
    for arguments in [&["--yolo"][..], &["run", "--yolo", "true"], &["run", "true"], &["sprint"], &[]] {
        let (code, stdout, stderr) = outrigger(arguments);
        assert_eq!((code, stdout.as_str()), (1, ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains("Usage: outrigger"), "{arguments:?}: {stderr}");
    }
}

/// dumb-init: help_message, version_message.
#[test]
fn help_and_version_go_to_stdout_and_exit_0() {
    for arguments in [&["--help"][..], &["-h"], &["help"], &["run", "--help"], &["run", "-h"]] {
        let (code, stdout, stderr) = outrigger(arguments);
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(stdout.contains("Usage: outrigger"), "{arguments:?}: {stdout}");
    }
    for flag in ["--version", "-V"] {
        let (code, stdout, stderr) = outrigger(&[flag]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{flag}");
        let version = stdout.trim_end().strip_prefix("outrigger ").unwrap_or_else(|| panic!("{flag}: {stdout}"));
        assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{flag}: {stdout}");
    }
}

/// dumb-init: verbose, verbose_and_single_child. The Outrigger log reports what its debug output reports.
#[test]
fn log_has_the_apps_pid_and_exit_code() {
    let check = |options: Options<'_>| {
        let mut supervised = Init::ours().start(options, &["sh", "-c", "echo pid=$$; exit 9"]);
        assert_eq!(supervised.wait(PATIENCE), 9);
        let (stdout, log) = (supervised.running.stdout.text(), supervised.running.stderr.lines());
        let pid = crate::harness::number_after(&stdout, "pid=").expect("a number");
        let has = |parts: &[&str]| log.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(has(&["app started", &format!("\"pid\":{pid}")]), "{log:?}");
        assert!(has(&["app exited", "\"code\":9"]), "{log:?}");
    };
    check(PLAIN);
    check(ALONE);
}

/// dumb-init: rewrite_errors.
#[test]
fn invalid_signal_rewrites_are_rejected_at_start() {
    let rewrites = [
        "herp",
        "{ SIGTERM: herp }",
        "{ HERP: SIGTERM }",
        "{ SIGTERM: }",
        "{ SIGTERM: 12 }",
        "{ SIGTERM: SIGRTMAX99 }",
        "{ SIGTERM: SIGINT, SIGTERM: SIGQUIT }",
        "{ SIGKILL: SIGTERM }",
        "{ SIGSTOP: SIGTERM }",
    ];
    for rewrite in rewrites {
        let scene = Scene::new();
        let body = format!("app: {{ signals: {{ rewrite: {rewrite} }} }}");
        let outrigger = Outrigger::start_and(&scene, &body, &["echo", "the app ran"], Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{rewrite}: {}", exit.stderr);
        assert!(exit.stderr.contains("outrigger.yaml:1:"), "{rewrite}: the message has the location: {}", exit.stderr);
    }
}

/// dumb-init: working_directories.
#[test]
fn app_keeps_the_directory_and_init_leaves_it() {
    let scenario = |init: Init| {
        let elsewhere = Scene::new();
        let directory = elsewhere.path(".").canonicalize().expect("the directory exists");
        let command = ["sh", "-c", "readlink /proc/$$/cwd; readlink /proc/$PPID/cwd"];
        let mut supervised = init.start_with(&[], PLAIN, &command, |command| {
            command.current_dir(&directory);
        });
        assert_eq!(supervised.wait(PATIENCE), 0);
        assert_eq!(supervised.running.stdout.text(), format!("{}\n/\n", directory.display()), "{}", init.name());
    };
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// dumb-init: exit_status_regular_exit.
#[test]
fn the_exit_code_is_the_apps() {
    let scenario = |init: Init, options: Options<'_>| {
        for code in [0, 1, 2, 32, 64, 127, 254, 255] {
            let mut supervised = init.start(options, &["sh", "-c", &format!("exit {code}")]);
            assert_eq!(supervised.wait(PATIENCE), code, "{}", init.name());
        }
    };
    scenario(Init::ours(), PLAIN);
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), PLAIN);
    scenario(Init::ours(), ALONE);
}

/// dumb-init: exit_status_terminated_by_signal.
/// Guarantee: exit-code-of-the-app
#[test]
fn app_killed_by_a_signal_gives_128_plus_number() {
    let scenario = |init: Init, options: Options<'_>| {
        for number in [1, 3, 6, 9, 15, 31] {
            let mut supervised = init.start(options, &["sh", "-c", &format!("kill -{number} $$")]);
            assert_eq!(supervised.wait(PATIENCE), 128 + number, "{}", init.name());
        }
    };
    scenario(Init::ours(), PLAIN);
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), PLAIN);
    scenario(Init::ours(), ALONE);
}

/// All named signals except KILL, STOP and CHLD, which cannot be forwarded, and those that stop, which have their own test.
fn ordinary_signals() -> impl Iterator<Item = i32> {
    (1..=31).filter(|number| ![9, 17, 19, 20, 21, 22].contains(number))
}

/// dumb-init: proxies_signals. SIGTERM and SIGINT begin the stop sequence, which runs once.
/// Guarantee: signals-forwarded
#[test]
fn every_signal_is_forwarded() {
    let scenario = |init: Init, options: Options<'_>| {
        let own = |number: &i32| init.is_ours() && [2, 15].contains(number);
        let numbers: Vec<i32> = ordinary_signals().filter(|number| !own(number)).collect();
        let supervised = init.start_with_reports(options).expect("python3 is installed");
        for sent in 0..numbers.len() {
            supervised.signal(numbers[sent]);
            supervised.await_report(&numbers[..=sent]);
        }
        supervised.signal(15);
        supervised.await_report(&[numbers, vec![15]].concat());
    };
    need!(python(), "python3 is not installed");
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), PLAIN);
    scenario(Init::ours(), PLAIN);
    scenario(Init::ours(), ALONE);
}

/// The app gets the rewritten signal; a signal without a rewrite stays as it is.
/// dumb-init: proxies_signals_with_rewrite.
#[test]
fn rewritten_signals_reach_the_app() {
    // SIGTERM or SIGINT comes last, since it begins the stop sequence.
    type Rewritten<'a> = (&'a [(i32, i32)], &'a [i32], &'a [i32]);
    let cases: [Rewritten<'_>; 6] = [
        (&[], &[3, 18, 15], &[3, 18, 15]),
        (&[(15, 2)], &[3, 18, 15], &[3, 18, 2]),
        (&[(15, 3)], &[15], &[3]),
        (&[(15, 2), (2, 15), (3, 3)], &[3, 18, 2], &[3, 18, 15]),
        (&[(1, 30), (30, 1)], &[1, 30], &[30, 1]),
        (&[(10, 12), (12, 10)], &[10, 12], &[12, 10]),
    ];
    let scenario = |init: Init, single: bool| {
        for (rewrite, sent, expected) in cases {
            let supervised =
                init.start_with_reports(Options { rewrite, single, ..PLAIN }).expect("python3 is installed");
            for index in 0..sent.len() {
                supervised.signal(sent[index]);
                supervised.await_report(&expected[..=index]);
            }
        }
    };
    need!(python(), "python3 is not installed");
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), false);
    scenario(Init::ours(), false);
    scenario(Init::ours(), true);
}

/// The highest number is that of a fault signal; sent from outside it is a signal like others.
/// dumb-init: proxies_signals_with_rewrite.
#[test]
fn lowest_and_highest_signals_are_rewritten() {
    let scenario = |init: Init| {
        let options = Options { rewrite: &[(1, 31), (31, 1)], ..PLAIN };
        let supervised = init.start_with_reports(options).expect("python3 is installed");
        supervised.signal(1);
        supervised.await_report(&[31]);
        supervised.signal(31);
        supervised.await_report(&[31, 1]);
    };
    need!(python(), "python3 is not installed");
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// SIGINT begins the stop sequence as SIGTERM does, and reaches the app as SIGINT: Python's KeyboardInterrupt, 130.
#[test]
fn sigint_reaches_the_app_as_sigint() {
    let scenario = |init: Init, options: Options<'_>| {
        let mut supervised = init.start(options, &["sh", "-c", "echo up; exec sleep 300"]);
        supervised.await_output("up");
        supervised.signal(2);
        assert_eq!(supervised.wait(PATIENCE), 130, "{}", init.name());
    };
    scenario(Init::ours(), PLAIN);
    scenario(Init::ours(), ALONE);
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), PLAIN);
    scenario(need!(Init::tini(), "tini is not installed"), PLAIN);
}

/// dumb-init: ignored_signals_are_not_proxied.
#[test]
fn signal_rewritten_to_none_is_dropped() {
    let scenario = |init: Init, single: bool| {
        let options = Options { rewrite: &[(15, 3), (2, 0), (28, 0)], single, ..PLAIN };
        let supervised = init.start_with_reports(options).expect("python3 is installed");
        supervised.signal(2);
        supervised.signal(28);
        supervised.signal(1);
        supervised.await_report(&[1]);
        supervised.signal(15);
        supervised.await_report(&[1, 3]);
    };
    need!(python(), "python3 is not installed");
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), false);
    scenario(Init::ours(), false);
    scenario(Init::ours(), true);
}

fn is_stopped(pid: u32) -> bool {
    look_up(pid).is_some_and(|process| process.state == 'T')
}

/// SIGTSTP, SIGTTIN and SIGTTOU stop app and init; SIGCONT resumes both, and the app receives it.
/// dumb-init: shell_background_support_setsid.
#[test]
fn stop_signals_stop_app_and_init_until_sigcont() {
    let scenario = |init: Init, options: Options<'_>| {
        let supervised = init.start_with_reports(options).expect("python3 is installed");
        let app = supervised.app();
        for (round, number) in [20, 21, 22].into_iter().enumerate() {
            supervised.signal(number);
            let what = format!("{} and its app stop at signal {number}", init.name());
            until(PATIENCE, &what, || is_stopped(app) && is_stopped(supervised.pid()));
            supervised.signal(18);
            supervised.await_report(&[18, 18, 18][..=round]);
            until(PATIENCE, "both run again", || !is_stopped(app) && !is_stopped(supervised.pid()));
        }
    };
    need!(python(), "python3 is not installed");
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"), PLAIN);
    scenario(Init::ours(), PLAIN);
    // dumb-init: shell_background_support_without_setsid. It forwards the signal itself; Outrigger sends SIGSTOP
    // instead, so that the app stops however it handles that signal.
    scenario(Init::ours(), ALONE);
}

/// The worker keeps running while the app is stopped: probes succeed, so that no platform restarts Outrigger.
#[test]
fn a_stopped_app_leaves_the_worker_serving() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &["sleep", "300"]);
    let app = outrigger.app();
    outrigger.signal(Signal::TSTP);
    until(PATIENCE, "both are stopped", || is_stopped(app) && is_stopped(outrigger.pid()));
    assert_eq!(outrigger.status_of("/live"), 200);
    outrigger.signal(Signal::CONT);
    until(PATIENCE, "the app runs", || !is_stopped(app));
    assert_eq!(outrigger.finish().code, 143);
}

/// dumb-init: default_rewrites_can_be_overriden_with_setsid_enabled: the app gets the rewritten signal, and the init still stops.
#[test]
fn rewritten_stop_signal_still_stops_the_init() {
    let scenario = |init: Init| {
        let rewrite = [(21, 10), (22, 12), (20, 1)];
        let supervised = init.start_with_reports(Options { rewrite: &rewrite, ..PLAIN }).expect("python3 is installed");
        let mut expected = Vec::new();
        for (sent, becomes) in rewrite {
            supervised.signal(sent);
            expected.push(becomes);
            supervised.await_report(&expected);
            until(PATIENCE, &format!("{} stops itself", init.name()), || is_stopped(supervised.pid()));
            supervised.signal(18);
            expected.push(18);
            supervised.await_report(&expected);
            until(PATIENCE, "it runs again", || !is_stopped(supervised.pid()));
        }
    };
    need!(python(), "python3 is not installed");
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// dumb-init: test-zombies.
#[test]
fn orphaned_child_leaves_no_zombie() {
    let scenario = |init: Init| {
        // The inner shell's parent has exited before it, so that it exits as a child of the init.
        let script = "sh -c 'sh -c \"read line < $0.fifo; echo ended\" & echo left' $0; echo > $0.fifo; sleep 300";
        let scene = Scene::new();
        let name = scene.text_path("gate");
        let (code, _, _) = run_to_end(&["mkfifo", &format!("{name}.fifo")], PATIENCE);
        assert_eq!(code, 0, "mkfifo creates a named pipe");
        let supervised = init.start(PLAIN, &["sh", "-c", script, &name]);
        supervised.await_output("ended");
        let zombie = || children(supervised.pid()).into_iter().any(|child| child.state == 'Z');
        until(5 * SECOND, &format!("{} reaps it", init.name()), || !zombie());
        assert!(is_alive(supervised.app()), "the app keeps running");
    };
    scenario(Init::ours());
    scenario(need!(Init::tini(), "tini is not installed"));
}

/// A fault signal sent from outside, such as by `kill -SEGV`, is for the app, and ends neither the supervisor nor the worker.
#[test]
fn fault_signal_from_outside_ends_only_the_app() {
    for number in [3, 4, 5, 6, 7, 8, 11, 31] {
        let mut supervised = Init::ours().start(PLAIN, &["sh", "-c", "echo up; exec sleep 300"]);
        supervised.await_output("up");
        supervised.signal(number);
        let code = supervised.wait(PATIENCE);
        let log = supervised.running.stderr.text();
        assert_eq!(code, 128 + number, "{log}");
        assert!(log.contains("app exited"), "the supervisor outlived the app: {log}");
    }
}

/// Real-time signals have no name, and reach the app like other signals.
/// Guarantee: signals-forwarded
#[test]
fn real_time_signals_are_forwarded() {
    need!(python(), "python3 is not installed");
    let supervised = Init::ours().start_with_reports(PLAIN).expect("python3 is installed");
    let numbers = [34, 40, 50, 64];
    for sent in 0..numbers.len() {
        let words = ["sh".to_owned(), "-c".to_owned(), format!("kill -{} {}", numbers[sent], supervised.pid())];
        assert_eq!(run_to_end(&words, PATIENCE).0, 0);
        supervised.await_report(&numbers[..=sent]);
    }
}

/// A configuration that sets every key of `app.signals` is valid.
#[test]
fn documented_signal_rewrites_are_valid() {
    let scene = Scene::new();
    let body =
        "app: { signals: { process_group: true, rewrite: { SIGTERM: SIGQUIT, SIGHUP: none, SIGUSR2: upgrade } } }";
    let config = scene.write("outrigger.yaml", configuration(&scene, body)).display().to_string();
    let (code, _, stderr) = outrigger(&["validate", "-c", &config]);
    assert_eq!(code, 0, "{stderr}");
}

/// A stop in the first milliseconds, before the app handles any signal, still ends every process.
#[test]
fn stop_right_after_start_leaves_no_process() {
    for early in 0..10u64 {
        let mut supervised = Init::ours().start(PLAIN, &["sleep", "300"]);
        // why: the time of the stop is varied, from before the signals are blocked to after the app's exec
        std::thread::sleep(Duration::from_millis(early * 4));
        let below = descendants(supervised.pid());
        supervised.signal(15);
        let code = supervised.wait(PATIENCE);
        assert!([0, 143].contains(&code), "after {} ms: {code}", early * 4);
        until(PATIENCE, "none is left", || living(&below) == 0);
    }
}
