//! One question to a running Outrigger: finds its socket, sends one request of HTTP/1.0, reads the answer to its end. In: a
//! path or a configuration, a request. Out: status and text, or what went wrong, where, and what to do. Bounds: a time for the
//! whole exchange, `ANSWER_MAX` bytes. A worker that gives way to the next leaves the socket for a moment, which is waited out.

use super::Target;
use crate::load::Source;
use config::diag::Report;
use config::interpolate::{Lookup, fill};
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

/// A status has a line per part; far larger answers are not ours.
const ANSWER_MAX: u64 = 16 << 20;

/// How long a socket that refuses may be between two workers, and how often it is tried again.
const GAP: Duration = Duration::from_millis(500);
const GAP_LOOK: Duration = Duration::from_millis(20);

/// What went wrong, for a person.
#[derive(Debug)]
pub struct Trouble {
    what: String,
    /// A report brings its own.
    help: Option<String>,
}

impl Trouble {
    pub fn new(what: impl Into<String>, help: impl Into<String>) -> Trouble {
        Trouble { what: what.into(), help: Some(help.into()) }
    }

    /// With what was asked for before it.
    pub fn about(mut self, asked: &str) -> Trouble {
        self.what = format!("{asked}: {}", self.what);
        self
    }

    fn of(report: &Report) -> Trouble {
        Trouble { what: report.render().trim_start_matches("error: ").into(), help: None }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.what.trim_end())?;
        self.help.iter().try_for_each(|help| writeln!(f, "  help: {help}"))
    }
}

/// The way to a running Outrigger.
pub enum Way {
    Socket(PathBuf),
    /// Each address of one name, and the name as it was given.
    Tcp(Vec<SocketAddr>, String),
}

/// A running Outrigger, as far as we know.
pub struct Found {
    pub way: Way,
    token: Option<Secret>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

impl Found {
    /// By its socket, or by the configuration that names it, which then gives the token too.
    pub fn by(target: &Target, token_file: Option<&Path>) -> Result<Found, Trouble> {
        let token = token_file.map(read_token).transpose()?;
        if let Some(socket) = &target.socket {
            return Ok(Found { way: Way::Socket(socket.clone()), token });
        }
        let admin = Admin::read(&target.config)?;
        let socket = admin.cell("socket")?.ok_or_else(|| {
            let what = format!("{} names no admin socket", target.config.display());
            Trouble::new(what, "set admin.socket there, or name the socket with --socket")
        })?;
        let token = match token {
            None if token_file.is_none() => admin.token(),
            token => token,
        };
        Ok(Found { way: Way::Socket(PathBuf::from(socket)), token })
    }

    /// By the URL of its listener for probes.
    pub fn at(url: &str) -> Result<Found, Trouble> {
        let trouble = || {
            let help = "write http://127.0.0.1:9901, as admin.probes_listen has it; names other than localhost are not looked up";
            let shown = config::diag::hide_userinfo(url);
            Trouble::new(format!("`{shown}` is not the address of a listener for probes"), help)
        };
        let authority = url.strip_prefix("http://").ok_or_else(trouble)?.trim_end_matches('/');
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
        Ok(Found { way: Way::Tcp(addresses.map_err(|_| trouble())?, authority.to_string()), token: None })
    }

    /// Where it is, for a message.
    pub fn place(&self) -> String {
        match &self.way {
            Way::Socket(path) => path.display().to_string(),
            Way::Tcp(_, authority) => format!("http://{authority}"),
        }
    }

