//! Typed values of the configuration: durations, sizes and secrets. In: the text of one scalar. Out: a value that
//! is always valid and prints in the syntax of the configuration. A secret is never printed.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// A duration in the syntax of the configuration: `250ms`, `25s`, `5m`, `2h`, `1d`, also combined, as `1m30s`. `0s` is allowed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

/// A number of bytes in the syntax of the configuration: `512`, `64KiB`, `8MiB`, `1GiB`; also decimal `kB`, `MB`, `GB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A value that is never printed: not in errors, logs, `/config` or the admin page.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// An IP address with a port, such as `127.0.0.1:8080` or `[::1]:8080`. Port 0 is rejected: the chosen port would not be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub std::net::SocketAddr);

/// An http or https URL. Its credentials are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(String);

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl TimeSpan {
    /// The longest duration: sums of a few never overflow a clock.
    pub const MAX: TimeSpan = TimeSpan::from_secs(36_500 * 24 * 3600);

    pub const fn from_secs(seconds: u64) -> TimeSpan {
        TimeSpan(Duration::from_secs(seconds))
    }

    pub const fn from_millis(milliseconds: u64) -> TimeSpan {
        TimeSpan(Duration::from_millis(milliseconds))
    }

    /// Reads `1m30s`. The error is only the reason; the caller knows the location.
    pub fn parse(text: &str) -> Result<TimeSpan, String> {
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err("is empty, expected a duration such as 25s".into());
        }
        let mut total_ms: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let (unit, next) = tail.split_at(letters);
            let number: u64 = number.parse().map_err(|_| duration_reason(text))?;
            let scale = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| duration_reason(text))?.1;
            total_ms = number
                .checked_mul(scale)
                .and_then(|ms| total_ms.checked_add(ms))
                .filter(|ms| *ms <= Self::MAX.0.as_millis() as u64)
                .ok_or_else(|| format!("duration `{text}` is too large: at most {}", Self::MAX))?;
            rest = next;
        }
        Ok(TimeSpan(Duration::from_millis(total_ms)))
    }
}

fn duration_reason(text: &str) -> String {
    format!("`{text}` is not a duration: write a number and its unit, such as 250ms, 25s, 5m, 2h")
}

impl ByteSize {
    /// The largest size: sums of many never overflow 64 bits.
    pub const MAX: ByteSize = ByteSize(1 << 50);

    /// Reads `64MiB`. The error is only the reason; the caller knows the location.
    pub fn parse(text: &str) -> Result<ByteSize, String> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim();
        let reason = || format!("`{text}` is not a size: write a number and its unit, such as 512KiB, 64MiB, 1GiB");
        let number: u64 = number.parse().map_err(|_| reason())?;
        let scale = match unit {
            "" => 1,
            _ => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(reason)?.1,
        };
        let size = number.checked_mul(scale).map(ByteSize).filter(|size| *size <= Self::MAX);
        size.ok_or_else(|| format!("size `{text}` is too large: at most {}", Self::MAX))
    }

    pub const fn mib(number: u64) -> ByteSize {
        ByteSize(number << 20)
    }

    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Address {
    /// Reads `127.0.0.1:8080`. The error is only the reason; the caller knows the location.
    pub fn parse(text: &str) -> Result<Address, String> {
        match text.parse::<std::net::SocketAddr>() {
            Ok(address) if address.port() == 0 => {
                Err(format!("`{text}`: port 0 is not allowed, since the chosen port would not be known"))
            }
            Ok(address) => Ok(Address(address)),
            Err(_) => Err(format!(
                "`{text}` is not an address: write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080"
            )),
        }
    }
}

impl Url {
    /// Checks scheme and host; the server validates the rest.
    pub fn parse(text: &str) -> Result<Url, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let authority = rest.split(['/', '?']).next().unwrap_or("");
        let host = authority.rsplit('@').next().unwrap_or("");
        let valid = matches!(scheme, "http" | "https") && !host.is_empty() && !text.contains(char::is_whitespace);
        let shown = crate::diag::hide_userinfo(text);
        valid
            .then(|| Url(text.into()))
            .ok_or_else(|| format!("`{shown}` is not a URL: write http://host:port/path or https://…"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::diag::hide_userinfo(&self.0))
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The value itself, only for the code that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (name, scale) =
            DURATION_UNITS.iter().rev().find(|(_, scale)| ms > 0 && ms % scale == 0).unwrap_or(&("s", 1_000));
        write!(f, "{}{name}", ms / scale)
    }
}

impl fmt::Debug for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match binary.iter().find(|(_, scale)| self.0 > 0 && self.0.is_multiple_of(*scale)) {
            Some((name, scale)) => write!(f, "{}{name}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! text_type {
    ($type:ident, $format:literal, $about:literal, $read:expr, $write:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                $read(&text).map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&$write(self))
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "description": $about })
            }
        }
    };
}

text_type!(TimeSpan, "duration", "A duration: 250ms, 25s, 5m, 2h", TimeSpan::parse, ToString::to_string);
text_type!(ByteSize, "size", "A number of bytes: 512KiB, 64MiB, 1GiB", ByteSize::parse, ToString::to_string);
text_type!(Address, "address", "An IP address and a port: 127.0.0.1:8080", Address::parse, |a: &Address| a
    .0
    .to_string());
text_type!(Url, "url", "An http or https URL", Url::parse, |url: &Url| crate::diag::hide_userinfo(&url.0));
text_type!(
    Secret,
    "secret",
    "A secret: best as ${file:/path} or ${NAME}, never printed",
    |text: &str| Ok::<_, String>(Secret::new(text)),
    |_: &Secret| "(secret)".to_string()
);

#[cfg(test)]
mod tests {
    use super::*;

    fn check_span(text: &str, expect: Result<u64, &str>) {
        match (TimeSpan::parse(text), expect) {
            (Ok(span), Ok(ms)) => assert_eq!(span.0.as_millis() as u64, ms, "{text}"),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{text}: {reason}"),
            (got, want) => panic!("{text}: got {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn durations_parse() {
        check_span("25s", Ok(25_000));
        check_span("250ms", Ok(250));
        check_span("1m30s", Ok(90_000));
        check_span("0s", Ok(0));
        check_span("25", Err("not a duration"));
        check_span("s", Err("not a duration"));
        check_span("5 s", Err("not a duration"));
        check_span("99999999999999999999s", Err("not a duration"));
        check_span("999999999999999999d", Err("too large"));
        check_span("", Err("empty"));
    }

    fn check_size(text: &str, expect: Result<u64, &str>) {
        match (ByteSize::parse(text), expect) {
            (Ok(size), Ok(bytes)) => assert_eq!(size.0, bytes, "{text}"),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{text}: {reason}"),
            (got, want) => panic!("{text}: got {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn sizes_parse_and_print_back() {
        check_size("64MiB", Ok(64 << 20));
        check_size("64 MiB", Ok(64 << 20));
        check_size("512", Ok(512));
        check_size("1kB", Ok(1_000));
        check_size("64mb", Err("not a size"));
        check_size("-1", Err("not a size"));
        check_size("99999999999GiB", Err("too large"));
        for text in ["64MiB", "1GiB", "513", "2KiB"] {
            assert_eq!(ByteSize::parse(text).map(|size| size.to_string()), Ok(text.to_string()));
        }
    }

    #[test]
    fn secret_prints_only_a_placeholder() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "(secret)");
        assert_eq!(serde_json::to_string(&secret).ok().as_deref(), Some("\"(secret)\""));
        assert_eq!(secret.reveal(), "hunter2");
    }
}
