//! Errors and warnings in the text of a user: message, location and next step. In: findings of the parser, the schema
//! walker and the checks of each subsystem. Out: all findings in one report, each with its source line and a caret.
//! Limits: at most `FINDINGS_MAX` are stored, the rest are counted. Secrets and interpolated values are never shown.

use base::text::plural;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Maximum number of findings for one text; the last line counts the rest.
pub const FINDINGS_MAX: usize = 100;

/// Location of a node: line and column from 1, and its width in characters on that line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Location {
    pub line: u32,
    pub column: u32,
    pub width: u32,
}

impl Location {
    /// The width up to the end of the line.
    pub const TO_THE_END: u32 = 1 << 24;
}

/// One finding: in lower case, with the item and its value; `help` is the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub place: Option<Location>,
    pub message: String,
    pub help: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

impl Diagnostic {
    pub fn error(place: Location, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Error, place: Some(place), message: message.into(), help: None }
    }

    pub fn warning(place: Location, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(place, message) }
    }

    /// A finding about the entire text, such as a read error.
    pub fn whole(message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Error, place: None, message: message.into(), help: None }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
}

/// The findings about one text, with the data needed to render them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    file: Box<str>,
    text: Box<str>,
    findings: Vec<Diagnostic>,
    masked: Vec<Location>,
    /// Texts that no message may show, and their replacements; longer ones first.
    hidden: BTreeMap<(Reverse<usize>, String), String>,
    omitted: usize,
}

impl Report {
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Report {
        let (file, text) = (file.into().into_boxed_str(), text.into().into_boxed_str());
        Report { file, text, ..Report::default() }
    }

