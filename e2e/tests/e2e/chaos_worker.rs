//! Faults of every subsystem, injected into a running worker: panic, abort, hang, leak, exhausted file descriptors. The app and
//! its lines are unaffected, only requests in flight in a worker that died fail, and another worker serves. Bounded by `BACK`
//! for faults that end a worker, and by `BACK_FROM_HANG` and `BACK_FROM_STOP` for those that must be detected first.

use std::time::{Duration, Instant};

use crate::harness::busy::{Busy, NO_GIT, descriptors};
use crate::harness::faults;
use crate::harness::load::Death;
use crate::harness::outrigger::{binary, configuration};
use crate::harness::process::{Signal, anonymous_kib, children, is_alive, send_signal};
use crate::harness::{Outrigger, PATIENCE, Scene, until};

/// Another worker serves after this at the latest; it takes a tenth of a second on an idle machine.
const BACK: Duration = Duration::from_secs(20);

/// A thread is hung if it makes no progress over four checks of two seconds; its worker has two more seconds to release its
/// resources, and as many for its last records.
const BACK_FROM_HANG: Duration = Duration::from_secs(45);

/// A worker process is hung after 10 s and a confirmation of 2 s; detection takes longer on a busy machine.
const BACK_FROM_STOP: Duration = Duration::from_secs(75);

/// A worker that served for a second resets the restart backoff, so that the next one starts immediately.
const CALM: Duration = Duration::from_millis(1200);

/// Which requests may fail by the fault of a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
enum MayFail {
    Nothing,
    InFlight,
}

/// Injects the fault into the worker that serves, and waits until another one serves.
#[track_caller]
fn inject(busy: &Busy, fault: &str, back: Duration) -> Death {
    let worker = busy.outrigger.worker();
    let from = Instant::now();
    faults::inject(&busy.scene, fault);
    await_recovery(busy, fault, (worker, from), back)
}

#[track_caller]
fn await_recovery(busy: &Busy, fault: &str, (worker, from): (u32, Instant), back: Duration) -> Death {
    let to = busy.await_next(worker, back);
    busy.await_service(back);
    eprintln!("{fault}: replaced after {:?}, longest time without a response {:?}", to - from, busy.longest_pause());
    Death { from, to }
}

/// Injects the fault under load, and checks every guarantee.
#[track_caller]
fn chaos(busy: Busy, fault: &str, back: Duration, may_fail: MayFail) {
    let death = inject(&busy, fault, back);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(1);
    for met in [fresh, kept] {
        match may_fail {
            MayFail::Nothing => met.assert_none_failed(),
            MayFail::InFlight => met.assert_only_inside(&[death]),
        }
    }
}

/// One fault, in a worker of the binary with fault injection.
macro_rules! with_fault {
    ($fault:literal, $back:ident, $may_fail:ident) => {
        let binary = need!(faults::binary(), faults::NO_FAULTS);
        chaos(need!(Busy::start(&binary), NO_GIT), $fault, $back, MayFail::$may_fail);
    };
}

#[test]
fn logs_panic_fails_no_request() {
    with_fault!("panic logs", BACK, Nothing);
}

#[test]
fn metrics_panic_fails_no_request() {
    with_fault!("panic metrics", BACK, Nothing);
}

#[test]
fn sync_panic_fails_no_request() {
    with_fault!("panic sync", BACK, Nothing);
}

/// Guarantee: crash-fails-only-requests-in-flight
#[test]
fn proxy_panic_fails_only_in_flight_requests() {
    with_fault!("panic proxy", BACK, InFlight);
}

#[test]
fn main_panic_fails_only_in_flight_requests() {
    with_fault!("panic main", BACK, InFlight);
}

/// One thread of the proxy exits, and the second one serves until both are replaced.
#[test]
fn one_proxy_thread_panic_fails_only_in_flight() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    chaos(need!(Busy::start_with(&binary, 2), NO_GIT), "panic proxy", BACK, MayFail::InFlight);
}

/// An abort ends the process, whichever thread aborts, so one test covers all subsystems.
/// Guarantee: crash-fails-only-requests-in-flight
#[test]
fn abort_fails_only_in_flight_requests() {
    with_fault!("abort", BACK, InFlight);
}

#[test]
fn hung_logs_thread_triggers_handover() {
    with_fault!("hang logs", BACK_FROM_HANG, Nothing);
}

#[test]
fn hung_proxy_thread_triggers_handover() {
    with_fault!("hang proxy", BACK_FROM_HANG, InFlight);
}

