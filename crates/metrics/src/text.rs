//! The Prometheus text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats), parsed into a snapshot and written
//! from several. In: the body of a scrape. Out: families of samples with their type. An invalid line is skipped and counted, and
//! the first one is reported, so that one bad line of the app does not fail the scrape. Limits: `max_series` series; new ones
//! above it are skipped and counted, known ones stay.

use crate::series::{Found, Interner, Metadata, MetricFamily, Sample, Series, Snapshot, Timing};
use base::telemetry::family::{FamilyKind, escape, is_label_name, write_number};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// The errors of a scrape.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ParseErrors {
    pub bad_lines: u64,
    /// The number, from 1, and the error of the first bad line.
    pub first_bad: Option<(usize, &'static str)>,
    /// Samples of series above the limit.
    pub over_limit: u64,
    /// Samples whose own timestamp a receiver would reject.
    pub not_newer: u64,
}

/// Parses one exposition. If the limit is reached, known series take precedence over new ones.
pub fn parse(body: &[u8], time_ms: i64, max_series: usize, interner: &mut Interner) -> (Snapshot, ParseErrors) {
    interner.begin();
    let mut reader = Reader { families: Vec::new(), by_name: HashMap::new(), last: None, time_ms };
    let mut errors = ParseErrors::default();
    let mut new = Vec::new();
    let lines = || memchr_lines(body).map(<[u8]>::trim_ascii).enumerate();
    // A TYPE after its samples applies to them as well.
    for (index, line) in lines().filter(|(_, line)| line.first() == Some(&b'#')) {
        errors.note(index, reader.comment(line));
    }
    for (index, line) in lines().filter(|(_, line)| line.first().is_some_and(|byte| *byte != b'#')) {
        match reader.known(line, interner) {
            Some(outcome) => errors.note(index, outcome),
            None => new.push((index, line)),
        }
    }
    for (index, line) in new {
        errors.note(index, reader.new_series(line, max_series, interner));
    }
    let stale = interner.end(time_ms);
    let snapshot = Snapshot { time_ms, families: reader.families, target: Vec::new(), stale };
    errors.not_newer = snapshot.timings().not_newer as u64;
    (snapshot, errors)
}

impl ParseErrors {
    fn note(&mut self, index: usize, outcome: Line) {
        match outcome {
            Ok(()) => {}
            Err(OVER_LIMIT) => self.over_limit += 1,
            Err(error) => {
                self.bad_lines += 1;
                match &self.first_bad {
                    Some((first, _)) if *first <= index + 1 => {}
                    _ => self.first_bad = Some((index + 1, error)),
                }
            }
        }
    }
}

const OVER_LIMIT: &str = "series limit exceeded";

/// A sample whose own timestamp is further from the scrape than this would be rejected with its complete request: what Prometheus
/// allows behind its newest sample, and ahead of its clock.
const BEHIND_MAX_MS: i64 = 60 * 60 * 1000;
const AHEAD_MAX_MS: i64 = 10 * 60 * 1000;

fn memchr_lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest.get(..end)?;
        rest = rest.get(end + 1..).unwrap_or(&[]);
        Some(line)
    })
}

struct Reader {
    families: Vec<MetricFamily>,
    by_name: HashMap<Rc<str>, usize>,
    /// The family of the last sample: the next one is most likely of the same metric.
    last: Option<usize>,
    /// The time of the scrape.
    time_ms: i64,
}

type Line = Result<(), &'static str>;

impl Reader {
    fn comment(&mut self, line: &[u8]) -> Line {
        // Comments other than HELP and TYPE are ignored, whatever they contain.
        let Some(text) = line.strip_prefix(b"#").and_then(|line| std::str::from_utf8(line).ok()) else { return Ok(()) };
        let Some(text) = text.strip_prefix([' ', '\t']) else { return Ok(()) };
        let (word, text) = first_word(text);
        let (name, rest) = first_word(text);
        match word {
            "HELP" if is_metric_name(name) => {
                let index = self.family(name);
                if let Some(family) = self.families.get_mut(index) {
                    family.meta.help = unescape(rest).into();
                }
            }
            "TYPE" if is_metric_name(name) => {
                let kind = match rest.trim() {
                    "counter" => FamilyKind::Counter,
                    "gauge" => FamilyKind::Gauge,
                    "histogram" => FamilyKind::Histogram,
                    "summary" => FamilyKind::Summary,
                    "untyped" | "unknown" => FamilyKind::Unknown,
                    _ => return Err("unknown metric type"),
                };
                let index = self.family(name);
                if let Some(family) = self.families.get_mut(index) {
                    family.meta.kind = kind;
                }
            }
            "HELP" | "TYPE" => return Err("HELP or TYPE without a metric name"),
            _ => {}
        }
        Ok(())
    }

