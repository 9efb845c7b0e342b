//! Probes a port. In: a port on loopback. Out: whether it speaks HTTP, and whether one of `PATHS` is a metrics endpoint in the
//! Prometheus text format. It sends only GET, follows no redirect, and stops probing a port that does not respond with a
//! complete head. Limits: `PORTS_MAX` ports at a time; `LIMIT` for each request from connecting to the last byte, however slowly
//! bytes arrive; `READ_MAX` bytes of each response.

use crate::page::plain;
use crate::ports::Port;
use crate::service::{MetricsEndpoint, Server, Service};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const PATHS: [&str; 4] = ["/metrics", "/actuator/prometheus", "/q/metrics", "/stats/prometheus"];
pub const PORTS_MAX: usize = 16;
pub const LIMIT: Duration = Duration::from_secs(1);
pub const READ_MAX: usize = 64 << 10;

/// Header lines of a response; a response with more is not parsed.
const HEADERS_MAX: usize = 100;
/// Lines of a body that are checked.
const LINES_CHECKED: usize = 40;

/// Ports whose programs speak first or speak another protocol, for owners that are not visible: SSH, mail, databases,
/// brokers. A GET would cause a warning in their logs.
const NOT_HTTP: [u16; 17] =
    [22, 25, 53, 143, 389, 587, 993, 1433, 3306, 5432, 5672, 6379, 6380, 9042, 9092, 11211, 27017];

/// Probes all ports, each on a separate thread.
pub fn probe_all(ports: &mut [Port]) {
    std::thread::scope(|threads| {
        let mut probed = 0;
        for port in ports {
            let reason = reason_not_to_probe(port);
            if reason.is_none() && probed == PORTS_MAX {
                port.service = Service::NotProbed(format!("only {PORTS_MAX} ports are probed"));
            } else if let Some(reason) = reason {
                port.service = Service::NotProbed(reason);
            } else {
                probed += 1;
                threads.spawn(move || port.service = probe(&port.on_loopback()));
            }
        }
    });
}

fn reason_not_to_probe(port: &Port) -> Option<String> {
    if !port.is_local {
        return Some("the port is in another network namespace".into());
    }
    if port.on_loopback().is_empty() {
        return Some("the port is not on loopback, and only loopback is probed".into());
    }
    let speaks_other = |(_, name): &&(u32, String)| crate::runtime::speaks_no_http(name);
    if let Some((_, name)) = port.owners.iter().find(speaks_other) {
        return Some(format!("{name} does not speak HTTP"));
    }
    (port.owners.is_empty() && NOT_HTTP.contains(&port.number))
        .then(|| "programs that use this port do not speak HTTP".into())
}

fn probe(addresses: &[SocketAddr]) -> Service {
    let mut server: Option<Server> = None;
    for path in PATHS {
        let first = addresses.iter().map(|at| (*at, get(*at, path))).find(|(_, reply)| *reply != Reply::Refused);
        let Some((at, reply)) = first else { return server.map_or(Service::Refused, Service::Http) };
        let response = match reply {
            Reply::Complete(response) => response,
            // A port that has responded once is an HTTP server, even if it does not respond to this request.
            _ if server.is_some() => continue,
            Reply::Refused => return Service::Refused,
            Reply::Silent => return Service::Silent,
            Reply::Other(what) => return Service::Other(what),
        };
        let metrics = metrics_endpoint(path, &response);
        let known = server.get_or_insert(Server {
            at,
            status: response.status,
            name: response.server,
            metrics: None,
            protected: None,
        });
        if matches!(response.status, 401 | 403) {
            known.protected.get_or_insert(path);
        }
        if metrics.is_some() {
            known.metrics = metrics;
            break;
        }
    }
    server.map_or(Service::Silent, Service::Http)
}

