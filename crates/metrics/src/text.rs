//! The Prometheus text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats), read into a snapshot and written
//! from several. In: bytes of a scrape. Out: blocks of samples with their type. A line that is wrong is skipped, counted and
//! the first one named, so that one bad line of the app does not cost all the others. Bound: `series_max` series; new ones
//! beyond it are left out and counted, known ones stay.

use crate::series::{Block, Interner, Meta, Sample, Series, Snapshot};
use base::family::{FamilyKind, escape, write_number};
use std::collections::HashMap;
use std::rc::Rc;

/// What a scrape held beside its samples.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Faults {
    pub bad_lines: u64,
    /// The number, from 1, and the trouble of the first bad line.
    pub first_bad: Option<(usize, &'static str)>,
    /// Samples of series beyond the limit.
    pub over_limit: u64,
}

/// Reads one exposition.
pub fn parse(body: &[u8], time_ms: i64, series_max: usize, interner: &mut Interner) -> (Snapshot, Faults) {
    interner.begin();
    let mut reader = Reader { blocks: Vec::new(), by_name: HashMap::new(), last: None };
    let mut faults = Faults::default();
    for (index, line) in memchr_lines(body).enumerate() {
        let line = line.trim_ascii();
        let outcome = match line.first() {
            None => Ok(()),
            Some(b'#') => reader.comment(line),
            Some(_) => reader.sample(line, series_max, interner),
        };
        match outcome {
            Ok(()) => {}
            Err(OVER_LIMIT) => faults.over_limit += 1,
            Err(trouble) => {
                faults.bad_lines += 1;
                faults.first_bad.get_or_insert((index + 1, trouble));
            }
        }
    }
    let gone = interner.end();
    (Snapshot { time_ms, blocks: reader.blocks, target: Vec::new(), gone }, faults)
}

const OVER_LIMIT: &str = "over the limit of series";

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
    blocks: Vec<Block>,
    by_name: HashMap<Rc<str>, usize>,
    /// The block of the last sample: the next one is most likely of the same metric.
    last: Option<usize>,
}

type Line = Result<(), &'static str>;

impl Reader {
    fn comment(&mut self, line: &[u8]) -> Line {
        let text = std::str::from_utf8(line).map_err(|_| "a comment is not UTF-8")?;
        let mut words = text.trim_start_matches('#').trim_start().splitn(3, [' ', '\t']);
        let (word, name, rest) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next().unwrap_or(""));
        match word {
            "HELP" if is_metric_name(name) => {
                let index = self.block(name);
                if let Some(block) = self.blocks.get_mut(index) {
                    block.meta.help = unescape(rest.trim_start()).into();
                }
            }
            "TYPE" if is_metric_name(name) => {
                let kind = match rest.trim() {
                    "counter" => FamilyKind::Counter,
                    "gauge" => FamilyKind::Gauge,
                    "histogram" => FamilyKind::Histogram,
                    "summary" => FamilyKind::Summary,
                    "untyped" | "unknown" => FamilyKind::Unknown,
                    _ => return Err("a TYPE that is none of the five"),
                };
                let index = self.block(name);
                if let Some(block) = self.blocks.get_mut(index) {
                    block.meta.kind = kind;
                }
            }
            "HELP" | "TYPE" => return Err("HELP or TYPE without a metric name"),
            _ => {}
        }
        Ok(())
    }

    fn sample(&mut self, line: &[u8], series_max: usize, interner: &mut Interner) -> Line {
        let end = series_end(line)?;
        let (text, rest) = line.split_at(end);
        let series = match interner.get(text) {
            Some(series) => series,
            None if interner.len() >= series_max => return Err(OVER_LIMIT),
            None => interner.insert(text, parse_series(text)?),
        };
        let rest = std::str::from_utf8(rest).map_err(|_| "a value is not UTF-8")?;
        let mut words = rest.split_ascii_whitespace();
        let value = parse_value(words.next().ok_or("a sample without a value")?).ok_or("a value that is no number")?;
        let time_ms = match words.next() {
            None => None,
            Some(word) => Some(word.parse().map_err(|_| "a timestamp that is no whole number of milliseconds")?),
        };
        if words.next().is_some() {
            return Err("something stands behind the timestamp");
        }
        let index = self.block_of(&series.name);
        if let Some(block) = self.blocks.get_mut(index) {
            block.samples.push(Sample { series, value, time_ms });
        }
        Ok(())
    }

    /// The block of a sample's name: `x_bucket`, `x_sum` and `x_count` belong to a histogram or summary `x`.
    fn block_of(&mut self, name: &str) -> usize {
        if let Some(index) =
            self.last.filter(|index| self.blocks.get(*index).is_some_and(|block| belongs(&block.meta, name)))
        {
            return index;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let base = name.strip_suffix(suffix)?;
            let index = *self.by_name.get(base)?;
            self.blocks.get(index).is_some_and(|block| belongs(&block.meta, name)).then_some(index)
        });
        let index = base.unwrap_or_else(|| self.block(name));
        self.last = Some(index);
        index
    }

    fn block(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let name: Rc<str> = name.into();
        self.blocks.push(Block {
            meta: Meta { name: name.clone(), help: "".into(), kind: FamilyKind::Unknown },
            samples: Vec::new(),
        });
        self.by_name.insert(name, self.blocks.len() - 1);
        self.blocks.len() - 1
    }
}

