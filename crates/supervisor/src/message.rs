//! The short list of messages between supervisor and worker, over one inherited SOCK_SEQPACKET pair. In and out: packets of a
//! tag and three numbers, some with a payload. What systemd's notify protocol covers goes over the notify socket. Limits:
//! `PAYLOAD_MAX` bytes after the numbers.

use crate::restarts::RestartReason;
use crate::signals::{SIGINT, SIGTERM};
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

/// How the app exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code as a shell gives it: 128 + n for signal n.
    pub code: i32,
    /// The signal that killed it, or 0.
    pub signal: i32,
    pub core_dumped: bool,
    /// The kernel OOM-killed a process of its control group, and the app was killed by SIGKILL.
    pub out_of_memory: bool,
    /// The app is started again.
    pub restarts: bool,
    /// It is not started again, since `app.restart.max_restarts` is reached.
    pub limit_reached: bool,
    /// It could not be started.
    pub not_started: bool,
}

impl Ended {
    /// From an exit code only, for an app that never ran or is external.
    pub fn with_code(code: i32) -> Ended {
        Ended {
            code,
            signal: 0,
            core_dumped: false,
            out_of_memory: false,
            restarts: false,
            limit_reached: false,
            not_started: false,
        }
    }

    /// The form in which it is sent and passed to the next program.
    pub fn numbers(self) -> [i64; 3] {
        let bits = [self.core_dumped, self.out_of_memory, self.restarts, self.limit_reached, self.not_started];
        let how = bits.into_iter().rev().fold(0, |how, bit| how << 1 | i64::from(bit));
        [i64::from(self.code), i64::from(self.signal), how]
    }

    pub fn from_numbers([code, signal, how]: [i64; 3]) -> Option<Ended> {
        Some(Ended {
            code: i32::try_from(code).ok()?,
            signal: i32::try_from(signal).ok()?,
            core_dumped: how & 1 > 0,
            out_of_memory: how & 1 << 1 > 0,
            restarts: how & 1 << 2 > 0,
            limit_reached: how & 1 << 3 > 0,
            not_started: how & 1 << 4 > 0,
        })
    }
}

/// Why a stop began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// SIGTERM or SIGINT arrived.
    Signal(i32),
    /// `outrigger stop`, or a request on the admin listener.
    Request,
    /// The app exited by itself, or could not be started.
    AppExit,
    /// The start gates did not open within `app.start.timeout`, and `on_timeout` is `fail`.
    StartTimeout,
}

impl StopCause {
    fn number(self) -> i64 {
        match self {
            StopCause::Signal(signal) => i64::from(signal),
            StopCause::Request => -1,
            StopCause::AppExit => -2,
            StopCause::StartTimeout => -3,
        }
    }

    /// A number of another version counts as a request.
    fn from_number(number: i64) -> StopCause {
        match number {
            -2 => StopCause::AppExit,
            -3 => StopCause::StartTimeout,
            _ => signal(number).map_or(StopCause::Request, StopCause::Signal),
        }
    }
}

impl std::fmt::Display for StopCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopCause::Signal(SIGTERM) => f.write_str("SIGTERM"),
            StopCause::Signal(SIGINT) => f.write_str("SIGINT"),
            StopCause::Signal(number) => write!(f, "signal {number}"),
            StopCause::Request => f.write_str("stop request"),
            StopCause::AppExit => f.write_str("app exit"),
            StopCause::StartTimeout => f.write_str("app.start.timeout"),
        }
    }
}

/// From the supervisor to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker<'a> {
    AppStarted {
        pid: i32,
        /// It was started before this worker took over.
        earlier: bool,
    },
    /// How the app exited last, and how often it has exited and was started again: for a worker that did not run then.
    LastExit {
        ended: Ended,
        restarts: u32,
    },
    AppEnded(Ended),
    /// Why the app could not be started; `AppEnded` follows.
    AppNotStarted {
        reason: &'a [u8],
    },
    /// Stop, and finish within this many milliseconds.
    Stop {
        left_ms: u64,
        cause: StopCause,
    },
    /// The exit of an external app is not waited for any longer, and was not detected.
    ExternalAppOver,
    /// The app still ran at the end of its grace period and got SIGKILL.
    AppKilled,
    /// No other worker reads the rings or writes the state any more: this worker acquires them.
    Acquire,
    /// Another worker is ready, which was started because of `cause`: hand over, drain and exit.
    HandOver {
        cause: RestartReason,
    },
    /// The handover that `cause` began was abandoned, for this reason.
    KeepServing {
        cause: RestartReason,
        reason: &'a [u8],
    },
    /// How many file descriptors a process of the app has open.
    Descriptors {
        pid: i32,
        count: u64,
    },
}

