//! What a person writes under `client` of anything that calls out.

use base::unit::{Secret, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How to reach and convince the other side. All of it may be left out.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// How long one attempt may take, from connecting to the last byte of the answer.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// How long connecting, with TLS, may take.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// Headers added to every request. Those that the protocol itself needs cannot be replaced.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How we identify ourselves.
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Certificates for https.
    #[serde(default)]
    pub tls: Tls,
}

/// Exactly one way to authenticate.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// User name and password (RFC 7617).
    Basic(Basic),
    /// A token (RFC 6750).
    Bearer(Bearer),
    /// A signature of AWS, version 4.
    Sigv4(Sigv4),
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// The user name.
    pub username: String,
    /// The password itself, best as ${file:…}; `password_file` is read anew for every attempt.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A file that holds the password, read anew for every attempt.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bearer {
    /// The token itself.
    #[serde(default)]
    pub token: Option<Secret>,
    /// A file that holds the token, read anew for every attempt, as for projected service account tokens.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sigv4 {
    /// The region, such as eu-central-1.
    pub region: String,
    /// The service, such as aps.
    pub service: String,
    /// The access key's id; where it is left out, AWS_ACCESS_KEY_ID is read.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// The secret key; where it is left out, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN are read.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with the certificates to trust instead of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A PEM file with our certificate chain, read anew for every connection.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// A PEM file with the key of our certificate.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            timeout: timeout(),
            connect_timeout: connect_timeout(),
            headers: BTreeMap::new(),
            auth: None,
            tls: Tls::default(),
        }
    }
}

fn timeout() -> Span {
    Span::from_secs(30)
}

fn connect_timeout() -> Span {
    Span::from_secs(5)
}
