//! Series, interned once, and snapshots of a target: (series, time, value) in the order of its exposition. In: parsed lines, or
//! Outrigger's own families. Out: snapshots that sinks share. Limits: a target's interner retains what its last snapshot used;
//! `max_series` of its source limits the number of series.

use base::telemetry::family::{Family, FamilyKind, PointValue};
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

/// One series: its full name (with `_bucket` and the like), and its labels sorted by name.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Series {
    pub name: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
}

/// Name, help and type of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub name: Rc<str>,
    pub help: Rc<str>,
    pub kind: FamilyKind,
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub series: Rc<Series>,
    pub value: f64,
    /// The app's own timestamp in milliseconds, if it exposes one.
    pub time_ms: Option<i64>,
    pub timing: Timing,
}

/// A metric with its samples.
#[derive(Clone, Debug)]
pub struct MetricFamily {
    pub meta: Metadata,
    pub samples: Vec<Sample>,
}

/// All samples of one source at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub time_ms: i64,
    pub families: Vec<MetricFamily>,
    /// Labels that identify the target, for receivers with many targets.
    pub target: Vec<(Rc<str>, Rc<str>)>,
    /// Series that the target no longer exposes: they end here (staleness).
    pub stale: Vec<Rc<Series>>,
}

impl Snapshot {
    pub fn samples(&self) -> usize {
        self.families.iter().map(|family| family.samples.len()).sum()
    }

    /// Its size in memory, without the names and labels of series, which all snapshots share.
    pub fn bytes(&self) -> usize {
        let families =
            self.families.iter().map(|family| size_of::<MetricFamily>() + family.samples.len() * size_of::<Sample>());
        families.sum::<usize>() + self.stale.len() * size_of::<Rc<Series>>()
    }

    /// The number of samples by timing.
    pub fn timings(&self) -> Timings {
        let mut timings = Timings::default();
        for sample in self.families.iter().flat_map(|family| &family.samples) {
            match sample.timing {
                Timing::Newer => timings.newer += 1,
                Timing::Repeated => timings.repeated += 1,
                Timing::NotNewer => timings.not_newer += 1,
            }
        }
        timings
    }
}

/// The value that ends a series (prometheus.io/docs/specs/prw/remote_write_spec, "Stale Markers").
pub const STALE: u64 = 0x7ff0_0000_0000_0002;

/// The series of one target, by their text in its exposition: a line that was seen before costs one lookup. Texts that differ
/// only in the order of their labels are one series.
#[derive(Default)]
pub struct Interner {
    texts: HashMap<Box<[u8]>, Text>,
    series: HashMap<Rc<Series>, Rc<Known>>,
    round: u64,
    /// Series reported in this round; those of the previous round are known as well.
    reported: usize,
    /// Series of the last round that reported any.
    last_reported: usize,
}

struct Text {
    known: Rc<Known>,
    seen: u64,
}

/// The state of a series, in addition to its labels.
struct Known {
    series: Rc<Series>,
    seen: Cell<u64>,
    /// Time and value of its last sample.
    last: Cell<Option<(i64, f64)>>,
    /// The last sample had its own timestamp.
    own_time: Cell<bool>,
}

/// The series of a text, before it is known whether the line has a sample.
#[derive(Clone)]
pub struct Found(Rc<Known>);

impl Found {
    pub fn series(&self) -> &Rc<Series> {
        &self.0.series
    }
}

impl Interner {
    /// Begins a new snapshot.
    pub fn begin(&mut self) {
        self.round += 1;
        self.reported = 0;
    }

    /// Series reported in this round.
    pub fn len(&self) -> usize {
        self.reported
    }

    pub fn is_empty(&self) -> bool {
        self.reported == 0
    }

    /// The series of a text, if it was seen before.
    pub fn find(&mut self, text: &[u8]) -> Option<Found> {
        let found = self.texts.get_mut(text)?;
        found.seen = self.round;
        Some(Found(found.known.clone()))
    }

    /// The series of a text that was not seen before.
    pub fn insert(&mut self, text: &[u8], series: Series) -> Found {
        let known = match self.series.get(&series) {
            Some(known) => known.clone(),
            None => {
                let series = Rc::new(series);
                let known = Rc::new(Known {
                    series: series.clone(),
                    seen: Cell::new(0),
                    last: Cell::new(None),
                    own_time: Cell::new(false),
                });
                self.series.insert(series, known.clone());
                known
            }
        };
        self.texts.insert(text.into(), Text { known: known.clone(), seen: self.round });
        Found(known)
    }

