//! Upgrades of the binary under load: nothing is refused, lost or visible to the app, and a binary that cannot take over is
//! abandoned. In: copies of the product, and faulty scripts. Bounded by the harness's `PATIENCE`, and by the 20 s that a new
//! worker has to become ready.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::harness::busy::{BODY, Busy, NO_GIT, descriptors, executable};
use crate::harness::load::{BIG, Death, fetch, joined, upload};
use crate::harness::outrigger::{binary, configuration, upgrade, upgrade_at};
use crate::harness::process::{Running, Signal, anonymous_kib, children, is_alive, send_signal};
use crate::harness::{Answer, Outrigger, PATIENCE, SECOND, Scene, Wait, example, get, number_after, until, within};

/// As in `BODY`.
const ADMIN: &str = "admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/run/admin.sock\" }\n";

/// The product under another name.
fn copy(scene: &Scene, name: &str) -> String {
    scene.program(&format!("bin/{name}"), binary()).display().to_string()
}

fn script(scene: &Scene, name: &str, text: &str) -> String {
    scene.script(&format!("bin/{name}"), text).display().to_string()
}

/// The product, started with a delay of two seconds.
fn late(scene: &Scene) -> String {
    script(scene, "late", &format!("#!/bin/sh\nsleep 2\nexec {} \"$@\"\n", copy(scene, "next")))
}

fn upgrade_in_background(busy: &Busy, to: String) -> JoinHandle<(i32, String)> {
    let socket = busy.scene.text_path("run/admin.sock");
    std::thread::spawn(move || upgrade_at(&socket, Some(&to)))
}

/// The supervisor and its only worker run this binary; the process IDs of the supervisor and of the app are unchanged.
#[track_caller]
fn await_binary(outrigger: &Outrigger, app: u32, path: &str) {
    until(PATIENCE, "the supervisor runs the new binary", || executable(outrigger.pid()) == path);
    until(PATIENCE, "only the new worker remains", || {
        let workers: Vec<_> = children(outrigger.pid()).into_iter().filter(|child| child.pid != app).collect();
        workers.len() == 1 && workers.iter().all(|worker| executable(worker.pid) == path)
    });
    assert!(outrigger.find_worker().is_some(), "the process name is a worker's: {:?}", children(outrigger.pid()));
    assert!(is_alive(app));
    assert_eq!(outrigger.app(), app, "the app is the same process and still a child");
}

/// Guarantee: upgrade-costs-nothing
#[test]
fn an_upgrade_completes_requests_in_flight() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let paths = [None, Some(copy(&busy.scene, "next"))];
    for path in paths {
        let requests = [(&busy.front, "/slow"), (&busy.front, "/big"), (&busy.way, "/slow")];
        let in_flight = requests.map(|(address, target)| fetch(address.clone(), target));
        let sent = upload(busy.front.clone());
        busy.fresh.await_more(100, PATIENCE);
        let began = Instant::now();
        let (code, output) = upgrade(&busy.scene, path.as_deref());
        assert_eq!(code, 0, "{output}");
        let took = began.elapsed();
        busy.await_service(PATIENCE);
        let [slow, big, outbound] = in_flight.map(|request| joined(request, "a request in flight"));
        assert_eq!((slow, outbound), ((200, true, 4), (200, true, 4)));
        assert_eq!(big, (200, true, BIG));
        assert_eq!(joined(sent, "the upload"), BIG.to_string());
        await_binary(&busy.outrigger, busy.app, &path.unwrap_or_else(binary));
        eprintln!("upgrade: ready after {took:?}, longest time without a response {:?}", busy.longest_pause());
    }
    busy.outrigger.signal(Signal::USR1);
    until(PATIENCE, "signals still reach the app", || busy.outrigger.stderr.contains("app got SIGUSR1"));
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(2);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

