//! Metrics of the proxy: requests by listener, method and status in a duration histogram with OpenTelemetry's buckets; connections,
//! requests in flight and own responses of each listener; pools, connection attempts and ejections of each cluster. In: calls on the
//! data threads, without a lock that another thread takes on the request path. Out: families on demand, summed over threads. Limits:
//! methods and reasons are fixed sets; `SERIES_MAX` series of methods and statuses for each thread.

use crate::access::Record;
use crate::config::Direction;
use crate::http1::syntax::Method;
use crate::plan::Plan;
use crate::reason::Reason;
use crate::recent::Recent;
use base::sync::lock;
use base::telemetry::MetricDesc;
use base::telemetry::family::{Family, FamilyKind, Gather, Labels, Point, PointValue, labels_of};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Upper bounds in seconds, from OpenTelemetry's `http.server.request.duration`.
pub const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The same in nanoseconds, so that the request path compares integers.
const BOUNDS_NS: [u64; 14] = {
    let mut bounds = [0; 14];
    let mut index = 0;
    while index < 14 {
        bounds[index] = (BOUNDS[index] * 1e9) as u64;
        index += 1;
    }
    bounds
};

pub static CONNECTIONS: MetricDesc =
    MetricDesc::gauge("outrigger_proxy_downstream_connections", &["listener"], "Open client connections.");
pub static EVICTED: MetricDesc = MetricDesc::counter(
    "outrigger_proxy_downstream_connections_evicted_total",
    &["listener"],
    "Idle client connections closed to make room at `max_connections` or under memory pressure.",
);

pub static ACCEPTED: MetricDesc = MetricDesc::counter(
    "outrigger_proxy_downstream_connections_total",
    &["listener", "protocol"],
    "Accepted client connections.",
);
pub static IN_FLIGHT: MetricDesc =
    MetricDesc::gauge("outrigger_proxy_requests_in_flight", &["listener"], "Requests in flight.");
pub static LOCAL_RESPONSES: MetricDesc = MetricDesc::counter(
    "outrigger_proxy_local_responses_total",
    &["listener", "cluster", "reason"],
    "Responses that Outrigger produced itself.",
);
pub static UPSTREAM_CONNECTIONS: MetricDesc = MetricDesc::gauge(
    "outrigger_proxy_upstream_connections",
    &["cluster", "state"],
    "Open connections to endpoints: active, idle.",
);
pub static UPSTREAM_ATTEMPTS: MetricDesc = MetricDesc::counter(
    "outrigger_proxy_upstream_connections_total",
    &["cluster", "result"],
    "Connection attempts: success, failure.",
);
pub static ENDPOINTS: MetricDesc =
    MetricDesc::gauge("outrigger_proxy_endpoints", &["cluster", "state"], "Endpoints: healthy, ejected.");

/// For the docs.
pub static METRICS: [&MetricDesc; 8] = [
    &CONNECTIONS,
    &ACCEPTED,
    &EVICTED,
    &IN_FLIGHT,
    &LOCAL_RESPONSES,
    &UPSTREAM_CONNECTIONS,
    &UPSTREAM_ATTEMPTS,
    &ENDPOINTS,
];

/// The counters of all threads.
pub struct Counters {
    listeners: Vec<(String, Direction, String)>,
    clusters: Vec<String>,
    shards: Vec<Arc<Shard>>,
}

/// The counters of one thread. Only that thread writes, so that plain stores do; it takes the lock only for a new series.
#[derive(Default)]
pub struct Shard {
    pub recent: Recent,
    series: Mutex<BTreeMap<Key, Arc<Series>>>,
    listeners: Vec<ListenerNumbers>,
    clusters: Vec<Arc<ClusterNumbers>>,
}

/// Numbers of one listener.
#[derive(Default)]
struct ListenerNumbers {
    open: AtomicU64,
    accepted: AtomicU64,
    evicted: AtomicU64,
    in_flight: AtomicU64,
    local_responses: [AtomicU64; Reason::ALL.len()],
}

/// Numbers of one cluster.
#[derive(Default)]
pub struct ClusterNumbers {
    /// Connections with a request, and connections in the pool.
    pub active: AtomicU64,
    pub idle: AtomicU64,
    /// Connection attempts.
    pub connected: AtomicU64,
    pub failed: AtomicU64,
    /// For each endpoint when its ejection ends, in milliseconds on the clock of `now_ms`.
    ejected_until: Vec<AtomicU64>,
}

