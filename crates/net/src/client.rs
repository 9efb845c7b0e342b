//! The client: one per sink, store or exporter, on its thread. In: a request. Out: a response. Connections are pooled and
//! reused, one request at a time each. Limits: `IDLE_MAX` idle connections, the configured timeout per attempt, and a limit
//! on the body of each response, set by the caller.

use crate::auth;
use crate::config::ClientConfig;
use crate::connect::{Connector, Sender, Target};
use crate::error::Error;
use crate::tls;
use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use http_body_util::{BodyExt as _, Full};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

const IDLE_MAX: usize = 8;

/// An idle connection that is older was probably closed by the receiver.
const IDLE_AGE: Duration = Duration::from_secs(30);

pub struct Client {
    config: ClientConfig,
    connector: Connector,
    idle: Mutex<Vec<Idle>>,
    by_silence: bool,
}

struct Idle {
    target: Target,
    sender: Sender,
    since: Instant,
}

/// A request with its complete body. `headers` are the protocol's own, which the configuration cannot replace.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// The maximum size of the response's body. A GET with a longer response fails; any other is truncated.
    pub response_max: usize,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    /// Errors contain the path of an unusable certificate file.
    pub fn new(config: ClientConfig) -> Result<Client, Error> {
        let connector = Connector::new(&config)?;
        Ok(Client { config, connector, idle: Mutex::default(), by_silence: false })
    }

    /// `timeout` becomes an idle timeout, not the limit of a complete response: for responses of unknown size.
    pub fn by_silence(self) -> Client {
        Client { by_silence: true, ..self }
    }

    /// One attempt. A response of any status is `Ok`.
    pub async fn send(&self, request: &Request) -> Result<Response, Error> {
        if self.by_silence {
            return self.attempt(request).await;
        }
        let limit = self.config.timeout.0;
        match tokio::time::timeout(limit, self.attempt(request)).await {
            Ok(result) => result,
            Err(_) => Err(Error::network(format!(
                "timeout: no response from {} within {}",
                host_of(&request.url),
                self.config.timeout
            ))),
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Response, Error> {
        let uri: Uri =
            request.url.parse().map_err(|_| Error::us(format!("`{}` is not a URL", request.url)).finally())?;
        let target = self.connector.target(&uri)?;
        let head = self.head(request, &uri, &target)?;
        // An idle connection may just have been closed: then, and only then, a new one is tried immediately.
        if let Some(sender) = self.take_idle(&target) {
            match self.exchange(sender, &target, head.clone(), request).await {
                Err((error, true)) => tracing::debug!(%error, "idle keep-alive connection closed; reconnecting"),
                Err((error, false)) => return Err(error),
                Ok(response) => return Ok(self.without_secrets(response, &head.headers)),
            }
        }
        // A little less than the full timeout, so that the error reports the step that took it.
        let sender = self.connector.connect(&target, self.config.timeout.0.mul_f64(0.9)).await?;
        let sent = head.headers.clone();
        let response = self.exchange(sender, &target, head, request).await.map_err(|(error, _)| error)?;
        Ok(self.without_secrets(response, &sent))
    }

    /// A receiver may repeat what was sent in its error, which becomes part of messages.
    fn without_secrets(&self, response: Response, sent: &HeaderMap) -> Response {
        if response.is_success() {
            return response;
        }
        let configured = self.config.headers.keys().filter_map(|name| sent.get(name.as_str()));
        let credentials = ["authorization", "proxy-authorization"].into_iter().filter_map(|name| sent.get(name));
        let values = configured.chain(credentials).filter_map(|value| value.to_str().ok());
        // The scheme of credentials, such as Bearer, is no secret.
        let secrets = values.map(|value| value.split_once(' ').map_or(value, |(_, secret)| secret));
        let mut text = String::from_utf8_lossy(&response.body).into_owned();
        for secret in secrets.filter(|secret| secret.len() >= SECRET_MIN) {
            text = text.replace(secret, "(secret)");
        }
        Response { body: text.into(), ..response }
    }

    fn head(&self, request: &Request, uri: &Uri, target: &Target) -> Result<http::request::Parts, Error> {
        let mut builder = http::Request::builder().method(request.method.clone()).uri(target.request_target(uri));
        let headers = builder.headers_mut().ok_or_else(|| Error::us("cannot build the request").finally())?;
        for (name, value) in &self.config.headers {
            insert(headers, name, value.reveal())?;
        }
        insert(headers, "host", &target.host_header())?;
        insert(headers, "user-agent", concat!("outrigger/", env!("CARGO_PKG_VERSION")))?;
        for (name, value) in &request.headers {
            insert(headers, name, value)?;
        }
        auth::apply(self.config.auth.as_ref(), uri, &request.method, &request.body, headers)?;
        target.proxy_auth(headers)?;
        let (parts, ()) = builder.body(()).map_err(|error| Error::us(error.to_string()).finally())?.into_parts();
        Ok(parts)
    }

    /// The flag of an error: the connection was closed before any response.
    async fn exchange(
        &self,
        mut sender: Sender,
        target: &Target,
        head: http::request::Parts,
        request: &Request,
    ) -> Result<Response, (Error, bool)> {
        let outgoing = http::Request::from_parts(head, Full::new(request.body.clone()));
        let host = host_of(&request.url);
        let sent =
            self.within_idle_timeout(request, sender.send_request(outgoing)).await.map_err(|error| (error, false))?;
        let response = sent.map_err(|error| {
            let unsent = error.is_canceled() || error.is_closed() || error.is_incomplete_message();
            let text = match tls::late_reason(&error, &target.host) {
                Some(reason) => format!("TLS with {host}: {reason}"),
                None if error.is_parse() => {
                    format!("{host} does not speak HTTP; check the port, or use https: {error}")
                }
                None => format!("{host} closed the connection: {}", deepest(&error)),
            };
            (Error::network(text), unsent)
        })?;
        let (parts, mut incoming) = response.into_parts();
        let mut body = BytesMut::new();
        while let Some(frame) =
            self.within_idle_timeout(request, incoming.frame()).await.map_err(|error| (error, false))?
        {
            let frame = match frame {
                Ok(frame) => frame,
                // The status is the result; only a GET needs the complete body.
                Err(_) if request.method != Method::GET => {
                    return Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: body.freeze() });
                }
                Err(error) => return Err((Error::network(format!("{host}: response aborted: {error}")), false)),
            };
            if let Some(data) = frame.data_ref() {
                let room = request.response_max.saturating_sub(body.len());
                if data.len() > room && request.method != Method::GET {
                    // The request has its response; only the beginning of the body is wanted.
                    body.extend_from_slice(data.get(..room).unwrap_or(&[]));
                    return Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: body.freeze() });
                }
                if data.len() > room {
                    let text = format!("{host}: response body exceeds {} bytes", request.response_max);
                    return Err((Error::receiver(text).finally(), false));
                }
                body.extend_from_slice(data);
            }
        }
        self.keep(target, sender);
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body: body.freeze() })
    }

    async fn within_idle_timeout<T>(&self, request: &Request, future: impl Future<Output = T>) -> Result<T, Error> {
        if !self.by_silence {
            return Ok(future.await);
        }
        let late = || Error::network(format!("no bytes from {} within {}", host_of(&request.url), self.config.timeout));
        tokio::time::timeout(self.config.timeout.0, future).await.map_err(|_| late())
    }

    fn take_idle(&self, target: &Target) -> Option<Sender> {
        let mut idle = base::sync::lock(&self.idle);
        idle.retain(|idle| idle.since.elapsed() < IDLE_AGE && !idle.sender.is_closed());
        let index = idle.iter().rposition(|idle| idle.target == *target && idle.sender.is_ready())?;
        Some(idle.swap_remove(index).sender)
    }

    fn keep(&self, target: &Target, sender: Sender) {
        let mut idle = base::sync::lock(&self.idle);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(Idle { target: target.clone(), sender, since: Instant::now() });
        }
    }
}

