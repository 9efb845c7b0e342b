//! Grafana Loki's push API: snappy-compressed protobuf (`logproto.PushRequest`, grafana.com/docs/loki, "HTTP API"). In:
//! records. Out: one stream per stdout, stderr or file, with the configured labels; lines as the app wrote them; fields of
//! `set` are sent as structured metadata. The messages are encoded by hand: three fields deep, and no copy of a line.

use super::SinkConfig;
use crate::batch::Batch;
use base::protobuf::{delimited, field_length, text, varint, varint_length};
use base::telemetry::family::is_label_name;
use config::diag::Diagnostic;
use config::registry::{Entry, Kind};
use config::unit::Url;
use delivery::batch::{Body, Encode};
use delivery::engine::Sink;
use delivery::post::Post;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

net::http_client! {
    /// Pushes lines to Grafana Loki. Each source and stream becomes a Loki stream with your `labels` in addition to `source` and
    /// `stream`; the line is what the app wrote, and fields of `set` are sent as structured metadata. 204 acknowledges; 429 and
    /// 5xx are retried; 400, for example for entries that are too old, drops the batch with reason `rejected`.
    pub struct Config {
        /// Loki's base URL; `/loki/api/v1/push` is added.
        pub url: Url,
        /// Labels of every stream; `source`, `stream` and `file` are added unless they are set here. Use few: each
        /// combination is a separate stream in Loki.
        #[serde(default)]
        pub labels: BTreeMap<String, String>,
        /// The tenant, sent as `X-Scope-OrgID`.
        #[serde(default)]
        pub tenant_id: Option<String>,
    }
}

impl Kind for Config {
    fn example() -> &'static str {
        "loki: { url: \"http://loki:3100\", labels: { service: orders } }\n"
    }

    /// Loki's rules for label names are those of Prometheus.
    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        let invalid = self.labels.keys().filter(|name| !is_label_name(name));
        let error = |name: &String| {
            let text = format!("invalid label name `{name}`: expected letters, digits and `_`, and no digit first");
            entry.error(&["labels", name], text).help("Loki would reject every push")
        };
        invalid.map(error).collect()
    }

    net::http_kind!();
}

impl SinkConfig for Config {
    fn build(&self) -> Result<Sink<Batch>, String> {
        let mut headers = vec![("content-type", "application/x-protobuf".to_string())];
        headers.extend(self.tenant_id.iter().map(|tenant| ("x-scope-orgid", tenant.clone())));
        let url = format!("{}/loki/api/v1/push", self.url.as_str().trim_end_matches('/'));
        Ok(Sink {
            encoder: Box::new(Streams::new(self.labels.clone())),
            transport: Rc::new(Post::new(self.client(), url, headers)?),
        })
    }
}

/// Streams of one body: two per source and one per file. At this number the body is sent.
const STREAMS_MAX: usize = 64;

/// Streams whose last times are known; the least recently used stream is evicted.
const TIMES_MAX: usize = 256;
/// Known times of a stream, of records whose time the app set: at most twice as many.
const GIVEN_TIMES_MAX: usize = 4096;

/// Loki stores one entry of a time and a text in a stream. Records with the same time are moved apart by a nanosecond each.
#[derive(Default)]
struct Times {
    /// The last time that Outrigger set: those rise.
    last: i64,
    /// Times that apps set, which may be coarse, with the number of their records; and the previous generation.
    given: HashMap<i64, i64>,
    before: HashMap<i64, i64>,
    /// The number of the last batch of the stream, counted by the sink.
    used: u64,
}

impl Times {
    fn distinct(&mut self, time_ns: i64, is_own: bool) -> i64 {
        if !is_own {
            self.last = crate::framer::rising(time_ns, self.last);
            return self.last;
        }
        if self.given.len() >= GIVEN_TIMES_MAX {
            self.before = std::mem::take(&mut self.given);
        }
        let known = self.before.remove(&time_ns);
        let count = self.given.entry(time_ns).or_insert(known.unwrap_or(-1));
        *count += 1;
        time_ns + *count
    }
}

