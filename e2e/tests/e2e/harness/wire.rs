//! HTTP/1.1 on the wire, for client and server of a test and for bytes that no library would send. In: a stream. Out: heads
//! and bodies as received: case, order and trailers are preserved, and a body states whether it is complete. Limits: the
//! timeout of ten seconds that `Wire::connect` sets, and the tests, which send at most a few megabytes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default)]
pub struct Head {
    pub start: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or("")
    }

    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or("")
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"))
    }

    fn length(&self) -> Option<usize> {
        self.header("content-length")?.trim().parse().ok()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Body {
    pub bytes: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// False if the stream ended, or a chunk was malformed, before the end of the body.
    pub whole: bool,
}

pub struct Wire<S> {
    pub stream: S,
    ahead: Vec<u8>,
    at: usize,
}

impl Wire<TcpStream> {
    pub fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }

    pub fn finish_writing(&self) {
        self.stream.shutdown(Shutdown::Write).ok();
    }

    /// The timeout of further reads, instead of ten seconds.
    pub fn wait_at_most(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).expect("the limit is not zero");
    }

    /// Resets the connection, like a client that crashes or aborts.
    pub fn reset(self) {
        set_socket_linger(&self.stream, Some(Duration::ZERO)).expect("every TCP socket supports the option");
    }
}

impl<S: Read + Write> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, ahead: Vec::new(), at: 0 }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// The next head, or `None` if the stream ended before its first byte.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        let Some(start) = self.line()? else { return Ok(None) };
        Ok(Some(Head { start, headers: self.fields()? }))
    }

    pub fn request_body(&mut self, head: &Head) -> io::Result<Body> {
        if head.is_chunked() {
            return self.chunks();
        }
        self.exactly(head.length().unwrap_or(0))
    }

    pub fn response_body(&mut self, head: &Head, method: &str) -> io::Result<Body> {
        let bodiless = method == "HEAD" || matches!(head.status(), 100..=199 | 204 | 304);
        match head.length() {
            _ if bodiless => self.exactly(0),
            _ if head.is_chunked() => self.chunks(),
            Some(length) => self.exactly(length),
            None => self.until_closed(),
        }
    }

    /// The next response to a request of `method`; skips interim responses (1xx except 101).
    pub fn reply(&mut self, method: &str) -> io::Result<Reply> {
        loop {
            let Some(head) = self.head()? else { return Err(cut("no response before the end of the stream")) };
            if matches!(head.status(), 100 | 102..=199) {
                continue;
            }
            let body = self.response_body(&head, method)?;
            return Ok(Reply { status: head.status(), head, body });
        }
    }

    /// All bytes until the peer closes the connection. A reset counts as a close: the tests check what arrived.
    pub fn until_closed(&mut self) -> io::Result<Body> {
        loop {
            match self.more() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
        }
        let bytes = self.ahead.split_off(self.at);
        Ok(Body { bytes, trailers: Vec::new(), whole: true })
    }

    /// Exactly this number of bytes; fewer if the stream ends first, and then the body is marked as incomplete.
    pub fn exactly(&mut self, length: usize) -> io::Result<Body> {
        while self.ahead.len() - self.at < length && self.more()? {}
        let whole = self.ahead.len() - self.at >= length;
        let end = self.ahead.len().min(self.at + length);
        let bytes = self.ahead[self.at..end].to_vec();
        self.at = end;
        Ok(Body { bytes, trailers: Vec::new(), whole })
    }

    fn chunks(&mut self) -> io::Result<Body> {
        let mut body = Body::default();
        loop {
            let Some(line) = self.line()? else { return Ok(body) };
            let size = line.split(';').next().unwrap_or("").trim();
            let Ok(size) = usize::from_str_radix(size, 16) else { return Ok(body) };
            if size == 0 {
                // Only the blank line after the trailers ends the body; without it, the body is truncated.
                let Ok(trailers) = self.fields() else { return Ok(body) };
                body.trailers = trailers;
                body.whole = true;
                return Ok(body);
            }
            let chunk = self.exactly(size)?;
            body.bytes.extend_from_slice(&chunk.bytes);
            if !chunk.whole || self.line()?.is_none_or(|rest| !rest.is_empty()) {
                return Ok(body);
            }
        }
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let Some(line) = self.line()? else { return Err(cut("the stream ended within a head")) };
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut searched = self.at;
        loop {
            if let Some(found) = self.ahead[searched..].iter().position(|byte| *byte == b'\n') {
                let end = searched + found;
                let line = String::from_utf8_lossy(&self.ahead[self.at..end]).trim_end_matches('\r').to_owned();
                self.at = end + 1;
                return Ok(Some(line));
            }
            searched = self.ahead.len();
            let searched_before = self.at;
            if !self.more()? {
                return Ok(None);
            }
            searched -= searched_before - self.at;
        }
    }

    /// Reads one block; false at the end of the stream. Releases consumed bytes first.
    fn more(&mut self) -> io::Result<bool> {
        if self.at > 0 {
            self.ahead.drain(..self.at);
            self.at = 0;
        }
        let mut block = [0; 64 * 1024];
        let size = self.stream.read(&mut block)?;
        self.ahead.extend_from_slice(&block[..size]);
        Ok(size > 0)
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub head: Head,
    pub body: Body,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body.bytes).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body.bytes)
            .unwrap_or_else(|error| panic!("not JSON ({error}), status {}: {}", self.status, self.text()))
    }
}

pub fn get(address: &str, target: &str) -> io::Result<Reply> {
    request(address, "GET", target, &[], b"")
}

/// One request on a new connection.
pub fn request(address: &str, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    exchange(&mut Wire::connect(address)?, address, method, target, headers, body)
}

pub fn get_over_socket(socket: &Path, target: &str) -> io::Result<Reply> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    exchange(&mut Wire::new(stream), "outrigger", "GET", target, &[], b"")
}

fn exchange<S: Read + Write>(
    wire: &mut Wire<S>,
    host: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Reply> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    wire.send([head.as_bytes(), b"\r\n", body].concat())?;
    wire.reply(method)
}

fn cut(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, why)
}
