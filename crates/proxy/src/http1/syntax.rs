//! What requests, responses and their parsers share: methods, tokens, and why a message is rejected.

/// Why a request is rejected, with the status of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

pub const fn refuse(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

macro_rules! methods {
    ($($name:ident $text:literal),+) => {
        /// The known methods; every other one counts under one label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Method { $($name),+, Other }

        impl Method {
            pub fn as_str(self) -> &'static str {
                match self { $(Method::$name => $text),+, Method::Other => "_OTHER" }
            }

            pub fn of(text: &str) -> Method {
                match text { $($text => Method::$name),+, _ => Method::Other }
            }
        }
    };
}

methods!(Get "GET", Head "HEAD", Post "POST", Put "PUT", Delete "DELETE", Options "OPTIONS", Trace "TRACE", Patch "PATCH", Connect "CONNECT");

impl Method {
    /// RFC 9110, 9.2.2: sending it twice has the same effect as once.
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Method::Post | Method::Patch | Method::Connect | Method::Other)
    }
}

/// RFC 9110, 5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
