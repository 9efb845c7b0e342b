//! Dapr's and scuttle's shutdown scenarios: what is in flight when a stop begins, what still works during it, which deadline
//! applies, and which exit code is returned. Requests and signals come in; responses, order and times go out. Bounded by the
//! deadlines that each configuration sets.

use std::net::TcpStream;
use std::time::Instant;

use crate::harness::process::{Signal, is_pending, send_signal};
use crate::harness::raw_app::answer_ok;
use crate::harness::{
    Answer, LogReceiver, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, fixture, get, python, until,
};

const NO_PYTHON: &str = "python3 is not installed";

/// The fixture's server behind the inbound listener `@front@`, with an outbound listener `@out@` to `@back@`.
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
    until(PATIENCE, "the app serves through the proxy", || get(&front, "/fast").is_ok_and(|reply| reply.status == 200));
    Some(Served { scene, outrigger, front })
}

impl Served {
    /// Sends a request and waits until the app has received it.
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

/// Dapr: graceful invocation. All requests in flight are finished; new connections are refused.
/// Guarantee: requests-drained-before-stop-signal
#[test]
fn requests_in_flight_finish_new_are_refused() {
    let served = need!(serve(None, ROOMY, "", &[]), NO_PYTHON);
    let mut in_flight: Vec<_> = (0..5).map(|number| served.begin(&format!("/held{number}"))).collect();
    served.outrigger.signal(Signal::TERM);
    until(PATIENCE, "Outrigger is not ready any more", || served.outrigger.status_of("/ready") == 503);
    until(PATIENCE, "new connections are refused", || served.refuses_connections());
    assert_eq!(served.outrigger.status_of("/live"), 200, "no platform restarts a live Outrigger");
    assert!(!served.outrigger.stdout.contains("got SIGTERM"), "the app gets no signal while requests are in flight");
    served.release();
    for wire in &mut in_flight {
        let reply = wire.reply("GET").expect("the request gets a response");
        assert_eq!((reply.status, reply.text().as_str(), reply.body.whole), (200, "all of it", true));
    }
    let exit = served.outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    let (answered, signalled) = (exit.stdout.rfind("answered /held"), exit.stdout.find("got SIGTERM"));
    assert!(answered < signalled, "responses before the signal: {}", exit.stdout);
}

/// A keep-alive connection gets `Connection: close` with its response, or is closed when it is idle.
#[test]
fn idle_connections_do_not_delay_the_drain() {
    let served = need!(serve(None, ROOMY, "", &[]), NO_PYTHON);
    let mut idle = Wire::connect(&served.front).expect("the proxy listens");
    idle.send("GET /fast HTTP/1.1\r\nHost: app\r\n\r\n").expect("the proxy reads");
    assert_eq!(idle.reply("GET").expect("the request gets a response").status, 200);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert!(exit.took < 5 * SECOND, "{:?}", exit.took);
    assert_eq!(idle.until_closed().expect("a graceful close").bytes, b"");
}

/// Dapr: graceful timeout. An endless request takes the drain timeout, and no time after it.
/// Guarantee: requests-drained-before-stop-signal
#[test]
fn endless_request_is_cut_at_the_drain_timeout() {
    let served = need!(serve(None, "drain_timeout: 2s, grace_period: 5s, timeout: 15s", "", &[]), NO_PYTHON);
    let mut endless = served.begin("/endless");
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert!(exit.took >= 2 * SECOND && exit.took < 6 * SECOND, "{:?}", exit.took);
    let rest = endless.until_closed().expect("the connection closes").bytes;
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"), "the response is not a success");
}

/// Dapr: block. The app gets SIGTERM and calls out through the proxy any number of times; only then does the proxy close.
/// Guarantee: outbound-open-until-app-exit
#[test]
fn outbound_serves_the_app_while_it_shuts_down() {
    let back = RawApp::start(|_, wire| answer_ok(wire, b"good-bye"));
    let arguments = ["--call", "http://127.0.0.1:@out@/leaving", "--calls", "20"];
    let served = need!(serve(Some(&back.address()), ROOMY, "", &arguments), NO_PYTHON);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    assert_eq!(exit.stdout.matches("called good-bye").count(), 20, "{}", exit.stdout);
    assert!(!exit.stdout.contains("call failed"), "{}", exit.stdout);
    assert_eq!(back.seen().iter().filter(|seen| seen.head.target() == "/leaving").count(), 20);
}

/// Dapr: block, with the app unhealthy. An app that exits during its grace period ends the wait.
#[test]
fn app_killed_during_the_stop_ends_the_wait() {
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

/// A request, the app and the receiver hang simultaneously. The one deadline applies to all of them.
/// Guarantee: stop-timeout-holds
#[test]
fn deadline_holds_when_everything_hangs() {
    let receiver = LogReceiver::answering(Answer::Hang);
    let more = format!(
        "logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ out: {{ http: {{ url: \"http://{}/lines\" }} }} }} }}\n",
        receiver.address()
    );
    // The call hangs as well: the app would wait for its own timeout of five seconds a hundred times.
    let hanging = RawApp::start(|_, wire| {
        wire.until_closed().map_or(crate::harness::Next::Close, |_| crate::harness::Next::Close)
    });
    let arguments = ["--call", "http://127.0.0.1:@out@/", "--calls", "100"];
    let stop = "drain_timeout: 1s, grace_period: 2s, timeout: 5s";
    let served = need!(serve(Some(&hanging.address()), stop, &more, &arguments), NO_PYTHON);
    let _endless = served.begin("/endless");
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 137, "{}", exit.stderr);
    assert!(exit.took >= 3 * SECOND - SECOND / 10, "drain and grace were not cut short: {:?}", exit.took);
    assert!(exit.took < 7 * SECOND, "{:?}", exit.took);
}

/// The supervisor's deadline ends a worker that is stopped by SIGSTOP and unresponsive.
/// Guarantee: stop-timeout-holds
#[test]
fn deadline_holds_when_the_worker_hangs() {
    let served = need!(serve(None, "drain_timeout: 1s, grace_period: 2s, timeout: 5s", "", &[]), NO_PYTHON);
    send_signal(served.outrigger.worker(), Signal::STOP);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "the app got its drain and its signal, and its code is returned: {}", exit.stderr);
    assert!(exit.took < 7 * SECOND, "{:?}", exit.took);
}

