//! Faults of every subsystem, injected into a worker at work: panic, abort, hang, leak, descriptors used up. The app and its lines
//! notice nothing, requests fail only where they were inside a worker that died, and another worker serves. Bounded by `BACK` for
//! faults that end a worker, and by `BACK_FROM_HANG` and `BACK_FROM_STOP` for those that somebody has to notice first.

use std::time::{Duration, Instant};

use crate::harness::busy::{Busy, NO_GIT, descriptors};
use crate::harness::faults;
use crate::harness::load::Death;
use crate::harness::outrigger::{binary, configuration};
use crate::harness::process::{Signal, anonymous_kib, children, is_alive, send_signal};
use crate::harness::{Outrigger, PATIENCE, Scene, until};

/// Another worker serves after this at the latest; it is a matter of a tenth of a second where the machine has time.
const BACK: Duration = Duration::from_secs(20);

/// A thread is hung when it has not moved for four looks of two seconds; its worker has two more seconds to let go, and as many
/// for its last records.
const BACK_FROM_HANG: Duration = Duration::from_secs(45);

/// A whole worker is hung after 10 s and a doubt of 2 s; a machine with other work to do takes longer to find out.
const BACK_FROM_STOP: Duration = Duration::from_secs(75);

/// A worker that served for a second is no part of a row of falls, so that the next one starts at once.
const CALM: Duration = Duration::from_millis(1200);

/// What may fail in the worker that has the fault.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Costs {
    Nothing,
    WhatIsInside,
}

/// Has the fault happen in the worker that serves, and waits until another one does.
#[track_caller]
fn strike(busy: &Busy, fault: &str, back: Duration) -> Death {
    let worker = busy.outrigger.worker();
    let from = Instant::now();
    faults::inject(&busy.scene, fault);
    recover(busy, fault, (worker, from), back)
}

#[track_caller]
fn recover(busy: &Busy, fault: &str, (worker, from): (u32, Instant), back: Duration) -> Death {
    let to = busy.await_next(worker, back);
    busy.await_service(back);
    eprintln!("{fault}: replaced after {:?}, longest time without an answer {:?}", to - from, busy.longest_pause());
    Death { from, to }
}

/// Has the fault happen under load, and holds everything against the promises.
#[track_caller]
fn chaos(busy: Busy, fault: &str, back: Duration, costs: Costs) {
    let death = strike(&busy, fault, back);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(1);
    for met in [fresh, kept] {
        match costs {
            Costs::Nothing => met.assert_none_failed(),
            Costs::WhatIsInside => met.assert_only_inside(&[death]),
        }
    }
}

