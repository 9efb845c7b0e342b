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
