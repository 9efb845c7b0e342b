//! The sources, each with its last snapshot. In: snapshots of the collectors. Out: the latest ones, for the sinks that are read.

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
    /// Its path in the configuration, which health calls it by.
    pub id: String,
    pub source: Rc<dyn Source>,
    /// A second one for the page, so that a reading takes nothing from what is pushed.
    pub for_page: Rc<dyn Source>,
    pub last: RefCell<Option<Rc<Snapshot>>>,
}

impl Sources {
    /// The last snapshot of each source; local ones are asked now.
    pub async fn latest(&self) -> Vec<Rc<Snapshot>> {
        let mut snapshots = Vec::new();
        for entry in &self.entries {
            if entry.for_page.is_local() {
                snapshots.extend(entry.for_page.collect().await.snapshot.map(Rc::new));
            } else {
                snapshots.extend(entry.last.borrow().clone());
            }
        }
        snapshots
    }

    /// The last samples of what is scraped, as a page; targets may not answer any more.
    pub fn last_page(&self) -> String {
        let scraped = self.entries.iter().filter(|entry| !entry.for_page.is_local());
        let snapshots: Vec<_> = scraped.filter_map(|entry| entry.last.borrow().clone()).collect();
        let mut page = String::new();
        crate::text::write(&snapshots, &mut page);
        page
    }

    pub fn set(&self, index: usize, snapshot: Rc<Snapshot>) {
        if let Some(entry) = self.entries.get(index) {
            *entry.last.borrow_mut() = Some(snapshot);
        }
    }
}
