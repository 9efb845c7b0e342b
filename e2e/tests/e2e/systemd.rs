//! The units of `deploy/systemd` under a real systemd: what it understands of them, how little they are exposed, and each
//! word that is said between it and us: ready, reloading, stopping, the watchdog, and the sockets that it keeps. Units and
//! files come in, properties and answers go out. Bounded by the units' own time-outs.

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

/// The configuration of most scenes: an app stands behind the listener, and lines come from a file.
const BODY: &str = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 10s } }
logs:
  sources: { files: { file: { include: ["/var/log/orders/*.log"], read_from: beginning } } }
  sinks: { out: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 64KiB, max_age: 100ms } } }
proxy: { listeners: { inbound: { listen: "127.0.0.1:@front@", direction: inbound, cluster: app } } }
admin: { listen: "127.0.0.1:@admin@", socket: /run/outrigger/admin.sock, probes_listen: "127.0.0.1:@probes@" }
"#;

/// Holds back the start of the unit's program for as long as the test wants, so that "in between" has no race.
const GATE: &str = "[Service]\nExecStartPre=/bin/sh -c 'until [ -e /run/go ]; do sleep 0.05; done'\n";

/// A booted machine with the unit, an app behind it and a receiver.
struct Machine {
    booted: Booted,
    receiver: LogReceiver,
    _app: RawApp,
    scene: Scene,
}

impl Machine {
    /// `None` where no systemd can be booted. The drop-in is what this scene adds to the unit.
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
        let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("the log file is there");
        file.write_all(lines.as_bytes()).expect("the log file takes lines");
    }

    fn answers(&self, port: &str, target: &str) -> bool {
        get(&self.address(port), target).is_ok_and(|reply| reply.status == 200 && reply.text() == target)
    }

    /// What a client gets who connects while nobody runs: his connection waits in the socket that systemd keeps.
    fn ask_in_between(&self, restart: impl FnOnce()) {
        let go = self.booted.path("/run/go");
        std::fs::remove_file(&go).expect("the gate was open");
        let before = self.booted.number(UNIT, "MainPID");
        restart();
        until(PATIENCE, "the next start waits at the gate", || self.booted.show(UNIT, "SubState") == "start-pre");
        assert_ne!(self.booted.number(UNIT, "MainPID"), before, "the old process is gone");
        let mut wire = Wire::connect(&self.address("front")).expect("the socket still listens");
        wire.send("GET /between HTTP/1.1\r\nHost: app\r\n\r\n").expect("the kernel takes the request");
        std::fs::write(&go, "").expect("the gate can be opened");
        let reply = wire.reply("GET").expect("the next process answers");
        assert_eq!((reply.status, reply.text().as_str()), (200, "/between"));
        await_state(&self.booted, UNIT, "active");
    }
}

/// Each line of the units is one that systemd knows, and what they start is there.
/// covers: attachment 7
#[test]
fn systemd_understands_every_line_of_the_units() {
    let analyze = need_peer!("systemd-analyze");
    let scene = Scene::new();
    for unit in ["outrigger.service", "outrigger@.service"] {
        let text = std::fs::read_to_string(workspace().join("deploy/systemd").join(unit)).expect("the unit is there");
        // Nothing is installed on the machine that runs tests.
        let text = text.replace("/usr/local/bin/outrigger", &binary());
        let path = scene.write(unit, text).display().to_string();
        let (code, stdout, stderr) = run_to_end(&[analyze.as_str(), "verify", "--man=no", &path], PATIENCE);
        // Words about other units of this machine are not ours to mend.
        let ours: Vec<&str> = stderr.lines().filter(|line| line.contains("outrigger")).collect();
        assert_eq!((code, ours), (0, Vec::new()), "{stdout}{stderr}");
    }
}

