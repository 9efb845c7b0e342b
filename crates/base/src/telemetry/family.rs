//! The payload of metrics between subsystems: families of points with their type, in the form that every exporter needs. A
//! component with metrics implements `Gather`; exporters call it at each export. Limits: a component gathers only what it
//! is configured for; external values never become label names.

use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FamilyKind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    /// The app did not report a type.
    Unknown,
}

impl FamilyKind {
    /// Its name in the text exposition format, version 0.0.4.
    pub fn as_str(self) -> &'static str {
        match self {
            FamilyKind::Counter => "counter",
            FamilyKind::Gauge => "gauge",
            FamilyKind::Histogram => "histogram",
            FamilyKind::Summary => "summary",
            FamilyKind::Unknown => "untyped",
        }
    }
}

pub type Labels = Vec<(Arc<str>, Arc<str>)>;

/// One metric with all its points.
#[derive(Clone, Debug)]
pub struct Family {
    /// The full name as in the exposition, including `_total` for counters.
    pub name: Arc<str>,
    pub help: Arc<str>,
    pub kind: FamilyKind,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub struct Point {
    pub labels: Labels,
    pub value: PointValue,
}

#[derive(Clone, Debug)]
pub enum PointValue {
    Number(f64),
    /// Cumulative counts per upper bound (the last is +Inf), with sum and count.
    Histogram {
        bounds: Vec<(f64, u64)>,
        sum: f64,
    },
}

/// A source of metrics.
pub trait Gather: Send + Sync {
    fn gather(&self, families: &mut Vec<Family>);
}

impl Family {
    pub fn new(name: &str, help: &str, kind: FamilyKind) -> Family {
        Family { name: name.into(), help: help.into(), kind, points: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, labels: &[(&str, &str)], value: f64) -> Family {
        self.points.push(Point { labels: labels_of(labels), value: PointValue::Number(value) });
        self
    }
}

/// prometheus.io/docs/concepts/data_model.
pub fn is_label_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(valid) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

pub fn labels_of(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect()
}

/// Writes families as Prometheus text, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).
pub fn write_text(families: &[Family], out: &mut String) {
    for family in families {
        if !family.help.is_empty() {
            out.extend(["# HELP ", &family.name, " "]);
            escape(&family.help, false, out);
            out.push('\n');
        }
        out.extend(["# TYPE ", &family.name, " ", family.kind.as_str(), "\n"]);
        for point in &family.points {
            match &point.value {
                PointValue::Number(value) => write_sample(&family.name, "", &point.labels, None, *value, out),
                PointValue::Histogram { bounds, sum } => {
                    for (bound, count) in bounds {
                        write_sample(&family.name, "_bucket", &point.labels, Some(*bound), *count as f64, out);
                    }
                    let count = bounds.last().map_or(0, |(_, count)| *count);
                    write_sample(&family.name, "_sum", &point.labels, None, *sum, out);
                    write_sample(&family.name, "_count", &point.labels, None, count as f64, out);
                }
            }
        }
    }
}

fn write_sample(name: &str, suffix: &str, labels: &Labels, bound: Option<f64>, value: f64, out: &mut String) {
    out.extend([name, suffix]);
    if !labels.is_empty() || bound.is_some() {
        out.push('{');
        for (index, (label, value)) in labels.iter().enumerate() {
            out.extend([if index > 0 { "," } else { "" }, label, "=\""]);
            escape(value, true, out);
            out.push('"');
        }
        if let Some(bound) = bound {
            out.push_str(if labels.is_empty() { "le=\"" } else { ",le=\"" });
            write_number(bound, out);
            out.push('"');
        }
        out.push('}');
    }
    out.push(' ');
    write_number(value, out);
    out.push('\n');
}

pub fn write_number(value: f64, out: &mut String) {
    use std::fmt::Write as _;
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else if value == 0.0 || (1e-5..1e17).contains(&value.abs()) {
        // Writing to a String cannot fail.
        let _ = write!(out, "{value}");
    } else {
        let _ = write!(out, "{value:e}");
    }
}

pub fn escape(text: &str, quotes: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_follows_the_exposition_format() {
        let mut latency = Family::new("d_seconds", "how\nlong", FamilyKind::Histogram);
        latency.points.push(Point {
            labels: labels_of(&[("to", "a\"b\\c\n")]),
            value: PointValue::Histogram { bounds: vec![(0.5, 1), (f64::INFINITY, 3)], sum: 2.25 },
        });
        let mut out = String::new();
        write_text(&[latency, Family::new("n", "", FamilyKind::Gauge).with(&[], f64::NAN)], &mut out);
        let labels = r#"to="a\"b\\c\n""#;
        assert_eq!(
            out,
            format!(
                "# HELP d_seconds how\\nlong\n# TYPE d_seconds histogram\nd_seconds_bucket{{{labels},le=\"0.5\"}} 1\n\
                 d_seconds_bucket{{{labels},le=\"+Inf\"}} 3\nd_seconds_sum{{{labels}}} 2.25\nd_seconds_count{{{labels}}} 3\n\
                 # TYPE n gauge\nn NaN\n"
            )
        );
    }
}
