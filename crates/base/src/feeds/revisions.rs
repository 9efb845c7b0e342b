//! The published revision of each directory, for the page, the status and metrics. In: revisions from sync. Out: a list.
//! Limits: one entry per configured directory.

use crate::sync::lock;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// The published revision of one entry.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Revision {
    pub entry: String,
    /// Its store, without credentials.
    pub store: String,
    /// The path at which it is published.
    pub path: String,
    /// None before the first publication.
    pub revision: Option<String>,
    /// When the path was switched to it (RFC 3339).
    #[serde(serialize_with = "rfc3339")]
    pub published_at: Option<SystemTime>,
}

fn rfc3339<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&time.map(crate::text::rfc3339), serializer)
}

#[derive(Clone, Default)]
pub struct Revisions {
    inner: Arc<Mutex<Vec<Revision>>>,
}

impl Revisions {
    pub fn set(&self, revision: Revision) {
        let mut all = lock(&self.inner);
        match all.iter_mut().find(|known| known.entry == revision.entry) {
            Some(known) => *known = revision,
            None => all.push(revision),
        }
    }

    pub fn list(&self) -> Vec<Revision> {
        lock(&self.inner).clone()
    }
}