/// Guarantee: stalled-worker-replaced
#[test]
fn hung_proxy_thread_of_two_triggers_handover() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    chaos(need!(Busy::start_with(&binary, 2), NO_GIT), "hang proxy", BACK_FROM_HANG, MayFail::InFlight);
}

/// Metrics, sync and the admin listener have no separate thread: this hang covers them too.
/// Guarantee: stalled-worker-replaced
#[test]
fn hung_main_thread_triggers_replacement() {
    with_fault!("hang main", BACK_FROM_STOP, InFlight);
}

/// Guarantee: leaking-worker-replaced
#[test]
fn leak_over_the_limit_fails_no_request() {
    with_fault!("leak 200", BACK_FROM_HANG, Nothing);
}

/// Memory is accounted per process, so a leak is the same in any subsystem. This one ends before the next check: the kernel
/// refuses the allocation.
#[test]
fn leak_faster_than_checks_fails_only_in_flight() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let busy = need!(Busy::start(&binary), NO_GIT);
    let (worker, from) = (busy.outrigger.worker(), Instant::now());
    faults::send(&busy.scene, "leak 2000");
    let death = await_recovery(&busy, "a quick leak", (worker, from), BACK_FROM_HANG);
    let output = busy.outrigger.stderr.text();
    assert!(output.contains("memory allocation of"), "it crashed on a failed allocation: {output}");
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(1);
    fresh.assert_only_inside(&[death]);
    kept.assert_only_inside(&[death]);
}

#[test]
fn fd_exhaustion_fails_no_request() {
    with_fault!("fds", BACK, Nothing);
}

/// Each worker gets the next fault: the effects of one must not break the next.
/// Guarantee: worker-failure-spares-the-app
#[test]
fn all_faults_in_turn_fail_only_in_flight() {
    let faults = [
        ("panic logs", BACK, MayFail::Nothing),
        ("panic metrics", BACK, MayFail::Nothing),
        ("panic sync", BACK, MayFail::Nothing),
        ("panic proxy", BACK, MayFail::InFlight),
        ("panic main", BACK, MayFail::InFlight),
        ("abort", BACK, MayFail::InFlight),
        ("fds", BACK, MayFail::Nothing),
        ("leak 200", BACK_FROM_HANG, MayFail::Nothing),
        ("hang logs", BACK_FROM_HANG, MayFail::Nothing),
        ("hang proxy", BACK_FROM_HANG, MayFail::InFlight),
        ("hang main", BACK_FROM_STOP, MayFail::InFlight),
    ];
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let busy = need!(Busy::start(&binary), NO_GIT);
    let mut deaths = Vec::new();
    for (fault, back, may_fail) in faults {
        let death = inject(&busy, fault, back);
        if may_fail == MayFail::InFlight {
            deaths.push(death);
        }
    }
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(faults.len());
    fresh.assert_only_inside(&deaths);
    kept.assert_only_inside(&deaths);
}

/// Guarantee: stalled-worker-replaced
#[test]
fn watchdog_kills_and_replaces_a_stopped_worker() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let worker = busy.outrigger.worker();
    let began = Instant::now();
    send_signal(worker, Signal::STOP);
    let replaced = busy.await_next(worker, BACK_FROM_STOP);
    busy.await_service(BACK);
    eprintln!(
        "SIGSTOP: replaced after {:?}, longest time without a response {:?}",
        replaced - began,
        busy.longest_pause()
    );
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(1);
    let death = Death { from: began, to: replaced };
    fresh.assert_only_inside(&[death]);
    kept.assert_only_inside(&[death]);
}

/// The supervisor leaks neither a file descriptor nor a child.
/// Guarantee: no-loss-on-worker-kill, crash-fails-only-requests-in-flight
#[test]
fn twenty_kills_in_a_row_fail_only_in_flight() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let mut pauses = Vec::new();
    let deaths: Vec<Death> = (0..20)
        .map(|_| {
            let death = busy.kill_worker();
            busy.await_service(BACK);
            pauses.push(busy.longest_pause());
            until(PATIENCE, "the restart backoff is reset", || death.to.elapsed() > CALM);
            death
        })
        .collect();
    pauses.sort_unstable();
    eprintln!("20 kills: time without a response, median {:?}, longest {:?}", pauses[10], pauses[19]);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(deaths.len());
    fresh.assert_only_inside(&deaths);
    kept.assert_only_inside(&deaths);
}

