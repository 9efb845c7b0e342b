//! Names with several addresses of which some are dead: they refuse a connection, or drop what is sent to them.
//! Addresses of both families come in, deliveries go out by the one that is alive, which stands last. Bounded by a
//! block of loopback addresses for each test.

use std::net::TcpListener;

use crate::harness::callers::{Callers, KINDS, NO_CALLERS, Place, git_daemon};
use crate::harness::git::Repository;
use crate::harness::names::{Blackhole, Dnsmasq, Mounted, NO_NAMES, Names, hosts_of};
use crate::harness::{Answer, LogReceiver, PATIENCE, Scene, Wait};

const NO_IPV6: &str = "there is no IPv6 on loopback";

/// The hosts of all kinds have these addresses, in this order: half of them by the name server, half in the hosts file.
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

/// The first address refuses connections, the second one drops them.
/// covers: faults 1
#[test]
fn dead_addresses_of_a_name_are_passed_over() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let (refuses, drops) = (names.address(1), names.address(2));
    let _holes = Callers::ports(&scene).map(|(_, port)| Blackhole::at(&format!("{drops}:{port}")));
    check(&scene, &names, callers, &[&refuses, &drops, "127.0.0.1"]);
}

/// It stands first (RFC 6724, 6). It refuses half of the connections, and drops the other half.
/// covers: faults 1
#[test]
fn a_dead_ipv6_address_costs_a_name_nothing() {
    let scene = Scene::new();
    need!(TcpListener::bind("[::1]:0").ok(), NO_IPV6);
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    let dropped = Callers::ports(&scene).into_iter().skip(1).step_by(2);
    let _holes: Vec<Blackhole> = dropped.map(|(_, port)| Blackhole::at(&format!("[::1]:{port}"))).collect();
    check(&scene, &names, callers, &["::1", "127.0.0.1"]);
}

/// Both addresses of each name have all servers: the IPv6 one is taken, as RFC 6724, 6 orders them.
/// covers: faults 1
#[test]
fn a_living_ipv6_address_is_taken_first() {
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
    assert_eq!(four.reached(), [0; 5], "nobody was asked at the other address");
    outrigger.finish();
    six.stop();
    four.stop();
}

/// By the name server, in the hosts file, and as `localhost`, which is both (RFC 6761, 6.3).
/// covers: faults 1
#[test]
fn a_name_that_is_served_in_one_family_alone_is_reached() {
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