#[derive(Debug, PartialEq)]
enum Reply {
    Refused,
    Silent,
    Other(&'static str),
    Complete(Response),
}

#[derive(Debug, PartialEq)]
struct Response {
    status: u16,
    server: Option<String>,
    content_type: String,
    /// The part that arrived within the limits.
    body: Vec<u8>,
}

/// Sends HTTP/1.0 first, since its response has no chunks and ends with the connection; a server that requires 1.1 returns 426
/// or 505.
fn get(at: SocketAddr, path: &str) -> Reply {
    let agent =
        "User-Agent: outrigger-detect\r\nAccept: text/plain;version=0.0.4, text/plain;q=0.5\r\nConnection: close";
    let reply = exchange(at, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{agent}\r\n\r\n"));
    match &reply {
        Reply::Complete(Response { status: 426 | 505, .. }) => {
            exchange(at, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{agent}\r\n\r\n"))
        }
        _ => reply,
    }
}

fn exchange(at: SocketAddr, request: &str) -> Reply {
    let end = Instant::now() + LIMIT;
    let mut stream = match TcpStream::connect_timeout(&at, LIMIT) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::TimedOut => return Reply::Silent,
        Err(_) => return Reply::Refused,
    };
    let sent = stream.set_write_timeout(Some(LIMIT)).and_then(|()| stream.write_all(request.as_bytes()));
    if sent.is_err() {
        return Reply::Silent;
    }
    let mut bytes = Vec::new();
    let mut block = [0; 8 << 10];
    while bytes.len() < READ_MAX && !is_complete(&bytes) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(size) => bytes.extend(block.iter().take(size.min(READ_MAX - bytes.len()))),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    parse_response(&bytes)
}

/// Whether the complete body has arrived by `Content-Length`; a server may keep the connection open after it.
fn is_complete(bytes: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = head.parse(bytes) else { return false };
    let length = header(&head, "content-length").and_then(|value| value.parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() - start >= length)
}

fn parse_response(bytes: &[u8]) -> Reply {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => {
            let mut body = bytes.get(start..).unwrap_or(&[]).to_vec();
            if header(&head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
                body = unchunk(&body);
            }
            Reply::Complete(Response {
                status: head.code.unwrap_or(0),
                server: header(&head, "server").map(|name| plain(&name, 60)),
                content_type: plain(&header(&head, "content-type").unwrap_or_default(), 100),
                body,
            })
        }
        // It starts as HTTP, but its head does not end within the limits.
        _ if bytes.is_empty() || bytes.starts_with(b"HTTP/1") => Reply::Silent,
        _ => Reply::Other(describe(bytes)),
    }
}

fn header(head: &httparse::Response<'_, '_>, name: &str) -> Option<String> {
    let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(String::from_utf8_lossy(found.value).into_owned())
}

/// What bytes that are not HTTP/1 look like.
fn describe(bytes: &[u8]) -> &'static str {
    match bytes {
        // An alert or a handshake record (RFC 8446, 5.1).
        [0x15 | 0x16, 3, ..] => "TLS",
        // The frame that opens HTTP/2 is SETTINGS, type 4, of stream 0 (RFC 9113, 3.4).
        [0, 0, _, 4, _, 0, 0, 0, 0, ..] => "only HTTP/2, such as gRPC",
        _ => "something that is not HTTP",
    }
}

/// The data of complete chunks, and the received part of the last one (RFC 9112, 7.1).
fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = rest.get(..line).and_then(|text| std::str::from_utf8(text).ok());
        let size = size.and_then(|text| usize::from_str_radix(text.split(';').next()?.trim(), 16).ok());
        let (Some(size @ 1..), Some(data)) = (size, rest.get(line + 2..)) else { break };
        body.extend_from_slice(data.get(..size).unwrap_or(data));
        rest = data.get(size.saturating_add(2)..).unwrap_or(&[]);
    }
    body
}

/// A metrics endpoint: status 200, a content type that the format's specification lists, and first lines that all match the
/// format.
fn metrics_endpoint(path: &'static str, response: &Response) -> Option<MetricsEndpoint> {
    let content_type = response.content_type.to_ascii_lowercase();
    let is_openmetrics = content_type.starts_with("application/openmetrics-text");
    if response.status != 200 || !(content_type.is_empty() || content_type.starts_with("text/plain") || is_openmetrics)
    {
        return None;
    }
    // The last line may have been cut.
    let complete = response.body.iter().rposition(|byte| *byte == b'\n').and_then(|end| response.body.get(..end));
    let text = String::from_utf8_lossy(complete.unwrap_or(&response.body));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(LINES_CHECKED);
    let mut samples = 0;
    for line in lines {
        match line.strip_prefix('#') {
            Some(_) => {}
            None if is_sample(line) => samples += 1,
            None => return None,
        }
    }
    (samples > 0).then(|| MetricsEndpoint { path, content_type: response.content_type.clone(), is_openmetrics })
}

