//! Operations of the worker that must work in the sandbox. In: the directory, the TCP port of an echo server, the UDP port of
//! another, and a free port to listen on. Out: a line for each attempt. Limits: no wait is longer than `LIMIT`.

use crate::{attempt, enter, grants, paths, port};
use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags};
use sandbox::Grants;
use std::fs::{self, File};
use std::io::{self, Error, Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const LIMIT: Duration = Duration::from_secs(10);

pub fn run(directory: &Path, rest: &[String]) {
    let [tcp, udp, free] = rest else { panic!("scenario works needs three ports") };
    let (tcp, udp, free) = (port(tcp), port(udp), port(free));
    enter(&Grants { read: paths(&["/etc/hostname"]), connect: vec![tcp, free], bind: vec![free], ..grants(directory) });
    let inside = directory.join("in");

    attempt("threads", threads());
    attempt("files", files(&inside));
    attempt("rename and link", rename_and_link(&inside));
    attempt("memory", memory());
    attempt("pipes", pipes());
    attempt("unix sockets", unix_sockets(&inside));
    attempt("attributes outside", fs::metadata("/etc/passwd"));
    attempt("/dev/null", dev_null());
    attempt("files of /proc/self", proc_self());
    attempt("a caught panic", caught_panic());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        attempt("tcp to a granted port", within(echo(tcp)).await);
        attempt("tcp on a granted port", within(serve(free)).await);
        attempt("udp", within(datagram(udp)).await);
        attempt("signals to itself", within(signals()).await);
        attempt("a thread that blocks", within(blocking(inside.join("blocking"))).await);
        attempt("timers", within(timers()).await);
    });
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(LIMIT, work).await.map_err(Error::other)?
}

fn require(condition: bool, error: &str) -> io::Result<()> {
    if condition { Ok(()) } else { Err(Error::other(error.to_string())) }
}

fn threads() -> io::Result<()> {
    let named = std::thread::Builder::new().name("proxy-0".to_string()).spawn(|| {
        // The thread inherits the sandbox.
        (std::thread::available_parallelism().is_ok(), fs::read("/etc/passwd").is_err())
    })?;
    let (counted, denied) = named.join().map_err(|_| Error::other("the thread panicked"))?;
    require(counted && denied, "a thread has other permissions than its parent thread")
}

fn files(inside: &Path) -> io::Result<()> {
    let path = inside.join("original");
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.write_all(b"one line\n")?;
    file.sync_all()?;
    file.sync_data()?;
    file.set_len(3)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4096)?;
    file.set_modified(std::time::SystemTime::now())?;
    File::open(inside)?.sync_all()?;
    fs::copy(&path, inside.join("copy"))?;
    require(fs::read(inside.join("copy"))?.len() == 4096, "the copy is short")
}

fn rename_and_link(inside: &Path) -> io::Result<()> {
    let (one, two) = (inside.join("one"), inside.join("two"));
    fs::create_dir_all(one.join("deep"))?;
    fs::create_dir_all(&two)?;
    fs::write(one.join("file"), "text")?;
    // From one directory to another: LANDLOCK_ACCESS_FS_REFER.
    fs::rename(one.join("file"), two.join("file"))?;
    fs::rename(one.join("deep"), two.join("deep"))?;
    symlink("two", inside.join("next"))?;
    fs::rename(inside.join("next"), inside.join("current"))?;
    fs::hard_link(two.join("file"), one.join("hard"))?;
    require(fs::read_to_string(inside.join("current/file"))? == "text", "the symlink has another target")?;
    require(fs::read_dir(&two)?.count() == 2, "the directory has other contents")?;
    fs::remove_file(inside.join("current"))?;
    fs::remove_dir_all(two)?;
    fs::remove_dir_all(one)
}

/// The way the capture ring releases its memory.
fn memory() -> io::Result<()> {
    let memory = rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, 1 << 20)?;
    let mut file = File::from(memory);
    file.write_all(&vec![b'x'; 1 << 20])?;
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 1 << 19)?;
    file.seek(SeekFrom::Start(0))?;
    let mut first = [1];
    file.read_exact(&mut first)?;
    require(first == [0], "the hole is not zero")?;
    // Large enough for mmap, mremap and munmap.
    let mut large = vec![0u8; 8 << 20];
    large.resize(64 << 20, 1);
    require(large.last() == Some(&1), "memory lost its contents")
}

fn pipes() -> io::Result<()> {
    let (mut reader, mut writer) = io::pipe()?;
    writer.write_all(b"wake")?;
    drop(writer);
    require(io::read_to_string(&mut reader)? == "wake", "the pipe changed its bytes")
}

fn unix_sockets(inside: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(inside.join("admin.sock"))?;
    fs::set_permissions(inside.join("admin.sock"), fs::Permissions::from_mode(0o660))?;
    let mut client = UnixStream::connect(inside.join("admin.sock"))?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"GET")?;
    let mut seen = [0; 3];
    server.read_exact(&mut seen)?;
    let (one, two) = UnixDatagram::pair()?;
    one.send(b"READY=1")?;
    two.recv(&mut seen)?;
    require(&seen == b"REA", "the datagram changed its bytes")
}

fn dev_null() -> io::Result<()> {
    File::open("/dev/null")?.read_to_end(&mut Vec::new())?;
    File::options().write(true).open("/dev/null")?.write_all(b"discarded")
}

fn proc_self() -> io::Result<()> {
    for file in ["stat", "status", "smaps_rollup", "io", "limits", "cmdline", "task/self"] {
        let path = match file {
            "task/self" => format!("/proc/self/task/{}/stat", std::process::id()),
            _ => format!("/proc/self/{file}"),
        };
        fs::read(&path).map_err(|error| Error::other(format!("{path}: {error}")))?;
    }
    let open = fs::read_dir("/proc/self/fd")?.count();
    require(open > 2, "/proc/self/fd shows no file descriptors")
}

fn caught_panic() -> io::Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    let caught = std::thread::spawn(|| std::panic::catch_unwind(|| panic!("provoked")).is_err()).join();
    let _ = std::panic::take_hook();
    require(matches!(caught, Ok(true)), "the panic was not caught")
}

async fn echo(port: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(b"ping").await?;
    let mut seen = [0; 4];
    stream.read_exact(&mut seen).await?;
    require(&seen == b"ping", "the echo differs")
}

async fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let (served, echoed) = tokio::join!(
        async {
            let (mut stream, _) = listener.accept().await?;
            let mut seen = [0; 4];
            stream.read_exact(&mut seen).await?;
            stream.write_all(&seen).await
        },
        echo(port)
    );
    served.and(echoed)
}

/// Like a DNS query: from an unconnected socket to a port without a grant.
async fn datagram(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.send_to(b"question", (Ipv4Addr::LOCALHOST, port)).await?;
    let mut seen = [0; 16];
    let (length, _) = socket.recv_from(&mut seen).await?;
    require(&seen[..length] == b"question", "the echo differs")
}

async fn signals() -> io::Result<()> {
    let mut handler = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::user_defined1())?;
    // The test sends the signal once it reads this line.
    println!("waiting for SIGUSR1\tok");
    handler.recv().await.ok_or(Error::other("the handler closed"))
}

async fn blocking(path: std::path::PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || fs::write(&path, "text").and_then(|()| File::open(&path)?.sync_all()))
        .await
        .map_err(Error::other)?
}

async fn timers() -> io::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..3 {
        ticks.tick().await;
    }
    Ok(())
}
