//! The sandbox on the running kernel. In: `examples/inside`, one process per scenario, since a sandbox is permanent.
//! Out: each attempt has the expected result. Limits: loopback, a directory per test, timeouts. A feature may be missing only if
//! the sandbox itself reports it as missing.

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
fn everything_not_granted_is_denied() {
    let directory = TestDirectory::new("refusals");
    fs::write(directory.0.join("in/file"), "inside").expect("the directory is writable");
    symlink(directory.0.join("out/file"), directory.0.join("in/to-the-outside")).expect("the directory is writable");
    let name = format!("outrigger-sandbox-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listening = UnixListener::bind_addr(&address).expect("the name is free");

    let seen = inside("refusals", &directory, &[&name]);
    let (filesystem, signals) = (seen.holds("filesystem"), seen.holds("signals"));
    for attempt in [
        "read /etc/passwd",
        "list /",
        "read outside",
        "write outside",
        "create outside",
        "create a directory outside",
        "remove outside",
        "symlink outside",
        "read through a symlink",
        "read the environment of another process",
        "write to /proc/self/mem",
    ] {
        seen.expect_if(filesystem, attempt, EACCES);
    }
    // If only the grant for the other directory is missing, the kernel returns EXDEV, as between two file systems.
    for attempt in ["rename to the outside", "rename from the outside", "link from the outside"] {
        assert!(!filesystem || [EACCES, "18"].contains(&seen.get(attempt)), "{attempt}: {}", seen.get(attempt));
    }
    seen.expect_if(signals, "abstract socket outside", EPERM);
    for attempt in [
        "raw socket",
        "ping socket",
        "packet socket",
        "netlink socket",
        "mptcp socket",
        "run a shell",
        "signal another process",
        "test a signal to another process",
        "signal another process by pidfd",
        "mount",
        "chroot",
        "change the user",
        "regain capabilities",
        "enable core dumps",
    ] {
        seen.expect(attempt, EPERM);
    }
    assert_eq!(fs::read_to_string(directory.0.join("out/file")).expect("the file exists"), "outside");
    assert_eq!(
        fs::read_dir(directory.0.join("out")).expect("the directory exists").count(),
        1,
        "something was created outside"
    );
}

/// Guarantee: sandbox-denies-the-rest
#[test]
fn tcp_reaches_only_granted_ports() {
    let check = |any: &str, other: &str| {
        let directory = TestDirectory::new(&format!("ports-{any}"));
        let (granted, denied) = (echo(), echo());
        let ports = [granted, denied, free_port(), free_port()].map(|port| port.to_string());
        let seen = inside("ports", &directory, &[any, &ports[0], &ports[1], &ports[2], &ports[3]]);
        seen.expect("connect to a granted port", OK);
        seen.expect("listen on a granted port", OK);
        seen.expect_if(seen.holds("tcp"), "connect to another port", other);
        seen.expect_if(seen.holds("tcp"), "listen on another port", EACCES);
        seen.expect("udp is not limited", OK);
    };
    check("some", EACCES);
    check("any", OK);
}

#[test]
fn file_and_link_grants_cover_only_the_target() {
    let directory = TestDirectory::new("paths");
    let out = directory.0.join("out");
    fs::write(out.join("neighbour"), "text").expect("the directory is writable");
    fs::create_dir(out.join("below")).expect("the directory is writable");
    fs::write(out.join("below/target"), "text").expect("the directory is writable");
    symlink("below/target", out.join("link")).expect("the directory is writable");
    symlink("nowhere", out.join("dangling")).expect("the directory is writable");

    let seen = inside("paths", &directory, &[]);
    let filesystem = seen.holds("filesystem");
    seen.expect("read a granted file", OK);
    seen.expect("read the target of a granted link", OK);
    seen.expect("read through a granted link", OK);
    seen.expect("stat an ungranted file", OK);
    for attempt in [
        "write a file granted for reading",
        "read its neighbour",
        "list the directory of both",
        "create a granted path that was absent",
    ] {
        seen.expect_if(filesystem, attempt, EACCES);
    }
    let absent: Vec<&str> =
        seen.holds["absent_paths"].as_array().into_iter().flatten().filter_map(|path| path.as_str()).collect();
    let expect = ["absent", "dangling"].map(|name| out.join(name).display().to_string());
    assert_eq!(absent, expect, "each absent path is reported once");
}

#[test]
fn worker_operations_succeed_in_the_sandbox() {
    let directory = TestDirectory::new("works");
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let udp_port = udp.local_addr().expect("the socket is bound").port();
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(&bytes[..length], from);
        }
    });
    let ports = [echo(), udp_port, free_port()].map(|port| port.to_string());
    let seen = inside("works", &directory, &[&ports[0], &ports[1], &ports[2]]);
    for attempt in [
        "threads",
        "files",
        "rename and link",
        "memory",
        "pipes",
        "unix sockets",
        "attributes outside",
        "/dev/null",
        "files of /proc/self",
        "a caught panic",
        "tcp to a granted port",
        "tcp on a granted port",
        "udp",
        "signals to itself",
        "a thread that blocks",
        "timers",
    ] {
        // A kernel without LANDLOCK_ACCESS_FS_REFER renames only within one directory; the sandbox reports that.
        if attempt == "rename and link" && !(2..).contains(&seen.holds["landlock_abi"].as_u64().unwrap_or(2)) {
            continue;
        }
        seen.expect(attempt, OK);
    }
}

