//! One request to a running Outrigger: finds its socket, sends one HTTP/1.0 request, reads the response to its end. In: a path or
//! a configuration, a request. Out: status and text, or an error with its location and the next step. Limits: a time for the
//! complete exchange, `RESPONSE_MAX` bytes. During a worker handover the socket briefly has no listener; the client waits and
//! retries.

use super::Target;
use crate::load::Source;
use config::diag::Report;
use config::interpolate::{self, Lookup};
use config::tree::{Node, Value};
use config::unit::{Secret, TimeSpan};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A status has a line per component; a much larger response is not from Outrigger.
const RESPONSE_MAX: u64 = 16 << 20;

/// How long a socket may refuse connections between two workers, and how often the connection is retried.
const HANDOVER_MAX: Duration = Duration::from_millis(500);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// An error message for the user.
#[derive(Debug)]
pub struct Failure {
    message: String,
    /// None for a report, which has its own.
    help: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure { message: message.into(), help: Some(help.into()) }
    }

    /// Prefixes the requested action.
    pub fn of_action(mut self, action: &str) -> Failure {
        self.message = format!("{action}: {}", self.message);
        self
    }

    fn of(report: &Report) -> Failure {
        Failure { message: report.render().trim_start_matches("error: ").into(), help: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.message.trim_end())?;
        self.help.iter().try_for_each(|help| writeln!(f, "  help: {help}"))
    }
}

/// The endpoint of a running Outrigger.
pub enum Endpoint {
    Socket(PathBuf),
    /// Each address of one name, and the name as given.
    Tcp(Vec<SocketAddr>, String),
}

/// The Outrigger that a command addresses; it may not be running.
pub struct Instance {
    pub endpoint: Endpoint,
    token: Option<Secret>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

impl Instance {
    /// From its socket, or from the configuration that sets the socket, which then sets the token too.
    pub fn from_target(target: &Target, token_file: Option<&Path>) -> Result<Instance, Failure> {
        let token = token_file.map(read_token).transpose()?;
        if let Some(socket) = &target.socket {
            return Ok(Instance { endpoint: Endpoint::Socket(socket.clone()), token });
        }
        let admin = Admin::read(&target.file.config)?;
        let socket = admin.value("socket")?.ok_or_else(|| {
            let message = format!("admin.socket is not set in {}", target.file.config.display());
            Failure::new(message, "set admin.socket there, or use --socket")
        })?;
        let token = match token {
            None if token_file.is_none() => admin.token(),
            token => token,
        };
        Ok(Instance { endpoint: Endpoint::Socket(PathBuf::from(socket)), token })
    }

    /// From the URL of its probe listener.
    pub fn from_url(url: &str) -> Result<Instance, Failure> {
        let failure = || {
            let help =
                "write http://127.0.0.1:9901, as in admin.probes_listen; names other than localhost are not resolved";
            let shown = config::diag::hide_userinfo(url);
            Failure::new(format!("`{shown}` is not the URL of a probe listener"), help)
        };
        let authority = url.strip_prefix("http://").ok_or_else(failure)?.trim_end_matches('/');
        let with_port = if authority.parse::<std::net::IpAddr>().is_ok() || authority.ends_with(']') {
            format!("{authority}:80")
        } else {
            authority.to_string()
        };
        let addresses = match with_port.strip_prefix("localhost") {
            Some(port) => {
                let port = if port.is_empty() { ":80" } else { port };
                vec![format!("127.0.0.1{port}"), format!("[::1]{port}")]
            }
            None => vec![with_port],
        };
        let addresses: Result<Vec<SocketAddr>, _> = addresses.iter().map(|text| text.parse()).collect();
        Ok(Instance { endpoint: Endpoint::Tcp(addresses.map_err(|_| failure())?, authority.to_string()), token: None })
    }

    /// Its address, for a message.
    pub fn address(&self) -> String {
        match &self.endpoint {
            Endpoint::Socket(path) => path.display().to_string(),
            Endpoint::Tcp(_, authority) => format!("http://{authority}"),
        }
    }

