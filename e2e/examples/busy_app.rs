//! An app at work, which tests wrap: it writes numbered lines at a steady pace and answers HTTP. In: lines a second, then, where it
//! is to serve, a port and the size of its large answer. Out: `n=0000000` and so on, and how many there were as the last line.
//! SIGUSR1 makes it say a word on stderr, SIGTERM ends it with 5. Bounded by the connections that a test opens.
//!
//! `/quick` is answered at once, `/slow` after three seconds, `/big` over three seconds, any POST with the size of its body.

#[expect(dead_code, reason = "the half that a client needs, which is the tests'")]
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

/// An app's own code, which nobody else ends with.
const ENDED: u8 = 5;

const TICK: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>().expect("every argument is a number"));
    let rate = arguments.next().expect("the lines a second come first");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let over = Arc::new(AtomicBool::default());
    runtime.block_on(async {
        // Before the port is there: whoever gets an answer may send signals.
        let mut told_to_end = signal(SignalKind::terminate()).expect("the signal can be had");
        let mut spoken_to = signal(SignalKind::user_defined1()).expect("the signal can be had");
        if let Some(port) = arguments.next() {
            let big = usize::try_from(arguments.next().expect("the size of a large answer")).expect("a size");
            let port = u16::try_from(port).expect("a port");
            let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
            thread::spawn(move || serve(&listener, big));
        }
        let writer = thread::spawn({
            let over = over.clone();
            move || write_lines(rate, &over)
        });
        loop {
            tokio::select! {
                _ = spoken_to.recv() => eprintln!("app got SIGUSR1"),
                _ = told_to_end.recv() => break,
            }
        }
        over.store(true, Ordering::Relaxed);
        writer.join().expect("somebody reads the lines");
    });
    ExitCode::from(ENDED)
}

/// What is due at each tick. After a time in which nobody read, that is all of what was missed.
fn write_lines(rate: u64, over: &AtomicBool) {
    let (begun, mut number, mut out) = (Instant::now(), 0, std::io::stdout().lock());
    while !over.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_micros() as u64 * rate / 1_000_000;
        let text: String = (number..due).map(|number| format!("n={number:07}\n")).collect();
        out.write_all(text.as_bytes()).expect("somebody reads the lines");
        out.flush().expect("somebody reads the lines");
        number = number.max(due);
        // why: the pace of the app is what it is for
        thread::sleep(TICK);
    }
    writeln!(out, "app stopping after {number:07}").expect("somebody reads the last line");
}

fn serve(listener: &TcpListener, big: usize) {
    for stream in listener.incoming().flatten() {
        stream.set_nodelay(true).ok();
        thread::spawn(move || {
            let mut wire = Wire::new(stream);
            while let Ok(Some(head)) = wire.head() {
                if answer(&mut wire, &head, big).is_err() {
                    return;
                }
            }
        });
    }
}

fn answer(wire: &mut Wire<TcpStream>, head: &Head, big: usize) -> std::io::Result<()> {
    let whole = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    match (head.method(), head.target()) {
        ("POST", _) => {
            let body = wire.request_body(head)?;
            if !body.whole {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            wire.send(whole(&body.bytes.len().to_string()))
        }
        (_, "/slow") => {
            // why: a slow answer is what the test is about
            thread::sleep(Duration::from_secs(3));
            wire.send(whole("slow"))
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
        _ => wire.send(whole("quick")),
    }
}