/// No other request is in flight that would keep the old worker running until then.
#[test]
fn the_old_worker_completes_outbound_requests() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let next = copy(&busy.scene, "next");
    let outbound = fetch(busy.way.clone(), "/slow");
    busy.fresh.await_more(100, PATIENCE);
    let (code, output) = upgrade(&busy.scene, Some(&next));
    assert_eq!(code, 0, "{output}");
    assert_eq!(joined(outbound, "the app's own request"), (200, true, 4));
    await_binary(&busy.outrigger, busy.app, &next);
    let (fresh, kept) = busy.finish(1);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

/// Guarantee: upgrade-costs-nothing
#[test]
fn fifty_upgrades_lose_and_leak_nothing() {
    let busy = need!(Busy::start_with(&binary(), 2), NO_GIT);
    let paths = [copy(&busy.scene, "even"), copy(&busy.scene, "odd")];
    let (mut pauses, mut before) = (Vec::new(), (0, 0));
    for (number, path) in (0..50).map(|number| (number, &paths[number % 2])) {
        let (code, output) = upgrade(&busy.scene, Some(path));
        assert_eq!(code, 0, "upgrade {number}: {output}");
        await_binary(&busy.outrigger, busy.app, path);
        pauses.push(busy.longest_pause());
        if number == 3 {
            before = (anonymous_kib(busy.outrigger.pid()), descriptors(busy.outrigger.pid()));
        }
    }
    // A descriptor of the last handover may still be open for a moment.
    within(PATIENCE, || descriptors(busy.outrigger.pid()) <= before.1);
    let after = (anonymous_kib(busy.outrigger.pid()), descriptors(busy.outrigger.pid()));
    pauses.sort_unstable();
    eprintln!("50 upgrades: time without a response, median {:?}, longest {:?}", pauses[25], pauses[49]);
    eprintln!("supervisor: {before:?} KiB and file descriptors before, {after:?} after");
    assert!(after.0 <= before.0 + GROWTH_KIB && after.1 <= before.1, "{before:?}, then {after:?}");
    busy.await_service(PATIENCE);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(50);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

/// A process that re-executes itself starts with fresh memory; the difference is what the kernel counts late.
const GROWTH_KIB: u64 = 200;

/// Guarantee: failed-upgrade-keeps-the-old
#[test]
fn a_failed_upgrade_reports_its_reason() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let scene = &busy.scene;
    let plain = scene.write("bin/plain", "not a program\n").display().to_string();
    let cases = [
        (scene.text_path("bin/missing"), "No such file"),
        (plain, "ermission denied"),
        (scene.text_path("bin"), "ermission denied"),
        (script(scene, "wrong", "\u{7f}ELF and nothing else\n"), "format"),
        (script(scene, "ends", "#!/bin/sh\nexit 3\n"), "before it was ready"),
        (script(scene, "ends-well", "#!/bin/sh\nexit 0\n"), "before it was ready"),
        (script(scene, "hangs", "#!/bin/sh\nexec sleep 1000\n"), "not ready within 20 s"),
    ];
    let worker = busy.outrigger.worker();
    for (path, reason) in cases {
        let (code, output) = upgrade(scene, Some(&path));
        assert_eq!(code, 1, "{path}: {output}");
        assert!(output.contains(reason), "{path}: expected the reason `{reason}`, got: {output}");
        assert_eq!(busy.outrigger.find_worker(), Some(worker), "the old worker keeps running");
        assert_eq!(executable(busy.outrigger.pid()), binary());
    }
    busy.await_service(PATIENCE);
    busy.assert_supervisor_is_clean();
    let next = copy(scene, "next");
    let (code, output) = upgrade(scene, Some(&next));
    assert_eq!(code, 0, "a valid binary is accepted afterwards: {output}");
    await_binary(&busy.outrigger, busy.app, &next);
    let (fresh, kept) = busy.finish(1);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

#[test]
fn sigusr2_is_forwarded_unless_sent_to_a_worker() {
    let scene = Scene::new();
    let script = "trap 'echo usr2' USR2; trap 'exit 4' TERM; while :; do sleep 0.05; done";
    let outrigger = Outrigger::start(
        &scene,
        &format!("app: {{ stop: {{ drain_timeout: 1s, grace_period: 2s, timeout: 7s }} }}\n{ADMIN}"),
        &["sh", "-c", script],
    );
    let (worker, app) = (outrigger.worker(), outrigger.app());
    outrigger.signal(Signal::USR2);
    until(PATIENCE, "the app received it", || outrigger.stdout.contains("usr2"));
    assert_eq!(outrigger.worker(), worker);
    send_signal(worker, Signal::USR2);
    until(PATIENCE, "another worker serves", || !is_alive(worker) && outrigger.status_of("/ready") == 200);
    await_binary(&outrigger, app, &binary());
    assert_eq!(outrigger.finish().code, 4);
}

#[test]
fn sigusr2_upgrades_a_companion() {
    let scene = Scene::new();
    scene.port("page");
    let body = "metrics: { sources: { self: { self: {} } }, sinks: { page: { prometheus: { listen: \"127.0.0.1:@page@\" } } } }";
    let body = &format!("{body}\n{ADMIN}");
    let path = copy(&scene, "companion");
    let outrigger = Outrigger::start_binary(&path, &scene, "outrigger.yaml", body, &[], Wait::Ready, |_| {});
    let page = format!("127.0.0.1:{}", scene.value("page"));
    let worker = outrigger.worker();
    // The file is replaced by rename, as package managers do, so that the path has another file afterwards.
    let newer = copy(&scene, "newer");
    std::fs::rename(&newer, &path).expect("both are in one directory");
    outrigger.signal(Signal::USR2);
    until(PATIENCE, "another worker responds", || {
        assert_eq!(get(&page, "/metrics").map(|reply| reply.status).ok(), Some(200), "/metrics always responds");
        !is_alive(worker)
    });
    until(PATIENCE, "the supervisor runs the new file", || executable(outrigger.pid()) == path);
    until(PATIENCE, "ready", || outrigger.status_of("/ready") == 200);
    assert_eq!(outrigger.finish().code, 0);
}

/// A file that a compromised worker wrote must not become the program that starts all workers.
/// Guarantee: failed-upgrade-keeps-the-old
#[test]
fn a_binary_writable_by_a_worker_is_rejected() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, ADMIN, &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"]);
    let (worker, inside) = (outrigger.worker(), scene.program("state/next", binary()));
    let link = scene.path("link");
    std::os::unix::fs::symlink(&inside, &link).expect("the scene is writable");
    for path in [inside, link] {
        let (code, output) = upgrade(&scene, Some(&path.display().to_string()));
        assert_eq!((code, output.contains("binary rejected")), (1, true), "{}: {output}", path.display());
        assert_eq!(outrigger.find_worker(), Some(worker), "the old worker keeps running");
    }
    assert_eq!(outrigger.finish().code, 3);
}

