//! Prometheus remote write 1.0 (prometheus.io/docs/specs/prw/remote_write_spec): snappy-compressed protobuf. In: snapshots. Out:
//! requests in order, one at a time, so that samples of a series are never reordered. Retries are those of `delivery`. Limits: `buffer.max_bytes` of waiting samples, the oldest
//! snapshot is dropped first; `SEND_MAX` samples in one request.

use super::{Context, Running, Sink, SinkConfig};
use crate::series::{STALE, Sample, Series, Snapshot, Timing, Timings};
use base::protobuf::{delimited, field_length, text, varint, varint_length};
use base::runtime::health::Health;
use base::runtime::lifecycle::PhaseWatch;
use base::runtime::pressure::Pressure;
use base::telemetry::Telemetry;
use base::telemetry::component::Component;
use base::telemetry::family::{FamilyKind, is_label_name};
use base::telemetry::ledger::Row;
use base::telemetry::reason::Reason;
use config::diag::Diagnostic;
use config::registry::{Entry, Kind};
use config::unit::Url;
use delivery::options::RetryConfig;
use delivery::post::Post;
use delivery::receiver::{Receiver, Settled};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Notify;

net::http_client! {
    /// Pushes all samples to a receiver of Prometheus remote write 1.0. Series have the labels `job` (the source's name) and
    /// `instance` if they are scraped, and the `external_labels`. A series that ends is marked as stale. While the receiver is
    /// down, samples wait in memory; when `buffer.max_bytes` is reached, the oldest are dropped, counted under `buffer_full`.
    pub struct Config {
        /// The receiver's URL, such as http://prometheus:9090/api/v1/write.
        pub url: Url,
        /// Labels added to every series that does not have them.
        #[serde(default)]
        pub external_labels: BTreeMap<String, String>,
    }
}

impl Kind for Config {
    fn example() -> &'static str {
        "remote_write: { url: \"http://prometheus:9090/api/v1/write\" }\n"
    }

    /// Labels with which receivers would reject every request.
    fn check(&self, entry: &Entry<'_>) -> Vec<Diagnostic> {
        let is_valid = |name: &str| is_label_name(name) && !name.starts_with("__");
        let invalid = self.external_labels.keys().filter(|name| !is_valid(name));
        let error = |name: &String| {
            let text = format!(
                "invalid label name `{name}`: expected letters, digits and `_`, no digit first, and no leading `__`"
            );
            entry.error(&["external_labels", name], text).help("receivers would reject every request")
        };
        invalid.map(error).collect()
    }

    net::http_kind!();
}

impl SinkConfig for Config {
    fn build(&self, context: &Context<'_>) -> Result<Rc<dyn Sink>, String> {
        Ok(RemoteWrite::new(self, context)?)
    }
}

/// Prometheus' own default for one request is 2,000; receivers accept far more.
const SEND_MAX: usize = 5_000;

/// Maximum number of waiting snapshots, however small.
const SNAPSHOTS_MAX: usize = 10_000;

struct RemoteWrite {
    component: Component,
    post: Post,
    retry: RetryConfig,
    labels: BTreeMap<String, String>,
    /// Maximum bytes of waiting snapshots.
    max_bytes: usize,
    queue: RefCell<VecDeque<Waiting>>,
    waiting_bytes: Cell<usize>,
    filled: Notify,
    closed: Cell<bool>,
    /// Samples of the snapshot that is being sent.
    sending: Cell<u64>,
    row: Arc<Row>,
    telemetry: Telemetry,
    health: Arc<Health>,
    pressure: Pressure,
}

/// A waiting snapshot, with the number of samples to send.
struct Waiting {
    snapshot: Rc<Snapshot>,
    samples: u64,
    bytes: usize,
}

/// One request and the number of samples in it.
struct Body {
    /// Compressed, since many may wait; or the error of the compression.
    bytes: Result<bytes::Bytes, snap::Error>,
    samples: u64,
}

