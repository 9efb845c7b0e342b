//! The short list of messages between supervisor and worker, over one inherited SOCK_SEQPACKET pair. In and out: fixed
//! packets of `BYTES` bytes: a tag and two numbers. What systemd's notify protocol covers goes over the notify socket.

use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;

pub const BYTES: usize = 24;

/// From the supervisor to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker {
    AppStarted {
        pid: i32,
    },
    /// How the app ended: its exit code, or the signal that killed it.
    AppEnded {
        code: i32,
        signal: i32,
    },
    /// Stop, and be done in this many milliseconds.
    Stop {
        left_ms: u64,
    },
}

/// From the worker to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToSupervisor {
    /// The gates have passed: the app may start.
    StartApp,
    /// Inbound has drained: the app may get its stop signal.
    Drained,
    SignalApp {
        signal: i32,
    },
}

impl ToWorker {
    pub fn encode(self) -> [u8; BYTES] {
        match self {
            ToWorker::AppStarted { pid } => packet(1, i64::from(pid), 0),
            ToWorker::AppEnded { code, signal } => packet(2, i64::from(code), i64::from(signal)),
            ToWorker::Stop { left_ms } => packet(3, i64::try_from(left_ms).unwrap_or(i64::MAX), 0),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToWorker> {
        let (tag, first, second) = unpack(bytes)?;
        Some(match tag {
            1 => ToWorker::AppStarted { pid: i32::try_from(first).ok()? },
            2 => ToWorker::AppEnded { code: i32::try_from(first).ok()?, signal: i32::try_from(second).ok()? },
            3 => ToWorker::Stop { left_ms: u64::try_from(first).ok()? },
            _ => return None,
        })
    }
}

impl ToSupervisor {
    pub fn encode(self) -> [u8; BYTES] {
        match self {
            ToSupervisor::StartApp => packet(1, 0, 0),
            ToSupervisor::Drained => packet(2, 0, 0),
            ToSupervisor::SignalApp { signal } => packet(3, i64::from(signal), 0),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToSupervisor> {
        let (tag, first, _) = unpack(bytes)?;
        Some(match tag {
            1 => ToSupervisor::StartApp,
            2 => ToSupervisor::Drained,
            3 => ToSupervisor::SignalApp {
                signal: i32::try_from(first).ok().filter(|signal| (1..=64).contains(signal))?,
            },
            _ => return None,
        })
    }
}

/// Sends one packet without blocking. A full socket drops it: its reader is hung, and learns the state when it is replaced.
pub fn send(socket: impl AsFd, packet: &[u8; BYTES]) -> io::Result<()> {
    loop {
        match rustix::net::send(&socket, packet, rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn packet(tag: u64, first: i64, second: i64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (place, part) in bytes.chunks_exact_mut(8).zip([tag.to_le_bytes(), first.to_le_bytes(), second.to_le_bytes()]) {
        place.copy_from_slice(&part);
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<(u64, i64, i64)> {
    let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
    let part = |index: usize| bytes.get(index * 8..index * 8 + 8)?.try_into().ok();
    Some((u64::from_le_bytes(part(0)?), i64::from_le_bytes(part(1)?), i64::from_le_bytes(part(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 4
    #[test]
    fn messages_survive_the_socket_and_garbage_is_refused() {
        for message in
            [ToWorker::AppStarted { pid: 7 }, ToWorker::AppEnded { code: 3, signal: -1 }, ToWorker::Stop { left_ms: 9 }]
        {
            assert_eq!(ToWorker::decode(&message.encode()), Some(message));
        }
        for message in [ToSupervisor::StartApp, ToSupervisor::Drained, ToSupervisor::SignalApp { signal: 15 }] {
            assert_eq!(ToSupervisor::decode(&message.encode()), Some(message));
        }
        assert_eq!(ToSupervisor::decode(&ToSupervisor::SignalApp { signal: 900 }.encode()), None);
        assert_eq!(ToWorker::decode(&[9; BYTES]), None);
        assert_eq!(ToWorker::decode(b"short"), None);
    }
}
