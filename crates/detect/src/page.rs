//! A page of YAML on its way. In: lines, and text from elsewhere. Out: text in which what the app provided stays where it was
//! put. Bound: what comes from the app is cut and freed from control signs before it may stand in a comment, and quoted where
//! it is a value.

use std::fmt::Write as _;

/// Lines for people stop here.
const NOTE_MAX: usize = 400;

/// Lines of YAML and of comments.
#[derive(Default)]
pub struct Page {
    pub text: String,
    /// A line is in force.
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

    /// Lines that are valid once their sign is gone; a comment among them stays one.
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

/// Text from elsewhere as it may stand in a comment: one line, no control or direction signs, cut.
pub fn plain(text: &str, max: usize) -> String {
    let mut shown: String = text.chars().map(|c| if is_unsafe(c) { '?' } else { c }).take(max).collect();
    if text.chars().nth(max).is_some() {
        shown.push('…');
    }
    shown
}

/// Line ends of any YAML version, and signs that would make a line read otherwise than it is.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffd}')
}

/// A string of YAML in double quotes, in which `$` means itself.
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
    fn text_from_elsewhere_stays_in_its_line() {
        let evil = "x\nadmin: \"y\"\u{2028}\u{85}\\ ${A}";
        assert_eq!(quoted(evil), r#""x\nadmin: \"y\"\u2028\u0085\\ $${A}""#);
        assert_eq!(plain(evil, 100), "x?admin: \"y\"??\\ ${A}");
        assert_eq!(plain("ab\u{1b}[31mcd", 4), "ab?[…");
    }

    #[test]
    fn an_example_is_in_place_once_its_sign_is_gone() {
        let mut page = Page::default();
        page.example("  ", &["a: 1", "# why"]);
        assert_eq!((page.text.as_str(), page.is_active), ("#  a: 1\n  # why\n", false));
    }
}