/// scuttle: Outrigger returns the app's exit code, after a stop as after an exit by itself.
#[test]
fn exit_code_of_a_stopped_app_is_returned() {
    for code in ["0", "1", "77", "255"] {
        let served = need!(serve(None, ROOMY, "", &["--exit-code", code]), NO_PYTHON);
        assert_eq!(served.outrigger.terminate(PATIENCE).code.to_string(), code);
    }
}

/// The app exits by itself in the middle of a request: the client gets an error, and Outrigger returns the app's code.
#[test]
fn app_exit_during_a_request_returns_its_code() {
    let served = need!(serve(None, ROOMY, "", &["--exit-code", "33"]), NO_PYTHON);
    let mut wire = served.begin("/endless");
    send_signal(served.outrigger.app(), Signal::TERM);
    let response = wire.reply("GET");
    assert!(response.map_or(true, |reply| reply.status >= 500), "the client gets no success");
    let exit = served.outrigger.wait(PATIENCE);
    assert_eq!(exit.code, 33, "{}", exit.stderr);
}

/// A companion drains as with a wrapped app: requests in flight are finished, then it exits with 0.
#[test]
fn companion_finishes_requests_and_exits_with_0() {
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
    until(PATIENCE, "Outrigger is not ready", || outrigger.status_of("/ready") == 503);
    until(PATIENCE, "new connections are refused", || TcpStream::connect(&front).is_err());
    assert_eq!(outrigger.status_of("/live"), 200);
    std::fs::write(release, "").expect("the scene is writable");
    assert_eq!(wire.reply("GET").expect("the request gets a response").text(), "all of it");
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// A companion that gets SIGTERM at the same time as its app still serves the app's outgoing calls until its own drain.
/// Guarantee: outbound-open-until-app-exit
#[test]
fn outbound_serves_while_inbound_drains() {
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
    until(PATIENCE, "inbound refuses connections", || TcpStream::connect(&front).is_err());
    for _ in 0..10 {
        assert_eq!(get(&out, "/leaving").expect("outbound responds").status, 200);
    }
    scene.write("release", "");
    assert_eq!(wire.reply("GET").expect("the request gets a response").status, 200);
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// A new connection during the stop gets a response or is refused, and never hangs or gets a truncated response.
#[test]
fn requests_during_a_stop_are_served_or_refused() {
    let served = need!(serve(None, ROOMY, "", &[]), NO_PYTHON);
    served.release();
    let front = served.front.clone();
    let client = std::thread::spawn(move || {
        let (mut answered, mut refused, end) = (0, 0, Instant::now() + PATIENCE);
        while refused < 20 && Instant::now() < end {
            match get(&front, "/fast") {
                Ok(reply) if reply.status == 200 && reply.body.whole => answered += 1,
                // Refused with a response, or by the kernel; a connection in the backlog gets a reset before the first byte.
                Ok(reply) if reply.status == 503 => refused += 1,
                Ok(reply) => return Err(format!("{} {}", reply.status, reply.text())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(error.to_string()),
                Err(_) => refused += 1,
            }
        }
        Ok((answered, refused))
    });
    until(PATIENCE, "some requests have responses", || {
        served.outrigger.stdout.text().matches("answered /fast").count() > 50
    });
    let exit = served.outrigger.terminate(PATIENCE);
    let (answered, refused) =
        client.join().expect("the client does not panic").expect("each got a response or was refused");
    assert!(answered > 0 && refused == 20, "{answered} answered, {refused} refused");
    assert_eq!(exit.code, 6, "{}", exit.stderr);
}

/// Connections that wait for the worker when the stop begins get a response as before: in the kernel's accept queue, and on a
/// keep-alive connection between two requests.
#[test]
fn queued_requests_are_served_during_a_stop() {
    for command in [&["sleep", "300"][..], &[]] {
        let scene = Scene::new();
        let app = RawApp::start(|_, wire| answer_ok(wire, b"in time"));
        let front = format!("127.0.0.1:{}", scene.port("front"));
        scene.port("out");
        scene.set("back", app.address());
        scene.set("port", app.address().rsplit(':').next().expect("a port"));
        let outrigger = Outrigger::start_and(&scene, &body(ROOMY, ""), command, Wait::Ready);
        let request = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";
        let mut wires: Vec<_> = (0..20).map(|_| Wire::connect(&front).expect("the proxy listens")).collect();
        for wire in &mut wires {
            wire.send(request).expect("the proxy reads");
            assert_eq!(wire.reply("GET").expect("the request gets a response").status, 200);
        }
        let worker = outrigger.worker();
        send_signal(worker, Signal::STOP);
        wires.extend((0..20).map(|_| Wire::connect(&front).expect("the kernel accepts it")));
        wires.iter_mut().for_each(|wire| wire.send(request).expect("the kernel accepts it"));
        outrigger.signal(Signal::TERM);
        until(PATIENCE, "the supervisor has received the signal", || !is_pending(outrigger.pid(), Signal::TERM));
        send_signal(worker, Signal::CONT);
        for (number, wire) in wires.iter_mut().enumerate() {
            let reply = wire.reply("GET").unwrap_or_else(|error| panic!("connection {number}: {error}"));
            assert_eq!((reply.status, reply.text().as_str()), (200, "in time"), "connection {number}");
        }
        outrigger.wait(PATIENCE);
    }
}

/// The app's last output during a stop is delivered before Outrigger exits.
/// Guarantee: last-lines-delivered
#[test]
fn last_output_of_a_stop_is_delivered() {
    let receiver = LogReceiver::start();
    let more = format!(
        "logs: {{ sources: {{ app: {{ stdio: {{}} }} }}, sinks: {{ out: {{ http: {{ url: \"http://{}/lines\" }} }} }} }}\n",
        receiver.address()
    );
    let served = need!(serve(None, ROOMY, &more, &[]), NO_PYTHON);
    let exit = served.outrigger.terminate(PATIENCE);
    assert_eq!(exit.code, 6, "{}", exit.stderr);
    let lines = receiver.messages();
    assert!(lines.iter().any(|line| line == "got SIGTERM"), "{lines:?}");
}

/// A stop leaves nothing that blocks the next start: no port in use, no lock, no socket that cannot be bound.
#[test]
fn start_right_after_a_stop_finds_all_free() {
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

/// Outrigger shares its output pipe with another writer, and nothing reads it: signals and lines are still received.
#[test]
fn full_shared_stdout_does_not_delay_a_stop() {
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
    until(PATIENCE, "Outrigger is ready", || get(&admin, "/ready").is_ok_and(|reply| reply.status == 200));
    // Both writers compete for little room in the pipe.
    let mut words = [0; 2000];
    for _ in 0..2000 {
        std::io::Read::read_exact(&mut reader, &mut words).expect("both write");
    }
    send_signal(child.id(), Signal::TERM);
    let mut ended = None;
    until(PATIENCE, "Outrigger exits by its deadline", || {
        ended = child.try_wait().expect("it is the test's child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(143));
}
