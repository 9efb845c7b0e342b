//! The last requests of one data thread, for the black box. In: what the forwarder knows when a request ends. Out: JSON, on
//! request. Limits: `KEPT` requests, `PATH_KEPT` bytes of each path; the query is omitted, since it may contain tokens.

use crate::access::Record;
use base::sync::lock;
use base::text::rfc3339;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

const KEPT: usize = 64;
const PATH_KEPT: usize = 96;

#[derive(Default)]
pub struct Recent {
    entries: Mutex<(Vec<Entry>, usize)>,
}

struct Entry {
    ended: SystemTime,
    /// Its index in the plan.
    listener: usize,
    method: [u8; 8],
    path: [u8; PATH_KEPT],
    path_length: usize,
    status: u16,
    took: Duration,
}

impl Recent {
    pub fn note(&self, listener: usize, record: &Record<'_>) {
        let (mut method, mut path) = ([0; 8], [0; PATH_KEPT]);
        let method_length = record.method.len().min(method.len());
        let query = memchr::memchr(b'?', record.path).unwrap_or(record.path.len());
        let path_length = query.min(PATH_KEPT);
        // Both lengths are clamped to fit.
        if let (Some(to), Some(from)) = (method.get_mut(..method_length), record.method.as_bytes().get(..method_length))
        {
            to.copy_from_slice(from);
        }
        if let (Some(to), Some(from)) = (path.get_mut(..path_length), record.path.get(..path_length)) {
            to.copy_from_slice(from);
        }
        let entry = Entry {
            ended: SystemTime::now(),
            listener,
            method,
            path,
            path_length,
            status: record.status,
            took: record.took,
        };
        let mut entries = lock(&self.entries);
        let (list, next) = &mut *entries;
        match list.get_mut(*next) {
            Some(slot) => *slot = entry,
            None => list.push(entry),
        }
        *next = (*next + 1) % KEPT;
    }

    /// Each request as an object, in no particular order. `name`: the name of a listener by its index.
    pub fn list(&self, name: &dyn Fn(usize) -> String) -> Vec<serde_json::Value> {
        lock(&self.entries).0.iter().map(|entry| entry.json(name(entry.listener))).collect()
    }
}

impl Entry {
    fn json(&self, listener: String) -> serde_json::Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
        serde_json::json!({
            "timestamp": rfc3339(self.ended),
            "listener": listener,
            "method": text(&self.method),
            "path": text(self.path.get(..self.path_length).unwrap_or(&[])),
            "status": self.status,
            "duration_ms": self.took.as_micros() as f64 / 1000.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_newest_requests_and_truncates_paths() {
        let recent = Recent::default();
        let path = [&[b'a'; 500][..], b"?token=x"].concat();
        for status in 0..KEPT as u16 + 10 {
            let record = Record {
                listener: "in",
                cluster: "app",
                client: ([127, 0, 0, 1], 1).into(),
                endpoint: None,
                method: "PROPPATCH-LONGER",
                path: &path,
                status,
                took: Duration::from_millis(3),
                bytes_received: 0,
                bytes_sent: 0,
                ended_by: None,
                reason: None,
            };
            recent.note(0, &record);
        }
        let list = recent.list(&|index| format!("listener {index}"));
        let statuses: Vec<u64> = list.iter().filter_map(|entry| entry["status"].as_u64()).collect();
        assert_eq!((list.len(), statuses.iter().min(), statuses.iter().max()), (KEPT, Some(&10), Some(&73)));
        assert_eq!(list[0]["path"].as_str().map(str::len), Some(PATH_KEPT));
        assert_eq!((list[0]["method"].as_str(), list[0]["duration_ms"].as_f64()), (Some("PROPPATC"), Some(3.0)));
    }
}
