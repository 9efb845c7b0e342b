//! The ways to a git server. git:// over a socket with time-outs, ssh by the program, http by our own client: gix's transport
//! trait over `net`, so that there is one HTTP stack with one set of certificates and credentials. Bound: an answer over HTTP
//! is held whole and has at most `ANSWER_MAX` bytes.

use super::Config;
use bytes::Bytes;
use gix_transport::Protocol;
use gix_transport::client::blocking_io::http::{
    GetResponse, Http, PostBodyDataKind, PostResponse, Transport as HttpTransport,
};
use gix_transport::client::blocking_io::{Transport, connect, ssh};
use gix_transport::client::git::{ConnectMode, blocking_io::Connection};
use net::{Client, Request, Response};
use std::any::Any;
use std::io::{self, BufRead, Cursor, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ANSWER_MAX: usize = 128 << 20;

/// For git:// and ssh: connecting, and each wait for bytes.
const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);

pub fn open(url: &gix::Url, config: &Config) -> Result<Box<dyn Transport>, String> {
    use gix::url::Scheme;
    match url.scheme {
        Scheme::Http | Scheme::Https => {
            let http = NetHttp::new(config)?;
            let bare = url.clone();
            Ok(Box::new(HttpTransport::new_http(http, bare, Protocol::V2, false)))
        }
        Scheme::Git => Ok(Box::new(git(url)?)),
        Scheme::Ssh => {
            // Named, so that ssh is not started once more to find out what it is.
            let kind = Some(ssh::ProgramKind::Ssh);
            let ssh = ssh::connect::Options { command: Some(ssh_command(config)?.into()), kind, ..Default::default() };
            let options = connect::Options { version: Protocol::V2, ssh, trace: false };
            let transport = connect::connect(url.clone(), options).map_err(|error| super::chain(&error))?;
            Ok(transport)
        }
        _ => Err("this scheme has no transport here".into()),
    }
}

fn git(url: &gix::Url) -> Result<Connection<TcpStream, TcpStream>, String> {
    let host = url.host().ok_or("a git:// URL needs a host")?;
    let port = url.port.unwrap_or(9418);
    let place = format!("{host}:{port}");
    let failed = |error: io::Error| format!("{place}: {error}");
    let read = net::dial_blocking(host, port, CONNECT).map_err(|error| error.to_string())?;
    read.set_read_timeout(Some(SILENCE)).and_then(|()| read.set_write_timeout(Some(SILENCE))).map_err(failed)?;
    let write = read.try_clone().map_err(failed)?;
    let virtual_host = Some((host.to_string(), url.port));
    Ok(Connection::new(read, write, Protocol::V2, url.path.clone(), virtual_host, ConnectMode::Daemon, false))
}

/// ssh never asks, never trusts an unknown host, and notices a server that is gone (ssh_config(5)).
fn ssh_command(config: &Config) -> Result<String, String> {
    let mut command = format!(
        "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout={} -o ServerAliveInterval=10 -o ServerAliveCountMax=3",
        CONNECT.as_secs()
    );
    if let Some(key) = &config.ssh.key_file {
        command.push_str(&format!(" -i {} -o IdentitiesOnly=yes", quoted(key)?));
    }
    if let Some(hosts) = &config.ssh.known_hosts_file {
        command.push_str(&format!(" -o UserKnownHostsFile={}", quoted(hosts)?));
    }
    Ok(command)
}

/// The command is split like a shell's.
fn quoted(path: &Path) -> Result<String, String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains('\''))
        .ok_or_else(|| format!("{} has a character that ssh's command line cannot hold", path.display()))?;
    Ok(format!("'{text}'"))
}

/// gix's HTTP by our client, on a small runtime of this thread.
struct NetHttp {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl NetHttp {
    fn new(config: &Config) -> Result<NetHttp, String> {
        let client = Client::new(config.client.clone()).map_err(|error| error.to_string())?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        Ok(NetHttp { shared: Arc::new(Shared { client, runtime }) })
    }

    fn request(method: http::Method, url: &str, headers: impl IntoIterator<Item = impl AsRef<str>>) -> Request {
        // gix writes whole lines; our client knows which of them it needs itself.
        let mut known = Vec::new();
        for line in headers {
            let Some((name, value)) = line.as_ref().split_once(':') else { continue };
            for wanted in ["accept", "content-type", "git-protocol", "user-agent"] {
                if name.trim().eq_ignore_ascii_case(wanted) {
                    known.push((wanted, value.trim().to_string()));
                }
            }
        }
        Request { method, url: url.to_string(), headers: known, body: Bytes::new(), answer_max: ANSWER_MAX }
    }
}

impl Shared {
    fn send(&self, request: &Request) -> io::Result<Response> {
        let response = self.runtime.block_on(self.client.send(request)).map_err(io::Error::other)?;
        match response.status {
            200..=299 => Ok(response),
            401 | 403 => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the server answers {}: check client.auth", response.status),
            )),
            status => Err(io::Error::other(format!("the server answers {status}: {}", response.excerpt()))),
        }
    }
}

impl Http for NetHttp {
    type Headers = Cursor<Vec<u8>>;
    type ResponseBody = Answer;
    type PostBody = Outgoing;

    fn get(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::error::Result<GetResponse<Self::Headers, Self::ResponseBody>> {
        let response =
            self.shared.send(&Self::request(http::Method::GET, url, headers)).map_err(gix::error::Exn::from)?;
        let kind = format!("content-type: {}\n", response.header("content-type").unwrap_or(""));
        Ok(GetResponse { headers: Cursor::new(kind.into_bytes()), body: Answer::ready(response.body) })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix::error::Result<PostResponse<Self::Headers, Self::ResponseBody, Self::PostBody>> {
        let request = Self::request(http::Method::POST, url, headers);
        let wanted = request.headers.iter().find(|(name, _)| *name == "content-type").map_or("", |(_, value)| value);
        // The answer's type is known once it is there; a server that refuses answers with an error status.
        let kind = format!("content-type: {}\n", wanted.replace("-request", "-result"));
        let pending = Arc::new(Mutex::new(Vec::new()));
        let body =
            Answer { pending: Some((self.shared.clone(), request, pending.clone())), read: Cursor::new(Bytes::new()) };
        Ok(PostResponse { post_body: Outgoing(pending), headers: Cursor::new(kind.into_bytes()), body })
    }

    fn configure(&mut self, _config: &dyn Any) -> gix::error::Result<()> {
        Ok(())
    }
}

/// The body of a request while gix writes it.
struct Outgoing(Arc<Mutex<Vec<u8>>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        base::subsystem::lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An answer; that of a POST is asked for when gix first reads it, which is after it has written the request.
struct Answer {
    pending: Option<Pending>,
    read: Cursor<Bytes>,
}

/// A POST that has not been sent: who sends it, its head, and its body as gix has written it.
type Pending = (Arc<Shared>, Request, Arc<Mutex<Vec<u8>>>);

impl Answer {
    fn ready(body: Bytes) -> Answer {
        Answer { pending: None, read: Cursor::new(body) }
    }

    fn arrive(&mut self) -> io::Result<()> {
        if let Some((shared, mut request, body)) = self.pending.take() {
            request.body = std::mem::take(&mut *base::subsystem::lock(&body)).into();
            self.read = Cursor::new(shared.send(&request)?.body);
        }
        Ok(())
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arrive()?;
        self.read.read(buffer)
    }
}

impl BufRead for Answer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.arrive()?;
        self.read.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.read.consume(count);
    }
}
