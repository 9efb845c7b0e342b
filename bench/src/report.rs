//! The results of one case: medians, the median of the pairwise ratios, one table and the same as JSON.
//!
//! In: a value per row, peer and round. Out: text and JSON. A peer that is missing or failed has no value and a
//! remark with the reason; a ratio is computed only from rounds in which both sides have a value. Outrigger is one of
//! the peers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub const OURS: &str = "outrigger";

pub struct Report {
    case: &'static str,
    pairs: usize,
    peers: Vec<&'static str>,
    rows: Vec<Row>,
    remarks: Vec<String>,
}

/// The index of a row in its report.
#[derive(Clone, Copy)]
pub struct RowId(usize);

pub enum Limit {
    /// The highest value of Outrigger.
    Ours(f64),
    /// The highest ratio to this peer.
    Ratio(&'static str, f64),
}

struct Row {
    measure: String,
    unit: &'static str,
    decimals: usize,
    limits: Vec<Limit>,
    /// The peers to which the row applies.
    about: Vec<&'static str>,
    runs: BTreeMap<&'static str, BTreeMap<usize, f64>>,
}

impl Report {
    pub fn new(case: &'static str, pairs: usize, peers: &[&'static str]) -> Self {
        let peers = std::iter::once(OURS).chain(peers.iter().copied()).collect();
        let mut report = Self { case, pairs, peers, rows: Vec::new(), remarks: Vec::new() };
        if pairs < 5 {
            report.remark(format!("{pairs} of at least 5 pairs: good for a first impression, not for publication"));
        }
        report
    }

    pub fn row(&mut self, measure: impl Into<String>, unit: &'static str, decimals: usize) -> RowId {
        self.limited_row(measure, unit, decimals, Vec::new())
    }

    /// A row with limits: the table shows whether each limit is met.
    pub fn limited_row(
        &mut self,
        measure: impl Into<String>,
        unit: &'static str,
        decimals: usize,
        limits: Vec<Limit>,
    ) -> RowId {
        let about = self.peers.clone();
        self.rows.push(Row { measure: measure.into(), unit, decimals, limits, about, runs: BTreeMap::new() });
        RowId(self.rows.len() - 1)
    }

    /// Restricts the row to these peers: the row does not apply to the others, so they are not missing.
    pub fn about(&mut self, row: RowId, peers: &[&'static str]) -> RowId {
        if let Some(row) = self.rows.get_mut(row.0) {
            row.about = std::iter::once(OURS).chain(peers.iter().copied()).collect();
        }
        row
    }

    pub fn record(&mut self, row: RowId, peer: &'static str, round: usize, value: f64) {
        if let Some(row) = self.rows.get_mut(row.0) {
            row.runs.entry(peer).or_default().insert(round, value);
        }
    }

    /// For rows with the worst value of all rounds: a median would hide it.
    pub fn record_worst(&mut self, row: RowId, peer: &'static str, value: f64) {
        if let Some(row) = self.rows.get_mut(row.0) {
            let worst = row.runs.entry(peer).or_default().entry(0).or_insert(value);
            *worst = worst.max(value);
        }
    }

    /// Adds a line under the table, once.
    pub fn remark(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    /// One line per measure; `value (ratio)` for each peer, where the ratio is Outrigger's value to the peer's.
    pub fn table(&self) -> String {
        let mut lines = vec![vec![format!("{} ({} pairs)", self.case, self.pairs), "unit".to_owned()]];
        lines[0].extend(self.peers.iter().map(|name| match *name {
            OURS => OURS.to_owned(),
            peer => format!("{peer} (ours/{peer})"),
        }));
        lines[0].push("limit".to_owned());
        for row in &self.rows {
            let mut line = vec![row.measure.clone(), row.unit.to_owned()];
            line.extend(self.peers.iter().map(|name| row.column(name)));
            line.push(row.limits.iter().map(|limit| row.result(limit)).collect::<Vec<_>>().join("; "));
            lines.push(line);
        }
        let mut text = aligned(&lines);
        for remark in &self.remarks {
            text.push_str(&format!("  {remark}\n"));
        }
        text
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| row.json(&self.peers)).collect();
        json!({ "case": self.case, "pairs": self.pairs, "rows": rows, "remarks": self.remarks })
    }
}

impl Row {
    fn median_of(&self, peer: &str) -> Option<f64> {
        median(self.runs.get(peer)?.values().copied().collect())
    }

    fn ratio_to(&self, peer: &str) -> Option<f64> {
        let (ours, theirs) = (self.runs.get(OURS)?, self.runs.get(peer)?);
        let pairs = ours.iter().filter_map(|(round, our)| Some((*our, *theirs.get(round)?)));
        median(pairs.filter(|(_, their)| *their > 0.0).map(|(our, their)| our / their).collect())
    }

