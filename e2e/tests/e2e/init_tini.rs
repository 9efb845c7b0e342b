//! The scenarios of tini's own tests, run against Outrigger, and against tini itself if it is installed, to verify the
//! scenario: exit codes, orphans, signals, what an app inherits. Commands come in; codes and remaining processes go out.
//! Its scenarios at a terminal are in `init_terminal.rs`.

use crate::harness::init::{Options, Orphans};
use crate::harness::outrigger::outrigger;
use crate::harness::process::{Running, Signal, children, descendants, is_alive, look_up, run_to_end, send_signal};
use crate::harness::{
    Init, Outrigger, PATIENCE, PLAIN, SECOND, Scene, Supervised, Wait, fixture, number_after, peer, python, until,
};

/// Runs an app that exits with each code, two at a time, and returns the code of the init for each.
fn codes_after(init: &Init, options: Options<'_>, codes: &[i32]) -> Vec<(i32, i32)> {
    let run = |codes: &[i32]| {
        let exit_with = |code: &i32| {
            let mut supervised = init.start(options, &["sh", "-c", &format!("exit {code}")]);
            (*code, supervised.wait(PATIENCE))
        };
        codes.iter().map(exit_with).collect::<Vec<_>>()
    };
    let (front, back) = codes.split_at(codes.len() / 2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(back));
        let mut all = run(front);
        all.extend(other.join().expect("only the starts and exits can fail"));
        all
    })
}

