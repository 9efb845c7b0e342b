//! Name resolution for one test: the program runs in a mount namespace with the test's own hosts file, resolv.conf and
//! nsswitch.conf, and queries name servers on loopback: dnsmasq, or one that injects faults. In: a scene and texts. Out:
//! addresses and a started program. Each test has its own block of 256 loopback addresses, so that port 53 of each is
//! free. Limits: 16,384 blocks; servers end with the test.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, bind, listen, socket_with};
use serde_json::json;

use super::outrigger::binary;
use super::process::{Running, Signal};
use super::{Outrigger, PATIENCE, Scene, Wait, fixture, peer, until, workspace};

pub const NO_NAMES: &str = "not root, or a mount namespace is refused, or dnsmasq or Python's dnslib is not installed";

/// How the files of `Names` are mounted for the program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mounted {
    /// Each is mounted over the system's, as container engines do. A change writes into the file.
    Files,
    /// `/etc` is another directory, with copies of what else is needed there. A change replaces the file with another one,
    /// as editors and network managers do. resolv.conf is a link to another directory, as with systemd-resolved.
    Folder,
}

pub struct Names {
    directory: PathBuf,
    /// The file itself, to which the one in the directory may be a link.
    resolv_conf: PathBuf,
    mounted: Mounted,
    /// The second and third byte of all addresses of this test.
    block: (u8, u8),
}

impl Names {
    /// Names are looked up in the hosts file, then at the name server `server(0)`; `None` if this process cannot mount
    /// anything, or a name server is not installed.
    pub fn new(scene: &Scene, mounted: Mounted) -> Option<Self> {
        static POSSIBLE: OnceLock<bool> = OnceLock::new();
        if !*POSSIBLE.get_or_init(is_possible) {
            return None;
        }
        let directory = scene.path("etc");
        std::fs::create_dir(&directory).expect("the scene is writable");
        let resolv_conf = match mounted {
            Mounted::Files => directory.join("resolv.conf"),
            Mounted::Folder => scene.write("resolve/resolv.conf", ""),
        };
        let names = Self { directory, resolv_conf, mounted, block: free_block() };
        if mounted == Mounted::Folder {
            names.copy_system();
        }
        std::fs::write(names.directory.join("nsswitch.conf"), NSSWITCH).expect("the scene is writable");
        names.hosts("");
        names.use_servers(&[0], "");
        Some(names)
    }

    /// Copies what the program, and ssh started by it, read in `/etc` in addition to names.
    fn copy_system(&self) {
        let system = ["passwd", "group", "ld.so.cache", "host.conf", "ssh", "ssl"];
        let existing = system.map(|name| Path::new("/etc").join(name)).into_iter().filter(|path| path.exists());
        let copied = Command::new("cp").arg("-a").args(existing).arg(&self.directory).status();
        assert!(copied.is_ok_and(|status| status.success()), "files of /etc can be copied");
        let link = self.directory.join("resolv.conf");
        std::os::unix::fs::symlink(&self.resolv_conf, link).expect("the scene is writable");
    }

    /// An address that only this test uses; those of `server` are at the end of the block.
    pub fn address(&self, last: u8) -> String {
        format!("127.{}.{}.{last}", self.block.0, self.block.1)
    }

    /// The address of a name server.
    pub fn server(&self, number: u8) -> String {
        self.address(200 + number)
    }

    /// Sets the lines of the hosts file in addition to `localhost`.
    pub fn hosts(&self, lines: &str) {
        self.change(&self.directory.join("hosts"), &format!("{HOSTS}{lines}"));
    }

    /// Writes resolv.conf with these name servers, and more lines.
    pub fn use_servers(&self, servers: &[u8], more: &str) {
        let mut text: String = servers.iter().map(|number| format!("nameserver {}\n", self.server(*number))).collect();
        text.push_str(more);
        self.change(&self.resolv_conf, &text);
    }

