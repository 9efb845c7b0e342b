//! Name servers that fail, are wrong, slow, silent or down. One instance of each kind that connects out queries them; the
//! status and Outrigger's log contain the host, the server and its answer, and once the server recovers, everything
//! arrives. Bounded by the timeouts of a resolver: a few seconds per query.

use std::time::Duration;

use crate::harness::callers::{Callers, KINDS, NO_CALLERS, assert_said};
use crate::harness::ledger::dropped;
use crate::harness::names::{Dnsmasq, FaultyServer, Mounted, NO_NAMES, Names, hosts_of};
use crate::harness::{PATIENCE, Scene, Wait, ledger_row, until};

fn hosts() -> String {
    hosts_of(&KINDS.map(|kind| format!("{kind}.names.test")), &["127.0.0.1"])
}

/// Each kind reports these words with its host, and nothing is dropped; after the repair, everything arrives.
fn check(scene: &Scene, names: &Names, mut callers: Callers, words: &[&str], repair: impl FnOnce()) {
    callers.feed(scene);
    let outrigger = names.start(scene, Callers::body(), Wait::Nothing);
    // A notification reports an error only after several attempts: the test of the rarer faults waits for that.
    for kind in KINDS.into_iter().filter(|kind| *kind != "notice") {
        assert_said(&outrigger, &format!("{kind}.names.test"), words, PATIENCE);
    }
    assert_eq!(callers.missing(scene), KINDS, "nothing arrives");
    assert_eq!(outrigger.status_of("/live"), 200, "a restart would not help");
    assert_eq!(dropped(&ledger_row(&outrigger.admin, "metrics.sinks.central")), 0);
    let worker = outrigger.worker();
    repair();
    callers.assert_all_work(scene, &outrigger);
    until(PATIENCE, "health is ok", || outrigger.get("/status").json()["health"] == "ok");
    assert_eq!(outrigger.worker(), worker, "the worker stayed");
    outrigger.finish();
    callers.stop();
}

/// dnsmasq answers NXDOMAIN until it has the names.
#[test]
fn nxdomain_is_reported_and_loses_nothing() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let dnsmasq = Dnsmasq::start(&scene, &names, 0, "", &[]);
    check(&scene, &names, callers, &["NXDOMAIN"], || dnsmasq.hosts(&hosts()));
}

#[test]
fn servfail_is_reported_and_loses_nothing() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let server = FaultyServer::start(&scene, &names, 0, &hosts());
    server.answer(Some("servfail"));
    check(&scene, &names, callers, &["SERVFAIL", &names.server(0)], || server.answer(None));
    server.assert_queries();
}

/// Also if a request has less time than the name lookup, such as a scrape every second: the name server is reported as
/// the fault, not the receiver.
/// Guarantee: dns-outage-loses-nothing
#[test]
fn dns_timeout_is_reported_and_loses_nothing() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let server = FaultyServer::start(&scene, &names, 0, &hosts());
    server.answer(Some("silence"));
    check(&scene, &names, callers, &["no response from", &names.server(0)], || server.answer(None));
    server.assert_queries();
}

/// Nothing listens on its address until a server is started.
/// Guarantee: dns-outage-loses-nothing
#[test]
fn dns_server_down_is_reported_and_loses_nothing() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let mut dnsmasq = None;
    check(&scene, &names, callers, &["name server", &names.server(0)], || {
        dnsmasq = Some(Dnsmasq::start(&scene, &names, 0, &hosts(), &[]));
    });
}

