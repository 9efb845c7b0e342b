//! The figures of one case: medians, the median of the pairwise ratios, one table and the same as JSON.
//!
//! In: a value per row, contender and round. Out: text and JSON. A contender that is absent or failed has no value and a
//! remark that says why; a ratio is formed only from rounds in which both sides have one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub const OURS: &str = "outrigger";

pub struct Report {
    case: &'static str,
    pairs: usize,
    contenders: Vec<&'static str>,
    rows: Vec<Row>,
    remarks: Vec<String>,
}

/// The place of a row in its report.
#[derive(Clone, Copy)]
pub struct RowId(usize);

pub enum Limit {
    /// Our own figure may be this much at most.
    Ours(f64),
    /// The ratio to this peer may be this much at most.
    Ratio(&'static str, f64),
}

struct Row {
    measure: String,
    unit: &'static str,
    decimals: usize,
    limits: Vec<Limit>,
    /// The contenders that the row is about.
    about: Vec<&'static str>,
    runs: BTreeMap<&'static str, BTreeMap<usize, f64>>,
}

impl Report {
    pub fn new(case: &'static str, pairs: usize, peers: &[&'static str]) -> Self {
        let contenders = std::iter::once(OURS).chain(peers.iter().copied()).collect();
        let mut report = Self { case, pairs, contenders, rows: Vec::new(), remarks: Vec::new() };
        if pairs < 5 {
            report.remark(format!("{pairs} of at least 5 pairs: good for a look, not a figure to quote"));
        }
        report
    }

    pub fn row(&mut self, measure: impl Into<String>, unit: &'static str, decimals: usize) -> RowId {
        self.limited_row(measure, unit, decimals, Vec::new())
    }

    /// A row that is judged: the table says whether each limit is met.
    pub fn limited_row(
        &mut self,
        measure: impl Into<String>,
        unit: &'static str,
        decimals: usize,
        limits: Vec<Limit>,
    ) -> RowId {
        let about = self.contenders.clone();
        self.rows.push(Row { measure: measure.into(), unit, decimals, limits, about, runs: BTreeMap::new() });
        RowId(self.rows.len() - 1)
    }