impl RemoteWrite {
    fn new(config: &Config, context: &Context<'_>) -> Result<Rc<RemoteWrite>, String> {
        let headers = vec![
            ("content-encoding", "snappy".to_string()),
            ("content-type", "application/x-protobuf".to_string()),
            ("x-prometheus-remote-write-version", "0.1.0".to_string()),
        ];
        let Context { component, buffer, retry, telemetry, health, .. } = context;
        Ok(Rc::new(RemoteWrite {
            component: (*component).clone(),
            post: Post::new(config.client(), config.url.as_str().to_string(), headers)?,
            retry: (*retry).clone(),
            // A label with an empty value is the same as no label (prometheus.io/docs/concepts/data_model).
            labels: config.external_labels.clone().into_iter().filter(|(_, value)| !value.is_empty()).collect(),
            max_bytes: buffer.max_bytes.as_usize(),
            queue: RefCell::default(),
            waiting_bytes: Cell::new(0),
            filled: Notify::new(),
            closed: Cell::new(false),
            sending: Cell::new(0),
            row: telemetry.ledger.row(component),
            telemetry: (*telemetry).clone(),
            health: (*health).clone(),
            pressure: telemetry.pressure.clone(),
        }))
    }

    fn pop(&self, queue: &mut VecDeque<Waiting>) -> Option<Waiting> {
        let oldest = queue.pop_front()?;
        self.waiting_bytes.set(self.waiting_bytes.get().saturating_sub(oldest.bytes));
        Some(oldest)
    }

    /// Sends until the queue is closed and empty.
    async fn send_all(&self, phase: PhaseWatch) {
        let (retry, health) = (self.retry.clone(), self.health.clone());
        let receiver = Receiver::new(&self.component, retry, &self.telemetry, health, phase);
        loop {
            let next = self.pop(&mut self.queue.borrow_mut());
            let Some(Waiting { snapshot, .. }) = next else {
                if self.closed.get() {
                    return;
                }
                self.filled.notified().await;
                continue;
            };
            let bodies = bodies(&snapshot, &self.labels);
            drop(snapshot);
            self.sending.set(bodies.iter().map(|body| body.samples).sum());
            for body in bodies {
                let samples = body.samples;
                self.send(body, &receiver).await;
                self.sending.set(self.sending.get().saturating_sub(samples));
            }
        }
    }

    /// Sends a body until the receiver has accepted or rejected it.
    async fn send(&self, Body { bytes, samples }: Body, receiver: &Receiver) {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return self.give_up_on(samples, Reason::Rejected, &error.to_string()),
        };
        match receiver.deliver(&self.post, &bytes.into()).await {
            Settled::Delivered => self.row.deliver(samples),
            Settled::TooLarge { error } | Settled::Rejected { error } => {
                self.give_up_on(samples, Reason::Rejected, &error);
            }
            Settled::Expired { error } => self.give_up_on(samples, Reason::Expired, &error),
        }
    }

    fn give_up_on(&self, samples: u64, reason: Reason, error: &str) {
        self.row.drop_records(reason, samples);
        self.health.fault(&self.component.id, error);
        let (component, reason) = (&self.component.id, reason.as_str());
        tracing::error!(component, samples, reason, error, "samples not delivered and dropped");
    }
}

impl Sink for RemoteWrite {
    fn run(self: Rc<RemoteWrite>, phase: PhaseWatch) -> Running {
        Box::pin(async move { self.send_all(phase).await })
    }

    /// Queues a snapshot. If too many samples wait, or under memory pressure, the oldest are dropped: a receiver that is down
    /// must not use the memory of the other receivers and of the logs.
    fn push(&self, snapshot: &Rc<Snapshot>) {
        let Timings { newer, repeated, not_newer } = snapshot.timings();
        let samples = newer + repeated + not_newer;
        if samples == 0 && snapshot.stale.is_empty() {
            return;
        }
        self.row.receive(samples as u64);
        self.row.drop_records(Reason::OutOfOrder, not_newer as u64);
        self.row.merge(repeated as u64);
        let mut queue = self.queue.borrow_mut();
        let bytes = snapshot.bytes();
        queue.push_back(Waiting { snapshot: snapshot.clone(), samples: newer as u64, bytes });
        self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
        let is_full = |queue: &VecDeque<_>| self.waiting_bytes.get() > self.max_bytes || queue.len() > SNAPSHOTS_MAX;
        while (is_full(&queue) || self.pressure.has_pressure()) && queue.len() > 1 {
            if let Some(oldest) = self.pop(&mut queue) {
                self.row.drop_records(Reason::BufferFull, oldest.samples);
            }
        }
        self.filled.notify_one();
    }