/// From the worker to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToSupervisor<'a> {
    /// The plan is in its memfd, this many bytes long.
    Plan {
        bytes: u64,
    },
    /// The start gates have opened: the app may start.
    StartApp,
    /// Inbound traffic has drained: the app may get its stop signal.
    Drained,
    SignalApp {
        signal: i32,
    },
    /// Start another worker, which replaces this one.
    Replace {
        reason: RestartReason,
    },
    /// The same from another binary; empty for the one that Outrigger was started from.
    Upgrade {
        binary: &'a [u8],
    },
    /// This worker has released the rings and the state.
    Released,
    /// Everything is started: the configuration of this worker is good.
    Serving,
    /// This worker cannot start, for this reason, and exits.
    CannotStart {
        reason: &'a [u8],
    },
    /// This worker has recorded the app's exit.
    ExitAcknowledged,
    /// Begin the stop, and finish within this many milliseconds; 0 for the configured deadline.
    Stop {
        within_ms: u64,
        cause: StopCause,
    },
    /// Count the file descriptors, which a sandboxed worker may not see itself (landlock(7), ptrace restrictions).
    CountDescriptors {
        pid: i32,
    },
    /// The external app has exited with this code: stop, and exit with it.
    AppExited {
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
            ToWorker::AppStarted { pid, earlier } => packet(1, [i64::from(pid), i64::from(earlier), 0], &[]),
            ToWorker::LastExit { ended, restarts } => packet(8, ended.numbers(), &restarts.to_le_bytes()),
            ToWorker::AppEnded(ended) => packet(2, ended.numbers(), &[]),
            ToWorker::Stop { left_ms, cause } => {
                packet(3, [i64::try_from(left_ms).unwrap_or(i64::MAX), cause.number(), 0], &[])
            }
            ToWorker::ExternalAppOver => packet(9, [0; 3], &[]),
            ToWorker::AppKilled => packet(10, [0; 3], &[]),
            ToWorker::AppNotStarted { reason } => packet(11, [0; 3], reason),
            ToWorker::Acquire => packet(4, [0; 3], &[]),
            ToWorker::HandOver { cause } => packet(5, [cause.number(), 0, 0], &[]),
            ToWorker::KeepServing { cause, reason } => packet(6, [cause.number(), 0, 0], reason),
            ToWorker::Descriptors { pid, count } => {
                packet(7, [i64::from(pid), i64::try_from(count).unwrap_or(i64::MAX), 0], &[])
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToWorker<'_>> {
        let (tag, [first, second, third], payload) = unpack(bytes)?;
        Some(match tag {
            1 => ToWorker::AppStarted { pid: i32::try_from(first).ok()?, earlier: second == 1 },
            2 => ToWorker::AppEnded(Ended::from_numbers([first, second, third])?),
            3 => ToWorker::Stop { left_ms: u64::try_from(first).ok()?, cause: StopCause::from_number(second) },
            4 => ToWorker::Acquire,
            5 => ToWorker::HandOver { cause: RestartReason::from_number(first)? },
            6 => ToWorker::KeepServing { cause: RestartReason::from_number(first)?, reason: payload },
            7 => ToWorker::Descriptors { pid: i32::try_from(first).ok()?, count: u64::try_from(second).ok()? },
            8 => ToWorker::LastExit {
                ended: Ended::from_numbers([first, second, third])?,
                restarts: u32::from_le_bytes(payload.try_into().ok()?),
            },
            9 => ToWorker::ExternalAppOver,
            10 => ToWorker::AppKilled,
            11 => ToWorker::AppNotStarted { reason: payload },
            _ => return None,
        })
    }
}

impl ToSupervisor<'_> {
    pub fn encode(self) -> Packet {
        let saturated = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        match self {
            ToSupervisor::Plan { bytes } => packet(1, [saturated(bytes), 0, 0], &[]),
            ToSupervisor::StartApp => packet(2, [0; 3], &[]),
            ToSupervisor::Drained => packet(3, [0; 3], &[]),
            ToSupervisor::SignalApp { signal } => packet(4, [i64::from(signal), 0, 0], &[]),
            ToSupervisor::Replace { reason } => packet(5, [reason.number(), 0, 0], &[]),
            ToSupervisor::Upgrade { binary } => packet(6, [0; 3], binary),
            ToSupervisor::Released => packet(7, [0; 3], &[]),
            ToSupervisor::Stop { within_ms, cause } => packet(8, [saturated(within_ms), cause.number(), 0], &[]),
            ToSupervisor::CountDescriptors { pid } => packet(9, [i64::from(pid), 0, 0], &[]),
            ToSupervisor::Serving => packet(11, [0; 3], &[]),
            ToSupervisor::ExitAcknowledged => packet(12, [0; 3], &[]),
            ToSupervisor::CannotStart { reason } => packet(13, [0; 3], reason),
            ToSupervisor::AppExited { code } => packet(10, [i64::from(code), 0, 0], &[]),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToSupervisor<'_>> {
        let (tag, [first, second, _], payload) = unpack(bytes)?;
        Some(match tag {
            1 => ToSupervisor::Plan { bytes: u64::try_from(first).ok()? },
            2 => ToSupervisor::StartApp,
            3 => ToSupervisor::Drained,
            4 => ToSupervisor::SignalApp { signal: signal(first)? },
            5 => ToSupervisor::Replace { reason: RestartReason::from_number(first)? },
            6 => ToSupervisor::Upgrade { binary: payload },
            7 => ToSupervisor::Released,
            8 => ToSupervisor::Stop { within_ms: u64::try_from(first).ok()?, cause: StopCause::from_number(second) },
            9 => ToSupervisor::CountDescriptors { pid: i32::try_from(first).ok().filter(|pid| *pid > 1)? },
            10 => ToSupervisor::AppExited { code: i32::try_from(first).ok().filter(|code| (0..256).contains(code))? },
            11 => ToSupervisor::Serving,
            12 => ToSupervisor::ExitAcknowledged,
            13 => ToSupervisor::CannotStart { reason: payload },
            _ => return None,
        })
    }
}