    /// Parses a line of a series that had a sample before; None if the series is new.
    fn known(&mut self, line: &[u8], interner: &mut Interner) -> Option<Line> {
        let end = match series_end(line) {
            Ok(end) => end,
            Err(error) => return Some(Err(error)),
        };
        let (text, rest) = line.split_at_checked(end)?;
        let found = interner.find(text).filter(|found| interner.is_reported(found))?;
        Some(value_and_time(rest).map(|sample| self.sample(&found, sample, interner)))
    }

    fn new_series(&mut self, line: &[u8], max_series: usize, interner: &mut Interner) -> Line {
        let (text, rest) = line.split_at_checked(series_end(line)?).ok_or("a sample without a value")?;
        let found = match interner.find(text) {
            Some(found) => found,
            None => interner.insert(text, parse_series(text)?),
        };
        let sample = value_and_time(rest)?;
        if interner.len() >= max_series && !interner.is_reported(&found) {
            return Err(OVER_LIMIT);
        }
        self.sample(&found, sample, interner);
        Ok(())
    }

    fn sample(&mut self, found: &Found, (value, time_ms): (f64, Option<i64>), interner: &mut Interner) {
        let bounds = self.time_ms.saturating_sub(BEHIND_MAX_MS)..=self.time_ms.saturating_add(AHEAD_MAX_MS);
        let timing = match time_ms {
            Some(own) if !bounds.contains(&own) => {
                // It counts as a sample anyway: its series does not end.
                interner.report(found, i64::MIN, true, value);
                Timing::NotNewer
            }
            own => interner.report(found, own.unwrap_or(self.time_ms), own.is_some(), value),
        };
        let index = self.family_of(&found.series().name);
        if let Some(family) = self.families.get_mut(index) {
            family.samples.push(Sample { series: found.series().clone(), value, time_ms, timing });
        }
    }

    /// The family of a sample's name: `x_bucket`, `x_sum` and `x_count` belong to a histogram or summary `x`.
    fn family_of(&mut self, name: &str) -> usize {
        if let Some(index) =
            self.last.filter(|index| self.families.get(*index).is_some_and(|family| belongs(&family.meta, name)))
        {
            return index;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let base = name.strip_suffix(suffix)?;
            let index = *self.by_name.get(base)?;
            self.families.get(index).is_some_and(|family| belongs(&family.meta, name)).then_some(index)
        });
        let index = base.unwrap_or_else(|| self.family(name));
        self.last = Some(index);
        index
    }

    fn family(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let name: Rc<str> = name.into();
        self.families.push(MetricFamily {
            meta: Metadata { name: name.clone(), help: "".into(), kind: FamilyKind::Unknown },
            samples: Vec::new(),
        });
        self.by_name.insert(name, self.families.len() - 1);
        self.families.len() - 1
    }
}

/// Parses what follows a series: the value, and the timestamp if there is one.
fn value_and_time(rest: &[u8]) -> Result<(f64, Option<i64>), &'static str> {
    let rest = std::str::from_utf8(rest).map_err(|_| "a value is not UTF-8")?;
    let mut words = rest.split_ascii_whitespace();
    let value = parse_value(words.next().ok_or("a sample without a value")?).ok_or("a value that is not a number")?;
    let time_ms: Option<i64> = match words.next() {
        None => None,
        Some(word) => Some(word.parse().map_err(|_| "a timestamp that is not an integer number of milliseconds")?),
    };
    match words.next() {
        None => Ok((value, time_ms)),
        Some(_) => Err("unexpected text after the timestamp"),
    }
}

/// The first word, and the text after the blanks that follow it: "Tokens can be separated by any number of blanks and/or tabs."
fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches([' ', '\t']);
    let (word, rest) = text.split_at(text.find([' ', '\t']).unwrap_or(text.len()));
    (word, rest.trim_start_matches([' ', '\t']))
}

fn belongs(meta: &Metadata, name: &str) -> bool {
    let Some(suffix) = name.strip_prefix(&*meta.name) else { return false };
    match meta.kind {
        FamilyKind::Histogram => matches!(suffix, "_bucket" | "_sum" | "_count" | ""),
        FamilyKind::Summary => matches!(suffix, "" | "_sum" | "_count"),
        _ => suffix.is_empty(),
    }
}