/// One fault, in a worker of the binary that has them.
macro_rules! with_fault {
    ($fault:literal, $back:ident, $costs:ident) => {
        let binary = need!(faults::binary(), faults::NO_FAULTS);
        chaos(need!(Busy::start(&binary), NO_GIT), $fault, $back, Costs::$costs);
    };
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_panic_of_the_logs_costs_nothing() {
    with_fault!("panic logs", BACK, Nothing);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_panic_of_the_metrics_costs_nothing() {
    with_fault!("panic metrics", BACK, Nothing);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_panic_of_the_sync_costs_nothing() {
    with_fault!("panic sync", BACK, Nothing);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_panic_of_the_proxy_costs_what_is_inside() {
    with_fault!("panic proxy", BACK, WhatIsInside);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_panic_of_the_main_thread_costs_what_is_inside() {
    with_fault!("panic main", BACK, WhatIsInside);
}

/// One thread of the proxy has gone, and the other goes on until both are replaced.
/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_panic_of_one_of_two_threads_of_the_proxy_costs_what_is_inside() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    chaos(need!(Busy::start_with(&binary, 2), NO_GIT), "panic proxy", BACK, Costs::WhatIsInside);
}

/// An abort ends the process whichever of its threads has it, so that one stands for all subsystems.
/// covers: attachment 9
/// covers: attachment 2
#[test]
fn an_abort_costs_what_is_inside() {
    with_fault!("abort", BACK, WhatIsInside);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn hung_logs_are_noticed_and_cost_nothing() {
    with_fault!("hang logs", BACK_FROM_HANG, Nothing);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_hung_proxy_is_noticed_and_costs_what_is_inside() {
    with_fault!("hang proxy", BACK_FROM_HANG, WhatIsInside);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn one_hung_thread_of_two_of_the_proxy_is_noticed_and_costs_what_is_inside() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    chaos(need!(Busy::start_with(&binary, 2), NO_GIT), "hang proxy", BACK_FROM_HANG, Costs::WhatIsInside);
}

/// Metrics, sync and the admin listener have no thread of their own: this hang is theirs too.
/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_hung_main_thread_is_noticed_and_costs_what_is_inside() {
    with_fault!("hang main", BACK_FROM_STOP, WhatIsInside);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_leak_over_the_limit_costs_nothing() {
    with_fault!("leak 200", BACK_FROM_HANG, Nothing);
}

/// Memory has one account for the whole process, so that a leak is the same whoever has it. This one is over before anybody looks:
/// the kernel gives no more.
/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_leak_that_is_quicker_than_the_looks_at_it_costs_what_is_inside() {
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let busy = need!(Busy::start(&binary), NO_GIT);
    let (worker, from) = (busy.outrigger.worker(), Instant::now());
    faults::send(&busy.scene, "leak 2000");
    let death = recover(&busy, "a quick leak", (worker, from), BACK_FROM_HANG);
    let said = busy.outrigger.stderr.text();
    assert!(said.contains("memory allocation of"), "it fell by what the kernel refused: {said}");
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(1);
    fresh.assert_only_inside(&[death]);
    kept.assert_only_inside(&[death]);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn descriptors_used_up_cost_nothing() {
    with_fault!("fds", BACK, Nothing);
}

/// Each worker has the next fault: what one leaves behind must not be the end of another.
/// covers: attachment 9
/// covers: attachment 2
#[test]
fn every_fault_in_turn_in_one_life_of_the_app_costs_what_is_inside() {
    let faults = [
        ("panic logs", BACK, Costs::Nothing),
        ("panic metrics", BACK, Costs::Nothing),
        ("panic sync", BACK, Costs::Nothing),
        ("panic proxy", BACK, Costs::WhatIsInside),
        ("panic main", BACK, Costs::WhatIsInside),
        ("abort", BACK, Costs::WhatIsInside),
        ("fds", BACK, Costs::Nothing),
        ("leak 200", BACK_FROM_HANG, Costs::Nothing),
        ("hang logs", BACK_FROM_HANG, Costs::Nothing),
        ("hang proxy", BACK_FROM_HANG, Costs::WhatIsInside),
        ("hang main", BACK_FROM_STOP, Costs::WhatIsInside),
    ];
    let binary = need!(faults::binary(), faults::NO_FAULTS);
    let busy = need!(Busy::start(&binary), NO_GIT);
    let mut deaths = Vec::new();
    for (fault, back, costs) in faults {
        let death = strike(&busy, fault, back);
        if costs == Costs::WhatIsInside {
            deaths.push(death);
        }
    }
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(faults.len());
    fresh.assert_only_inside(&deaths);
    kept.assert_only_inside(&deaths);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_stopped_worker_is_killed_by_the_watchdog_and_another_serves() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let worker = busy.outrigger.worker();
    let began = Instant::now();
    send_signal(worker, Signal::STOP);
    let gone = busy.await_next(worker, BACK_FROM_STOP);
    busy.await_service(BACK);
    eprintln!("SIGSTOP: replaced after {:?}, longest time without an answer {:?}", gone - began, busy.longest_pause());
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(1);
    let death = Death { from: began, to: gone };
    fresh.assert_only_inside(&[death]);
    kept.assert_only_inside(&[death]);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn twenty_kills_in_a_row_cost_what_is_inside_and_leave_nothing_behind() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let mut pauses = Vec::new();
    let deaths: Vec<Death> = (0..20)
        .map(|_| {
            let death = busy.kill_worker();
            busy.await_service(BACK);
            pauses.push(busy.longest_pause());
            until(PATIENCE, "a worker is calm", || death.to.elapsed() > CALM);
            death
        })
        .collect();
    pauses.sort_unstable();
    eprintln!("20 kills: time without an answer, median {:?}, longest {:?}", pauses[10], pauses[19]);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(deaths.len());
    fresh.assert_only_inside(&deaths);
    kept.assert_only_inside(&deaths);
}

/// Killed as soon as there is one, again and again: the pause before a start grows, and the end is service.
/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_worker_that_is_killed_as_soon_as_it_is_there_comes_back_in_the_end() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    for _ in 0..6 {
        let worker = busy.outrigger.worker();
        send_signal(worker, Signal::KILL);
        until(PATIENCE, "it is dead", || !is_alive(worker));
    }
    until(BACK, "a worker is ready", || busy.outrigger.status_of("/ready") == 200);
    busy.await_service(BACK);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(6);
    for met in [fresh, kept] {
        assert!(!met.failures.iter().any(|failure| failure.refused), "{:#?}", met.failures);
    }
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn a_worker_that_dies_after_the_file_became_wrong_is_followed_by_one_with_the_last_good_text() {
    let scene = Scene::new();
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 7s } }\nlogs: { sources: { app: { stdio: {} } }, sinks: { a: { blackhole: {} } } }\n";
    let script = "trap 'exit 6' TERM; while :; do echo line; sleep 0.05; done";
    let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    scene.write("outrigger.yaml", configuration(&scene, &body.replace("blackhole", "black_hole")));
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    assert!(outrigger.stderr.contains("did you mean `blackhole`"), "the mistake is named: {}", outrigger.stderr.text());
    assert!(outrigger.get("/config").text().contains("blackhole"), "the last good one serves");
    assert_eq!(outrigger.app(), app);

    let (worker, good) = (outrigger.worker(), body.replace("drain_timeout: 1s", "drain_timeout: 2s"));
    scene.write("outrigger.yaml", configuration(&scene, &good));
    until(PATIENCE, "a file that was mended is served", || {
        outrigger.find_worker().is_some_and(|pid| pid != worker) && outrigger.get_quietly("/config").contains("2s")
    });
    assert_eq!(outrigger.finish().code, 6);
}

/// covers: attachment 9
/// covers: attachment 2
#[test]
fn fifty_workers_later_the_supervisor_is_as_large_as_before() {
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
        until(PATIENCE, "it is calm", || killed.elapsed() > CALM);
    };
    // The first few fill what is filled once.
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

/// A crash of the app is told and kept even where the worker hangs at that moment, or has fallen with it.
/// covers: attachment 1
/// covers: attachment 2
#[test]
fn an_app_that_crashes_while_there_is_no_worker_is_reported_all_the_same() {
    let stop = "stop: { drain_timeout: 1s, grace_period: 1s, timeout: 3s }";
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, &format!("app: {{ {stop} }}\n"), &["sleep", "300"]);
    send_signal(outrigger.worker(), Signal::STOP);
    send_signal(outrigger.app(), Signal::SEGV);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 139);
    assert!(exit.stderr.contains("app exited with code 139 (signal 11)"), "{}", exit.stderr);

    let scene = Scene::new();
    let body = format!("app: {{ {stop}, restart: {{ policy: on_failure, backoff: 10ms }} }}\n");
    let outrigger = Outrigger::start(&scene, &body, &["sleep", "300"]);
    let (worker, app) = (outrigger.worker(), outrigger.app());
    send_signal(worker, Signal::KILL);
    send_signal(app, Signal::SEGV);
    until(PATIENCE, "the next worker tells of both", || {
        let boxes = scene.black_boxes();
        ["worker", "app"].iter().all(|who| boxes.iter().any(|text| text["process"] == *who))
    });
    until(PATIENCE, "the app runs again", || {
        children(outrigger.pid()).iter().any(|child| child.name == "sleep" && child.pid != app)
    });
    assert_eq!(outrigger.finish().code, 143);
}
