//! Git over ssh with faults: a server that hangs in any phase, a changed host key, a missing repository, a machine without the
//! programs that start ssh. In: a real sshd with keys of the test behind a relay. Out: the published revisions, the reported
//! errors and the remaining processes. Bounded by a timeout of one second.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::git::relay::{Pace, Relay};
use crate::harness::git::{Repository, await_generation, await_refusal, published, sync_state};
use crate::harness::outrigger::{binary, configuration};
use crate::harness::process::{Running, Signal, descendants, is_alive, look_up, run_to_end, send_signal};
use crate::harness::{Outrigger, PATIENCE, SECOND, Scene, Wait, skip, until, within};
use crate::sync_cache::{DAMAGES, HEALED};

const NO_SSHD: &str = "sshd is not installed";

const SETTINGS: &str = r#"
sync:
  settings:
    store:
      git:
        url: "@url@"
        ref: main
        path: orders/
        ssh: { key_file: "@dir@/user_key", known_hosts_file: "@dir@/@hosts@" }
        timeout: 1s
        connect_timeout: 1s
        interval: 200ms
    publish: { symlink: { path: "@dir@/out/settings" } }
"#;

/// The timeout is one second; a loaded machine gets four.
const SILENCE: Duration = Duration::from_secs(4);

/// A repository behind an sshd and a relay; the host key is known for the relay's port.
struct Served {
    scene: Scene,
    repository: Repository,
    relay: Relay,
    url: String,
    _sshd: Running,
}

impl Served {
    fn create() -> Option<Self> {
        let scene = Scene::new();
        let repository = Repository::create(&scene)?;
        let (sshd, url) = repository.sshd(&scene)?;
        let own = format!("127.0.0.1:{}", scene.value("sshd"));
        let relay = Relay::start(&own, Pace::Free);
        let host_key = std::fs::read_to_string(scene.path("host_key.pub")).expect("sshd has its key");
        scene.write("known_hosts", format!("* {host_key}"));
        scene.set("hosts", "known_hosts");
        let url = url.replace(&own, &relay.address());
        scene.set("url", &url);
        Some(Self { scene, repository, relay, url, _sshd: sshd })
    }

    fn start(&self, wait: Wait) -> Outrigger {
        Outrigger::start_and(&self.scene, SETTINGS, &[], wait)
    }

    /// From now on git on the server neither writes nor reads, and does not detect that its client has disconnected. It exits
    /// with sshd's process for the connection.
    fn hang(&self) {
        let text =
            "#!/bin/sh\ni=0\nwhile [ $i -lt 60 ] && kill -0 $PPID 2> /dev/null; do sleep 1; i=$((i + 1)); done\n";
        self.scene.script("server/git-upload-pack", text);
    }

    #[track_caller]
    fn await_generation(&self, generation: usize, what: &str) {
        await_generation(&self.scene, generation, what);
    }
}

/// The descendants of Outrigger with the name `ssh`.
fn clients(outrigger: &Outrigger) -> Vec<u32> {
    let is_ssh = |pid: &u32| look_up(*pid).is_some_and(|process| process.name == "ssh" && process.state != 'Z');
    descendants(outrigger.pid()).into_iter().filter(is_ssh).collect()
}

/// A server that hangs before its greeting, in the key exchange or in the pack: the fetch times out; the next poll succeeds.
#[test]
fn a_silent_sshd_times_out() {
    let served = need!(Served::create(), NO_SSHD);
    let outrigger = served.start(Wait::Ready);
    for (number, after) in [0, 100, 300_000].into_iter().enumerate() {
        served.repository.add_noise(1 << 20);
        let held = served.relay.silent();
        served.relay.pace(Pace::SilentAfter(after));
        served.repository.push(2 + number);
        served.relay.await_silent(held + 1);
        await_refusal(&outrigger, SILENCE, &["127.0.0.1"]);
        served.relay.pace(Pace::Free);
        served.await_generation(2 + number, &format!("after silence that follows {after} bytes"));
    }
    outrigger.finish();
}

/// The login succeeds, and git on the server writes nothing: the fetch times out, its processes exit, and once the server
/// responds again, a fetch succeeds.
#[test]
fn a_server_that_hangs_after_login_times_out() {
    let served = need!(Served::create(), NO_SSHD);
    let outrigger = served.start(Wait::Ready);
    served.hang();
    served.repository.push(2);
    await_refusal(&outrigger, 2 * SILENCE, &["127.0.0.1", "within 1s"]);
    let connections = served.relay.connections();
    let mut most = 0;
    until(PATIENCE, "two more attempts", || {
        most = most.max(clients(&outrigger).len());
        served.relay.connections() >= connections + 2
    });
    assert!(most <= 1, "{most} simultaneous clients for one entry");
    std::fs::remove_file(served.scene.path("server/git-upload-pack")).expect("the test created it");
    served.await_generation(2, "from a server that responds again");
    outrigger.finish();
}

