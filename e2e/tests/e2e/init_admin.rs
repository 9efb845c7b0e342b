//! How others take part in the life of an app: a script that waits for ready or asks a probe, one that stops us over the
//! socket, and an app in another container whose end a companion sees. Commands and requests come in; exit codes, statuses
//! and ends go out. Bounded by one short run a case.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::harness::outrigger::{binary, outrigger as command};
use crate::harness::process::{Running, Signal, is_alive, look_up, send_signal};
use crate::harness::wire::Reply;
use crate::harness::{Exit, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, peer, request, until, within};

const STOP: &str = "stop: { drain_timeout: 1s, grace_period: 5s, timeout: 10s }";
const LIVELY: &str = "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done";

/// A request on the admin socket, with these header lines.
#[track_caller]
fn over_socket(scene: &Scene, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let stream = UnixStream::connect(scene.path("run/admin.sock")).expect("the socket is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a time-out");
    let mut wire = Wire::new(stream);
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n");
    wire.send(format!("{head}{headers}\r\n{body}")).expect("it reads");
    wire.reply(method).expect("it answers")
}

#[track_caller]
fn start_lively(scene: &Scene, more: &str) -> Outrigger {
    let outrigger = Outrigger::start(scene, &format!("app: {{ {STOP} }}\n{more}"), &["sh", "-c", LIVELY]);
    until(PATIENCE, "the app listens to signals", || outrigger.stdout.contains("up"));
    outrigger
}

/// The socket has gone, the app got its signal, and we ended with its code.
#[track_caller]
fn ended_in_order(outrigger: Outrigger) -> Exit {
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    exit
}

/// scuttle: quit endpoints.
/// covers: attachment 8
#[test]
fn a_post_on_the_socket_stops_us_in_order() {
    for path in ["/stop", "/quitquitquit"] {
        let scene = Scene::new();
        let outrigger = start_lively(&scene, "");
        let reply = over_socket(&scene, "POST", path, "", "");
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        ended_in_order(outrigger);
    }
}

/// covers: attachment 4
/// covers: attachment 8
#[test]
fn a_post_on_the_socket_ends_a_companion_with_0() {
    for path in ["/stop", "/quitquitquit"] {
        let scene = Scene::new();
        let outrigger = Outrigger::start(&scene, "", &[]);
        assert_eq!(over_socket(&scene, "POST", path, "", "").status, 200, "{path}");
        assert_eq!(outrigger.wait(PATIENCE).code, 0);
    }
}

/// scuttle: malformed quit URLs, from the other side: what is no request for an end ends nothing.
/// covers: attachment 6
/// covers: attachment 8
#[test]
fn nothing_but_a_post_on_the_socket_stops_us() {
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
    assert_eq!(over_socket(&scene, "POST", "/stop", "", "soon").status, 400, "that is no time");
    for path in ["/stop", "/quitquitquit"] {
        let reply = request(&outrigger.admin, "POST", path, &[], b"").expect("the listener answers");
        assert!([403, 404, 405].contains(&reply.status), "TCP is read only: {path} {}", reply.status);
    }
    assert!(!within(SECOND, || outrigger.status_of("/ready") != 200), "all of it changed nothing");
    assert_eq!(outrigger.finish().code, 6);
}

/// covers: attachment 6
/// covers: attachment 8
#[test]
fn where_a_token_is_set_a_stop_needs_it() {
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
    assert_eq!(outrigger.status_of("/ready"), 200, "none of them stopped us");
    let reply = over_socket(&scene, "POST", "/quitquitquit", "Authorization: Bearer correct-horse\r\n", "");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let exit = ended_in_order(outrigger);
    assert!(!exit.stderr.contains("correct-horse"), "{}", exit.stderr);
}

/// covers: attachment 8
#[test]
fn the_command_stops_a_running_one_and_waits_for_its_end() {
    for by_file in [false, true] {
        let scene = Scene::new();
        let outrigger = start_lively(&scene, "");
        let pid = outrigger.pid();
        let (socket, config) = (scene.text_path("run/admin.sock"), scene.text_path("outrigger.yaml"));
        let place = if by_file { ["-c", &config] } else { ["--socket", &socket] };
        let (code, _, stderr) = command(&["stop", place[0], place[1]]);
        assert_eq!(code, 0, "{stderr}");
        until(PATIENCE, "it ends", || !is_alive(pid));
        ended_in_order(outrigger);
    }
}

