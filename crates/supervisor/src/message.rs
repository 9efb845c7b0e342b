//! The short list of messages between supervisor and worker, over one inherited SOCK_SEQPACKET pair. In and out: packets of a
//! tag and three numbers, and for some a payload. What systemd's notify protocol covers goes over the notify socket. Bound:
//! `PAYLOAD_MAX` bytes behind the numbers.

use crate::restarts::RestartReason;
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// The fixed part of a packet.
const HEAD: usize = 32;

/// A path (PATH_MAX) or a reason.
pub const PAYLOAD_MAX: usize = 4096;

/// The largest packet.
pub const PACKET_MAX: usize = HEAD + PAYLOAD_MAX;

/// How the app ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code as a shell gives it: 128 + n for signal n.
    pub code: i32,
    /// The signal that killed it, or 0.
    pub signal: i32,
    pub core_dumped: bool,
    /// The kernel killed a process of its control group for want of memory, and the app died of SIGKILL.
    pub out_of_memory: bool,
    /// It is started again.
    pub restarts: bool,
}

impl Ended {
    /// By an exit code alone, as of an app that never ran or ran elsewhere.
    pub fn with_code(code: i32) -> Ended {
        Ended { code, signal: 0, core_dumped: false, out_of_memory: false, restarts: false }
    }

    /// As it is sent and handed over.
    pub fn numbers(self) -> [i64; 3] {
        let how = i64::from(self.core_dumped) | i64::from(self.out_of_memory) << 1 | i64::from(self.restarts) << 2;
        [i64::from(self.code), i64::from(self.signal), how]
    }

    pub fn from_numbers([code, signal, how]: [i64; 3]) -> Option<Ended> {
        Some(Ended {
            code: i32::try_from(code).ok()?,
            signal: i32::try_from(signal).ok()?,
            core_dumped: how & 1 == 1,
            out_of_memory: how & 2 == 2,
            restarts: how & 4 == 4,
        })
    }
}

/// From the supervisor to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker<'a> {
    AppStarted {
        pid: i32,
    },
    /// How the app ended the last time, and how often it has ended and was started again: for a worker that was not there.
    LastExit {
        ended: Ended,
        restarts: u32,
    },
    AppEnded(Ended),
    /// Stop, and be done in this many milliseconds.
    Stop {
        left_ms: u64,
        /// It is the app's own end that leads to the stop, and nobody asked for it.
        app_ended: bool,
    },
    /// Nobody else reads the rings or writes the state any more: they are yours.
    Acquire,
    /// Another worker is ready: hand over, drain and end.
    HandOver,
    /// The worker that should have replaced you was given up, for this reason.
    KeepServing {
        reason: &'a [u8],
    },
    /// How many descriptors a process of the app has open.
    Descriptors {
        pid: i32,
        count: u64,
    },
}

/// From the worker to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToSupervisor<'a> {
    /// The plan lies in its memory, this many bytes long.
    Plan {
        bytes: u64,
    },
    /// The gates have passed: the app may start.
    StartApp,
    /// Inbound has drained: the app may get its stop signal.
    Drained,
    SignalApp {
        signal: i32,
    },
    /// Start another worker in my place.
    Replace {
        reason: RestartReason,
    },
    /// The same from another binary; empty for the one that we were started from.
    Upgrade {
        binary: &'a [u8],
    },
    /// The rings and the state are no longer mine.
    Released,
    /// Everything is started: my configuration is a good one.
    Serving,
    /// I cannot start, for this reason, and end.
    CannotStart {
        reason: &'a [u8],
    },
    /// I have taken note of the app's end.
    ExitAcknowledged,
    /// Begin the stop order, and be done in this many milliseconds; 0 for the configured deadline.
    Stop {
        within_ms: u64,
    },
    /// Which a sandboxed worker may not see itself (landlock(7), ptrace restrictions).
    AskDescriptors {
        pid: i32,
    },
    /// The app beside us has ended with this code: stop, and end with it.
    AppGone {
        code: i32,
    },
}

/// One packet, ready to be sent.
pub struct Packet {
    bytes: [u8; PACKET_MAX],
    length: usize,
}