    /// Sends a request; any status is a response.
    pub fn try_request(&self, method: &str, path: &str, body: &[u8], limit: Duration) -> io::Result<Reply> {
        let started_at = Instant::now();
        let until = started_at + limit;
        // The last attempt is made with time left, so that its own error is returned and not a timeout.
        let is_retried = |error: &io::Error| {
            let window = HANDOVER_MAX.min(limit.saturating_sub(RETRY_INTERVAL * 2));
            error.kind() == io::ErrorKind::ConnectionRefused && started_at.elapsed() < window
        };
        loop {
            match self.exchange(method, path, body, until) {
                Err(error) if is_retried(&error) => sleep(RETRY_INTERVAL),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no response within {}", TimeSpan(limit)),
                    ));
                }
                result => return result,
            }
        }
    }

    /// Sends a request; any status other than 200 is an error.
    pub fn request(&self, method: &str, path: &str, body: &[u8], limit: Duration) -> Result<Reply, Failure> {
        let reply = self.try_request(method, path, body, limit).map_err(|error| self.no_response(&error))?;
        match reply.status {
            200 => Ok(reply),
            401 => Err(Failure::new(
                format!("{} rejected the token, or the request had none", self.address()),
                "set the file with the token with --token-file",
            )),
            404 => Err(Failure::new(
                format!("{} has no endpoint {path}", self.address()),
                "check that an Outrigger of the same version listens there",
            )),
            status => {
                let help = match status {
                    504 => "`outrigger status` shows which worker serves; see the Outrigger log for the reason",
                    _ => "fix the reported error and retry; nothing was changed",
                };
                Err(Failure::new(format!("{} returned {status}: {}", self.address(), reply.text), help))
            }
        }
    }

    pub fn change(&self, path: &str, body: &[u8], limit: Duration) -> Result<Reply, Failure> {
        self.request("POST", path, body, limit)
    }

    fn no_response(&self, error: &io::Error) -> Failure {
        let help = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "check that Outrigger runs with `admin.socket` set to this path"
            }
            io::ErrorKind::PermissionDenied => {
                "run as the user of Outrigger, or set admin.socket_mode and admin.socket_group"
            }
            io::ErrorKind::TimedOut => "Outrigger accepts connections but does not respond; see its log",
            _ => "see the Outrigger log",
        };
        Failure::new(format!("no response from {}: {error}", self.address()), help)
    }

    /// Whether a process still listens.
    pub fn has_listener(&self) -> bool {
        match self.connect(Instant::now() + HANDOVER_MAX) {
            Ok(_) => true,
            // A listener that is too busy to accept the connection still exists.
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8], until: Instant) -> io::Result<Reply> {
        let host = match &self.endpoint {
            Endpoint::Socket(_) => "outrigger",
            Endpoint::Tcp(_, authority) => authority,
        };
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n", body.len());
        if let Some(token) = &self.token {
            request.push_str(&format!("Authorization: Bearer {}\r\n", token.reveal()));
        }
        request.push_str("\r\n");
        let mut stream = self.connect(until)?;
        stream.write_all(&[request.as_bytes(), body].concat())?;
        // HTTP/1.0: the response ends when the connection is closed.
        let mut response = Vec::new();
        let mut chunk = vec![0; 16 << 10];
        while response.len() as u64 <= RESPONSE_MAX {
            stream.set_limit(left(until)?)?;
            match stream.read(&mut chunk)? {
                0 => return read_reply(&response),
                count => response.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            }
        }
        Err(io::Error::other(format!("the response is longer than {RESPONSE_MAX} bytes")))
    }

    fn connect(&self, until: Instant) -> io::Result<Box<dyn Stream>> {
        match &self.endpoint {
            Endpoint::Socket(path) => {
                let socket =
                    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
                // A connect to a socket whose queue is full would block forever (unix(7), socket(7): SO_SNDTIMEO).
                set_socket_timeout(&socket, Timeout::Send, Some(left(until)?))?;
                rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(Box::new(UnixStream::from(socket)))
            }
            Endpoint::Tcp(addresses, _) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in addresses {
                    match TcpStream::connect_timeout(address, left(until)?) {
                        Ok(stream) => {
                            stream.set_write_timeout(Some(left(until)?))?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

trait Stream: Read + Write {
    fn set_limit(&self, limit: Duration) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

impl Stream for TcpStream {
    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

/// Never zero, which would mean no timeout.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn read_reply(response: &[u8]) -> io::Result<Reply> {
    if response.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed without a response"));
    }
    let text = String::from_utf8_lossy(response);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the response is not HTTP"))?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the response is not HTTP"))?;
    Ok(Reply { status, text: body.to_string() })
}

fn read_token(path: &Path) -> Result<Secret, Failure> {
    admin::read_token(path).map_err(|error| {
        let help = "the file must contain only the value of admin.token";
        Failure::new(format!("cannot read the token: {error}"), help)
    })
}

/// Only the admin section of a configuration.
struct Admin {
    report: Report,
    entries: Vec<config::tree::Entry>,
}

impl Admin {
    fn read(config: &Path) -> Result<Admin, Failure> {
        let source = Source::read(config).map_err(|report| Failure::of(&report))?;
        let mut report = Report::new(config.display().to_string(), source.text.clone());
        let tree = config::tree::parse(&source.text).map_err(|findings| {
            report.extend(findings);
            Failure::of(&report)
        })?;
        let admin = entry(&tree, "admin").map(|node| node.value.clone());
        let entries = match admin {
            Some(Value::Map(entries)) => entries,
            _ => Vec::new(),
        };
        Ok(Admin { report, entries })
    }

    /// The text of a scalar, interpolated as in the complete configuration.
    fn value(&self, key: &str) -> Result<Option<String>, Failure> {
        let Some(entry) = self.entries.iter().find(|entry| entry.key == key) else { return Ok(None) };
        let mut node = entry.node.clone();
        let findings = interpolate::apply(&mut node, &Lookup::HERE).findings;
        if !findings.is_empty() {
            let mut report = self.report.clone();
            report.extend(findings);
            return Err(Failure::of(&report));
        }
        Ok(match node.value {
            _ if node.is_null() => None,
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        })
    }

    /// A token that cannot be read here counts as none: reads need no token, and a change gets an error that reports it.
    fn token(&self) -> Option<Secret> {
        let text = |key| self.value(key).ok().flatten();
        let given = text("token").map(Secret::new).filter(admin::is_valid_token);
        given.or_else(|| text("token_file").and_then(|file| admin::read_token(Path::new(&file)).ok()))
    }
}

fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::ConfigFile;

    #[test]
    fn a_url_is_an_address_or_localhost() {
        let check = |url: &str, expect: Option<(&str, usize)>| {
            let found = Instance::from_url(url).ok().map(|found| match found.endpoint {
                Endpoint::Tcp(addresses, authority) => {
                    (addresses.first().map(ToString::to_string), addresses.len(), authority)
                }
                Endpoint::Socket(_) => panic!("a URL is not a socket"),
            });
            let got = found.as_ref().map(|(first, count, _)| (first.as_deref().unwrap_or(""), *count));
            assert_eq!(got, expect, "{url}");
        };
        check("http://127.0.0.1:9901", Some(("127.0.0.1:9901", 1)));
        check("http://127.0.0.1:9901/", Some(("127.0.0.1:9901", 1)));
        check("http://127.0.0.1", Some(("127.0.0.1:80", 1)));
        check("http://[::1]:9901", Some(("[::1]:9901", 1)));
        check("http://[::1]", Some(("[::1]:80", 1)));
        check("http://localhost:9901", Some(("127.0.0.1:9901", 2)));
        check("http://localhost", Some(("127.0.0.1:80", 2)));
        for wrong in
            ["127.0.0.1:9901", "https://127.0.0.1", "http://", "http://localhosts:1", "http://h:1", "http://1:x"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn any_response_is_parsed_or_rejected() {
        let check = |response: &str, expect: Option<(u16, &str)>| {
            let reply = read_reply(response.as_bytes()).ok();
            assert_eq!(reply.as_ref().map(|reply| (reply.status, reply.text.as_str())), expect, "{response:?}");
        };
        check("HTTP/1.0 200 OK\r\na: b\r\n\r\nyes\n", Some((200, "yes\n")));
        check("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some((503, "")));
        for wrong in ["", "hello", "HTTP/1.1 200 OK\r\n", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 many\r\n\r\n"] {
            check(wrong, None);
        }
    }

    #[test]
    fn socket_is_found_in_an_invalid_configuration() {
        let path = std::env::temp_dir().join(format!("outrigger-remote-{}.yaml", std::process::id()));
        let text = "logs: { sorces: 1 }\nadmin: { socket: \"${NOWHERE:-/run/a.sock}\", token: \"${ABSENT_TOKEN}\" }\n";
        std::fs::write(&path, text).expect("a temporary file");
        let target = Target { socket: None, file: ConfigFile { config: path.clone() } };
        let found = Instance::from_target(&target, None).map_err(|failure| failure.to_string());
        let found = found.expect("other sections are ignored");
        assert_eq!((found.address().as_str(), found.token.is_none()), ("/run/a.sock", true));
        std::fs::write(&path, "app: { port: 1 }\n").expect("a temporary file");
        let failure = Instance::from_target(&target, None).err().expect("no socket").to_string();
        assert!(failure.contains("admin.socket is not set") && failure.contains("help:"), "{failure}");
        std::fs::remove_file(&path).expect("the file exists");
        let failure = Instance::from_target(&target, None).err().expect("no file").to_string();
        assert!(failure.contains("cannot read") && failure.matches("help:").count() == 1, "{failure}");
    }
}