    fn change(&self, path: &Path, text: &str) {
        let written = match self.mounted {
            Mounted::Files => std::fs::write(path, text),
            Mounted::Folder => {
                let aside = path.with_extension("aside");
                std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, path))
            }
        };
        written.expect("the test owns the files");
    }

    /// Starts the program with these files in `/etc`. Its configuration is in a separate directory, so that its sandbox
    /// grants nothing else of the scene with it.
    #[track_caller]
    pub fn start(&self, scene: &Scene, body: &str, wait: Wait) -> Outrigger {
        self.start_with(scene, body, wait, |_| {})
    }

    #[track_caller]
    pub fn start_with(&self, scene: &Scene, body: &str, wait: Wait, prepare: impl FnOnce(&mut Command)) -> Outrigger {
        Outrigger::start_binary(&binary(), scene, "config/outrigger.yaml", body, &[], wait, |command| {
            self.enclose(command);
            prepare(command);
        })
    }

    fn enclose(&self, command: &mut Command) {
        let mut outer = Command::new("unshare");
        let script = match self.mounted {
            Mounted::Files => MOUNT_FILES,
            Mounted::Folder => MOUNT_DIRECTORY,
        };
        outer.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&self.directory);
        outer.arg(command.get_program()).args(command.get_args());
        // Variables that would send requests or DNS queries elsewhere (resolv.conf(5), and every HTTP client).
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            outer.env_remove(name).env_remove(name.to_uppercase());
        }
        outer.env_remove("RES_OPTIONS").env_remove("LOCALDOMAIN").env_remove("HOSTALIASES");
        *command = outer;
    }
}

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// `exec`, so that the program has the process id of the started process.
const MOUNT_FILES: &str =
    "for file in \"$0\"/*; do mount --bind \"$file\" \"/etc/${file##*/}\" || exit 1; done; exec \"$@\"";
const MOUNT_DIRECTORY: &str = "mount --bind \"$0\" /etc && exec \"$@\"";

fn is_possible() -> bool {
    let script =
        "for name in hosts resolv.conf nsswitch.conf; do mount --bind /etc/hosts \"/etc/$name\" || exit 1; done";
    let runs = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    rustix::process::geteuid().is_root()
        && runs("unshare", &["--mount", "--propagation", "private", "sh", "-c", script])
        && runs(&python(), &["-c", "import dnslib"])
        && peer("dnsmasq").is_some()
}

/// The Python interpreter with dnslib.
fn python() -> String {
    workspace().join("target/peers/venv/bin/python3").display().to_string()
}

/// Blocks start at 127.64.0.0, far from the addresses of the systems' own resolvers.
fn free_block() -> (u8, u8) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let number = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 16_384;
        let [.., high, low] = number.to_be_bytes();
        let probe = (format!("127.{}.{low}.200", 64 + high), 53);
        if UdpSocket::bind(&probe).is_ok() && TcpListener::bind(&probe).is_ok() {
            return (64 + high, low);
        }
    }
    panic!("no block of loopback addresses whose port 53 is free");
}

/// dnsmasq, which answers from its hosts file with a TTL of one second.
pub struct Dnsmasq {
    running: Running,
    hosts: PathBuf,
}

impl Dnsmasq {
    pub fn start(scene: &Scene, names: &Names, number: u8, hosts: &str, more: &[&str]) -> Self {
        let program = peer("dnsmasq").expect("`Names` requires dnsmasq").display().to_string();
        let file = scene.write(&format!("dnsmasq-{number}"), hosts);
        let (addresses, listen) =
            (format!("--addn-hosts={}", file.display()), format!("--listen-address={}", names.server(number)));
        let command = [&[program.as_str()], DNSMASQ, &[addresses.as_str(), listen.as_str()], more].concat();
        let running = Running::start(&command);
        until(PATIENCE, "dnsmasq has read its names", || running.stderr.contains(&format!("read {}", file.display())));
        Self { running, hosts: file }
    }

    /// Changes its answers from now on.
    pub fn hosts(&self, hosts: &str) {
        let reads = || self.running.stderr.text().matches(&format!("read {}", self.hosts.display())).count();
        let before = reads();
        std::fs::write(&self.hosts, hosts).expect("the test owns the file");
        self.running.signal(Signal::HUP);
        until(PATIENCE, "dnsmasq has re-read its names", || reads() > before);
    }

    /// Whether it was queried for a name.
    pub fn was_queried(&self, name: &str) -> bool {
        self.running.stderr.contains(&format!("] {name} from "))
    }
}

/// Answers are in the order of the hosts file; a name that is not in it does not exist.
const DNSMASQ: &[&str] = &[
    "--conf-file=/dev/null",
    "--keep-in-foreground",
    "--user=root",
    "--group=root",
    "--pid-file=",
    "--log-facility=-",
    "--log-queries",
    "--bind-interfaces",
    "--no-resolv",
    "--no-hosts",
    "--no-round-robin",
    "--local-ttl=1",
    "--address=/#/",
];