impl Response {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The type of the body without parameters (RFC 9110, 8.3.1); it is case-insensitive.
    pub fn media_type(&self) -> &str {
        self.header("content-type").and_then(|kind| kind.split(';').next()).unwrap_or("").trim()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Retry-After: seconds, or a date (RFC 9110, 10.2.3), relative to the receiver's own clock if it sends `Date`.
    pub fn retry_after(&self) -> Option<Duration> {
        let text = self.header("retry-after")?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = |text: &str| httpdate::parse_http_date(text.trim()).ok();
        let now = self.header("date").and_then(date).unwrap_or_else(SystemTime::now);
        Some(date(text)?.duration_since(now).unwrap_or_default())
    }

    /// The beginning of the body, or the target of a redirect, for a message.
    pub fn excerpt(&self) -> String {
        if let Some(location) = self.header("location").filter(|_| (300..400).contains(&self.status)) {
            return format!("redirect to {} not followed", config::diag::hide_query(location));
        }
        let text =
            String::from_utf8_lossy(self.body.get(..EXCERPT_MAX.min(self.body.len())).unwrap_or(&[])).into_owned();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

const EXCERPT_MAX: usize = 300;

/// A shorter value would be found in any text.
const SECRET_MIN: usize = 4;

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Error> {
    let bad = || Error::us(format!("the header `{name}` contains a character that is not allowed")).finally();
    let name_ok = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
    headers.insert(name_ok, HeaderValue::from_str(value).map_err(|_| bad())?);
    Ok(())
}

/// The cause of an error that has no further cause, such as "connection reset by peer".
fn deepest<'e>(error: &'e (dyn std::error::Error + 'static)) -> &'e dyn std::error::Error {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// The host and port of a URL, without credentials.
fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_receivers_show_no_secret_sent() {
        let headers = [("x-api-key".to_string(), config::unit::Secret::new("key-12345"))];
        let config = ClientConfig {
            timeout: crate::timeout(),
            connect_timeout: crate::connect_timeout(),
            headers: headers.into_iter().collect(),
            auth: None,
            tls: crate::config::Tls::default(),
        };
        let mut sent = HeaderMap::new();
        insert(&mut sent, "x-api-key", "key-12345").expect("a header");
        insert(&mut sent, "authorization", "Bearer top-secret").expect("a header");
        insert(&mut sent, "host", "receiver").expect("a header");
        let client = Client::new(config).expect("a client");
        let check = |status: u16, body: &'static str, expect: &str| {
            let response = Response { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) };
            assert_eq!(client.without_secrets(response, &sent).excerpt(), expect);
        };
        check(401, "receiver: Bearer top-secret, key-12345 rejected", "receiver: Bearer (secret), (secret) rejected");
        check(200, "top-secret", "top-secret");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let check = |pairs: &[(&'static str, &str)], expect: Option<u64>| {
            let headers = pairs
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value")));
            let response = Response { status: 429, headers: headers.collect(), body: Bytes::new() };
            assert_eq!(response.retry_after(), expect.map(Duration::from_secs), "{pairs:?}");
        };
        let date = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        check(&[("retry-after", " 120 ")], Some(120));
        check(&[("retry-after", "Wed, 21 Oct 2015 07:29:30 GMT"), date], Some(90));
        check(&[("retry-after", "Wed, 21 Oct 2015 07:00:00 GMT"), date], Some(0));
        check(&[("retry-after", "Wednesday, 21-Oct-15 07:29:00 GMT"), date], Some(60));
        check(&[("retry-after", "Wed Oct 21 07:29:00 2015"), date], Some(60));
        check(&[("retry-after", "soon"), date], None);
        check(&[date], None);
    }
}
