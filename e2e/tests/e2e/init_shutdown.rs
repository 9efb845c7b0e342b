//! Dapr's and scuttle's scenarios of an end: what is in flight when a stop comes, what still works meanwhile, which deadline
//! holds, and whose code we exit with. Requests and signals come in; answers, order and times go out. Bounded by the deadlines
//! that each configuration sets.

use std::net::TcpStream;
use std::time::Instant;

use crate::harness::process::{Signal, is_pending, send_signal};
use crate::harness::raw_app::answer_ok;
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, fixture, get, python, until,
};

const NO_PYTHON: &str = "python3 is not installed";

/// The server of the fixture behind our inbound listener `@front@`, with an outbound listener `@out@` to `@back@`.
struct Served {
    scene: Scene,
    outrigger: Outrigger,
    front: String,
}

fn body(stop: &str, more: &str) -> String {
    format!(
        "app: {{ port: @port@, stop: {{ {stop} }} }}\n\
         proxy:\n  listeners:\n    inbound: {{ listen: \"127.0.0.1:@front@\", direction: inbound, cluster: app }}\n    \
         outbound: {{ listen: \"127.0.0.1:@out@\", direction: outbound, cluster: back }}\n  \
         clusters: {{ back: {{ endpoints: [\"@back@\"] }} }}\n{more}"
    )
}

#[track_caller]
fn serve(back: Option<&str>, stop: &str, more: &str, arguments: &[&str]) -> Option<Served> {
    let python = python()?;
    let scene = Scene::new();
    let front = format!("127.0.0.1:{}", scene.port("front"));
    scene.port("out");
    scene.set("back", back.unwrap_or("127.0.0.1:9"));
    let (port, release, script) = (scene.port("port").to_string(), scene.text_path("release"), fixture("stopping.py"));
    let arguments: Vec<String> = arguments.iter().map(|argument| scene.fill(argument)).collect();
    let mut command = vec![python.as_str(), &script, "--port", &port, "--release", &release];
    command.extend(arguments.iter().map(String::as_str));
    let outrigger = Outrigger::start(&scene, &body(stop, more), &command);
    until(PATIENCE, "the app serves through us", || get(&front, "/fast").is_ok_and(|reply| reply.status == 200));
    Some(Served { scene, outrigger, front })
}

impl Served {
    /// A request that the app has got, and has not answered.
    #[track_caller]
    fn begin(&self, path: &str) -> Wire<TcpStream> {
        let mut wire = Wire::connect(&self.front).expect("the proxy listens");
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n")).expect("the proxy reads");
        until(PATIENCE, "the app got it", || self.outrigger.stdout.contains(&format!("got {path}")));
        wire
    }

    fn release(&self) {
        self.scene.write("release", "");
    }

    fn refuses_connections(&self) -> bool {
        TcpStream::connect(&self.front).is_err()
    }
}

const ROOMY: &str = "drain_timeout: 15s, grace_period: 5s, timeout: 30s";

/// Dapr: graceful invocation. What is in flight is finished, however many; who comes later finds the door shut.
/// covers: attachment 8
#[test]
fn requests_in_flight_are_finished_and_new_ones_find_the_door_shut() {
    let served = need!(serve(None, ROOMY, "", &[]), NO_PYTHON);
    let mut flying: Vec<_> = (0..5).map(|number| served.begin(&format!("/held{number}"))).collect();
    served.outrigger.signal(Signal::TERM);
    until(PATIENCE, "we are not ready any more", || served.outrigger.status_of("/ready") == 503);
    until(PATIENCE, "no new connection is taken", || served.refuses_connections());
    assert_eq!(served.outrigger.status_of("/live"), 200, "whoever probes us leaves us in peace");
    assert!(!served.outrigger.stdout.contains("told to stop"), "the app has time for what is in flight");
    served.release();
    for wire in &mut flying {
        let reply = wire.reply("GET").expect("it is answered");
        assert_eq!((reply.status, reply.text().as_str(), reply.body.whole), (200, "all of it", true));
    }
    let exit = served.outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    let (answered, reports) = (exit.stdout.rfind("answered /held"), exit.stdout.find("told to stop"));
    assert!(answered < reports, "first the answers: {}", exit.stdout);
}

