//! Control from outside: a script that waits for ready or runs a probe, a stop over the admin socket, and an app in
//! another container whose exit a companion detects. Commands and requests come in; statuses and exit codes go out.
//! Bounded by one short run per case.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::harness::outrigger::{binary, outrigger as command};
use crate::harness::process::{Running, Signal, is_alive, look_up, send_signal};
use crate::harness::wire::Reply;
use crate::harness::{Exit, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, peer, request, until, within};

const STOP: &str = "stop: { drain_timeout: 1s, grace_period: 5s, timeout: 10s }";
const LIVELY: &str = "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done";

/// Sends a request with these header lines to the admin socket.
#[track_caller]
fn over_socket(scene: &Scene, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let stream = UnixStream::connect(scene.path("run/admin.sock")).expect("the socket exists");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a read timeout");
    let mut wire = Wire::new(stream);
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n");
    wire.send(format!("{head}{headers}\r\n{body}")).expect("the server reads");
    wire.reply(method).expect("the server responds")
}

#[track_caller]
fn start_lively(scene: &Scene, more: &str) -> Outrigger {
    let outrigger = Outrigger::start(scene, &format!("app: {{ {STOP} }}\n{more}"), &["sh", "-c", LIVELY]);
    until(PATIENCE, "the app handles signals", || outrigger.stdout.contains("up"));
    outrigger
}

/// The socket was removed, the app got its signal, and Outrigger exited with the app's code.
#[track_caller]
fn exited_gracefully(outrigger: Outrigger) -> Exit {
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    exit
}

/// scuttle: quit endpoints.
#[test]
fn post_on_the_socket_stops_gracefully() {
    for path in ["/stop", "/quitquitquit"] {
        let scene = Scene::new();
        let outrigger = start_lively(&scene, "");
        let reply = over_socket(&scene, "POST", path, "", "");
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        exited_gracefully(outrigger);
    }
}

#[test]
fn post_on_the_socket_stops_a_companion_with_0() {
    for path in ["/stop", "/quitquitquit"] {
        let scene = Scene::new();
        let outrigger = Outrigger::start(&scene, "", &[]);
        assert_eq!(over_socket(&scene, "POST", path, "", "").status, 200, "{path}");
        assert_eq!(outrigger.wait(PATIENCE).code, 0);
    }
}

/// scuttle: malformed quit URLs, seen by the server: an invalid stop request stops nothing.
/// Guarantee: changes-only-by-socket
#[test]
fn only_a_post_on_the_socket_stops_outrigger() {
    let scene = Scene::new();
    let outrigger = start_lively(&scene, "");
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        for path in ["/stop", "/quitquitquit"] {
            let status = over_socket(&scene, method, path, "", "").status;
            assert_eq!(status, 405, "{method} {path}");
        }
    }
    for path in ["/quitquitquit/", "/Stop", "//stop", "/stop%20", "/quit"] {
        let status = over_socket(&scene, "POST", path, "", "").status;
        assert!([400, 404].contains(&status), "{path}: {status}");
    }
    assert_eq!(over_socket(&scene, "POST", "/stop", "", "soon").status, 400, "`soon` is not a duration");
    for path in ["/stop", "/quitquitquit"] {
        let reply = request(&outrigger.admin, "POST", path, &[], b"").expect("the listener responds");
        assert!([403, 404, 405].contains(&reply.status), "TCP is read-only: {path} {}", reply.status);
    }
    assert!(!within(SECOND, || outrigger.status_of("/ready") != 200), "none of the requests had an effect");
    assert_eq!(outrigger.finish().code, 6);
}

