//! Errors of a connection to a git server, in the words of the side that reported them: gix passes on only that a read failed.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the way to the server has met, in the words of whoever met it: gix passes on only that a read failed.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Option<Report>>>);

pub struct Report {
    /// `UnexpectedEof`: the words with which the other side ended.
    pub kind: io::ErrorKind,
    pub text: String,
    /// How long the server asked to be left alone.
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
