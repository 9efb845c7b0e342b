//! Asks a port what it is. In: a port on loopback. Out: a verdict: HTTP or not, and whether one of `PATHS` is a page of metrics
//! in the Prometheus text format. It sends GET and nothing else, follows no redirect, and stops asking a port that does not
//! answer with a whole head. Bounds: `PORTS_MAX` ports at a time; `LIMIT` for each request from connecting to the last byte,
//! however slowly bytes drip; `READ_MAX` bytes of each answer.

use crate::page::plain;
use crate::ports::Port;
use crate::service::{Page, Server, Service};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const PATHS: [&str; 4] = ["/metrics", "/actuator/prometheus", "/q/metrics", "/stats/prometheus"];
pub const PORTS_MAX: usize = 16;
pub const LIMIT: Duration = Duration::from_secs(1);
pub const READ_MAX: usize = 64 << 10;

/// Header lines of an answer; more make it none.
const HEADERS_MAX: usize = 100;
/// Lines of a page that are judged.
const LINES_JUDGED: usize = 40;

/// Ports whose programs speak first or something else, where the owner cannot be seen: SSH, mail, databases, brokers. A GET
/// would leave a warning in their logs.
const NOT_HTTP: [u16; 17] =
    [22, 25, 53, 143, 389, 587, 993, 1433, 3306, 5432, 5672, 6379, 6380, 9042, 9092, 11211, 27017];

/// Asks all ports, each on a thread of its own.
pub fn probe_all(ports: &mut [Port]) {
    std::thread::scope(|threads| {
        let mut asked = 0;
        for port in ports {
            let reason = reason_against(port);
            if reason.is_none() && asked == PORTS_MAX {
                port.service = Service::NotProbed(format!("only {PORTS_MAX} ports are asked"));
            } else if let Some(reason) = reason {
                port.service = Service::NotProbed(reason);
            } else {
                asked += 1;
                threads.spawn(move || port.service = ask(&port.on_loopback()));
            }
        }
    });
}

fn reason_against(port: &Port) -> Option<String> {
    if !port.is_here {
        return Some("it is in another network namespace".into());
    }
    if port.on_loopback().is_empty() {
        return Some("it does not listen on loopback, and nothing else is asked".into());
    }
    let speaks_else = |(_, name): &&(u32, String)| crate::runtime::speaks_no_http(name);
    if let Some((_, name)) = port.owners.iter().find(speaks_else) {
        return Some(format!("{name} does not speak HTTP"));
    }
    (port.owners.is_empty() && NOT_HTTP.contains(&port.number))
        .then(|| "programs that use this port do not speak HTTP".into())
}