#[test]
fn stop_requires_the_token_if_one_is_set() {
    let scene = Scene::new();
    scene.write("token", "correct-horse\n");
    let admin =
        "admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/run/admin.sock\", token: \"${file:@dir@/token}\" }\n";
    let outrigger = start_lively(&scene, admin);
    let wrong = [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Bearer correct-horse-battery\r\n",
        "Authorization: Bearer correct-hors\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer\r\n",
        "Authorization: correct-horse\r\n",
        "Authorization: Basic correct-horse\r\n",
        "X-Authorization: Bearer correct-horse\r\n",
    ];
    for path in ["/stop", "/quitquitquit"] {
        for headers in wrong {
            let reply = over_socket(&scene, "POST", path, headers, "");
            assert_eq!(reply.status, 401, "{path} {headers:?}: {}", reply.text());
            assert!(!reply.text().contains("correct-horse"), "{}", reply.text());
        }
    }
    assert_eq!(outrigger.status_of("/ready"), 200, "none of them stopped Outrigger");
    let reply = over_socket(&scene, "POST", "/quitquitquit", "Authorization: Bearer correct-horse\r\n", "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let exit = exited_gracefully(outrigger);
    assert!(!exit.stderr.contains("correct-horse"), "{}", exit.stderr);
}

#[test]
fn stop_command_waits_for_the_exit() {
    for by_file in [false, true] {
        let scene = Scene::new();
        let outrigger = start_lively(&scene, "");
        let pid = outrigger.pid();
        let (socket, config) = (scene.text_path("run/admin.sock"), scene.text_path("outrigger.yaml"));
        let target = if by_file { ["-c", &config] } else { ["--socket", &socket] };
        let (code, _, stderr) = command(&["stop", target[0], target[1]]);
        assert_eq!(code, 0, "{stderr}");
        until(PATIENCE, "Outrigger exits", || !is_alive(pid));
        exited_gracefully(outrigger);
    }
}

/// A stop with its own timeout takes no longer than that.
#[test]
fn stop_command_respects_its_timeout() {
    let scene = Scene::new();
    let body = "app: { stop: { drain_timeout: 5s, grace_period: 60s, timeout: 90s } }";
    let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let outrigger = Outrigger::start(&scene, body, &["sh", "-c", script]);
    until(PATIENCE, "the app ignores its signal", || outrigger.stdout.contains("up"));
    let began = Instant::now();
    let (code, _, stderr) = command(&["stop", "--socket", &scene.text_path("run/admin.sock"), "--timeout", "2s"]);
    assert!([0, 1].contains(&code), "{stderr}");
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 137, "{}", exit.stderr);
    assert!(began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
}

#[test]
fn stop_command_without_a_valid_token_fails() {
    let scene = Scene::new();
    let (token, wrong) = (scene.write("token", "correct-horse\n"), scene.write("wrong", "battery\n"));
    let admin =
        "admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/run/admin.sock\", token: \"${file:@dir@/token}\" }\n";
    let outrigger = start_lively(&scene, admin);
    let (socket, token, wrong) =
        (scene.text_path("run/admin.sock"), token.display().to_string(), wrong.display().to_string());
    let missing = scene.text_path("no-such-file");
    for refused in [&["stop", "--socket", &socket][..], &["stop", "--socket", &socket, "--token-file", &wrong]] {
        let (code, _, stderr) = command(refused);
        assert_eq!(code, 1, "{refused:?}: {stderr}");
        assert!(stderr.contains("token"), "{refused:?}: {stderr}");
    }
    let (code, _, stderr) = command(&["stop", "--socket", &socket, "--token-file", &missing]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("no-such-file"), "{stderr}");
    assert_eq!(outrigger.status_of("/ready"), 200, "none of them stopped Outrigger");
    let (code, _, stderr) = command(&["stop", "--socket", &socket, "--token-file", &token]);
    assert_eq!(code, 0, "{stderr}");
    exited_gracefully(outrigger);
}

#[test]
fn commands_without_a_server_report_and_exit_1() {
    let scene = Scene::new();
    let socket = scene.text_path("missing.sock");
    for words in [&["stop"][..], &["probe", "live"], &["probe", "ready"]] {
        let (code, _, stderr) = command(&[words, &["--socket", &socket]].concat());
        assert_eq!(code, 1, "{words:?}: {stderr}");
        assert!(stderr.contains("missing.sock"), "{words:?}: {stderr}");
    }
}

fn spawn_command(words: &[&str]) -> Running {
    Running::start(&[&[binary().as_str()], words].concat())
}

/// scuttle: BlockingEnabled, SlowEnvoy. `started` needs no app, `ready` does; a wait that began before Outrigger sees both.
#[test]
fn wait_blocks_until_the_state_and_exits_0() {
    let scene = Scene::new();
    let port = scene.port("port");
    let (url, socket) = (format!("http://127.0.0.1:{}", scene.value("admin")), scene.text_path("run/admin.sock"));
    let mut started = spawn_command(&["wait", "--for", "started", "--timeout", "60s", "--url", &url]);
    let mut ready = spawn_command(&["wait", "--for", "ready", "--timeout", "60s", "--url", &url]);
    let mut by_socket = spawn_command(&["wait", "--for", "ready", "--timeout", "60s", "--socket", &socket]);
    assert!(
        !within(SECOND / 2, || started.ended().is_some()),
        "Outrigger is not running yet: {}",
        started.stderr.text()
    );
    let outrigger = Outrigger::start_and(&scene, "app: { port: @port@ }", &[], Wait::Started);
    assert_eq!(started.wait(PATIENCE), 0, "{}", started.stderr.text());
    assert!(!within(SECOND / 2, || ready.ended().is_some()), "the app is not up yet: {}", ready.stderr.text());
    let app = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    assert_eq!(ready.wait(PATIENCE), 0, "{}", ready.stderr.text());
    assert_eq!(by_socket.wait(PATIENCE), 0, "{}", by_socket.stderr.text());
    outrigger.finish();
    drop(app);
}

/// As scuttle does: wait, then exec the app, whose exit code is returned; after a timeout the app is not started.
#[test]
fn wait_execs_the_given_command() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &[]);
    let url = format!("http://{}", outrigger.admin);
    let app = ["--", "sh", "-c", "echo it runs as $PPID; exit 9"];
    let (code, stdout, stderr) = command(&[&["wait", "--url", &url][..], &app].concat());
    assert_eq!((code, stdout.as_str()), (9, format!("it runs as {}\n", std::process::id()).as_str()), "{stderr}");
    outrigger.finish();
    let (code, stdout, stderr) = command(&[&["wait", "--timeout", "1s", "--url", &url][..], &app].concat());
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
}