#[test]
fn granted_programs_stay_in_the_sandbox() {
    let directory = TestDirectory::new("programs");
    let attempts = compile_attempts(&directory);
    let port = echo().to_string();
    let pid = std::process::id().to_string();
    let seen = inside("programs", &directory, &[&attempts.display().to_string(), &pid, &port]);
    let (filesystem, tcp) = (seen.holds("filesystem"), seen.holds("tcp"));
    seen.expect("a shell", OK);
    seen.expect("a shell pipeline", OK);
    if Path::new("/usr/bin/ssh").exists() {
        seen.expect("ssh", OK);
    }
    seen.expect_if(filesystem, "a program that is not granted", EACCES);
    seen.expect_if(filesystem, "a program copied to a writable directory", EACCES);
    seen.expect("kill a hung program", OK);
    let result = seen.get("a file outside, by a program");
    assert!(!filesystem || result.contains("Permission denied"), "a shell could read outside: {result}");

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
        "type on a terminal",
        "signals by file descriptor",
        "connect by TCP Fast Open",
        "connect by MPTCP",
        "unshare",
    ] {
        seen.expect(call, EPERM);
    }
    seen.expect("clone3", "38");
    seen.expect_if(tcp, "connect", EACCES);
}

#[test]
fn report_matches_the_kernel_state() {
    let directory = TestDirectory::new("holds");
    let seen = inside("paths", &directory, &[]);
    for part in ["seccomp", "no_new_privs", "capabilities_dropped", "core_dumps_disabled"] {
        assert!(seen.holds(part), "{part} is not enforced: {}", seen.holds);
    }
    let missing: Vec<&serde_json::Value> = seen.holds["missing"].as_array().into_iter().flatten().collect();
    let complete = ["filesystem", "tcp", "signals"].iter().all(|part| seen.holds(part));
    assert_eq!(complete, missing.is_empty(), "exactly the missing features are reported: {missing:?}");

    let status: BTreeMap<&str, &str> = seen.status.lines().filter_map(|line| line.split_once(":\t")).collect();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status.get(set), Some(&"0000000000000000"), "{set}");
    }
    assert_eq!(status.get("NoNewPrivs"), Some(&"1"));
    assert_eq!(status.get("Seccomp"), Some(&"2"));
    assert_eq!(status.get("Seccomp_filters"), Some(&"2"));
}

#[test]
fn missing_features_are_reported_not_fatal() {
    // The first sandbox simulates a kernel that denies everything that the second one sets up.
    let seen = inside("twice", &TestDirectory::new("twice"), &[]);
    for part in ["filesystem", "tcp", "signals", "seccomp", "no_new_privs"] {
        assert!(!seen.holds(part), "{part} is reported as enforced, but the kernel denied it: {}", seen.holds);
    }
    assert_eq!(seen.holds["landlock_abi"], serde_json::Value::Null);
    let missing: Vec<&str> =
        seen.holds["missing"].as_array().into_iter().flatten().filter_map(|line| line.as_str()).collect();
    for word in ["no_new_privs", "Landlock", "system calls"] {
        assert!(missing.iter().any(|sentence| sentence.contains(word)), "{word} is not reported: {missing:?}");
    }
    seen.expect("write afterwards", OK);
}

