//! Names that change while the program runs: another address of a name, another content of the hosts file and
//! resolv.conf, and replacement of these files. ssh, which resolves names by itself inside Outrigger's sandbox, has
//! separate tests. In: changes. Out: deliveries that follow them within seconds. Bounded by one start of the program
//! per test.

use std::io::Write;
use std::time::Duration;

use crate::harness::callers::{Callers, KINDS, NO_CALLERS, Place, assert_said, git_daemon};
use crate::harness::git::{Repository, published};
use crate::harness::names::{Dnsmasq, FaultyServer, Mounted, NO_NAMES, Names, hosts_of};
use crate::harness::{PATIENCE, Scene, Wait, until};

const NO_SSHD: &str = "git, sshd, ssh or ssh-keygen is not installed";

/// A change takes effect within five seconds; four times that on a loaded machine.
const SOON: Duration = Duration::from_secs(20);

/// The servers of all kinds stop at one address and start at another address.
fn check_move(scene: &Scene, names: &Names, (repository, daemon): (&Repository, &str), publish: impl Fn(&str)) {
    let [old, new] = [names.address(1), names.address(2)];
    Place::ports(scene);
    let before = Place::start(scene, repository, daemon, &old);
    publish(&hosts_of(&Place::HOSTS, &[&old]));
    append(scene, "n=000000\n");
    let outrigger = names.start(scene, Place::BODY, Wait::Nothing);
    before.assert_works(scene, 1, PATIENCE);
    assert_eq!(before.numbers(), [0]);
    before.stop();
    let after = Place::start(scene, repository, daemon, &new);
    publish(&hosts_of(&Place::HOSTS, &[&new]));
    repository.push(2);
    append(scene, "n=000001\n");
    after.assert_works(scene, 2, SOON);
    assert_eq!(after.numbers(), [1], "nothing is lost, and nothing is duplicated");
    outrigger.finish();
    after.stop();
}

fn append(scene: &Scene, line: &str) {
    std::fs::create_dir_all(scene.path("logs")).expect("a directory of the scene can be created");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(scene.path("logs/in.log"));
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the log can be written");
}

/// The name server returns a TTL of one second.
#[test]
fn dns_change_is_followed_after_its_ttl() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let repository = need!(Repository::create(&scene), NO_CALLERS);
    let daemon = need!(git_daemon(), NO_CALLERS);
    let dnsmasq = Dnsmasq::start(&scene, &names, 0, "", &[]);
    check_move(&scene, &names, (&repository, &daemon), |hosts| dnsmasq.hosts(hosts));
}

#[test]
fn hosts_file_change_is_followed() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let repository = need!(Repository::create(&scene), NO_CALLERS);
    let daemon = need!(git_daemon(), NO_CALLERS);
    check_move(&scene, &names, (&repository, &daemon), |hosts| names.hosts(hosts));
}

/// No name exists at first. Half of the names are in the next hosts file, the other half on the next name server.
fn check_change(scene: &Scene, names: &Names, mut callers: Callers) {
    let (of_file, of_server) = KINDS.split_at(4);
    let host = |kind: &&str| format!("{kind}.names.test");
    let hosts = |kinds: &[&str]| hosts_of(&kinds.iter().map(host).collect::<Vec<_>>(), &["127.0.0.1"]);
    let _without = Dnsmasq::start(scene, names, 0, "", &[]);
    let _with = Dnsmasq::start(scene, names, 1, &hosts(of_server), &[]);
    callers.feed(scene);
    let outrigger = names.start(scene, Callers::body(), Wait::Nothing);
    for kind in ["lines", "page", "web", "daemon"] {
        assert_said(&outrigger, &host(&kind), &[], PATIENCE);
    }
    names.hosts(&hosts(of_file));
    callers.assert_work(scene, &outrigger, of_file);
    assert_eq!(callers.missing(scene), of_server);
    names.use_servers(&[1], "");
    callers.assert_all_work(scene, &outrigger);
    outrigger.finish();
    callers.stop();
}

