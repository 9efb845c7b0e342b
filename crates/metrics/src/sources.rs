//! The sources, each with its last snapshot. In: snapshots of the collectors. Out: the latest ones, for sinks that are scraped.

use crate::series::Snapshot;
use crate::source::Source;
use std::cell::RefCell;
use std::rc::Rc;

/// The sources, each with its last snapshot.
pub struct Sources {
    pub entries: Vec<Entry>,
}

pub struct Entry {
    pub name: String,
    /// Its path in the configuration, its id in health and log.
    pub id: String,
    pub source: Rc<dyn Source>,
    /// A second instance for scrapes of the exposition, so that they do not change what is pushed.
    pub for_scrapes: Rc<dyn Source>,
    pub last: RefCell<Option<Rc<Snapshot>>>,
}

impl Sources {
    /// The last snapshot of each source; local sources are collected now.
    pub async fn latest(&self) -> Vec<Rc<Snapshot>> {
        let mut snapshots = Vec::new();
        for entry in &self.entries {
            if entry.for_scrapes.is_local() {
                snapshots.extend(entry.for_scrapes.collect().await.snapshot.map(Rc::new));
            } else {
                snapshots.extend(entry.last.borrow().clone());
            }
        }
        snapshots
    }

    /// The last samples of the scraped targets, in the text format; the targets may not respond any more.
    pub fn last_exposition(&self) -> String {
        let scraped = self.entries.iter().filter(|entry| !entry.for_scrapes.is_local());
        let snapshots: Vec<_> = scraped.filter_map(|entry| entry.last.borrow().clone()).collect();
        let mut exposition = String::new();
        crate::text::write(&snapshots, &mut exposition);
        exposition
    }

    pub fn set(&self, index: usize, snapshot: Rc<Snapshot>) {
        if let Some(entry) = self.entries.get(index) {
            *entry.last.borrow_mut() = Some(snapshot);
        }
    }
}