impl ToWorker<'_> {
    pub fn encode(self) -> Packet {
        match self {
            ToWorker::AppStarted { pid } => packet(1, [i64::from(pid), 0, 0], &[]),
            ToWorker::LastExit { ended, restarts } => packet(8, ended.numbers(), &restarts.to_le_bytes()),
            ToWorker::AppEnded(ended) => packet(2, ended.numbers(), &[]),
            ToWorker::Stop { left_ms, app_ended } => {
                packet(3, [i64::try_from(left_ms).unwrap_or(i64::MAX), i64::from(app_ended), 0], &[])
            }
            ToWorker::Acquire => packet(4, [0; 3], &[]),
            ToWorker::HandOver => packet(5, [0; 3], &[]),
            ToWorker::KeepServing { reason } => packet(6, [0; 3], reason),
            ToWorker::Descriptors { pid, count } => {
                packet(7, [i64::from(pid), i64::try_from(count).unwrap_or(i64::MAX), 0], &[])
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToWorker<'_>> {
        let (tag, [first, second, third], payload) = unpack(bytes)?;
        Some(match tag {
            1 => ToWorker::AppStarted { pid: i32::try_from(first).ok()? },
            2 => ToWorker::AppEnded(Ended::from_numbers([first, second, third])?),
            3 => ToWorker::Stop { left_ms: u64::try_from(first).ok()?, app_ended: second == 1 },
            4 => ToWorker::Acquire,
            5 => ToWorker::HandOver,
            6 => ToWorker::KeepServing { reason: payload },
            7 => ToWorker::Descriptors { pid: i32::try_from(first).ok()?, count: u64::try_from(second).ok()? },
            8 => ToWorker::LastExit {
                ended: Ended::from_numbers([first, second, third])?,
                restarts: u32::from_le_bytes(payload.try_into().ok()?),
            },
            _ => return None,
        })
    }
}

impl ToSupervisor<'_> {
    pub fn encode(self) -> Packet {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        match self {
            ToSupervisor::Plan { bytes } => packet(1, [whole(bytes), 0, 0], &[]),
            ToSupervisor::StartApp => packet(2, [0; 3], &[]),
            ToSupervisor::Drained => packet(3, [0; 3], &[]),
            ToSupervisor::SignalApp { signal } => packet(4, [i64::from(signal), 0, 0], &[]),
            ToSupervisor::Replace { reason } => packet(5, [reason.number(), 0, 0], &[]),
            ToSupervisor::Upgrade { binary } => packet(6, [0; 3], binary),
            ToSupervisor::Released => packet(7, [0; 3], &[]),
            ToSupervisor::Stop { within_ms } => packet(8, [whole(within_ms), 0, 0], &[]),
            ToSupervisor::AskDescriptors { pid } => packet(9, [i64::from(pid), 0, 0], &[]),
            ToSupervisor::Serving => packet(11, [0; 3], &[]),
            ToSupervisor::ExitAcknowledged => packet(12, [0; 3], &[]),
            ToSupervisor::CannotStart { reason } => packet(13, [0; 3], reason),
            ToSupervisor::AppGone { code } => packet(10, [i64::from(code), 0, 0], &[]),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToSupervisor<'_>> {
        let (tag, [first, ..], payload) = unpack(bytes)?;
        let signal = |number: i64| i32::try_from(number).ok().filter(|signal| (1..=64).contains(signal));
        Some(match tag {
            1 => ToSupervisor::Plan { bytes: u64::try_from(first).ok()? },
            2 => ToSupervisor::StartApp,
            3 => ToSupervisor::Drained,
            4 => ToSupervisor::SignalApp { signal: signal(first)? },
            5 => ToSupervisor::Replace { reason: RestartReason::from_number(first)? },
            6 => ToSupervisor::Upgrade { binary: payload },
            7 => ToSupervisor::Released,
            8 => ToSupervisor::Stop { within_ms: u64::try_from(first).ok()? },
            9 => ToSupervisor::AskDescriptors { pid: i32::try_from(first).ok().filter(|pid| *pid > 1)? },
            10 => ToSupervisor::AppGone { code: i32::try_from(first).ok().filter(|code| (0..256).contains(code))? },
            11 => ToSupervisor::Serving,
            12 => ToSupervisor::ExitAcknowledged,
            13 => ToSupervisor::CannotStart { reason: payload },
            _ => return None,
        })
    }
}

/// Sends one packet without blocking. A full socket drops it: its reader is hung, and learns the state when it is replaced.
pub fn send(socket: impl AsFd, packet: &Packet) -> io::Result<()> {
    let bytes = packet.bytes.get(..packet.length).unwrap_or(&[]);
    loop {
        match rustix::net::send(&socket, bytes, rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn packet(tag: i64, numbers: [i64; 3], payload: &[u8]) -> Packet {
    let mut bytes = [0; PACKET_MAX];
    let [first, second, third] = numbers;
    for (place, part) in bytes.chunks_exact_mut(8).zip([tag, first, second, third].map(i64::to_le_bytes)) {
        place.copy_from_slice(&part);
    }
    let payload = payload.get(..payload.len().min(PAYLOAD_MAX)).unwrap_or(&[]);
    if let Some(place) = bytes.get_mut(HEAD..HEAD + payload.len()) {
        place.copy_from_slice(payload);
    }
    Packet { bytes, length: HEAD + payload.len() }
}

fn unpack(bytes: &[u8]) -> Option<(i64, [i64; 3], &[u8])> {
    let (head, payload) = bytes.split_at_checked(HEAD)?;
    let part = |index: usize| Some(i64::from_le_bytes(head.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    Some((part(0)?, [part(1)?, part(2)?, part(3)?], payload))
}

/// The worker's exit code for a mistake in the configuration or an address that is taken.
pub const EXIT_ERROR: i32 = 1;

/// A worker that could not become the binary that it was to be ends with this and the number of the error: above the codes of
/// signals, so that whoever asked can be told the reason.
pub const EXIT_NOT_EXECUTED: i32 = 192;

/// The worker's exit code when another has taken over from it.
pub const EXIT_HANDED_OVER: i32 = 75;

/// A duration as messages carry it.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(packet: &Packet) -> &[u8] {
        &packet.bytes[..packet.length]
    }

    #[test]
    fn messages_survive_the_socket_and_garbage_is_refused() {
        let ended = Ended { code: 137, signal: 9, core_dumped: false, out_of_memory: true, restarts: true };
        for message in [
            ToWorker::AppStarted { pid: 7 },
            ToWorker::AppEnded(ended),
            ToWorker::LastExit { ended, restarts: 300 },
            ToWorker::AppEnded(Ended { core_dumped: true, out_of_memory: false, restarts: false, ..ended }),
            ToWorker::Stop { left_ms: 9, app_ended: true },
            ToWorker::Acquire,
            ToWorker::HandOver,
            ToWorker::KeepServing { reason: b"it did not become ready" },
            ToWorker::Descriptors { pid: 9, count: 31 },
        ] {
            assert_eq!(ToWorker::decode(bytes(&message.encode())), Some(message));
        }
        for message in [
            ToSupervisor::Plan { bytes: 77 },
            ToSupervisor::StartApp,
            ToSupervisor::Drained,
            ToSupervisor::SignalApp { signal: 15 },
            ToSupervisor::Replace { reason: RestartReason::MemoryLimit },
            ToSupervisor::CannotStart { reason: b"a port is taken" },
            ToSupervisor::Upgrade { binary: b"/usr/bin/outrigger" },
            ToSupervisor::Released,
            ToSupervisor::Stop { within_ms: 5 },
            ToSupervisor::AskDescriptors { pid: 9 },
            ToSupervisor::AppGone { code: 3 },
            ToSupervisor::Serving,
            ToSupervisor::ExitAcknowledged,
        ] {
            assert_eq!(ToSupervisor::decode(bytes(&message.encode())), Some(message));
        }
        assert_eq!(ToSupervisor::decode(bytes(&packet(4, [900, 0, 0], &[]))), None, "no such signal");
        assert_eq!(ToSupervisor::decode(bytes(&packet(10, [300, 0, 0], &[]))), None, "no such exit code");
        assert_eq!(ToWorker::decode(bytes(&packet(7, [9, -1, 0], &[]))), None, "no count");
        assert_eq!(ToWorker::decode(&[9; HEAD]), None);
        assert_eq!(ToWorker::decode(b"short"), None);
        let long = vec![b'x'; PAYLOAD_MAX + 1];
        assert_eq!(ToWorker::KeepServing { reason: &long }.encode().length, PACKET_MAX, "a longer payload is cut");
    }
}
