//! The sandbox against the kernel that runs. In: `examples/inside`, started anew for each scenario, since a sandbox is for good.
//! Out: each attempt is answered as it should be. Bounds: loopback, a folder per test, time limits; what this kernel lacks is read
//! from what the sandbox itself reports, and only then expected to be missing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const EPERM: &str = "1";
const EACCES: &str = "13";
const OK: &str = "ok";
const LIMIT: Duration = Duration::from_secs(60);

/// Guarantee: sandbox-denies-the-rest
#[test]
fn what_was_not_granted_is_refused() {
    let folder = Folder::new("refusals");
    fs::write(folder.0.join("in/file"), "inside").expect("the folder is ours");
    symlink(folder.0.join("out/file"), folder.0.join("in/to-the-outside")).expect("the folder is ours");
    let name = format!("outrigger-sandbox-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listening = UnixListener::bind_addr(&address).expect("the name is free");

    let seen = inside("refusals", &folder, &[&name]);
    let (filesystem, signals) = (seen.holds("filesystem"), seen.holds("signals"));
    for attempt in [
        "read /etc/passwd",
        "list /",
        "read outside",
        "write outside",
        "create outside",
        "make a folder outside",
        "remove outside",
        "symlink outside",
        "read through a symlink",
        "read the environment of another",
        "write to our own memory's file",
    ] {
        seen.expect_where(filesystem, attempt, EACCES);
    }
    // The kernel says EXDEV, as between two file systems, where only the folder of the other end is missing.
    for attempt in ["rename to the outside", "rename from the outside", "link from the outside"] {
        assert!(!filesystem || [EACCES, "18"].contains(&seen.get(attempt)), "{attempt}: {}", seen.get(attempt));
    }
    seen.expect_where(signals, "abstract socket outside", EPERM);
    for attempt in [
        "raw socket",
        "ping socket",
        "packet socket",
        "netlink socket",
        "multipath socket",
        "run a shell",
        "signal another",
        "look for another",
        "signal another by handle",
        "mount",
        "new root",
        "another user",
        "capabilities again",
        "core dumps again",
    ] {
        seen.expect(attempt, EPERM);
    }
    assert_eq!(fs::read_to_string(folder.0.join("out/file")).expect("it is there"), "outside");
    assert_eq!(fs::read_dir(folder.0.join("out")).expect("it is there").count(), 1, "something was made outside");
}

/// Guarantee: sandbox-denies-the-rest
#[test]
fn tcp_reaches_granted_ports_alone() {
    let check = |any: &str, other: &str| {
        let folder = Folder::new(&format!("ports-{any}"));
        let (granted, refused) = (echo(), echo());
        let ports = [granted, refused, free_port(), free_port()].map(|port| port.to_string());
        let seen = inside("ports", &folder, &[any, &ports[0], &ports[1], &ports[2], &ports[3]]);
        seen.expect("connect to a granted port", OK);
        seen.expect("listen on a granted port", OK);
        seen.expect_where(seen.holds("tcp"), "connect to another port", other);
        seen.expect_where(seen.holds("tcp"), "listen on another port", EACCES);
        seen.expect("udp is not limited", OK);
    };
    check("some", EACCES);
    check("any", OK);
}

#[test]
fn a_file_is_granted_alone_and_a_link_grants_what_it_leads_to() {
    let folder = Folder::new("paths");
    let out = folder.0.join("out");
    fs::write(out.join("neighbour"), "text").expect("the folder is ours");
    fs::create_dir(out.join("below")).expect("the folder is ours");
    fs::write(out.join("below/target"), "text").expect("the folder is ours");
    symlink("below/target", out.join("link")).expect("the folder is ours");
    symlink("nowhere", out.join("dangling")).expect("the folder is ours");

    let seen = inside("paths", &folder, &[]);
    let filesystem = seen.holds("filesystem");
    seen.expect("read a granted file", OK);
    seen.expect("read what a granted link leads to", OK);
    seen.expect("read through a granted link", OK);
    seen.expect("ask for the attributes of anything", OK);
    for attempt in
        ["write a file granted for reading", "read its neighbour", "list the folder of both", "make what was not there"]
    {
        seen.expect_where(filesystem, attempt, EACCES);
    }
    let absent: Vec<&str> =
        seen.holds["absent_paths"].as_array().into_iter().flatten().filter_map(|path| path.as_str()).collect();
    let expect = ["gone", "dangling"].map(|name| out.join(name).display().to_string());
    assert_eq!(absent, expect, "what is not there is said once");
}

#[test]
fn the_work_of_a_worker_goes_on_inside() {
    let folder = Folder::new("works");
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let udp_port = udp.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..length], from);
        }
    });
    let ports = [echo(), udp_port, free_port()].map(|port| port.to_string());
    let seen = inside("works", &folder, &[&ports[0], &ports[1], &ports[2]]);
    for attempt in [
        "threads",
        "files",
        "names",
        "memory",
        "pipes",
        "unix sockets",
        "attributes outside",
        "nothing to read and write",
        "our own figures",
        "a caught panic",
        "tcp to a granted port",
        "tcp on a granted port",
        "udp",
        "signals to ourselves",
        "a thread that blocks",
        "timers",
    ] {
        // A kernel without the right to refer renames within one folder only; the sandbox has said so.
        if attempt == "names" && !(2..).contains(&seen.holds["landlock_abi"].as_u64().unwrap_or(2)) {
            continue;
        }
        seen.expect(attempt, OK);
    }
}

