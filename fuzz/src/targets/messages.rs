//! What a worker and the supervisor say to each other, and what one program leaves to the next: packets, the plan, the datagrams of
//! the notify socket, the text of a hand-off. In: bytes, or words that are put together to them. Out: what is understood survives
//! being said again; what is understood lies within what a signal, a process and an exit code can be; a program that cannot be
//! started is an error, and no descriptor is kept for a garbled notice.

use crate::assemble::assemble;
use crate::attempt::{bucket, shape};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use supervisor::fdstore::Store;
use supervisor::fuzzing::{ReexecState, receive};
use supervisor::message::{PACKET_MAX, Packet, ToSupervisor, ToWorker, send};
use supervisor::plan::{PLAN_MAX, Plan, Rewrite};
use sys::process::ExecPlan;

pub const WORDS: &[&str] = &[
    "words\n",
    "1 ",
    "4 15 0 0 ",
    "6 0 0 0 ",
    "10 3 0 0 ",
    "-1 ",
    "300 ",
    "+\"/usr/bin/app\" ",
    "+\"A=1\" ",
    "\"text\" ",
    "%00",
    "%ff",
    "0 ",
    "15 0 0 0 0 0 15 0 0 0 0 0 0 0 0 0 ",
    "READY=1",
    "FDSTORE=1",
    "FDSTOREREMOVE=1",
    "FDNAME=",
    "FDNAME=proxy/in",
    "\n",
    "=",
    "generation=7",
    "stored proxy/a=5",
];

thread_local! {
    /// A pair as the supervisor and its worker have it.
    static PACKETS: (OwnedFd, OwnedFd) = pair(SocketType::SEQPACKET);
    static NOTICES: (OwnedFd, OwnedFd) = pair(SocketType::DGRAM);
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a pair of sockets")
}

pub fn run(input: &[u8]) {
    let bytes = assemble(input);
    let packet = bytes.get(..PACKET_MAX).unwrap_or(&bytes);
    to_worker(packet);
    to_supervisor(packet);
    plan(&bytes);
    hand_off(&bytes);
    notice(&bytes);
}

/// Sends a packet as it is sent, and answers what arrives.
fn through_socket(packet: &Packet) -> Vec<u8> {
    let mut bytes = vec![0; PACKET_MAX];
    let count = PACKETS.with(|(ours, theirs)| {
        send(ours, packet).expect("the socket is empty");
        rustix::net::recv(theirs, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT).expect("a packet was sent").1
    });
    bytes.truncate(count);
    bytes
}

fn to_worker(bytes: &[u8]) {
    let Some(message) = ToWorker::decode(bytes) else { return };
    shape(("to worker", std::mem::discriminant(&message), bucket(bytes.len())));
    let again = through_socket(&message.encode());
    assert_eq!(ToWorker::decode(&again), Some(message), "said again");
}

fn to_supervisor(bytes: &[u8]) {
    let Some(message) = ToSupervisor::decode(bytes) else { return };
    shape(("to supervisor", std::mem::discriminant(&message), bucket(bytes.len())));
    match message {
        ToSupervisor::SignalApp { signal } => assert!((1..=64).contains(&signal), "{signal}"),
        ToSupervisor::AskDescriptors { pid } => assert!(pid > 1, "{pid}"),
        ToSupervisor::AppGone { code } => assert!((0..256).contains(&code), "{code}"),
        _ => {}
    }
    let again = through_socket(&message.encode());
    assert_eq!(ToSupervisor::decode(&again), Some(message), "said again");
}

fn plan(bytes: &[u8]) {
    let Some(plan) = bytes.get(..PLAN_MAX).or(Some(bytes)).and_then(Plan::decode) else { return };
    shape(("plan", plan.app.is_some(), plan.rewrites.0.len(), bucket(plan.success.len()), plan.written.len()));
    assert!((1..=64).contains(&plan.stop_signal), "{}", plan.stop_signal);
    for (from, to) in &plan.rewrites.0 {
        let to = if let Rewrite::To(signal) = to { *signal } else { 1 };
        assert!((1..=64).contains(from) && (1..=64).contains(&to), "{from} {to}");
    }
    assert_eq!(Plan::decode(&plan.encode()), Some(plan.clone()), "a plan survives its bytes");
    if let Some(app) = &plan.app {
        // An argument with a NUL, or none at all, is an error and no more.
        shape(("exec", ExecPlan::new(app).is_ok(), app.user.is_some()));
    }
}

fn hand_off(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let left = ReexecState::parse(text);
    let said = left.text();
    shape(("hand-off", bucket(said.len())));
    assert_eq!(ReexecState::parse(&said), left, "what was left is left again: {said:?}");
}

/// What a datagram of ours may have (two short lines), and what one of somebody else may.
const DATAGRAM_MAX: usize = 2048;

fn notice(bytes: &[u8]) {
    let bytes = bytes.get(..DATAGRAM_MAX).unwrap_or(bytes);
    let mut store = Store::new(Vec::new());
    NOTICES.with(|(worker, ours)| {
        rustix::net::send(worker, bytes, SendFlags::DONTWAIT).expect("the socket is empty");
        let ready = receive(&mut store, ours);
        let says = |line: &[u8]| bytes.split(|byte| *byte == b'\n').any(|known| known == line);
        shape(("notice", ready, says(b"FDSTORE=1"), says(b"FDSTOREREMOVE=1")));
        assert!(ready != Some(true) || says(b"READY=1"), "ready, and nobody said so");
        // An empty datagram is taken off the queue as well.
        assert!(receive(&mut store, ours).is_none(), "one datagram is one notice");
    });
    assert!(store.into_named().is_empty(), "no descriptor was sent");
}