/// `name{label="value"} 1.5 1700000000`, as in the text format 0.0.4.
fn is_sample(line: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = line.find(|c: char| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let rest = match rest.strip_prefix('{') {
        Some(labels) => labels.rsplit_once('}').map(|(_, rest)| rest),
        None => rest.starts_with([' ', '\t']).then_some(rest),
    };
    let value = rest.and_then(|rest| rest.split_whitespace().next());
    value.is_some_and(|value| value.parse::<f64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const EXPOSITION: &str = "# HELP a A.\n# TYPE a counter\na{b=\"c } d\"} 2\nup 1 1700000000\nx NaN\n";

    /// A server that calls `respond` for every connection, until the test ends.
    fn serve(respond: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                // The request does not matter here.
                let _ = stream.read(&mut [0; 4096]);
                respond(&mut stream);
            }
        });
        address
    }

    fn responding(head: &str, body: &str) -> SocketAddr {
        let bytes = format!("{head}\r\n\r\n{body}");
        serve(move |stream| stream.write_all(bytes.as_bytes()).unwrap_or_default())
    }

    fn check(head: &str, body: &str, expect: Result<Option<&str>, Service>) {
        let service = probe(&[responding(head, body)]);
        match (&service, expect) {
            (Service::Http(server), Ok(path)) => {
                assert_eq!(server.metrics.as_ref().map(|metrics| metrics.path), path, "{head}")
            }
            (service, Err(expect)) => assert_eq!(*service, expect, "{head}"),
            (service, expect) => panic!("{head}: {service:?} {expect:?}"),
        }
    }

    #[test]
    fn metrics_are_recognised_by_type_and_lines() {
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4", EXPOSITION, Ok(Some("/metrics")));
        check("HTTP/1.0 200 OK", EXPOSITION, Ok(Some("/metrics")));
        check("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text", EXPOSITION, Ok(Some("/metrics")));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/html", EXPOSITION, Ok(None));
        check("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain", EXPOSITION, Ok(None));
        check("HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/", "", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain", "welcome to my page\n", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain", "# only a heading\n", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain", "", Ok(None));
        let chunked = "10\r\na 1\nb 2\nc{d=\"e\"}\r\n7;x=y\r\n 3\nf 4\n\r\n0\r\n\r\n";
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", chunked, Ok(Some("/metrics")));
    }

    #[test]
    fn other_protocols_are_reported() {
        let check = |bytes: &'static [u8], expect: Service| {
            let at = serve(move |stream| stream.write_all(bytes).unwrap_or_default());
            assert_eq!(probe(&[at]), expect);
        };
        check(b"\x15\x03\x01\x00\x02\x02\x0a", Service::Other("TLS"));
        check(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0", Service::Other("only HTTP/2, such as gRPC"));
        check(b"220 mail ready\r\n", Service::Other("something that is not HTTP"));
        check(b"", Service::Silent);
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
        assert_eq!(probe(&[free]), Service::Refused);
    }

    /// An endless body is truncated, an endless head is not a response, and slow bytes do not extend the limit.
    #[test]
    fn hostile_servers_cannot_exceed_the_limit() {
        let began = Instant::now();
        let endless_head = serve(|stream| {
            let sent = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while sent.is_ok() && stream.write_all(b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").is_ok() {}
        });
        assert_eq!(probe(&[endless_head]), Service::Silent);
        let dripping = serve(|stream| {
            let text = b"HTTP/1.1 200 OK\r\nServer: slow\r\n".iter().cycle();
            for byte in text {
                std::thread::sleep(Duration::from_millis(50));
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        assert_eq!(probe(&[dripping]), Service::Silent);
        let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert_eq!(probe(&[mute.local_addr().expect("bound")]), Service::Silent);
        assert!(began.elapsed() < 4 * LIMIT, "{:?}", began.elapsed());
        let endless_body = serve(|stream| {
            let sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while sent.is_ok() && stream.write_all(&EXPOSITION.as_bytes().repeat(100)).is_ok() {}
        });
        assert!(matches!(probe(&[endless_body]), Service::Http(Server { metrics: Some(_), .. })));
    }

    /// Guarantee: detection-sends-get-only
    #[test]
    fn only_get_is_ever_sent() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut bytes = [0; 4096];
                let size = stream.read(&mut bytes).expect("a request");
                sender.send(String::from_utf8_lossy(&bytes[..size]).into_owned()).expect("the test receives");
                stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n").unwrap_or_default();
            }
        });
        assert!(matches!(probe(&[at]), Service::Http(_)));
        let requests: Vec<String> = receiver.try_iter().collect();
        assert_eq!(requests.len(), PATHS.len(), "a redirect is not followed: {requests:?}");
        for (request, path) in requests.iter().zip(PATHS) {
            assert!(request.starts_with(&format!("GET {path} HTTP/1.0\r\n")), "{request}");
        }
    }

    #[test]
    fn samples_are_distinguished_from_prose() {
        for line in ["a 1", "a:b_c{x=\"y\"} 1e9", "a{} +Inf 17", "a\t2"] {
            assert!(is_sample(line), "{line}");
        }
        for line in ["a", "a b", "1a 1", "hello world 1", "a{x=\"y\" 1", "{\"a\": 1}", "<html>"] {
            assert!(!is_sample(line), "{line}");
        }
    }
}