/// The end of the series in a line: after `}` or at the first blank.
fn series_end(line: &[u8]) -> Result<usize, &'static str> {
    let mut quoted = false;
    let mut escaped = false;
    let mut braced = false;
    for (index, &byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' => braced = true,
            b'}' => return Ok(index + 1),
            // A blank may precede the brace.
            b' ' | b'\t' if !braced && line.get(index..).unwrap_or(&[]).trim_ascii_start().first() != Some(&b'{') => {
                return Ok(index);
            }
            _ => {}
        }
    }
    Err(if braced { "labels without a closing brace" } else { "a sample without a value" })
}

fn parse_series(text: &[u8]) -> Result<Series, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "a series is not UTF-8")?;
    let (name, rest) = match text.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').ok_or("labels without a closing brace")?),
        None => (text, ""),
    };
    let name = name.trim_end();
    if !is_metric_name(name) {
        return Err("invalid character in the metric name");
    }
    let mut labels = Vec::new();
    let mut rest = rest.trim();
    while !rest.is_empty() {
        let (label, tail) = rest.split_once('=').ok_or("a label without a value")?;
        let label = label.trim();
        if !is_label_name(label) {
            return Err("invalid character in a label name");
        }
        if label == "__name__" {
            return Err("a label `__name__`, which is reserved for the name of the metric");
        }
        let inside = tail.trim_start().strip_prefix('"').ok_or("a label value without quotes")?;
        let end = closing_quote(inside).ok_or("a label value without a closing quote")?;
        // A label with an empty value is the same as no label (prometheus.io/docs/concepts/data_model).
        if end > 0 {
            labels.push((label.into(), unescape(&inside[..end]).into()));
        }
        rest = inside[end + 1..].trim_start();
        rest = match rest.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err("missing comma between labels"),
        };
    }
    labels.sort();
    if labels.windows(2).any(|pair: &[(Box<str>, Box<str>)]| pair[0].0 == pair[1].0) {
        return Err("duplicate label name");
    }
    Ok(Series { name: name.into(), labels: labels.into() })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => byte == b'"',
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other @ ('\\' | '"')) => out.push(other),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out
}

/// Like Go's ParseFloat, which defines the format, but without hexadecimal digits and underscores.
fn parse_value(word: &str) -> Option<f64> {
    let (sign, rest) = match word.as_bytes() {
        [b'-', ..] => (-1.0, word.get(1..)?),
        [b'+', ..] => (1.0, word.get(1..)?),
        _ => (1.0, word),
    };
    if rest.eq_ignore_ascii_case("inf") || rest.eq_ignore_ascii_case("infinity") {
        return Some(sign * f64::INFINITY);
    }
    if word.eq_ignore_ascii_case("nan") {
        return Some(f64::NAN);
    }
    let digits = word.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    // In Go, a number that is too large is an error, not infinity.
    word.parse().ok().filter(|value: &f64| digits && value.is_finite())
}

fn is_metric_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    name.bytes().all(valid) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// Merges snapshots into one exposition. If two sources expose a metric with different types, the first one is written; returns
/// the names of the skipped ones. A series that two sources expose is written once.
pub fn write(snapshots: &[Rc<Snapshot>], out: &mut String) -> Vec<Rc<str>> {
    let mut order: Vec<Rc<str>> = Vec::new();
    let mut merged: HashMap<Rc<str>, Vec<&MetricFamily>> = HashMap::new();
    let mut conflicts = Vec::new();
    for family in snapshots.iter().flat_map(|snapshot| &snapshot.families).filter(|family| !family.samples.is_empty()) {
        let families = merged.entry(family.meta.name.clone()).or_insert_with(|| {
            order.push(family.meta.name.clone());
            Vec::new()
        });
        match families.first() {
            Some(first) if first.meta.kind != family.meta.kind => conflicts.push(family.meta.name.clone()),
            _ => families.push(family),
        }
    }
    for name in order {
        let Some(families) = merged.get(&name) else { continue };
        write_family(families, out);
    }
    conflicts
}