/// Adds to a number that this thread alone writes.
pub fn add(number: &AtomicU64, count: u64) {
    number.store(number.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

pub fn subtract(number: &AtomicU64, count: u64) {
    number.store(number.load(Ordering::Relaxed).saturating_sub(count), Ordering::Relaxed);
}

impl ClusterNumbers {
    pub fn eject(&self, endpoint: usize, time: Duration) {
        if let Some(until) = self.ejected_until.get(endpoint) {
            until.store(now_ms() + u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// A clock that all threads share: the system's time since its start.
fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Series of a thread; an app may respond with any status. Further ones count under one label.
const SERIES_MAX: usize = 256;

/// The status of that label, `_OTHER`.
const OTHER_STATUS: u16 = 0;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    listener: u16,
    method: &'static str,
    status: u16,
}

#[derive(Default)]
struct Series {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// A thread's handle of its shard, with the series it has seen.
pub struct Recorder {
    shard: Arc<Shard>,
    seen: RefCell<Vec<(Key, Arc<Series>)>>,
}

impl Counters {
    pub fn new(plan: &Plan) -> Arc<Counters> {
        let name = |cluster: usize| plan.clusters.get(cluster).map_or(String::new(), |cluster| cluster.name.clone());
        let listeners = plan.listeners.iter().map(|l| (l.name.clone(), l.direction, name(l.cluster))).collect();
        let shard = || {
            let listeners = plan.listeners.iter().map(|_| ListenerNumbers::default()).collect();
            let ejected = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
            let numbers =
                |endpoints| Arc::new(ClusterNumbers { ejected_until: ejected(endpoints), ..Default::default() });
            let clusters = plan.clusters.iter().map(|cluster| numbers(cluster.endpoints.len())).collect();
            Arc::new(Shard { listeners, clusters, ..Shard::default() })
        };
        let clusters = plan.clusters.iter().map(|cluster| cluster.name.clone()).collect();
        Arc::new(Counters { listeners, clusters, shards: (0..plan.threads).map(|_| shard()).collect() })
    }

    pub fn recorder(&self, thread: usize) -> Recorder {
        let shard = self.shards.get(thread).cloned().unwrap_or_default();
        Recorder { shard, seen: RefCell::default() }
    }

    /// The last requests of all threads.
    pub fn recent(&self) -> Vec<serde_json::Value> {
        let name = |index: usize| self.listeners.get(index).map_or(String::new(), |(name, ..)| name.clone());
        self.shards.iter().flat_map(|shard| shard.recent.list(&name)).collect()
    }

    /// All requests so far, for the summary of the HTML page.
    pub fn requests(&self) -> u64 {
        let sum = |shard: &Arc<Shard>| -> u64 { lock(&shard.series).values().map(|series| series.count()).sum() };
        self.shards.iter().map(sum).sum()
    }
}

impl Recorder {
    /// Stores a request for the black box.
    pub fn keep(&self, listener: usize, record: &Record<'_>) {
        self.shard.recent.note(listener, record);
    }

    pub fn request(&self, listener: usize, method: Method, status: u16, took: Duration) {
        let mut seen = self.seen.borrow_mut();
        let key = Key { listener: listener as u16, method: method.as_str(), status };
        let is_new = || !seen.iter().any(|(known, _)| *known == key);
        let key = match seen.len() >= SERIES_MAX && is_new() {
            true => Key { method: Method::Other.as_str(), status: OTHER_STATUS, ..key },
            false => key,
        };
        // A handful of series per thread: a scan is faster than a hash.
        match seen.iter().position(|(known, _)| *known == key) {
            Some(index) => seen[index].1.record(took),
            None => {
                let series = lock(&self.shard.series).entry(key).or_default().clone();
                series.record(took);
                seen.push((key, series));
            }
        }
    }

    /// The numbers of a cluster, for its pool.
    pub fn cluster(&self, index: usize) -> Arc<ClusterNumbers> {
        self.shard.clusters.get(index).cloned().unwrap_or_default()
    }

    pub fn opened(&self, listener: usize) {
        if let Some(numbers) = self.shard.listeners.get(listener) {
            add(&numbers.open, 1);
            add(&numbers.accepted, 1);
        }
    }

    pub fn closed(&self, listener: usize) {
        if let Some(numbers) = self.shard.listeners.get(listener) {
            subtract(&numbers.open, 1);
        }
    }

    pub fn evicted(&self, listener: usize, connections: u64) {
        if let Some(numbers) = self.shard.listeners.get(listener) {
            add(&numbers.evicted, connections);
        }
    }

    pub fn begun(&self, listener: usize) {
        if let Some(numbers) = self.shard.listeners.get(listener) {
            add(&numbers.in_flight, 1);
        }
    }

    pub fn ended(&self, listener: usize) {
        if let Some(numbers) = self.shard.listeners.get(listener) {
            subtract(&numbers.in_flight, 1);
        }
    }

    pub fn local_response(&self, listener: usize, reason: Reason) {
        if let Some(numbers) = self.shard.listeners.get(listener) {
            add(&numbers.local_responses[reason as usize], 1);
        }
    }

    /// Connections open now on a listener of this thread.
    pub fn open(&self, listener: usize) -> u64 {
        self.shard.listeners.get(listener).map_or(0, |numbers| numbers.open.load(Ordering::Relaxed))
    }
}

impl Series {
    /// One writer, so a plain store suffices; readers on other threads never see a torn value.
    fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUNDS_NS.iter().position(|bound| ns <= *bound).unwrap_or(BOUNDS.len());
        let bucket = &self.buckets[index];
        bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.sum_ns.store(self.sum_ns.load(Ordering::Relaxed).saturating_add(ns), Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl Gather for Counters {
    fn gather(&self, families: &mut Vec<Family>) {
        let mut sums: BTreeMap<Key, ([u64; BOUNDS.len() + 1], u64)> = BTreeMap::new();
        for shard in &self.shards {
            for (key, series) in lock(&shard.series).iter() {
                let (buckets, sum) = sums.entry(*key).or_default();
                buckets.iter_mut().zip(&series.buckets).for_each(|(to, from)| *to += from.load(Ordering::Relaxed));
                *sum += series.sum_ns.load(Ordering::Relaxed);
            }
        }
        for (direction, name, help) in [
            (
                Direction::Inbound,
                "http_server_request_duration_seconds",
                "Duration of requests to the app, through the proxy.",
            ),
            (
                Direction::Outbound,
                "http_client_request_duration_seconds",
                "Duration of the app's requests, through the proxy.",
            ),
        ] {
            let mut family = Family::new(name, help, FamilyKind::Histogram);
            for (key, (buckets, sum_ns)) in &sums {
                let Some((listener, of, cluster)) = self.listeners.get(usize::from(key.listener)) else { continue };
                if *of == direction {
                    let value = histogram(buckets, *sum_ns);
                    family.points.push(Point { labels: labels(listener, cluster, key), value });
                }
            }
            if !family.points.is_empty() {
                families.push(family);
            }
        }
        self.gather_listeners(families);
        self.gather_clusters(families);
    }
}

impl Counters {
    fn gather_listeners(&self, families: &mut Vec<Family>) {
        let sum = |index: usize, of: &dyn Fn(&ListenerNumbers) -> &AtomicU64| -> f64 {
            let shards = self.shards.iter().filter_map(|shard| shard.listeners.get(index));
            shards.map(|numbers| of(numbers).load(Ordering::Relaxed)).sum::<u64>() as f64
        };
        let descs = [&CONNECTIONS, &ACCEPTED, &EVICTED, &IN_FLIGHT, &LOCAL_RESPONSES];
        let [mut open, mut accepted, mut evicted, mut in_flight, mut local] = descs.map(MetricDesc::family);
        for (index, (listener, _, cluster)) in self.listeners.iter().enumerate() {
            open.points.push(CONNECTIONS.point(&[listener], sum(index, &|numbers| &numbers.open)));
            accepted.points.push(ACCEPTED.point(&[listener, "http1"], sum(index, &|numbers| &numbers.accepted)));
            evicted.points.push(EVICTED.point(&[listener], sum(index, &|numbers| &numbers.evicted)));
            in_flight.points.push(IN_FLIGHT.point(&[listener], sum(index, &|numbers| &numbers.in_flight)));
            for reason in Reason::ALL {
                let count = sum(index, &|numbers| &numbers.local_responses[reason as usize]);
                local.points.push(LOCAL_RESPONSES.point(&[listener, cluster, reason.as_str()], count));
            }
        }
        families.extend([open, accepted, evicted, in_flight, local]);
    }

    fn gather_clusters(&self, families: &mut Vec<Family>) {
        let descs = [&UPSTREAM_CONNECTIONS, &UPSTREAM_ATTEMPTS, &ENDPOINTS];
        let [mut connections, mut attempts, mut endpoints] = descs.map(MetricDesc::family);
        let now = now_ms();
        for (index, cluster) in self.clusters.iter().enumerate() {
            let shards: Vec<&ClusterNumbers> =
                self.shards.iter().filter_map(|shard| shard.clusters.get(index).map(Arc::as_ref)).collect();
            let sum = |of: &dyn Fn(&ClusterNumbers) -> &AtomicU64| -> f64 {
                shards.iter().map(|numbers| of(numbers).load(Ordering::Relaxed)).sum::<u64>() as f64
            };
            connections.points.push(UPSTREAM_CONNECTIONS.point(&[cluster, "active"], sum(&|numbers| &numbers.active)));
            connections.points.push(UPSTREAM_CONNECTIONS.point(&[cluster, "idle"], sum(&|numbers| &numbers.idle)));
            attempts.points.push(UPSTREAM_ATTEMPTS.point(&[cluster, "success"], sum(&|numbers| &numbers.connected)));
            attempts.points.push(UPSTREAM_ATTEMPTS.point(&[cluster, "failure"], sum(&|numbers| &numbers.failed)));
            // Each thread ejects by itself; an endpoint is ejected if it is on any.
            let count = shards.first().map_or(0, |numbers| numbers.ejected_until.len());
            let is_ejected = |endpoint: &usize| {
                let untils = shards.iter().filter_map(|numbers| numbers.ejected_until.get(*endpoint));
                untils.map(|until| until.load(Ordering::Relaxed)).any(|until| until > now)
            };
            let ejected = (0..count).filter(is_ejected).count();
            endpoints.points.push(ENDPOINTS.point(&[cluster, "healthy"], (count - ejected) as f64));
            endpoints.points.push(ENDPOINTS.point(&[cluster, "ejected"], ejected as f64));
        }
        families.extend([connections, attempts, endpoints]);
    }
}

fn labels(listener: &str, cluster: &str, key: &Key) -> Labels {
    let status = match key.status {
        OTHER_STATUS => "_OTHER".to_string(),
        status => status.to_string(),
    };
    labels_of(&[
        ("listener", listener),
        ("cluster", cluster),
        ("http_request_method", key.method),
        ("http_response_status_code", &status),
    ])
}

fn histogram(buckets: &[u64; BOUNDS.len() + 1], sum_ns: u64) -> PointValue {
    let mut total = 0;
    let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]).zip(buckets).map(|(bound, count)| {
        total += count;
        (bound, total)
    });
    PointValue::Histogram { bounds: bounds.collect(), sum: sum_ns as f64 / 1e9 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_land_in_the_bucket_of_their_duration() {
        let series = Series::default();
        for (ms, _) in [(5, 0), (6, 1), (10_001, 14)] {
            series.record(Duration::from_millis(ms));
        }
        let counts: Vec<u64> = series.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[14], series.count()), (1, 1, 1, 3));
        let PointValue::Histogram { bounds, sum } = histogram(&counts.try_into().expect("15 buckets"), 2_500_000_000)
        else {
            panic!("a histogram")
        };
        assert_eq!((bounds.last().map(|b| b.1), sum), (Some(3), 2.5));
    }

    #[test]
    fn statuses_of_an_app_make_no_series_without_end() {
        let shard = Arc::new(Shard::default());
        let recorder = Recorder { shard: shard.clone(), seen: RefCell::default() };
        for status in 100..1000 {
            recorder.request(0, Method::Get, status, Duration::from_millis(1));
        }
        let series = lock(&shard.series);
        assert_eq!(series.len(), SERIES_MAX + 1);
        assert_eq!(series.values().map(|series| series.count()).sum::<u64>(), 900, "all are counted");
        let other = Key { listener: 0, method: "_OTHER", status: OTHER_STATUS };
        assert_eq!(series.get(&other).map(|series| series.count()), Some(900 - SERIES_MAX as u64));
    }
}
