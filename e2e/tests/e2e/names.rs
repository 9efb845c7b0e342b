//! Host names in every outgoing URL, with the default sandbox: one instance of every kind that connects out, each to its
//! own host, from a hosts file and from dnsmasq. In: names, aliases and search lists. Out: deliveries. Bounded by one
//! start of the program per test.

use crate::harness::callers::{Callers, KINDS, NO_CALLERS};
use crate::harness::names::{Dnsmasq, Mounted, NO_NAMES, Names, hosts_of};
use crate::harness::raw_app::answer_ok;
use crate::harness::{PATIENCE, RawApp, Scene, Wait, until};

/// The sandbox is active, everything works, and a second round works too.
fn check(scene: &Scene, names: &Names, mut callers: Callers) {
    callers.feed(scene);
    let outrigger = names.start(scene, Callers::body(), Wait::Nothing);
    callers.assert_all_work(scene, &outrigger);
    assert!(!outrigger.get("/status").json()["sandbox"].is_null(), "the sandbox is active");
    callers.feed(scene);
    callers.assert_all_work(scene, &outrigger);
    outrigger.finish();
    callers.stop();
}

/// No name server is queried, neither for the address nor for one of the other family: there is none. Names are
/// case-insensitive (RFC 4343), and an underscore is allowed, as in the names of Compose services.
#[test]
fn every_kind_resolves_from_the_hosts_file() {
    const HOSTS: &str = "\
127.0.0.1 lines.names.test loki.names.test page.names.test # and no others
127.0.0.1\tweb.names.test  DAEMON.names.test
127.0.0.1 my_central notice
";
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    names.hosts(HOSTS);
    scene.set("page_host", "Page.Names.TEST");
    scene.set("central_host", "my_central");
    scene.set("notice_host", "notice");
    check(&scene, &names, callers);
}

/// Names with an address, and names that are aliases of another name.
#[test]
fn every_kind_resolves_by_a_name_server() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let hosts =
        hosts_of(&["real", "page.names.test", "my_central", "notice.names.test", "web.names.test"], &["127.0.0.1"]);
    let aliases = ["lines", "loki", "daemon"].map(|kind| format!("--cname={kind}.names.test,real"));
    let aliases = aliases.each_ref().map(String::as_str);
    let _dnsmasq = Dnsmasq::start(&scene, &names, 0, &hosts, &aliases);
    scene.set("central_host", "my_central");
    check(&scene, &names, callers);
}

const IN_A_POD: &str = "\
# As written by a kubelet and by users, with options that a resolver may not know.
search shop.svc.cluster.local svc.cluster.local cluster.local
options ndots:5 edns0 trust-ad
options single-request-reopen no-such-option timeout:2 attempts:3
; the end
";

/// As in a Pod: a search list, and `ndots` above the number of dots in every name, so that each name is looked up in each
/// domain of the list first (resolv.conf(5)). A trailing dot marks a name as absolute.
#[test]
fn names_are_completed_by_the_search_list() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ""), NO_CALLERS);
    let inside = KINDS.map(|kind| format!("{kind}.shop.svc.cluster.local"));
    let hosts = hosts_of(&inside, &["127.0.0.1"]) + "127.0.0.1 central.names.test\n";
    let dnsmasq = Dnsmasq::start(&scene, &names, 0, &hosts, &[]);
    names.use_servers(&[0], IN_A_POD);
    scene.set("loki_host", "loki.shop");
    scene.set("daemon_host", "daemon.shop.svc");
    scene.set("page_host", "page.shop.svc.cluster.local");
    scene.set("web_host", "web.shop.svc.cluster.local.");
    scene.set("central_host", "central.names.test");
    check(&scene, &names, callers);
    assert!(dnsmasq.was_queried("central.names.test.shop.svc.cluster.local"), "the search list is tried first");
    assert!(
        !dnsmasq.was_queried("web.shop.svc.cluster.local.shop.svc.cluster.local"),
        "an absolute name is not completed"
    );
}

/// The HTTP proxy resolves the name of the receiver.
#[test]
fn http_proxy_host_is_resolved() {
    const BODY: &str = r#"
logs:
  sources: { files: { file: { include: ["@dir@/logs/in.log"], read_from: beginning } } }
  sinks: { lines: { http: { url: "http://unknown.names.test:8080/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } } }
"#;
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let hosts = hosts_of(&["proxy.names.test"], &["127.0.0.1"]);
    let dnsmasq = Dnsmasq::start(&scene, &names, 0, &hosts, &[]);
    scene.write("logs/in.log", "one line\n");
    let proxy = RawApp::start(|_, wire| answer_ok(wire, b""));
    let url = proxy.address().replace("127.0.0.1", "http://proxy.names.test");
    let outrigger = names.start_with(&scene, BODY, Wait::Ready, |command| {
        command.env("http_proxy", &url);
    });
    until(PATIENCE, "the proxy got the request", || proxy.seen_count() > 0);
    assert_eq!(proxy.seen()[0].head.target(), "http://unknown.names.test:8080/lines");
    assert!(!dnsmasq.was_queried("unknown.names.test"));
    outrigger.finish();
}
