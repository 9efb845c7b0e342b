//! Configuration from git onto a shared directory, over each of the four transports: a push is published within two poll
//! intervals, atomically, and the app is notified. In: commits. Out: published generations and the app's output. Bounded by
//! a handful of commits each.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::git::{Repository, published, search_path_with_ssh};
use crate::harness::process::Running;
use crate::harness::raw_app::answer_ok;
use crate::harness::{Outrigger, PATIENCE, RawApp, SECOND, Scene, Wait, fixture, get, python, until};

const EVERY: Duration = Duration::from_secs(2);

const SETTINGS: &str = r#"
app: { port: @port@, stop: { drain_timeout: 1s, grace_period: 3s, timeout: 8s } }
sync:
  settings:
    store: { git: { url: "@url@", ref: main, path: orders/, interval: 2s } }
    publish: { symlink: { path: "@dir@/settings" } }
    notify: [ { signal: SIGHUP }, { http: { url: "http://127.0.0.1:@port@/-/reload" } } ]
"#;

/// The Python app, which reads one of the published files at start and on SIGHUP.
fn app(scene: &Scene) -> Option<Vec<String>> {
    let (port, log) = (scene.port("port").to_string(), scene.text_path("app.log"));
    let settings = scene.text_path("settings/a.conf");
    let options = ["--port".into(), port, "--log".into(), log, "--settings".into(), settings];
    Some([&[python()?, fixture("app.py")], &options[..]].concat())
}

fn start(scene: &Scene, body: &str, command: &[String], wait: Wait) -> Outrigger {
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let search_path = search_path_with_ssh(scene);
    Outrigger::start_with(scene, body, &command, wait, |command| {
        command.env("PATH", search_path);
    })
}

/// A reader in a tight loop: each time it opens the directory once and reads both files. Counts the reads and returns the errors.
fn read_until(stop: &AtomicBool, reads: &AtomicUsize, to: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut newest = 0;
    while !stop.load(Ordering::Relaxed) && wrong.len() < 10 {
        match published(to) {
            Ok(Some(generation)) if generation < newest => wrong.push(format!("{generation} after {newest}")),
            Ok(Some(generation)) => newest = generation,
            Ok(None) => wrong.push("the published directory disappeared".to_owned()),
            Err(error) => wrong.push(error),
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
    wrong
}

/// The complete claim for one transport: the first revision is published before the app starts, each push is published in time
/// and atomically, and the app is notified by signal and by HTTP.
fn check(scene: &Scene, command: &[String], repository: &Repository, url: &str, pushes: usize) {
    scene.set("url", url);
    let outrigger = start(scene, SETTINGS, command, Wait::Ready);
    let to = scene.path("settings");
    until(PATIENCE, "the app started", || outrigger.stdout.contains("app started with"));
    let first = "app started with generation=000001";
    assert!(outrigger.stdout.contains(first), "the app started after the first revision: {}", outrigger.stdout.text());
    assert!(to.is_symlink(), "what is published is a link to the revision's directory");
    let (stop, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_until(&stop, &reads, &to));
        let pushed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for generation in 2..2 + pushes {
                push_and_see(repository, &outrigger, &to, generation);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let wrong = reader.join().expect("the reader does not panic");
        pushed.map(|()| wrong).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert_eq!(wrong, Vec::<String>::new(), "of {} reads", reads.load(Ordering::Relaxed));
    assert!(reads.load(Ordering::Relaxed) > 1000, "the reader was fast enough");
    assert!(!to.join("c.conf").exists() && !to.join(".git").exists(), "only the configured directory is published");
    let exit = outrigger.finish();
    assert_eq!(exit.code, 5, "{}", exit.stderr);
    assert_eq!(published(&to), Ok(Some(1 + pushes)), "the published revision outlives Outrigger");
}

fn push_and_see(repository: &Repository, outrigger: &Outrigger, to: &Path, generation: usize) {
    let notified = outrigger.stdout.text().matches("app notified /-/reload").count();
    repository.push(generation);
    let pushed = Instant::now();
    until(2 * EVERY, &format!("generation {generation} within two intervals"), || {
        published(to) == Ok(Some(generation))
    });
    let took = pushed.elapsed();
    let reloaded = format!("app reloaded with generation={generation:06}");
    until(PATIENCE, &format!("the app's SIGHUP, {took:?} after the push"), || outrigger.stdout.contains(&reloaded));
    until(PATIENCE, "the notification by HTTP", || {
        outrigger.stdout.text().matches("app notified /-/reload").count() > notified
    });
}

/// From a path on this machine.
/// Guarantee: app-waits-for-first-revision, publication-atomic
#[test]
fn a_push_to_a_path_is_published_atomically() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let url = repository.file_url();
    let command = need!(app(&scene), "python3 is not installed");
    check(&scene, &command, &repository, &url, 8);
}

/// From `git daemon`.
/// Guarantee: push-published-within-two-intervals
#[test]
fn a_push_is_published_from_git_daemon() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let (_daemon, url) = need!(repository.daemon(&scene), "git-daemon is not installed");
    let command = need!(app(&scene), "python3 is not installed");
    check(&scene, &command, &repository, &url, 4);
}

/// From `git http-backend`.
/// Guarantee: push-published-within-two-intervals
#[test]
fn a_push_is_published_from_git_over_http() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let (_http, url) = need!(repository.http(&scene), "git-http-backend or python3 is not installed");
    let command = need!(app(&scene), "python3 is not installed");
    check(&scene, &command, &repository, &url, 4);
}