/// Guarantee: reload-fails-no-request
#[test]
fn ten_reloads_under_load_fail_no_request() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    for number in 0..10 {
        let worker = busy.outrigger.worker();
        let changed = BODY.replace("drain_timeout: 5s", &format!("drain_timeout: 5{number}00ms"));
        busy.scene.write("outrigger.yaml", configuration(&busy.scene, &changed));
        busy.await_next(worker, PATIENCE);
        busy.await_service(PATIENCE);
    }
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(10);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

#[test]
fn a_stop_during_an_upgrade_wins() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let pending = upgrade_in_background(&busy, late(&busy.scene));
    until(PATIENCE, "the new worker runs and is not ready", || children(busy.outrigger.pid()).len() == 3);
    // Exits by SIGTERM, and checks all guarantees.
    let (fresh, kept) = busy.finish(1);
    fresh.assert_none_failed();
    kept.assert_none_failed();
    let (code, output) = joined(pending, "the command exits");
    assert_eq!(code, 1, "{output}");
}

/// The previous worker still drains a slow request, and has released everything else.
#[test]
fn a_new_worker_killed_immediately_is_replaced() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let next = copy(&busy.scene, "next");
    let old = busy.outrigger.worker();
    let slow = fetch(busy.front.clone(), "/slow");
    busy.fresh.await_more(100, PATIENCE);
    let (code, output) = upgrade(&busy.scene, Some(&next));
    assert_eq!(code, 0, "{output}");
    let mut workers = children(busy.outrigger.pid()).into_iter().map(|child| child.pid);
    let new = workers.find(|pid| ![old, busy.app].contains(pid)).expect("the new worker");
    let from = Instant::now();
    send_signal(new, Signal::KILL);
    until(PATIENCE, "it has exited", || !is_alive(new));
    let death = Death { from, to: Instant::now() };
    busy.await_service(PATIENCE);
    assert_eq!(joined(slow, "the slow request"), (200, true, 4));
    until(PATIENCE, "ready", || busy.outrigger.status_of("/ready") == 200);
    busy.assert_supervisor_is_clean();
    let (fresh, kept) = busy.finish(2);
    fresh.assert_only_inside(&[death]);
    kept.assert_only_inside(&[death]);
}

