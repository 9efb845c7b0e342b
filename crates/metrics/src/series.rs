//! Series, interned once, and snapshots of a target: (series, time, value) in the order in which it told them. In: parsed
//! lines, or families of our own. Out: snapshots that sinks share. Bound: a target's interner keeps what its last snapshot
//! used; `series_max` of its source limits how many there are.

use base::family::{Family, FamilyKind, PointValue};
use std::collections::HashMap;
use std::rc::Rc;

/// One series: its full name (with `_bucket` and the like), and its labels sorted by name.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Series {
    pub name: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
}

/// What is known of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub name: Rc<str>,
    pub help: Rc<str>,
    pub kind: FamilyKind,
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub series: Rc<Series>,
    pub value: f64,
    /// The app's own timestamp in milliseconds, where it gave one.
    pub time_ms: Option<i64>,
}

/// A metric with its samples.
#[derive(Clone, Debug)]
pub struct Block {
    pub meta: Meta,
    pub samples: Vec<Sample>,
}

/// Everything that one source told at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub time_ms: i64,
    pub blocks: Vec<Block>,
    /// Labels that tell the target, for receivers that hold many.
    pub target: Vec<(Rc<str>, Rc<str>)>,
    /// Series that the target no longer tells: they end here (staleness).
    pub gone: Vec<Rc<Series>>,
}

impl Snapshot {
    pub fn samples(&self) -> usize {
        self.blocks.iter().map(|block| block.samples.len()).sum()
    }
}

/// The value that ends a series (prometheus.io/docs/specs/prw/remote_write_spec, "Stale Markers").
pub const STALE: u64 = 0x7ff0_0000_0000_0002;

/// The series of one target, by their text in its exposition: a line that was seen before costs one look.
#[derive(Default)]
pub struct Interner {
    known: HashMap<Box<[u8]>, (Rc<Series>, u64)>,
    round: u64,
    /// Series told in this round; `known` also holds those of the round before.
    told: usize,
}

impl Interner {
    /// Begins a new snapshot.
    pub fn begin(&mut self) {
        self.round += 1;
        self.told = 0;
    }

    /// Series told in this round.
    pub fn len(&self) -> usize {
        self.told
    }

    pub fn is_empty(&self) -> bool {
        self.told == 0
    }

    /// The series of a text, if it was seen before.
    pub fn get(&mut self, text: &[u8]) -> Option<Rc<Series>> {
        let (series, seen) = self.known.get_mut(text)?;
        self.told += usize::from(*seen != self.round);
        *seen = self.round;
        Some(series.clone())
    }

    pub fn insert(&mut self, text: &[u8], series: Series) -> Rc<Series> {
        let series = Rc::new(series);
        self.told += 1;
        self.known.insert(text.into(), (series.clone(), self.round));
        series
    }

    /// Ends a snapshot: forgets, and answers, the series that were not in it.
    pub fn end(&mut self) -> Vec<Rc<Series>> {
        let round = self.round;
        let gone = self.known.values().filter(|(_, seen)| *seen != round).map(|(series, _)| series.clone()).collect();
        self.known.retain(|_, (_, seen)| *seen == round);
        gone
    }
}

/// Our own families as a snapshot: histograms become the series that the text format has for them.
pub fn snapshot_of(families: &[Family], time_ms: i64, interner: &mut Interner) -> Snapshot {
    interner.begin();
    let mut blocks = Vec::with_capacity(families.len());
    let mut key = Vec::new();
    for family in families {
        let mut samples = Vec::new();
        for point in &family.points {
            let mut add = |suffix: &str, bound: Option<f64>, value: f64| {
                let le = bound.map(|bound| {
                    let mut text = String::new();
                    base::family::write_number(bound, &mut text);
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
                let series = interner.get(&key).unwrap_or_else(|| {
                    let mut labels: Vec<(Box<str>, Box<str>)> =
                        labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
                    labels.sort();
                    interner
                        .insert(&key, Series { name: format!("{}{suffix}", family.name).into(), labels: labels.into() })
                });
                samples.push(Sample { series, value, time_ms: None });
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
        let meta = Meta { name: (&*family.name).into(), help: (&*family.help).into(), kind: family.kind };
        blocks.push(Block { meta, samples });
    }
    Snapshot { time_ms, blocks, target: Vec::new(), gone: interner.end() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::family::Point;

    /// covers: foundation 5
    #[test]
    fn a_series_is_interned_once_and_its_end_is_told() {
        let family = |value: &str| Family::new("n", "", FamilyKind::Gauge).with(&[("a", value)], 1.0);
        let mut interner = Interner::default();
        let first = snapshot_of(&[family("x")], 1, &mut interner);
        let second = snapshot_of(&[family("x")], 2, &mut interner);
        assert!(Rc::ptr_eq(&first.blocks[0].samples[0].series, &second.blocks[0].samples[0].series));
        let third = snapshot_of(&[family("y")], 3, &mut interner);
        assert_eq!(third.gone.len(), 1);
        assert_eq!(&*third.gone[0].labels[0].1, "x");
        assert_eq!(interner.len(), 1);
    }

    /// covers: foundation 5
    #[test]
    fn a_histogram_becomes_the_series_of_the_text_format() {
        let mut family = Family::new("d", "", FamilyKind::Histogram);
        let value = PointValue::Histogram { bounds: vec![(0.5, 1), (f64::INFINITY, 3)], sum: 2.0 };
        family.points.push(Point { labels: Vec::new(), value });
        let snapshot = snapshot_of(&[family], 1, &mut Interner::default());
        let told: Vec<(String, f64)> = snapshot.blocks[0]
            .samples
            .iter()
            .map(|s| (format!("{}{:?}", s.series.name, s.series.labels), s.value))
            .collect();
        let told: Vec<(&str, f64)> = told.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(
            told,
            [
                ("d_bucket[(\"le\", \"0.5\")]", 1.0),
                ("d_bucket[(\"le\", \"+Inf\")]", 3.0),
                ("d_sum[]", 2.0),
                ("d_count[]", 3.0)
            ]
        );
    }
}