fn belongs(meta: &Meta, name: &str) -> bool {
    let Some(suffix) = name.strip_prefix(&*meta.name) else { return false };
    match meta.kind {
        FamilyKind::Histogram => matches!(suffix, "_bucket" | "_sum" | "_count" | ""),
        FamilyKind::Summary => matches!(suffix, "" | "_sum" | "_count"),
        _ => suffix.is_empty(),
    }
}

/// Where the series of a line ends: behind `}` or at the first blank.
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
            // A blank may stand before the brace.
            b' ' | b'\t' if !braced && line.get(index..).unwrap_or(&[]).trim_ascii_start().first() != Some(&b'{') => {
                return Ok(index);
            }
            _ => {}
        }
    }
    Err(if braced { "labels without an end" } else { "a sample without a value" })
}

fn parse_series(text: &[u8]) -> Result<Series, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "a series is not UTF-8")?;
    let (name, rest) = match text.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').ok_or("labels without an end")?),
        None => (text, ""),
    };
    let name = name.trim_end();
    if !is_metric_name(name) {
        return Err("a metric name with a character that is not allowed");
    }
    let mut labels = Vec::new();
    let mut rest = rest.trim();
    while !rest.is_empty() {
        let (label, tail) = rest.split_once('=').ok_or("a label without a value")?;
        let label = label.trim();
        if !is_label_name(label) {
            return Err("a label name with a character that is not allowed");
        }
        let inside = tail.trim_start().strip_prefix('"').ok_or("a label value without quotes")?;
        let end = closing_quote(inside).ok_or("a label value without an end")?;
        // RFC-less but certain: an empty value is the same as no label (prometheus.io/docs/concepts/data_model).
        if end > 0 {
            labels.push((label.into(), unescape(&inside[..end]).into()));
        }
        rest = inside[end + 1..].trim_start();
        rest = match rest.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err("labels without a comma between"),
        };
    }
    labels.sort();
    if labels.windows(2).any(|pair: &[(Box<str>, Box<str>)]| pair[0].0 == pair[1].0) {
        return Err("a label stands twice");
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

fn parse_value(word: &str) -> Option<f64> {
    match word {
        "NaN" => Some(f64::NAN),
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        // Rust reads `infinity` and the like too, which the format does not have.
        _ if word.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) => word.parse().ok(),
        _ => None,
    }
}

fn is_metric_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    name.bytes().all(valid) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn is_label_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(valid) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// Merges snapshots into one page. A metric that two sources tell with different types is told as the first one has it; the
/// names of those left out are answered. A series that two sources tell is told once.
pub fn write(snapshots: &[Rc<Snapshot>], out: &mut String) -> Vec<Rc<str>> {
    let mut order: Vec<Rc<str>> = Vec::new();
    let mut merged: HashMap<Rc<str>, Vec<&Block>> = HashMap::new();
    let mut conflicts = Vec::new();
    for block in snapshots.iter().flat_map(|snapshot| &snapshot.blocks).filter(|block| !block.samples.is_empty()) {
        let blocks = merged.entry(block.meta.name.clone()).or_insert_with(|| {
            order.push(block.meta.name.clone());
            Vec::new()
        });
        match blocks.first() {
            Some(first) if first.meta.kind != block.meta.kind => conflicts.push(block.meta.name.clone()),
            _ => blocks.push(block),
        }
    }
    for name in order {
        let Some(blocks) = merged.get(&name) else { continue };
        write_family(blocks, out);
    }
    conflicts
}

