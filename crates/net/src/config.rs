//! The keys of every kind that uses HTTP or TLS as a client: declared once, written into each kind's `Config` by
//! `http_client!`, so that the schema, the documentation and the location of an error are those of plain keys.

use config::unit::{Secret, TimeSpan};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The values of those keys.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub timeout: TimeSpan,
    pub connect_timeout: TimeSpan,
    pub headers: BTreeMap<String, Secret>,
    pub auth: Option<Auth>,
    pub tls: Tls,
}

impl ClientConfig {
    /// Checks the files of certificates and keys.
    pub fn check_files(&self) -> Result<(), String> {
        crate::Client::new(self.clone()).map(drop).map_err(|error| error.to_string())
    }
}

/// Declares a `Config` with the keys of a client in addition to its own, and `fn client(&self) -> ClientConfig`.
#[macro_export]
macro_rules! http_client {
    (
        $(#[$about:meta])*
        pub struct $name:ident $fields:tt
    ) => {
        $crate::http_client! {
            default timeout "net::timeout";
            $(#[$about])*
            pub struct $name $fields
        }
    };
    (
        default timeout $timeout:literal;
        $(#[$about:meta])*
        pub struct $name:ident {
            $($(#[$field_about:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_about])* pub $field: $type,)*
            /// How long one attempt may take, from connecting to the last byte of the response.
            #[serde(default = $timeout)]
            pub timeout: config::unit::TimeSpan,
            /// How long name resolution, TCP and TLS together may take.
            #[serde(default = "net::connect_timeout")]
            pub connect_timeout: config::unit::TimeSpan,
            /// Headers added to each request; their values are secrets. Headers that the protocol needs cannot be replaced.
            #[serde(default)]
            pub headers: std::collections::BTreeMap<String, config::unit::Secret>,
            /// Authentication, exactly one kind. Default: the user and password in the URL, if any (basic).
            #[serde(default)]
            pub auth: Option<$crate::config::Auth>,
            /// Certificates for https.
            #[serde(default)]
            pub tls: $crate::config::Tls,
        }

        impl $name {
            /// The values of the keys that every client has.
            pub fn client(&self) -> $crate::ClientConfig {
                $crate::ClientConfig {
                    timeout: self.timeout,
                    connect_timeout: self.connect_timeout,
                    headers: self.headers.clone(),
                    auth: self.auth.clone(),
                    tls: self.tls.clone(),
                }
            }
        }
    };
}

/// In the `impl Kind` of a `Config` that `http_client!` declares and that has a `url`: its certificates and its ports.
#[macro_export]
macro_rules! http_kind {
    () => {
        fn check_system(&self) -> Result<(), String> {
            self.client().check_files()
        }

        fn needs(&self, _id: &str) -> config::needs::Needs {
            $crate::needs(self.url.as_str(), &self.client())
        }
    };
}

/// Exactly one way to authenticate.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// User name and password (RFC 7617).
    Basic(Basic),
    /// A token (RFC 6750).
    Bearer(Bearer),
    /// AWS Signature Version 4.
    Sigv4(Sigv4),
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-exactly-one" = ["password", "password_file"]))]
pub struct Basic {
    /// The user name (RFC 7617).
    pub username: String,
    /// The password itself, best as `${file:…}`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A file with the password, re-read for each attempt, at most 64KiB. Instead of `password`.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-exactly-one" = ["token", "token_file"]))]
pub struct Bearer {
    /// The token itself (RFC 6750), best as `${file:…}`.
    #[serde(default)]
    #[schemars(extend("minLength" = 1))]
    pub token: Option<Secret>,
    /// A file with the token, re-read for each attempt, at most 64KiB. Instead of `token`.
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
    /// The access key's id. Default: `AWS_ACCESS_KEY_ID`.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// The secret key. Default: `AWS_SECRET_ACCESS_KEY`, with `AWS_SESSION_TOKEN` if it is set.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependentRequired" = { "cert_file": ["key_file"], "key_file": ["cert_file"] }))]
pub struct Tls {
    /// A PEM file with the certificates to trust. Default: `SSL_CERT_FILE`, else the system's, else Mozilla's, which are built
    /// in.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the client certificate chain, re-read for each connection. Requires `key_file`.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// A PEM file with the private key of the client certificate. Requires `cert_file`.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
}

pub fn timeout() -> TimeSpan {
    TimeSpan::from_secs(30)
}

pub fn connect_timeout() -> TimeSpan {
    TimeSpan::from_secs(5)
}