/// The output of an `inside` process.
struct Seen {
    holds: serde_json::Value,
    attempts: BTreeMap<String, String>,
    /// Its /proc/…/status in the sandbox.
    status: String,
}

impl Seen {
    fn get(&self, attempt: &str) -> &str {
        self.attempts.get(attempt).unwrap_or_else(|| panic!("no attempt: {attempt}"))
    }

    fn expect(&self, attempt: &str, result: &str) {
        assert_eq!(self.get(attempt), result, "{attempt}; holds: {}", self.holds);
    }

    /// If the kernel cannot deny the attempt, it must at least have been made.
    fn expect_if(&self, enforced: bool, attempt: &str, result: &str) {
        let seen = self.get(attempt);
        assert!(!enforced || seen == result, "{attempt}: {seen}, expected {result}; holds: {}", self.holds);
    }

    fn holds(&self, part: &str) -> bool {
        self.holds[part] == serde_json::Value::Bool(true)
    }
}

/// Runs a scenario to completion.
fn inside(scenario: &str, directory: &TestDirectory, rest: &[&str]) -> Seen {
    let mut command = Command::new(example());
    command
        .arg(scenario)
        .arg(&directory.0)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env_remove("RUST_BACKTRACE");
    let mut child = command.spawn().expect("the example starts");
    let pid = child.id();
    let output = child.stdout.take().expect("stdout is piped");
    // A hung child is killed; its remaining attempts are then missing.
    let (finished, is_finished) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if is_finished.recv_timeout(LIMIT).is_err() {
            let _ = child.kill();
        }
        child.wait().expect("wait for the child")
    });
    let mut seen = Seen { holds: serde_json::Value::Null, attempts: BTreeMap::new(), status: String::new() };
    for line in BufReader::new(output).lines() {
        let line = line.expect("the output is text");
        let (name, result) = line.split_once('\t').unwrap_or_else(|| panic!("unexpected line: {line}"));
        match name {
            "holds" => {
                seen.holds = serde_json::from_str(result).expect("valid JSON");
                // A child that has exited and is not reaped yet still has its status file.
                seen.status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the child is not reaped");
            }
            "waiting for SIGUSR1" => {
                let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a pid")).expect("a pid");
                rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("the child is running");
            }
            _ => {
                seen.attempts.insert(name.to_string(), result.to_string());
            }
        }
    }
    let _ = finished.send(());
    let status = watch.join().expect("the watch does not panic");
    assert!(status.success(), "{scenario} exited with {status}; attempts: {:?}", seen.attempts);
    seen
}

fn example() -> PathBuf {
    let test = std::env::current_exe().expect("the test binary is a file");
    let profile = test.ancestors().nth(2).expect("target/…/deps/test");
    let example = profile.join("examples/inside");
    assert!(example.exists(), "{} is not built: cargo test -p sandbox builds it", example.display());
    example
}

/// Linked statically, so that no library needs a grant.
fn compile_attempts(directory: &TestDirectory) -> PathBuf {
    let program = directory.0.join("attempt");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attempt.c");
    let compiled = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&program).arg(source).output();
    let compiled = compiled.expect("cc is installed, as cargo needs it to link");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

/// A port whose connections are echoed until the test ends.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener.local_addr().expect("the socket is bound").port();
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
    listener.local_addr().expect("the socket is bound").port()
}

/// A directory with `in` and `out`, removed after the test.
struct TestDirectory(PathBuf);

impl TestDirectory {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("outrigger-sandbox-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        for below in ["in", "out"] {
            fs::create_dir_all(directory.join(below)).expect("the temporary directory is writable");
        }
        fs::write(directory.join("out/file"), "outside").expect("the temporary directory is writable");
        Self(directory)
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