/// From an sshd on a high port, with a key created for this test.
/// Guarantee: push-published-within-two-intervals
#[test]
fn a_push_is_published_over_ssh() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let (_sshd, url) = need!(repository.sshd(&scene), "sshd is not installed");
    let command = need!(app(&scene), "python3 is not installed");
    check(&scene, &command, &repository, &url, 4);
}

/// A history that is replaced by a forced push is followed too, and removed files disappear.
#[test]
fn a_forced_push_replaces_what_is_published() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let url = repository.file_url();
    scene.set("url", &url);
    let command = need!(app(&scene), "python3 is not installed");
    repository.push(2);
    let outrigger = start(&scene, SETTINGS, &command, Wait::Ready);
    let to = scene.path("settings");
    until(PATIENCE, "generation 2", || published(&to) == Ok(Some(2)));
    let work = scene.path("work");
    crate::harness::git::git(&work, &["reset", "--quiet", "--hard", "HEAD~1"]);
    crate::harness::git::git(&work, &["push", "--quiet", "--force", "origin", "main"]);
    until(2 * EVERY + SECOND, "generation 1 again", || published(&to) == Ok(Some(1)));
    outrigger.finish();
}

/// A first run that publishes generation 1 and exits.
fn publish_once(scene: &Scene, command: &[String]) {
    let outrigger = start(scene, SETTINGS, command, Wait::Nothing);
    until(PATIENCE, "generation 1", || published(&scene.path("settings")) == Ok(Some(1)));
    until(PATIENCE, "started", || outrigger.status_of("/started") == 200);
    outrigger.finish();
    assert_eq!(published(&scene.path("settings")), Ok(Some(1)), "it outlives Outrigger");
}

/// With the store down at the next start, the last known good revision stays published, the app starts, and /status reports the
/// error; once the store is back, a push is published.
/// Guarantee: revision-survives-store-outage
#[test]
fn last_known_good_stays_while_the_store_is_down() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let command = need!(app(&scene), "python3 is not installed");
    scene.set("url", repository.file_url());
    let to = scene.path("settings");
    publish_once(&scene, &command);
    let (here, away) = (repository.bare(), scene.path("git/away.git"));
    std::fs::rename(&here, &away).expect("the repository can be moved");
    let outrigger = start(&scene, SETTINGS, &command, Wait::Ready);
    let started = "app started with generation=000001";
    until(2 * PATIENCE, "the app starts with the last known good", || outrigger.stdout.contains(started));
    assert_eq!(published(&to), Ok(Some(1)));
    until(PATIENCE, "/status contains the store", || outrigger.get("/status").text().contains("config.git"));
    std::fs::rename(&away, &here).expect("the repository can be moved");
    repository.push(2);
    until(PATIENCE, "generation 2 once the store is back", || published(&to) == Ok(Some(2)));
    outrigger.finish();
}

/// A lost symlink is restored at the next start from the cache, even with the store down.
#[test]
fn a_lost_link_is_restored_from_last_known_good() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    let command = need!(app(&scene), "python3 is not installed");
    scene.set("url", repository.file_url());
    let to = scene.path("settings");
    publish_once(&scene, &command);
    std::fs::rename(repository.bare(), scene.path("git/away.git")).expect("the repository can be moved");
    std::fs::remove_file(&to).expect("what is published is a link");
    let outrigger = start(&scene, SETTINGS, &command, Wait::Nothing);
    until(2 * PATIENCE, "the link points to the last known good", || published(&to) == Ok(Some(1)));
    outrigger.finish();
}