/// A connection that stays open between requests is told to close with its answer, or closed when it has nothing to do.
/// covers: attachment 8
#[test]
fn idle_connections_do_not_hold_up_the_drain() {
    let served = need!(serve(None, ROOMY, "", &[]), NO_PYTHON);
    let mut idle = Wire::connect(&served.front).expect("the proxy listens");
    idle.send("GET /fast HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    assert_eq!(idle.reply("GET").expect("it is answered").status, 200);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
    assert_eq!(idle.until_closed().expect("an orderly close").bytes, b"");
}

/// Dapr: graceful timeout. A request without end costs the drain, and nothing after it.
/// covers: attachment 8
#[test]
fn a_request_without_end_is_given_up_when_the_drain_is_over() {
    let served = need!(serve(None, "drain_timeout: 2s, grace_period: 5s, timeout: 15s", "", &[]), NO_PYTHON);
    let mut endless = served.begin("/endless");
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert!(exit.took >= 2 * SECOND && exit.took < 6 * SECOND, "{:?}", exit.took);
    let rest = endless.until_closed().expect("it ends").bytes;
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"), "it is no success");
}

/// Dapr: block. The app is told to stop and calls out through us, as often as it likes; only then do we close.
/// covers: attachment 8
#[test]
fn the_app_calls_out_through_us_while_it_shuts_down() {
    let back = RawApp::start(|_, wire| answer_ok(wire, b"good-bye"));
    let arguments = ["--call", "http://127.0.0.1:@out@/leaving", "--calls", "20"];
    let served = need!(serve(Some(&back.address()), ROOMY, "", &arguments), NO_PYTHON);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert_eq!(exit.stdout.matches("called good-bye").count(), 20, "{}", exit.stdout);
    assert!(!exit.stdout.contains("call failed"), "{}", exit.stdout);
    assert_eq!(back.seen().iter().filter(|seen| seen.head.target() == "/leaving").count(), 20);
}

/// Dapr: block, with the app unhealthy. One that dies while we wait for it is not waited for.
/// covers: attachment 8
#[test]
fn an_app_that_dies_during_the_stop_is_not_waited_for() {
    let served = need!(
        serve(None, "drain_timeout: 1s, grace_period: 60s, timeout: 90s", "", &["--call", "http://127.0.0.1:1/"]),
        NO_PYTHON
    );
    let app = served.outrigger.app();
    served.outrigger.signal(Signal::TERM);
    send_signal(app, Signal::KILL);
    let exit = served.outrigger.wait(PATIENCE);
    assert!([137, 6].contains(&exit.code), "{}: {}", exit.code, exit.stderr);
    assert!(exit.took < 8 * SECOND, "{:?}", exit.took);
}

/// Everything is stuck at once: a request, the app, the receiver. The one deadline holds for all of it.
/// covers: attachment 8
#[test]
fn the_deadline_holds_when_everything_is_stuck() {
    let receiver = LogReceiver::answering(Answer::Hang);
    let more = format!(
        "logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ out: {{ http: {{ url: \"http://{}/lines\" }} }} }} }}\n",
        receiver.address()
    );
    // The call hangs as well: the app would take its own five seconds a hundred times.
    let stuck = RawApp::start(|_, wire| {
        wire.until_closed().map_or(crate::harness::Next::Close, |_| crate::harness::Next::Close)
    });
    let arguments = ["--call", "http://127.0.0.1:@out@/", "--calls", "100"];
    let stop = "drain_timeout: 1s, grace_period: 2s, timeout: 5s";
    let served = need!(serve(Some(&stuck.address()), stop, &more, &arguments), NO_PYTHON);
    let _endless = served.begin("/endless");
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 137, "{}", exit.stderr);
    assert!(exit.took >= 3 * SECOND - SECOND / 10, "drain and grace were kept: {:?}", exit.took);
    assert!(exit.took < 7 * SECOND, "{:?}", exit.took);
}

/// Our own deadline ends a worker that is stopped and answers nobody.
/// covers: attachment 2
/// covers: attachment 8
#[test]
fn the_deadline_holds_when_the_worker_is_stuck() {
    let served = need!(serve(None, "drain_timeout: 1s, grace_period: 2s, timeout: 5s", "", &[]), NO_PYTHON);
    send_signal(served.outrigger.worker(), Signal::STOP);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "the app had its drain, its signal and its code: {}", exit.stderr);
    assert!(exit.took < 7 * SECOND, "{:?}", exit.took);
}

/// scuttle: the code of the app is ours, in a stop as in an end of its own.
/// covers: attachment 8
#[test]
fn the_code_of_a_stopped_app_is_ours() {
    for code in ["0", "1", "77", "255"] {
        let served = need!(serve(None, ROOMY, "", &["--exit-code", code]), NO_PYTHON);
        assert_eq!(served.outrigger.terminate(PATIENCE).code.to_string(), code);
    }
}

