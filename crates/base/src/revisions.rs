//! Which revision of each directory is published, for the page, the status and whoever watches. In: what sync publishes. Out: a
//! list. Bound: one entry per configured directory.

use crate::subsystem::lock;
use std::sync::{Arc, Mutex};

/// What is published of one entry.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Revision {
    pub entry: String,
    /// Where it comes from, without credentials.
    pub store: String,
    pub to: String,
    /// None while nothing is published yet.
    pub revision: Option<String>,
}

#[derive(Clone, Default)]
pub struct Revisions {
    inner: Arc<Mutex<Vec<Entry>>>,
}

/// What is published, and which revision the app was told of last.
type Entry = (Revision, Option<String>);

impl Revisions {
    pub fn set(&self, revision: Revision) {
        let mut all = lock(&self.inner);
        match all.iter_mut().find(|(known, _)| known.entry == revision.entry) {
            Some((known, _)) => *known = revision,
            None => all.push((revision, None)),
        }
    }

    pub fn list(&self) -> Vec<Revision> {
        lock(&self.inner).iter().map(|(revision, _)| revision.clone()).collect()
    }

    /// The revision that the app was last told of, by this process.
    pub fn told(&self, entry: &str) -> Option<String> {
        lock(&self.inner).iter().find(|(known, _)| known.entry == entry).and_then(|(_, told)| told.clone())
    }

    pub fn set_told(&self, entry: &str, revision: &str) {
        if let Some((_, told)) = lock(&self.inner).iter_mut().find(|(known, _)| known.entry == entry) {
            *told = Some(revision.to_string());
        }
    }
}