/// URLs without a repository: the message contains the URL and the reason, the app runs, and the exit is in time.
fn check_absent(scene: &Scene, command: &[String], url: &str) {
    scene.set("url", url);
    let outrigger = start(scene, SETTINGS, command, Wait::Nothing);
    let address = format!("127.0.0.1:{}", scene.value("port"));
    let limit = Duration::from_secs(50);
    until(limit, "the app runs anyway", || get(&address, "/health").is_ok_and(|reply| reply.status == 200));
    until(PATIENCE, "the Outrigger log contains the URL", || outrigger.stderr.contains(url));
    until(PATIENCE, "/status contains the URL", || outrigger.get("/status").text().contains(url));
    assert!(!scene.path("settings").exists(), "nothing was published");
    let exit = outrigger.finish();
    assert_eq!(exit.code, 5);
    assert!(exit.took < 10 * SECOND, "{:?}", exit.took);
}

/// A path that does not exist.
#[test]
fn a_path_without_a_repository_is_reported() {
    let scene = Scene::new();
    let command = need!(app(&scene), "python3 is not installed");
    check_absent(&scene, &command, &format!("file://{}", scene.text_path("no-such.git")));
}

/// A server that responds with 404.
#[test]
fn a_url_without_a_repository_is_reported() {
    let scene = Scene::new();
    let python = need!(python(), "python3 is not installed");
    let port = scene.port("web").to_string();
    let directory = scene.text_path(".");
    let web = Running::start(&[&python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", &directory, &port]);
    until(PATIENCE, "the server responds", || get(&format!("127.0.0.1:{port}"), "/").is_ok());
    let command = need!(app(&scene), "python3 is not installed");
    check_absent(&scene, &command, &format!("http://127.0.0.1:{port}/no-such.git"));
    web.stop();
}

/// A port without a listener.
#[test]
fn an_unreachable_server_is_reported() {
    let scene = Scene::new();
    let port = scene.port("closed");
    let command = need!(app(&scene), "python3 is not installed");
    check_absent(&scene, &command, &format!("git://127.0.0.1:{port}/config.git"));
}

/// A branch that does not exist is reported; a branch that appears later is published.
#[test]
fn a_ref_that_appears_later_is_published() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    scene.set("url", repository.file_url());
    let body = r#"
sync:
  settings: { store: { git: { url: "@url@", ref: release, path: orders/, interval: 2s } }, publish: { symlink: { path: "@dir@/settings" } } }
"#;
    let outrigger = Outrigger::start_and(&scene, body, &[], Wait::Nothing);
    until(PATIENCE, "the Outrigger log contains the ref", || outrigger.stderr.contains("release"));
    let work: PathBuf = scene.path("work");
    crate::harness::git::git(&work, &["push", "--quiet", "origin", "main:release"]);
    until(PATIENCE, "the ref is published", || published(&scene.path("settings")) == Ok(Some(1)));
    outrigger.finish();
}

/// A companion starts before its app: the app is notified of the first revision once it listens, and only once.
/// Guarantee: each-revision-notified-once
#[test]
fn an_app_that_listens_late_is_notified() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), "git is not installed");
    scene.set("url", repository.file_url());
    let port = scene.port("port");
    let body = r#"
sync:
  settings:
    store: { git: { url: "@url@", ref: main, path: orders/, interval: 500ms } }
    publish: { symlink: { path: "@dir@/settings" } }
    notify: [ { http: { url: "http://127.0.0.1:@early@/-/reload" } }, { http: { url: "http://127.0.0.1:@port@/-/reload" } } ]
"#;
    let early = RawApp::start(|_, wire| answer_ok(wire, b"thank you"));
    scene.set("early", early.address().rsplit(':').next().expect("a port"));
    let outrigger = Outrigger::start_and(&scene, body, &[], Wait::Nothing);
    until(PATIENCE, "the failed notification is logged", || outrigger.stderr.contains("notification failed"));
    let worker = outrigger.worker();
    crate::harness::process::send_signal(worker, crate::harness::process::Signal::KILL);
    until(PATIENCE, "another worker serves", || outrigger.find_worker().is_some_and(|pid| pid != worker));
    let app = RawApp::start_on(port, |_, wire| answer_ok(wire, b"thank you"));
    let notifications = || app.seen().iter().filter(|seen| seen.head.target() == "/-/reload").count();
    until(PATIENCE, "the app is notified", || notifications() == 1);
    assert_eq!(early.seen().len(), 1, "no worker repeats a delivered notification");
    repository.push(2);
    until(PATIENCE, "the app is notified of the next revision", || notifications() == 2);
    assert_eq!(early.seen().len(), 2);
    assert!(!outrigger.get("/status").text().contains("-/reload: "), "the error is cleared");
    outrigger.finish();
}