fn ask(ways: &[SocketAddr]) -> Service {
    let mut server: Option<Server> = None;
    for path in PATHS {
        let first = ways.iter().map(|at| (*at, get(*at, path))).find(|(_, answer)| *answer != Reply::Refused);
        let Some((at, reply)) = first else { return server.map_or(Service::Refused, Service::Http) };
        let answer = match reply {
            Reply::Whole(answer) => answer,
            // A server that has answered before is one, even where it does not answer this.
            _ if server.is_some() => continue,
            Reply::Refused => return Service::Refused,
            Reply::Silent => return Service::Silent,
            Reply::Other(what) => return Service::Other(what),
        };
        let page = judge(path, &answer);
        let known =
            server.get_or_insert(Server { at, status: answer.status, name: answer.server, page: None, locked: None });
        if matches!(answer.status, 401 | 403) {
            known.locked.get_or_insert(path);
        }
        if page.is_some() {
            known.page = page;
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
    Whole(Answer),
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    server: Option<String>,
    content_type: String,
    /// As far as it came.
    body: Vec<u8>,
}

/// HTTP/1.0 first, which has no chunks and ends with the connection; a server that wants 1.1 says so.
fn get(at: SocketAddr, path: &str) -> Reply {
    let agent =
        "User-Agent: outrigger-detect\r\nAccept: text/plain;version=0.0.4, text/plain;q=0.5\r\nConnection: close";
    let old = exchange(at, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{agent}\r\n\r\n"));
    match &old {
        Reply::Whole(Answer { status: 426 | 505, .. }) => {
            exchange(at, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{agent}\r\n\r\n"))
        }
        _ => old,
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
    read_answer(&bytes)
}

/// Whether everything that a `Content-Length` promises is there; a server may keep the connection open after it.
fn is_complete(bytes: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = head.parse(bytes) else { return false };
    let length = header(&head, "content-length").and_then(|value| value.parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() - start >= length)
}

fn read_answer(bytes: &[u8]) -> Reply {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => {
            let mut body = bytes.get(start..).unwrap_or(&[]).to_vec();
            if header(&head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
                body = unchunk(&body);
            }
            Reply::Whole(Answer {
                status: head.code.unwrap_or(0),
                server: header(&head, "server").map(|name| plain(&name, 60)),
                content_type: plain(&header(&head, "content-type").unwrap_or_default(), 100),
                body,
            })
        }
        // What begins as HTTP does, but whose head does not end within the bounds.
        _ if bytes.is_empty() || bytes.starts_with(b"HTTP/1") => Reply::Silent,
        _ => Reply::Other(describe(bytes)),
    }
}

fn header(head: &httparse::Response<'_, '_>, name: &str) -> Option<String> {
    let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(String::from_utf8_lossy(found.value).into_owned())
}

/// What bytes that are no HTTP/1 look like.
fn describe(bytes: &[u8]) -> &'static str {
    match bytes {
        // An alert or a handshake record (RFC 8446, 5.1).
        [0x15 | 0x16, 3, ..] => "TLS",
        // The frame that opens HTTP/2 is SETTINGS, type 4, of stream 0 (RFC 9113, 3.4).
        [0, 0, _, 4, _, 0, 0, 0, 0, ..] => "HTTP/2 alone, as gRPC does",
        _ => "something that is not HTTP",
    }
}

/// The bodies of whole chunks, and what has come of the last one (RFC 9112, 7.1).
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

/// A page of metrics: 200, a type that the format's documents name, and first lines that are all of the format.
fn judge(path: &'static str, answer: &Answer) -> Option<Page> {
    let content_type = answer.content_type.to_ascii_lowercase();
    let is_openmetrics = content_type.starts_with("application/openmetrics-text");
    if answer.status != 200 || !(content_type.is_empty() || content_type.starts_with("text/plain") || is_openmetrics) {
        return None;
    }
    // The last line may have been cut.
    let whole = answer.body.iter().rposition(|byte| *byte == b'\n').and_then(|end| answer.body.get(..end));
    let text = String::from_utf8_lossy(whole.unwrap_or(&answer.body));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(LINES_JUDGED);
    let mut samples = 0;
    for line in lines {
        match line.strip_prefix('#') {
            Some(_) => {}
            None if is_sample(line) => samples += 1,
            None => return None,
        }
    }
    (samples > 0).then(|| Page { path, content_type: answer.content_type.clone(), is_openmetrics })
}

/// `name{label="value"} 1.5 1700000000`, as the text format 0.0.4 has it.
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

    const PAGE: &str = "# HELP a A.\n# TYPE a counter\na{b=\"c } d\"} 2\nup 1 1700000000\nx NaN\n";

    /// A server that answers every connection by `answer`, until the test ends.
    fn serve(answer: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                // What was asked does not matter here.
                let _ = stream.read(&mut [0; 4096]);
                answer(&mut stream);
            }
        });
        address
    }

    fn answering(head: &str, body: &str) -> SocketAddr {
        let bytes = format!("{head}\r\n\r\n{body}");
        serve(move |stream| stream.write_all(bytes.as_bytes()).unwrap_or_default())
    }

    fn check(head: &str, body: &str, expect: Result<Option<&str>, Service>) {
        let service = ask(&[answering(head, body)]);
        match (&service, expect) {
            (Service::Http(server), Ok(path)) => assert_eq!(server.page.as_ref().map(|page| page.path), path, "{head}"),
            (service, Err(expect)) => assert_eq!(*service, expect, "{head}"),
            (service, expect) => panic!("{head}: {service:?} {expect:?}"),
        }
    }

    #[test]
    fn a_page_is_known_by_its_type_and_its_lines() {
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4", PAGE, Ok(Some("/metrics")));
        check("HTTP/1.0 200 OK", PAGE, Ok(Some("/metrics")));
        check("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text", PAGE, Ok(Some("/metrics")));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/html", PAGE, Ok(None));
        check("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain", PAGE, Ok(None));
        check("HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/", "", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain", "welcome to my page\n", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain", "# only a heading\n", Ok(None));
        check("HTTP/1.1 200 OK\r\nContent-Type: text/plain", "", Ok(None));
        let chunked = "10\r\na 1\nb 2\nc{d=\"e\"}\r\n7;x=y\r\n 3\nf 4\n\r\n0\r\n\r\n";
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", chunked, Ok(Some("/metrics")));
    }

    #[test]
    fn what_is_not_http_is_named() {
        let check = |bytes: &'static [u8], expect: Service| {
            let at = serve(move |stream| stream.write_all(bytes).unwrap_or_default());
            assert_eq!(ask(&[at]), expect);
        };
        check(b"\x15\x03\x01\x00\x02\x02\x0a", Service::Other("TLS"));
        check(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0", Service::Other("HTTP/2 alone, as gRPC does"));
        check(b"220 mail ready\r\n", Service::Other("something that is not HTTP"));
        check(b"", Service::Silent);
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
        assert_eq!(ask(&[free]), Service::Refused);
    }

    /// A body without end is cut, a head without end is no answer, and drops do not renew the limit.
    #[test]
    fn a_hostile_server_costs_no_more_than_the_limit() {
        let began = Instant::now();
        let endless_head = serve(|stream| {
            let begun = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while begun.is_ok() && stream.write_all(b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").is_ok() {
            }
        });
        assert_eq!(ask(&[endless_head]), Service::Silent);
        let dripping = serve(|stream| {
            let text = b"HTTP/1.1 200 OK\r\nServer: slow\r\n".iter().cycle();
            for byte in text {
                std::thread::sleep(Duration::from_millis(50));
                if stream.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        assert_eq!(ask(&[dripping]), Service::Silent);
        let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
        assert_eq!(ask(&[mute.local_addr().expect("bound")]), Service::Silent);
        assert!(began.elapsed() < 4 * LIMIT, "{:?}", began.elapsed());
        let endless_body = serve(|stream| {
            let begun = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while begun.is_ok() && stream.write_all(&PAGE.as_bytes().repeat(100)).is_ok() {}
        });
        assert!(matches!(ask(&[endless_body]), Service::Http(Server { page: Some(_), .. })));
    }

    /// Guarantee: detection-sends-get-only
    #[test]
    fn no_more_than_get_is_ever_sent() {
        let (tell, told) = std::sync::mpsc::channel();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut bytes = [0; 4096];
                let size = stream.read(&mut bytes).expect("a request");
                tell.send(String::from_utf8_lossy(&bytes[..size]).into_owned()).expect("the test listens");
                stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n").unwrap_or_default();
            }
        });
        assert!(matches!(ask(&[at]), Service::Http(_)));
        let asked: Vec<String> = told.try_iter().collect();
        assert_eq!(asked.len(), PATHS.len(), "a redirect is not followed: {asked:?}");
        for (request, path) in asked.iter().zip(PATHS) {
            assert!(request.starts_with(&format!("GET {path} HTTP/1.0\r\n")), "{request}");
        }
    }

    #[test]
    fn samples_are_told_from_prose() {
        for line in ["a 1", "a:b_c{x=\"y\"} 1e9", "a{} +Inf 17", "a\t2"] {
            assert!(is_sample(line), "{line}");
        }
        for line in ["a", "a b", "1a 1", "hello world 1", "a{x=\"y\" 1", "{\"a\": 1}", "<html>"] {
            assert!(!is_sample(line), "{line}");
        }
    }
}