/// A client that waits for a silent server exits with its worker, whatever stops that worker, and blocks no other worker.
#[test]
fn a_waiting_client_exits_with_its_worker() {
    let served = need!(Served::create(), NO_SSHD);
    served.hang();
    let mut wrong = Vec::new();
    for end in ["kill -9", "a reload", "a stop"] {
        let outrigger = served.start(Wait::Nothing);
        let mut before = Vec::new();
        until(PATIENCE, "a client waits", || {
            before = clients(&outrigger);
            !before.is_empty()
        });
        let worker = outrigger.worker();
        match end {
            "kill -9" => send_signal(worker, Signal::KILL),
            "a reload" => {
                let changed = SETTINGS.replace("interval: 200ms", "interval: 300ms");
                served.scene.write("outrigger.yaml", configuration(&served.scene, &changed));
            }
            _ => outrigger.signal(Signal::TERM),
        }
        // A new worker waits for the poll of the previous worker, which ends with the timeout.
        let exited = within(3 * SILENCE, || before.iter().all(|pid| !is_alive(*pid)) && !is_alive(worker));
        wrong.extend((!exited).then(|| format!("after {end} the client keeps running: {before:?}")));
        let exit = outrigger.terminate(40 * SECOND);
        let left = before.iter().any(|pid| is_alive(*pid));
        wrong.extend(left.then(|| format!("after {end} and the exit of Outrigger the client keeps running")));
        before.into_iter().for_each(|pid| send_signal(pid, Signal::KILL));
        wrong.extend((exit.took > 10 * SECOND).then(|| format!("after {end} the stop takes {:?}", exit.took)));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// A slow stream without gaps does not time out.
#[test]
fn a_slow_pack_over_ssh_does_not_time_out() {
    let served = need!(Served::create(), NO_SSHD);
    let outrigger = served.start(Wait::Ready);
    served.relay.pace(Pace::BytesPerSecond(400_000));
    served.repository.add_noise(1_200_000);
    served.repository.push(2);
    let from = Instant::now();
    served.await_generation(2, "at 400 kB/s");
    assert!(from.elapsed() > 2 * SECOND, "it took longer than the timeout: {:?}", from.elapsed());
    assert_eq!(sync_state(&outrigger).0, "ok", "{}", outrigger.stderr.text());
    outrigger.finish();
}

/// A server's error about a request that a damaged cache caused does not lead to the same request again.
#[test]
fn a_damaged_cache_is_recreated_over_ssh_too() {
    let served = need!(Served::create(), NO_SSHD);
    let outrigger = served.start(Wait::Ready);
    served.await_generation(1, "the start");
    let mut unhealed = Vec::new();
    for (number, (name, damage)) in DAMAGES.iter().enumerate() {
        damage(&served.scene.path("state/sync/settings/git"));
        served.repository.push(2 + number);
        if !within(HEALED, || published(&served.scene.path("out/settings")) == Ok(Some(2 + number))) {
            unhealed.push(format!("{name}: {:?}", sync_state(&outrigger)));
        }
    }
    assert_eq!(unhealed, Vec::<String>::new());
    outrigger.finish();
}

/// Nothing is published; the last line of ssh is the reason in /status and in the log, and Outrigger's output is only its log.
fn check_reason(served: &Served, hosts: &str, url: &str, reason: &str) -> Vec<String> {
    served.scene.set("hosts", hosts);
    served.scene.set("url", url);
    let outrigger = served.start(Wait::Nothing);
    let mut wrong = Vec::new();
    let mut text = String::new();
    let reported = within(2 * SILENCE, || {
        text = sync_state(&outrigger).1;
        text.contains(reason)
    });
    wrong.extend((!reported).then(|| format!("expected {reason:?}, /status has: {text}")));
    wrong.extend(text.contains("failed to fill whole buffer").then(|| format!("an internal error text: {text}")));
    let exit = outrigger.finish();
    let raw = exit.stderr.lines().chain(exit.stdout.lines()).filter(|line| !line.starts_with('{'));
    wrong.extend(raw.map(|line| format!("between the lines of the Outrigger log: {line}")));
    wrong
}

/// A changed host key, unknown hosts, a missing known_hosts file, a rejected key, and a missing repository.
#[test]
fn the_last_line_of_ssh_is_the_failure_reason() {
    let served = need!(Served::create(), NO_SSHD);
    let scene = &served.scene;
    let other = std::fs::read_to_string(scene.path("user_key.pub")).expect("`sshd` created it");
    scene.write("changed_hosts", format!("* {other}"));
    scene.write("no_hosts", "");
    let mut wrong = Vec::new();
    for hosts in ["changed_hosts", "no_hosts", "missing_hosts"] {
        wrong.extend(check_reason(&served, hosts, &served.url, "Host key verification failed"));
    }
    let nowhere = served.url.replace("config.git", "nowhere.git");
    wrong.extend(check_reason(&served, "known_hosts", &nowhere, "nowhere.git' does not appear to be a git repository"));
    let (_, rest) = served.url.split_once('@').expect("the URL has a user");
    let unknown = format!("ssh://no-such-user@{rest}");
    wrong.extend(check_reason(&served, "known_hosts", &unknown, "Permission denied"));
    assert_eq!(wrong, Vec::<String>::new());
}

/// A machine on which /bin/sh is not executable: either git over ssh works there, or `validate` reports what is missing.
/// The same for `ssh` itself, which is always needed.
#[test]
fn validate_reports_each_program_that_ssh_needs() {
    let served = need!(Served::create(), NO_SSHD);
    let unshare = need_peer!("unshare");
    let file = served.scene.write("outrigger.yaml", configuration(&served.scene, SETTINGS)).display().to_string();
    let report = |command: &[&str]| {
        let (_, stdout, stderr) = run_to_end(command, PATIENCE);
        stdout + &stderr
    };
    let binary = binary();
    let without_ssh = report(&["env", "PATH=/no/such/directory", &binary, "validate", "-c", &file]);
    assert!(without_ssh.contains("`ssh`"), "{without_ssh}");
    let shell = std::fs::canonicalize("/bin/sh").expect("this machine has one").display().to_string();
    let hide = format!("mount --bind /dev/null {shell} && exec \"$@\"");
    let bash = need_peer!("bash");
    let hidden = [unshare.as_str(), "-m", &bash, "-c", &hide, "bash"];
    let can = Command::new(hidden[0]).args(&hidden[1..]).arg("true").stderr(Stdio::null()).status();
    need!(can.is_ok_and(|status| status.success()).then_some(()), "no file can be hidden here");
    let reported = report(&[&hidden[..], &[&binary, "validate", "-c", &file]].concat()).contains("/bin/sh");
    let mut command = Command::new(hidden[0]);
    command.args(&hidden[1..]).args([&binary, "run", "-c", &file]);
    let running = Running::spawn(command);
    let works = within(if reported { SECOND } else { PATIENCE }, || {
        published(&served.scene.path("out/settings")) == Ok(Some(1))
    });
    assert!(reported || works, "neither reported nor unneeded: {}", running.stderr.text());
    running.stop();
}

/// A user without a passwd entry and without HOME, as in many images: ssh reports it, and the worker keeps running. The standard
/// library would look up the home in the C library's user database, which aborts a static program.
#[test]
fn a_user_without_an_entry_gets_the_error_of_ssh() {
    need_peer!("ssh");
    let setpriv = need_peer!("setpriv");
    if !rustix::process::geteuid().is_root() {
        return skip("a_user_without_an_entry_gets_the_error_of_ssh", "only root can change its user");
    }
    let scene = Scene::new();
    scene.set("url", "ssh://git@127.0.0.1:1/x.git");
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 1s, timeout: 5s } }\n\
                sync: { settings: { store: { git: { url: \"@url@\", interval: 200ms } }, publish: { symlink: { path: \"@dir@/out/settings\" } } } }\n";
    let (directory, own) = (scene.text_path("."), scene.program("bin/outrigger", binary()));
    let script = format!(
        "#!/bin/sh\nunset HOME\nmkdir -p {directory}/run {directory}/out {directory}/state\nchown -R 4242:4242 {directory}\n\
         exec {setpriv} --reuid=4242 --regid=4242 --clear-groups {} \"$@\"\n",
        own.display()
    );
    let program = scene.script("unknown", &script);
    let program = program.display().to_string();
    let outrigger =
        Outrigger::start_binary(&program, &scene, "outrigger.yaml", body, &["sleep", "300"], Wait::Nothing, |_| {});
    await_refusal(&outrigger, PATIENCE, &["No user exists for uid 4242"]);
    assert!(!outrigger.stderr.contains("crashed"), "{}", outrigger.stderr.text());
    outrigger.terminate(PATIENCE);
}
