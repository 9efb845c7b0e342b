//! Lets tests inject a fault into a worker, or try from inside an action that its sandbox forbids (feature `fault-injection`,
//! never in a release). In: one line on `faults.sock` in the state directory, such as `hang proxy` or `read /etc/passwd`. Out:
//! one line back, `done` or `errno 13`, and the fault. Limits: one connection at a time, served on the worker's main thread
//! inside its main future, so that a panic or a block here affects that thread.

use base::runtime::scope::Scope;
use base::sync::lock;
use base::telemetry::Telemetry;
use rustix::net::{AddressFamily, SocketType, ipproto};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Leaked memory and files stay until the process exits.
static LEAKED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static OPENED: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// File descriptors that are enough for a busy worker, and quickly exhausted.
const DESCRIPTORS: u64 = 256;

/// The step of a leak, after which other tasks run.
const STEP: usize = 1 << 20;

pub struct FaultSocket {
    listener: io::Result<UnixListener>,
    telemetry: Telemetry,
    /// Scopes of tasks that were started to panic.
    scopes: RefCell<Vec<Scope>>,
}

impl FaultSocket {
    /// The newest worker replaces the socket at the path.
    pub fn open(state_dir: &Path, telemetry: &Telemetry) -> FaultSocket {
        let path = state_dir.join("faults.sock");
        let _ = std::fs::create_dir_all(state_dir);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path);
        if let Err(error) = &listener {
            tracing::warn!(%error, path = %path.display(), "cannot open the fault injection socket");
        }
        FaultSocket { listener, telemetry: telemetry.clone(), scopes: RefCell::default() }
    }

    /// Runs the worker and serves the socket.
    pub async fn serve_during<T>(self, worker: impl Future<Output = T>) -> T {
        tokio::select! {
            result = worker => result,
            () = self.serve() => unreachable!("the socket is never closed"),
        }
    }

    async fn serve(&self) {
        let Ok(listener) = &self.listener else { return std::future::pending().await };
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                // A test that has disconnected needs no response.
                let _ = self.respond(stream).await;
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn respond(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await?;
        let (action, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        // A fault may prevent a response after it, so the response is sent first.
        if matches!(action, "panic" | "abort" | "hang") {
            stream.write_all(b"coming\n").await?;
            stream.shutdown().await?;
            drop(stream);
            return self.fault(action, rest);
        }
        let response = match self.attempt(action, rest).await {
            Ok(response) => response,
            Err(error) => match error.raw_os_error() {
                Some(number) => format!("errno {number}"),
                None => format!("invalid request: {error}"),
            },
        };
        stream.write_all(format!("{response}\n").as_bytes()).await
    }

    fn fault(&self, action: &str, subsystem: &str) -> io::Result<()> {
        if action == "abort" {
            std::process::abort();
        }
        let fault: fn() = match action {
            "panic" => || panic!("a panic on request"),
            _ => || {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            },
        };
        match subsystem {
            "logs" => post("logs", fault),
            "proxy" => post("proxy-0", fault),
            // These have no separate thread: their tasks run on the main thread.
            "metrics" | "sync" if action == "panic" => {
                let healths = self.telemetry.healths();
                let health = healths.into_iter().find(|health| health.current().name == subsystem).ok_or(NO_SUCH)?;
                let scope = Scope::new(subsystem, health);
                scope.spawn("faults", async move { fault() });
                self.scopes.borrow_mut().push(scope);
                Ok(())
            }
            _ => {
                fault();
                Ok(())
            }
        }
    }

    async fn attempt(&self, action: &str, argument: &str) -> io::Result<String> {
        match action {
            "pid" => return Ok(std::process::id().to_string()),
            "leak" => leak(number(argument)?).await,
            "fds" => return exhaust_descriptors().map(|count| format!("done {count}")),
            "read" => drop(std::fs::read(argument)?),
            "open" => drop(File::open(argument)?),
            "write" => std::fs::write(argument, "written from inside\n")?,
            "list" => drop(std::fs::read_dir(argument)?),
            "socket" => drop(forbidden_socket(argument)?),
            "exec" => drop(std::process::Command::new(argument).args(["-c", "true"]).status()?),
            "connect" => drop(std::net::TcpStream::connect(("127.0.0.1", number(argument)?))?),
            "listen" => drop(std::net::TcpListener::bind(("127.0.0.1", number(argument)?))?),
            "kill" => {
                let pid = Pid::from_raw(number(argument)?).ok_or(NO_SUCH)?;
                // SIGURG is ignored by default: only the attempt matters.
                rustix::process::kill_process(pid, Signal::URG)?;
            }
            _ => return Err(NO_SUCH.into()),
        }
        Ok("done".into())
    }
}

const NO_SUCH: io::ErrorKind = io::ErrorKind::InvalidInput;

fn post(thread: &str, fault: fn()) -> io::Result<()> {
    if base::runtime::fault_mailbox::post(thread, fault) { Ok(()) } else { Err(NO_SUCH.into()) }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| NO_SUCH.into())
}

async fn leak(mebibytes: usize) {
    for _ in 0..mebibytes {
        // Not zeroes, which would be the kernel's one page of them.
        lock(&LEAKED).push(vec![1; STEP]);
        tokio::task::yield_now().await;
    }
}

/// Lowers the limit first: the system's limit may be a million.
fn exhaust_descriptors() -> io::Result<usize> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), ..limit })?;
    loop {
        match File::open("/dev/null") {
            Ok(file) => lock(&OPENED).push(file),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                return Ok(lock(&OPENED).len());
            }
            Err(error) => return Err(error),
        }
    }
}

fn forbidden_socket(kind: &str) -> io::Result<std::os::fd::OwnedFd> {
    let (family, kind, protocol) = match kind {
        "raw" => (AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)),
        "packet" => (AddressFamily::PACKET, SocketType::RAW, None),
        "netlink" => (AddressFamily::NETLINK, SocketType::RAW, None),
        "vsock" => (AddressFamily::VSOCK, SocketType::STREAM, None),
        _ => return Err(NO_SUCH.into()),
    };
    Ok(rustix::net::socket(family, kind, protocol)?)
}
