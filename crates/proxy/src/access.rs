//! Access records: one JSON object per request, collected per thread and offered to a feed in batches. In: what the
//! forwarder knows when a request ends. Out: lines. Limits: `BATCH_BYTES` or `BATCH_WAIT`, whichever is reached first; paths
//! are truncated at `PATH_MAX`, and their query is omitted, since it may contain tokens.

use base::feeds::{AccessBatch, FeedSender};
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
    clock: RefCell<Clock>,
    begun: Notify,
}

/// What is known about a request when it ends.
pub struct Record<'a> {
    pub listener: &'a str,
    pub cluster: &'a str,
    pub client: SocketAddr,
    pub endpoint: Option<SocketAddr>,
    /// As it was sent; empty if the request head could not be parsed.
    pub method: &'a str,
    pub path: &'a [u8],
    pub status: u16,
    pub took: Duration,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// The side that ended the exchange early: `client` or `endpoint`.
    pub ended_by: Option<&'static str>,
    /// Why it ended early, or Outrigger responded itself.
    pub reason: Option<&'static str>,
}

impl Access {
    pub fn new(feed: FeedSender<AccessBatch>) -> Rc<Access> {
        Rc::new(Access { feed, batch: RefCell::default(), clock: RefCell::default(), begun: Notify::new() })
    }

    pub fn record(&self, record: &Record<'_>) {
        let mut batch = self.batch.borrow_mut();
        if batch.lines.is_empty() {
            self.begun.notify_one();
        }
        write_record(record, &mut self.clock.borrow_mut(), &mut batch.lines);
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
            // A full feed counts what it rejects.
            self.feed.offer(batch, bytes, records);
        }
    }

    /// Flushes a batch `BATCH_WAIT` after its first record; sleeps while there is none.
    pub async fn flush_periodically(self: Rc<Access>) {
        loop {
            self.begun.notified().await;
            tokio::time::sleep(BATCH_WAIT).await;
            self.flush();
        }
    }
}

/// The second in which the last record ended, as text: formatting a date costs as much as the rest of a record.
#[derive(Default)]
struct Clock {
    second: u64,
    text: String,
}

impl Clock {
    /// RFC 3339 in UTC, to the millisecond.
    fn write(&mut self, time: Duration, out: &mut Vec<u8>) {
        if self.text.is_empty() || self.second != time.as_secs() {
            self.second = time.as_secs();
            let text = base::text::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(self.second));
            self.text = text.trim_end_matches('Z').to_string();
        }
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{}.{:03}Z", self.text, time.subsec_millis());
    }
}

fn write_record(record: &Record<'_>, clock: &mut Clock, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    clock.write(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), out);
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "\",\"listener\":\"{}\",\"cluster\":\"{}\",\"client_ip\":\"{}\",\"client_port\":{},\"method\":\"{}\",\"path\":\"",
        record.listener,
        record.cluster,
        record.client.ip(),
        record.client.port(),
        record.method
    );
    escape(record.path.get(..PATH_MAX).unwrap_or(record.path), out);
    let (ms, us) = (record.took.as_millis(), record.took.subsec_micros() % 1000);
    let _ = write!(out, "\",\"status\":{},\"duration_ms\":{ms}.{us:03}", record.status);
    let _ = write!(out, ",\"bytes_received\":{},\"bytes_sent\":{}", record.bytes_received, record.bytes_sent);
    if let Some(endpoint) = record.endpoint {
        let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
    }
    if let Some(side) = record.ended_by {
        let _ = write!(out, ",\"ended_by\":\"{side}\"");
    }
    if let Some(reason) = record.reason {
        let _ = write!(out, ",\"reason\":\"{reason}\"");
    }
    out.extend_from_slice(b"}\n");
}

/// A path consists of visible ASCII or, against the RFC, other bytes: those are written as the escape of U+FFFD.
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

    #[test]
    fn record_is_one_json_line_for_any_path() {
        let record = Record {
            listener: "in",
            cluster: "app",
            client: ([127, 0, 0, 1], 5).into(),
            endpoint: None,
            method: "GET",
            path: b"/a\"b\\\n\xff",
            status: 200,
            took: Duration::from_micros(1500),
            bytes_received: 1,
            bytes_sent: 2,
            ended_by: Some("client"),
            reason: Some("client_disconnected"),
        };
        let mut line = Vec::new();
        write_record(&record, &mut Clock::default(), &mut line);
        let text = String::from_utf8(line).expect("UTF-8");
        assert_eq!(text.matches('\n').count(), 1);
        assert!(
            text.contains(
                r#""client_ip":"127.0.0.1","client_port":5,"method":"GET","path":"/a\"b\\\ufffd\ufffd","status":200,"duration_ms":1.500,"bytes_received":1,"bytes_sent":2,"ended_by":"client","reason":"client_disconnected"}"#
            ),
            "{text}"
        );
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    }

    #[test]
    fn the_clock_follows_each_second() {
        let mut clock = Clock::default();
        for (ms, expect) in [
            (1_763_813_642_123, "2025-11-22T12:14:02.123Z"),
            (1_763_813_642_999, "2025-11-22T12:14:02.999Z"),
            (1_763_813_643_000, "2025-11-22T12:14:03.000Z"),
        ] {
            let mut out = Vec::new();
            clock.write(Duration::from_millis(ms), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expect);
        }
    }
}
