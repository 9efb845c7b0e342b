//! The engine against a model: a receiver that fails in every way at random, with several bodies in flight. In: seeds. Out: panics
//! with the seed. Bound: virtual time.

use super::*;
use crate::batch::{Body, Origin, Sending};
use crate::options::WhenFull;
use crate::outcome::Outcome;
use base::runtime::lifecycle::Lifecycle;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// A record: its stream, and its number in the stream.
type Record = (u8, u32);

struct Numbers {
    stream: u8,
    first: u32,
    count: u32,
    acknowledged: Rc<RefCell<Vec<Record>>>,
}

impl Batch for Numbers {
    fn records(&self) -> usize {
        self.count as usize
    }

    fn cost(&self) -> usize {
        self.count as usize * 6
    }

    fn stream(&self) -> u64 {
        self.stream.into()
    }

    fn origin(&self) -> Origin {
        Origin::Stored
    }

    fn acknowledge(&self, _sink: usize) {
        let numbers = (self.first..self.first + self.count).map(|number| (self.stream, number));
        self.acknowledged.borrow_mut().extend(numbers);
    }
}

/// Six bytes a record.
#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encode<Numbers> for Encoder {
    fn encode(&mut self, batch: &Numbers, records: Range<usize>, max: usize) -> usize {
        for index in records.clone() {
            if self.0.len() >= max {
                return index;
            }
            self.0.extend([batch.stream, b' ']);
            self.0.extend((batch.first + index as u32).to_be_bytes());
        }
        records.end
    }

    fn size(&self) -> usize {
        self.0.len()
    }

    fn finish(&mut self) -> Result<Body, String> {
        Ok(std::mem::take(&mut self.0).into())
    }
}

fn records_of(body: &[u8]) -> Vec<Record> {
    let record = |six: &[u8]| (six[0], u32::from_be_bytes([six[2], six[3], six[4], six[5]]));
    body.chunks(6).map(record).collect()
}

/// A receiver with faults at random, or by content.
struct Faulty {
    random: Cell<u64>,
    faults: u64,
    accepted: RefCell<Vec<Record>>,
    /// Attempts in progress, and their maximum.
    now: Cell<usize>,
    most: Cell<usize>,
    attempts: RefCell<Vec<Instant>>,
}

/// Bodies with a record before a multiple of this number are rejected, whatever the chance.
const REJECTED: u32 = 97;
/// Bodies with more records are too large.
const LARGEST: usize = 40;

impl Faulty {
    fn new(seed: u64, faults: u64) -> Rc<Faulty> {
        Rc::new(Faulty {
            random: Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faults,
            accepted: RefCell::default(),
            now: Cell::new(0),
            most: Cell::new(0),
            attempts: RefCell::default(),
        })
    }

    fn random(&self, below: u64) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x % below
    }
}

impl Transport for Faulty {
    fn send<'a>(&'a self, body: &'a Body) -> Sending<'a> {
        Box::pin(async move {
            self.attempts.borrow_mut().push(Instant::now());
            self.now.set(self.now.get() + 1);
            self.most.set(self.most.get().max(self.now.get()));
            tokio::time::sleep(Duration::from_millis(self.random(50))).await;
            self.now.set(self.now.get() - 1);
            let records = records_of(&body.bytes);
            if self.random(100) < self.faults {
                let after = (self.random(4) == 0).then(|| Duration::from_millis(self.random(3000)));
                // An answer that is lost: the records are there.
                if self.random(3) == 0 {
                    self.accepted.borrow_mut().extend(&records);
                }
                return Outcome::Retry { error: "it failed".into(), after };
            }
            if records.len() > LARGEST {
                return Outcome::TooLarge { error: "too large".into() };
            }
            if records.iter().any(|(_, number)| *number % REJECTED == REJECTED - 1) {
                return Outcome::rejected("it is invalid");
            }
            self.accepted.borrow_mut().extend(&records);
            Outcome::Delivered
        })
    }
}

struct Run {
    receiver: Rc<Faulty>,
    acknowledged: Vec<Record>,
    row: Arc<Row>,
    took: Duration,
}

async fn run(receiver: Rc<Faulty>, streams: u8, records: u32, max_concurrency: usize) -> Run {
    let begun = Instant::now();
    let sizes = || 1 + receiver.random(100) as u32;
    let (row, acknowledged) = deliver(receiver.clone(), streams, records, max_concurrency, &sizes).await;
    Run { receiver: receiver.clone(), acknowledged, row, took: begun.elapsed() }
}

/// Delivers this many records of each stream, in batches of some sizes. Returns the row, and what was acknowledged.
async fn deliver(
    transport: Rc<dyn Transport>,
    streams: u8,
    records: u32,
    max_concurrency: usize,
    size: &dyn Fn() -> u32,
) -> (Arc<Row>, Vec<Record>) {
    let telemetry = Telemetry::default();
    let component = Component::sink("logs.sinks.x".into(), "http");
    let row = telemetry.ledger.row(&component);
    let queue = Queue::new(0, 4096, WhenFull::Block, row.clone());
    let phase = Lifecycle::default().participant("logs").watch();
    let limits = BatchLimits { bytes: 400, records: 64, age: Duration::from_millis(100) };
    let options = Options { limits, retry: RetryConfig::default(), max_concurrency };
    let sink = Sink { encoder: Box::new(Encoder::default()), transport };
    let engine = Engine::new(&component, sink, queue.clone(), options, &telemetry, telemetry.health("logs"), phase);
    let acknowledged: Rc<RefCell<Vec<Record>>> = Rc::default();
    let mut ends = vec![0; usize::from(streams)];
    let feed = async {
        while ends.iter().any(|end| *end < records) {
            for (stream, end) in (0..streams).zip(&mut ends) {
                let count = size().min(records - *end);
                let batch = Numbers { stream, first: *end, count, acknowledged: acknowledged.clone() };
                queue.room(batch.cost()).await;
                queue.push(Rc::new(batch), false);
                *end += count;
            }
        }
        queue.close();
    };
    tokio::join!(engine.run(), feed);
    let acknowledged = acknowledged.borrow().clone();
    (row, acknowledged)
}

