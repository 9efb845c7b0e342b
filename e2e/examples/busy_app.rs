//! A busy app that tests wrap: it writes numbered lines at a steady rate and serves HTTP. In: lines a second; then, if it is to
//! serve, a port and the size of its large response. Out: `n=0000000` and so on, and as the last line how many there were. On
//! SIGUSR1 it writes a line to stderr, on SIGTERM it exits with 5. Limits: the connections that a test opens.
//!
//! Responses: `/quick` immediately, `/slow` after three seconds, `/big` over three seconds, any POST with the size of its body.

#[expect(dead_code, reason = "only the tests use the client half")]
#[path = "../tests/e2e/harness/wire.rs"]
mod wire;

use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use wire::{Head, Wire};

/// An exit code that no other process uses.
const EXIT_CODE: u8 = 5;

const TICK: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>().expect("every argument is a number"));
    let rate = arguments.next().expect("the first argument is the lines a second");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stopping = Arc::new(AtomicBool::default());
    runtime.block_on(async {
        // Before the port is bound: a client that gets a response may send signals.
        let mut sigterm = signal(SignalKind::terminate()).expect("the signal can be handled");
        let mut sigusr1 = signal(SignalKind::user_defined1()).expect("the signal can be handled");
        if let Some(port) = arguments.next() {
            let big = usize::try_from(arguments.next().expect("the size of a large response")).expect("a size");
            let port = u16::try_from(port).expect("a port");
            let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
            thread::spawn(move || serve(&listener, big));
        }
        let writer = thread::spawn({
            let stopping = stopping.clone();
            move || write_lines(rate, &stopping)
        });
        loop {
            tokio::select! {
                _ = sigusr1.recv() => eprintln!("app got SIGUSR1"),
                _ = sigterm.recv() => break,
            }
        }
        stopping.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic");
    });
    ExitCode::from(EXIT_CODE)
}

/// Writes the lines that are due at each tick. If no process read for some time, that includes all lines since then.
fn write_lines(rate: u64, stopping: &AtomicBool) {
    let (begun, mut number, mut out) = (Instant::now(), 0, std::io::stdout().lock());
    while !stopping.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_micros() as u64 * rate / 1_000_000;
        let text: String = (number..due).map(|number| format!("n={number:07}\n")).collect();
        out.write_all(text.as_bytes()).expect("stdout is open");
        out.flush().expect("stdout is open");
        number = number.max(due);
        // why: the app writes at a steady rate
        thread::sleep(TICK);
    }
    writeln!(out, "app stopping after {number:07}").expect("stdout is open");
}

fn serve(listener: &TcpListener, big: usize) {
    for stream in listener.incoming().flatten() {
        stream.set_nodelay(true).ok();
        thread::spawn(move || {
            let mut wire = Wire::new(stream);
            while let Ok(Some(head)) = wire.head() {
                if respond(&mut wire, &head, big).is_err() {
                    return;
                }
            }
        });
    }
}

fn respond(wire: &mut Wire<TcpStream>, head: &Head, big: usize) -> std::io::Result<()> {
    let response = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    match (head.method(), head.target()) {
        ("POST", _) => {
            let body = wire.request_body(head)?;
            if !body.whole {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            wire.send(response(&body.bytes.len().to_string()))
        }
        (_, "/slow") => {
            // why: the test requires a slow response
            thread::sleep(Duration::from_secs(3));
            wire.send(response("slow"))
        }
        (_, "/big") => {
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {big}\r\n\r\n"))?;
            let piece = vec![b'x'; big / 30];
            for _ in 0..30 {
                wire.send(&piece)?;
                // why: a download that takes three seconds
                thread::sleep(Duration::from_millis(100));
            }
            wire.send(vec![b'x'; big - piece.len() * 30])
        }
        _ => wire.send(response("quick")),
    }
}
