//! TLS for outgoing connections. In: certificate files. Out: a handshake with the system's roots, the built-in ones
//! if the system has none, or the configured CA. The client certificate is re-read for every connection, on a thread that may
//! block. Limits: `PEM_MAX` bytes per file.

use crate::config::Tls;

use crate::error::Error;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where systems store their bundle of roots.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The largest file of certificates or of a key; a system's bundle has a quarter of a megabyte.
const PEM_MAX: u64 = 4 << 20;

pub struct Factory {
    config: Arc<Tls>,
    /// Built at the first connection: a client that never speaks TLS costs nothing.
    shared: OnceLock<Arc<ClientConfig>>,
}

impl Factory {
    /// Checks the files once, so that an invalid path is an error at startup.
    pub fn new(config: &Tls) -> Result<Factory, Error> {
        if let Some(file) = &config.ca_file {
            read_certificates(file)?;
        }
        if config.cert_file.is_some() != config.key_file.is_some() {
            return Err(Error::us("cert_file and key_file belong together: set both or none").finally());
        }
        if config.cert_file.is_some() {
            build(config)?;
        }
        Ok(Factory { config: Arc::new(config.clone()), shared: OnceLock::new() })
    }

    pub async fn connect(&self, host: &str, port: u16, tcp: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
        let config = match self.shared.get() {
            Some(config) => config.clone(),
            None => {
                let config = self.config.clone();
                let built = tokio::task::spawn_blocking(move || build(&config)).await;
                let built = built.map_err(|_| Error::us("cannot read the certificates"))??;
                match self.config.cert_file {
                    Some(_) => built,
                    None => self.shared.get_or_init(|| built).clone(),
                }
            }
        };
        // RFC 6066, 3: without the trailing dot of an absolute name.
        let name = ServerName::try_from(host.trim_end_matches('.').to_string())
            .map_err(|_| Error::us(format!("`{host}` is not a valid TLS server name")).finally())?;
        let connected = TlsConnector::from(config).connect(name, tcp).await;
        connected.map_err(|error| Error::network(format!("TLS with {host}:{port}: {}", reason(&error, host))))
    }
}

/// Why TLS ended a connection after the handshake: a server that requires a client certificate reports that it is missing only then
/// (RFC 8446, 4.4.2.4 and appendix E.1.2).
pub fn late_reason(error: &hyper::Error, host: &str) -> Option<String> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(current) = cause {
        let io = current.downcast_ref::<std::io::Error>();
        if let Some(io) = io.filter(|io| io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())) {
            return Some(reason(io, host));
        }
        cause = current.source();
    }
    None
}

/// Why a handshake failed, and what may help. The text has no time and no detail that differs between attempts, so that a fault that
/// lasts is logged once.
fn reason(error: &std::io::Error, host: &str) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Invalid, Error as Tls};
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "closed during the handshake; check the port, or use http".into(),
            _ => error.to_string(),
        };
    };
    match tls {
        Tls::InvalidCertificate(Invalid::UnknownIssuer) => {
            "the issuer of its certificate is unknown; set tls.ca_file to the certificate of its CA".into()
        }
        Tls::InvalidCertificate(Invalid::BadSignature) => {
            "its certificate is signed by another key than that of its CA in tls.ca_file; use the CA's current certificate"
                .into()
        }
        Tls::InvalidCertificate(Invalid::Expired | Invalid::ExpiredContext { .. }) => {
            "its certificate has expired".into()
        }
        Tls::InvalidCertificate(Invalid::NotValidYet | Invalid::NotValidYetContext { .. }) => {
            "its certificate is not valid yet".into()
        }
        Tls::InvalidCertificate(Invalid::NotValidForName | Invalid::NotValidForNameContext { .. }) => {
            format!("its certificate is not valid for {host}")
        }
        Tls::InvalidCertificate(Invalid::Other(other)) if other.to_string().contains("CaUsedAsEndEntity") => {
            "its certificate is a CA certificate; it needs one of its own, with basicConstraints CA:FALSE".into()
        }
        Tls::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "the other side does not speak TLS; check the port, or use http".into()
        }
        Tls::AlertReceived(Alert::CertificateRequired | Alert::BadCertificate | Alert::UnknownCA) => {
            "the other side rejects the client certificate, or requires one; check tls.cert_file and tls.key_file"
                .into()
        }
        Tls::AlertReceived(Alert::HandshakeFailure) => {
            "the other side rejected the handshake; it may require a client certificate (tls.cert_file and tls.key_file), or share no version or cipher".into()
        }
        Tls::AlertReceived(alert) => format!("the other side rejected the handshake: alert {alert:?}"),
        other => other.to_string(),
    }
}

