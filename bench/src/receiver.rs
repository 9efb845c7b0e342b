//! An HTTP server inside the benchmark that reads and discards: the receiver of the log sink and of remote write, and the
//! app's /metrics endpoint.
//!
//! In: HTTP/1.1 requests on a loopback port. Out: 200, with metrics for `/metrics`, and a count for each path. One thread
//! per connection; heads are limited to 64 KiB, bodies are discarded, and the threads end with their connections, at the
//! latest with the process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

const HEAD_LIMIT: u64 = 64 * 1024;

#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    counts: Arc<Mutex<HashMap<String, u64>>>,
}

impl Receiver {
    pub fn start() -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("cannot listen: {e}"))?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        let receiver = Self { port, counts: Arc::default() };
        let accepting = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = accepting.clone();
                // A broken connection ends its thread; the client detects it and the count does not change.
                std::thread::spawn(move || serving.serve(stream).ok());
            }
        });
        Ok(receiver)
    }

    /// The number of requests for `path` that have been read completely.
    pub fn count(&self, path: &str) -> u64 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied().unwrap_or(0)
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::with_capacity(64 * 1024, stream.try_clone()?);
        while let Some(path) = discard_request(&mut reader, &mut stream)? {
            *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(path.clone()).or_default() += 1;
            let body = if path == "/metrics" { metrics_page() } else { String::new() };
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length:";
            write!(stream, "{head} {}\r\n\r\n{body}", body.len())?;
        }
        Ok(())
    }
}

/// Reads one request completely; returns its path, or `None` at the end of the connection.
fn discard_request(reader: &mut impl BufRead, writer: &mut impl Write) -> std::io::Result<Option<String>> {
    let mut head = reader.take(HEAD_LIMIT);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut length, mut chunked) = (0, false);
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            "expect" => writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?,
            _ => {}
        }
    }
    if chunked {
        discard_chunks(reader)?;
    } else {
        discard(reader, length)?;
    }
    Ok(Some(path))
}

fn discard_chunks(reader: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        reader.take(HEAD_LIMIT).read_line(&mut line)?;
        let digits = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(digits, 16).map_err(std::io::Error::other)?;
        // The line end after the chunk's data, or after the last chunk, belongs to it.
        discard(reader, size + 2)?;
        if size == 0 {
            return Ok(());
        }
    }
}

fn discard(reader: &mut impl BufRead, length: u64) -> std::io::Result<()> {
    let read = std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    if read == length { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// An exposition as of a small app: a few counters and one histogram, 37 series.
fn metrics_page() -> String {
    let mut page = String::from("# TYPE orders_total counter\n");
    for shop in 0..16 {
        page.push_str(&format!("orders_total{{shop=\"shop-{shop}\",status=\"paid\"}} {}\n", shop * 7));
    }
    page.push_str("# TYPE order_seconds histogram\n");
    for bucket in 1..=18 {
        page.push_str(&format!("order_seconds_bucket{{le=\"0.{bucket:02}\"}} {bucket}\n"));
    }
    page.push_str("order_seconds_bucket{le=\"+Inf\"} 18\norder_seconds_sum 1.71\norder_seconds_count 18\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sized_and_chunked_bodies_share_one_connection() {
        let receiver = Receiver::start().expect("a loopback port");
        let mut stream = TcpStream::connect(("127.0.0.1", receiver.port)).expect("the receiver listens");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a socket has timeouts");
        let sent = "POST /lines HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello\
                    POST /lines HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                    GET /metrics HTTP/1.1\r\n\r\n";
        stream.write_all(sent.as_bytes()).expect("loopback accepts three requests");
        stream.shutdown(std::net::Shutdown::Write).expect("the stream is open");
        let mut responses = String::new();
        stream.read_to_string(&mut responses).expect("three responses");
        assert_eq!(responses.matches("HTTP/1.1 200").count(), 3, "{responses}");
        assert_eq!((receiver.count("/lines"), receiver.count("/metrics")), (2, 1));
        assert!(responses.ends_with("order_seconds_count 18\n"), "{responses}");
    }
}
