//! Credentials for one attempt. In: the configuration, whose files are re-read each time, so that a rotated secret takes
//! effect immediately. Out: headers, marked as sensitive.

use crate::config::{Auth, Basic, Bearer};
use crate::error::Error;
use crate::sigv4;
use base64::Engine as _;
use config::unit::Secret;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Uri};
use std::path::Path;

/// A credential is short; a larger file is not one.
const CREDENTIAL_MAX: u64 = 64 << 10;

pub fn apply(
    auth: Option<&Auth>,
    uri: &Uri,
    method: &Method,
    body: &[u8],
    headers: &mut HeaderMap,
) -> Result<(), Error> {
    let value = match auth {
        None => match uri.authority().and_then(|authority| authority.as_str().rsplit_once('@')) {
            // A user without a password, such as a token, has an empty one (RFC 7617, 2).
            Some((user, _)) if !user.contains(':') => basic(&percent_decoded(format!("{user}:").as_bytes())),
            Some((credentials, _)) => basic(&percent_decoded(credentials.as_bytes())),
            None => return Ok(()),
        },
        Some(Auth::Basic(config)) => basic(format!("{}:{}", config.username, password(config)?).as_bytes()),
        Some(Auth::Bearer(bearer)) => format!("Bearer {}", token(bearer)?),
        Some(Auth::Sigv4(config)) => {
            let now = jiff::Timestamp::now();
            return sigv4::sign(config, method, uri, body, &now, &|name| std::env::var(name).ok(), headers);
        }
    };
    let mut value = HeaderValue::from_str(&value)
        .map_err(|_| Error::us("the credentials contain a character that is not allowed in a header"))?;
    value.set_sensitive(true);
    headers.insert(http::header::AUTHORIZATION, value);
    Ok(())
}

fn password(basic: &Basic) -> Result<String, Error> {
    either(basic.password.as_ref(), basic.password_file.as_deref(), "password")
}

fn token(bearer: &Bearer) -> Result<String, Error> {
    either(bearer.token.as_ref(), bearer.token_file.as_deref(), "token")
}

fn either(given: Option<&Secret>, file: Option<&Path>, key: &str) -> Result<String, Error> {
    match (given, file) {
        (Some(secret), None) => Ok(secret.reveal().to_string()),
        (None, Some(file)) => read_credential(file),
        _ => Err(Error::us(format!("set exactly one of {key} and {key}_file")).finally()),
    }
}

fn read_credential(file: &Path) -> Result<String, Error> {
    let bytes = base::system::file::read(file, CREDENTIAL_MAX).map_err(|error| Error::us(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::us(format!("{} is not UTF-8", file.display())))?;
    Ok(text.trim_end().to_string())
}

/// RFC 7617, 2.
fn basic(credentials: &[u8]) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials))
}

/// A part of a URL without its percent-encoding (RFC 3986, 2.1); a `%` without two digits is literal.
pub fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let pair = tail.get(..2).filter(|_| *first == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or(&[]);
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(auth: Option<&Auth>, url: &str) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        let uri: Uri = url.parse().expect("a URL");
        apply(auth, &uri, &Method::GET, b"", &mut headers).map_err(|error| error.to_string())?;
        let value = headers.get("authorization").map_or("", |value| value.to_str().unwrap_or("?"));
        Ok(value.to_string())
    }

    #[test]
    fn credentials_from_key_url_or_reread_file() {
        let basic = Auth::Basic(Basic { username: "u".into(), password: Some(Secret::new("p")), password_file: None });
        assert_eq!(header(Some(&basic), "http://h/").as_deref(), Ok("Basic dTpw"));
        assert_eq!(header(None, "http://u:p@h/").as_deref(), Ok("Basic dTpw"));
        assert_eq!(header(None, "http://h/").as_deref(), Ok(""));
        let file = std::env::temp_dir().join(format!("outrigger-token-{}", std::process::id()));
        let bearer = Auth::Bearer(Bearer { token: None, token_file: Some(file.clone()) });
        for token in ["one", "two"] {
            std::fs::write(&file, format!("{token}\n")).expect("a temporary file");
            assert_eq!(header(Some(&bearer), "http://h/"), Ok(format!("Bearer {token}")));
        }
        std::fs::remove_file(&file).expect("the file exists");
        assert!(header(Some(&bearer), "http://h/").is_err_and(|text| text.contains("No such file")));
        let neither = Auth::Bearer(Bearer { token: None, token_file: None });
        assert!(header(Some(&neither), "http://h/").is_err_and(|text| text.contains("exactly one")));
    }
}