/// The fixture `dns.py`; its header lists the faults.
pub struct FaultyServer {
    running: Running,
    zone: PathBuf,
    names: serde_json::Map<String, serde_json::Value>,
}

impl FaultyServer {
    /// Starts with the names of a text in the format of a hosts file, and with correct answers.
    pub fn start(scene: &Scene, names: &Names, number: u8, hosts: &str) -> Self {
        let zone = scene.path(&format!("zone-{number}"));
        let running = Running::start(&[python(), fixture("dns.py"), names.server(number), zone.display().to_string()]);
        until(PATIENCE, "the name server is ready", || running.stderr.contains("ready"));
        let server = Self { running, zone, names: records(hosts) };
        server.answer(None);
        server
    }

    /// Correct answers, or this fault for every query.
    pub fn answer(&self, fault: Option<&str>) {
        self.write("all", json!(fault));
    }

    /// Correct answers, but only over TCP.
    pub fn cut(&self) {
        self.write("cut", json!(true));
    }

    /// Correct answers after this delay.
    pub fn delay(&self, delay: Duration) {
        self.write("delay", json!(delay.as_secs_f64()));
    }

    /// This fault for queries of this name and type.
    pub fn fault(&mut self, name: &str, kind: &str, fault: &str) {
        self.names.get_mut(name).expect("a name of this server")[kind] = fault.into();
        self.answer(None);
    }

    /// Writes atomically, since the server may read its file at any time.
    fn write(&self, key: &str, value: serde_json::Value) {
        let mut zone = json!({ "names": self.names, "all": null, "cut": false, "delay": 0, "ttl": 1 });
        zone[key] = value;
        let aside = self.zone.with_extension("aside");
        let written = std::fs::write(&aside, zone.to_string()).and_then(|()| std::fs::rename(&aside, &self.zone));
        written.expect("the scene is writable");
    }

    /// Whether it received this query, such as `udp AAAA name`.
    pub fn was_queried(&self, question: &str) -> bool {
        self.running.stderr.contains(&format!("{question} "))
    }

    #[track_caller]
    pub fn assert_queries(&self) {
        let text = self.running.stderr.text();
        let malformed: Vec<&str> = text.lines().filter(|line| line.contains("malformed")).collect();
        assert_eq!(malformed, Vec::<&str>::new());
    }
}

/// The lines of a hosts file by name and type.
fn records(hosts: &str) -> serde_json::Map<String, serde_json::Value> {
    let mut found = serde_json::Map::new();
    for line in hosts.lines() {
        let (address, names) = line.split_once(' ').expect("an address and names");
        let kind = if address.contains(':') { "AAAA" } else { "A" };
        for name in names.split_whitespace() {
            let entry = found.entry(name).or_insert_with(|| json!({}));
            if entry[kind].is_null() {
                entry[kind] = json!([]);
            }
            entry[kind].as_array_mut().expect("just created").push(address.into());
        }
    }
    found
}

/// The lines of a hosts file that map each name to all these addresses.
pub fn hosts_of(names: &[impl AsRef<str>], addresses: &[impl AsRef<str>]) -> String {
    let line =
        |address: &str| -> String { names.iter().map(|name| format!("{address} {}\n", name.as_ref())).collect() };
    addresses.iter().map(|address| line(address.as_ref())).collect()
}

/// An address that drops what is sent to it: the queue of its listening socket is full, so that the kernel does not
/// respond to further SYNs (listen(2); tcp(7), tcp_abort_on_overflow).
pub struct Blackhole {
    _listening: OwnedFd,
    _waiting: Vec<TcpStream>,
}

impl Blackhole {
    pub fn at(address: &str) -> Self {
        let address: std::net::SocketAddr = address.parse().expect("an address with a port");
        let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let listening = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        bind(&listening, &SocketAddrAny::from(address)).expect("the address is free");
        listen(&listening, 0).expect("a bound socket listens");
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let waiting: Vec<TcpStream> = std::iter::from_fn(connect).take(8).collect();
        assert!(waiting.len() < 8, "the queue of {address} is full");
        Self { _listening: listening, _waiting: waiting }
    }
}