/// systemd's own judgement of what a break-in could reach, from 0 to 10: the unit beside an app stays below 2.0, and the
/// unit around an app, which may not take anything away that an app could need, below 7.5.
/// covers: attachment 6
/// covers: attachment 7
#[test]
fn the_units_are_exposed_to_little() {
    let analyze = need_peer!("systemd-analyze");
    let check = |unit: &str, threshold: u32| {
        let path = workspace().join("deploy/systemd").join(unit).display().to_string();
        let threshold = format!("--threshold={threshold}");
        run_to_end(&[analyze.as_str(), "security", "--offline=true", "--no-pager", &threshold, &path], PATIENCE)
    };
    for (unit, threshold) in [("outrigger.service", 20), ("outrigger@.service", 75)] {
        let (code, stdout, stderr) = check(unit, threshold);
        assert_eq!(code, 0, "{unit}: {stdout}{stderr}");
        assert_ne!(check(unit, 5).0, 0, "the judge says no to something");
    }
}

/// `systemctl start` returns when everything listens; the process has no right that it does not need; `systemctl stop`
/// delivers the last lines and ends with success.
/// covers: attachment 7
#[test]
fn the_unit_is_ready_when_its_start_returns_and_stops_cleanly() {
    let machine = need!(Machine::boot(""), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    let started = get(&machine.address("probes"), "/started").expect("the probes listen already");
    assert_eq!(started.status, 200);
    assert_eq!((booted.show(UNIT, "ActiveState"), booted.show(UNIT, "SubState")), ("active".into(), "running".into()));

    let status = std::fs::read_to_string(format!("/proc/{}/status", booted.main_process(UNIT))).expect("it runs");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("none");
    assert_ne!(field("Uid:").split_whitespace().next(), Some("0"), "{status}");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"));

    machine.log(0..500);
    machine.receiver.wait_for(500, PATIENCE);
    until(PATIENCE, "requests pass", || machine.answers("front", "/one"));
    let socket = booted.path("/run/outrigger/admin.sock");
    assert_eq!(get_over_socket(&socket, "/status").expect("the socket answers").status, 200);
    ledger_balances(&machine.address("admin"));
    machine.log(500..700);
    booted.systemctl(&["stop", UNIT]);
    assert_eq!(booted.ends(), ["success exited 0"]);
    assert_counts_up(&machine.receiver.numbers("n="), 700);
}

/// `systemctl status` shows our verdict.
/// covers: attachment 7
#[test]
fn the_status_of_the_unit_has_our_verdict() {
    let machine = need!(Machine::boot(""), NO_SYSTEMD);
    machine.booted.systemctl(&["start", UNIT]);
    until(PATIENCE, "a verdict", || !machine.booted.show(UNIT, "StatusText").is_empty());
}

/// A file with a mistake fails the start, with the report where the unit's output goes.
/// covers: attachment 7
#[test]
fn a_mistake_fails_the_start_and_is_reported() {
    let machine = need!(Machine::boot("[Service]\nRestart=no\n"), NO_SYSTEMD);
    let booted = &machine.booted;
    let config = booted.path("/etc/outrigger/outrigger.yaml");
    std::fs::write(config, "logz: {}\n").expect("the file can be written");
    let (code, _, _) = booted.enter(&["systemctl", "start", UNIT]);
    assert_ne!(code, 0);
    assert_eq!((booted.show(UNIT, "Result"), booted.show(UNIT, "ExecMainStatus")), ("exit-code".into(), "1".into()));
    assert!(booted.report().contains("logz"), "{}", booted.report());
}

/// The listening sockets lie at systemd while no process of ours runs: a connection of that time is answered.
/// covers: attachment 7
#[test]
fn a_connection_made_during_a_restart_is_answered() {
    let machine = need!(Machine::boot(GATE), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    until(PATIENCE, "requests pass", || machine.answers("front", "/one"));
    let kept = booted.number(UNIT, "NFileDescriptorStore");
    assert!(kept >= 3, "the listener, the admin page and the probes: {kept}");
    machine.ask_in_between(|| booted.systemctl(&["restart", "--no-block", UNIT]));
    until(PATIENCE, "no socket was stored twice", || booted.number(UNIT, "NFileDescriptorStore") == kept);

    let environment = std::fs::read(format!("/proc/{}/environ", booted.main_process(UNIT))).expect("it runs");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let names = environment.split('\0').find_map(|entry| entry.strip_prefix("LISTEN_FDNAMES=")).unwrap_or("");
    let named = |name: &&str| !name.is_empty() && *name != "stored";
    assert_eq!(names.split(':').filter(named).count() as u64, kept, "each with a name of its own: {names}");
    for port in ["admin", "probes"] {
        until(PATIENCE, "the other listeners serve", || get(&machine.address(port), "/ready").is_ok());
    }
    let socket = booted.path("/run/outrigger/admin.sock");
    until(PATIENCE, "the admin socket serves", || get_over_socket(&socket, "/status").is_ok());
    ledger_balances(&machine.address("admin"));
}

/// The same when the whole of us is killed: systemd starts us again, and nobody was refused.
/// covers: attachment 2
/// covers: attachment 7
#[test]
fn a_connection_made_after_a_crash_is_answered() {
    let machine = need!(Machine::boot(GATE), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    until(PATIENCE, "requests pass", || machine.answers("front", "/one"));
    machine.log(0..300);
    machine.receiver.wait_for(300, PATIENCE);
    machine.ask_in_between(|| send_signal(booted.main_process(UNIT), Signal::KILL));
    assert_eq!(booted.number(UNIT, "NRestarts"), 1);
    machine.log(300..400);
    until(PATIENCE, "the lines after the crash", || machine.receiver.numbers("n=").contains(&399));
    let mut numbers = machine.receiver.numbers("n=");
    // A kill repeats at most what was on its way.
    numbers.sort_unstable();
    numbers.dedup();
    assert_counts_up(&numbers, 400);
}

/// While we live, systemd hears of it in time; when we hang, it ends us and starts us again.
/// covers: attachment 7
#[test]
fn the_watchdog_is_fed_while_we_live_and_bites_when_we_hang() {
    let machine = need!(Machine::boot("[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\n"), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    let process = booted.main_process(UNIT);
    let mut fed = vec![booted.number(UNIT, "WatchdogTimestampMonotonic")];
    until(PATIENCE, "it was fed five times more", || {
        let last = booted.number(UNIT, "WatchdogTimestampMonotonic");
        if fed.last() != Some(&last) {
            fed.push(last);
        }
        fed.len() > 5
    });
    assert_eq!((booted.main_process(UNIT), booted.number(UNIT, "NRestarts")), (process, 0));
    send_signal(process, Signal::STOP);
    until(PATIENCE, "systemd started us again", || booted.number(UNIT, "NRestarts") == 1);
    assert!(booted.ends()[0].starts_with("watchdog "), "{:?}", booted.ends());
    await_state(booted, UNIT, "active");
    until(PATIENCE, "requests pass", || machine.answers("front", "/two"));
}

/// `systemctl reload` brings a changed file to work in the same process.
/// covers: attachment 7
#[test]
fn a_reload_serves_the_changed_file_in_the_same_process() {
    let machine = need!(Machine::boot(""), NO_SYSTEMD);
    let booted = &machine.booted;
    booted.systemctl(&["start", UNIT]);
    let process = booted.main_process(UNIT);
    let second = "listeners: { second: { listen: \"127.0.0.1:@second@\", direction: inbound, cluster: app }, ";
    let changed = machine.scene.fill(&BODY.replace("listeners: { ", second));
    std::fs::write(booted.path("/etc/outrigger/outrigger.yaml"), changed).expect("the file can be written");
    booted.systemctl(&["reload", UNIT]);
    until(PATIENCE, "the new listener serves", || machine.answers("second", "/new"));
    until(PATIENCE, "the old one too", || machine.answers("front", "/old"));
    await_state(booted, UNIT, "active");
    assert_eq!(booted.main_process(UNIT), process);
}

/// The unit around an app: it runs below us as the instance's user, and its end on SIGTERM counts as success.
/// covers: attachment 1
/// covers: attachment 7
#[test]
fn an_app_inside_the_unit_runs_as_its_user_and_stops_in_order() {
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
    until(PATIENCE, "the app runs below us", || find().is_some());
    let app = find().expect("just found");
    let environment = std::fs::read(format!("/proc/{}/environ", app.pid)).expect("the app runs");
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"), "it cannot speak for us");
    booted.systemctl(&["reload", unit]);
    assert!(find().is_some_and(|found| found.pid == app.pid), "a reload is none of the app's business");
    booted.systemctl(&["stop", unit]);
    assert_eq!(booted.ends(), ["success exited 143"]);
    assert_counts_up(&receiver.numbers("n="), 100);
}

/// What we send is what sd_notify(3) says, in an order that makes sense, also where no systemd can be booted.
/// covers: attachment 7
#[test]
fn each_notice_is_one_that_a_service_manager_takes() {
    let scene = Scene::new();
    let mut notices = Notices::listen(&scene);
    let path = scene.text_path("notify");
    let outrigger = Outrigger::start_with(&scene, "", &[], Wait::Started, |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    });
    notices.next("READY=1");
    outrigger.signal(Signal::HUP);
    let reloading = notices.next("RELOADING=1");
    // Asked for since systemd 253, which otherwise cannot tell this reload's word from that of the one before.
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading:?}");
    notices.next("READY=1");
    for _ in 0..4 {
        notices.next("WATCHDOG=1");
    }
    outrigger.signal(Signal::TERM);
    notices.next("STOPPING=1");
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
    let heard = notices.heard();
    assert!(heard.iter().any(|(_, text)| text.contains("STATUS=")), "{heard:?}");
    assert_taken(&heard);
    let fed: Vec<Instant> = heard.iter().filter(|(_, text)| text.contains("WATCHDOG=1")).map(|(at, _)| *at).collect();
    let longest = fed.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(longest.is_some_and(|longest| longest < SECOND), "within the second that was given: {longest:?}");
}

/// systemd ignores what it does not understand without a word, so this looks for it: each line an assignment of a known
/// name, descriptors with a name it accepts (sd_notify(3): ASCII, no control characters, no colon, at most 255).
#[track_caller]
fn assert_taken(heard: &[(Instant, String)]) {
    for line in heard.iter().flat_map(|(_, text)| text.lines()) {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("no assignment: {line:?}"));
        let taken = match name {
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
        assert!(taken, "systemd would not take {line:?}");
    }
}

/// The manager's end of the socket, read all the time: the kernel keeps no more than a handful of notices for a reader.
struct Notices {
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    /// How many the test has looked at.
    seen: usize,
    done: Arc<AtomicBool>,
}

impl Notices {
    fn listen(scene: &Scene) -> Self {
        let socket = UnixDatagram::bind(scene.path("notify")).expect("a socket in the scene");
        socket.set_read_timeout(Some(SECOND / 10)).expect("a time-out can be set");
        let notices = Self { heard: Arc::default(), seen: 0, done: Arc::default() };
        let (heard, done) = (notices.heard.clone(), notices.done.clone());
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while !done.load(Ordering::SeqCst) {
                let Ok(size) = socket.recv(&mut block) else { continue };
                let text = String::from_utf8_lossy(&block[..size]).into_owned();
                heard.lock().expect("no holder panics").push((Instant::now(), text));
            }
        });
        notices
    }

    fn heard(&self) -> Vec<(Instant, String)> {
        self.heard.lock().expect("no holder panics").clone()
    }

    /// The next notice with this line, of those not looked at yet.
    #[track_caller]
    fn next(&mut self, line: &str) -> String {
        let mut found = None;
        until(PATIENCE, line, || {
            let heard = self.heard();
            found = (self.seen..heard.len()).find(|place| heard[*place].1.lines().any(|have| have == line));
            found.is_some()
        });
        let place = found.expect("just found");
        self.seen = place + 1;
        self.heard()[place].1.clone()
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
    }
}