/// tini: the exit codes, without a remapping.
/// Guarantee: exit-code-of-the-app
#[test]
fn all_256_exit_codes_pass_through() {
    let codes: Vec<i32> = (0..256).collect();
    let scenario = |init: Init| {
        for (code, returned) in codes_after(&init, PLAIN, &codes) {
            assert_eq!(returned, code, "{}", init.name());
        }
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(Init::ours());
}

/// tini: each code once as one of the success exit codes, and once not, while other codes are.
#[test]
fn only_success_exit_codes_become_0() {
    let codes: Vec<i32> = (0..256).collect();
    let scenario = |init: Init| {
        for parity in [0, 1] {
            let success: Vec<i32> = codes.iter().copied().filter(|code| code % 2 == parity).collect();
            for (code, returned) in codes_after(&init, Options { success: &success, ..PLAIN }, &codes) {
                let expected = if success.contains(&code) { 0 } else { code };
                assert_eq!(returned, expected, "{} with all of parity {parity} as success", init.name());
            }
        }
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(Init::ours());
}

/// tini: TERM, USR1 and USR2 to an app that does not handle them. With success exit codes, the same exit gives 0.
#[test]
fn forwarded_fatal_signal_gives_128_plus_number() {
    let scenario = |init: Init, success: &[i32]| {
        for number in [15, 10, 12] {
            let mut supervised = init.start(Options { success, ..PLAIN }, &["sh", "-c", "echo up; exec sleep 300"]);
            supervised.await_output("up");
            supervised.signal(number);
            let expected = if success.contains(&(128 + number)) { 0 } else { 128 + number };
            assert_eq!(supervised.wait(PATIENCE), expected, "{} and signal {number}", init.name());
        }
    };
    let tini = need!(Init::tini(), "tini is not installed");
    for success in [&[][..], &[143], &[138, 140]] {
        scenario(tini.clone(), success);
        scenario(Init::ours(), success);
    }
}

const ORPHANS: usize = 100;

/// Waits until every orphan has reported its parent, and returns the parents.
#[track_caller]
fn parents_of_orphans(supervised: &Supervised) -> Vec<usize> {
    supervised.await_output("left them");
    let parents = || {
        let lines = supervised.running.stdout.lines();
        lines.iter().filter_map(|line| number_after(line, "orphan of=")).collect::<Vec<usize>>()
    };
    until(PATIENCE, "each orphan has a new parent", || parents().len() == ORPHANS);
    parents()
}

/// tini: reaping, as a subreaper; Outrigger is one by default, and has no reason for a warning.
/// Guarantee: orphans-reaped
#[test]
fn orphans_are_reparented_to_init_and_reaped() {
    let python = need!(python(), "python3 is not installed");
    let scenario = |init: Init| {
        let script = fixture("orphans.py");
        let mut supervised = init.start(PLAIN, &[&python, &script, &ORPHANS.to_string()]);
        let init_pid = usize::try_from(supervised.pid()).expect("a process id");
        assert!(
            parents_of_orphans(&supervised).iter().all(|parent| *parent == init_pid),
            "all are reparented to {}",
            init.name()
        );
        let app = supervised.app();
        let left = || supervised.adopted(supervised.pid(), app).len();
        until(PATIENCE, &format!("{} has reaped each", init.name()), || left() == 0);
        assert!(is_alive(app), "no orphan's exit was mistaken for the app's");
        let warnings = supervised.running.stderr.text().to_lowercase();
        assert!(!warnings.contains("reap"), "{warnings}");
        supervised.signal(15);
        assert_eq!(supervised.wait(PATIENCE), 143, "{}", init.name());
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(Init::ours());
}

/// A new PID namespace with its own /proc; `None` if that is not permitted.
fn namespace() -> Option<Vec<String>> {
    let launcher = [&peer("unshare")?.display().to_string(), "--pid", "--fork", "--kill-child", "--mount-proc"];
    let launcher = launcher.map(str::to_owned).to_vec();
    let probe: Vec<String> = launcher.iter().cloned().chain(["true".to_owned()]).collect();
    (run_to_end(&probe, PATIENCE).0 == 0).then_some(launcher)
}

/// Starts an init as PID 1 of a namespace; returns its PID in the test's namespace too.
#[track_caller]
fn start_as_pid_1(init: &Init, launcher: &[String], app: &[&str]) -> (Supervised, u32) {
    let launcher: Vec<&str> = launcher.iter().map(String::as_str).collect();
    let supervised = init.start_under(&launcher, PLAIN, app);
    let mut inner = None;
    until(PATIENCE, "PID 1 runs", || {
        inner = children(supervised.pid()).into_iter().find(|child| init.name().starts_with(&child.name));
        inner.is_some()
    });
    (supervised, inner.expect("just found").pid)
}

fn signal_inner(pid: u32, number: i32) {
    send_signal(pid, Signal::from_named_raw(number).expect("a signal with a name"));
}

/// tini and dumb-init: zombies, as PID 1.
/// Guarantee: orphans-reaped
#[test]
fn pid_1_reaps_orphans_and_ends_on_sigterm() {
    let python = need!(python(), "python3 is not installed");
    let launcher = need!(namespace(), "a PID namespace is not permitted");
    let scenario = |init: Init| {
        let script = fixture("orphans.py");
        let (mut supervised, inner) = start_as_pid_1(&init, &launcher, &[&python, &script, &ORPHANS.to_string()]);
        assert!(
            parents_of_orphans(&supervised).iter().all(|parent| *parent == 1),
            "all are reparented to {}",
            init.name()
        );
        let app = children(inner).into_iter().find(|child| child.name.starts_with("python")).expect("the app");
        let left = || supervised.adopted(inner, app.pid).len();
        until(PATIENCE, &format!("{} has reaped each", init.name()), || left() == 0);
        signal_inner(inner, 15);
        assert_eq!(supervised.wait(PATIENCE), 143, "{}", init.name());
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// PID 1 has no default actions: the kernel ignores signals without a handler. All of them still reach the app.
#[test]
fn pid_1_forwards_every_signal() {
    let python = need!(python(), "python3 is not installed");
    let launcher = need!(namespace(), "a PID namespace is not permitted");
    let (supervised, inner) = start_as_pid_1(&Init::ours(), &launcher, &[&python, &fixture("signals.py")]);
    supervised.await_output("ready");
    let numbers: Vec<i32> = (1..=31).filter(|number| ![2, 9, 15, 17, 19, 20, 21, 22].contains(number)).collect();
    for sent in 0..numbers.len() {
        signal_inner(inner, numbers[sent]);
        supervised.await_report(&numbers[..=sent]);
    }
    let worker = children(inner).into_iter().find(|child| child.name.starts_with("outrigger"));
    assert!(worker.is_some_and(|worker| worker.state != 'Z'), "the worker still runs");
}

/// The kernel lets no signal stop PID 1. The app stops on SIGTSTP and continues on SIGCONT, and PID 1 never waits for itself.
#[test]
fn pid_1_stops_and_continues_the_app() {
    let python = need!(python(), "python3 is not installed");
    let launcher = need!(namespace(), "a PID namespace is not permitted");
    let (supervised, inner) = start_as_pid_1(&Init::ours(), &launcher, &[&python, &fixture("signals.py")]);
    supervised.await_output("ready");
    let app = children(inner).into_iter().find(|child| child.name.starts_with("python")).expect("the app").pid;
    for round in 0..3 {
        signal_inner(inner, 20);
        until(PATIENCE, "the app stops", || look_up(app).is_some_and(|process| process.state == 'T'));
        signal_inner(inner, 18);
        supervised.await_report(&[18, 18, 18][..=round]);
    }
}

/// When PID 1 exits, the kernel kills all other processes: the app's orphans exit with Outrigger.
#[test]
fn pid_1_leaves_no_process() {
    let launcher = need!(namespace(), "a PID namespace is not permitted");
    let script = "setsid sleep 300 & sleep 300 & echo up; exec sleep 300";
    let (mut supervised, inner) = start_as_pid_1(&Init::ours(), &launcher, &["sh", "-c", script]);
    supervised.await_output("up");
    let below = descendants(inner);
    signal_inner(inner, 15);
    assert_eq!(supervised.wait(PATIENCE), 143);
    until(PATIENCE, "all processes have exited", || !below.iter().any(|pid| is_alive(*pid)));
}

/// tini -g: the app ignores the signal and waits for a child that does not.
#[test]
fn signal_reaches_a_child_if_the_app_ignores_it() {
    let script = "trap '' USR1; echo up; env --default-signal=USR1 sleep 300; echo \"child=$?\"; exit 7";
    let scenario = |init: Init| {
        let mut supervised = init.start(PLAIN, &["sh", "-c", script]);
        supervised.await_output("up");
        let app = supervised.app();
        let sleeps = || children(app).first().is_some_and(|child| child.name == "sleep");
        until(PATIENCE, "the child runs", sleeps);
        supervised.signal(10);
        assert_eq!(supervised.wait(PATIENCE), 7, "{}", init.name());
        assert!(supervised.running.stdout.contains("child=138"), "{}", init.name());
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
}

/// tini: signals that were ignored and blocked at the start are so for the app: SIGPIPE too, which Rust's runtime changes
/// at startup, and which systemd passes to every service as ignored.
/// Guarantee: app-surroundings-unchanged
#[test]
fn app_inherits_ignored_and_blocked_signals() {
    let python = need!(python(), "python3 is not installed");
    let launcher = [python.as_str(), &fixture("inherit.py")];
    let command = ["grep", "-E", "^Sig(Blk|Ign|Cgt):", "/proc/self/status"];
    let (code, alone, _) = run_to_end(&[&launcher[..], &command].concat(), PATIENCE);
    assert_eq!(code, 0);
    let ignored = alone.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("grep found it").trim();
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    assert_eq!(ignored & 0x0020_1801, 0x0020_1801, "the launcher ignores HUP, USR2, PIPE and TTOU: {alone}");
    for success in [&[][..], &[0]] {
        let mut supervised = Init::ours().start_under(&launcher, Options { success, ..PLAIN }, &command);
        assert_eq!(supervised.wait(PATIENCE), 0);
        assert_eq!(supervised.running.stdout.text(), alone);
    }
    let tini = need!(Init::tini(), "tini is not installed");
    let mut supervised = tini.start_under(&launcher, PLAIN, &command);
    assert_eq!(supervised.wait(PATIENCE), 0);
    assert_eq!(supervised.running.stdout.text(), alone, "tini");
}

/// Outrigger still receives a SIGTERM that was blocked at its start; the app gets its stop signal, and handles it itself.
#[test]
fn stop_signal_that_was_blocked_at_start_stops() {
    let python = need!(python(), "python3 is not installed");
    let launcher = [python.as_str(), &fixture("inherit.py")];
    let body = "app: { stop: { signal: SIGINT, drain_timeout: 1s, grace_period: 5s, timeout: 10s } }";
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, body));
    let outrigger =
        [crate::harness::outrigger::binary(), "run".into(), "-c".into(), config.display().to_string(), "--".into()];
    let app = ["sh", "-c", "echo up; exec sleep 300"];
    let words = launcher.iter().copied().chain(outrigger.iter().map(String::as_str)).chain(app);
    let mut running = Running::start(&words.collect::<Vec<&str>>());
    until(PATIENCE, "the app runs", || running.stdout.contains("up"));
    running.signal(Signal::TERM);
    assert_eq!(running.wait(PATIENCE), 130);
}

/// tini: a wrong flag is 1, a missing command 127, what cannot be executed 126, all before anything runs.
#[test]
fn failed_starts_return_the_codes_of_tini() {
    let scenario = |init: Init| {
        let scene = Scene::new();
        let plain = scene.write("plain", "not a program").display().to_string();
        let directory = scene.path(".").display().to_string();
        for (command, expected) in
            [("zzzz", 127), ("/no/such/file", 127), (plain.as_str(), 126), (directory.as_str(), 126)]
        {
            let mut supervised = init.start(PLAIN, &[command]);
            assert_eq!(supervised.wait(PATIENCE), expected, "{} {command}", init.name());
        }
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(Init::ours());
    assert_eq!(outrigger(&["run", "-z"]).0, 1);
}

/// tini -p signals the app when tini's parent exits. Here it is the worker: a killed supervisor leaves no worker that holds
/// ports and files.
/// Guarantee: supervisor-kill-spares-the-app
#[test]
fn a_killed_supervisor_leaves_no_worker() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &["sleep", "300"]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    let left = Orphans::default();
    left.note(&[worker, app]);
    send_signal(outrigger.pid(), Signal::KILL);
    until(10 * SECOND, "the worker exits by itself", || !is_alive(worker));
    assert!(is_alive(app), "the app keeps running, as under any other init outside a container");
}

/// The app's exit is not lost among a hundred other exits at the same time.
#[test]
fn app_exit_is_seen_among_a_hundred_others() {
    let script = "i=0; while [ $i -lt 100 ]; do (exit 3 &) ; i=$((i+1)); done; exit 21";
    for _ in 0..5 {
        let scene = Scene::new();
        let exit = Outrigger::start_and(&scene, "", &["sh", "-c", script], Wait::Nothing).wait(PATIENCE);
        assert_eq!(exit.code, 21, "{}", exit.stderr);
    }
}

/// A script without an interpreter line is run by a shell, as by every caller of execvp; another non-executable file is not.
#[test]
fn script_without_interpreter_is_run_by_a_shell() {
    let scene = Scene::new();
    let script = scene.script("plain-script", "echo \"got $1\"\nexit 3\n").display().to_string();
    let scenario = |init: Init| {
        let mut supervised = init.start(PLAIN, &[&script, "an argument"]);
        assert_eq!(supervised.wait(PATIENCE), 3, "{}", init.name());
        supervised.await_output("got an argument\n");
    };
    scenario(need!(Init::tini(), "tini is not installed"));
    scenario(need!(Init::dumb_init(), "dumb-init is not installed"));
    scenario(Init::ours());
    let foreign = scene.script("foreign", "\u{7f}ELF\0of another machine\n").display().to_string();
    assert_eq!(Init::ours().start(PLAIN, &[&foreign]).wait(PATIENCE), 126);
}
