//! Files that the program reads and other users may write: the exit of an external app, credentials, the configuration and
//! its placeholders. Each becomes a pipe, a device, a directory, a link, a huge, a forbidden or a changing file. Commands
//! must end, probes must respond, memory must stay small and the worker must keep running. Bounded by a few checks of each.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::harness::certificates::{Certificates, NO_OPENSSL};
use crate::harness::hostile::{Kind, Laid, lay, limit_memory, observe, run_watched};
use crate::harness::outrigger::{binary, configuration};
use crate::harness::process::{Running, Signal, is_alive, send_signal};
use crate::harness::{Findings, Outrigger, PATIENCE, Page, SECOND, Scene, Target, Wait, peer, until, within};

/// Kinds that are never valid, so every reader must reject them.
const INVALID: [Kind; 7] =
    [Kind::Fifo, Kind::Zero, Kind::Full, Kind::Directory, Kind::Loop, Kind::ToZero, Kind::Sparse];

/// Longer than two checks of any of these files, which happen four times a second or more often.
const CHECKS: Duration = Duration::from_millis(600);

/// A file that a running program checks repeatedly.
struct Watched<'a> {
    file: &'a str,
    body: &'a str,
    /// The content of a valid file.
    text: &'a str,
    /// Kinds that may be read as a valid file, after which the program exits by itself and not with 0.
    may_end: &'a [Kind],
}

/// Puts each kind at the path while the program runs; a program that fails is restarted for the next kind. Returns the
/// program that runs at the end, with nothing at the path.
#[track_caller]
fn check_while_running(scene: &Scene, watched: &Watched<'_>, findings: &mut Findings) -> Outrigger {
    let start = || {
        let outrigger = Outrigger::start(scene, watched.body, &[]);
        limit_memory(outrigger.pid());
        let worker = outrigger.worker();
        (outrigger, worker)
    };
    let path = scene.path(watched.file);
    fs::create_dir_all(path.parent().expect("the path has a parent")).expect("the scene is writable");
    let mut running = start();
    for kind in Kind::ALL {
        let Some(laid) = lay(kind, &path, &scene.path("aside"), watched.text.as_bytes()) else { continue };
        let (outrigger, worker) = running;
        let failure = observe(&outrigger, worker, CHECKS);
        // An exit takes some time, in which probes fail already.
        let is_down = || !is_alive(outrigger.pid());
        let may_end = failure.is_some() && watched.may_end.contains(&kind);
        let has_ended = is_down() || may_end && within(PATIENCE, is_down);
        running = match failure {
            None => (outrigger, worker),
            Some(_) if has_ended => {
                let code = outrigger.wait(PATIENCE).code;
                findings.check(may_end && code != 0, || {
                    format!("{} as {kind:?}: the program exited with {code}", watched.file)
                });
                drop(laid);
                start()
            }
            Some(failure) => {
                findings.check(false, || format!("{} as {kind:?}: {failure}", watched.file));
                outrigger.kill_all();
                drop(laid);
                start()
            }
        };
    }
    running.0
}

/// With any kind of file at the path of an external app's exit code file, the program keeps running, and a valid file is
/// seen afterwards.
#[test]
fn a_hostile_exit_code_file_is_harmless() {
    let scene = Scene::new();
    let body = "app: { external: { exit_code_file: \"@dir@/end/done\" }, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";
    let may_end = [Kind::Outside, Kind::Sparse, Kind::Unreadable, Kind::Changing];
    let watched = Watched { file: "end/done", body, text: "5\n", may_end: &may_end };
    let mut findings = Findings::default();
    let outrigger = check_while_running(&scene, &watched, &mut findings);
    scene.write("end/done", "5\n");
    assert_eq!(outrigger.wait(PATIENCE).code, 5);
}

/// The same for the file with its process id.
#[test]
fn a_hostile_pid_file_is_harmless() {
    let scene = Scene::new();
    let app = Running::start(&["sleep", "300"]);
    let body = "app: { external: { pid_file: \"@dir@/end/pid\" }, stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";
    let text = format!("{}\n", app.pid());
    let watched = Watched { file: "end/pid", body, text: &text, may_end: &[] };
    let mut findings = Findings::default();
    let outrigger = check_while_running(&scene, &watched, &mut findings);
    scene.write("end/pid", &text);
    let failure = observe(&outrigger, outrigger.worker(), CHECKS);
    findings.check(failure.is_none(), || format!("with a valid file: {failure:?}"));
    app.stop();
    assert_eq!(outrigger.wait(PATIENCE).code, 0);
}

