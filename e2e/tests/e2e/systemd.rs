//! The units of `deploy/systemd` under a real systemd: that it accepts each line, their exposure level, and each notification
//! between systemd and Outrigger: ready, reloading, stopping, the watchdog, and the file descriptor store. In: units and files.
//! Out: properties and responses. Bounded by the units' own timeouts.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::harness::booted::{Booted, NO_SYSTEMD, await_state};
use crate::harness::outrigger::binary;
use crate::harness::process::{Signal, children, run_to_end, send_signal};
use crate::harness::wire::get_over_socket;
use crate::harness::{
    LogReceiver, Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, Wire, assert_counts_up, get, ledger_balances, until,
    workspace,
};

const UNIT: &str = "outrigger.service";

/// The configuration of most scenes: a listener in front of an app, and a log file source.
const BODY: &str = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 10s } }
logs:
  sources: { files: { file: { include: ["/var/log/orders/*.log"], read_from: beginning } } }
  sinks: { out: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 64KiB, max_age: 100ms } } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
admin: { listen: "127.0.0.1:@admin@", socket: /run/outrigger/admin.sock, probes_listen: "127.0.0.1:@probes@" }
"#;

/// Delays the start of the unit's program until the test continues, so that the time between two processes has no race.
const GATE: &str = "[Service]\nExecStartPre=/bin/sh -c 'until [ -e /run/go ]; do sleep 0.05; done'\n";

/// A booted machine with the unit, an upstream app and a receiver.
struct Machine {
    booted: Booted,
    receiver: LogReceiver,
    _app: RawApp,
    scene: Scene,
}

impl Machine {
    /// `None` if systemd cannot be booted. `drop_in` is added to the unit.
    fn boot(drop_in: &str) -> Option<Self> {
        let scene = Scene::new();
        let (receiver, app) = (LogReceiver::start(), RawApp::echoing_targets());
        scene.set("receiver", receiver.address());
        scene.set("port", app.address().rsplit(':').next().expect("an address has a port"));
        for port in ["front", "probes", "second"] {
            scene.port(port);
        }
        scene.write("boot/files/etc/outrigger/outrigger.yaml", scene.fill(BODY));
        scene.write("boot/files/var/log/orders/app.log", "");
        scene.write("boot/files/etc/systemd/e2e/outrigger.service.d/20-scene.conf", drop_in);
        let booted = Booted::start(&scene)?;
        Some(Self { booted, receiver, _app: app, scene })
    }

    fn address(&self, port: &str) -> String {
        format!("127.0.0.1:{}", self.scene.value(port))
    }

    /// Appends numbered lines to the app's log file.
    fn log(&self, numbers: std::ops::Range<usize>) {
        let lines: String = numbers.map(|number| format!("n={number:06}\n")).collect();
        let path = self.booted.path("/var/log/orders/app.log");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("the log file exists");
        file.write_all(lines.as_bytes()).expect("the log file is writable");
    }

    fn echoes(&self, port: &str, target: &str) -> bool {
        get(&self.address(port), target).is_ok_and(|reply| reply.status == 200 && reply.text() == target)
    }

    /// A client connects while no process runs: its connection waits in the backlog of the socket that systemd stores.
    fn request_during(&self, restart: impl FnOnce()) {
        let go = self.booted.path("/run/go");
        std::fs::remove_file(&go).expect("the gate was open");
        let before = self.booted.number(UNIT, "MainPID");
        restart();
        until(PATIENCE, "the next start waits at the gate", || self.booted.show(UNIT, "SubState") == "start-pre");
        assert_ne!(self.booted.number(UNIT, "MainPID"), before, "the old process has exited");
        let mut wire = Wire::connect(&self.address("front")).expect("the socket still listens");
        wire.send("GET /between HTTP/1.1\r\nHost: app\r\n\r\n").expect("the kernel accepts the request");
        std::fs::write(&go, "").expect("the gate can be opened");
        let reply = wire.reply("GET").expect("the next process responds");
        assert_eq!((reply.status, reply.text().as_str()), (200, "/between"));
        await_state(&self.booted, UNIT, "active");
    }
}

/// systemd supports each line of the units, and the programs that they start exist.
#[test]
fn systemd_supports_every_line_of_the_units() {
    let analyze = need_peer!("systemd-analyze");
    let scene = Scene::new();
    for unit in ["outrigger.service", "outrigger@.service"] {
        let text = std::fs::read_to_string(workspace().join("deploy/systemd").join(unit)).expect("the unit exists");
        // Nothing is installed on the machine that runs tests.
        let text = text.replace("/usr/local/bin/outrigger", &binary());
        let path = scene.write(unit, text).display().to_string();
        let (code, stdout, stderr) = run_to_end(&[analyze.as_str(), "verify", "--man=no", &path], PATIENCE);
        // Warnings about other units of this machine do not matter here.
        let relevant: Vec<&str> = stderr.lines().filter(|line| line.contains("outrigger")).collect();
        assert_eq!((code, relevant), (0, Vec::new()), "{stdout}{stderr}");
    }
}

