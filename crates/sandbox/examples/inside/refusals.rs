//! What has to be refused. In: the folder, the ports and the pid of the test. Out: a line for each attempt.
//! Bound: calls that have a safe wrapper; `attempt.c` tries the others.

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

pub fn run(folder: &Path, rest: &[String]) {
    let [abstract_name] = rest else { panic!("refusals needs the name of an abstract socket") };
    let parent = rustix::process::getppid().expect("the test");
    enter(&grants(folder));

    let (inside, outside) = (folder.join("in"), folder.join("out"));
    attempt("read /etc/passwd", fs::read("/etc/passwd"));
    attempt("list /", fs::read_dir("/"));
    attempt("read outside", fs::read(outside.join("file")));
    attempt("write outside", fs::write(outside.join("file"), "changed"));
    attempt("create outside", File::create(outside.join("new")));
    attempt("make a folder outside", fs::create_dir(outside.join("folder")));
    attempt("remove outside", fs::remove_file(outside.join("file")));
    attempt("rename to the outside", fs::rename(inside.join("file"), outside.join("moved")));
    attempt("rename from the outside", fs::rename(outside.join("file"), inside.join("moved")));
    attempt("link from the outside", fs::hard_link(outside.join("file"), inside.join("linked")));
    attempt("symlink outside", symlink("file", outside.join("symlink")));
    attempt("read through a symlink", fs::read(inside.join("to-the-outside")));
    attempt("read the environment of another", fs::read(format!("/proc/{}/environ", parent.as_raw_pid())));
    attempt("write to our own memory's file", fs::OpenOptions::new().write(true).open("/proc/self/mem"));

    let socket = |family, kind, protocol| rustix::net::socket(family, kind, protocol);
    attempt("raw socket", socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)));
    attempt("ping socket", socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)));
    attempt("packet socket", socket(AddressFamily::PACKET, SocketType::RAW, None));
    attempt("netlink socket", socket(AddressFamily::NETLINK, SocketType::RAW, None));
    attempt("multipath socket", socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)));
    let address = SocketAddr::from_abstract_name(abstract_name).expect("a name");
    attempt("abstract socket outside", UnixStream::connect_addr(&address));

    attempt("run a shell", Command::new("/bin/sh").args(["-c", "exit 0"]).spawn());
    attempt("signal another", rustix::process::kill_process(parent, Signal::TERM));
    attempt("look for another", rustix::process::test_kill_process(parent));
    // A handle to see another process end by is given, and gives no right over it.
    let handle = rustix::process::pidfd_open(parent, rustix::process::PidfdFlags::empty());
    let signal = rustix::process::Signal::CONT;
    attempt("signal another by handle", handle.and_then(|handle| rustix::process::pidfd_send_signal(handle, signal)));
    attempt("mount", rustix::mount::mount_bind("/etc", inside.join("folder")));
    attempt("new root", rustix::process::chroot("/"));
    attempt("another user", rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(1)));
    attempt("capabilities again", capabilities_again());
    attempt("core dumps again", core_dumps_again());
}

fn capabilities_again() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = rustix::thread::CapabilitySet::NET_RAW;
    rustix::thread::set_capabilities(None, sets)
}

fn core_dumps_again() -> io::Result<()> {
    let all = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Core, all)
}

pub fn ports(folder: &Path, rest: &[String]) {
    let [any, granted, refused, free_granted, free_refused] = rest else { panic!("ports needs five words") };
    enter(&Grants {
        connect: vec![port(granted)],
        connect_any: any == "any",
        bind: vec![port(free_granted)],
        ..grants(folder)
    });
    let connect = |text: &String| TcpStream::connect((Ipv4Addr::LOCALHOST, port(text)));
    let bind = |text: &String| TcpListener::bind((Ipv4Addr::LOCALHOST, port(text)));
    attempt("connect to a granted port", connect(granted));
    attempt("connect to another port", connect(refused));
    attempt("listen on a granted port", bind(free_granted));
    attempt("listen on another port", bind(free_refused));
    attempt("udp is not limited", UdpSocket::bind((Ipv4Addr::LOCALHOST, port(free_refused))));
}

/// Files, links, and paths that are not there.
pub fn paths(folder: &Path) {
    let out = folder.join("out");
    enter(&Grants {
        read: vec![out.join("file"), out.join("link"), out.join("gone"), out.join("gone"), out.join("dangling")],
        ..grants(folder)
    });
    attempt("read a granted file", fs::read(out.join("file")));
    attempt("write a file granted for reading", fs::write(out.join("file"), "changed"));
    attempt("read its neighbour", fs::read(out.join("neighbour")));
    attempt("read what a granted link leads to", fs::read(out.join("below/target")));
    attempt("read through a granted link", fs::read(out.join("link")));
    attempt("list the folder of both", fs::read_dir(&out));
    attempt("ask for the attributes of anything", fs::metadata("/etc/passwd"));
    attempt("make what was not there", File::create(out.join("gone")));
}
