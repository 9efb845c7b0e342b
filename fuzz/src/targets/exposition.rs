//! The exposition of an app: parsed, stored and written again (prometheus.io/docs/instrumenting/exposition_formats). In: the body
//! of a scrape. Out: the written exposition is parsed to the same content, without a bad line; a second scrape of the same
//! exposition by the same parser has the same content; the number of blanks between tokens has no meaning; no series is
//! duplicated; `max_series` is enforced.

use crate::attempt::{bucket, shape};
use metrics::series::{Interner, Snapshot, Timing};
use metrics::text::{ParseErrors, parse, write};
use std::collections::HashSet;
use std::rc::Rc;

pub const WORDS: &[&str] = &[
    "# TYPE a counter\n",
    "# TYPE a gauge\n",
    "# TYPE a histogram\n",
    "# TYPE a summary\n",
    "# TYPE a untyped\n",
    "# HELP a text\\n\\\\ \\\"\n",
    "# TYPE ",
    "# HELP ",
    "# EOF\n",
    "#",
    "a_bucket{le=\"0.5\"} 1\n",
    "a_bucket{le=\"+Inf\"} 2\n",
    "a_sum 1.5\n",
    "a_count 2\n",
    "a{quantile=\"0.9\"} NaN\n",
    "a_total",
    "_bucket",
    "_sum",
    "_count",
    "{",
    "}",
    "{}",
    "{x=\"1\",y=\"2\"}",
    "{y=\"2\",x=\"1\"}",
    "x=\"\"",
    "\\n",
    "\\\\",
    "\\\"",
    "\\",
    "\"",
    ",",
    ",,",
    "=",
    " ",
    "\t",
    "\n",
    "\r\n",
    "+Inf",
    "-Inf",
    "NaN",
    "-0",
    "1e308",
    "5e-324",
    "1e17",
    "0.000001",
    " 1700000000000",
    ":",
    "é",
    "\u{a0}",
    "\u{2028}",
    "__name__",
    "le",
];

const SERIES_MAX: usize = 50;

/// The time of the scrape.
const TIME_MS: i64 = 1_700_000_000_000;

pub fn run(input: &[u8]) {
    let mut reader = Interner::default();
    let (first, faults) = parse(input, TIME_MS, SERIES_MAX, &mut reader);
    shape((
        faults.first_bad.map(|(_, error)| error),
        bucket(first.samples()),
        bucket(first.families.len()),
        faults.over_limit > 0,
    ));
    for family in &first.families {
        let labels = family.samples.iter().map(|sample| sample.series.labels.len()).max();
        shape((family.meta.kind, family.meta.help.is_empty(), bucket(family.samples.len()), labels));
    }
    check_limits(&first, &faults, input);
    check_again(input, &first, &faults, &mut reader);
    check_written(&first);
    check_blanks(input, &first, &faults);
}

/// The content of a snapshot as text, metric by metric. Values are compared by their bits, but all NaN values are equal.
fn content(snapshot: &Snapshot) -> Vec<String> {
    let (mut content, mut names) = (Vec::new(), HashSet::new());
    let mut families: Vec<_> = snapshot.families.iter().filter(|family| !family.samples.is_empty()).collect();
    families.sort_by(|one, other| one.meta.name.cmp(&other.meta.name));
    for family in families {
        content.push(format!("{} {:?} {:?}", family.meta.name, family.meta.kind, family.meta.help));
        // Of two samples of the same series and time, the first one counts.
        let once = family.samples.iter().filter(|sample| names.insert((sample.series.clone(), sample.time_ms)));
        content.extend(once.map(|sample| {
            let value = if sample.value.is_nan() { "NaN".into() } else { format!("{:x}", sample.value.to_bits()) };
            format!("{:?} {value} {:?}", sample.series, sample.time_ms)
        }));
    }
    content
}

/// Shows only the first difference.
#[track_caller]
fn same_content(other: &Snapshot, first: &Snapshot, what: &str) {
    let (other, first) = (content(other), content(first));
    let at = other.iter().zip(&first).take_while(|(one, two)| one == two).count();
    assert!(other == first, "{what}: {:?} became {:?}", first.get(at), other.get(at));
}

