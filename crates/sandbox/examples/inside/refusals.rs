//! Attempts that must be denied. In: the directory, the ports and the pid of the test. Out: a line for each attempt.
//! Limits: calls that have a safe wrapper; `attempt.c` tries the remaining ones.

use crate::{attempt, enter, grants, port};
use rustix::io;
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::process::Signal;
use sandbox::Grants;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::Command;

pub fn run(directory: &Path, rest: &[String]) {
    let [abstract_name] = rest else { panic!("scenario refusals needs the name of an abstract socket") };
    let parent = rustix::process::getppid().expect("the test");
    enter(&grants(directory));

    let (inside, outside) = (directory.join("in"), directory.join("out"));
    attempt("read /etc/passwd", fs::read("/etc/passwd"));
    attempt("list /", fs::read_dir("/"));
    attempt("read outside", fs::read(outside.join("file")));
    attempt("write outside", fs::write(outside.join("file"), "changed"));
    attempt("create outside", File::create(outside.join("new")));
    attempt("create a directory outside", fs::create_dir(outside.join("directory")));
    attempt("remove outside", fs::remove_file(outside.join("file")));
    attempt("rename to the outside", fs::rename(inside.join("file"), outside.join("moved")));
    attempt("rename from the outside", fs::rename(outside.join("file"), inside.join("moved")));
    attempt("link from the outside", fs::hard_link(outside.join("file"), inside.join("linked")));
    attempt("symlink outside", symlink("file", outside.join("symlink")));
    attempt("read through a symlink", fs::read(inside.join("to-the-outside")));
    attempt("read the environment of another process", fs::read(format!("/proc/{}/environ", parent.as_raw_pid())));
    attempt("write to /proc/self/mem", fs::OpenOptions::new().write(true).open("/proc/self/mem"));

    let socket = |family, kind, protocol| rustix::net::socket(family, kind, protocol);
    attempt("raw socket", socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)));
    attempt("ping socket", socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)));
    attempt("packet socket", socket(AddressFamily::PACKET, SocketType::RAW, None));
    attempt("netlink socket", socket(AddressFamily::NETLINK, SocketType::RAW, None));
    attempt("mptcp socket", socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)));
    let address = SocketAddr::from_abstract_name(abstract_name).expect("a name");
    attempt("abstract socket outside", UnixStream::connect_addr(&address));

    attempt("run a shell", Command::new("/bin/sh").args(["-c", "exit 0"]).spawn());
    attempt("signal another process", rustix::process::kill_process(parent, Signal::TERM));
    attempt("test a signal to another process", rustix::process::test_kill_process(parent));
    // A pidfd, which detects the exit of another process, is allowed and gives no control over it.
    let handle = rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty());
    let signal = rustix::process::Signal::CONT;
    attempt(
        "signal another process by pidfd",
        handle.and_then(|handle| rustix::process::pidfd_send_signal(handle, signal)),
    );
    attempt("mount", rustix::mount::mount_bind("/etc", inside.join("directory")));
    attempt("chroot", rustix::process::chroot("/"));
    attempt("change the user", rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(1)));
    attempt("regain capabilities", regain_capabilities());
    attempt("enable core dumps", enable_core_dumps());
}

fn regain_capabilities() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = rustix::thread::CapabilitySet::NET_RAW;
    rustix::thread::set_capabilities(None, sets)
}

fn enable_core_dumps() -> io::Result<()> {
    let all = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Core, all)
}

pub fn ports(directory: &Path, rest: &[String]) {
    let [any, granted, denied, free_granted, free_denied] = rest else { panic!("scenario ports needs five arguments") };
    enter(&Grants {
        connect: vec![port(granted)],
        connect_any: any == "any",
        bind: vec![port(free_granted)],
        ..grants(directory)
    });
    let connect = |text: &String| TcpStream::connect((Ipv4Addr::LOCALHOST, port(text)));
    let bind = |text: &String| TcpListener::bind((Ipv4Addr::LOCALHOST, port(text)));
    attempt("connect to a granted port", connect(granted));
    attempt("connect to another port", connect(denied));
    attempt("listen on a granted port", bind(free_granted));
    attempt("listen on another port", bind(free_denied));
    attempt("udp is not limited", UdpSocket::bind((Ipv4Addr::LOCALHOST, port(free_denied))));
}

/// Files, links, and absent paths.
pub fn paths(directory: &Path) {
    let out = directory.join("out");
    enter(&Grants {
        read: vec![out.join("file"), out.join("link"), out.join("absent"), out.join("absent"), out.join("dangling")],
        ..grants(directory)
    });
    attempt("read a granted file", fs::read(out.join("file")));
    attempt("write a file granted for reading", fs::write(out.join("file"), "changed"));
    attempt("read its neighbour", fs::read(out.join("neighbour")));
    attempt("read the target of a granted link", fs::read(out.join("below/target")));
    attempt("read through a granted link", fs::read(out.join("link")));
    attempt("list the directory of both", fs::read_dir(&out));
    attempt("stat an ungranted file", fs::metadata("/etc/passwd"));
    attempt("create a granted path that was absent", File::create(out.join("absent")));
}
