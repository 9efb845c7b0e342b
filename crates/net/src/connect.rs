//! From a URL to a connection that hyper can use: proxy or not, name to address, TCP, TLS. In: a target. Out: a sender whose
//! connection runs as a separate task. Limits: `connect_timeout` in total.

use crate::config::ClientConfig;
use crate::error::Error;
use crate::proxies::{Proxies, Proxy};
use crate::resolve::Resolver;
use crate::tls;
use bytes::Bytes;
use http::Uri;
use http::header::{HeaderMap, HeaderValue};
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

pub type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Where a request goes, and by which proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    tls: bool,
    pub host: String,
    port: u16,
    proxy: Option<Proxy>,
}

pub struct Connector {
    proxies: Proxies,
    tls: tls::Factory,
    resolver: Resolver,
    connect_timeout: Duration,
}

impl Target {
    /// The target in the request line: the path, or for a proxy in clear text the complete URL (RFC 9112, 3.2.2).
    pub fn request_target(&self, uri: &Uri) -> String {
        // A URL may have a query and no path (RFC 9112, 3.2.1: then the path is `/`).
        let path = match uri.path_and_query().map_or("", |path| path.as_str()) {
            "" => "/".to_string(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.to_string(),
        };
        if self.proxy.is_some() && !self.tls {
            return format!("http://{}{path}", self.host_header());
        }
        path
    }

    pub fn host_header(&self) -> String {
        let standard = if self.tls { 443 } else { 80 };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == standard { host } else { format!("{host}:{}", self.port) }
    }

    /// A proxy in clear text gets its credentials on each request; for a tunnel it got them once.
    pub fn proxy_auth(&self, headers: &mut HeaderMap) -> Result<(), Error> {
        let credentials = self.proxy.as_ref().filter(|_| !self.tls).and_then(|proxy| proxy.authorization());
        if let Some(value) = credentials {
            let value = HeaderValue::from_str(&value)
                .map_err(|_| Error::us("the proxy credentials contain a character that is not allowed in a header"))?;
            headers.insert("proxy-authorization", value);
        }
        Ok(())
    }
}

impl Connector {
    pub fn new(config: &ClientConfig) -> Result<Connector, Error> {
        Ok(Connector {
            proxies: Proxies::from_environment(&|name| std::env::var(name).ok()),
            tls: tls::Factory::new(&config.tls)?,
            resolver: Resolver::default(),
            connect_timeout: config.connect_timeout.0,
        })
    }

    pub fn target(&self, uri: &Uri) -> Result<Target, Error> {
        let tls = uri.scheme_str() == Some("https");
        let host = uri.host().ok_or_else(|| Error::us(format!("`{uri}` has no host")).finally())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let proxy = self.proxies.choose(tls, &host, port).map_err(|text| Error::us(text).finally())?;
        Ok(Target { tls, host, port, proxy })
    }

    /// `within`: the time that the caller has, if less than `connect_timeout`.
    pub async fn connect(&self, target: &Target, within: Duration) -> Result<Sender, Error> {
        let stream = self.open(target, self.connect_timeout.min(within)).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(Io(stream))
            .await
            .map_err(|error| Error::network(format!("{}: {error}", target.host_header())))?;
        // The task ends with the connection, which closes when its sender is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "outgoing connection closed with an error");
            }
        });
        Ok(sender)
    }

    async fn open(&self, target: &Target, within: Duration) -> Result<Box<dyn Stream>, Error> {
        let (host, port) = match &target.proxy {
            Some(proxy) => (proxy.host.as_str(), proxy.port),
            None => (target.host.as_str(), target.port),
        };
        let began = Instant::now();
        // Its error reports whether a name server or the host did not respond.
        let mut tcp = self.resolver.dial(host, port, within).await?;
        if !target.tls {
            return Ok(Box::new(tcp));
        }
        let handshakes = async {
            if let Some(proxy) = &target.proxy {
                tunnel(&mut tcp, target, proxy).await?;
            }
            self.tls.connect(&target.host, target.port, tcp).await
        };
        let late = || Error::network(format!("TLS handshake with {} timed out after {within:?}", target.host_header()));
        let left = within.saturating_sub(began.elapsed());
        Ok(Box::new(tokio::time::timeout(left, handshakes).await.map_err(|_| late())??))
    }
}

/// CONNECT (RFC 9110, 9.3.6). Limits: a response head of `TUNNEL_HEAD_MAX` bytes.
async fn tunnel(tcp: &mut TcpStream, target: &Target, proxy: &Proxy) -> Result<(), Error> {
    let authority = format!(
        "{}:{}",
        if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() },
        target.port
    );
    let auth = proxy.authorization().map_or(String::new(), |value| format!("Proxy-Authorization: {value}\r\n"));
    let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{auth}\r\n");
    let failed = |error: io::Error| Error::network(format!("proxy {}:{}: {error}", proxy.host, proxy.port));
    tcp.write_all(head.as_bytes()).await.map_err(failed)?;
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        if response.len() > TUNNEL_HEAD_MAX {
            return Err(Error::receiver(format!(
                "proxy {}:{}: CONNECT response headers too large",
                proxy.host, proxy.port
            )));
        }
        // Byte by byte, so that nothing after the head is consumed.
        response.push(tcp.read_u8().await.map_err(failed)?);
    }
    let status = String::from_utf8_lossy(&response).split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        other => Err(Error::receiver(format!(
            "proxy {}:{} rejected CONNECT {authority} with status {}",
            proxy.host,
            proxy.port,
            other.map_or("none".to_string(), |status| status.to_string())
        ))),
    }
}

const TUNNEL_HEAD_MAX: usize = 16 << 10;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Adapts tokio's traits to hyper's.
pub struct Io(pub Box<dyn Stream>);

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = [0u8; READ_CHUNK];
        let wanted = cursor.remaining().min(READ_CHUNK);
        let mut buffer = ReadBuf::new(space.get_mut(..wanted).unwrap_or(&mut []));
        match Pin::new(&mut self.0).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                cursor.put_slice(buffer.filled());
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

/// A copy through the stack, since hyper's buffer may be uninitialised and this crate has no unsafe code.
const READ_CHUNK: usize = 16 << 10;

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