/// A stop with a time of its own is not longer than that.
/// covers: attachment 8
#[test]
fn a_stop_within_a_time_keeps_it() {
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

/// covers: attachment 6
/// covers: attachment 8
#[test]
fn the_command_brings_its_token_or_is_told_that_it_needs_one() {
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
    assert_eq!(outrigger.status_of("/ready"), 200, "none of them stopped us");
    let (code, _, stderr) = command(&["stop", "--socket", &socket, "--token-file", &token]);
    assert_eq!(code, 0, "{stderr}");
    ended_in_order(outrigger);
}

/// covers: attachment 8
#[test]
fn commands_to_nobody_say_so_and_exit_1() {
    let scene = Scene::new();
    let socket = scene.text_path("nobody.sock");
    for words in [&["stop"][..], &["probe", "live"], &["probe", "ready"]] {
        let (code, _, stderr) = command(&[words, &["--socket", &socket]].concat());
        assert_eq!(code, 1, "{words:?}: {stderr}");
        assert!(stderr.contains("nobody.sock"), "{words:?}: {stderr}");
    }
}

fn waiting(words: &[&str]) -> Running {
    Running::start(&[&[binary().as_str()], words].concat())
}

/// scuttle: BlockingEnabled, SlowEnvoy. `started` comes without the app, `ready` with it; a wait that began first sees both.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn wait_blocks_until_it_is_so_and_then_says_yes() {
    let scene = Scene::new();
    let port = scene.port("port");
    let (url, socket) = (format!("http://127.0.0.1:{}", scene.value("admin")), scene.text_path("run/admin.sock"));
    let mut started = waiting(&["wait", "--for", "started", "--timeout", "60s", "--url", &url]);
    let mut ready = waiting(&["wait", "--for", "ready", "--timeout", "60s", "--url", &url]);
    let mut by_socket = waiting(&["wait", "--for", "ready", "--timeout", "60s", "--socket", &socket]);
    assert!(!within(SECOND / 2, || started.ended().is_some()), "nobody is there yet: {}", started.stderr.text());
    let outrigger = Outrigger::start_and(&scene, "app: { port: @port@ }", &[], Wait::Started);
    assert_eq!(started.wait(PATIENCE), 0, "{}", started.stderr.text());
    assert!(!within(SECOND / 2, || ready.ended().is_some()), "the app is not there yet: {}", ready.stderr.text());
    let app = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    assert_eq!(ready.wait(PATIENCE), 0, "{}", ready.stderr.text());
    assert_eq!(by_socket.wait(PATIENCE), 0, "{}", by_socket.stderr.text());
    outrigger.finish();
    drop(app);
}

/// scuttle's own shape: wait, then become the app, whose code is the code; at the time-out the app is not started.
/// covers: attachment 8
#[test]
fn wait_becomes_the_command_that_it_was_given() {
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

/// scuttle: WaitTillTimeoutForEnvoy. With somebody there who is not ready, and with nobody.
/// covers: attachment 8
#[test]
fn wait_gives_up_when_its_time_is_over() {
    let scene = Scene::new();
    scene.port("port");
    let url = format!("http://127.0.0.1:{}", scene.value("admin"));
    let give_up = |place: &[&str]| {
        let began = Instant::now();
        let words = [&["wait", "--for", "ready", "--timeout", "1s"], place].concat();
        let (code, _, stderr) = command(&words);
        assert_eq!(code, 1, "{words:?}: {stderr}");
        let took = began.elapsed();
        assert!(took >= SECOND && took < 5 * SECOND, "{words:?}: {took:?}");
        assert!(stderr.contains("ready"), "what it waited for is named: {stderr}");
    };
    give_up(&["--url", &url]);
    give_up(&["--socket", &scene.text_path("run/admin.sock")]);
    let outrigger = Outrigger::start_and(&scene, "app: { port: @port@ }", &[], Wait::Started);
    give_up(&["--url", &url]);
    give_up(&["-c", &scene.text_path("outrigger.yaml")]);
    outrigger.finish();
}

/// One that hangs is not an answer either.
/// covers: attachment 8
#[test]
fn wait_is_not_held_by_one_that_takes_connections_and_says_nothing() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", mute.local_addr().expect("it is bound"));
    let began = Instant::now();
    let (code, _, stderr) = command(&["wait", "--for", "ready", "--timeout", "1s", "--url", &url]);
    assert_eq!(code, 1, "{stderr}");
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
}