/// scuttle: WaitTillTimeoutForEnvoy. With an Outrigger that is not ready, and with none.
#[test]
fn wait_fails_when_its_timeout_expires() {
    let scene = Scene::new();
    scene.port("port");
    let url = format!("http://127.0.0.1:{}", scene.value("admin"));
    let times_out = |target: &[&str]| {
        let began = Instant::now();
        let words = [&["wait", "--for", "ready", "--timeout", "1s"], target].concat();
        let (code, _, stderr) = command(&words);
        assert_eq!(code, 1, "{words:?}: {stderr}");
        let took = began.elapsed();
        assert!(took >= SECOND && took < 5 * SECOND, "{words:?}: {took:?}");
        assert!(stderr.contains("ready"), "the message contains what it waited for: {stderr}");
    };
    times_out(&["--url", &url]);
    times_out(&["--socket", &scene.text_path("run/admin.sock")]);
    let outrigger = Outrigger::start_and(&scene, "app: { port: @port@ }", &[], Wait::Started);
    times_out(&["--url", &url]);
    times_out(&["-c", &scene.text_path("outrigger.yaml")]);
    outrigger.finish();
}

/// A listener that accepts and never responds is not ready either.
#[test]
fn wait_times_out_on_a_silent_listener() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("the listener is bound"));
    let began = Instant::now();
    let (code, _, stderr) = command(&["wait", "--for", "ready", "--timeout", "1s", "--url", &url]);
    assert_eq!(code, 1, "{stderr}");
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
}