#[test]
fn a_second_concurrent_upgrade_is_rejected() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    let worker = busy.outrigger.worker();
    let first = upgrade_in_background(&busy, late(&busy.scene));
    until(PATIENCE, "the new worker runs and is not ready", || children(busy.outrigger.pid()).len() == 3);
    let (code, output) = upgrade(&busy.scene, None);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("already in progress"), "{output}");
    send_signal(worker, Signal::USR2);
    let (code, output) = joined(first, "the first upgrade finishes");
    assert_eq!(code, 0, "{output}");
    await_binary(&busy.outrigger, busy.app, &busy.scene.text_path("bin/next"));
    let (fresh, kept) = busy.finish(1);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

/// Guarantee: upgrade-costs-nothing
#[test]
fn an_upgrade_keeps_lines_for_a_failing_receiver() {
    let busy = need!(Busy::start(&binary()), NO_GIT);
    busy.receiver.answer(Answer::Status(503));
    busy.receiver.wait_for_refused(2, PATIENCE);
    let newest = busy.receiver.newest("n=");
    let next = copy(&busy.scene, "next");
    let (code, output) = upgrade(&busy.scene, Some(&next));
    assert_eq!(code, 0, "{output}");
    await_binary(&busy.outrigger, busy.app, &next);
    busy.receiver.wait_for_refused(busy.receiver.refused() + 1, PATIENCE);
    assert_eq!(busy.receiver.newest("n="), newest, "nothing has arrived in the meantime");
    busy.receiver.answer(Answer::Accept);
    busy.await_service(2 * PATIENCE);
    let (fresh, kept) = busy.finish(1);
    fresh.assert_none_failed();
    kept.assert_none_failed();
}