/// The same for a file with a credential, which is re-read for each attempt.
#[test]
fn a_hostile_credential_file_is_harmless() {
    let scene = Scene::new();
    let target = Target::start(|_, round| Page::text(format!("rounds {round}\n")));
    scene.set("target", target.address());
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources:
    app:
      scrape:
        url: "http://@target@/metrics"
        interval: 100ms
        auth: { bearer: { token_file: "@dir@/secret/token" } }
"#;
    let watched = Watched { file: "secret/token", body, text: "s3cret\n", may_end: &[] };
    let mut findings = Findings::default();
    let outrigger = check_while_running(&scene, &watched, &mut findings);
    let before = target.rounds("/metrics");
    scene.write("secret/token", "s3cret\n");
    target.wait_for_rounds("/metrics", before + 1, PATIENCE);
    let head = target.heads("/metrics").pop().expect("just requested");
    assert_eq!(head.header("authorization"), Some("Bearer s3cret"));
    outrigger.finish();
}

const WITH_TLS: &str = r#"
state: { dir: "@dir@/state" }
admin: { socket: "@dir@/run/admin.sock" }
logs:
  sources: { files: { file: { include: ["@dir@/in/*.log"] } } }
  sinks:
    main:
      http: { url: "https://127.0.0.1:9/", tls: { ca_file: "@dir@/@ca@", cert_file: "@dir@/@cert@", key_file: "@dir@/@key@" } }
"#;

/// TLS files are checked before the start: an invalid file is rejected immediately, by name.
#[test]
fn hostile_tls_files_are_rejected_by_name() {
    let scene = Scene::new();
    need!(Certificates::new(&scene), NO_OPENSSL).authority("good", "test");
    let (mut findings, binary) = (Findings::default(), binary());
    for name in ["ca", "cert", "key"] {
        for (key, file) in [("ca", "good.crt"), ("cert", "good.crt"), ("key", "good.key")] {
            scene.set(key, file);
        }
        scene.set(name, "hostile");
        let config = scene.write("outrigger.yaml", scene.fill(WITH_TLS)).into_os_string();
        let path = scene.path("hostile");
        for kind in INVALID {
            let Some(_laid) = lay(kind, &path, &scene.path("aside"), b"") else { continue };
            let command = [binary.as_ref(), "run".as_ref(), "-c".as_ref(), config.as_os_str()];
            if kind != Kind::ToZero {
                check_command(&mut findings, kind, &path, &command);
                continue;
            }
            // The sandbox does not grant the target of a link.
            let ended = run_watched(&command);
            let named = ended.stderr.contains(&path.display().to_string());
            findings.check(ended.code == Some(1) && named, || format!("{name} as {kind:?}: {ended:?}"));
        }
    }
}

const MINIMAL: &str = r#"
state: { dir: "@dir@/state" }
admin: { socket: "@dir@/run/admin.sock" }
"#;
const WITH_TOKEN: &str = r#"
state: { dir: "@dir@/state" }
admin: { socket: "@dir@/run/admin.sock", token: "${file:@dir@/secret/token}" }
"#;

/// One hostile file, read by a command that ends by itself: rejected with its path and its kind, or used if it is valid.
fn check_command(findings: &mut Findings, kind: Kind, path: &Path, command: &[&OsStr]) {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    let shown = format!("{} ({}) with {} as {kind:?}", words[1], words[0], path.display());
    let ended = run_watched(command);
    if let Some(failure) = ended.error_text() {
        findings.check(false, || format!("{shown}: {failure}"));
        return;
    }
    let output = ended.stderr.to_lowercase();
    let named =
        ended.stderr.contains(&path.display().to_string()) && kind.words().iter().any(|word| output.contains(word));
    let right = match kind {
        Kind::Outside => ended.code == Some(0),
        Kind::Changing => ended.code == Some(0) || ended.code == Some(1),
        _ => ended.code == Some(1) && named,
    };
    findings.check(right, || format!("{shown}: exit {:?}, {}", ended.code, ended.stderr));
}

