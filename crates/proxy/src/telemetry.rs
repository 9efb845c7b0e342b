//! Metrics of the proxy: requests by listener, method and status in a duration histogram with OpenTelemetry's buckets, and
//! open connections. In: one call per request, on its data thread, without a lock that another thread takes on the request
//! path. Out: families on demand, summed over threads. Limits: methods are a fixed set, statuses are 100 to 599.

use crate::access::Record;
use crate::config::Direction;
use crate::http1::syntax::Method;
use crate::plan::Plan;
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

/// For the docs.
pub static METRICS: [&MetricDesc; 2] = [&CONNECTIONS, &EVICTED];

/// The counters of all threads.
pub struct Counters {
    listeners: Vec<(String, Direction, String)>,
    shards: Vec<Arc<Shard>>,
}

/// The counters of one thread. Only that thread writes; it takes the lock when a new series begins.
#[derive(Default)]
pub struct Shard {
    pub recent: Recent,
    series: Mutex<BTreeMap<Key, Arc<Series>>>,
    pub connections: Vec<AtomicU64>,
    /// Connections that were closed to make room.
    pub evicted: Vec<AtomicU64>,
}

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
            let zeros = || plan.listeners.iter().map(|_| AtomicU64::new(0)).collect();
            Arc::new(Shard { connections: zeros(), evicted: zeros(), ..Shard::default() })
        };
        Arc::new(Counters { listeners, shards: (0..plan.threads).map(|_| shard()).collect() })
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
        let key = Key { listener: listener as u16, method: method.text(), status };
        let mut seen = self.seen.borrow_mut();
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

    pub fn opened(&self, listener: usize) {
        if let Some(count) = self.shard.connections.get(listener) {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    pub fn closed(&self, listener: usize) {
        if let Some(count) = self.shard.connections.get(listener) {
            count.store(count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        }
    }

    pub fn evicted(&self, listener: usize, connections: u64) {
        if let Some(count) = self.shard.evicted.get(listener) {
            count.fetch_add(connections, Ordering::Relaxed);
        }
    }

    /// Connections open now on a listener of this thread.
    pub fn open(&self, listener: usize) -> u64 {
        self.shard.connections.get(listener).map_or(0, |count| count.load(Ordering::Relaxed))
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
        let mut open = vec![0u64; self.listeners.len()];
        for shard in &self.shards {
            for (key, series) in lock(&shard.series).iter() {
                let (buckets, sum) = sums.entry(*key).or_default();
                buckets.iter_mut().zip(&series.buckets).for_each(|(to, from)| *to += from.load(Ordering::Relaxed));
                *sum += series.sum_ns.load(Ordering::Relaxed);
            }
            open.iter_mut().zip(&shard.connections).for_each(|(to, from)| *to += from.load(Ordering::Relaxed));
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
        let mut connections = CONNECTIONS.family();
        for ((listener, ..), open) in self.listeners.iter().zip(open) {
            connections.points.push(CONNECTIONS.point(&[listener], open as f64));
        }
        families.push(connections);
        let mut evicted = EVICTED.family();
        for (index, (listener, ..)) in self.listeners.iter().enumerate() {
            let of = |shard: &Arc<Shard>| shard.evicted.get(index).map_or(0, |count| count.load(Ordering::Relaxed));
            let sum: u64 = self.shards.iter().map(of).sum();
            evicted.points.push(EVICTED.point(&[listener], sum as f64));
        }
        families.push(evicted);
    }
}

fn labels(listener: &str, cluster: &str, key: &Key) -> Labels {
    labels_of(&[
        ("listener", listener),
        ("cluster", cluster),
        ("http_request_method", key.method),
        ("http_response_status_code", &key.status.to_string()),
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
}
