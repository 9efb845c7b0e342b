//! Builds a page of YAML. In: lines, and text that the app provided. Out: text in which the app's text cannot leave its comment
//! or its value. Limits: text from the app is truncated and its control characters are replaced before it is written into a
//! comment; as a value it is quoted.

use std::fmt::Write as _;

/// The maximum length of a comment, in characters.
const NOTE_MAX: usize = 400;

/// Lines of YAML and of comments.
#[derive(Default)]
pub struct Page {
    pub text: String,
    /// The page has an active line.
    pub is_active: bool,
}

impl Page {
    pub fn gap(&mut self) {
        self.text.push('\n');
    }

    pub fn line(&mut self, line: &str) {
        self.is_active = true;
        self.text.push_str(line);
        self.text.push('\n');
    }

    pub fn note(&mut self, indent: &str, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{indent}# {}", plain(text, NOTE_MAX));
    }

    pub fn evidence(&mut self, indent: &str, text: &str) {
        self.note(indent, &format!("evidence: {text}"));
    }

    /// Lines that are valid once uncommented; a comment among them stays a comment.
    pub fn example(&mut self, indent: &str, lines: &[&str]) {
        for line in lines {
            if line.trim_start().starts_with("# ") {
                let _ = writeln!(self.text, "{indent}{line}");
            } else {
                let _ = writeln!(self.text, "#{indent}{line}");
            }
        }
    }
}

/// Text from the app, safe for a comment: one line, without control or bidirectional formatting characters, truncated.
pub fn plain(text: &str, max: usize) -> String {
    let mut shown: String = text.chars().map(|c| if is_unsafe(c) { '?' } else { c }).take(max).collect();
    if text.chars().nth(max).is_some() {
        shown.push('…');
    }
    shown
}

/// Line breaks of any YAML version, and characters that change how a line is displayed.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffd}')
}

/// A double-quoted YAML string in which each `$` is escaped.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '$' => out.push_str("$$"),
            c if is_unsafe(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_stays_in_its_line() {
        let evil = "x\nadmin: \"y\"\u{2028}\u{85}\\ ${A}";
        assert_eq!(quoted(evil), r#""x\nadmin: \"y\"\u2028\u0085\\ $${A}""#);
        assert_eq!(plain(evil, 100), "x?admin: \"y\"??\\ ${A}");
        assert_eq!(plain("ab\u{1b}[31mcd", 4), "ab?[…");
    }

    #[test]
    fn uncommented_example_is_indented_correctly() {
        let mut page = Page::default();
        page.example("  ", &["a: 1", "# why"]);
        assert_eq!((page.text.as_str(), page.is_active), ("#  a: 1\n  # why\n", false));
    }
}
