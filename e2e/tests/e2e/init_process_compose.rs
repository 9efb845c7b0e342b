//! The scenarios of process-compose's and scuttle's tests of a program that starts, restarts and stops another one: success
//! exit codes, restarts with their backoff and limit, a stop at every point of them, and what the start waits for. Commands
//! and configurations come in; codes, counted runs and times go out. Bounded by the deadlines that each configuration sets.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::init::{Options, Orphans};
use crate::harness::process::{Signal, descendants, is_alive};
use crate::harness::{Init, Outrigger, PATIENCE, PLAIN, SECOND, Scene, Wait, number_after, until, within};

const STOP: &str = "stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s }";

/// An app that records the time of each of its runs in a line, and then runs `then`; `$n` is the run's number.
fn counting(scene: &Scene, then: &str) -> String {
    let runs = scene.text_path("runs");
    format!("date +%s%N >> {runs}; n=$(wc -l < {runs}); {then}")
}

/// The start time of each run.
fn runs(scene: &Scene) -> Vec<Duration> {
    let text = std::fs::read_to_string(scene.path("runs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok().map(Duration::from_nanos)).collect()
}

fn gaps(scene: &Scene) -> Vec<Duration> {
    runs(scene).windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect()
}

#[track_caller]
fn start(scene: &Scene, app: &str, script: &str) -> Outrigger {
    Outrigger::start_and(scene, &format!("app: {{ {STOP}, {app} }}"), &["sh", "-c", script], Wait::Nothing)
}

/// process-compose: SuccessExitCodes. A signal's 128 + n counts as a code.
#[test]
fn success_exit_codes_become_0_others_are_kept() {
    let cases =
        [("exit 3", 0), ("exit 4", 4), ("exit 0", 0), ("kill -TERM $$", 0), ("kill -KILL $$", 137), ("exit 1", 1)];
    for (script, expected) in cases {
        let scene = Scene::new();
        let exit = start(&scene, "success_exit_codes: [143, 3]", script).wait(PATIENCE);
        assert_eq!(exit.code, expected, "{script}: {}", exit.stderr);
    }
}

/// Guarantee: no-restart-by-default
#[test]
fn without_a_restart_policy_nothing_is_restarted() {
    for app in ["port: 9", "restart: { policy: never, backoff: 10ms }"] {
        let scene = Scene::new();
        let script = counting(&scene, "exit 3");
        let exit = start(&scene, app, &script).wait(PATIENCE);
        assert_eq!((exit.code, runs(&scene).len()), (3, 1), "{app}");
    }
}

#[test]
fn failure_is_retried_until_it_succeeds() {
    let scene = Scene::new();
    let script = counting(&scene, "case $n in 1) exit 3;; 2) kill -9 $$;; 3) exit 4;; *) exit 0;; esac");
    let exit = start(&scene, "restart: { policy: on_failure, backoff: 20ms }", &script).wait(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (0, 4), "{}", exit.stderr);
}

/// A success exit code is not a failure.
#[test]
fn success_exit_code_is_not_restarted() {
    let scene = Scene::new();
    let script = counting(&scene, "[ $n = 1 ] && exit 5; exit 7");
    let app = "success_exit_codes: [7], restart: { policy: on_failure, backoff: 20ms }";
    let exit = start(&scene, app, &script).wait(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (0, 2), "{}", exit.stderr);
}

#[test]
fn always_restarts_successes_up_to_max_restarts() {
    for (script, code) in [("exit 0", 0), ("exit 9", 9)] {
        let scene = Scene::new();
        let script = counting(&scene, script);
        let exit = start(&scene, "restart: { policy: always, backoff: 20ms, max_restarts: 3 }", &script).wait(PATIENCE);
        assert_eq!((exit.code, runs(&scene).len()), (code, 4), "one run and three restarts: {}", exit.stderr);
    }
}

/// A missing command is not retried without limit: that would hide a configuration error forever.
#[test]
fn missing_command_is_restarted_within_the_limit() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP}, restart: {{ policy: on_failure, backoff: 20ms, max_restarts: 2 }} }}");
    let exit = Outrigger::start_and(&scene, &body, &["./nothing-here"], Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.code, 127, "{}", exit.stderr);
}

