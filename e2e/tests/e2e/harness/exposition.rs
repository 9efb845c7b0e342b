//! Parses the Prometheus text of Outrigger's /metrics endpoint, strictly enough that a malformed line fails the test. In:
//! text. Out: samples. It knows names, labels and values, and no metric types. Limits: the size of the exposition.

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
    /// The exposition at this address; `None` while the response is not 200.
    pub fn of(address: &str) -> Option<Self> {
        let reply = get(address, "/metrics").ok()?;
        (reply.status == 200).then(|| Self::parse(&reply.text()))
    }

    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        Self { series: lines.map(parse_line).collect() }
    }

    /// The sum over all series that match the condition; `None` if there are none.
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
    let malformed = || -> ! { panic!("not a line of the Prometheus text format: {line}") };
    let name_end = line.find(['{', ' ']).unwrap_or_else(|| malformed());
    let (name, rest) = line.split_at(name_end);
    let valid =
        |(index, c): (usize, char)| c.is_ascii_alphabetic() || "_:".contains(c) || index > 0 && c.is_ascii_digit();
    if name.is_empty() || !name.char_indices().all(valid) {
        malformed();
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => parse_labels(inside).unwrap_or_else(|| malformed()),
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next().unwrap_or_else(|| malformed());
    let value = value.parse().unwrap_or_else(|_| malformed());
    Series { name: name.to_owned(), labels, value }
}

/// The labels and the text after the closing brace.
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
                (index, '"') => break index,
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
