//! Authorization of admin requests. In: a request's headers. Out: nothing, or the response that rejects it. Browsers let any open
//! page send requests to loopback, so Origin and Sec-Fetch-Site are compared with the address that the request was sent to (DNS
//! rebinding, CSRF). Clients other than browsers send neither header and pass. It opens no connection and has no state.

use config::unit::Secret;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use net::serve::{Request, Response};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Rejects requests that a page of another origin made a browser send. `any_host` skips the check of the host name.
pub fn check_origin(request: &Request, hosts: &[String], any_host: bool) -> Option<Response> {
    let headers = &request.headers;
    let host = match single(headers, &HOST) {
        Ok(host) => host,
        Err(()) => return Some(Response::text(400, "invalid Host header: expected exactly one, in ASCII\n")),
    };
    // Every browser sends Host. Without it, as HTTP/1.0 allows, the client did not use a rebound name.
    if let Some(host) = host
        && !any_host
        && !is_allowed_host(host, hosts)
    {
        return Some(Response::text(
            421,
            "host not allowed (DNS rebinding protection): use an IP address or localhost, or add the name to \
             admin.allowed_hosts\n",
        ));
    }
    let cross_origin = match single(headers, &ORIGIN) {
        Ok(None) => false,
        // `null` is the origin of a sandboxed frame or a file (HTML, 7.1.1), which Outrigger never serves.
        Ok(Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_none() || !authority.zip(host).is_some_and(|(one, other)| one.eq_ignore_ascii_case(other))
        }
        Err(()) => true,
    };
    if cross_origin || is_cross_site_fetch(request) {
        return Some(Response::text(403, "cross-origin request rejected\n"));
    }
    None
}

/// `Sec-Fetch-Site` is the relation between the requesting page and this host (Fetch Metadata, 2.3). `none` is a user who typed
/// the address. A followed link, for instance from a runbook, is `cross-site` and allowed: the document opens as a top-level
/// page, which the linking site can neither read nor frame. Everything that a page fetches or embeds by itself is rejected, also
/// from another port of this host (`same-site`), on which the app itself may listen.
fn is_cross_site_fetch(request: &Request) -> bool {
    let is = |name: &'static str, value: &str| {
        single(&request.headers, &HeaderName::from_static(name)).is_ok_and(|have| have == Some(value))
    };
    let link =
        request.method == http::Method::GET && is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document");
    (is("sec-fetch-site", "cross-site") || is("sec-fetch-site", "same-site")) && !link
}

/// An address cannot be rebound; `localhost` is never resolved by a name server (RFC 6761, 6.3); other names must be configured.
fn is_allowed_host(host: &str, hosts: &[String]) -> bool {
    if let Some(inside) = host.strip_prefix('[') {
        let literal = inside.split_once(']').filter(|(_, rest)| is_port(rest)).map(|(literal, _)| literal);
        return literal.is_some_and(|literal| literal.parse::<Ipv6Addr>().is_ok());
    }
    let (name, port) = host.find(':').map_or((host, ""), |colon| host.split_at(colon));
    let named = name.eq_ignore_ascii_case("localhost") || hosts.iter().any(|known| known.eq_ignore_ascii_case(name));
    is_port(port) && (named || name.parse::<IpAddr>().is_ok())
}

/// Empty, or a colon and digits (RFC 3986, 3.2.3).
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether an entry of `admin.allowed_hosts` is a host name.
pub fn is_name(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !host.is_empty() && host.len() <= 253 && host.bytes().all(plain)
}

/// The token that a change requires.
pub enum Token {
    None,
    Given(Secret),
    /// Re-read for each change, so that a rotated token takes effect immediately.
    File(PathBuf),
}

/// A token is short; a larger file is rejected.
const TOKEN_FILE_MAX: u64 = 64 << 10;

/// The token of a file, without the newline that editors and `echo` put at its end.
pub fn read_token(file: &Path) -> Result<Secret, String> {
    let bytes = base::system::file::read(file, TOKEN_FILE_MAX).map_err(|error| error.to_string())?;
    let token = Secret::new(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
    if is_valid_token(&token) {
        return Ok(token);
    }
    Err(format!(
        "{} has no valid token: it is empty, or has spaces or other characters than visible ASCII",
        file.display()
    ))
}

/// Rejects a change without the token, if one is set.
pub async fn check_token(headers: &HeaderMap, token: &Token) -> Option<Response> {
    let read;
    let token = match token {
        Token::None => return None,
        Token::Given(token) => token,
        Token::File(file) => {
            let file = file.clone();
            let result = tokio::task::spawn_blocking(move || read_token(&file)).await;
            match result.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(token) => {
                    read = token;
                    &read
                }
                Err(error) => return Some(Response::text(503, format!("admin.token_file: {error}\n"))),
            }
        }
    };
    let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    // The scheme's case does not matter (RFC 9110, 11.1).
    let (scheme, given) = given.split_at_checked("Bearer ".len()).unwrap_or_default();
    if scheme.eq_ignore_ascii_case(b"Bearer ") && is_equal(given, token.reveal().as_bytes()) {
        return None;
    }
    let refusal = "unauthorized: this endpoint requires `Authorization: Bearer <admin.token>` (CLI: --token-file)\n";
    Some(Response { headers: vec![("www-authenticate", "Bearer")], ..Response::text(401, refusal) })
}