/// Each worker is killed as soon as it starts: the backoff before a start grows, and finally one serves.
#[test]
fn service_recovers_after_kills_at_start() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    for _ in 0..6 {
        let worker = busy.outrigger.worker();
        send_signal(worker, Signal::KILL);
        until(PATIENCE, "it has exited", || !is_alive(worker));
    }
    until(BACK, "a worker is ready", || busy.outrigger.status_of("/ready") == 200);
    busy.await_service(BACK);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(6);
    for met in [fresh, kept] {
        assert!(!met.failures.iter().any(|failure| failure.refused), "{:#?}", met.failures);
    }
}

/// Guarantee: invalid-reload-changes-nothing
#[test]
fn a_crash_with_invalid_config_serves_last_good() {
    let scene = Scene::new();
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 7s } }\nlogs: { sources: { app: { stdio: {} } }, sinks: { a: { blackhole: {} } } }\n";
    let script = "trap 'exit 6' TERM; while :; do echo line; sleep 0.05; done";
    let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    scene.write("outrigger.yaml", configuration(&scene, &body.replace("blackhole", "black_hole")));
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    assert!(
        outrigger.stderr.contains("did you mean `blackhole`"),
        "the error is reported: {}",
        outrigger.stderr.text()
    );
    assert!(outrigger.get("/config").text().contains("blackhole"), "the last good configuration is served");
    assert_eq!(outrigger.app(), app);

    let (worker, good) = (outrigger.worker(), body.replace("drain_timeout: 1s", "drain_timeout: 2s"));
    scene.write("outrigger.yaml", configuration(&scene, &good));
    until(PATIENCE, "a fixed file is served", || {
        outrigger.find_worker().is_some_and(|pid| pid != worker) && outrigger.get_quietly("/config").contains("2s")
    });
    assert_eq!(outrigger.finish().code, 6);
}

#[test]
fn fifty_workers_leak_nothing_in_the_supervisor() {
    let scene = Scene::new();
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 7s } }\nlogs: { sources: { app: { stdio: {} } }, sinks: { a: { blackhole: {} } } }\n";
    let script = "trap 'exit 6' TERM; while :; do sleep 0.05; done";
    let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
    let app = outrigger.app();
    let kill = || {
        let worker = outrigger.worker();
        let killed = Instant::now();
        send_signal(worker, Signal::KILL);
        outrigger.await_other(worker, PATIENCE);
        until(PATIENCE, "the restart backoff is reset", || killed.elapsed() > CALM);
    };
    // The first few workers allocate what is allocated once.
    (0..3).for_each(|_| kill());
    let supervisor = outrigger.pid();
    let before = (anonymous_kib(supervisor), descriptors(supervisor));
    (0..47).for_each(|_| kill());
    let after = (anonymous_kib(supervisor), descriptors(supervisor));
    eprintln!("supervisor: {before:?} KiB and descriptors before, {after:?} after");
    assert!(after.0 <= before.0 + GROWTH_KIB, "resident KiB: {before:?}, then {after:?}");
    assert_eq!(after.1, before.1, "descriptors");
    until(PATIENCE, "no zombie", || children(supervisor).iter().all(|child| child.state != 'Z'));
    assert_eq!(outrigger.app(), app);
    assert_eq!(outrigger.finish().code, 6);
}

/// Pages that the kernel counts late; a leak of one page for each worker would be 188.
const GROWTH_KIB: u64 = 100;

/// A crash of the app is reported and persisted even if the worker hangs at that time, or has crashed too.
/// Guarantee: app-crash-recorded
#[test]
fn app_crash_without_a_worker_is_reported() {
    let stop = "stop: { drain_timeout: 1s, grace_period: 1s, timeout: 3s }";
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, &format!("app: {{ {stop} }}\n"), &["sleep", "300"]);
    send_signal(outrigger.worker(), Signal::STOP);
    send_signal(outrigger.app(), Signal::SEGV);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 139);
    assert!(exit.stderr.contains("app exited with code 139, killed by signal 11"), "{}", exit.stderr);

    let scene = Scene::new();
    let body = format!("app: {{ {stop}, restart: {{ policy: on_failure, backoff: 10ms }} }}\n");
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    send_signal(worker, Signal::KILL);
    send_signal(app, Signal::SEGV);
    until(PATIENCE, "the next worker reports both", || {
        let boxes = scene.black_boxes();
        ["worker", "app"].iter().all(|who| boxes.iter().any(|text| text["process"] == *who))
    });
    until(PATIENCE, "the app runs again", || {
        children(outrigger.pid()).iter().any(|child| child.name == "sleep" && child.pid != app)
    });
    assert_eq!(outrigger.finish().code, 143);
}