/// The streams of the open body.
struct Streams {
    labels: BTreeMap<String, String>,
    /// Labels and encoded entries of each stream in this body.
    streams: Vec<(String, Vec<u8>)>,
    /// The last times of each stream, across bodies.
    times: HashMap<String, Times>,
    batches: u64,
    size: usize,
}

impl Streams {
    fn new(labels: BTreeMap<String, String>) -> Streams {
        Streams { labels, streams: Vec::new(), times: HashMap::new(), batches: 0, size: 0 }
    }

    fn labels_of(&self, batch: &Batch) -> String {
        let mut labels = self.labels.clone();
        labels.entry("source".into()).or_insert_with(|| batch.source.to_string());
        if let Some(stream) = batch.stream.as_str() {
            labels.entry("stream".into()).or_insert_with(|| stream.to_string());
        }
        if let Some(file) = &batch.file {
            labels.entry("file".into()).or_insert_with(|| file.to_string());
        }
        let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        format!("{{{}}}", pairs.join(", "))
    }

    fn stream(&mut self, labels: String) -> Option<&mut Vec<u8>> {
        let index = match self.streams.iter().position(|(known, _)| *known == labels) {
            Some(index) => index,
            None => {
                self.streams.push((labels, Vec::new()));
                self.streams.len() - 1
            }
        };
        self.streams.get_mut(index).map(|(_, entries)| entries)
    }
}

impl Encode<Batch> for Streams {
    fn encode(&mut self, batch: &Batch, records: Range<usize>, max: usize) -> usize {
        if self.size >= max || self.streams.len() >= STREAMS_MAX {
            return records.start;
        }
        let labels = self.labels_of(batch);
        let metadata = metadata(batch);
        let before = self.size;
        let mut times = self.times.remove(&labels).unwrap_or_default();
        let Some(entries) = self.stream(labels.clone()) else { return records.start };
        let start = entries.len();
        let mut next = records.end;
        for (index, record) in batch.records.iter().enumerate().take(records.end).skip(records.start) {
            if before + entries.len() - start >= max {
                next = index;
                break;
            }
            let time_ns = times.distinct(record.time_ns, record.own_time);
            entry(time_ns, batch.line(record), &metadata, entries);
        }
        self.size = before + entries.len() - start;
        if self.times.len() >= TIMES_MAX
            && let Some(oldest) =
                self.times.iter().min_by_key(|(_, times)| times.used).map(|(labels, _)| labels.clone())
        {
            self.times.remove(&oldest);
        }
        self.batches += 1;
        times.used = self.batches;
        self.times.insert(labels, times);
        next
    }

    fn size(&self) -> usize {
        self.size
    }

    fn finish(&mut self) -> Result<Body, String> {
        let mut message = Vec::with_capacity(self.size + 256);
        for (labels, entries) in self.streams.drain(..) {
            // StreamAdapter: 1 = labels, 2 = entries (already tagged); PushRequest: 1 = streams.
            let length = field_length(labels.len()) + entries.len();
            delimited(1, length, &mut message);
            text(1, &labels, &mut message);
            message.extend_from_slice(&entries);
        }
        self.size = 0;
        snap::raw::Encoder::new().compress_vec(&message).map(Body::from).map_err(|error| error.to_string())
    }
}

/// As in a Go string; other characters may remain unescaped.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// EntryAdapter: 1 = timestamp {1 = seconds, 2 = nanos}, 2 = line, 3 = structuredMetadata {1 = name, 2 = value}.
fn entry(time_ns: i64, line: &[u8], metadata: &[u8], out: &mut Vec<u8>) {
    let (seconds, nanos) = (time_ns.div_euclid(1_000_000_000) as u64, time_ns.rem_euclid(1_000_000_000) as u64);
    let time_length = 1 + varint_length(seconds) + 1 + varint_length(nanos);
    // protobuf strings are UTF-8, and Loki rejects a complete push for one invalid string.
    let line = String::from_utf8_lossy(line);
    delimited(2, field_length(time_length) + field_length(line.len()) + metadata.len(), out);
    delimited(1, time_length, out);
    out.push(1 << 3);
    varint(seconds, out);
    out.push(2 << 3);
    varint(nanos, out);
    text(2, &line, out);
    out.extend_from_slice(metadata);
}