    /// Asks; what is not 200 is an answer like any other.
    pub fn try_request(&self, method: &str, path: &str, body: &[u8], limit: Duration) -> io::Result<Reply> {
        let began = Instant::now();
        let until = began + limit;
        // The last try is made with time left, so that the reason is what it found.
        let waits = |error: &io::Error| {
            let gap = GAP.min(limit.saturating_sub(GAP_LOOK * 2));
            error.kind() == io::ErrorKind::ConnectionRefused && began.elapsed() < gap
        };
        loop {
            match self.exchange(method, path, body, until) {
                Err(error) if waits(&error) => sleep(GAP_LOOK),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no answer within {}", TimeSpan(limit)),
                    ));
                }
                result => return result,
            }
        }
    }

    /// Asks, and takes 200 for an answer.
    pub fn request(&self, method: &str, path: &str, body: &[u8], limit: Duration) -> Result<Reply, Trouble> {
        let reply = self.try_request(method, path, body, limit).map_err(|error| self.no_response(&error))?;
        match reply.status {
            200 => Ok(reply),
            401 => Err(Trouble::new(
                format!("{} refused the token, or got none", self.place()),
                "name the file that holds it with --token-file",
            )),
            404 => Err(Trouble::new(
                format!("{} does not know {path}", self.place()),
                "is it Outrigger, of this version, that listens there?",
            )),
            status => {
                let help = match status {
                    504 => "`outrigger status` shows which worker serves; the log of Outrigger says why",
                    _ => "mend what it names and ask again; nothing was changed",
                };
                Err(Trouble::new(format!("{} answered {status}: {}", self.place(), reply.text), help))
            }
        }
    }

    pub fn change(&self, path: &str, body: &[u8], limit: Duration) -> Result<Reply, Trouble> {
        self.request("POST", path, body, limit)
    }

    fn no_response(&self, error: &io::Error) -> Trouble {
        let help = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is Outrigger running with `admin.socket` set to this path?"
            }
            io::ErrorKind::PermissionDenied => {
                "run as the user of Outrigger, or open the socket by admin.socket_mode and group"
            }
            io::ErrorKind::TimedOut => "it is there and does not answer; its log may say why",
            _ => "its log may say why",
        };
        Trouble::new(format!("no answer from {}: {error}", self.place()), help)
    }

    /// Whether somebody still listens.
    pub fn has_listener(&self) -> bool {
        match self.connect(Instant::now() + GAP) {
            Ok(_) => true,
            // Who is too busy to take the connection is there.
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8], until: Instant) -> io::Result<Reply> {
        let host = match &self.way {
            Way::Socket(_) => "outrigger",
            Way::Tcp(_, authority) => authority,
        };
        let mut request = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n", body.len());
        if let Some(token) = &self.token {
            request.push_str(&format!("Authorization: Bearer {}\r\n", token.reveal()));
        }
        request.push_str("\r\n");
        let mut stream = self.connect(until)?;
        stream.write_all(&[request.as_bytes(), body].concat())?;
        // HTTP/1.0: the answer ends with the connection.
        let mut answer = Vec::new();
        let mut chunk = vec![0; 16 << 10];
        while answer.len() as u64 <= ANSWER_MAX {
            stream.set_limit(left(until)?)?;
            match stream.read(&mut chunk)? {
                0 => return read_reply(&answer),
                count => answer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            }
        }
        Err(io::Error::other(format!("the answer is longer than {ANSWER_MAX} bytes")))
    }

    fn connect(&self, until: Instant) -> io::Result<Box<dyn Stream>> {
        match &self.way {
            Way::Socket(path) => {
                let socket =
                    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
                // A socket whose queue is full would block us for ever (unix(7), socket(7): SO_SNDTIMEO).
                set_socket_timeout(&socket, Timeout::Send, Some(left(until)?))?;
                rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(Box::new(UnixStream::from(socket)))
            }
            Way::Tcp(addresses, _) => {
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

/// Never zero, which would mean "without limit".
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn read_reply(answer: &[u8]) -> io::Result<Reply> {
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer"));
    }
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    Ok(Reply { status, text: body.to_string() })
}

fn read_token(path: &Path) -> Result<Secret, Trouble> {
    admin::read_token(path).map_err(|error| {
        let help = "write the value of admin.token into the file, and nothing else";
        Trouble::new(format!("cannot read the token: {error}"), help)
    })
}

/// The admin section of a configuration, and nothing else of it.
struct Admin {
    report: Report,
    entries: Vec<config::tree::Entry>,
}

impl Admin {
    fn read(config: &Path) -> Result<Admin, Trouble> {
        let source = Source::read(config).map_err(|report| Trouble::of(&report))?;
        let mut report = Report::new(config.display().to_string(), source.text.clone());
        let tree = config::tree::parse(&source.text).map_err(|findings| {
            report.extend(findings);
            Trouble::of(&report)
        })?;
        let admin = entry(&tree, "admin").map(|node| node.value.clone());
        let entries = match admin {
            Some(Value::Map(entries)) => entries,
            _ => Vec::new(),
        };
        Ok(Admin { report, entries })
    }

    /// The text of a cell, filled in as the whole would be.
    fn cell(&self, key: &str) -> Result<Option<String>, Trouble> {
        let Some(entry) = self.entries.iter().find(|entry| entry.key == key) else { return Ok(None) };
        let mut node = entry.node.clone();
        let findings = fill(&mut node, &Lookup::HERE).findings;
        if !findings.is_empty() {
            let mut report = self.report.clone();
            report.extend(findings);
            return Err(Trouble::of(&report));
        }
        Ok(match node.value {
            _ if node.is_null() => None,
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        })
    }

    /// One that cannot be read here counts as none: reads need none, and a change gets an error that names it.
    fn token(&self) -> Option<Secret> {
        let text = |key| self.cell(key).ok().flatten();
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

    #[test]
    fn a_url_is_an_address_or_localhost() {
        let check = |url: &str, expect: Option<(&str, usize)>| {
            let found = Found::at(url).ok().map(|found| match found.way {
                Way::Tcp(addresses, authority) => {
                    (addresses.first().map(ToString::to_string), addresses.len(), authority)
                }
                Way::Socket(_) => panic!("a URL is no socket"),
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
    fn an_answer_is_read_whatever_it_is() {
        let check = |answer: &str, expect: Option<(u16, &str)>| {
            let reply = read_reply(answer.as_bytes()).ok();
            assert_eq!(reply.as_ref().map(|reply| (reply.status, reply.text.as_str())), expect, "{answer:?}");
        };
        check("HTTP/1.0 200 OK\r\na: b\r\n\r\nyes\n", Some((200, "yes\n")));
        check("HTTP/1.1 503 Service Unavailable\r\n\r\n", Some((503, "")));
        for wrong in ["", "hello", "HTTP/1.1 200 OK\r\n", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 many\r\n\r\n"] {
            check(wrong, None);
        }
    }

    #[test]
    fn the_socket_is_found_in_a_configuration_that_has_become_wrong() {
        let path = std::env::temp_dir().join(format!("outrigger-remote-{}.yaml", std::process::id()));
        let text = "logs: { sorces: 1 }\nadmin: { socket: \"${NOWHERE:-/run/a.sock}\", token: \"${ABSENT_TOKEN}\" }\n";
        std::fs::write(&path, text).expect("a temporary file");
        let target = Target { socket: None, config: path.clone() };
        let found = Found::by(&target, None).map_err(|trouble| trouble.to_string());
        let found = found.expect("the rest of it does not matter");
        assert_eq!((found.place().as_str(), found.token.is_none()), ("/run/a.sock", true));
        std::fs::write(&path, "app: { port: 1 }\n").expect("a temporary file");
        let trouble = Found::by(&target, None).err().expect("no socket").to_string();
        assert!(trouble.contains("names no admin socket") && trouble.contains("help:"), "{trouble}");
        std::fs::remove_file(&path).expect("the file was made");
        let trouble = Found::by(&target, None).err().expect("no file").to_string();
        assert!(trouble.contains("cannot be read") && trouble.matches("help:").count() == 1, "{trouble}");
    }
}
