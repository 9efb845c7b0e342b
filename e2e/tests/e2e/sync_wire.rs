//! Git servers as they are in the field: slow, silent, strict. In: real servers behind relays of the test. Out: the published
//! revisions and the reported errors. Bounded by a timeout of one second; the default is thirty.

use std::time::{Duration, Instant};

use crate::harness::git::relay::{Pace, Relay, Strictness, old_daemon};
use crate::harness::git::{Repository, await_generation, await_refusal, sync_state};
use crate::harness::{Outrigger, SECOND, Scene};

const NO_GIT: &str = "git is not installed";
const NO_DAEMON: &str = "git-daemon is not installed";
const NO_HTTP: &str = "git-http-backend or python3 is not installed";

const SETTINGS: &str = r#"
sync:
  settings:
    store: { git: { url: "@url@", ref: main, path: orders/, timeout: 1s, connect_timeout: 1s, interval: 200ms } }
    publish: { symlink: { path: "@dir@/out/settings" } }
"#;

/// The timeout is one second; a loaded machine gets four.
const SILENCE: Duration = Duration::from_secs(4);

/// A relay in front of a server; the URL then points to the relay.
fn relayed(scene: &Scene, url: &str, port: &str) -> Relay {
    let own = format!("127.0.0.1:{}", scene.value(port));
    let relay = Relay::start(&own, Pace::Free);
    scene.set("url", url.replace(&own, &relay.address()));
    relay
}

/// A fetch from a server that stalls in any phase times out with the server's address in the error, and the next poll succeeds.
fn check_silence(scene: &Scene, repository: &Repository, relay: &Relay, words: &[&str]) {
    let outrigger = Outrigger::start(scene, SETTINGS, &[]);
    for (number, after) in [0, 20, 300_000].into_iter().enumerate() {
        repository.add_noise(1 << 20);
        let held = relay.silent();
        relay.pace(Pace::SilentAfter(after));
        repository.push(2 + number);
        relay.await_silent(held + 1);
        await_refusal(&outrigger, SILENCE, words);
        relay.pace(Pace::Free);
        await_generation(scene, 2 + number, &format!("after silence that follows {after} bytes"));
    }
    outrigger.finish();
}

/// git:// in each phase: before the first byte, within the first line, in the pack.
#[test]
fn a_silent_git_daemon_times_out() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, url) = need!(repository.daemon(&scene), NO_DAEMON);
    let relay = relayed(&scene, &url, "git_daemon");
    check_silence(&scene, &repository, &relay, &["no bytes from 127.0.0.1", "within 1s"]);
}

/// The same over HTTP.
#[test]
fn a_silent_git_http_server_times_out() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_http, url) = need!(repository.http(&scene), NO_HTTP);
    let relay = relayed(&scene, &url, "git_http");
    check_silence(&scene, &repository, &relay, &["127.0.0.1", "within 1s"]);
}

/// A slow stream without gaps does not time out, however long it takes in total.
fn check_slowness(scene: &Scene, repository: &Repository, relay: &Relay) {
    let outrigger = Outrigger::start(scene, SETTINGS, &[]);
    relay.pace(Pace::BytesPerSecond(400_000));
    repository.add_noise(1_200_000);
    repository.push(2);
    let from = Instant::now();
    await_generation(scene, 2, "at 400 kB/s");
    assert!(from.elapsed() > 2 * SECOND, "it took longer than the timeout: {:?}", from.elapsed());
    assert!(sync_state(&outrigger).0 == "ok" && !outrigger.stderr.contains("WARN"), "{}", outrigger.stderr.text());
    outrigger.finish();
}

/// Over HTTP.
#[test]
fn a_slow_pack_over_http_does_not_time_out() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_http, url) = need!(repository.http(&scene), NO_HTTP);
    let relay = relayed(&scene, &url, "git_http");
    check_slowness(&scene, &repository, &relay);
}

/// Over git://.
#[test]
fn a_slow_pack_of_git_daemon_does_not_time_out() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, url) = need!(repository.daemon(&scene), NO_DAEMON);
    let relay = relayed(&scene, &url, "git_daemon");
    check_slowness(&scene, &repository, &relay);
}

/// A server of protocol 0 that accepts a request in the specified order only: a second fetch, after a first one, works too.
#[test]
fn a_strict_protocol_0_server_serves_every_fetch() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, _) = need!(repository.daemon(&scene), NO_DAEMON);
    let strict = old_daemon(&format!("127.0.0.1:{}", scene.value("git_daemon")), Strictness::Grammar);
    scene.set("url", format!("git://{}/config.git", strict.address()));
    // A commit with a parent: then a fetch of one commit has to record its shallow boundary.
    repository.push(2);
    let outrigger = Outrigger::start(&scene, SETTINGS, &[]);
    for generation in 3..6 {
        repository.push(generation);
        await_generation(&scene, generation, "from a strict server");
    }
    repository.push(1);
    await_generation(&scene, 1, "whose files are in the history, but not in the first fetch");
    assert!(
        !outrigger.stderr.contains("recreating the git cache"),
        "each fetch uses the cache: {}",
        outrigger.stderr.text()
    );
    outrigger.finish();
}

/// From a history of three large commits and a small one, only the last one is fetched with protocol 0.
#[test]
fn protocol_0_fetches_only_one_commit() {
    let scene = Scene::new();
    let repository = need!(Repository::create(&scene), NO_GIT);
    let (_daemon, _) = need!(repository.daemon(&scene), NO_DAEMON);
    for generation in 2..5 {
        repository.add_noise(1 << 20);
        repository.push(generation);
    }
    repository.add_noise(10);
    repository.push(5);
    let relay = Relay::start(&format!("127.0.0.1:{}", scene.value("git_daemon")), Pace::Free);
    let old = old_daemon(&relay.address(), Strictness::Git);
    scene.set("url", format!("git://{}/config.git", old.address()));
    let outrigger = Outrigger::start(&scene, SETTINGS, &[]);
    await_generation(&scene, 5, "from a server of protocol 0");
    assert!(relay.passed() < 1 << 20, "{} bytes were sent for one small commit", relay.passed());
    outrigger.finish();
}