/// A container without a shell probes with the outrigger binary.
#[test]
fn probe_command_exits_with_the_probes_result() {
    let scene = Scene::new();
    scene.port("port");
    let outrigger = Outrigger::start_and(&scene, "app: { port: @port@ }", &[], Wait::Started);
    let probe = |what: &str| command(&["probe", what, "--socket", &scene.text_path("run/admin.sock")]).0;
    assert_eq!((probe("started"), probe("live"), probe("ready")), (0, 0, 1), "the app is not up yet");
    let app = std::net::TcpListener::bind(("127.0.0.1", scene.value("port").parse().expect("a port")))
        .expect("the port is free");
    until(PATIENCE, "ready", || probe("ready") == 0);
    let config = scene.text_path("outrigger.yaml");
    assert_eq!(command(&["probe", "ready", "-c", &config]).0, 0);
    let (code, _, stderr) = command(&["probe", "lively", "-c", &config]);
    assert_eq!(code, 1, "{stderr}");
    outrigger.finish();
    assert_eq!(probe("live"), 1, "Outrigger has exited");
    drop(app);
}

/// Probes from outside: a draining Outrigger is live and not ready, on both listeners.
#[test]
fn draining_outrigger_is_live_and_not_ready() {
    let scene = Scene::new();
    let release = scene.path("release");
    let app = RawApp::start({
        let release = release.clone();
        move |_, wire| {
            until(PATIENCE, "the test releases it", || release.exists());
            crate::harness::raw_app::answer_ok(wire, b"done")
        }
    });
    let (front, probes) = (format!("127.0.0.1:{}", scene.port("front")), format!("127.0.0.1:{}", scene.port("probes")));
    scene.set("port", app.address().rsplit(':').next().expect("a port"));
    let body = "app: { port: @port@, stop: { drain_timeout: 15s, grace_period: 5s, timeout: 30s } }\n\
                proxy: { listeners: { inbound: { listen: \"127.0.0.1:@front@\", direction: inbound, cluster: app } } }\n\
                admin: { listen: \"127.0.0.1:@admin@\", socket: \"@dir@/run/admin.sock\", probes_listen: \"127.0.0.1:@probes@\" }\n";
    let outrigger = Outrigger::start(&scene, body, &[]);
    let get = |path: &str| crate::harness::get(&probes, path).map_or(0, |reply| reply.status);
    assert_eq!((get("/started"), get("/ready"), get("/live"), get("/stop")), (200, 200, 200, 404));
    let mut wire = Wire::connect(&front).expect("the proxy listens");
    wire.send("GET /held HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    until(PATIENCE, "the request is in flight", || app.connections() > 0);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "Outrigger is not ready", || get("/ready") == 503);
    assert_eq!((get("/started"), get("/live")), (200, 200));
    std::fs::write(release, "").expect("the scene is writable");
    assert_eq!(wire.reply("GET").expect("the request gets a response").status, 200);
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// A companion that exits when the app in the other container does; it delivers its remaining lines first.
#[track_caller]
fn start_companion(scene: &Scene, end: &str) -> Outrigger {
    Outrigger::start(scene, &companion(scene, end), &[])
}

fn companion(scene: &Scene, end: &str) -> String {
    scene.write("app.log", "first line\n");
    format!(
        "app: {{ {STOP}, external: {{ {end} }} }}\n\
         logs: {{ sources: {{ files: {{ file: {{ include: [\"@dir@/app.log\"] }} }} }}, \
         sinks: {{ copy: {{ file: {{ path: \"@dir@/copy.log\" }} }} }} }}"
    )
}

/// It exited by itself and delivered everything that was written before the app's exit.
#[track_caller]
fn exited_with_its_lines(scene: &Scene, outrigger: Outrigger) -> Exit {
    let exit = outrigger.wait(PATIENCE);
    let copy = std::fs::read_to_string(scene.path("copy.log")).expect("the sink wrote");
    assert!(copy.contains("first line") && copy.contains("last line"), "{copy}");
    exit
}

/// The app writes its last line and is terminated by a signal, and the companion exits.
#[track_caller]
fn companion_exits_with(mut app: Running, signal: Signal, scene: &Scene, outrigger: Outrigger) {
    write_last_line(scene);
    app.signal(signal);
    app.wait(PATIENCE);
    assert_eq!(exited_with_its_lines(scene, outrigger).code, 0);
}

fn write_last_line(scene: &Scene) {
    scene.write("app.log", "first line\nlast line\n");
}

#[track_caller]
fn keeps_running(outrigger: &Outrigger) {
    assert!(!within(2 * SECOND, || outrigger.status_of("/ready") != 200), "the app runs, and so does the companion");
}

#[test]
fn exit_code_file_stops_a_companion() {
    for text in ["", "0", "0\n"] {
        let scene = Scene::new();
        let outrigger = start_companion(&scene, "exit_code_file: \"@dir@/done\"");
        keeps_running(&outrigger);
        write_last_line(&scene);
        scene.write("done", text);
        assert_eq!(exited_with_its_lines(&scene, outrigger).code, 0, "{text:?}");
    }
}

/// The code in the exit code file is reported; a text that is not a code ends the companion anyway.
#[test]
fn code_in_the_exit_code_file_is_reported() {
    for (text, code) in [("3\n", "3"), ("143", "143"), ("no number at all", "")] {
        let scene = Scene::new();
        let outrigger = start_companion(&scene, "exit_code_file: \"@dir@/done\"");
        write_last_line(&scene);
        scene.write("done", text);
        let exit = exited_with_its_lines(&scene, outrigger);
        let line = exit.stderr.lines().find(|line| line.contains("app exited"));
        let line = line.unwrap_or_else(|| panic!("the exit is in the log: {}", exit.stderr));
        assert!(line.contains(&format!("\"code\":{code}")) || code.is_empty(), "{line}");
    }
}

/// A job can finish before its companion starts: an existing exit code file ends it, or the Pod would never complete.
#[test]
fn existing_exit_code_file_stops_a_companion() {
    let scene = Scene::new();
    scene.write("done", "0");
    let outrigger =
        Outrigger::start_and(&scene, &companion(&scene, "exit_code_file: \"@dir@/done\""), &[], Wait::Nothing);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let copy = std::fs::read_to_string(scene.path("copy.log")).expect("the sink wrote");
    assert!(copy.contains("first line"), "the existing lines are delivered: {copy}");
}

/// A program with its own name that does nothing, in place of the app in the other container.
fn start_named(scene: &Scene, name: &str) -> Option<Running> {
    let copy = scene.program(name, peer("sleep")?);
    Some(Running::start(&[copy.display().to_string(), "300".to_owned()]))
}

/// Guarantee: companion-exits-with-its-app
#[test]
fn exit_of_a_named_process_stops_a_companion() {
    for late in [false, true] {
        let scene = Scene::new();
        let name = format!("e2e-{}", std::process::id());
        let early = (!late).then(|| start_sleep(&scene, &name));
        let outrigger = start_companion(&scene, &format!("process_name: {name}"));
        keeps_running(&outrigger);
        let app = early.unwrap_or_else(|| start_sleep(&scene, &name));
        keeps_running(&outrigger);
        companion_exits_with(app, Signal::KILL, &scene, outrigger);
    }
}

#[track_caller]
fn start_sleep(scene: &Scene, name: &str) -> Running {
    start_named(scene, name).expect("sleep is installed")
}

/// Guarantee: companion-exits-with-its-app
#[test]
fn pid_file_process_exit_stops_a_companion() {
    for late in [false, true] {
        let scene = Scene::new();
        let app = start_sleep(&scene, "app");
        let write =
            || std::fs::write(scene.path("app.pid"), format!("{}\n", app.pid())).expect("the scene is writable");
        if !late {
            write();
        }
        let outrigger = start_companion(&scene, "pid_file: \"@dir@/app.pid\"");
        keeps_running(&outrigger);
        if late {
            write();
            keeps_running(&outrigger);
        }
        companion_exits_with(app, Signal::TERM, &scene, outrigger);
    }
}

/// A stale PID file has the PID of another process; the app's own PID counts once it is written.
#[test]
fn stale_pid_file_stops_no_companion() {
    let scene = Scene::new();
    let (mut unrelated, app) = (start_sleep(&scene, "unrelated"), start_sleep(&scene, "app"));
    let write = |pid: u32| std::fs::write(scene.path("app.pid"), format!("{pid}\n")).expect("the scene is writable");
    write(unrelated.pid());
    let file = std::fs::File::options().write(true).open(scene.path("app.pid")).expect("just written");
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    file.set_modified(before).expect("the file is the test's");
    let outrigger = start_companion(&scene, "pid_file: \"@dir@/app.pid\"");
    unrelated.signal(Signal::TERM);
    unrelated.wait(PATIENCE);
    keeps_running(&outrigger);
    let mut earlier = start_sleep(&scene, "earlier");
    write(earlier.pid());
    until(PATIENCE, "the process is watched", || outrigger.stderr.contains(&format!("\"pid\":{}", earlier.pid())));
    write(app.pid());
    until(PATIENCE, "the app is watched", || outrigger.stderr.contains(&format!("\"pid\":{}", app.pid())));
    earlier.signal(Signal::TERM);
    earlier.wait(PATIENCE);
    keeps_running(&outrigger);
    companion_exits_with(app, Signal::TERM, &scene, outrigger);
}

/// A platform starts the app when `started` returns 200: a store that is down delays it by `app.start.timeout` at most.
#[test]
fn store_outage_delays_started_until_the_timeout() {
    for (then, expected) in [("continue", 200), ("fail", 503)] {
        let scene = Scene::new();
        scene.port("unused");
        let body = format!(
            "app: {{ start: {{ timeout: 1s, on_timeout: {then} }} }}\n\
             sync: {{ settings: {{ store: {{ git: {{ url: \"git://127.0.0.1:@unused@/c.git\" }} }}, publish: {{ symlink: {{ path: \"@dir@/out/settings\" }} }} }} }}\n"
        );
        let outrigger = Outrigger::start_and(&scene, &body, &[], Wait::Nothing);
        until(PATIENCE, "the probe responds", || outrigger.status_of("/live") == 200);
        assert_eq!(outrigger.status_of("/started"), 503);
        let started = within(3 * SECOND, || outrigger.status_of("/started") == 200);
        assert_eq!((started, outrigger.status_of("/started")), (expected == 200, expected), "{then}");
        outrigger.finish();
    }
}

/// In a companion SIGHUP reloads the configuration and SIGUSR2 upgrades the binary; neither ends it.
#[test]
fn companion_handles_sighup_and_sigusr2_itself() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &[]);
    let worker = outrigger.worker();
    outrigger.signal(Signal::HUP);
    until(PATIENCE, "the first worker has exited", || !is_alive(worker));
    until(PATIENCE, "Outrigger is ready again", || outrigger.status_of("/ready") == 200);
    let worker = outrigger.worker();
    outrigger.signal(Signal::USR2);
    until(PATIENCE, "the second worker has exited", || !is_alive(worker));
    until(PATIENCE, "Outrigger is ready again", || outrigger.status_of("/ready") == 200);
    assert_eq!(outrigger.finish().code, 0);
}

/// A companion has two processes as well: a killed worker is replaced.
#[test]
fn a_companions_killed_worker_is_replaced() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &[]);
    let worker = outrigger.worker();
    assert!(look_up(worker).is_some_and(|process| process.name == "outrigger-worke"));
    send_signal(worker, Signal::KILL);
    outrigger.await_other(worker, PATIENCE);
    let exit = outrigger.finish();
    assert_eq!(exit.code, 0);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
}
