//! systemd, or another service manager with its protocol: it started Outrigger and stores its descriptors. In: `NOTIFY_SOCKET`,
//! `WATCHDOG_USEC`, `LISTEN_FDS` (sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)). Out: notifications, the
//! descriptors that were stored. Without the variables nothing is sent, and nothing wakes the supervisor.

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

pub(crate) struct Systemd {
    socket: Option<OwnedFd>,
    /// Half of the time after which it considers Outrigger hung.
    interval: Option<Duration>,
    next: Instant,
    /// The notification that it has not accepted yet.
    due: Option<Due>,
    ready: bool,
    stored: Vec<(String, OwnedFd)>,
}

/// Descriptors that are checked; those that exceed the store are at least not inherited by the app.
const LISTEN_MAX: i32 = 4096;

/// Notifications that must not be lost: a service manager waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Ready,
    Reloading,
}

/// The delay before a retry if the service manager's queue was full (net.unix.max_dgram_qlen).
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The first descriptor that is passed (sd_listen_fds(3), SD_LISTEN_FDS_START).
const FIRST: i32 = 3;

impl Systemd {
    pub fn from_environment() -> Systemd {
        let mut systemd = Systemd::without_descriptors();
        let for_this_process = |name: &str| {
            std::env::var(name).is_ok_and(|pid| pid.parse() == Ok(rustix::process::getpid().as_raw_nonzero().get()))
        };
        if for_this_process("LISTEN_PID") {
            let count: i32 = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
            let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
            let mut names = names.split(':');
            systemd.stored = (FIRST..FIRST.saturating_add(count.clamp(0, crate::plan::STORED_MAX as i32)))
                .filter_map(|number| {
                    let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unnamed").to_string();
                    sys::process::claim(number).map(|fd| (name, fd))
                })
                .collect();
            for number in FIRST + systemd.stored.len() as i32..FIRST.saturating_add(count.clamp(0, LISTEN_MAX)) {
                sys::process::close_on_exec(number);
            }
        }
        systemd
    }

    /// For a program that has replaced the one which took the descriptors.
    pub fn without_descriptors() -> Systemd {
        let usec: Option<u64> = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok());
        let for_another_process = std::env::var("WATCHDOG_PID")
            .is_ok_and(|pid| pid.parse() != Ok(rustix::process::getpid().as_raw_nonzero().get()));
        let socket = std::env::var_os("NOTIFY_SOCKET")
            .and_then(|path| connect(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())));
        let interval = usec
            .filter(|usec| *usec > 0 && !for_another_process && socket.is_some())
            .map(|usec| Duration::from_micros(usec / 2));
        Systemd { socket, interval, next: Instant::now(), due: None, ready: false, stored: Vec::new() }
    }

    /// The descriptors that it had stored for Outrigger.
    pub fn stored(&self) -> Vec<(String, OwnedFd)> {
        self.stored.iter().filter_map(|(name, fd)| Some((name.clone(), fd.try_clone().ok()?))).collect()
    }

    /// Whether a service manager keeps Outrigger's descriptors after this process has exited.
    pub fn is_present(&self) -> bool {
        self.socket.is_some()
    }

    /// Outrigger serves. Sent once, and again after a reload.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            // The descriptors that were passed at the start are in the store now.
            self.stored.clear();
            self.notify(Due::Ready);
        }
    }

    /// A handover to another worker begins; `ready` follows whether it succeeds or not.
    pub fn reloading(&mut self) {
        if std::mem::replace(&mut self.ready, false) {
            self.notify(Due::Reloading);
        }
    }

    fn notify(&mut self, due: Due) {
        let sent = match due {
            Due::Ready => self.send(b"READY=1\nSTATUS=serving", None),
            Due::Reloading => {
                let mut text = [0u8; 96];
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
                let mut rest = &mut text[..];
                let form = format_args!("RELOADING=1\nSTATUS=reloading: starting a new worker\nMONOTONIC_USEC={usec}");
                let written = std::io::Write::write_fmt(&mut rest, form).map(|()| rest.len());
                let length = text.len() - written.unwrap_or(0);
                self.send(text.get(..length).unwrap_or(&[]), None)
            }
        };
        self.due = (!sent).then_some(due);
        if !sent {
            self.next = self.next.min(Instant::now() + RETRY_DELAY);
        }
    }

    pub fn stopping(&self) {
        let _ = self.send(b"STOPPING=1\nSTATUS=stopping", None);
    }

    pub fn store(&self, name: &[u8], fd: BorrowedFd<'_>) {
        self.send_named(b"FDSTORE=1\nFDPOLL=0\nFDNAME=", name, Some(fd));
    }

    pub fn forget(&self, name: &[u8]) {
        self.send_named(b"FDSTOREREMOVE=1\nFDNAME=", name, None);
    }

    fn send_named(&self, prefix: &[u8], name: &[u8], fd: Option<BorrowedFd<'_>>) {
        let mut text = [0u8; 256];
        let length = prefix.len() + name.len();
        if let Some((first, second)) = text.get_mut(..length).and_then(|text| text.split_at_mut_checked(prefix.len())) {
            first.copy_from_slice(prefix);
            second.copy_from_slice(name);
            // A descriptor that the service manager cannot accept now is not stored; its address is bound again after a restart.
            let _ = self.send(text.get(..length).unwrap_or(&[]), fd);
        }
    }

    /// False if the service manager's queue is full.
    fn send(&self, text: &[u8], fd: Option<BorrowedFd<'_>>) -> bool {
        let Some(socket) = &self.socket else { return true };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        // A service manager that reads nothing must not block the app.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(text)], &mut control, flags);
        sent != Err(rustix::io::Errno::AGAIN)
    }

    /// Sends the watchdog's heartbeat, and retries a notification, when that is due.
    pub fn tick(&mut self, now: Instant) {
        if let Some(due) = self.due.take_if(|_| now >= self.next) {
            self.next = now + self.interval.unwrap_or(RETRY_DELAY);
            self.notify(due);
        }
        if let Some(interval) = self.interval.filter(|_| now >= self.next) {
            let _ = self.send(b"WATCHDOG=1", None);
            self.next = now + interval;
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        (self.interval.is_some() || self.due.is_some()).then_some(self.next)
    }
}

/// A datagram socket to a path, or to an abstract name if the path begins with `@` (sd_notify(3)).
fn connect(path: &[u8]) -> Option<OwnedFd> {
    let address = match path.split_first()? {
        (b'@', name) => SocketAddrUnix::new_abstract_name(name).ok()?,
        (b'/', _) => SocketAddrUnix::new(path).ok()?,
        _ => return None,
    };
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    rustix::net::connect(&socket, &address).ok()?;
    Some(socket)
}