    /// Leaves those out of the row that have no such figure by nature, so that nobody takes them for missing.
    pub fn about(&mut self, row: RowId, peers: &[&'static str]) -> RowId {
        if let Some(row) = self.rows.get_mut(row.0) {
            row.about = std::iter::once(OURS).chain(peers.iter().copied()).collect();
        }
        row
    }

    pub fn record(&mut self, row: RowId, contender: &'static str, round: usize, value: f64) {
        if let Some(row) = self.rows.get_mut(row.0) {
            row.runs.entry(contender).or_default().insert(round, value);
        }
    }

    /// For rows that hold the worst of all rounds: a median would hide it.
    pub fn record_worst(&mut self, row: RowId, contender: &'static str, value: f64) {
        if let Some(row) = self.rows.get_mut(row.0) {
            let worst = row.runs.entry(contender).or_default().entry(0).or_insert(value);
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

    /// One line per measure; `value (ratio)` for each peer, where the ratio is ours to the peer's.
    pub fn table(&self) -> String {
        let mut lines = vec![vec![format!("{} ({} pairs)", self.case, self.pairs), "unit".to_owned()]];
        lines[0].extend(self.contenders.iter().map(|name| match *name {
            OURS => OURS.to_owned(),
            peer => format!("{peer} (ours/{peer})"),
        }));
        lines[0].push("limit".to_owned());
        for row in &self.rows {
            let mut line = vec![row.measure.clone(), row.unit.to_owned()];
            line.extend(self.contenders.iter().map(|name| row.cell(name)));
            line.push(row.limits.iter().map(|limit| row.verdict(limit)).collect::<Vec<_>>().join("; "));
            lines.push(line);
        }
        let mut text = aligned(&lines);
        for remark in &self.remarks {
            text.push_str(&format!("  {remark}\n"));
        }
        text
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| row.json(&self.contenders)).collect();
        json!({ "case": self.case, "pairs": self.pairs, "rows": rows, "remarks": self.remarks })
    }
}

impl Row {
    fn median_of(&self, contender: &str) -> Option<f64> {
        median(self.runs.get(contender)?.values().copied().collect())
    }

    fn ratio_to(&self, peer: &str) -> Option<f64> {
        let (ours, theirs) = (self.runs.get(OURS)?, self.runs.get(peer)?);
        let pairs = ours.iter().filter_map(|(round, our)| Some((*our, *theirs.get(round)?)));
        median(pairs.filter(|(_, their)| *their > 0.0).map(|(our, their)| our / their).collect())
    }

    fn cell(&self, contender: &str) -> String {
        let Some(figure) = self.median_of(contender) else {
            let by_nature = !self.about.contains(&contender);
            return if by_nature { "–" } else { "missing" }.to_owned();
        };
        let figure = format!("{figure:.*}", self.decimals);
        match self.ratio_to(contender) {
            Some(ratio) if contender != OURS => format!("{figure} ({ratio:.2})"),
            _ => figure,
        }
    }

    fn verdict(&self, limit: &Limit) -> String {
        let (text, figure, most) = match limit {
            Limit::Ours(most) => (format!("≤ {most:.*}", self.decimals), self.median_of(OURS), *most),
            Limit::Ratio(peer, most) => (format!("≤ {most:.2} × {peer}"), self.ratio_to(peer), *most),
        };
        match figure {
            None => format!("{text}: not measured"),
            Some(figure) if figure <= most => format!("{text}: met"),
            Some(_) => format!("{text}: NOT MET"),
        }
    }

    fn json(&self, contenders: &[&'static str]) -> Value {
        let mut columns = serde_json::Map::new();
        for name in contenders {
            let runs: Vec<f64> = self.runs.get(name).into_iter().flat_map(|runs| runs.values().copied()).collect();
            let ratio = if *name == OURS { None } else { self.ratio_to(name) };
            columns.insert((*name).to_owned(), json!({ "median": median(runs.clone()), "runs": runs, "ratio": ratio }));
        }
        let limits: Vec<String> = self.limits.iter().map(|limit| self.verdict(limit)).collect();
        json!({ "measure": self.measure, "unit": self.unit, "judged": !limits.is_empty(), "limits": limits, "contenders": columns })
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().saturating_sub(1) / 2)?;
    Some((lower + upper) / 2.0)
}

/// Columns as wide as their widest cell; the first is left-aligned, and so is the last, which holds sentences.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |column: usize| lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(wide).collect();
    let mut text = String::new();
    for line in lines {
        let mut printed = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            match column {
                0 => printed.push_str(&format!("{cell:width$}")),
                last if last + 1 == columns => printed.push_str(&format!("  {cell}")),
                _ => printed.push_str(&format!("  {cell:>width$}")),
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
        // The machine slows down from round to round: the ratio of medians would hide what each pair saw.
        for (round, (ours, theirs)) in [(10.0, 20.0), (30.0, 30.0), (90.0, 60.0)].into_iter().enumerate() {
            report.record(row, OURS, round, ours);
            report.record(row, "haproxy", round, theirs);
        }
        report
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let json = sample().json();
        assert_eq!(json["rows"][0]["contenders"]["haproxy"]["ratio"], 1.0);
        assert_eq!(json["rows"][0]["contenders"]["outrigger"]["median"], 30.0);
    }

    #[test]
    fn a_missing_peer_says_so_and_its_limit_is_not_measured() {
        let table = sample().table();
        assert!(table.contains("missing"), "{table}");
        assert!(table.contains("≤ 40.0: met; ≤ 1.00 × haproxy: met; ≤ 0.30 × envoy: not measured"), "{table}");
    }

    #[test]
    fn a_peer_that_a_row_is_not_about_is_not_missing() {
        let mut report = Report::new("sample", 5, &["nginx"]);
        let row = report.row("wake-ups", "", 0);
        report.about(row, &[]);
        report.record(row, OURS, 0, 0.0);
        let table = report.table();
        assert!(table.contains('–') && !table.contains("missing"), "{table}");
    }

    #[test]
    fn the_worst_of_all_rounds_stays() {
        let mut report = Report::new("sample", 5, &[]);
        let row = report.row("outage", "ms", 0);
        for value in [3.0, 9.0, 4.0] {
            report.record_worst(row, OURS, value);
        }
        assert_eq!(report.json()["rows"][0]["contenders"][OURS]["median"], 9.0);
    }

    #[test]
    fn a_limit_that_is_passed_is_shouted() {
        let mut report = Report::new("sample", 5, &[]);
        let row = report.limited_row("size", "bytes", 0, vec![Limit::Ours(2.0)]);
        report.record(row, OURS, 0, 3.0);
        assert!(report.table().contains("≤ 2: NOT MET"), "{}", report.table());
    }

    #[test]
    fn a_round_in_which_one_side_failed_forms_no_ratio() {
        let mut report = Report::new("sample", 5, &["nginx"]);
        let row = report.row("CPU", "µs", 1);
        report.record(row, OURS, 0, 1.0);
        report.record(row, OURS, 1, 9.0);
        report.record(row, "nginx", 1, 3.0);
        assert_eq!(report.json()["rows"][0]["contenders"]["nginx"]["ratio"], 3.0);
    }

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
