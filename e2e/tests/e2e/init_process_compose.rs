//! What process-compose's and scuttle's tests ask of a program that starts, restarts and stops another one: codes of success,
//! restarts with their pauses and bounds, a stop at every moment of them, and what the start waits for. Commands and
//! configurations come in; codes, counted runs and times go out. Bounded by the deadlines that each configuration sets.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::init::{Options, Orphans};
use crate::harness::process::{Signal, descendants, is_alive};
use crate::harness::{Init, Outrigger, PATIENCE, PLAIN, SECOND, Scene, Wait, number_after, until, within};

const STOP: &str = "stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s }";

/// An app that notes each of its runs as a line with its time, and then does what `then` says; `$n` is the run's number.
fn counting(scene: &Scene, then: &str) -> String {
    let runs = scene.text_path("runs");
    format!("date +%s%N >> {runs}; n=$(wc -l < {runs}); {then}")
}

/// When each run began.
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

/// process-compose: SuccessExitCodes. A signal's 128 + n counts like a code.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn codes_of_success_become_0_and_others_stay() {
    let cases =
        [("exit 3", 0), ("exit 4", 4), ("exit 0", 0), ("kill -TERM $$", 0), ("kill -KILL $$", 137), ("exit 1", 1)];
    for (script, expected) in cases {
        let scene = Scene::new();
        let exit = start(&scene, "success_exit_codes: [143, 3]", script).wait(PATIENCE);
        assert_eq!(exit.code, expected, "{script}: {}", exit.stderr);
    }
}

/// covers: attachment 1
/// covers: attachment 8
#[test]
fn without_a_word_about_it_nothing_is_restarted() {
    for app in ["port: 9", "restart: { policy: never, backoff: 10ms }"] {
        let scene = Scene::new();
        let script = counting(&scene, "exit 3");
        let exit = start(&scene, app, &script).wait(PATIENCE);
        assert_eq!((exit.code, runs(&scene).len()), (3, 1), "{app}");
    }
}

/// covers: attachment 1
/// covers: attachment 8
#[test]
fn a_failure_is_tried_again_until_it_succeeds() {
    let scene = Scene::new();
    let script = counting(&scene, "case $n in 1) exit 3;; 2) kill -9 $$;; 3) exit 4;; *) exit 0;; esac");
    let exit = start(&scene, "restart: { policy: on_failure, backoff: 20ms }", &script).wait(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (0, 4), "{}", exit.stderr);
}

/// A code of success is no failure.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn a_code_of_success_is_not_tried_again() {
    let scene = Scene::new();
    let script = counting(&scene, "[ $n = 1 ] && exit 5; exit 7");
    let app = "success_exit_codes: [7], restart: { policy: on_failure, backoff: 20ms }";
    let exit = start(&scene, app, &script).wait(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (0, 2), "{}", exit.stderr);
}

/// covers: attachment 1
/// covers: attachment 8
#[test]
fn always_means_after_a_success_too_and_max_is_the_end_of_it() {
    for (script, code) in [("exit 0", 0), ("exit 9", 9)] {
        let scene = Scene::new();
        let script = counting(&scene, script);
        let exit = start(&scene, "restart: { policy: always, backoff: 20ms, max_restarts: 3 }", &script).wait(PATIENCE);
        assert_eq!((exit.code, runs(&scene).len()), (code, 4), "one run and three restarts: {}", exit.stderr);
    }
}

/// An app that cannot be found is not looked for again: that would hide a mistake for ever.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn restarts_of_an_app_that_cannot_be_found_are_counted_like_others() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP}, restart: {{ policy: on_failure, backoff: 20ms, max_restarts: 2 }} }}");
    let exit = Outrigger::start_and(&scene, &body, &["./nothing-here"], Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.code, 127, "{}", exit.stderr);
}

/// Each pause is about twice the one before, up to the longest. Chance may take part of it, so that many do not come at once.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn pauses_before_restarts_double_up_to_the_longest() {
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

/// A run that lasted begins the pauses anew.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn an_app_that_ran_for_long_is_restarted_at_once_again() {
    let scene = Scene::new();
    let script = counting(&scene, "[ $n = 4 ] && sleep 1.5; exit 1");
    let restart = "restart: { policy: on_failure, backoff: 100ms, max_backoff: 30s, reset_after: 1s }";
    let outrigger = start(&scene, restart, &script);
    until(PATIENCE, "five runs", || runs(&scene).len() >= 5);
    outrigger.terminate(PATIENCE);
    let gaps = gaps(&scene);
    // The fourth pause would be 800 ms, had the row not begun anew.
    let pause = gaps[3].saturating_sub(Duration::from_millis(1500));
    assert!(pause < Duration::from_millis(400), "the run of 1.5 s, and then the first pause: {gaps:?}");
}

