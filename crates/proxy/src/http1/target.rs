//! The target of a request (RFC 9112, 3.2). In: a target and its method. Out: the host of an absolute target, and the target
//! for the endpoint; any other form is rejected.

use super::syntax::{Method, Refusal, refuse};

/// The target that the endpoint gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'t> {
    /// As it was written.
    Written(&'t str),
    /// The root with this query: an absolute target had no path (RFC 9112, 3.2.1).
    Root(&'t str),
    /// The entire server (RFC 9112, 3.2.4).
    Asterisk,
}

/// The host of an absolute target, and the target for the endpoint (RFC 9112, 3.2).
pub fn split_target(method: Method, target: &str) -> Result<(Option<&str>, Target<'_>), Refusal> {
    if target.contains('#') {
        return Err(refuse(400, "the target has a fragment"));
    }
    match target.as_bytes().first() {
        Some(b'/') => return Ok((None, Target::Written(target))),
        Some(b'*') if target == "*" && method == Method::Options => return Ok((None, Target::Asterisk)),
        _ => {}
    }
    let scheme = |scheme: &str| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    let rest = match target {
        _ if scheme("http://") => target.get(7..),
        _ if scheme("https://") => target.get(8..),
        _ => None,
    };
    let rest = rest.ok_or(refuse(400, "the target is neither a path nor an http URL"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(refuse(400, "the target contains a user name or password"));
    }
    if authority.is_empty() {
        return Err(refuse(400, "the target has no host"));
    }
    let target = match path {
        _ if path.starts_with('/') => Target::Written(path),
        "" if method == Method::Options => Target::Asterisk,
        query => Target::Root(query),
    };
    Ok((Some(authority), target))
}

/// RFC 3986, 3.2: `host [ ":" port ]`. An empty host is valid if the target has no authority.
pub fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text, ""),
    };
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let address = |inside: &str| inside.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":.%-_~".contains(&byte));
    let host_is_valid = match host.strip_prefix('[') {
        Some(inside) => inside.strip_suffix(']').is_some_and(|inside| !inside.is_empty() && address(inside)),
        None => host.bytes().all(in_name),
    };
    host_is_valid && (port.is_empty() || port.parse::<u16>().is_ok()) && port.bytes().all(|byte| byte.is_ascii_digit())
}
