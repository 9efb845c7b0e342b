//! Reads the Prometheus text that a page of ours answers with, strictly enough that a malformed line fails the test. Text
//! comes in, samples go out. It knows no type but names, labels and values; bounded by the page.

use std::collections::BTreeMap;

use super::wire::get;

#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

pub struct Exposition {
    pub series: Vec<Series>,
}

impl Exposition {
    /// The page of this address; `None` while it does not answer with 200.
    pub fn of(address: &str) -> Option<Self> {
        let reply = get(address, "/metrics").ok()?;
        (reply.status == 200).then(|| Self::parse(&reply.text()))
    }

    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        Self { series: lines.map(parse_line).collect() }
    }

    /// The sum over all series whose name and labels the condition takes; `None` when there is none.
    pub fn sum(&self, condition: impl Fn(&Series) -> bool) -> Option<f64> {
        let mut found = self.series.iter().filter(|series| condition(series)).peekable();
        found.peek()?;
        Some(found.map(|series| series.value).sum())
    }

    pub fn value(&self, name: &str) -> Option<f64> {
        self.sum(|series| series.name == name)
    }

    pub fn names_with(&self, prefix: &str) -> Vec<&str> {
        let names = self.series.iter().map(|series| series.name.as_str());
        names.filter(|name| name.starts_with(prefix)).collect()
    }
}

fn parse_line(line: &str) -> Series {
    let broken = || -> ! { panic!("not a line of the Prometheus text format: {line}") };
    let name_end = line.find(['{', ' ']).unwrap_or_else(|| broken());
    let (name, rest) = line.split_at(name_end);
    let valid =
        |(place, c): (usize, char)| c.is_ascii_alphabetic() || "_:".contains(c) || place > 0 && c.is_ascii_digit();
    if name.is_empty() || !name.char_indices().all(valid) {
        broken();
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => parse_labels(inside).unwrap_or_else(|| broken()),
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next().unwrap_or_else(|| broken());
    let value = value.parse().unwrap_or_else(|_| broken());
    Series { name: name.to_owned(), labels, value }
}

/// The labels and what follows the closing brace.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (place, '"') => break place,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = &quoted[end + 1..];
    }
}