fn build(config: &Tls) -> Result<Arc<ClientConfig>, Error> {
    let roots = match &config.ca_file {
        Some(file) => Arc::new(store(read_certificates(file)?)),
        None => system_roots(),
    };
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match (&config.cert_file, &config.key_file) {
        (Some(cert), Some(key_file)) => {
            let chain = read_certificates(cert)?;
            let key = PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|error| unreadable(key_file, &error))?;
            let mismatch = |error| {
                let text = format!(
                    "the key in {} does not belong to the certificate in {}",
                    key_file.display(),
                    cert.display()
                );
                match error {
                    rustls::Error::InconsistentKeys(_) => Error::us(text),
                    other => Error::us(format!("{text}: {other}")),
                }
            };
            builder.with_client_auth_cert(chain, key).map_err(mismatch)?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Read once per process: parsing them costs more than a connection.
fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let system =
            bundles().filter_map(|file| read_certificates(&file).ok()).map(store).find(|roots| !roots.is_empty());
        Arc::new(system.unwrap_or_else(|| RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }))
    };
    ROOTS.get_or_init(load).clone()
}

/// Where a system's roots may be.
pub(crate) fn bundles() -> impl Iterator<Item = PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(SYSTEM_BUNDLES.iter().map(PathBuf::from))
}

/// A bundle may contain certificates of an unsupported kind; those are skipped.
fn store(certificates: Vec<CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    roots
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    match certificates {
        Ok(found) if found.is_empty() => Err(Error::us(format!("{} contains no PEM certificate", file.display()))),
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(file, &error)),
    }
}

/// Never blocks: a pipe or a device is rejected.
fn read(file: &Path) -> Result<Vec<u8>, Error> {
    base::system::file::read(file, PEM_MAX).map_err(|error| Error::us(format!("{error}")))
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::us(format!("cannot read {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_errors_have_a_cause_and_no_time() {
        let check = |error: rustls::Error, expect: &str| {
            let shown = reason(&std::io::Error::other(error), "loki.example");
            assert!(shown.contains(expect), "{shown}");
        };
        use rustls::{CertificateError as Invalid, Error as Tls};
        check(Tls::InvalidCertificate(Invalid::UnknownIssuer), "set tls.ca_file");
        check(Tls::InvalidCertificate(Invalid::NotValidForName), "not valid for loki.example");
        let webpki = rustls::OtherError(std::sync::Arc::new(std::io::Error::other("CaUsedAsEndEntity")));
        check(Tls::InvalidCertificate(Invalid::Other(webpki)), "CA:FALSE");
        check(Tls::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "does not speak TLS");
        check(Tls::AlertReceived(rustls::AlertDescription::CertificateRequired), "tls.cert_file");
        let context = |seconds| rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let expired = Invalid::ExpiredContext { time: context(9), not_after: context(7) };
        assert_eq!(
            reason(&std::io::Error::other(Tls::InvalidCertificate(expired)), "h"),
            "its certificate has expired"
        );
        assert_eq!(reason(&std::io::Error::other("reset"), "h"), "reset");
    }
}