/// A container without a shell asks by our own binary.
/// covers: attachment 8
#[test]
fn probe_says_by_its_code_what_the_probes_say() {
    let scene = Scene::new();
    scene.port("port");
    let outrigger = Outrigger::start_and(&scene, "app: { port: @port@ }", &[], Wait::Started);
    let probe = |what: &str| command(&["probe", what, "--socket", &scene.text_path("run/admin.sock")]).0;
    assert_eq!((probe("started"), probe("live"), probe("ready")), (0, 0, 1), "the app is not there yet");
    let app =
        std::net::TcpListener::bind(("127.0.0.1", scene.value("port").parse().expect("a port"))).expect("it is free");
    until(PATIENCE, "ready", || probe("ready") == 0);
    let config = scene.text_path("outrigger.yaml");
    assert_eq!(command(&["probe", "ready", "-c", &config]).0, 0);
    let (code, _, stderr) = command(&["probe", "lively", "-c", &config]);
    assert_eq!(code, 1, "{stderr}");
    outrigger.finish();
    assert_eq!(probe("live"), 1, "nobody is left");
    drop(app);
}

/// Probes from outside: while we drain we are alive and not ready, on both listeners.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn probes_tell_a_drain_from_a_death() {
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
    until(PATIENCE, "it is in flight", || app.connections() > 0);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "not ready", || get("/ready") == 503);
    assert_eq!((get("/started"), get("/live")), (200, 200));
    std::fs::write(release, "").expect("the scene takes files");
    assert_eq!(wire.reply("GET").expect("it is answered").status, 200);
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// A companion that ends when the app in the other container does; what it still has is delivered first.
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

/// It has ended by itself, with all that was written before the app's end.
#[track_caller]
fn ended_with_its_lines(scene: &Scene, outrigger: Outrigger) -> Exit {
    let exit = outrigger.wait(PATIENCE);
    let copy = std::fs::read_to_string(scene.path("copy.log")).expect("the sink wrote");
    assert!(copy.contains("first line") && copy.contains("last line"), "{copy}");
    exit
}

/// The app writes its last line and is ended by a signal, and so ends the companion.
#[track_caller]
fn ends_with(mut app: Running, signal: Signal, scene: &Scene, outrigger: Outrigger) {
    write_last_line(scene);
    app.signal(signal);
    app.wait(PATIENCE);
    assert_eq!(ended_with_its_lines(scene, outrigger).code, 0);
}

fn write_last_line(scene: &Scene) {
    scene.write("app.log", "first line\nlast line\n");
}

#[track_caller]
fn goes_on(outrigger: &Outrigger) {
    assert!(!within(2 * SECOND, || outrigger.status_of("/ready") != 200), "the app runs, and so does the companion");
}

/// covers: attachment 4
/// covers: attachment 8
#[test]
fn a_tombstone_ends_a_companion() {
    for text in ["", "0", "0\n"] {
        let scene = Scene::new();
        let outrigger = start_companion(&scene, "exit_code_file: \"@dir@/done\"");
        goes_on(&outrigger);
        write_last_line(&scene);
        scene.write("done", text);
        assert_eq!(ended_with_its_lines(&scene, outrigger).code, 0, "{text:?}");
    }
}

/// The code in a tombstone is told; what is no code ends us all the same.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn the_code_in_a_tombstone_is_told() {
    for (text, reports) in [("3\n", "3"), ("143", "143"), ("no number at all", "")] {
        let scene = Scene::new();
        let outrigger = start_companion(&scene, "exit_code_file: \"@dir@/done\"");
        write_last_line(&scene);
        scene.write("done", text);
        let exit = ended_with_its_lines(&scene, outrigger);
        let line = exit.stderr.lines().find(|line| line.contains("app exited"));
        let line = line.unwrap_or_else(|| panic!("its end is in the log: {}", exit.stderr));
        assert!(line.contains(&format!("\"code\":{reports}")) || reports.is_empty(), "{line}");
    }
}

/// A job can be over before we have begun: a tombstone that is there already ends us, or the Pod would never complete.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn a_tombstone_that_was_there_first_ends_a_companion_at_once() {
    let scene = Scene::new();
    scene.write("done", "0");
    let outrigger =
        Outrigger::start_and(&scene, &companion(&scene, "exit_code_file: \"@dir@/done\""), &[], Wait::Nothing);
    let exit = outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let copy = std::fs::read_to_string(scene.path("copy.log")).expect("the sink wrote");
    assert!(copy.contains("first line"), "what there is to deliver is delivered: {copy}");
}

/// A program with a name of its own that does nothing, as the app in the other container.
fn start_named(scene: &Scene, name: &str) -> Option<Running> {
    let copy = scene.program(name, peer("sleep")?);
    Some(Running::start(&[copy.display().to_string(), "300".to_owned()]))
}

/// covers: attachment 4
/// covers: attachment 8
#[test]
fn the_end_of_a_named_process_ends_a_companion() {
    for late in [false, true] {
        let scene = Scene::new();
        let name = format!("e2e-{}", std::process::id());
        let early = (!late).then(|| need_sleep(&scene, &name));
        let outrigger = start_companion(&scene, &format!("process_name: {name}"));
        goes_on(&outrigger);
        let app = early.unwrap_or_else(|| need_sleep(&scene, &name));
        goes_on(&outrigger);
        ends_with(app, Signal::KILL, &scene, outrigger);
    }
}