fn check_limits(snapshot: &Snapshot, faults: &ParseErrors, input: &[u8]) {
    let mut seen = HashSet::new();
    let mut sent = HashSet::new();
    for sample in snapshot.families.iter().flat_map(|family| &family.samples) {
        seen.insert(sample.series.clone());
        // Receivers reject two samples of one series and time; only a newer one is sent.
        let time_ms = sample.time_ms.unwrap_or(snapshot.time_ms);
        let is_new = sample.timing != Timing::Newer || sent.insert((sample.series.clone(), time_ms));
        assert!(is_new, "{:?} is duplicated at {time_ms}", sample.series);
        let names: Vec<&str> = sample.series.labels.iter().map(|(name, _)| &**name).collect();
        assert!(names.is_sorted_by(|one, two| one < two), "labels are sorted without duplicates: {names:?}");
    }
    assert!(seen.len() <= SERIES_MAX, "{} series", seen.len());
    let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count() as u64;
    assert!(snapshot.samples() as u64 + faults.bad_lines + faults.over_limit <= lines, "a line counts once");
    assert_eq!(faults.bad_lines > 0, faults.first_bad.is_some());
}

/// The next scrape of the same exposition: every line is then in the cache.
fn check_again(input: &[u8], first: &Snapshot, faults: &ParseErrors, reader: &mut Interner) {
    let (second, again) = parse(input, TIME_MS + 1, SERIES_MAX, reader);
    same_content(&second, first, "the same exposition, scraped again");
    // Of two samples with timestamps, the older one is not newer at the next scrape.
    assert_eq!(
        ParseErrors { not_newer: 0, ..again },
        ParseErrors { not_newer: 0, ..*faults },
        "the same exposition, scraped again"
    );
    assert!(second.stale.is_empty(), "no series is stale: {:?}", second.stale);
}

/// "Tokens can be separated by any number of blanks and/or tabs": an additional one changes nothing.
fn check_blanks(input: &[u8], first: &Snapshot, faults: &ParseErrors) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut wide = String::with_capacity(text.len() * 2);
    for line in text.split_inclusive('\n') {
        let start = line.trim_start_matches(|c: char| c.is_ascii_whitespace());
        let comment = start.starts_with('#');
        // After `# HELP name ` the text begins, in which blanks are literal.
        let mut left = if start.starts_with("# ") { 3 } else { 2 };
        let (mut quoted, mut escaped) = (false, false);
        for c in line.chars() {
            wide.push(c);
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' if !comment => quoted = !quoted,
                ' ' | '\t' if !quoted && (!comment || left > 0) => {
                    left -= i32::from(comment);
                    wide.push_str("\t ");
                }
                _ => {}
            }
        }
    }
    let (other, others) = parse(wide.as_bytes(), TIME_MS, SERIES_MAX, &mut Interner::default());
    same_content(&other, first, "with more blanks between tokens");
    assert_eq!(&others, faults, "with more blanks between tokens: {wide:?}");
}

fn check_written(first: &Snapshot) {
    let page = |snapshot: &Snapshot| {
        let mut out = String::new();
        let conflicts = write(&[Rc::new(snapshot.clone())], &mut out);
        assert!(conflicts.is_empty(), "one source has no conflict with itself: {conflicts:?}");
        out
    };
    let text = page(first);
    let (second, faults) = parse(text.as_bytes(), TIME_MS, usize::MAX, &mut Interner::default());
    assert_eq!(
        ParseErrors { not_newer: 0, ..faults },
        ParseErrors::default(),
        "the written exposition has no bad line: {text}"
    );
    same_content(&second, first, "the written exposition has the same content");
    assert_eq!(page(&second), text, "and is written identically");

    // The same source a second time adds nothing.
    let mut twice = String::new();
    write(&[Rc::new(first.clone()), Rc::new(second)], &mut twice);
    assert_eq!(twice, text, "a series of two sources is written once");
}