/// Each backoff is about twice the previous one, up to the maximum. Jitter may shorten it, so that many restarts do not coincide.
#[test]
fn restart_backoff_doubles_up_to_its_maximum() {
    let scene = Scene::new();
    let script = counting(&scene, "exit 1");
    let restart = "restart: { policy: on_failure, backoff: 200ms, max_backoff: 800ms, max_restarts: 5 }";
    let exit = start(&scene, restart, &script).wait(PATIENCE);
    assert_eq!(exit.code, 1);
    let gaps = gaps(&scene);
    assert_eq!(gaps.len(), 5, "{gaps:?}");
    for (gap, nominal) in gaps.iter().zip([200, 400, 800, 800, 800].map(Duration::from_millis)) {
        assert!(*gap >= nominal / 2, "at least half of {nominal:?}: {gaps:?}");
        assert!(*gap <= nominal * 3 / 2 + SECOND / 2, "not much more than {nominal:?}: {gaps:?}");
    }
}

/// A run that lasted long enough resets the backoff.
#[test]
fn long_run_resets_the_restart_backoff() {
    let scene = Scene::new();
    let script = counting(&scene, "[ $n = 4 ] && sleep 1.5; exit 1");
    let restart = "restart: { policy: on_failure, backoff: 100ms, max_backoff: 30s, reset_after: 1s }";
    let outrigger = start(&scene, restart, &script);
    until(PATIENCE, "five runs", || runs(&scene).len() >= 5);
    outrigger.terminate(PATIENCE);
    let gaps = gaps(&scene);
    // The fourth backoff would be 800 ms without the reset.
    let backoff = gaps[3].saturating_sub(Duration::from_millis(1500));
    assert!(backoff < Duration::from_millis(400), "the run of 1.5 s, and then the initial backoff: {gaps:?}");
}

/// process-compose: StopDuringRestartCancelsTheRestart, RestartingProcessShutDown.
#[test]
fn stop_during_the_backoff_cancels_the_restart() {
    let scene = Scene::new();
    let script = counting(&scene, "echo failing; exit 3");
    let restart = "restart: { policy: on_failure, backoff: 20s }";
    let outrigger = start(&scene, restart, &script);
    until(PATIENCE, "the first run has exited", || {
        outrigger.stdout.contains("failing") && !descendants(outrigger.pid()).iter().any(|pid| is_shell(*pid))
    });
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (3, 1), "{}", exit.stderr);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
}

fn is_shell(pid: u32) -> bool {
    crate::harness::process::look_up(pid).is_some_and(|process| process.name == "sh")
}

/// process-compose: ConcurrentRestartRaceCondition. After a stop that races with a restart, nothing is started.
#[test]
fn stop_racing_with_a_restart_leaves_no_process() {
    for round in 1..=10 {
        let scene = Scene::new();
        let script = counting(&scene, "exit 3");
        let outrigger = start(&scene, "restart: { policy: always, backoff: 1ms, max_backoff: 1ms }", &script);
        until(PATIENCE, "it restarts", || runs(&scene).len() >= round);
        let exit = outrigger.terminate(PATIENCE);
        assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
        // The restarted app may have run, and got the stop signal.
        assert!([3, 143].contains(&exit.code), "{}: {}", exit.code, exit.stderr);
        let after = runs(&scene).len();
        assert!(!within(SECOND / 5, || runs(&scene).len() != after), "nothing starts after the exit");
    }
}