#[track_caller]
fn need_sleep(scene: &Scene, name: &str) -> Running {
    start_named(scene, name).expect("sleep is everywhere")
}

/// covers: attachment 4
/// covers: attachment 8
#[test]
fn the_end_of_the_process_in_a_pid_file_ends_a_companion() {
    for late in [false, true] {
        let scene = Scene::new();
        let app = need_sleep(&scene, "app");
        let write =
            || std::fs::write(scene.path("app.pid"), format!("{}\n", app.pid())).expect("the scene takes files");
        if !late {
            write();
        }
        let outrigger = start_companion(&scene, "pid_file: \"@dir@/app.pid\"");
        goes_on(&outrigger);
        if late {
            write();
            goes_on(&outrigger);
        }
        ends_with(app, Signal::TERM, &scene, outrigger);
    }
}

/// A file of a life before has the number of somebody else; the app's own number, once it is there, is the one that counts.
/// covers: attachment 4
#[test]
fn a_pid_file_of_a_life_before_ends_nobody() {
    let scene = Scene::new();
    let (mut stranger, app) = (need_sleep(&scene, "stranger"), need_sleep(&scene, "app"));
    let write = |pid: u32| std::fs::write(scene.path("app.pid"), format!("{pid}\n")).expect("the scene takes files");
    write(stranger.pid());
    let file = std::fs::File::options().write(true).open(scene.path("app.pid")).expect("just written");
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    file.set_modified(before).expect("it is our file");
    let outrigger = start_companion(&scene, "pid_file: \"@dir@/app.pid\"");
    stranger.signal(Signal::TERM);
    stranger.wait(PATIENCE);
    goes_on(&outrigger);
    let mut earlier = need_sleep(&scene, "earlier");
    write(earlier.pid());
    until(PATIENCE, "it is watched", || outrigger.stderr.contains(&format!("\"pid\":{}", earlier.pid())));
    write(app.pid());
    until(PATIENCE, "the other is watched", || outrigger.stderr.contains(&format!("\"pid\":{}", app.pid())));
    earlier.signal(Signal::TERM);
    earlier.wait(PATIENCE);
    goes_on(&outrigger);
    ends_with(app, Signal::TERM, &scene, outrigger);
}

/// A platform starts the app when `started` says yes: a store that is down holds it up for `app.start.timeout`, and no longer.
/// covers: attachment 4
#[test]
fn a_store_that_is_down_holds_the_app_beside_us_up_for_a_time_and_no_longer() {
    for (then, expected) in [("continue", 200), ("fail", 503)] {
        let scene = Scene::new();
        scene.port("nobody");
        let body = format!(
            "app: {{ start: {{ timeout: 1s, on_timeout: {then} }} }}\n\
             sync: {{ settings: {{ store: {{ git: {{ url: \"git://127.0.0.1:@nobody@/c.git\" }} }}, publish: {{ symlink: {{ path: \"@dir@/out/settings\" }} }} }} }}\n"
        );
        let outrigger = Outrigger::start_and(&scene, &body, &[], Wait::Nothing);
        until(PATIENCE, "it answers", || outrigger.status_of("/live") == 200);
        assert_eq!(outrigger.status_of("/started"), 503);
        let started = within(3 * SECOND, || outrigger.status_of("/started") == 200);
        assert_eq!((started, outrigger.status_of("/started")), (expected == 200, expected), "{then}");
        outrigger.finish();
    }
}

/// In a companion SIGHUP asks for the configuration anew and SIGUSR2 for an upgrade; neither ends it.
/// covers: attachment 4
#[test]
fn a_companion_takes_sighup_and_sigusr2_for_itself() {
    let scene = Scene::new();
    let outrigger = Outrigger::start(&scene, "", &[]);
    let worker = outrigger.worker();
    outrigger.signal(Signal::HUP);
    until(PATIENCE, "the first worker has given way", || !is_alive(worker));
    until(PATIENCE, "ready again", || outrigger.status_of("/ready") == 200);
    let worker = outrigger.worker();
    outrigger.signal(Signal::USR2);
    until(PATIENCE, "the second worker has given way", || !is_alive(worker));
    until(PATIENCE, "ready again", || outrigger.status_of("/ready") == 200);
    assert_eq!(outrigger.finish().code, 0);
}

/// A companion is two processes as well: a killed worker is replaced.
/// covers: attachment 2
/// covers: attachment 4
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