    /// Whether the series has had a sample in this snapshot or the previous one.
    pub fn is_reported(&self, found: &Found) -> bool {
        found.0.seen.get() + 1 >= self.round && found.0.seen.get() > 0
    }

    /// Records a sample; returns how a receiver would treat its time.
    pub fn report(&mut self, found: &Found, time_ms: i64, own_time: bool, value: f64) -> Timing {
        let known = &found.0;
        known.own_time.set(own_time);
        self.reported += usize::from(known.seen.replace(self.round) != self.round);
        match known.last.get() {
            Some((last, old)) if time_ms == last && value.to_bits() == old.to_bits() => Timing::Repeated,
            Some((last, _)) if time_ms <= last => Timing::NotNewer,
            _ => {
                known.last.set(Some((time_ms, value)));
                Timing::Newer
            }
        }
    }

    /// Ends a snapshot: removes the series that were not in it, and returns those that end at this time. A series with its own
    /// timestamps ends by itself, as in Prometheus, and its last timestamp is retained: it may return with an older one.
    pub fn end(&mut self, time_ms: i64) -> Vec<Rc<Series>> {
        let round = self.round;
        let ended = |known: &Known| known.seen.get() != round;
        let before = |known: &Known| known.last.get().is_some_and(|(last, _)| last < time_ms);
        let (mut stale, mut absent) = (Vec::new(), 0);
        for known in self.series.values().filter(|known| ended(known)) {
            if known.own_time.get() {
                absent += 1;
            } else if before(known) {
                stale.push(known.series.clone());
            }
        }
        if self.reported > 0 {
            self.last_reported = self.reported;
        }
        let retained = absent <= self.last_reported.max(ABSENT_MIN);
        self.series.retain(|_, known| !ended(known) || retained && known.own_time.get());
        self.texts.retain(|_, text| text.seen == round && !ended(&text.known));
        stale
    }
}

/// Absent series whose last timestamps are retained: this many, or as many as were last reported. If there are more, all are
/// removed.
const ABSENT_MIN: usize = 256;

/// The time of a sample, compared with the previous sample of its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    Newer,
    /// The same sample again, such as of an exposition that is updated less often than it is scraped.
    Repeated,
    /// A receiver would reject it, and everything in the same request.
    NotNewer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    pub newer: usize,
    pub repeated: usize,
    pub not_newer: usize,
}

