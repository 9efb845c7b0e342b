//! The transports to a git server. git:// over a socket with timeouts, ssh by the program, http by Outrigger's client: gix's
//! transport trait over `net`, so that there is one HTTP stack with one set of certificates and credentials. Limits: a response
//! over HTTP is buffered completely and has at most `RESPONSE_MAX` bytes; each wait for bytes ends after `timeout`.

use super::reports::Reports;
use super::request::{Corrected, correct};
use super::{Config, Fault, ssh};
use bytes::Bytes;
use gix_transport::Protocol;
use gix_transport::client::blocking_io::Transport;
use gix_transport::client::blocking_io::http::{
    GetResponse, Http, PostBodyDataKind, PostResponse, Transport as HttpTransport,
};
use gix_transport::client::git::{ConnectMode, blocking_io::Connection};
use net::{Client, Request, Response};
use std::any::Any;
use std::io::{self, BufRead, Cursor, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, OnceLock};

const RESPONSE_MAX: usize = 128 << 20;

/// A transport to the server, and its errors when a fetch over it fails.
pub fn open(url: &gix::Url, config: &Config) -> Result<(Box<dyn Transport>, Reports), Fault> {
    use gix::url::Scheme;
    let reports = Reports::default();
    let transport: Result<Box<dyn Transport>, String> = match url.scheme {
        Scheme::Http | Scheme::Https => NetHttp::new(config, reports.clone()).map(|http| {
            // gix would refuse to send credentials without TLS; `net` is the client that sends them.
            let mut bare = url.clone();
            bare.set_user(None);
            bare.set_password(None);
            let transport = HttpTransport::new_http(http, bare, Protocol::V2, false);
            Box::new(transport) as Box<dyn Transport>
        }),
        Scheme::Git => git(url, config, &reports).map(|transport| Box::new(transport) as Box<dyn Transport>),
        Scheme::Ssh => ssh::connect(url, config, &reports).map(|transport| Box::new(transport) as Box<dyn Transport>),
        _ => Err("unsupported scheme".into()),
    };
    match transport {
        Ok(transport) => Ok((transport, reports)),
        Err(text) => Err(Fault::Server(text, None)),
    }
}

fn git(url: &gix::Url, config: &Config, reports: &Reports) -> Result<Connection<Timed, Corrected<Timed>>, String> {
    let host = url.host().ok_or("a git:// URL needs a host")?;
    let port = url.port.unwrap_or(super::GIT_PORT);
    let address = format!("{host}:{port}");
    let failed = |error: io::Error| format!("{address}: {error}");
    let timeout = config.timeout;
    let read = net::dial_blocking(host, port, config.connect_timeout.0).map_err(|error| error.to_string())?;
    read.set_read_timeout(Some(timeout.0)).and_then(|()| read.set_write_timeout(Some(timeout.0))).map_err(failed)?;
    let write = read.try_clone().map_err(failed)?;
    let timed = |stream| Timed {
        stream,
        timeout_text: format!("no bytes from {address} within {timeout}"),
        reports: reports.clone(),
    };
    let virtual_host = Some((host.to_string(), url.port));
    let (read, write) = (timed(read), Corrected::new(timed(write)));
    Ok(Connection::new(read, write, Protocol::V2, url.path.clone(), virtual_host, ConnectMode::Daemon, false))
}

/// A socket whose timeout errors have the address and the limit.
struct Timed {
    stream: TcpStream,
    timeout_text: String,
    reports: Reports,
}