/// The reader of Outrigger's output does not read for a while, so that output of the app is always pending.
#[test]
fn pending_output_only_delays_the_reexec() {
    let scene = Scene::new();
    let config = scene.write(
        "outrigger.yaml",
        configuration(
            &scene,
            &format!(
                "logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ a: {{ blackhole: {{}} }} }} }}\n{ADMIN}"
            ),
        ),
    );
    let (read, write) = std::io::pipe().expect("a pipe");
    let mut command = Command::new("sh");
    // The shell redirects Outrigger's output to a separate pipe, which this test reads when it needs to.
    command.args(["-c", "exec \"$@\" >&3 3>&-", "sh", &binary(), "run", "-c"]).arg(config);
    command.args(["--", &example("busy_app"), "100000"]);
    let mut running = spawn_with_third(command, write);
    let admin = format!("127.0.0.1:{}", scene.value("admin"));
    until(PATIENCE, "ready", || get(&admin, "/ready").is_ok_and(|reply| reply.status == 200));
    let capacity = rustix::pipe::fcntl_getpipe_size(&read).expect("the size of a pipe") as u64;
    // A write of up to PIPE_BUF bytes is not split (pipe(7)).
    let is_full = || {
        let waiting = rustix::io::ioctl_fionread(&read).expect("FIONREAD works on a pipe");
        waiting + rustix::pipe::PIPE_BUF as u64 > capacity
    };
    until(PATIENCE, "the pipe is full", is_full);
    let next = copy(&scene, "next");
    let worker =
        children(running.pid()).into_iter().find(|child| child.name.starts_with("outrigger")).expect("a worker").pid;
    let (code, output) = upgrade(&scene, Some(&next));
    assert_eq!(code, 0, "{output}");
    until(PATIENCE, "the old worker has exited", || !is_alive(worker));
    assert_eq!(executable(running.pid()), binary(), "output is pending");
    let reader = std::thread::spawn(move || std::io::read_to_string(read).expect("text"));
    until(PATIENCE, "the supervisor re-executes itself", || executable(running.pid()) == next);
    running.signal(Signal::TERM);
    assert_eq!(running.wait(2 * PATIENCE), 5);
    let text = joined(reader, "the output ends");
    let last =
        text.lines().rev().find_map(|line| number_after(line, "app stopping after ")).expect("the app's last line");
    let passed = text.lines().filter_map(|line| number_after(line, "n="));
    assert!(passed.eq(0..last), "every line was forwarded once, in order");
}

/// As `Running::spawn`, with one more file descriptor, which is 3 in the shell.
fn spawn_with_third(command: Command, third: std::io::PipeWriter) -> Running {
    let mut outer = Command::new("sh");
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&third));
    outer.args(["-c", "exec 3>\"$0\"; exec \"$@\"", &path]).arg(command.get_program()).args(command.get_args());
    outer.stdin(Stdio::null());
    let running = Running::spawn(outer);
    until(PATIENCE, "the shell has opened file descriptor 3", || {
        Path::new(&format!("/proc/{}/fd/3", running.pid())).exists()
    });
    running
}

/// Without load, nothing delays the command and its response.
#[test]
fn an_upgrade_without_load_succeeds() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, ADMIN, &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"]);
    let app = outrigger.app();
    let next = copy(&scene, "next");
    let (code, output) = upgrade(&scene, Some(&next));
    assert_eq!(code, 0, "{output}");
    await_binary(&outrigger, app, &next);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 3);
    assert!(exit.took < 10 * SECOND);
}

/// Earlier exits of the app are known to every later worker, and to a supervisor that has re-executed itself.
#[test]
fn app_exits_are_known_after_crash_and_upgrade() {
    let scene = Scene::new();
    let body = format!("app: {{ restart: {{ policy: on_failure, backoff: 10ms }} }}\n{ADMIN}");
    let script = "[ -e \"$0\" ] || { touch \"$0\"; exit 3; }; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let marker = scene.text_path("ran");
    let outrigger = Outrigger::start(&scene, &body, &["sh", "-c", script, &marker]);
    let status = || {
        let status = outrigger.get("/status").json();
        (
            status["app"]["restarts"].as_u64(),
            status["app"]["last_exit"]["code"].as_i64(),
            status["app"]["running"].as_bool(),
        )
    };
    let known = (Some(1), Some(3), Some(true));
    until(PATIENCE, "the app was restarted", || status() == known);
    let (app, worker) = (outrigger.app(), outrigger.worker());
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    assert_eq!(status(), known);
    for name in ["next", "later"] {
        let next = copy(&scene, name);
        let (code, output) = upgrade(&scene, Some(&next));
        assert_eq!(code, 0, "{output}");
        await_binary(&outrigger, app, &next);
        until(PATIENCE, "the new worker serves", || outrigger.status_of("/ready") == 200);
        assert_eq!(status(), known, "{name}");
    }
    let of_the_app = scene.black_boxes().iter().filter(|text| text["process"] == "app").count();
    assert_eq!(of_the_app, 1, "its exit is recorded once");
    assert_eq!(outrigger.finish().code, 0);
}
