//! Errors of a connection to a git server, as reported by the side that detected them: gix passes on only that a read failed.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The error of a connection, as reported by the side that detected it: gix passes on only that a read failed.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Option<Report>>>);

pub struct Report {
    /// `UnexpectedEof`: the last output of the other side before the end of the stream.
    pub kind: io::ErrorKind,
    pub text: String,
    /// The delay that the server requested.
    pub wait: Option<Duration>,
}

impl Reports {
    pub fn take(&self) -> Option<Report> {
        base::sync::lock(&self.0).take()
    }

    pub fn put(&self, kind: io::ErrorKind, text: String, wait: Option<Duration>) -> io::Error {
        *base::sync::lock(&self.0) = Some(Report { kind, text: text.clone(), wait });
        io::Error::new(kind, text)
    }
}