#[test]
fn granted_programs_run_inside_and_get_no_further() {
    let folder = Folder::new("programs");
    let attempts = compile_attempts(&folder);
    let port = echo().to_string();
    let pid = std::process::id().to_string();
    let seen = inside("programs", &folder, &[&attempts.display().to_string(), &pid, &port]);
    let (filesystem, tcp) = (seen.holds("filesystem"), seen.holds("tcp"));
    seen.expect("a shell", OK);
    seen.expect("a pipe of a shell", OK);
    if Path::new("/usr/bin/ssh").exists() {
        seen.expect("ssh", OK);
    }
    seen.expect_where(filesystem, "a program that is not granted", EACCES);
    seen.expect_where(filesystem, "a program of our own making", EACCES);
    seen.expect("end what hangs", OK);
    let refused = seen.get("a file outside, by a program");
    assert!(!filesystem || refused.contains("Permission denied"), "a shell could read outside: {refused}");

    seen.expect("raw calls", OK);
    for call in [
        "ptrace",
        "process_vm_readv",
        "kill",
        "tgkill",
        "mount",
        "setns",
        "clone with a namespace",
        "keyctl",
        "add_key",
        "bpf",
        "perf_event_open",
        "io_uring_setup",
        "userfaultfd",
        "open_by_handle_at",
        "personality",
        "raw socket",
        "packet socket",
        "typing on a terminal",
        "signals by descriptor",
        "connect by a first send",
        "connect by several ways",
        "unshare",
    ] {
        seen.expect(call, EPERM);
    }
    seen.expect("clone3", "38");
    seen.expect_where(tcp, "connect", EACCES);
}

#[test]
fn what_holds_is_what_the_kernel_shows() {
    let folder = Folder::new("holds");
    let seen = inside("paths", &folder, &[]);
    for part in ["seccomp", "no_new_privs", "capabilities_dropped", "core_dumps_disabled"] {
        assert!(seen.holds(part), "{part} does not hold: {}", seen.holds);
    }
    let missing: Vec<&serde_json::Value> = seen.holds["missing"].as_array().into_iter().flatten().collect();
    let whole = ["filesystem", "tcp", "signals"].iter().all(|part| seen.holds(part));
    assert_eq!(whole, missing.is_empty(), "what is missing is said, and nothing else: {missing:?}");

    let status: BTreeMap<&str, &str> = seen.status.lines().filter_map(|line| line.split_once(":\t")).collect();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status.get(set), Some(&"0000000000000000"), "{set}");
    }
    assert_eq!(status.get("NoNewPrivs"), Some(&"1"));
    assert_eq!(status.get("Seccomp"), Some(&"2"));
    assert_eq!(status.get("Seccomp_filters"), Some(&"2"));
}