/// process-compose: ShutDownNoRestart. An exit that a stop requested is not a failure.
#[test]
fn app_ended_by_a_stop_is_not_restarted() {
    let scene = Scene::new();
    let script = counting(&scene, "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done");
    let outrigger = start(&scene, "restart: { policy: always, backoff: 10ms }", &script);
    until(PATIENCE, "the app runs", || outrigger.stdout.contains("up"));
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (6, 1), "{}", exit.stderr);
}

/// A restarted app is complete: it gets signals, its output arrives, and it is ready again.
#[test]
fn restarted_app_gets_signals_and_log_capture() {
    let scene = Scene::new();
    let script = counting(
        &scene,
        "trap 'echo run $n got USR1' USR1; trap 'exit 6' TERM; echo run $n up; [ $n = 1 ] && exit 1; while :; do sleep 0.05; done",
    );
    let body = format!(
        "app: {{ {STOP}, restart: {{ policy: on_failure, backoff: 10ms }} }}\n\
         logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ lines: {{ file: {{ path: \"@dir@/lines\" }} }} }} }}"
    );
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", &script], Wait::Nothing);
    until(PATIENCE, "the second run is up", || outrigger.stdout.contains("run 2 up"));
    outrigger.signal(Signal::USR1);
    until(PATIENCE, "the app gets signals", || outrigger.stdout.contains("run 2 got USR1"));
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    let lines = std::fs::read_to_string(scene.path("lines")).expect("the sink wrote");
    for line in ["run 1 up", "run 2 up", "run 2 got USR1"] {
        assert_eq!(lines.matches(line).count(), 1, "{line} in {lines}");
    }
}

/// process-compose: ShutDownWithConfiguredTimeOut.
/// Guarantee: app-killed-after-grace-period
#[test]
fn app_ignoring_sigterm_is_killed_after_grace() {
    for seconds in [1, 3] {
        let scene = Scene::new();
        let body = format!("app: {{ stop: {{ drain_timeout: 1s, grace_period: {seconds}s, timeout: 10s }} }}");
        let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", "trap '' TERM; echo up; sleep 300 & wait"]);
        until(PATIENCE, "the app runs", || outrigger.stdout.contains("up"));
        let exit = outrigger.terminate(PATIENCE);
        assert_eq!(exit.code, 137);
        let grace = Duration::from_secs(seconds);
        assert!(exit.took >= grace && exit.took < grace + 2 * SECOND, "{:?} with a grace of {grace:?}", exit.took);
    }
}

/// A second signal skips the remaining drain and grace period.
#[test]
fn a_second_signal_shortens_the_stop() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT), (Signal::INT, Signal::INT)] {
        let scene = Scene::new();
        let body = "app: { stop: { drain_timeout: 10s, grace_period: 30s, timeout: 60s } }";
        let script = "trap 'echo signalled' TERM INT; echo up; while :; do sleep 0.05; done";
        let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
        until(PATIENCE, "the app runs", || outrigger.stdout.contains("up"));
        outrigger.signal(first);
        until(PATIENCE, "the app was signalled", || outrigger.stdout.contains("signalled"));
        outrigger.signal(second);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, 137, "{}", exit.stderr);
        assert!(exit.took < 8 * SECOND, "{:?}", exit.took);
    }
}

const CAPTURED: Options<'static> =
    Options { body: "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }", ..PLAIN };