    pub fn push(&mut self, mut finding: Diagnostic) {
        if self.findings.len() >= FINDINGS_MAX {
            self.omitted += 1;
            return;
        }
        finding.message = self.without_hidden(finding.message);
        finding.help = finding.help.map(|help| self.without_hidden(help));
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    pub fn extend(&mut self, findings: impl IntoIterator<Item = Diagnostic>) {
        findings.into_iter().for_each(|finding| self.push(finding));
    }

    /// Masks the characters of a node whenever its line is shown.
    pub fn mask(&mut self, place: Location) {
        self.masked.push(place);
    }

    /// Replaces a text by `instead` in all messages pushed after this call.
    pub fn hide(&mut self, text: &str, instead: &str) {
        if !text.is_empty() && text != instead {
            self.hidden.insert((Reverse(text.len()), text.to_string()), instead.to_string());
        }
    }

    fn without_hidden(&self, mut message: String) -> String {
        for ((_, text), instead) in &self.hidden {
            if !message.contains(text.as_str()) {
                continue;
            }
            message = match text.chars().count() < HIDDEN_MIN {
                true => message.replace(&format!("`{text}`"), &format!("`{instead}`")),
                false => message.replace(text.as_str(), instead),
            };
        }
        message
    }

    pub fn findings(&self) -> &[Diagnostic] {
        &self.findings
    }

    /// Removes findings after the first `known` that do not pass.
    pub fn retain_after(&mut self, known: usize, passes: impl Fn(&Diagnostic) -> bool) {
        let later = self.findings.split_off(known.min(self.findings.len()));
        self.findings.extend(later.into_iter().filter(passes));
    }

    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// How many errors, warnings and omitted findings there are, as text: `2 errors, 1 warning`.
    pub fn count(&self) -> String {
        let count = |severity| self.findings.iter().filter(|finding| finding.severity == severity).count();
        let counts = [
            (count(Severity::Error), "error", "errors"),
            (count(Severity::Warning), "warning", "warnings"),
            (self.omitted, "more finding", "more findings"),
        ];
        let shown = counts.into_iter().filter(|(count, ..)| *count > 0);
        shown.map(|(count, one, many)| plural(count, one, many)).collect::<Vec<_>>().join(", ")
    }

    /// All findings as text, in the order of their locations.
    pub fn render(&self) -> String {
        let mut sorted: Vec<&Diagnostic> = self.findings.iter().collect();
        sorted.sort_by_key(|finding| finding.place.map(|place| (place.line, place.column)));
        let mut out = String::new();
        for finding in sorted {
            self.render_one(finding, &mut out);
        }
        if self.omitted > 0 {
            let _ = writeln!(out, "… and {} more findings", self.omitted);
        }
        out
    }

    fn render_one(&self, finding: &Diagnostic, out: &mut String) {
        let word = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{word}: {}", hide_userinfo(&finding.message));
        if let Some(place) = finding.place {
            let number = place.line.to_string();
            let pad = " ".repeat(number.len());
            let (line, start) = self.shown_line(place);
            let caret_column = (place.column.saturating_sub(1) as usize).saturating_sub(start);
            let indent: String = line.chars().take(caret_column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let room = line.chars().count().saturating_sub(caret_column).max(1);
            let carets = "^".repeat((place.width.max(1) as usize).min(room));
            let _ = writeln!(out, "{pad}--> {}:{}:{}", self.file, place.line, place.column);
            let _ = writeln!(out, "{pad} |\n{number} | {line}\n{pad} | {indent}{carets}");
        } else {
            let _ = writeln!(out, " --> {}", self.file);
        }
        if let Some(help) = &finding.help {
            let _ = writeln!(out, "  help: {}", hide_userinfo(help));
        }
        out.push('\n');
    }

    /// The line of a location, or the part of a long line around it; and how many characters before that part are omitted.
    fn shown_line(&self, place: Location) -> (String, usize) {
        // The complete line, since the part may begin within a user part.
        let line = hide_userinfo(line_of(&self.text, place.line));
        let masked: Vec<_> = self.masked.iter().filter(|masked| masked.line == place.line).collect();
        let caret = place.column.saturating_sub(1) as usize;
        let start = if caret < LINE_SHOWN_MAX { 0 } else { caret - LINE_SHOWN_MAX / 2 };
        let shown = line.chars().enumerate().skip(start).take(LINE_SHOWN_MAX).map(|(index, c)| {
            let column = index as u32 + 1;
            if masked.iter().any(|m| column >= m.column && column < m.column + m.width) { '*' } else { c }
        });
        (shown.collect(), start)
    }
}

/// A line by its number from 1, as in YAML: CR, LF and CRLF are line breaks (YAML 1.2.2, 5.4).
pub fn line_of(text: &str, number: u32) -> &str {
    let mut rest = text;
    for _ in 1..number {
        let Some(end) = rest.find(['\r', '\n']) else { return "" };
        let tail = rest.get(end..).unwrap_or("");
        rest = tail.strip_prefix("\r\n").or_else(|| tail.get(1..)).unwrap_or("");
    }
    rest.split(['\r', '\n']).next().unwrap_or("")
}

/// A shorter text is hidden only if it is the entire text in backticks, since it may be part of many words.
const HIDDEN_MIN: usize = 4;

/// Longer lines are truncated, since findings are shown in a terminal.
const LINE_SHOWN_MAX: usize = 200;

/// An external text in one line: control characters are escaped.
pub fn one_line(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Replaces `user:password@` of every URL in a text by asterisks of the same width, so that carets stay aligned.
pub fn hide_userinfo(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (head, tail) = rest.split_at(start + 3);
        out.push_str(head);
        let end = tail
            .find(|c: char| c == '/' || c.is_whitespace() || c == '"' || c == '\'' || c == '`')
            .unwrap_or(tail.len());
        match tail[..end].rfind('@') {
            Some(at) => {
                out.extend(std::iter::repeat_n('*', tail[..at].chars().count()));
                rest = &tail[at..];
            }
            None => rest = tail,
        }
    }
    out.push_str(rest);
    out
}

/// A URL without its user part and its query, which may be credentials, as in a presigned URL.
pub fn hide_query(url: &str) -> String {
    match url.split_once('?') {
        Some((url, _)) => format!("{}?…", hide_userinfo(url)),
        None => hide_userinfo(url),
    }
}

/// The known name nearest to a mistyped name, if it is near enough to suggest.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit || candidate.starts_with(name) && name.len() > 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and transpositions each cost one.
fn edit_distance(left: &str, right: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, distance) in rows[0].iter_mut().enumerate() {
        *distance = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_shows_its_line_caret_and_help() {
        let mut report = Report::new("outrigger.yaml", "app:\n  prot: 8080\n");
        report.push(
            Diagnostic::error(Location { line: 2, column: 3, width: 4 }, "unknown key `prot`")
                .help("did you mean `port`?"),
        );
        assert_eq!(
            report.render(),
            "error: unknown key `prot`\n --> outrigger.yaml:2:3\n  |\n2 |   prot: 8080\n  |   ^^^^\n  help: did you mean `port`?\n\n"
        );
    }

    #[test]
    fn secrets_and_url_credentials_are_never_shown() {
        let mut report = Report::new("f", "pass: hunter2 # https://me:pw@host/x");
        report.mask(Location { line: 1, column: 7, width: 7 });
        report.push(Diagnostic::error(Location { line: 1, column: 1, width: 4 }, "bad https://me:pw@host/x"));
        let shown = report.render();
        assert!(!shown.contains("hunter2") && !shown.contains("me:pw"), "{shown}");
        assert!(shown.contains("@host/x"), "{shown}");
    }

    #[test]
    fn a_url_is_shown_without_user_and_query() {
        assert_eq!(hide_query("https://me:pw@host/x?sig=abc"), "https://*****@host/x?…");
        assert_eq!(hide_query("https://host/x"), "https://host/x");
    }

    #[test]
    fn line_numbers_match_the_parser() {
        let text = "a\rb\r\nc\n\nd";
        let lines: Vec<&str> = (1..=7).map(|number| line_of(text, number)).collect();
        assert_eq!(lines, ["a", "b", "c", "", "d", "", ""]);
        let mut report = Report::new("f", "a:\r  pass: hunter2");
        report.mask(Location { line: 2, column: 9, width: 7 });
        report.push(Diagnostic::error(Location { line: 2, column: 3, width: 4 }, "wrong"));
        assert!(report.render().contains("2 |   pass: *******\n"), "{}", report.render());
    }

    #[test]
    fn hidden_texts_appear_in_no_message() {
        let mut report = Report::new("f", "");
        report.hide("hunter2", "${PASS}");
        report.hide("hunter2-and-more", "${LONG}");
        report.hide("80", "${PORT}");
        let finding = Diagnostic::whole("`hunter2-and-more` is not hunter2, and `80` not 8080").help("not `hunter2`");
        report.push(finding);
        let shown = report.render();
        assert!(shown.contains("error: `${LONG}` is not ${PASS}, and `${PORT}` not 8080\n"), "{shown}");
        assert!(shown.contains("help: not `${PASS}`"), "{shown}");
    }

    #[test]
    fn the_nearest_name_is_suggested_only_when_near() {
        let known = ["sources", "sinks", "stages"];
        assert_eq!(nearest("sorces", known), Some("sources"));
        assert_eq!(nearest("snik", known), None);
        assert_eq!(nearest("snika", known), None);
        assert_eq!(nearest("sniks", known), Some("sinks"));
        assert_eq!(nearest("volumes", known), None);
    }

    #[test]
    fn findings_over_the_bound_are_counted() {
        let mut report = Report::new("f", "");
        for line in 0..150 {
            report.push(Diagnostic::error(Location { line, column: 1, width: 1 }, "wrong"));
        }
        assert_eq!(report.findings().len(), FINDINGS_MAX);
        assert!(report.render().contains("and 50 more findings"));
    }
}
