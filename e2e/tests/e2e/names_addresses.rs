//! Names with several addresses of which some are unreachable: they refuse a connection, or drop packets.
//! In: addresses of both families. Out: deliveries to the reachable address, which is last. Bounded by a
//! block of loopback addresses per test.

use std::net::TcpListener;

use crate::harness::callers::{Callers, KINDS, NO_CALLERS, Place, git_daemon};
use crate::harness::git::Repository;
use crate::harness::names::{Blackhole, Dnsmasq, Mounted, NO_NAMES, Names, hosts_of};
use crate::harness::{Answer, LogReceiver, PATIENCE, Scene, Wait};

const NO_IPV6: &str = "there is no IPv6 on loopback";

/// The hosts of all kinds have these addresses, in this order: half of them from the name server, half from the hosts file.
fn check(scene: &Scene, names: &Names, mut callers: Callers, addresses: &[&str]) {
    let hosts = KINDS.map(|kind| format!("{kind}.names.test"));
    let (of_server, of_file): (Vec<_>, Vec<_>) = hosts.iter().partition(|host| host.as_bytes()[0] % 2 == 0);
    names.hosts(&hosts_of(&of_file, addresses));
    let _dnsmasq = Dnsmasq::start(scene, names, 0, &hosts_of(&of_server, addresses), &[]);
    callers.feed(scene);
    let outrigger = names.start(scene, Callers::body(), Wait::Nothing);
    callers.assert_all_work(scene, &outrigger);
    outrigger.finish();
    callers.stop();
}

/// The first address refuses connections, the second address drops them.
#[test]
fn unreachable_addresses_are_skipped() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let (refuses, drops) = (names.address(1), names.address(2));
    let _holes = Callers::ports(&scene).map(|(_, port)| Blackhole::at(&format!("{drops}:{port}")));
    check(&scene, &names, callers, &[&refuses, &drops, "127.0.0.1"]);
}

/// The IPv6 address is first (RFC 6724, 6). It refuses half of the connections, and drops the other half.
#[test]
fn dead_ipv6_address_falls_back_to_ipv4() {
    let scene = Scene::new();
    need!(TcpListener::bind("[::1]:0").ok(), NO_IPV6);
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let dropped = Callers::ports(&scene).into_iter().skip(1).step_by(2);
    let _holes: Vec<Blackhole> = dropped.map(|(_, port)| Blackhole::at(&format!("[::1]:{port}"))).collect();
    check(&scene, &names, callers, &["::1", "127.0.0.1"]);
}

/// All servers listen on both addresses of each name: the IPv6 address is used, by the order of RFC 6724, 6.
#[test]
fn reachable_ipv6_address_is_preferred() {
    let scene = Scene::new();
    need!(TcpListener::bind("[::1]:0").ok(), NO_IPV6);
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let repository = need!(Repository::create(&scene), NO_CALLERS);
    let daemon = need!(git_daemon(), NO_CALLERS);
    Place::ports(&scene);
    let (six, four) = ["[::1]", "127.0.0.1"].map(|at| Place::start(&scene, &repository, &daemon, at)).into();
    let (of_server, of_file) = Place::HOSTS.split_at(3);
    names.hosts(&hosts_of(of_file, &["127.0.0.1", "::1"]));
    let _dnsmasq = Dnsmasq::start(&scene, &names, 0, &hosts_of(of_server, &["127.0.0.1", "::1"]), &[]);
    scene.write("logs/in.log", "n=000000\n");
    let outrigger = names.start(&scene, Place::BODY, Wait::Nothing);
    six.assert_works(&scene, 1, PATIENCE);
    assert_eq!(four.reached(), [0; 5], "the IPv4 address got no request");
    outrigger.finish();
    six.stop();
    four.stop();
}

/// From the name server, from the hosts file, and as `localhost`, which has both families (RFC 6761, 6.3).
#[test]
fn name_with_a_single_family_is_reached() {
    const BODY: &str = r#"
logs:
  sources: { files: { file: { include: ["@dir@/logs/in.log"], read_from: beginning } } }
  sinks:
    server: { http: { url: "http://server.names.test:@six@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
    file:   { http: { url: "http://file.names.test:@six@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
    six:    { http: { url: "http://localhost:@six@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
    four:   { http: { url: "http://localhost:@four@/lines" }, batch: { max_bytes: 64KiB, max_age: 50ms } }
"#;
    let scene = Scene::new();
    need!(TcpListener::bind("[::1]:0").ok(), NO_IPV6);
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let _dnsmasq = Dnsmasq::start(&scene, &names, 0, "::1 server.names.test\n", &[]);
    names.hosts("::1 file.names.test\n");
    let six = LogReceiver::start_at(format!("[::1]:{}", scene.port("six")), Answer::Accept);
    let four = LogReceiver::start_on(scene.port("four"), Answer::Accept);
    scene.write("logs/in.log", "n=000000\n");
    let outrigger = names.start(&scene, BODY, Wait::Ready);
    six.wait_for(3, PATIENCE);
    four.wait_for(1, PATIENCE);
    outrigger.finish();
}