fn write_family(families: &[&MetricFamily], out: &mut String) {
    let Some(first) = families.first() else { return };
    if !first.meta.help.is_empty() {
        out.extend(["# HELP ", &first.meta.name, " "]);
        escape(&first.meta.help, false, out);
        out.push('\n');
    }
    out.extend(["# TYPE ", &first.meta.name, " ", first.meta.kind.as_str(), "\n"]);
    // "Each line must have a unique combination of a metric name and labels": the first one is written.
    let mut written: HashSet<(&Series, Option<i64>)> = HashSet::new();
    let may_repeat = families.len() > 1 || first.samples.iter().any(|sample| sample.timing != Timing::Newer);
    for sample in families.iter().flat_map(|family| &family.samples) {
        if may_repeat && !written.insert((&sample.series, sample.time_ms)) {
            continue;
        }
        out.push_str(&sample.series.name);
        for (index, (name, value)) in sample.series.labels.iter().enumerate() {
            out.extend([if index == 0 { "{" } else { "," }, name, "=\""]);
            escape(value, true, out);
            out.push('"');
        }
        out.push_str(if sample.series.labels.is_empty() { " " } else { "} " });
        write_number(sample.value, out);
        if let Some(time_ms) = sample.time_ms {
            out.extend([" ", &time_ms.to_string()]);
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(text: &str) -> (String, ParseErrors) {
        let (snapshot, errors) = parse(text.as_bytes(), 1_700_000_000_000, 1000, &mut Interner::default());
        let mut out = String::new();
        assert!(write(&[Rc::new(snapshot)], &mut out).is_empty());
        (out, errors)
    }

    #[test]
    fn valid_expositions_survive_a_round_trip() {
        let text = "# HELP a_total Things\\nof all kinds.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\\\\\\n}\"} 3\n\
                    # TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1.5\nh_count 2\n\
                    # TYPE s summary\ns{quantile=\"0.9\"} NaN\ns_sum 1\ns_count 1\n\
                    # TYPE g gauge\ng -Inf 1700000000000\n";
        assert_eq!(round_trip(text), (text.to_string(), ParseErrors::default()));
        let (loose, errors) = round_trip("# a comment\n\n  b { z = \"1\" , a=\"2\", } 1e3\nc 0x1\n");
        assert_eq!(loose, "# TYPE b untyped\nb{a=\"2\",z=\"1\"} 1000\n");
        assert_eq!(errors.first_bad, Some((4, "a value that is not a number")));
    }

    #[test]
    fn duplicate_series_and_extra_blanks_are_dropped() {
        let (text, errors) = round_trip("a 1\na 2\nb{x=\"1\",y=\"2\"} 1\nb{y=\"2\",x=\"1\"} 2\n");
        assert_eq!(text, "# TYPE a untyped\na 1\n# TYPE b untyped\nb{x=\"1\",y=\"2\"} 1\n");
        assert_eq!(errors.not_newer, 2);
        let text = "#  HELP  c \t two  words\n#\tTYPE \t c  \tcounter\nc 1\n";
        assert_eq!(round_trip(text).0, "# HELP c two  words\n# TYPE c counter\nc 1\n");
    }

    fn check_bad(line: &str, error: &str) {
        let (out, errors) = round_trip(&format!("good 1\n{line}\nlast 2\n"));
        assert_eq!(
            errors.first_bad.map(|(number, text)| (number, text.contains(error))),
            Some((2, true)),
            "{line}: {errors:?}"
        );
        assert!(out.contains("good 1\n") && out.contains("last 2\n"), "a bad line drops only itself");
    }

    #[test]
    fn a_bad_line_drops_only_itself_and_is_reported() {
        check_bad("9a 1", "metric name");
        check_bad("a{b=\"1\" 1", "labels without a closing brace");
        check_bad("a{b=1} 1", "without quotes");
        check_bad("a{b=\"1\"c=\"2\"} 1", "comma");
        check_bad("a{b=\"1\",b=\"2\"} 1", "duplicate label");
        check_bad("a{é=\"1\"} 1", "label name");
        check_bad("a", "without a value");
        check_bad("a{b=\"1\"}", "without a value");
        check_bad("a one", "not a number");
        check_bad("a infinite", "not a number");
        check_bad("a 1e999", "not a number");
        check_bad("a 1_000", "not a number");
        check_bad("a +nan", "not a number");
        check_bad("a{__name__=\"evil\"} 1", "name of the metric");
        check_bad("a 1 soon", "timestamp");
        check_bad("a 1 2 3", "unexpected text after");
        check_bad("# TYPE a gorge", "metric type");
    }

    #[test]
    fn new_series_above_the_limit_are_skipped() {
        let mut interner = Interner::default();
        let (first, _) = parse(b"a 1\nb 1\n", 0, 2, &mut interner);
        assert_eq!(first.samples(), 2);
        let (second, errors) = parse(b"a 2\nb 2\nc 1\n", 1, 2, &mut interner);
        assert_eq!((second.samples(), errors.over_limit, errors.bad_lines), (2, 1, 0));
        let (third, errors) = parse(b"x 1\ny 1\n", 2, 2, &mut interner);
        assert_eq!((third.samples(), errors.over_limit), (2, 0), "ended series free their slots immediately");
    }

    #[test]
    fn values_parse_like_go_and_comments_are_ignored() {
        for (text, expect) in [
            ("Nan", "NaN"),
            ("nan", "NaN"),
            ("inf", "+Inf"),
            ("-INF", "-Inf"),
            ("Infinity", "+Inf"),
            ("+infinity", "+Inf"),
            ("5.", "5"),
            (".5e1", "5"),
        ] {
            let (out, errors) = round_trip(&format!("a {text}\n"));
            assert_eq!(
                (out.as_str(), errors.bad_lines),
                (format!("# TYPE a untyped\na {expect}\n").as_str(), 0),
                "{text}"
            );
        }
        let (out, errors) = round_trip("## TYPE a counter\n#TYPE a counter\n#HELP a b\na 1\n#\n");
        assert_eq!((out.as_str(), errors.bad_lines), ("# TYPE a untyped\na 1\n", 0));
        let (snapshot, errors) = parse(b"# \xff\xfe\na 1\n# HELP a \xff\n", 0, 10, &mut Interner::default());
        assert_eq!((snapshot.samples(), errors.bad_lines), (1, 0));
    }

    #[test]
    fn known_series_keep_their_slots_until_they_end() {
        let mut interner = Interner::default();
        let old: String = (0..5).map(|n| format!("old{n} 1\n")).collect();
        parse(old.as_bytes(), 0, 5, &mut interner);
        for round in 1..20 {
            let new: String = (0..5).map(|n| format!("new{round}_{n} 1\n")).collect();
            let (snapshot, errors) = parse(format!("{new}{old}").as_bytes(), round, 5, &mut interner);
            let names: Vec<&str> = snapshot.families.iter().flat_map(|b| &b.samples).map(|s| &*s.series.name).collect();
            assert_eq!(names, ["old0", "old1", "old2", "old3", "old4"]);
            assert_eq!((errors.over_limit, snapshot.stale.len()), (5, 0));
        }
        let (snapshot, errors) = parse(b"old0 bad\n", 30, 5, &mut interner);
        assert_eq!((errors.bad_lines, snapshot.stale.len()), (1, 5));
    }

    #[test]
    fn label_order_does_not_distinguish_series() {
        let mut interner = Interner::default();
        let orders = ["a{x=\"1\",y=\"2\"} 1\n", "a{y=\"2\",x=\"1\"} 2\n", "a{ y=\"2\" ,x=\"1\", } 3\n"];
        for (round, text) in orders.iter().cycle().take(9).enumerate() {
            let (snapshot, _) = parse(text.as_bytes(), round as i64, 1, &mut interner);
            assert_eq!((snapshot.samples(), snapshot.stale.len()), (1, 0), "round {round}");
        }
    }

    #[test]
    fn a_rejected_timestamp_drops_only_its_sample() {
        let mut interner = Interner::default();
        let now = 1_700_000_000_000;
        let (snapshot, errors) = parse(format!("a 1\nb 2 1700000000\nc 3 {now}\n").as_bytes(), now, 10, &mut interner);
        let timing: Vec<Timing> = snapshot.families.iter().flat_map(|b| &b.samples).map(|s| s.timing).collect();
        assert_eq!(timing, [Timing::Newer, Timing::NotNewer, Timing::Newer]);
        assert_eq!((errors.not_newer, errors.bad_lines), (1, 0));
        let (_, errors) = parse(format!("c 4 {now}\n").as_bytes(), now + 1, 10, &mut interner);
        assert_eq!(errors.not_newer, 1, "another value with the same timestamp");
        let (_, errors) = parse(format!("c 3 {now}\n").as_bytes(), now + 2, 10, &mut interner);
        assert_eq!(errors.not_newer, 0, "the same sample again");
    }

    #[test]
    fn sources_are_merged_typed() {
        let snapshot = |text: &str| Rc::new(parse(text.as_bytes(), 0, 10, &mut Interner::default()).0);
        let sources = [
            snapshot("# TYPE n counter\nn{s=\"1\"} 1\n"),
            snapshot("# TYPE n counter\nn{s=\"2\"} 1\nn{s=\"1\"} 9\n"),
            snapshot("# TYPE n gauge\nn 1\n"),
        ];
        let mut out = String::new();
        let conflicts = write(&sources, &mut out);
        assert_eq!(out, "# TYPE n counter\nn{s=\"1\"} 1\nn{s=\"2\"} 1\n");
        assert_eq!(conflicts.len(), 1);
    }
}
