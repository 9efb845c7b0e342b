//! AWS Signature Version 4 (docs.aws.amazon.com, "Create a signed AWS API request"). In: a request and keys. Out: the headers
//! that sign it. All headers present are signed, in canonical order; the body's SHA-256 is part of the signature.

use crate::config::Sigv4;
use crate::error::Error;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Uri};
use ring::{digest, hmac};
use std::fmt::Write as _;

pub fn sign(
    config: &Sigv4,
    method: &Method,
    uri: &Uri,
    body: &[u8],
    now: &jiff::Timestamp,
    variable: &dyn Fn(&str) -> Option<String>,
    headers: &mut HeaderMap,
) -> Result<(), Error> {
    let missing = |name: &str| {
        Error::us(format!("sigv4 requires keys: set them in the configuration, or {name} in the environment"))
    };
    let key_id = config
        .access_key_id
        .clone()
        .or_else(|| variable("AWS_ACCESS_KEY_ID"))
        .ok_or_else(|| missing("AWS_ACCESS_KEY_ID"))?;
    let (secret, session) = match &config.secret_access_key {
        Some(secret) => (secret.reveal().to_string(), None),
        None => (
            variable("AWS_SECRET_ACCESS_KEY").ok_or_else(|| missing("AWS_SECRET_ACCESS_KEY"))?,
            variable("AWS_SESSION_TOKEN"),
        ),
    };
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = time.get(..8).unwrap_or_default().to_string();
    put(headers, "x-amz-date", &time)?;
    if let Some(session) = session {
        put(headers, "x-amz-security-token", &session)?;
    }
    let (canonical_headers, signed) = canonical_headers(headers);
    let body_hash = hex(digest::digest(&digest::SHA256, body).as_ref());
    let canonical = format!(
        "{method}\n{}\n{}\n{canonical_headers}\n{signed}\n{body_hash}",
        encode_path(uri.path()),
        canonical_query(uri.query().unwrap_or(""))
    );
    let scope = format!("{date}/{}/{}/aws4_request", config.region, config.service);
    let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
    let mut key = hmac_sha256(format!("AWS4{secret}").as_bytes(), date.as_bytes());
    for part in [config.region.as_str(), config.service.as_str(), "aws4_request"] {
        key = hmac_sha256(&key, part.as_bytes());
    }
    let signature = hex(&hmac_sha256(&key, to_sign.as_bytes()));
    let value = format!("AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={signed}, Signature={signature}");
    put(headers, "authorization", &value)
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Error> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::us(format!("`{name}` contains a character that is not allowed in a header")))?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

fn canonical_headers(headers: &HeaderMap) -> (String, String) {
    // What a hop may change is not signed.
    let mut names: Vec<&str> = headers.keys().map(|name| name.as_str()).filter(|name| *name != "user-agent").collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in &names {
        let values: Vec<&str> =
            headers.get_all(*name).iter().filter_map(|value| value.to_str().ok()).map(str::trim).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}:{}", values.join(","));
    }
    (text, names.join(";"))
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// A path that is percent-encoded already is encoded once more, as every service except S3 requires.
fn encode_path(path: &str) -> String {
    path.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte as char),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::unit::Secret;

    /// The published example "get-vanilla" of AWS's Signature Version 4 test suite.
    #[test]
    fn aws_example_gives_its_published_signature() {
        let config = Sigv4 {
            region: "us-east-1".into(),
            service: "service".into(),
            access_key_id: Some("AKIDEXAMPLE".into()),
            secret_access_key: Some(Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")),
        };
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("example.amazonaws.com"));
        let now: jiff::Timestamp = "2015-08-30T12:36:00Z".parse().expect("a time");
        let uri: Uri = "https://example.amazonaws.com/".parse().expect("a URL");
        sign(&config, &Method::GET, &uri, b"", &now, &|_| None, &mut headers).expect("signed");
        assert_eq!(
            headers["authorization"],
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    #[test]
    fn missing_keys_are_reported_by_variable() {
        let config = Sigv4 { region: "r".into(), service: "s".into(), access_key_id: None, secret_access_key: None };
        let uri: Uri = "https://h/".parse().expect("a URL");
        let error =
            sign(&config, &Method::GET, &uri, b"", &jiff::Timestamp::UNIX_EPOCH, &|_| None, &mut HeaderMap::new());
        assert!(error.is_err_and(|error| error.to_string().contains("AWS_ACCESS_KEY_ID")));
    }
}
