//! Access records: one JSON object per request, collected per thread and offered to a feed in batches. In: what the
//! forwarder knows at a request's end. Out: lines. Bounds: `BATCH_BYTES` or `BATCH_WAIT`, whatever comes first; paths are
//! cut at `PATH_MAX`, and their query is left out, since tokens travel there.

use base::feed::{AccessBatch, FeedSender};
use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

const BATCH_BYTES: usize = 64 << 10;
const BATCH_WAIT: Duration = Duration::from_millis(100);
pub const PATH_MAX: usize = 1024;

pub struct Access {
    feed: FeedSender<AccessBatch>,
    batch: RefCell<AccessBatch>,
    begun: Notify,
}

/// What is known of a request at its end.
pub struct Record<'a> {
    pub listener: &'a str,
    pub cluster: &'a str,
    pub client: SocketAddr,
    pub endpoint: Option<SocketAddr>,
    pub method: &'a str,
    pub path: &'a [u8],
    pub status: u16,
    pub took: Duration,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Who ended the request before its time: `client` or `endpoint`.
    pub ended_by: Option<&'static str>,
}

impl Access {
    pub fn new(feed: FeedSender<AccessBatch>) -> Rc<Access> {
        Rc::new(Access { feed, batch: RefCell::default(), begun: Notify::new() })
    }

    pub fn record(&self, record: &Record<'_>) {
        let mut batch = self.batch.borrow_mut();
        if batch.lines.is_empty() {
            self.begun.notify_one();
        }
        write_record(record, &mut batch.lines);
        let end = batch.lines.len() as u32;
        batch.ends.push(end);
        if batch.lines.len() >= BATCH_BYTES {
            drop(batch);
            self.flush();
        }
    }

    pub fn flush(&self) {
        let batch = self.batch.take();
        let (bytes, records) = (batch.lines.len(), batch.ends.len() as u64);
        if records > 0 {
            // A feed that is full has counted what it refused.
            self.feed.offer(batch, bytes, records);
        }
    }

    /// Flushes what has waited for a while; sleeps while nothing does.
    pub async fn flush_now_and_then(self: Rc<Access>) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(BATCH_WAIT).await;
            self.flush();
        }
    }
}

fn write_record(record: &Record<'_>, out: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "{{\"time_ms\":{},\"listener\":\"{}\",\"cluster\":\"{}\",\"client\":\"{}\",\"method\":\"{}\",\"path\":\"",
        now.as_millis(),
        record.listener,
        record.cluster,
        record.client,
        record.method
    );
    escape(record.path.get(..PATH_MAX).unwrap_or(record.path), out);
    let _ = write!(out, "\",\"status\":{},\"duration_us\":{}", record.status, record.took.as_micros());
    let _ = write!(out, ",\"bytes_in\":{},\"bytes_out\":{}", record.bytes_in, record.bytes_out);
    if let Some(endpoint) = record.endpoint {
        let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
    }
    if let Some(who) = record.ended_by {
        let _ = write!(out, ",\"ended_by\":\"{who}\"");
    }
    out.extend_from_slice(b"}\n");
}

/// A path is made of visible ASCII or, against the RFC, other bytes: those are written as U+FFFD is, by escape.
fn escape(path: &[u8], out: &mut Vec<u8>) {
    for &byte in path {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x20..=0x7e => out.push(byte),
            _ => out.extend_from_slice(b"\\ufffd"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: foundation 5
    #[test]
    fn a_record_is_one_line_of_json_whatever_the_path_holds() {
        let record = Record {
            listener: "in",
            cluster: "app",
            client: ([127, 0, 0, 1], 5).into(),
            endpoint: None,
            method: "GET",
            path: b"/a\"b\\\n\xff",
            status: 200,
            took: Duration::from_micros(1500),
            bytes_in: 1,
            bytes_out: 2,
            ended_by: Some("client"),
        };
        let mut line = Vec::new();
        write_record(&record, &mut line);
        let text = String::from_utf8(line).expect("UTF-8");
        assert_eq!(text.matches('\n').count(), 1);
        assert!(
            text.contains(
                r#""path":"/a\"b\\\ufffd\ufffd","status":200,"duration_us":1500,"bytes_in":1,"bytes_out":2,"ended_by":"client"}"#
            ),
            "{text}"
        );
    }
}