/// process-compose: StopDuringRestartCancelsTheRestart, RestartingProcessShutDown.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn a_stop_during_the_pause_cancels_the_restart() {
    let scene = Scene::new();
    let script = counting(&scene, "echo failing; exit 3");
    let restart = "restart: { policy: on_failure, backoff: 20s }";
    let outrigger = start(&scene, restart, &script);
    until(PATIENCE, "the first run has ended", || {
        outrigger.stdout.contains("failing") && !descendants(outrigger.pid()).iter().any(|pid| is_shell(*pid))
    });
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (3, 1), "{}", exit.stderr);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
}

fn is_shell(pid: u32) -> bool {
    crate::harness::process::look_up(pid).is_some_and(|process| process.name == "sh")
}

/// process-compose: ConcurrentRestartRaceCondition. A stop that meets a restart, at whatever moment, starts nothing after it.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn a_stop_that_meets_a_restart_leaves_nothing_running() {
    for round in 1..=10 {
        let scene = Scene::new();
        let script = counting(&scene, "exit 3");
        let outrigger = start(&scene, "restart: { policy: always, backoff: 1ms, max_backoff: 1ms }", &script);
        until(PATIENCE, "it restarts", || runs(&scene).len() >= round);
        let exit = outrigger.terminate(PATIENCE);
        assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
        // The restart that was met may have run, and got the stop's signal.
        assert!([3, 143].contains(&exit.code), "{}: {}", exit.code, exit.stderr);
        let after = runs(&scene).len();
        assert!(!within(SECOND / 5, || runs(&scene).len() != after), "nothing starts after our end");
    }
}

/// process-compose: ShutDownNoRestart. The end that a stop asked for is no failure.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn what_ends_by_our_stop_is_not_restarted() {
    let scene = Scene::new();
    let script = counting(&scene, "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done");
    let outrigger = start(&scene, "restart: { policy: always, backoff: 10ms }", &script);
    until(PATIENCE, "it runs", || outrigger.stdout.contains("up"));
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!((exit.code, runs(&scene).len()), (6, 1), "{}", exit.stderr);
}

/// A restarted app is a whole one: it gets signals, its output arrives, and it is ready again.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn a_restarted_app_has_everything_that_the_first_had() {
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
    until(PATIENCE, "it gets signals", || outrigger.stdout.contains("run 2 got USR1"));
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    let lines = std::fs::read_to_string(scene.path("lines")).expect("the sink wrote");
    for line in ["run 1 up", "run 2 up", "run 2 got USR1"] {
        assert_eq!(lines.matches(line).count(), 1, "{line} in {lines}");
    }
}

/// process-compose: ShutDownWithConfiguredTimeOut.
/// covers: attachment 8
#[test]
fn an_app_that_ignores_its_signal_is_killed_when_its_grace_is_over() {
    for seconds in [1, 3] {
        let scene = Scene::new();
        let body = format!("app: {{ stop: {{ drain_timeout: 1s, grace_period: {seconds}s, timeout: 10s }} }}");
        let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", "trap '' TERM; echo up; sleep 300 & wait"]);
        until(PATIENCE, "it runs", || outrigger.stdout.contains("up"));
        let exit = outrigger.terminate(PATIENCE);
        assert_eq!(exit.code, 137);
        let grace = Duration::from_secs(seconds);
        assert!(exit.took >= grace && exit.took < grace + 2 * SECOND, "{:?} with a grace of {grace:?}", exit.took);
    }
}

/// A second signal is impatience: neither drain nor grace is waited for.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn a_second_signal_shortens_the_stop() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT), (Signal::INT, Signal::INT)] {
        let scene = Scene::new();
        let body = "app: { stop: { drain_timeout: 10s, grace_period: 30s, timeout: 60s } }";
        let script = "trap 'echo told' TERM INT; echo up; while :; do sleep 0.05; done";
        let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
        until(PATIENCE, "it runs", || outrigger.stdout.contains("up"));
        outrigger.signal(first);
        until(PATIENCE, "the app was told", || outrigger.stdout.contains("told"));
        outrigger.signal(second);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!(exit.code, 137, "{}", exit.stderr);
        assert!(exit.took < 8 * SECOND, "{:?}", exit.took);
    }
}

const CAPTURED: Options<'static> =
    Options { body: "logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }", ..PLAIN };