/// A configuration, or the file of a placeholder, is a regular file of limited size, or a link to one. Anything else is
/// rejected immediately with its path and its kind.
#[track_caller]
fn check_commands(scene: &Scene, file: &str, text: &str) {
    let binary = binary();
    let config = scene.path("conf/outrigger.yaml").into_os_string();
    let (path, mut findings) = (scene.path(file), Findings::default());
    let run = |command: &'static str| [binary.as_ref(), command.as_ref(), "-c".as_ref(), config.as_os_str()];
    let app: [&OsStr; 2] = ["--".as_ref(), "true".as_ref()];
    for kind in INVALID.into_iter().chain([Kind::Outside]) {
        let Some(_laid) = lay(kind, &path, &scene.path("aside"), text.as_bytes()) else { continue };
        check_command(&mut findings, kind, &path, &run("validate"));
        check_command(&mut findings, kind, &path, &[&run("run")[..], &app].concat());
    }
    let _laid = lay(Kind::Changing, &path, &scene.path("aside"), text.as_bytes());
    for _ in 0..20 {
        if findings.is_empty() {
            check_command(&mut findings, Kind::Changing, &path, &run("validate"));
        }
    }
}

/// For the configuration itself.
/// Guarantee: hostile-configuration-rejected
#[test]
fn a_hostile_configuration_is_rejected() {
    let scene = Scene::new();
    check_commands(&scene, "conf/outrigger.yaml", &scene.fill(MINIMAL));
}

/// For a placeholder's file.
#[test]
fn a_hostile_placeholder_file_is_rejected() {
    let scene = Scene::new();
    scene.write("conf/outrigger.yaml", scene.fill(WITH_TOKEN));
    check_commands(&scene, "secret/token", "s3cret\n");
}

/// A placeholder's file without read permission is reported with the reason. Root may read it anyway: then the command runs
/// as another user.
#[test]
fn a_forbidden_placeholder_file_is_reported() {
    let scene = Scene::new();
    let config = scene.write("conf/outrigger.yaml", scene.fill(WITH_TOKEN));
    let path = scene.path("secret/token");
    let _laid = lay(Kind::Unreadable, &path, &scene.path("aside"), b"s3cret\n");
    let program = scene.program("outrigger", binary());
    let command = [program.as_os_str(), "validate".as_ref(), "-c".as_ref(), config.as_os_str()];
    let setpriv = peer("setpriv");
    let ended = if rustix::process::geteuid().is_root() {
        let setpriv = need!(&setpriv, "setpriv is not installed");
        let unprivileged: [&OsStr; 3] = [setpriv.as_os_str(), "--reuid=65534".as_ref(), "--clear-groups".as_ref()];
        run_watched(&[&unprivileged[..], &command].concat())
    } else {
        run_watched(&command)
    };
    assert_eq!((ended.error_text(), ended.code), (None, Some(1)), "{}", ended.stderr);
    assert!(ended.stderr.to_lowercase().contains("permission denied"), "{}", ended.stderr);
    assert!(ended.stderr.contains(&path.display().to_string()), "{}", ended.stderr);
}

/// A path is bytes: a configuration whose name is not UTF-8 works.
#[test]
fn a_configuration_may_have_any_name() {
    let scene = Scene::new();
    let path = scene.path("conf").join(OsStr::from_bytes(b"caf\xe9.yaml"));
    scene.write("conf/mark", "");
    fs::write(&path, scene.fill(MINIMAL)).expect("the scene is writable");
    let (binary, mut findings) = (binary(), Findings::default());
    let app: &[&str] = &["--", "true"];
    for (command, rest) in [("validate", &[][..]), ("run", app)] {
        let words = [binary.as_ref(), command.as_ref(), "-c".as_ref(), path.as_os_str()];
        let ended = run_watched(&words.into_iter().chain(rest.iter().map(AsRef::as_ref)).collect::<Vec<_>>());
        let right = ended.error_text().is_none() && ended.code == Some(0);
        findings.check(right, || format!("{command}: {ended:?}"));
    }
}