/// The app ends by itself in the middle of a request: its client is told, and we end with its code.
/// covers: attachment 8
#[test]
fn an_app_that_ends_by_itself_cuts_what_it_was_asked_and_gives_its_code() {
    let served = need!(serve(None, ROOMY, "", &["--exit-code", "33"]), NO_PYTHON);
    let mut wire = served.begin("/endless");
    send_signal(served.outrigger.app(), Signal::TERM);
    let answer = wire.reply("GET");
    assert!(answer.map_or(true, |reply| reply.status >= 500), "no success is made up");
    let exit = served.outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 33, "{}", exit.stderr);
}

/// A companion drains like a wrapped one: in flight is finished, then it ends with 0.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn a_companion_finishes_what_is_in_flight_and_ends_with_0() {
    let scene = Scene::new();
    let release = scene.path("release");
    let held = release.clone();
    let app = RawApp::start(move |_, wire| {
        until(PATIENCE, "the test releases it", || held.exists());
        answer_ok(wire, b"all of it")
    });
    let front = format!("127.0.0.1:{}", scene.port("front"));
    scene.port("out");
    scene.set("back", app.address());
    scene.set("port", app.address().rsplit(':').next().expect("a port"));
    let outrigger = Outrigger::start(&scene, &body(ROOMY, ""), &[]);
    let mut wire = Wire::connect(&front).expect("the proxy listens");
    wire.send("GET /held HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    until(PATIENCE, "the proxy has connected", || app.connections() > 0);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "not ready", || outrigger.status_of("/ready") == 503);
    until(PATIENCE, "the door is shut", || TcpStream::connect(&front).is_err());
    assert_eq!(outrigger.status_of("/live"), 200);
    std::fs::write(release, "").expect("the scene takes files");
    assert_eq!(wire.reply("GET").expect("it is answered").text(), "all of it");
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// A companion beside an app that is told to stop at the same time still serves the app's calls out until its own drain.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn a_companions_outbound_serves_while_its_inbound_drains() {
    let scene = Scene::new();
    let release = scene.path("release");
    let app = RawApp::start(move |seen, wire| {
        until(PATIENCE, "the test releases it", || seen.head.target() != "/held" || release.exists());
        answer_ok(wire, b"answered")
    });
    let front = format!("127.0.0.1:{}", scene.port("front"));
    let out = format!("127.0.0.1:{}", scene.port("out"));
    scene.set("back", app.address());
    scene.set("port", app.address().rsplit(':').next().expect("a port"));
    let outrigger = Outrigger::start(&scene, &body(ROOMY, ""), &[]);
    let mut wire = Wire::connect(&front).expect("the proxy listens");
    wire.send("GET /held HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    until(PATIENCE, "the app got it", || app.connections() > 0);
    outrigger.signal(Signal::TERM);
    until(PATIENCE, "inbound is shut", || TcpStream::connect(&front).is_err());
    for _ in 0..10 {
        assert_eq!(get(&out, "/leaving").expect("outbound serves").status, 200);
    }
    scene.write("release", "");
    assert_eq!(wire.reply("GET").expect("it is answered").status, 200);
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// A new connection in the very moments of the stop is answered or refused, and never left hanging or cut in its answer.
/// covers: attachment 8
#[test]
fn requests_that_meet_the_stop_are_answered_or_refused() {
    let served = need!(serve(None, ROOMY, "", &[]), NO_PYTHON);
    served.release();
    let front = served.front.clone();
    let asking = std::thread::spawn(move || {
        let (mut answered, mut refused, end) = (0, 0, Instant::now() + PATIENCE);
        while refused < 20 && Instant::now() < end {
            match get(&front, "/fast") {
                Ok(reply) if reply.status == 200 && reply.body.whole => answered += 1,
                // Refused in words, or by the kernel; a reset before the first byte is what a connection in the backlog gets.
                Ok(reply) if reply.status == 503 => refused += 1,
                Ok(reply) => return Err(format!("{} {}", reply.status, reply.text())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(error.to_string()),
                Err(_) => refused += 1,
            }
        }
        Ok((answered, refused))
    });
    until(PATIENCE, "some are answered", || served.outrigger.stdout.text().matches("answered /fast").count() > 50);
    let exit = served.outrigger.terminate(PATIENCE);
    let (answered, refused) = asking.join().expect("it asserts nothing").expect("each was answered or refused");
    assert!(answered > 0 && refused == 20, "{answered} answered, {refused} refused");
    assert_eq!(exit.code, 6, "{}", exit.stderr);
}

/// Who is connected, and waits for the worker to look, when the stop comes is answered like everybody before: in the kernel's queue,
/// and on a connection between two requests.
/// covers: attachment 4
/// covers: attachment 8
#[test]
fn requests_that_wait_for_the_worker_when_the_stop_comes_are_answered() {
    for command in [&["sleep", "300"][..], &[]] {
        let scene = Scene::new();
        let app = RawApp::start(|_, wire| answer_ok(wire, b"in time"));
        let front = format!("127.0.0.1:{}", scene.port("front"));
        scene.port("out");
        scene.set("back", app.address());
        scene.set("port", app.address().rsplit(':').next().expect("a port"));
        let outrigger = Outrigger::start_and(&scene, &body(ROOMY, ""), command, Wait::Ready);
        let get = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";
        let mut wires: Vec<_> = (0..20).map(|_| Wire::connect(&front).expect("the proxy listens")).collect();
        for wire in &mut wires {
            wire.send(get).expect("the proxy reads");
            assert_eq!(wire.reply("GET").expect("it is answered").status, 200);
        }
        let worker = outrigger.worker();
        send_signal(worker, Signal::STOP);
        wires.extend((0..20).map(|_| Wire::connect(&front).expect("the kernel takes it")));
        wires.iter_mut().for_each(|wire| wire.send(get).expect("the kernel takes it"));
        outrigger.signal(Signal::TERM);
        until(PATIENCE, "the supervisor has heard it", || !is_pending(outrigger.pid(), Signal::TERM));
        send_signal(worker, Signal::CONT);
        for (number, wire) in wires.iter_mut().enumerate() {
            let reply = wire.reply("GET").unwrap_or_else(|error| panic!("connection {number}: {error}"));
            assert_eq!((reply.status, reply.text().as_str()), (200, "in time"), "connection {number}");
        }
        outrigger.wait(PATIENCE);
    }
}

/// What the app printed last in its stop is delivered before we end.
/// covers: attachment 8
#[test]
fn the_last_words_of_a_stop_are_delivered() {
    let receiver = LogReceiver::start();
    let more = format!(
        "logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ out: {{ http: {{ url: \"http://{}/lines\" }} }} }} }}\n",
        receiver.address()
    );
    let served = need!(serve(None, ROOMY, &more, &[]), NO_PYTHON);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    let lines = receiver.messages();
    assert!(lines.iter().any(|line| line == "told to stop"), "{lines:?}");
}

/// A stop leaves nothing that would hinder the next start: no port, no lock, no socket that cannot be bound.
/// covers: attachment 8
#[test]
fn a_second_start_right_after_a_stop_finds_everything_free() {
    let scene = Scene::new();
    scene.port("front");
    scene.port("out");
    scene.port("port");
    scene.set("back", "127.0.0.1:9");
    for _ in 0..5 {
        let outrigger = Outrigger::start_and(&scene, &body(ROOMY, ""), &["sleep", "300"], Wait::Started);
        assert_eq!(outrigger.terminate(PATIENCE).code, 143);
    }
}

/// Our own output is a pipe that somebody else fills as well, and nobody reads: we hear and keep every word all the same.
/// covers: attachment 2
/// covers: attachment 8
#[test]
fn an_output_that_is_full_of_others_words_does_not_hold_us_up() {
    let scene = Scene::new();
    let config = scene.write(
        "outrigger.yaml",
        crate::harness::outrigger::configuration(&scene, "app: { stop: { drain_timeout: 1s, grace_period: 1s, timeout: 3s } }\nlogs: { sources: { app: { stdio: {} } }, sinks: { a: { blackhole: {} } } }\n"),
    );
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let shell = "yes other & exec \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", shell, "sh", &crate::harness::outrigger::binary(), "run", "-c"]).arg(config);
    command.args(["--", "yes", "ours"]).stdout(writer);
    let mut child = command.spawn().expect("a shell");
    drop(command);
    let admin = format!("127.0.0.1:{}", scene.value("admin"));
    until(PATIENCE, "it serves", || get(&admin, "/ready").is_ok_and(|reply| reply.status == 200));
    // Room for a few words now and then is what both writers run for.
    let mut words = [0; 2000];
    for _ in 0..2000 {
        std::io::Read::read_exact(&mut reader, &mut words).expect("both write");
    }
    send_signal(child.id(), Signal::TERM);
    let mut ended = None;
    until(PATIENCE, "it ends by its deadline", || {
        ended = child.try_wait().expect("it is our child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(143));
}