/// The same for all records of a batch.
fn metadata(batch: &Batch) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in &batch.common {
        delimited(3, field_length(name.len()) + field_length(value.len()), &mut out);
        text(1, name, &mut out);
        text(2, value, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Stream;
    use crate::framer::Framer;
    use prost::Message as _;

    /// The published messages, as derives, to decode what was encoded by hand.
    #[derive(prost::Message)]
    struct PushRequest {
        #[prost(message, repeated, tag = "1")]
        streams: Vec<StreamAdapter>,
    }
    #[derive(prost::Message)]
    struct StreamAdapter {
        #[prost(string, tag = "1")]
        labels: String,
        #[prost(message, repeated, tag = "2")]
        entries: Vec<EntryAdapter>,
    }
    #[derive(prost::Message)]
    struct EntryAdapter {
        #[prost(message, optional, tag = "1")]
        timestamp: Option<Timestamp>,
        #[prost(string, tag = "2")]
        line: String,
        #[prost(message, repeated, tag = "3")]
        metadata: Vec<LabelPair>,
    }
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    struct Timestamp {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }
    #[derive(prost::Message)]
    struct LabelPair {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }

    #[test]
    fn hand_encoded_push_decodes_as_published() {
        let mut loki = Streams::new(BTreeMap::from([("service".to_string(), "a\"b".to_string())]));
        let long = "x".repeat(300);
        let mut batch = Framer::new("app".into(), None, Stream::Stderr, 10_000, 0)
            .take(format!("one\n{long}\n\n").as_bytes())
            .expect("lines");
        batch.common.push(("region".into(), "eu".into()));
        batch.records[0].time_ns = 1_700_000_000_000_000_007;
        assert_eq!(loki.encode(&batch, 0..3, 1 << 20), 3);
        let body = snap::raw::Decoder::new().decompress_vec(&loki.finish().expect("compressed").bytes).expect("snappy");
        let push = PushRequest::decode(body.as_slice()).expect("protobuf");
        assert_eq!(push.streams.len(), 1);
        assert_eq!(push.streams[0].labels, r#"{service="a\"b", source="app", stream="stderr"}"#);
        let lines: Vec<&str> = push.streams[0].entries.iter().map(|entry| entry.line.as_str()).collect();
        assert_eq!(lines, ["one", &long, ""]);
        let first = &push.streams[0].entries[0];
        assert_eq!(first.timestamp, Some(Timestamp { seconds: 1_700_000_000, nanos: 7 }));
        assert_eq!((first.metadata[0].name.as_str(), first.metadata[0].value.as_str()), ("region", "eu"));
    }

    #[test]
    fn equal_times_are_separated_labels_validated() {
        let mut times = Times::default();
        let given = [5, 5, 1_000_005, 5, 9].map(|time| times.distinct(time, true));
        assert_eq!(given, [5, 6, 1_000_005, 7, 9]);
        assert_eq!([20, 20, 19, 30].map(|time| times.distinct(time, false)), [20, 21, 22, 30]);
        for time in 0..10 * GIVEN_TIMES_MAX as i64 {
            times.distinct(time, true);
        }
        assert!(times.given.len() + times.before.len() <= 2 * GIVEN_TIMES_MAX);
        for (name, fits) in
            [("a", true), ("_a1", true), ("my-label", false), ("a.b", false), ("", false), ("1a", false)]
        {
            assert_eq!(is_label_name(name), fits, "{name}");
        }
    }

    #[test]
    fn next_body_starts_where_the_full_one_ended() {
        let mut loki = Streams::new(BTreeMap::new());
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let batch = Framer::new("app".into(), None, Stream::None, 1000, 0).take(text.as_bytes()).expect("lines");
        let (mut first, mut bodies) = (0, 0);
        while first < 100 {
            first = loki.encode(&batch, first..batch.records.len(), 200);
            bodies += 1;
            loki.finish().expect("compressed");
        }
        assert!((5..20).contains(&bodies), "{bodies} bodies");
    }
}
