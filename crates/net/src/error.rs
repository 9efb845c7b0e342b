//! Why a call failed: the text, the blame, and whether a retry can help.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The configuration or a local file.
    Us,
    /// The network path: names, connections, timeouts, TLS.
    Network,
    /// The receiver sent an unexpected response.
    Receiver,
}

/// One failed attempt. The text never contains credentials.
#[derive(Clone, Debug)]
pub struct Error {
    pub blame: Blame,
    pub retry: bool,
    text: String,
}

impl Error {
    pub fn us(text: impl Into<String>) -> Error {
        Error { blame: Blame::Us, retry: true, text: text.into() }
    }

    pub fn network(text: impl Into<String>) -> Error {
        Error { blame: Blame::Network, retry: true, text: text.into() }
    }

    pub fn receiver(text: impl Into<String>) -> Error {
        Error { blame: Blame::Receiver, retry: true, text: text.into() }
    }

    /// A retry would give the same result.
    #[must_use]
    pub fn finally(mut self) -> Error {
        self.retry = false;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&config::diag::hide_userinfo(&self.text))
    }
}

impl std::error::Error for Error {}