/// A program with its configuration in `conf/outrigger.yaml`, which a test may replace by any kind of file.
#[track_caller]
fn start_configured(scene: &Scene, body: &str) -> (Outrigger, u32) {
    let (binary, file) = (binary(), "conf/outrigger.yaml");
    let outrigger = Outrigger::start_binary(&binary, scene, file, body, &[], Wait::Ready, |_| {});
    limit_memory(outrigger.pid());
    let worker = outrigger.worker();
    (outrigger, worker)
}

/// Replaces a file that a reload reads by each invalid kind, and requests a reload.
#[track_caller]
fn check_reload(scene: &Scene, file: &str, body: &str, text: &str) {
    let (path, socket, binary) = (scene.path(file), scene.path("run/admin.sock"), binary());
    let reload = [binary.as_ref(), "reload".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    let (mut findings, mut running) = (Findings::default(), start_configured(scene, body));
    for kind in INVALID {
        let Some(laid) = lay(kind, &path, &scene.path("aside"), b"") else { continue };
        if kind == Kind::ToZero {
            // A worker does not see what the sandbox hides: whatever it responds, the next one must not replace it.
            run_watched(&reload);
        } else {
            check_command(&mut findings, kind, &path, &reload);
        }
        let (outrigger, worker) = running;
        let failure = observe(&outrigger, worker, CHECKS);
        findings.check(failure.is_none(), || format!("after a reload with {file} as {kind:?}: {failure:?}"));
        drop(laid);
        scene.write(file, text);
        running = match failure {
            None => (outrigger, worker),
            Some(_) => {
                outrigger.kill_all();
                start_configured(scene, body)
            }
        };
    }
    let (outrigger, worker) = running;
    scene.write("conf/outrigger.yaml", configuration(scene, &format!("{body}\nlimits: {{ memory: 65MiB }}")));
    let ended = run_watched(&reload);
    findings.check(ended.code == Some(0), || format!("a reload with valid files: {ended:?}"));
    outrigger.await_other(worker, PATIENCE);
    outrigger.finish();
}

/// A running program whose configuration becomes another kind of file keeps running, and rejects a reload.
#[test]
fn a_reload_rejects_a_hostile_configuration() {
    let scene = Scene::new();
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";
    check_reload(&scene, "conf/outrigger.yaml", body, &configuration(&scene, body));
}

/// The same for a placeholder's file.
#[test]
fn a_reload_rejects_a_hostile_placeholder_file() {
    let scene = Scene::new();
    let target = Target::start(|_, _| Page::text("up_and_well 1\n"));
    scene.set("target", target.address());
    scene.write("secret/token", "s3cret\n");
    let body = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
metrics:
  sources:
    app: { scrape: { url: "http://@target@/", auth: { bearer: { token: "${file:@dir@/secret/token}" } } } }
"#;
    check_reload(&scene, "secret/token", body, "s3cret\n");
}

/// A worker that crashes while the configuration is not a file is replaced by one with the last good configuration.
#[test]
fn a_crash_with_a_hostile_config_is_recovered() {
    let scene = Scene::new();
    let body = "app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }";
    let (path, text) = (scene.path("conf/outrigger.yaml"), configuration(&scene, body));
    let (mut findings, mut running) = (Findings::default(), start_configured(&scene, body));
    for kind in [Kind::Fifo, Kind::Zero, Kind::Sparse] {
        let (outrigger, worker) = running;
        let laid: Option<Laid> = lay(kind, &path, &scene.path("aside"), b"");
        send_signal(worker, Signal::KILL);
        let is_other = || outrigger.find_worker().is_some_and(|pid| pid != worker);
        let follows = within(10 * SECOND, || is_other() && outrigger.status_of("/ready") == 200);
        findings.check(follows, || format!("no worker serves with a configuration that is {kind:?}"));
        drop(laid);
        scene.write("conf/outrigger.yaml", &text);
        running = if follows {
            let worker = outrigger.worker();
            (outrigger, worker)
        } else {
            outrigger.kill_all();
            start_configured(&scene, body)
        };
    }
    let (outrigger, _) = running;
    until(PATIENCE, "live", || outrigger.status_of("/live") == 200);
    outrigger.finish();
}