/// The exposure level by `systemd-analyze security`, from 0 to 10: the sidecar unit stays below 2.0, and the wrap-mode unit,
/// which must not restrict what an app could need, below 7.5.
#[test]
fn the_units_have_a_low_exposure_level() {
    let analyze = need_peer!("systemd-analyze");
    let check = |unit: &str, threshold: u32| {
        let path = workspace().join("deploy/systemd").join(unit).display().to_string();
        let threshold = format!("--threshold={threshold}");
        run_to_end(&[analyze.as_str(), "security", "--offline=true", "--no-pager", &threshold, &path], PATIENCE)
    };
    for (unit, threshold) in [("outrigger.service", 20), ("outrigger@.service", 75)] {
        let (code, stdout, stderr) = check(unit, threshold);
        assert_eq!(code, 0, "{unit}: {stdout}{stderr}");
        assert_ne!(check(unit, 5).0, 0, "a strict threshold fails");
    }
}

/// `systemctl start` returns when all listeners are bound; the process has no unneeded privileges; `systemctl stop` delivers the
/// last lines and succeeds.
#[test]
fn start_returns_when_ready_and_stop_is_clean() {
    let machine = need!(Machine::boot(""), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    let started = || get(&machine.address("probes"), "/started").expect("the probes listen already").status;
    // The listeners are bound; the first scan for log files may still run.
    until(PATIENCE, "every subsystem has started", || started() == 200);
    assert_eq!((booted.show(UNIT, "ActiveState"), booted.show(UNIT, "SubState")), ("active".into(), "running".into()));

    let status =
        std::fs::read_to_string(format!("/proc/{}/status", booted.main_process(UNIT))).expect("the process runs");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("none");
    assert_ne!(field("Uid:").split_whitespace().next(), Some("0"), "{status}");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"));

    machine.log(0..500);
    machine.receiver.wait_for(500, PATIENCE);
    until(PATIENCE, "requests are forwarded", || machine.echoes("front", "/one"));
    let socket = booted.path("/run/outrigger/admin.sock");
    assert_eq!(get_over_socket(&socket, "/status").expect("the socket responds").status, 200);
    ledger_balances(&machine.address("admin"));
    machine.log(500..700);
    booted.systemctl(&["stop", UNIT]);
    assert_eq!(booted.ends(), ["success exited 0"]);
    assert_counts_up(&machine.receiver.numbers("n="), 700);
}

/// `systemctl status` shows Outrigger's health.
#[test]
fn the_status_of_the_unit_shows_the_health() {
    let machine = need!(Machine::boot(""), NO_SYSTEMD);
    machine.booted.systemctl(&["start", UNIT]);
    until(PATIENCE, "a status text", || !machine.booted.show(UNIT, "StatusText").is_empty());
}

/// A file with an error fails the start, with the report in the unit's output.
#[test]
fn an_invalid_configuration_fails_the_start() {
    let machine = need!(Machine::boot("[Service]\nRestart=no\n"), NO_SYSTEMD);
    let booted = &machine.booted;
    let config = booted.path("/etc/outrigger/outrigger.yaml");
    std::fs::write(config, "logz: {}\n").expect("the file can be written");
    let (code, _, _) = booted.enter(&["systemctl", "start", UNIT]);
    assert_ne!(code, 0);
    assert_eq!((booted.show(UNIT, "Result"), booted.show(UNIT, "ExecMainStatus")), ("exit-code".into(), "1".into()));
    assert!(booted.report().contains("logz"), "{}", booted.report());
}

/// systemd holds the listening sockets while Outrigger does not run: a connection of that time gets its response.
/// Guarantee: connections-wait-over-a-restart
#[test]
fn a_connection_during_a_restart_is_served() {
    let machine = need!(Machine::boot(GATE), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    until(PATIENCE, "requests are forwarded", || machine.echoes("front", "/one"));
    let stored = booted.number(UNIT, "NFileDescriptorStore");
    assert!(stored >= 3, "the listener, the admin listener and the probes: {stored}");
    machine.request_during(|| booted.systemctl(&["restart", "--no-block", UNIT]));
    until(PATIENCE, "no socket was stored twice", || booted.number(UNIT, "NFileDescriptorStore") == stored);

    let environment = std::fs::read(format!("/proc/{}/environ", booted.main_process(UNIT))).expect("the process runs");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let names = environment.split('\0').find_map(|entry| entry.strip_prefix("LISTEN_FDNAMES=")).unwrap_or("");
    let named = |name: &&str| !name.is_empty() && *name != "stored";
    assert_eq!(names.split(':').filter(named).count() as u64, stored, "each has its own name: {names}");
    for port in ["admin", "probes"] {
        until(PATIENCE, "the other listeners serve", || get(&machine.address(port), "/ready").is_ok());
    }
    let socket = booted.path("/run/outrigger/admin.sock");
    until(PATIENCE, "the admin socket serves", || get_over_socket(&socket, "/status").is_ok());
    ledger_balances(&machine.address("admin"));
}

/// The same if all of Outrigger is killed: systemd restarts it, and no connection is refused.
/// Guarantee: connections-wait-over-a-restart
#[test]
fn a_connection_after_a_crash_is_served() {
    let machine = need!(Machine::boot(GATE), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    until(PATIENCE, "requests are forwarded", || machine.echoes("front", "/one"));
    machine.log(0..300);
    machine.receiver.wait_for(300, PATIENCE);
    machine.request_during(|| send_signal(booted.main_process(UNIT), Signal::KILL));
    assert_eq!(booted.number(UNIT, "NRestarts"), 1);
    machine.log(300..400);
    until(PATIENCE, "the lines after the crash", || machine.receiver.numbers("n=").contains(&399));
    let mut numbers = machine.receiver.numbers("n=");
    // A kill repeats at most the lines in flight.
    numbers.sort_unstable();
    numbers.dedup();
    assert_counts_up(&numbers, 400);
}

/// A running Outrigger notifies the watchdog in time; systemd aborts and restarts a hung one.
#[test]
fn systemd_restarts_the_unit_only_when_it_hangs() {
    let machine = need!(Machine::boot("[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\n"), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    let process = booted.main_process(UNIT);
    let mut pings = vec![booted.number(UNIT, "WatchdogTimestampMonotonic")];
    until(PATIENCE, "five more watchdog notifications", || {
        let last = booted.number(UNIT, "WatchdogTimestampMonotonic");
        if pings.last() != Some(&last) {
            pings.push(last);
        }
        pings.len() > 5
    });
    assert_eq!((booted.main_process(UNIT), booted.number(UNIT, "NRestarts")), (process, 0));
    send_signal(process, Signal::STOP);
    until(PATIENCE, "systemd restarted the unit", || booted.number(UNIT, "NRestarts") == 1);
    assert!(booted.ends()[0].starts_with("watchdog "), "{:?}", booted.ends());
    await_state(booted, UNIT, "active");
    until(PATIENCE, "requests are forwarded", || machine.echoes("front", "/two"));
}

/// `systemctl reload` applies a changed file in the same process.
#[test]
fn a_reload_keeps_the_process() {
    let machine = need!(Machine::boot(""), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    let process = booted.main_process(UNIT);
    let second = "listeners: { second: { listen: \"127.0.0.1:@second@\", direction: inbound, cluster: app }, ";
    let changed = machine.scene.fill(&BODY.replace("listeners: { ", second));
    std::fs::write(booted.path("/etc/outrigger/outrigger.yaml"), changed).expect("the file can be written");
    booted.systemctl(&["reload", UNIT]);
    until(PATIENCE, "the new listener serves", || machine.echoes("second", "/new"));
    until(PATIENCE, "the old listener still serves", || machine.echoes("front", "/old"));
    await_state(booted, UNIT, "active");
    assert_eq!(booted.main_process(UNIT), process);
}

/// The wrap-mode unit: the app is a child of Outrigger with the instance's user, and its exit on SIGTERM counts as success.
#[test]
fn a_wrapped_app_runs_as_the_units_user() {
    let scene = Scene::new();
    let receiver = LogReceiver::start();
    scene.set("receiver", receiver.address());
    let script = "i=0; while [ $i -lt 100 ]; do printf 'n=%06d\\n' $i; i=$((i+1)); done; exec sleep 300";
    scene.write("boot/files/usr/local/bin/orders", format!("#!/bin/sh\n{script}\n"));
    let config = r#"
app: { command: ["/bin/sh", "/usr/local/bin/orders"], stop: { drain_timeout: 1s, grace_period: 2s, timeout: 10s } }
logs: { sources: { app: { stdio: {} } }, sinks: { out: { http: { url: "http://@receiver@/lines" } } } }
admin: { listen: "127.0.0.1:@admin@", socket: /run/outrigger/orders/admin.sock }
"#;
    scene.write("boot/files/etc/outrigger/orders.yaml", scene.fill(config));
    scene.write("boot/files/etc/systemd/e2e/outrigger@orders.service.d/user.conf", "[Service]\nUser=nobody\n");
    let booted = need!(Booted::start(&scene), NO_SYSTEMD);
    let unit = "outrigger@orders.service";
    booted.systemctl(&["start", unit]);
    receiver.wait_for(100, PATIENCE);
    let process = booted.main_process(unit);
    let find = || children(process).into_iter().find(|child| child.name == "sleep");
    until(PATIENCE, "the app is a child of Outrigger", || find().is_some());
    let app = find().expect("just found");
    let environment = std::fs::read(format!("/proc/{}/environ", app.pid)).expect("the app runs");
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"), "the app cannot notify systemd");
    booted.systemctl(&["reload", unit]);
    assert!(find().is_some_and(|found| found.pid == app.pid), "a reload does not restart the app");
    booted.systemctl(&["stop", unit]);
    assert_eq!(booted.ends(), ["success exited 143"]);
    assert_counts_up(&receiver.numbers("n="), 100);
}

/// Notifications follow sd_notify(3), in the right order; this runs also if systemd cannot be booted.
#[test]
fn each_notification_follows_sd_notify() {
    let scene = Scene::new();
    let mut notifications = Notifications::listen(&scene);
    let path = scene.text_path("notify");
    let outrigger = Outrigger::start_with(&scene, "", &[], Wait::Started, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    });
    notifications.next("READY=1");
    outrigger.signal(Signal::HUP);
    let reloading = notifications.next("RELOADING=1");
    // Required since systemd 253, which otherwise cannot distinguish this reload from the previous one.
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading:?}");
    notifications.next("READY=1");
    for _ in 0..4 {
        notifications.next("WATCHDOG=1");
    }
    outrigger.signal(Signal::TERM);
    notifications.next("STOPPING=1");
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
    let received = notifications.received();
    assert!(received.iter().any(|(_, text)| text.contains("STATUS=")), "{received:?}");
    assert_valid(&received);
    let pings = received.iter().filter(|(_, text)| text.contains("WATCHDOG=1"));
    let pings: Vec<Instant> = pings.map(|(at, _)| *at).collect();
    let longest = pings.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(longest.is_some_and(|longest| longest < SECOND), "within WATCHDOG_USEC: {longest:?}");
}

/// systemd silently ignores what it does not support, so the test checks it: each line is an assignment of a known name, each
/// file descriptor has a name that systemd accepts (sd_notify(3): ASCII, no control characters, no colon, at most 255).
#[track_caller]
fn assert_valid(received: &[(Instant, String)]) {
    for line in received.iter().flat_map(|(_, text)| text.lines()) {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("not an assignment: {line:?}"));
        let valid = match name {
            "READY" | "RELOADING" | "STOPPING" | "WATCHDOG" | "FDSTORE" | "FDSTOREREMOVE" => value == "1",
            "FDPOLL" => value == "0",
            "MONOTONIC_USEC" | "MAINPID" => value.parse::<u64>().is_ok(),
            "STATUS" => !value.is_empty(),
            "FDNAME" => {
                let allowed = |byte: u8| (b' '..127).contains(&byte) && byte != b':';
                !value.is_empty() && value.len() <= 255 && value.bytes().all(allowed)
            }
            _ => false,
        };
        assert!(valid, "systemd would ignore {line:?}");
    }
}

/// The service manager's end of the socket, read continuously: the kernel queues only a handful of datagrams for a reader.
struct Notifications {
    received: Arc<Mutex<Vec<(Instant, String)>>>,
    /// Notifications that `next` has consumed.
    seen: usize,
    done: Arc<AtomicBool>,
}

impl Notifications {
    fn listen(scene: &Scene) -> Self {
        let socket = UnixDatagram::bind(scene.path("notify")).expect("a socket in the scene");
        socket.set_read_timeout(Some(SECOND / 10)).expect("a timeout can be set");
        let notifications = Self { received: Arc::default(), seen: 0, done: Arc::default() };
        let (received, done) = (notifications.received.clone(), notifications.done.clone());
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while !done.load(Ordering::SeqCst) {
                let Ok(size) = socket.recv(&mut block) else { continue };
                let text = String::from_utf8_lossy(&block[..size]).into_owned();
                received.lock().expect("no holder panics").push((Instant::now(), text));
            }
        });
        notifications
    }

    fn received(&self) -> Vec<(Instant, String)> {
        self.received.lock().expect("no holder panics").clone()
    }

    /// The next notification with this line.
    #[track_caller]
    fn next(&mut self, line: &str) -> String {
        let mut found = None;
        until(PATIENCE, line, || {
            let received = self.received();
            found = (self.seen..received.len()).find(|index| received[*index].1.lines().any(|have| have == line));
            found.is_some()
        });
        let index = found.expect("just found");
        self.seen = index + 1;
        self.received()[index].1.clone()
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
    }
}
