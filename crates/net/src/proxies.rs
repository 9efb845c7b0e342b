//! HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or lower case (as curl reads them; HTTP_PROXY in upper case is
//! ignored in a CGI program, where a request could set it). In: the environment. Out: a proxy for a host, or none, or why the
//! configured one cannot be used: a configured proxy is never bypassed.

use base64::Engine as _;

#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    credentials: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Debug, Default)]
pub struct Proxies {
    clear: Option<Result<Proxy, String>>,
    tls: Option<Result<Proxy, String>>,
    except: Vec<String>,
}

impl Proxy {
    pub fn authorization(&self) -> Option<String> {
        let credentials = self.credentials.as_ref()?;
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials)))
    }

    /// Parses `http://user:password@host:port`; the scheme is optional. The error contains no credentials.
    fn parse(name: &str, text: &str) -> Result<Proxy, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(format!("{name}: unsupported proxy scheme `{scheme}`, expected http://"));
        }
        let rest = rest.trim_end_matches('/');
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials.to_string()), address),
            None => (None, rest),
        };
        let invalid = || format!("{name}: invalid proxy `{address}`, expected host[:port]");
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                (host, port.parse().map_err(|_| invalid())?)
            }
            _ => (address, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match host.is_empty() || host.contains('/') {
            true => Err(invalid()),
            false => Ok(Proxy { host: host.into(), port, credentials }),
        }
    }
}

impl Proxies {
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Proxies {
        let named = |name: String| variable(&name).filter(|text| !text.is_empty()).map(|text| (name, text));
        let either = |name: &str| named(name.to_lowercase()).or_else(|| named(name.to_string()));
        let all = either("ALL_PROXY");
        let in_cgi = variable("REQUEST_METHOD").is_some();
        let clear = if in_cgi { named("http_proxy".into()) } else { either("HTTP_PROXY") };
        let parse = |found: Option<(String, String)>| {
            found.or_else(|| all.clone()).map(|(name, text)| Proxy::parse(&name, &text))
        };
        let except = either("NO_PROXY").map(|(_, text)| text).unwrap_or_default();
        let except = except.split([',', ' ']).map(|part| part.trim().to_lowercase()).filter(|part| !part.is_empty());
        Proxies { clear: parse(clear), tls: parse(either("HTTPS_PROXY")), except: except.collect() }
    }

    pub fn choose(&self, tls: bool, host: &str, port: u16) -> Result<Option<Proxy>, String> {
        let proxy = if tls { &self.tls } else { &self.clear };
        let host = host.to_lowercase();
        // Processes next to Outrigger share its loopback, which no proxy can reach.
        let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let excepted = self.except.iter().any(|rule| matches(rule, &host, port));
        proxy.clone().filter(|_| !local && !excepted).transpose()
    }
}

/// `*`, `example.com` (and all subdomains), `.example.com`, each with an optional port.
fn matches(rule: &str, host: &str, port: u16) -> bool {
    let (rule, rule_port) = match rule.rsplit_once(':') {
        Some((name, number)) if !name.contains(':') => (name, number.parse::<u16>().ok()),
        _ => (rule, None),
    };
    let name = rule.trim_start_matches("*.").trim_start_matches('.');
    let named = rule == "*" || host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    named && rule_port.is_none_or(|wanted| wanted == port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_proxy_is_an_error_not_bypassed() {
        for (text, part) in [
            ("socks5://me:secret@p:1080", "scheme `socks5`"),
            ("https://p:1", "scheme `https`"),
            ("http://me:secret@p:99999", "`p:99999`, expected host"),
            ("http://", "expected host"),
        ] {
            let lookup = |name: &str| (name == "ALL_PROXY").then(|| text.to_string());
            let proxies = Proxies::from_environment(&lookup);
            let error = proxies.choose(true, "a.example", 443).expect_err(text);
            assert!(
                error.contains(part) && error.contains("ALL_PROXY") && !error.contains("secret"),
                "{text}: {error}"
            );
            assert_eq!(proxies.choose(true, "localhost", 443), Ok(None), "loopback needs no proxy");
        }
    }

    fn check(environment: &[(&str, &str)], tls: bool, host: &str, expect: Option<&str>) {
        let lookup = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        let chosen = Proxies::from_environment(&lookup).choose(tls, host, 443).expect("a proxy that can be used");
        assert_eq!(chosen.map(|proxy| format!("{proxy:?}")).as_deref(), expect, "{environment:?} {host}");
    }

    #[test]
    fn environment_selects_the_proxy_like_curl() {
        check(&[("HTTPS_PROXY", "http://u:p@proxy:3128")], true, "a.example", Some("proxy:3128"));
        check(&[("HTTPS_PROXY", "proxy")], true, "a.example", Some("proxy:80"));
        check(&[("HTTPS_PROXY", "proxy:1")], false, "a.example", None);
        check(&[("all_proxy", "proxy:1")], false, "a.example", Some("proxy:1"));
        check(&[("http_proxy", "low:1"), ("HTTP_PROXY", "up:1")], false, "a.example", Some("low:1"));
        check(&[("HTTP_PROXY", "up:1"), ("REQUEST_METHOD", "GET")], false, "a.example", None);
        for (rule, expect) in
            [("example", None), (".example", None), ("other", Some("p:1")), ("*", None), ("a.example:80", Some("p:1"))]
        {
            check(&[("ALL_PROXY", "p:1"), ("NO_PROXY", rule)], true, "a.example", expect);
        }
        check(&[("ALL_PROXY", "p:1")], true, "127.0.0.1", None);
    }

    #[test]
    fn proxy_credentials_are_sent_but_never_printed() {
        let proxy = Proxy::parse("HTTP_PROXY", "http://u:p@proxy:3128/").expect("a proxy");
        assert_eq!(proxy.authorization().as_deref(), Some("Basic dTpw"));
        assert!(!format!("{proxy:?}").contains("u:p"));
    }
}