/// Container engines and the kubelet write into the mounted files.
#[test]
fn rewritten_hosts_and_resolv_conf_are_reloaded() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    check_change(&scene, &names, callers);
}

/// Editors and network managers replace the file.
#[test]
fn replaced_hosts_and_resolv_conf_are_reloaded() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Folder), NO_NAMES);
    let callers = need!(Callers::start(&scene, ".names.test"), NO_CALLERS);
    check_change(&scene, &names, callers);
}

/// ssh is a program of the system, with the system's own resolver. Its host is first in the hosts file, then nowhere,
/// which the status reports with the message of ssh, then on a name server through a search list, then on a name server
/// whose answers over UDP are truncated.
fn check_ssh(scene: &Scene, names: &Names, repository: &Repository, url: &str) {
    const BODY: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 8s } }
sync:
  shell:
    store:
      git:
        url: "@url@"
        ref: main
        path: orders/
        ssh: { key_file: "@dir@/keys/user_key", known_hosts_file: "@dir@/keys/known_hosts" }
        interval: 1s
    publish: { symlink: { path: "@dir@/out/shell" } }
"#;
    let hosts = hosts_of(&["shell.shop.names.test"], &["127.0.0.1"]);
    let _dnsmasq = Dnsmasq::start(scene, names, 0, &hosts, &[]);
    let faulty = FaultyServer::start(scene, names, 1, &hosts);
    faulty.cut();
    scene.set("url", url.replace("127.0.0.1", "shell.shop"));
    let key = std::fs::read_to_string(scene.path("host_key.pub")).expect("sshd has one");
    scene.write("keys/known_hosts", format!("[shell.shop]:{} {key}", scene.value("sshd")));
    std::fs::copy(scene.path("user_key"), scene.path("keys/user_key")).expect("sshd lets it in");
    let is_published = |generation| published(&scene.path("out/shell")) == Ok(Some(generation));

    names.hosts(&hosts_of(&["shell.shop"], &["127.0.0.1"]));
    let outrigger = names.start(scene, BODY, Wait::Nothing);
    until(PATIENCE, "generation 1 from the hosts file", || is_published(1));
    names.hosts("");
    assert_said(&outrigger, "shell.shop", &["resolve hostname"], SOON);
    names.use_servers(&[0], "search names.test\n");
    repository.push(2);
    until(SOON, "generation 2 by a name server", || is_published(2));
    names.use_servers(&[1], "search names.test\n");
    until(SOON, "answers over TCP", || faulty.was_queried("tcp A shell.shop.names.test"));
    repository.push(3);
    until(SOON, "generation 3 by answers over TCP", || is_published(3));
    for (generation, fault) in [(4, "servfail"), (5, "silence")] {
        faulty.answer(Some(fault));
        assert_said(&outrigger, "shell.shop", &["resolve hostname"], 2 * SOON);
        repository.push(generation);
        faulty.answer(None);
        until(2 * SOON, &format!("generation {generation} after {fault}"), || is_published(generation));
    }
    // The first two addresses accept no connection.
    names.hosts(&hosts_of(&["shell.shop"], &["::1", &names.address(3), "127.0.0.1"]));
    repository.push(6);
    until(SOON, "generation 6 by the last of several addresses", || is_published(6));
    outrigger.finish();
}

#[test]
fn ssh_resolves_its_host_from_every_source() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Files), NO_NAMES);
    let repository = need!(Repository::create(&scene), NO_SSHD);
    let (sshd, url) = need!(repository.sshd(&scene), NO_SSHD);
    check_ssh(&scene, &names, &repository, &url);
    sshd.stop();
}

#[test]
fn ssh_resolves_its_host_from_replaced_files() {
    let scene = Scene::new();
    let names = need!(Names::new(&scene, Mounted::Folder), NO_NAMES);
    let repository = need!(Repository::create(&scene), NO_SSHD);
    let (sshd, url) = need!(repository.sshd(&scene), NO_SSHD);
    check_ssh(&scene, &names, &repository, &url);
    sshd.stop();
}