/// Compares in constant time, so that a token cannot be guessed byte by byte. Its length may leak.
fn is_equal(left: &[u8], right: &[u8]) -> bool {
    let differ = left.iter().zip(right).fold(0, |differ, (one, other)| std::hint::black_box(differ | (one ^ other)));
    left.len() == right.len() && std::hint::black_box(differ) == 0
}

/// Whether a token is allowed in a header, in which the commands send it.
pub fn is_valid_token(token: &Secret) -> bool {
    !token.reveal().is_empty() && token.reveal().bytes().all(|byte| byte.is_ascii_graphic())
}

/// The value of a header that may occur only once.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(drop),
        (Some(_), Some(_)) => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(headers: &[(&'static str, &str)], any_host: bool) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        let (path, query, body) = ("/status".into(), String::new(), bytes::Bytes::new());
        let request = Request { method: http::Method::GET, path, query, headers: map, body };
        check_origin(&request, &["sidecar.example".into()], any_host).map_or(200, |response| response.status)
    }

    #[test]
    fn only_addresses_and_allowed_hosts_are_accepted() {
        for (host, expect) in [
            ("127.0.0.1:9900", 200),
            ("127.0.0.1", 200),
            ("10.1.2.3:80", 200),
            ("[::1]:9900", 200),
            ("[::1]", 200),
            ("localhost:9900", 200),
            ("LocalHost", 200),
            ("sidecar.example:9900", 200),
            ("Sidecar.Example", 200),
            ("evil.example:9900", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("sidecar.example.evil", 421),
            ("127.0.0.1:9900@evil", 421),
            ("[evil]:9900", 421),
            ("[::1]evil", 421),
            ("::1", 421),
            ("", 421),
        ] {
            assert_eq!(status(&[("host", host)], false), expect, "{host}");
            assert_eq!(status(&[("host", host)], true), 200, "{host}, for a probe");
        }
        assert_eq!(status(&[], false), 200, "HTTP/1.0 without Host does not come from a browser");
        assert_eq!(status(&[("host", "127.0.0.1"), ("host", "evil.example")], false), 400);
    }

    #[test]
    fn cross_origin_requests_are_rejected() {
        let host = ("host", "127.0.0.1:9900");
        for (origin, expect) in [
            ("http://127.0.0.1:9900", 200),
            ("http://127.0.0.1:9901", 403),
            ("http://localhost:9900", 403),
            ("https://evil.example", 403),
            ("http://127.0.0.1:9900.evil.example", 403),
            ("null", 403),
            ("", 403),
        ] {
            for any_host in [false, true] {
                assert_eq!(status(&[host, ("origin", origin)], any_host), expect, "{origin}");
            }
        }
        assert_eq!(
            status(&[("origin", "http://127.0.0.1")], false),
            403,
            "an origin without a host to compare it with"
        );
        for (site, mode, dest, expect) in [
            ("same-origin", "cors", "empty", 200),
            ("none", "navigate", "document", 200),
            ("cross-site", "navigate", "document", 200),
            ("cross-site", "navigate", "iframe", 403),
            ("cross-site", "no-cors", "script", 403),
            ("cross-site", "no-cors", "image", 403),
            ("same-site", "no-cors", "empty", 403),
            ("same-site", "navigate", "document", 200),
        ] {
            let fetch = [host, ("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
            assert_eq!(status(&fetch, false), expect, "{site} {mode} {dest}");
        }
    }

    #[tokio::test]
    async fn a_change_requires_the_exact_token_if_set() {
        let file = std::env::temp_dir().join(format!("outrigger-token-{}", std::process::id()));
        std::fs::write(&file, "open-sesame\n").expect("written");
        let check = async |given: Option<&str>, expect: bool| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(AUTHORIZATION, HeaderValue::from_str(given).expect("a value"));
            }
            for token in [Token::Given(Secret::new("open-sesame")), Token::File(file.clone())] {
                let refused = check_token(&headers, &token).await;
                assert_eq!(refused.as_ref().map(|response| response.status), (!expect).then_some(401), "{given:?}");
                let text = refused.map(|response| response.body).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&text).contains("sesame"), "the token is never printed");
            }
            assert!(check_token(&headers, &Token::None).await.is_none(), "no token is set");
        };
        check(Some("Bearer open-sesame"), true).await;
        check(Some("bearer open-sesame"), true).await;
        for wrong in ["Bearer open-sesam", "Bearer open-sesame2", "Bearer ", "Basic open-sesame", "open-sesame", ""] {
            check(Some(wrong), false).await;
        }
        check(None, false).await;
        for wrong in ["", "two words"] {
            std::fs::write(&file, wrong).expect("written");
            let refused = check_token(&HeaderMap::new(), &Token::File(file.clone())).await;
            assert_eq!(refused.map(|response| response.status), Some(503), "{wrong:?} is not a token");
        }
        std::fs::remove_file(&file).expect("removed");
        let refused = check_token(&HeaderMap::new(), &Token::File(file)).await;
        assert_eq!(refused.map(|response| response.status), Some(503), "an unreadable token file rejects every change");
    }
}