/// Outrigger's own families as a snapshot: histograms become the series that the text format defines for them.
pub fn snapshot_of(own: &[Family], time_ms: i64, interner: &mut Interner) -> Snapshot {
    interner.begin();
    let mut families = Vec::with_capacity(own.len());
    let mut key = Vec::new();
    for family in own {
        let mut samples = Vec::new();
        for point in &family.points {
            let mut add = |suffix: &str, bound: Option<f64>, value: f64| {
                let le = bound.map(|bound| {
                    let mut text = String::new();
                    base::telemetry::family::write_number(bound, &mut text);
                    text
                });
                key.clear();
                let labels = point.labels.iter().map(|(name, value)| (&**name, &**value));
                let labels: Vec<(&str, &str)> = labels.chain(le.as_deref().map(|le| ("le", le))).collect();
                [&*family.name, suffix].iter().for_each(|part| key.extend_from_slice(part.as_bytes()));
                for (name, value) in &labels {
                    [&b"\0"[..], name.as_bytes(), b"\0", value.as_bytes()]
                        .iter()
                        .for_each(|part| key.extend_from_slice(part));
                }
                let found = interner.find(&key).unwrap_or_else(|| {
                    let mut labels: Vec<(Box<str>, Box<str>)> =
                        labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
                    labels.sort();
                    interner
                        .insert(&key, Series { name: format!("{}{suffix}", family.name).into(), labels: labels.into() })
                });
                let timing = interner.report(&found, time_ms, false, value);
                samples.push(Sample { series: found.series().clone(), value, time_ms: None, timing });
            };
            match &point.value {
                PointValue::Number(value) => add("", None, *value),
                PointValue::Histogram { bounds, sum } => {
                    bounds.iter().for_each(|(bound, count)| add("_bucket", Some(*bound), *count as f64));
                    add("_sum", None, *sum);
                    add("_count", None, bounds.last().map_or(0.0, |(_, count)| *count as f64));
                }
            }
        }
        let meta = Metadata { name: (&*family.name).into(), help: (&*family.help).into(), kind: family.kind };
        families.push(MetricFamily { meta, samples });
    }
    Snapshot { time_ms, families, target: Vec::new(), stale: interner.end(time_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::telemetry::family::Point;

    #[test]
    fn a_series_is_interned_once_and_ends_as_stale() {
        let family = |value: &str| Family::new("n", "", FamilyKind::Gauge).with(&[("a", value)], 1.0);
        let mut interner = Interner::default();
        let first = snapshot_of(&[family("x")], 1, &mut interner);
        let second = snapshot_of(&[family("x")], 2, &mut interner);
        assert!(Rc::ptr_eq(&first.families[0].samples[0].series, &second.families[0].samples[0].series));
        let third = snapshot_of(&[family("y")], 3, &mut interner);
        assert_eq!(third.stale.len(), 1);
        assert_eq!(&*third.stale[0].labels[0].1, "x");
        assert_eq!(interner.len(), 1);
    }

    #[test]
    fn repeated_samples_differ_from_not_newer_ones() {
        let mut interner = Interner::default();
        interner.begin();
        let found = interner.insert(b"a", Series { name: "a".into(), labels: Box::new([]) });
        let timings = [(5, 1.0), (5, 1.0), (5, 2.0), (4, 1.0), (6, 1.0)]
            .map(|(time, value)| interner.report(&found, time, false, value));
        use Timing::{Newer, NotNewer, Repeated};
        assert_eq!(timings, [Newer, Repeated, NotNewer, NotNewer, Newer]);
        assert_eq!(interner.len(), 1);
    }

    #[test]
    fn a_timestamped_series_stays_known_while_absent() {
        let mut interner = Interner::default();
        let mut round = |samples: &[(&str, i64)], own_time: bool| {
            interner.begin();
            let timings = samples.iter().map(|(name, time)| {
                let series = Series { name: (*name).into(), labels: Box::new([]) };
                let found = interner.find(name.as_bytes()).unwrap_or_else(|| interner.insert(name.as_bytes(), series));
                interner.report(&found, *time, own_time, 1.0)
            });
            let timings: Vec<Timing> = timings.collect();
            (timings, interner.end(100).len(), interner.series.len())
        };
        assert_eq!(round(&[("a", 5)], true), (vec![Timing::Newer], 0, 1));
        assert_eq!(round(&[], true), (vec![], 0, 1), "a failed round");
        assert_eq!(round(&[("a", 4)], true), (vec![Timing::NotNewer], 0, 1));
        assert_eq!(round(&[("b", 1)], false), (vec![Timing::Newer], 0, 2));
        assert_eq!(round(&[], false), (vec![], 1, 1), "a series without its own timestamps ends");
        let many: Vec<String> = (0..ABSENT_MIN + 1).map(|number| format!("n{number}")).collect();
        let many: Vec<(&str, i64)> = many.iter().map(|name| (name.as_str(), 1)).collect();
        round(&many, true);
        assert_eq!(round(&[("c", 1)], true).2, 1, "the number of retained series is limited");
    }

    #[test]
    fn a_histogram_becomes_text_format_series() {
        let mut family = Family::new("d", "", FamilyKind::Histogram);
        let value = PointValue::Histogram { bounds: vec![(0.5, 1), (f64::INFINITY, 3)], sum: 2.0 };
        family.points.push(Point { labels: Vec::new(), value });
        let snapshot = snapshot_of(&[family], 1, &mut Interner::default());
        let samples: Vec<(String, f64)> = snapshot.families[0]
            .samples
            .iter()
            .map(|s| (format!("{}{:?}", s.series.name, s.series.labels), s.value))
            .collect();
        let samples: Vec<(&str, f64)> = samples.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            samples,
            [
                ("d_bucket[(\"le\", \"0.5\")]", 1.0),
                ("d_bucket[(\"le\", \"+Inf\")]", 3.0),
                ("d_sum[]", 2.0),
                ("d_count[]", 3.0)
            ]
        );
    }
}