    fn column(&self, peer: &str) -> String {
        let Some(median) = self.median_of(peer) else {
            let not_applicable = !self.about.contains(&peer);
            return if not_applicable { "–" } else { "missing" }.to_owned();
        };
        let median = format!("{median:.*}", self.decimals);
        match self.ratio_to(peer) {
            Some(ratio) if peer != OURS => format!("{median} ({ratio:.2})"),
            _ => median,
        }
    }

    fn result(&self, limit: &Limit) -> String {
        let (text, value, most) = match limit {
            Limit::Ours(most) => (format!("≤ {most:.*}", self.decimals), self.median_of(OURS), *most),
            Limit::Ratio(peer, most) => (format!("≤ {most:.2} × {peer}"), self.ratio_to(peer), *most),
        };
        match value {
            None => format!("{text}: not measured"),
            Some(value) if value <= most => format!("{text}: met"),
            Some(_) => format!("{text}: NOT MET"),
        }
    }

    fn json(&self, peers: &[&'static str]) -> Value {
        let mut columns = serde_json::Map::new();
        for name in peers {
            let runs: Vec<f64> = self.runs.get(name).into_iter().flat_map(|runs| runs.values().copied()).collect();
            let ratio = if *name == OURS { None } else { self.ratio_to(name) };
            columns.insert((*name).to_owned(), json!({ "median": median(runs.clone()), "runs": runs, "ratio": ratio }));
        }
        let limits: Vec<String> = self.limits.iter().map(|limit| self.result(limit)).collect();
        json!({ "measure": self.measure, "unit": self.unit, "judged": !limits.is_empty(), "limits": limits, "peers": columns })
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some((lower + upper) / 2.0)
}

/// Columns as wide as their widest text; the first is left-aligned, and so is the last, which contains sentences.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |column: usize| lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(wide).collect();
    let mut text = String::new();
    for line in lines {
        let mut printed = String::new();
        for (column, value) in line.iter().enumerate() {
            let width = widths[column];
            match column {
                0 => printed.push_str(&format!("{value:width$}")),
                last if last + 1 == columns => printed.push_str(&format!("  {value}")),
                _ => printed.push_str(&format!("  {value:>width$}")),
            }
        }
        text.push_str(printed.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        let mut report = Report::new("sample", 5, &["haproxy", "envoy"]);
        let limits = vec![Limit::Ours(40.0), Limit::Ratio("haproxy", 1.0), Limit::Ratio("envoy", 0.3)];
        let row = report.limited_row("CPU", "µs", 1, limits);
        // The machine slows down from round to round: the ratio of medians would hide the ratio of each pair.
        for (round, (ours, theirs)) in [(10.0, 20.0), (30.0, 30.0), (90.0, 60.0)].into_iter().enumerate() {
            report.record(row, OURS, round, ours);
            report.record(row, "haproxy", round, theirs);
        }
        report
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let json = sample().json();
        assert_eq!(json["rows"][0]["peers"]["haproxy"]["ratio"], 1.0);
        assert_eq!(json["rows"][0]["peers"]["outrigger"]["median"], 30.0);
    }

    #[test]
    fn a_missing_peers_limit_is_not_measured() {
        let table = sample().table();
        assert!(table.contains("missing"), "{table}");
        assert!(table.contains("≤ 40.0: met; ≤ 1.00 × haproxy: met; ≤ 0.30 × envoy: not measured"), "{table}");
    }

    #[test]
    fn a_row_may_not_apply_to_a_peer() {
        let mut report = Report::new("sample", 5, &["nginx"]);
        let row = report.row("wake-ups", "", 0);
        report.about(row, &[]);
        report.record(row, OURS, 0, 0.0);
        let table = report.table();
        assert!(table.contains('–') && !table.contains("missing"), "{table}");
    }

    #[test]
    fn the_worst_of_all_rounds_is_retained() {
        let mut report = Report::new("sample", 5, &[]);
        let row = report.row("outage", "ms", 0);
        for value in [3.0, 9.0, 4.0] {
            report.record_worst(row, OURS, value);
        }
        assert_eq!(report.json()["rows"][0]["peers"][OURS]["median"], 9.0);
    }

    #[test]
    fn an_exceeded_limit_is_not_met() {
        let mut report = Report::new("sample", 5, &[]);
        let row = report.limited_row("size", "bytes", 0, vec![Limit::Ours(2.0)]);
        report.record(row, OURS, 0, 3.0);
        assert!(report.table().contains("≤ 2: NOT MET"), "{}", report.table());
    }

    #[test]
    fn a_round_with_a_failed_side_has_no_ratio() {
        let mut report = Report::new("sample", 5, &["nginx"]);
        let row = report.row("CPU", "µs", 1);
        report.record(row, OURS, 0, 1.0);
        report.record(row, OURS, 1, 9.0);
        report.record(row, "nginx", 1, 3.0);
        assert_eq!(report.json()["rows"][0]["peers"]["nginx"]["ratio"], 3.0);
    }

    #[test]
    fn an_even_median_is_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