    fn close(&self) {
        self.closed.set(true);
        self.filled.notify_one();
    }

    fn give_up(&self) -> u64 {
        let waiting: u64 = self.queue.take().iter().map(|waiting| waiting.samples).sum();
        self.waiting_bytes.set(0);
        let unsent = waiting + self.sending.take();
        self.row.drop_records(Reason::Shutdown, unsent);
        unsent
    }
}

/// The requests of one snapshot. Stale markers are sent with the samples, but do not count as samples.
fn bodies(snapshot: &Snapshot, external: &BTreeMap<String, String>) -> Vec<Body> {
    let (mut bodies, mut plain, mut samples) = (Vec::new(), Vec::new(), 0);
    let mut finish = |plain: &mut Vec<u8>, samples: &mut u64| {
        bodies.push(Body { bytes: compressed(plain), samples: std::mem::take(samples) });
        plain.clear();
    };
    let is_sent = |sample: &&Sample| sample.timing == Timing::Newer;
    for family in snapshot.families.iter().filter(|family| family.samples.iter().any(|sample| is_sent(&sample))) {
        metadata(&family.meta, &mut plain);
        for sample in family.samples.iter().filter(is_sent) {
            let time = sample.time_ms.unwrap_or(snapshot.time_ms);
            time_series(&sample.series, snapshot, external, sample.value.to_bits(), time, &mut plain);
            samples += 1;
            if samples as usize >= SEND_MAX {
                finish(&mut plain, &mut samples);
            }
        }
    }
    for series in &snapshot.stale {
        time_series(series, snapshot, external, STALE, snapshot.time_ms, &mut plain);
    }
    if !plain.is_empty() {
        finish(&mut plain, &mut samples);
    }
    bodies
}

/// Snappy in its block format (prometheus.io/docs/specs/prw/remote_write_spec), in a buffer of exactly its size.
fn compressed(plain: &[u8]) -> Result<bytes::Bytes, snap::Error> {
    snap::raw::Encoder::new().compress_vec(plain).map(|compressed| bytes::Bytes::copy_from_slice(&compressed))
}

/// WriteRequest: 1 = timeseries {1 = labels {1 = name, 2 = value}, 2 = samples {1 = value (double), 2 = timestamp}}.
fn time_series(
    series: &Series,
    snapshot: &Snapshot,
    external: &BTreeMap<String, String>,
    bits: u64,
    time_ms: i64,
    out: &mut Vec<u8>,
) {
    let mut message = Vec::with_capacity(128);
    let mut labels: Vec<(&str, &str)> = vec![("__name__", &series.name)];
    labels.extend(series.labels.iter().map(|(name, value)| (&**name, &**value)));
    let mut add = |name, value| {
        if !labels.iter().any(|(known, _)| *known == name) {
            labels.push((name, value));
        }
    };
    snapshot.target.iter().for_each(|(name, value)| add(name, value));
    external.iter().for_each(|(name, value)| add(name, value));
    // The specification requires labels sorted by name.
    labels.sort_unstable();
    for (name, value) in labels {
        delimited(1, field_length(name.len()) + field_length(value.len()), &mut message);
        text(1, name, &mut message);
        text(2, value, &mut message);
    }
    let time = time_ms as u64;
    delimited(2, 9 + 1 + varint_length(time), &mut message);
    message.push(1 << 3 | 1);
    message.extend_from_slice(&bits.to_le_bytes());
    message.push(2 << 3);
    varint(time, &mut message);
    delimited(1, message.len(), out);
    out.extend_from_slice(&message);
}