/// process-compose: TerminatingWithOrphanedChildHoldingPipe. The orphan left the group, and lives on as it would without us.
/// covers: attachment 8
#[test]
fn an_orphan_that_holds_the_apps_output_does_not_hold_us() {
    for options in [CAPTURED, PLAIN] {
        let scene = Scene::new();
        let gone = scene.text_path("gone");
        // The app ends when the other has left its group, which our SIGTERM to that group then does not reach.
        let child = format!("echo orphan=$$; : > {gone}; exec sleep 300");
        let script = format!("setsid sh -c '{child}' & while [ ! -e {gone} ]; do sleep 0.02; done; exit 4");
        let began = Instant::now();
        let mut supervised = Init::ours().start(options, &["sh", "-c", &script]);
        let left = Orphans::default();
        until(PATIENCE, "we end", || supervised.running.ended().is_some());
        assert!(began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
        assert_eq!(supervised.wait(PATIENCE), 4);
        let orphan = number_after(&supervised.running.stdout.text(), "orphan=").expect("the last words are through");
        let orphan = u32::try_from(orphan).expect("a process id");
        left.note(&[orphan]);
        assert!(is_alive(orphan), "it led a session of its own");
    }
}

/// A stop, too, is not held by it.
/// covers: attachment 8
#[test]
fn an_orphan_that_holds_the_apps_output_does_not_hold_up_a_stop() {
    let script = "setsid sh -c 'trap \"\" TERM; echo orphan=$$; exec sleep 300' & exec sleep 300";
    let mut supervised = Init::ours().start(CAPTURED, &["sh", "-c", script]);
    supervised.await_output("orphan=");
    let orphan = number_after(&supervised.running.stdout.text(), "orphan=").expect("just seen");
    let left = Orphans::default();
    left.note(&[u32::try_from(orphan).expect("a process id")]);
    let began = Instant::now();
    supervised.signal(15);
    until(PATIENCE, "we end", || supervised.running.ended().is_some());
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    assert_eq!(supervised.wait(PATIENCE), 143);
}

/// A start that waits for a revision from a server that is not there.
fn gated(scene: &Scene, start: &str) -> String {
    scene.port("nobody");
    format!(
        "app: {{ {STOP}, start: {{ {start} }} }}\n\
         sync: {{ settings: {{ store: {{ git: {{ url: \"git://127.0.0.1:@nobody@/none.git\", ref: main, interval: 1s }} }}, \
         publish: {{ symlink: {{ path: \"@dir@/published\" }} }} }} }}"
    )
}

/// scuttle: WaitForEnvoyTimeoutContinueWithoutEnvoy. The default is to go on.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn when_the_wait_is_over_the_app_is_started_anyway() {
    for start in ["timeout: 1s", "timeout: 1s, on_timeout: continue"] {
        let scene = Scene::new();
        let body = gated(&scene, start);
        let began = Instant::now();
        let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo up; exit 6"], Wait::Nothing);
        let exit = outrigger.wait(PATIENCE);
        assert_eq!((exit.code, exit.stdout.as_str()), (6, "up\n"), "{}", exit.stderr);
        assert!(began.elapsed() >= SECOND, "it was waited for: {:?}", began.elapsed());
    }
}

/// scuttle: WaitTillTimeoutForEnvoy.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn when_the_wait_is_over_and_that_counts_as_a_failure_the_app_is_not_started() {
    let scene = Scene::new();
    let body = gated(&scene, "timeout: 1s, on_timeout: fail");
    let began = Instant::now();
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo up; exit 6"], Wait::Nothing);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{}", exit.stderr);
    assert!(began.elapsed() >= SECOND && began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
    assert!(exit.stderr.contains("settings"), "what was waited for is named: {}", exit.stderr);
}

/// scuttle: BlockingDisabled. Nothing to wait for is no wait.
/// covers: attachment 1
/// covers: attachment 8
#[test]
fn with_nothing_to_wait_for_the_app_starts_at_once() {
    let scene = Scene::new();
    let body = format!("app: {{ {STOP}, start: {{ timeout: 30s, on_timeout: fail }} }}");
    let began = Instant::now();
    let exit = Outrigger::start_and(&scene, &body, &["sh", "-c", "exit 6"], Wait::Nothing).wait(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert!(began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
}

/// process-compose: WaitForStartShutDown.
/// covers: attachment 8
#[test]
fn a_stop_during_the_wait_for_the_start_starts_nothing() {
    let scene = Scene::new();
    let body = gated(&scene, "timeout: 60s");
    let outrigger = Outrigger::start_and(&scene, &body, &["sh", "-c", "echo up; exit 6"], Wait::Nothing);
    let waits = || outrigger.status_of("/live") == 200;
    until(PATIENCE, "it waits", waits);
    let exit = outrigger.terminate(PATIENCE);
    assert_eq!((exit.code, exit.stdout.as_str()), (0, ""), "{}", exit.stderr);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
    assert!(!Path::new(&scene.text_path("published")).exists());
}