/// A signal number of Linux.
fn signal(number: i64) -> Option<i32> {
    i32::try_from(number).ok().filter(|signal| (1..=64).contains(signal))
}

/// Sends one packet without blocking. A full socket drops it: its reader hangs, and its replacement gets the current state.
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
    for (slot, part) in bytes.chunks_exact_mut(8).zip([tag, first, second, third].map(i64::to_le_bytes)) {
        slot.copy_from_slice(&part);
    }
    let payload = payload.get(..payload.len().min(PAYLOAD_MAX)).unwrap_or(&[]);
    if let Some(target) = bytes.get_mut(HEAD..HEAD + payload.len()) {
        target.copy_from_slice(payload);
    }
    Packet { bytes, length: HEAD + payload.len() }
}

fn unpack(bytes: &[u8]) -> Option<(i64, [i64; 3], &[u8])> {
    let (head, payload) = bytes.split_at_checked(HEAD)?;
    let part = |index: usize| Some(i64::from_le_bytes(head.get(index * 8..index * 8 + 8)?.try_into().ok()?));
    Some((part(0)?, [part(1)?, part(2)?, part(3)?], payload))
}

/// The worker's exit code for an error in the configuration or an address that is in use.
pub const EXIT_ERROR: i32 = 1;

/// A worker that could not exec its binary exits with this plus the number of the error: above the codes of signals, so that the
/// reason can be reported to the client that requested the upgrade.
pub const EXIT_NOT_EXECUTED: i32 = 192;

/// The worker's exit code after a handover.
pub const EXIT_HANDED_OVER: i32 = 75;

/// A duration in the unit of the messages.
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
    fn messages_round_trip_and_garbage_is_rejected() {
        let ended = Ended { signal: 9, out_of_memory: true, restarts: true, ..Ended::with_code(137) };
        for message in [
            ToWorker::AppStarted { pid: 7, earlier: true },
            ToWorker::AppEnded(ended),
            ToWorker::LastExit { ended, restarts: 300 },
            ToWorker::AppEnded(Ended { core_dumped: true, out_of_memory: false, restarts: false, ..ended }),
            ToWorker::AppEnded(Ended { limit_reached: true, ..Ended::with_code(3) }),
            ToWorker::AppEnded(Ended { not_started: true, ..Ended::with_code(127) }),
            ToWorker::Stop { left_ms: 9, cause: StopCause::Signal(15) },
            ToWorker::Stop { left_ms: 9, cause: StopCause::Request },
            ToWorker::Stop { left_ms: 9, cause: StopCause::AppExit },
            ToWorker::Stop { left_ms: 9, cause: StopCause::StartTimeout },
            ToWorker::ExternalAppOver,
            ToWorker::AppKilled,
            ToWorker::AppNotStarted { reason: b"command not found" },
            ToWorker::Acquire,
            ToWorker::HandOver { cause: RestartReason::Upgrade },
            ToWorker::KeepServing { cause: RestartReason::Reload, reason: b"not ready in time" },
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
            ToSupervisor::CannotStart { reason: b"a port is in use" },
            ToSupervisor::Upgrade { binary: b"/usr/bin/outrigger" },
            ToSupervisor::Released,
            ToSupervisor::Stop { within_ms: 5, cause: StopCause::Request },
            ToSupervisor::CountDescriptors { pid: 9 },
            ToSupervisor::AppExited { code: 3 },
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
        assert_eq!(
            ToWorker::KeepServing { cause: RestartReason::Reload, reason: &long }.encode().length,
            PACKET_MAX,
            "a longer payload is truncated"
        );
    }
}