/// WriteRequest: 3 = metadata {1 = type, 2 = metric_family_name, 4 = help}.
fn metadata(meta: &crate::series::Metadata, out: &mut Vec<u8>) {
    let kind = match meta.kind {
        FamilyKind::Unknown => 0,
        FamilyKind::Counter => 1,
        FamilyKind::Gauge => 2,
        FamilyKind::Histogram => 3,
        FamilyKind::Summary => 5,
    };
    let mut message = vec![1 << 3, kind];
    text(2, &meta.name, &mut message);
    text(4, &meta.help, &mut message);
    delimited(3, message.len(), out);
    out.extend_from_slice(&message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Interner;
    use prost::Message as _;

    #[derive(prost::Message)]
    struct WriteRequest {
        #[prost(message, repeated, tag = "1")]
        timeseries: Vec<TimeSeries>,
        #[prost(message, repeated, tag = "3")]
        metadata: Vec<Metadata>,
    }
    #[derive(prost::Message)]
    struct TimeSeries {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<RawSample>,
    }
    #[derive(prost::Message)]
    struct Label {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }
    #[derive(prost::Message)]
    struct RawSample {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        timestamp: i64,
    }
    #[derive(prost::Message)]
    struct Metadata {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(string, tag = "2")]
        name: String,
        #[prost(string, tag = "4")]
        help: String,
    }

    /// Guarantee: metrics-outage-contained
    #[test]
    fn a_full_buffer_drops_the_oldest_snapshot() {
        let mut interner = Interner::default();
        let mut snapshot = |time_ms| Rc::new(crate::text::parse(b"a 1\nb 2\n", time_ms, 10, &mut interner).0);
        let first = snapshot(1);
        let telemetry = base::telemetry::Telemetry::default();
        let example = config::load::load::<crate::sink::SinkEntry>(
            "example",
            Config::example(),
            &config::interpolate::Lookup::HERE,
        );
        let config = example.ok().and_then(|loaded| loaded.config.remote_write).expect("the example is valid");
        let buffer = crate::sink_options::BufferConfig { max_bytes: config::unit::ByteSize(2 * first.bytes() as u64) };
        let component = Component::sink("metrics.sinks.central".into(), "remote_write");
        let row = telemetry.ledger.row(&component);
        let health = telemetry.health("metrics");
        let context = Context {
            component: &component,
            buffer: &buffer,
            retry: &RetryConfig::default(),
            sockets: &base::system::listen::Sockets::default(),
            sources: &Rc::new(crate::sources::Sources { entries: Vec::new() }),
            telemetry: &telemetry,
            health: &health,
            scope: &base::runtime::scope::Scope::new("metrics", health.clone()),
        };
        let writer = RemoteWrite::new(&config, &context).expect("a writer");
        writer.push(&first);
        writer.push(&snapshot(2));
        let dropped = || row.counts().dropped.get(&Reason::BufferFull).copied();
        assert_eq!(dropped(), None);
        writer.push(&snapshot(3));
        assert_eq!(dropped(), Some(2), "the two samples of the oldest");
        assert_eq!(writer.queue.borrow().front().map(|waiting| waiting.snapshot.time_ms), Some(2));
    }

    /// Guarantee: stale-series-removed
    #[test]
    fn requests_have_sorted_labels_and_stale_markers() {
        let mut interner = Interner::default();
        let text = "# HELP z_total Zs.\n# TYPE z_total counter\nz_total{b=\"2\",a=\"1\"} 5\nold 1\n";
        crate::text::parse(text.as_bytes(), 1, 10, &mut interner);
        let (mut snapshot, _) =
            crate::text::parse(&text.as_bytes()[..text.len() - 6], 1_700_000_000_000, 10, &mut interner);
        snapshot.target = vec![("job".into(), "app".into())];
        let external =
            BTreeMap::from([("job".to_string(), "other".to_string()), ("zone".to_string(), "eu".to_string())]);
        let bodies = bodies(&snapshot, &external);
        assert_eq!((bodies.len(), bodies[0].samples), (1, 1));
        let plain =
            snap::raw::Decoder::new().decompress_vec(bodies[0].bytes.as_ref().expect("snappy")).expect("snappy");
        let request = WriteRequest::decode(plain.as_slice()).expect("protobuf");
        let labels: Vec<String> =
            request.timeseries[0].labels.iter().map(|l| format!("{}={}", l.name, l.value)).collect();
        assert_eq!(labels, ["__name__=z_total", "a=1", "b=2", "job=app", "zone=eu"]);
        assert_eq!(
            (request.timeseries[0].samples[0].value, request.timeseries[0].samples[0].timestamp),
            (5.0, 1_700_000_000_000)
        );
        assert_eq!(request.timeseries[1].samples[0].value.to_bits(), STALE);
        assert_eq!(
            (request.metadata[0].kind, request.metadata[0].name.as_str(), request.metadata[0].help.as_str()),
            (1, "z_total", "Zs.")
        );
    }
}