/// The rarer faults, in sequence in one run: each is reported, none ends the worker, and pending deliveries arrive.
#[test]
fn rare_dns_faults_are_reported_and_lose_nothing() {
    const BODY: &str = r#"
logs:
  sources: { files: { file: { include: ["@dir@/logs/in.log"], read_from: beginning } } }
  sinks: { lines: { http: { url: "http://lines.names.test:@lines@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } } }
metrics:
  sources: { page: { scrape: { url: "http://page.names.test:@page@/metrics", interval: 1s } } }
  sinks: { none: { prometheus: { listen: "127.0.0.1:@none@" } } }
sync:
  local:
    store: { git: { url: "@local_url@", ref: main, path: orders/, interval: 1s } }
    publish: { symlink: { path: "@dir@/out/local" } }
    notify: [ { http: { url: "http://notice.names.test:@notice@/-/reload" } } ]
"#;
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let mut callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let server = FaultyServer::start(&scene, &names, 0, &hosts());
    scene.port("none");
    callers.feed(&scene);
    server.answer(Some("refused"));
    let outrigger = names.start(&scene, BODY, Wait::Nothing);
    let address = names.server(0);
    for (fault, word) in [
        ("refused", "REFUSED"),
        ("empty", "no A/AAAA records"),
        ("garbage", address.as_str()),
        ("nxdomain", "NXDOMAIN"),
    ] {
        server.answer(Some(fault));
        assert_said(&outrigger, "page.names.test", &[word], PATIENCE);
        assert_eq!(outrigger.status_of("/live"), 200, "{fault}");
    }
    assert_said(&outrigger, "notice.names.test", &["NXDOMAIN"], PATIENCE);
    server.answer(None);
    callers.assert_work(&scene, &outrigger, &["lines", "page", "notice"]);
    assert_eq!(outrigger.get("/status").json()["worker_generation"], 0);
    server.assert_queries();
    outrigger.finish();
    callers.stop();
}

/// The answer over UDP is empty and has the TC flag: only the answer over TCP is complete (RFC 7766, 5).
#[test]
fn truncated_answer_is_retried_over_tcp() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let server = FaultyServer::start(&scene, &names, 0, &hosts());
    server.cut();
    check_delivery(&scene, &names, callers);
    for kind in KINDS {
        assert!(server.was_queried(&format!("tcp A {kind}.names.test")), "{kind}");
    }
    server.assert_queries();
}

/// Servers with only IPv4 answer AAAA queries in many faulty ways, or not at all (RFC 4074, 4).
#[test]
fn faulty_aaaa_answers_do_not_affect_delivery() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let mut server = FaultyServer::start(&scene, &names, 0, &hosts());
    let faults = ["silence", "servfail", "silence", "nxdomain", "silence", "silence", "refused"];
    for (kind, fault) in KINDS.into_iter().zip(faults) {
        server.fault(&format!("{kind}.names.test"), "AAAA", fault);
    }
    check_delivery(&scene, &names, callers);
    server.assert_queries();
}

/// Each kind works, whatever its name servers do.
fn check_delivery(scene: &Scene, names: &Names, mut callers: Callers) {
    callers.feed(scene);
    let outrigger = names.start(scene, Callers::body(), Wait::Nothing);
    callers.assert_all_work(scene, &outrigger);
    outrigger.finish();
    callers.stop();
}

/// The first server of resolv.conf has this fault, or is down; the second server answers correctly, with a delay.
fn check_next(scene: &Scene, names: &Names, callers: Callers, fault: Option<&str>) {
    let first = fault.map(|fault| {
        let server = FaultyServer::start(scene, names, 0, &hosts());
        server.answer(Some(fault));
        server
    });
    let next = FaultyServer::start(scene, names, 1, &hosts());
    next.delay(Duration::from_millis(200));
    names.use_servers(&[0, 1], "");
    check_delivery(scene, names, callers);
    drop((first, next));
}

#[test]
fn next_name_server_answers_if_the_first_is_down() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    check_next(&scene, &names, callers, None);
}

/// SERVFAIL is not an answer about the name: the system's own resolver queries the next server too.
#[test]
fn next_name_server_answers_if_the_first_fails() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    check_next(&scene, &names, callers, Some("servfail"));
}

#[test]
fn next_name_server_answers_after_a_timeout() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    check_next(&scene, &names, callers, Some("silence"));
}

/// Name servers are queried in the order of the file (resolv.conf(5)). The first server has the internal names and is
/// slow; the second server immediately answers that they do not exist.
#[test]
fn slow_first_name_server_takes_precedence() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let slow = FaultyServer::start(&scene, &names, 0, &hosts());
    slow.delay(Duration::from_millis(400));
    let _without = Dnsmasq::start(&scene, &names, 1, "", &[]);
    names.use_servers(&[0, 1], "");
    check_delivery(&scene, &names, callers);
    slow.assert_queries();
}