#[test]
fn what_cannot_be_had_is_reported_and_stops_nothing() {
    // The first sandbox stands for a kernel that refuses everything that the second one asks for.
    let seen = inside("twice", &Folder::new("twice"), &[]);
    for part in ["filesystem", "tcp", "signals", "seccomp", "no_new_privs"] {
        assert!(!seen.holds(part), "{part} is said to hold, and the kernel refused: {}", seen.holds);
    }
    assert_eq!(seen.holds["landlock_abi"], serde_json::Value::Null);
    let missing: Vec<&str> =
        seen.holds["missing"].as_array().into_iter().flatten().filter_map(|line| line.as_str()).collect();
    for word in ["no_new_privs", "Landlock", "system calls"] {
        assert!(missing.iter().any(|sentence| sentence.contains(word)), "nothing is said of {word}: {missing:?}");
    }
    seen.expect("goes on", OK);
}

/// What an `inside` said.
struct Seen {
    holds: serde_json::Value,
    attempts: BTreeMap<String, String>,
    /// Its /proc/…/status after it had entered.
    status: String,
}

impl Seen {
    fn get(&self, attempt: &str) -> &str {
        self.attempts.get(attempt).unwrap_or_else(|| panic!("nobody tried: {attempt}"))
    }

    fn expect(&self, attempt: &str, answer: &str) {
        assert_eq!(self.get(attempt), answer, "{attempt}; holds: {}", self.holds);
    }

    /// Where the kernel cannot refuse it, it must have been tried at least.
    fn expect_where(&self, enforced: bool, attempt: &str, answer: &str) {
        let seen = self.get(attempt);
        assert!(!enforced || seen == answer, "{attempt}: {seen}, and not {answer}; holds: {}", self.holds);
    }

    fn holds(&self, part: &str) -> bool {
        self.holds[part] == serde_json::Value::Bool(true)
    }
}

/// Runs a scenario to its end.
fn inside(scenario: &str, folder: &Folder, rest: &[&str]) -> Seen {
    let mut command = Command::new(example());
    command
        .arg(scenario)
        .arg(&folder.0)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env_remove("RUST_BACKTRACE");
    let mut child = command.spawn().expect("the example starts");
    let pid = child.id();
    let output = child.stdout.take().expect("it is piped");
    // A child that hangs is ended, and then lacks attempts.
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_over.recv_timeout(LIMIT).is_err() {
            let _ = child.kill();
        }
        child.wait().expect("it is our child")
    });
    let mut seen = Seen { holds: serde_json::Value::Null, attempts: BTreeMap::new(), status: String::new() };
    for line in BufReader::new(output).lines() {
        let line = line.expect("it prints text");
        let (name, answer) = line.split_once('\t').unwrap_or_else(|| panic!("what is this line: {line}"));
        match name {
            "holds" => {
                seen.holds = serde_json::from_str(answer).expect("it is JSON");
                // A child that has ended and is not reaped yet still has its file.
                seen.status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the child is not reaped");
            }
            "waiting for SIGUSR1" => {
                let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a pid")).expect("a pid");
                rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("it waits");
            }
            _ => {
                seen.attempts.insert(name.to_string(), answer.to_string());
            }
        }
    }
    let _ = over.send(());
    let status = watch.join().expect("the watch does not panic");
    assert!(status.success(), "{scenario} ended with {status}; it said {:?}", seen.attempts);
    seen
}

fn example() -> PathBuf {
    let test = std::env::current_exe().expect("we run from a file");
    let profile = test.ancestors().nth(2).expect("target/…/deps/test");
    let example = profile.join("examples/inside");
    assert!(example.exists(), "{} is not built: cargo test -p sandbox builds it", example.display());
    example
}

/// A static one, which needs no library to be granted.
fn compile_attempts(folder: &Folder) -> PathBuf {
    let program = folder.0.join("attempt");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attempt.c");
    let compiled = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&program).arg(source).output();
    let compiled = compiled.expect("cc is there, as cargo needs it to link");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

/// A port whose connections are echoed until the test ends.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo_one(stream));
        }
    });
    port
}

fn echo_one(mut stream: TcpStream) {
    let mut bytes = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// A folder with `in` and `out`, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("outrigger-sandbox-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for below in ["in", "out"] {
            fs::create_dir_all(folder.join(below)).expect("the temporary folder is writable");
        }
        fs::write(folder.join("out/file"), "outside").expect("the temporary folder is writable");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