impl Timed {
    fn with_address(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                self.reports.put(io::ErrorKind::TimedOut, self.timeout_text.clone(), None)
            }
            // What the server sent before it closed the connection is still to be read, and is the better reason.
            _ => error,
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).map_err(|error| self.with_address(error))
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes).map_err(|error| self.with_address(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// gix's HTTP trait over `net`, on a runtime of this thread.
struct NetHttp {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    runtime: tokio::runtime::Runtime,
    reports: Reports,
    /// `user:password` of the URL, encoded as in the URL.
    credentials: Option<String>,
}

impl NetHttp {
    fn new(config: &Config, reports: Reports) -> Result<NetHttp, String> {
        let client = Client::new(config.client()).map_err(|error| error.to_string())?.by_silence();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let authority = config.url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
        let credentials = authority.and_then(|authority| Some(authority.rsplit_once('@')?.0.to_string()));
        Ok(NetHttp { shared: Arc::new(Shared { client, runtime, reports, credentials }) })
    }

    fn request(&self, method: http::Method, url: &str, headers: impl IntoIterator<Item = impl AsRef<str>>) -> Request {
        // gix writes complete lines; `net` sets the headers that it needs itself.
        let mut known = Vec::new();
        for line in headers {
            let Some((name, value)) = line.as_ref().split_once(':') else { continue };
            for wanted in ["accept", "content-type", "git-protocol", "user-agent"] {
                if name.trim().eq_ignore_ascii_case(wanted) {
                    known.push((wanted, value.trim().to_string()));
                }
            }
        }
        let url = match &self.shared.credentials {
            Some(credentials) => url.replacen("://", &format!("://{credentials}@"), 1),
            None => url.to_string(),
        };
        Request { method, url, headers: known, body: Bytes::new(), response_max: RESPONSE_MAX }
    }
}

impl Shared {
    /// The response of a git server; any other response is an error in the reports.
    fn send(&self, request: &Request) -> io::Result<Response> {
        let put = |text: String, wait| self.reports.put(io::ErrorKind::Other, text, wait);
        let response =
            self.runtime.block_on(self.client.send(request)).map_err(|error| put(error.to_string(), None))?;
        match response.status {
            200..=299 => {}
            401 | 403 => {
                let text = format!("the server responded with {}: check `auth`", response.status);
                return Err(self.reports.put(io::ErrorKind::PermissionDenied, text, None));
            }
            status @ 300..=399 => {
                return Err(put(
                    match response.header("location") {
                        Some(_) => {
                            format!("the server responded with {status}: {}; set `url` to it", response.excerpt())
                        }
                        None => format!("the server responded with {status} without a location: check `url`"),
                    },
                    None,
                ));
            }
            status => {
                let wait = response.retry_after().filter(|_| matches!(status, 429 | 503));
                return Err(put(format!("the server responded with {status}: {}", response.excerpt()), wait));
            }
        }
        if response.body.len() >= RESPONSE_MAX {
            let max = config::unit::ByteSize(RESPONSE_MAX as u64);
            return Err(put(format!("the server's response exceeds {max}, the limit over HTTP"), None));
        }
        let kind = response.media_type();
        if !kind.to_ascii_lowercase().starts_with(GIT_TYPES) {
            return Err(put(
                format!("the server responded with `{kind}`, which is not a git content type: check `url`"),
                None,
            ));
        }
        Ok(response)
    }
}

/// The types of the protocol's responses (git's gitprotocol-http(5), "Smart Clients").
const GIT_TYPES: &str = "application/x-git-";

/// As gix compares it: in lower case.
fn content_type_line(response: &Response) -> Bytes {
    format!("content-type: {}\n", response.media_type().to_ascii_lowercase()).into()
}

impl Http for NetHttp {
    type Headers = ResponsePart;
    type ResponseBody = ResponsePart;
    type PostBody = Outgoing;

    fn get(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::error::Result<GetResponse<Self::Headers, Self::ResponseBody>> {
        let response =
            self.shared.send(&self.request(http::Method::GET, url, headers)).map_err(gix::error::Exn::from)?;
        Ok(GetResponse {
            headers: ResponsePart::ready(content_type_line(&response)),
            body: ResponsePart::ready(response.body),
        })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix::error::Result<PostResponse<Self::Headers, Self::ResponseBody, Self::PostBody>> {
        let post = Arc::new(Post {
            shared: self.shared.clone(),
            request: Mutex::new(self.request(http::Method::POST, url, headers)),
            written: Mutex::default(),
            response: OnceLock::new(),
        });
        Ok(PostResponse {
            post_body: Outgoing(post.clone()),
            headers: ResponsePart::of(&post, content_type_line),
            body: ResponsePart::of(&post, |response| response.body.clone()),
        })
    }

    fn configure(&mut self, _config: &dyn Any) -> gix::error::Result<()> {
        Ok(())
    }
}

/// A POST, which is sent when gix first reads its response: by then it has written the request.
struct Post {
    shared: Arc<Shared>,
    request: Mutex<Request>,
    written: Mutex<Vec<u8>>,
    response: OnceLock<Result<Response, String>>,
}

impl Post {
    fn response(&self) -> io::Result<&Response> {
        let send = || {
            let mut request = base::sync::lock(&self.request);
            request.body = correct(std::mem::take(&mut *base::sync::lock(&self.written))).into();
            self.shared.send(&request).map_err(|error| error.to_string())
        };
        self.response.get_or_init(send).as_ref().map_err(|text| io::Error::other(text.clone()))
    }
}

/// The body of a request while gix writes it.
struct Outgoing(Arc<Post>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        base::sync::lock(&self.0.written).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pending response, and the part of it to read.
type Pending = (Arc<Post>, fn(&Response) -> Bytes);

/// A part of a response: its type, as a header line, or its body.
struct ResponsePart {
    pending: Option<Pending>,
    read: Cursor<Bytes>,
}

impl ResponsePart {
    fn ready(bytes: Bytes) -> ResponsePart {
        ResponsePart { pending: None, read: Cursor::new(bytes) }
    }

    fn of(post: &Arc<Post>, part: fn(&Response) -> Bytes) -> ResponsePart {
        ResponsePart { pending: Some((post.clone(), part)), read: Cursor::default() }
    }

    fn receive(&mut self) -> io::Result<()> {
        if let Some((post, part)) = self.pending.take() {
            self.read = Cursor::new(part(post.response()?));
        }
        Ok(())
    }
}

impl Read for ResponsePart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive()?;
        self.read.read(buffer)
    }
}

impl BufRead for ResponsePart {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.receive()?;
        self.read.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.read.consume(count);
    }
}
