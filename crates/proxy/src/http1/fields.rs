//! The meaning of header fields for a forwarder (RFC 9110, 7.6; RFC 9112, 6). In: the fields of one head. Out: how its body
//! ends, whether the connection persists, and which fields belong to this hop; ambiguous fields are rejected.

use super::body::Body;
use super::syntax::{Method, Refusal, refuse};
use httparse::Header;

/// The headers with a meaning for a forwarder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Connection,
    ContentLength,
    Host,
    Http2Settings,
    KeepAlive,
    MaxForwards,
    ProxyConnection,
    Te,
    TransferEncoding,
    Upgrade,
    Via,
}

/// Most headers are distinguished by their length only.
pub fn known(name: &str) -> Option<Known> {
    let (expected, found) = match name.len() {
        2 => ("te", Known::Te),
        3 => ("via", Known::Via),
        4 => ("host", Known::Host),
        7 => ("upgrade", Known::Upgrade),
        10 if name.as_bytes().first().is_some_and(|first| first | 0x20 == b'k') => ("keep-alive", Known::KeepAlive),
        10 => ("connection", Known::Connection),
        12 => ("max-forwards", Known::MaxForwards),
        14 if name.as_bytes().first().is_some_and(|first| first | 0x20 == b'h') => {
            ("http2-settings", Known::Http2Settings)
        }
        14 => ("content-length", Known::ContentLength),
        16 => ("proxy-connection", Known::ProxyConnection),
        17 => ("transfer-encoding", Known::TransferEncoding),
        _ => return None,
    };
    name.eq_ignore_ascii_case(expected).then_some(found)
}

/// The combined meaning of the headers.
#[derive(Default)]
pub struct Facts<'h> {
    pub content_length: Option<u64>,
    pub chunked: bool,
    pub hosts: usize,
    pub close: bool,
    pub keep_alive: bool,
    pub connection_upgrade: bool,
    /// Protocols listed in Upgrade.
    pub upgrade: Vec<&'h [u8]>,
    pub h2c: bool,
    pub host: Option<&'h str>,
    pub max_forwards: Option<u64>,
    pub via: Vec<&'h [u8]>,
    /// Options of Connection that refer to other headers.
    pub connection: Vec<&'h [u8]>,
}

impl<'h> Facts<'h> {
    /// Whether another message may follow on the connection (RFC 9112, 9.3): `close` takes precedence over `keep-alive`.
    pub fn persists(&self, http_10: bool) -> bool {
        !self.close && (!http_10 || self.keep_alive)
    }

    pub fn of(headers: &[Header<'h>]) -> Result<Facts<'h>, Refusal> {
        let mut facts = Facts::default();
        for header in headers {
            match known(header.name) {
                Some(Known::ContentLength) => {
                    if facts.content_length.is_some() {
                        return Err(refuse(400, "multiple Content-Length headers"));
                    }
                    facts.content_length = Some(parse_length(header.value)?);
                }
                Some(Known::TransferEncoding) => {
                    if facts.chunked {
                        return Err(refuse(400, "multiple Transfer-Encoding headers"));
                    }
                    // Only the coding that defines where a message ends; of any other, the endpoint would have to guess it.
                    if !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        // RFC 9112, 6.1 and 6.3: an unknown coding is 501; chunked that is not the last one is 400.
                        let has_chunked = header
                            .value
                            .split(|byte| *byte == b',')
                            .any(|part| part.trim_ascii().eq_ignore_ascii_case(b"chunked"));
                        let status = if has_chunked { 400 } else { 501 };
                        return Err(refuse(status, "a Transfer-Encoding other than chunked"));
                    }
                    facts.chunked = true;
                }
                Some(Known::Host) => {
                    facts.hosts += 1;
                    if facts.hosts > 1 {
                        return Err(refuse(400, "multiple Host headers"));
                    }
                    let host = std::str::from_utf8(header.value);
                    facts.host = Some(host.map_err(|_| refuse(400, "the host is not UTF-8"))?);
                }
                Some(Known::MaxForwards) => facts.max_forwards = parse_length(header.value).ok(),
                Some(Known::Via) => facts.via.push(header.value),
                Some(Known::Connection) => facts.connection_options(header.value),
                Some(Known::Upgrade) => {
                    let members = header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                    for member in members.filter(|member| !member.is_empty()) {
                        facts.h2c |= member.eq_ignore_ascii_case(b"h2c");
                        facts.upgrade.push(member);
                    }
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    fn connection_options(&mut self, value: &'h [u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else if !option.is_empty() {
                self.connection.push(option);
            }
        }
    }

    /// Listed in Connection, so meant for this hop only. Headers that define the length are never dropped that way.
    pub fn is_connection_option(&self, name: &str) -> bool {
        !self.connection.is_empty()
            && !matches!(known(name), Some(Known::ContentLength | Known::TransferEncoding | Known::Host))
            && self.connection.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// RFC 9112, 6.3, with every ambiguity rejected: both lengths in one request enable request smuggling.
    pub fn request_body(&self, http_10: bool) -> Result<Body, Refusal> {
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(refuse(400, "both Transfer-Encoding and Content-Length")),
            (true, None) if http_10 => Err(refuse(400, "Transfer-Encoding in HTTP/1.0")),
            (true, None) => Ok(Body::chunked()),
            (false, Some(0) | None) => Ok(Body::None),
            (false, Some(length)) => Ok(Body::Length(length)),
        }
    }

    pub fn response_body(&self, status: u16, method: Method) -> Result<Body, &'static str> {
        if method == Method::Head || (100..200).contains(&status) || status == 204 || status == 304 {
            return Ok(Body::None);
        }
        Ok(match (self.chunked, self.content_length) {
            (true, _) => Body::chunked(),
            (false, Some(0)) => Body::None,
            (false, Some(length)) => Body::Length(length),
            (false, None) => Body::UntilClose,
        })
    }
}

/// Digits only: no sign, no list, no spaces within (RFC 9110, 8.6).
fn parse_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = value.trim_ascii();
    let valid = !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit);
    if !valid {
        return Err(refuse(400, "Content-Length is not a number"));
    }
    Ok(digits.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}
