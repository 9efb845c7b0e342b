//! The messages between a worker and the supervisor, and the state that one program passes to the next: packets, the plan, the
//! datagrams of the notify socket, the text of a re-exec. In: bytes, or words that are assembled to them. Out: a decoded message
//! survives encoding and decoding; its values are in the range of a signal, a process ID and an exit code; a program that cannot
//! be started is an error, and no file descriptor is stored for an invalid notification.

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
    /// A socket pair as between the supervisor and its worker.
    static PACKETS: (OwnedFd, OwnedFd) = pair(SocketType::SEQPACKET);
    static NOTIFICATIONS: (OwnedFd, OwnedFd) = pair(SocketType::DGRAM);
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
    reexec_state(&bytes);
    notification(&bytes);
}

/// Sends a packet over the socket, and returns the received bytes.
fn through_socket(packet: &Packet) -> Vec<u8> {
    let mut bytes = vec![0; PACKET_MAX];
    let count = PACKETS.with(|(sender, receiver)| {
        send(sender, packet).expect("the socket is empty");
        rustix::net::recv(receiver, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT).expect("a packet was sent").1
    });
    bytes.truncate(count);
    bytes
}

fn to_worker(bytes: &[u8]) {
    let Some(message) = ToWorker::decode(bytes) else { return };
    shape(("to worker", std::mem::discriminant(&message), bucket(bytes.len())));
    let again = through_socket(&message.encode());
    assert_eq!(ToWorker::decode(&again), Some(message), "encoded and decoded");
}

fn to_supervisor(bytes: &[u8]) {
    let Some(message) = ToSupervisor::decode(bytes) else { return };
    shape(("to supervisor", std::mem::discriminant(&message), bucket(bytes.len())));
    match message {
        ToSupervisor::SignalApp { signal } => assert!((1..=64).contains(&signal), "{signal}"),
        ToSupervisor::CountDescriptors { pid } => assert!(pid > 1, "{pid}"),
        ToSupervisor::AppExited { code } => assert!((0..256).contains(&code), "{code}"),
        _ => {}
    }
    let again = through_socket(&message.encode());
    assert_eq!(ToSupervisor::decode(&again), Some(message), "encoded and decoded");
}

fn plan(bytes: &[u8]) {
    let Some(plan) = bytes.get(..PLAN_MAX).or(Some(bytes)).and_then(Plan::decode) else { return };
    shape(("plan", plan.app.is_some(), plan.rewrites.0.len(), bucket(plan.success.len()), plan.written.len()));
    assert!((1..=64).contains(&plan.stop_signal), "{}", plan.stop_signal);
    for (from, to) in &plan.rewrites.0 {
        let to = if let Rewrite::To(signal) = to { *signal } else { 1 };
        assert!((1..=64).contains(from) && (1..=64).contains(&to), "{from} {to}");
    }
    assert_eq!(Plan::decode(&plan.encode()), Some(plan.clone()), "a plan survives encoding and decoding");
    if let Some(app) = &plan.app {
        // An argument with a NUL, or no argument, is only an error.
        shape(("exec", ExecPlan::new(app).is_ok(), app.user.is_some()));
    }
}

fn reexec_state(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let state = ReexecState::parse(text);
    let written = state.text();
    shape(("reexec", bucket(written.len())));
    assert_eq!(ReexecState::parse(&written), state, "the state survives encoding and decoding: {written:?}");
}

/// More than a datagram of Outrigger (two short lines), for datagrams of other processes.
const DATAGRAM_MAX: usize = 2048;

fn notification(bytes: &[u8]) {
    let bytes = bytes.get(..DATAGRAM_MAX).unwrap_or(bytes);
    let mut store = Store::new(Vec::new());
    NOTIFICATIONS.with(|(worker, supervisor)| {
        rustix::net::send(worker, bytes, SendFlags::DONTWAIT).expect("the socket is empty");
        let ready = receive(&mut store, supervisor);
        let has = |line: &[u8]| bytes.split(|byte| *byte == b'\n').any(|known| known == line);
        shape(("notification", ready, has(b"FDSTORE=1"), has(b"FDSTOREREMOVE=1")));
        assert!(ready != Some(true) || has(b"READY=1"), "ready without READY=1");
        // An empty datagram is removed from the queue as well.
        assert!(receive(&mut store, supervisor).is_none(), "one datagram is one notification");
    });
    assert!(store.into_named().is_empty(), "no file descriptor was sent");
}
