//! What a client needs from the system before it can connect: ports, certificates, credentials. In: a URL and a client's
//! configuration. Out: a list for the worker's sandbox.

use crate::config::{Auth, ClientConfig};
use crate::proxies::Proxies;
use crate::tls::bundles;
use config::needs::Needs;
use std::path::PathBuf;

/// Names are looked up over UDP, and over TCP if an answer is too long for UDP (RFC 7766).
const DNS: u16 = 53;

pub fn needs(url: &str, config: &ClientConfig) -> Needs {
    let mut needs = Needs::default();
    if let Ok(uri) = url.parse::<http::Uri>() {
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let proxies = Proxies::from_environment(&|name| std::env::var(name).ok());
        needs.connect.push(port);
        needs.connect.push(DNS);
        needs
            .connect
            .extend(proxies.choose(tls, uri.host().unwrap_or(""), port).ok().flatten().map(|proxy| proxy.port));
        if tls && config.tls.ca_file.is_none() {
            needs.read.extend(bundles());
        }
    }
    needs.read.extend(["/etc/resolv.conf", "/etc/hosts"].map(PathBuf::from));
    for file in [&config.tls.ca_file, &config.tls.cert_file, &config.tls.key_file].into_iter().flatten() {
        needs.read_replaced(file);
    }
    match &config.auth {
        Some(Auth::Basic(basic)) => basic.password_file.iter().for_each(|file| needs.read_replaced(file)),
        Some(Auth::Bearer(bearer)) => bearer.token_file.iter().for_each(|file| needs.read_replaced(file)),
        Some(Auth::Sigv4(_)) | None => {}
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_needs_port_and_token_file_its_directory() {
        let config = ClientConfig {
            auth: Some(Auth::Bearer(crate::config::Bearer { token: None, token_file: Some("/run/t/token".into()) })),
            timeout: crate::timeout(),
            connect_timeout: crate::connect_timeout(),
            headers: Default::default(),
            tls: Default::default(),
        };
        let ports = |url: &str| needs(url, &config).connect;
        assert!(ports("http://loki:3100/x").contains(&3100));
        assert!(ports("http://loki/x").contains(&80) && ports("https://loki/x").contains(&443));
        assert!(needs("http://loki", &config).read.contains(&PathBuf::from("/run/t")));
    }
}