/// The order of first acceptances, the acknowledgements, and the ledger.
fn check(run: &Run, streams: u8, records: u32, context: &str) {
    let accepted = run.receiver.accepted.borrow();
    let mut times: BTreeMap<Record, u32> = BTreeMap::new();
    let mut seen: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
    for (stream, number) in accepted.iter() {
        *times.entry((*stream, *number)).or_default() += 1;
        let numbers = seen.entry(*stream).or_default();
        if times[&(*stream, *number)] == 1 {
            numbers.push(*number);
        }
    }
    assert!(seen.values().all(|numbers| numbers.is_sorted()), "{context}: first acceptances keep the order");
    let mut acknowledged = run.acknowledged.clone();
    acknowledged.sort_unstable();
    let expected: Vec<Record> =
        (0..streams).flat_map(|stream| (0..records).map(move |number| (stream, number))).collect();
    assert_eq!(acknowledged, expected, "{context}: each record is acknowledged once");
    let counts = run.row.counts();
    let total = u64::from(streams) * u64::from(records);
    assert_eq!((counts.received, counts.pending), (total, 0), "{context}");
    assert_eq!(counts.delivered + counts.dropped_total(), total, "{context}");
    let accepted_once = times.len() as u64;
    assert!(counts.delivered <= accepted_once, "{context}: nothing counts as delivered that was not accepted");
    // Only what the receiver rejects by its content is lost, unless two such records are in one body with little else.
    let invalid = u64::from(streams) * u64::from(records / REJECTED);
    assert_eq!(counts.dropped, BTreeMap::from([(Reason::Rejected, invalid)]), "{context}");
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn random_faults_lose_and_reorder_nothing() {
    for seed in 1..60 {
        for max_concurrency in [1, 2, 4, 8] {
            let (streams, records) = (1 + (seed % 6) as u8, 500);
            let run = run(Faulty::new(seed, [0, 10, 40][seed as usize % 3]), streams, records, max_concurrency).await;
            check(&run, streams, records, &format!("seed {seed}, {max_concurrency} in flight"));
            let most = run.receiver.most.get();
            assert!(most <= max_concurrency.min(streams.into()), "seed {seed}: {most} in flight");
        }
    }
}

/// While a receiver fails, the rate of attempts does not depend on the number of bodies.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_failing_receiver_gets_one_probe_at_a_time() {
    let receiver = Faulty::new(7, 100);
    let run = run(receiver.clone(), 8, 100, 8);
    let _ = tokio::time::timeout(Duration::from_secs(600), run).await;
    let attempts = receiver.attempts.borrow();
    let begun = attempts[0];
    let later: Vec<_> = attempts.iter().filter(|at| at.duration_since(begun) > Duration::from_secs(60)).collect();
    assert!((15..=30).contains(&later.len()), "{} attempts in nine minutes", later.len());
    let in_a_second = attempts.iter().filter(|at| at.duration_since(begun) > Duration::from_millis(50));
    let first = in_a_second.filter(|at| at.duration_since(begun) < Duration::from_millis(1050)).count();
    assert!(first <= 4, "{first} attempts in the second after the first failure");
    assert!(receiver.most.get() <= 8);
}

/// A body that is too large is sent in parts, and one record that is too large is dropped.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn too_large_bodies_are_split() {
    let run = run(Faulty::new(3, 0), 1, 90, 1).await;
    let accepted: Vec<u32> = run.receiver.accepted.borrow().iter().map(|(_, number)| *number).collect();
    assert_eq!(accepted, (0..90).collect::<Vec<_>>());
    assert_eq!(run.row.counts().delivered, 90);
    assert!(run.took < Duration::from_secs(5), "{:?}", run.took);
}

/// A receiver that rejects everything gets few requests a body, after the first body was split in vain.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn rejected_bodies_are_split_only_if_it_helps() {
    struct Rejecting {
        outcome: fn() -> Outcome,
        requests: Cell<u32>,
    }
    impl Transport for Rejecting {
        fn send<'a>(&'a self, _body: &'a Body) -> Sending<'a> {
            self.requests.set(self.requests.get() + 1);
            Box::pin(std::future::ready((self.outcome)()))
        }
    }
    let rejected: fn() -> Outcome = || Outcome::rejected("no");
    let too_large: fn() -> Outcome = || Outcome::TooLarge { error: "no".into() };
    for (outcome, of_each) in [(rejected, 1), (too_large, 2 * SPLITS_MAX_IN_VAIN + 1)] {
        let receiver = Rc::new(Rejecting { outcome, requests: Cell::new(0) });
        let (row, _) = deliver(receiver.clone(), 1, 64 * 100, 1, &|| 64).await;
        assert_eq!(row.counts().dropped, BTreeMap::from([(Reason::Rejected, 6400)]));
        let (requests, bodies) = (receiver.requests.get(), 6400 / 64);
        assert!(requests <= 2 * SPLITS_MAX + 1 + of_each * bodies, "{requests} requests");
    }
}