fn write_family(blocks: &[&Block], out: &mut String) {
    let Some(first) = blocks.first() else { return };
    if !first.meta.help.is_empty() {
        out.extend(["# HELP ", &first.meta.name, " "]);
        escape(&first.meta.help, false, out);
        out.push('\n');
    }
    out.extend(["# TYPE ", &first.meta.name, " ", first.meta.kind.word(), "\n"]);
    let mut told: std::collections::HashSet<&Series> = std::collections::HashSet::new();
    for sample in blocks.iter().flat_map(|block| &block.samples) {
        if blocks.len() > 1 && !told.insert(&sample.series) {
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

    fn round_trip(text: &str) -> (String, Faults) {
        let (snapshot, faults) = parse(text.as_bytes(), 0, 1000, &mut Interner::default());
        let mut out = String::new();
        assert!(write(&[Rc::new(snapshot)], &mut out).is_empty());
        (out, faults)
    }

    /// covers: foundation 5
    #[test]
    fn what_the_format_allows_is_told_again_as_it_was() {
        let text = "# HELP a_total Things\\nof all kinds.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\\\\\\n}\"} 3\n\
                    # TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 1.5\nh_count 2\n\
                    # TYPE s summary\ns{quantile=\"0.9\"} NaN\ns_sum 1\ns_count 1\n\
                    # TYPE g gauge\ng -Inf 1700000000000\n";
        assert_eq!(round_trip(text), (text.to_string(), Faults::default()));
        let (loose, faults) = round_trip("# a comment\n\n  b { z = \"1\" , a=\"2\", } 1e3\nc 0x1\n");
        assert_eq!(loose, "# TYPE b untyped\nb{a=\"2\",z=\"1\"} 1000\n");
        assert_eq!(faults.first_bad, Some((4, "a value that is no number")));
    }

    fn check_bad(line: &str, trouble: &str) {
        let (out, faults) = round_trip(&format!("good 1\n{line}\nlast 2\n"));
        assert_eq!(
            faults.first_bad.map(|(number, text)| (number, text.contains(trouble))),
            Some((2, true)),
            "{line}: {faults:?}"
        );
        assert!(out.contains("good 1\n") && out.contains("last 2\n"), "a bad line costs only itself");
    }

    /// covers: foundation 5
    #[test]
    fn a_bad_line_costs_itself_and_is_named() {
        check_bad("9a 1", "metric name");
        check_bad("a{b=\"1\" 1", "labels without an end");
        check_bad("a{b=1} 1", "without quotes");
        check_bad("a{b=\"1\"c=\"2\"} 1", "comma");
        check_bad("a{b=\"1\",b=\"2\"} 1", "twice");
        check_bad("a{é=\"1\"} 1", "label name");
        check_bad("a", "without a value");
        check_bad("a{b=\"1\"}", "without a value");
        check_bad("a one", "no number");
        check_bad("a infinity", "no number");
        check_bad("a 1 soon", "timestamp");
        check_bad("a 1 2 3", "behind the timestamp");
        check_bad("# TYPE a gorge", "five");
    }

    /// covers: foundation 5
    #[test]
    fn series_beyond_the_limit_are_left_out_and_known_ones_stay() {
        let mut interner = Interner::default();
        let (first, _) = parse(b"a 1\nb 1\n", 0, 2, &mut interner);
        assert_eq!(first.samples(), 2);
        let (second, faults) = parse(b"a 2\nb 2\nc 1\n", 1, 2, &mut interner);
        assert_eq!((second.samples(), faults.over_limit, faults.bad_lines), (2, 1, 0));
        let (third, faults) = parse(b"x 1\ny 1\n", 2, 2, &mut interner);
        assert_eq!((third.samples(), faults.over_limit), (2, 0), "series that ended make room at once");
    }

    /// covers: foundation 5
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