/// process-compose: TerminatingWithOrphanedChildHoldingPipe. The orphan left the group, and keeps running as without Outrigger.
#[test]
fn orphan_with_open_stdout_does_not_delay_exit() {
    for options in [CAPTURED, PLAIN] {
        let scene = Scene::new();
        let detached = scene.text_path("detached");
        // The app exits once the orphan has left its group, so that the SIGTERM to that group does not reach the orphan.
        let child = format!("echo orphan=$$; : > {detached}; exec sleep 300");
        let script = format!("setsid sh -c '{child}' & while [ ! -e {detached} ]; do sleep 0.02; done; exit 4");
        let began = Instant::now();
        let mut supervised = Init::ours().start(options, &["sh", "-c", &script]);
        let left = Orphans::default();
        until(PATIENCE, "Outrigger exits", || supervised.running.ended().is_some());
        assert!(began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
        assert_eq!(supervised.wait(PATIENCE), 4);
        let orphan =
            number_after(&supervised.running.stdout.text(), "orphan=").expect("the last output was passed through");
        let orphan = u32::try_from(orphan).expect("a process id");
        left.note(&[orphan]);
        assert!(is_alive(orphan), "the orphan is in its own session");
    }
}

/// The orphan does not delay a stop either.
#[test]
fn orphan_with_open_stdout_does_not_delay_a_stop() {
    let script = "setsid sh -c 'trap \"\" TERM; echo orphan=$$; exec sleep 300' & exec sleep 300";
    let mut supervised = Init::ours().start(CAPTURED, &["sh", "-c", script]);
    supervised.await_output("orphan=");
    let orphan = number_after(&supervised.running.stdout.text(), "orphan=").expect("just seen");
    let left = Orphans::default();
    left.note(&[u32::try_from(orphan).expect("a process id")]);
    let began = Instant::now();
    supervised.signal(15);
    until(PATIENCE, "Outrigger exits", || supervised.running.ended().is_some());
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    assert_eq!(supervised.wait(PATIENCE), 143);
}

/// A start that waits for a revision from a server that is down.
fn gated(scene: &Scene, start: &str) -> String {
    scene.port("unused");
    format!(
        "app: {{ {STOP}, start: {{ {start} }} }}\n\
         sync: {{ settings: {{ store: {{ git: {{ url: \"git://127.0.0.1:@unused@/none.git\", ref: main, interval: 1s }} }}, \
         publish: {{ symlink: {{ path: \"@dir@/published\" }} }} }} }}"
    )
}

/// scuttle: WaitForEnvoyTimeoutContinueWithoutEnvoy. The default is to continue.
/// Guarantee: app-waits-for-first-revision
#[test]
fn app_starts_anyway_after_the_start_timeout() {
    for start in ["timeout: 1s", "timeout: 1s, on_timeout: continue"] {
        let scene = Scene::new();
        let body = gated(&scene, start);
        let began = Instant::now();
        let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo up; exit 6"], Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!((exit.code, exit.stdout.as_str()), (6, "up\n"), "{}", exit.stderr);
        assert!(began.elapsed() >= SECOND, "the start was delayed: {:?}", began.elapsed());
    }
}

/// scuttle: WaitTillTimeoutForEnvoy.
#[test]
fn start_timeout_with_fail_starts_no_app() {
    let scene = Scene::new();
    let body = gated(&scene, "timeout: 1s, on_timeout: fail");
    let began = Instant::now();
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo up; exit 6"], Wait::Nothing);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{}", exit.stderr);
    assert!(began.elapsed() >= SECOND && began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
    assert!(exit.stderr.contains("settings"), "the message contains what it waited for: {}", exit.stderr);
}

/// scuttle: BlockingDisabled. Without gates there is no wait.
#[test]
fn without_start_gates_app_starts_immediately() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP}, start: {{ timeout: 30s, on_timeout: fail }} }}");
    let began = Instant::now();
    let exit = Outrigger::start_and(&scene, &body, &["sh", "-c", "exit 6"], Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert!(began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
}

/// process-compose: WaitForStartShutDown.
#[test]
fn stop_before_start_gates_open_starts_no_app() {
    let scene = Scene::new();
    let body = gated(&scene, "timeout: 60s");
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo up; exit 6"], Wait::Nothing);
    let is_live = || outrigger.status_of("/live") == 200;
    until(PATIENCE, "Outrigger waits to start the app", is_live);
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, ""), "{}", exit.stderr);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
    assert!(!Path::new(&scene.text_path("published")).exists());
}
