//! Detects the format of log lines. In: the last bytes of a file or an output. Out: a guess with its evidence in numbers; never
//! text of the lines. Limits: the newest `LINES_MAX` lines.

const LINES_MAX: usize = 2000;

/// The percentage of lines that must match a format.
const MATCH_PERCENT: usize = 80;

/// A guess at the format of lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    pub format: Format,
    /// Lines that were inspected, without empty lines.
    pub lines: usize,
    /// Lines that match the format.
    pub fit: usize,
    /// Lines that continue the previous line, such as those of a stack trace.
    pub continued: usize,
    /// The runtime that writes such stack traces.
    pub trace: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Nothing was written yet.
    Empty,
    /// Not text.
    Binary,
    /// One JSON object per line.
    Json,
    /// `key=value key="a value"`.
    Logfmt,
    /// NCSA common log format.
    Common,
    /// NCSA common log format with referer and user agent.
    Combined,
    Plain,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Empty => "empty",
            Format::Binary => "binary data",
            Format::Json => "JSON",
            Format::Logfmt => "logfmt",
            Format::Common => "the common log format",
            Format::Combined => "the combined log format",
            Format::Plain => "plain text",
        }
    }
}

/// Guesses the format of the tail of a file. `is_cut`: the first line may be truncated at its start.
pub fn sniff(tail: &[u8], is_cut: bool) -> Guess {
    let mut guess = Guess { format: Format::Empty, lines: 0, fit: 0, continued: 0, trace: None };
    if tail.contains(&0) {
        return Guess { format: Format::Binary, ..guess };
    }
    let text = String::from_utf8_lossy(tail);
    let text = match text.split_once('\n') {
        Some((_, rest)) if is_cut => rest,
        _ => &text,
    };
    const ORDER: [Format; 4] = [Format::Json, Format::Combined, Format::Common, Format::Logfmt];
    let mut counts = [0; ORDER.len()];
    let newest = text.lines().rev().filter(|line| !line.trim().is_empty()).take(LINES_MAX);
    for line in newest {
        guess.lines += 1;
        if let Some(trace) = continuation(line) {
            guess.continued += 1;
            guess.trace = guess.trace.or(trace);
            continue;
        }
        let format = format_of(line);
        if let Some(count) = ORDER.iter().position(|known| *known == format).and_then(|index| counts.get_mut(index)) {
            *count += 1;
        }
    }
    if guess.lines == 0 {
        return guess;
    }
    let first_lines = guess.lines - guess.continued;
    let (format, fit) = ORDER.into_iter().zip(counts).max_by_key(|(_, fit)| *fit).unwrap_or((Format::Plain, 0));
    let fits = fit > 0 && fit * 100 >= first_lines * MATCH_PERCENT;
    guess.format = if fits { format } else { Format::Plain };
    guess.fit = if fits { fit } else { first_lines };
    guess
}

fn format_of(line: &str) -> Format {
    let line = line.trim();
    if is_json_object(line) {
        return Format::Json;
    }
    match access_line(line) {
        Some(true) => Format::Combined,
        Some(false) => Format::Common,
        None if is_logfmt(line) => Format::Logfmt,
        None => Format::Plain,
    }
}

/// Whether a line continues the previous line; the inner value is the runtime of its stack trace, if it is known.
fn continuation(line: &str) -> Option<Option<&'static str>> {
    let trimmed = line.trim_start();
    let indented = trimmed.len() < line.len();
    // The format of Throwable.printStackTrace.
    let java = indented && trimmed.starts_with("at ") && trimmed.ends_with(')')
        || trimmed.starts_with("Caused by: ")
        || indented && (trimmed.starts_with("Suppressed: ") || trimmed.starts_with("... "));
    if java {
        return Some(Some(if trimmed.contains(".js:") || trimmed.contains("(node:") { "Node" } else { "Java" }));
    }
    if indented && trimmed.starts_with("File \"") || line.starts_with("Traceback (most recent call last)") {
        return Some(Some("Python"));
    }
    indented.then_some(None)
}

/// Brackets and strings are balanced from the first to the last byte: this distinguishes an object from text, but does not
/// parse it.
fn is_json_object(line: &str) -> bool {
    if !(line.starts_with("{\"") || line == "{}") || !line.ends_with('}') {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0i32, false, false);
    for (index, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 && index + 1 < line.len() {
                    return false;
                }
            }
            _ => {}
        }
    }
    depth == 0 && !in_string
}

/// Some for `host ident user [time] "request" status size`; true if referer and user agent follow.
fn access_line(line: &str) -> Option<bool> {
    let (names, rest) = line.split_once(" [")?;
    let (time, rest) = rest.split_once("] \"")?;
    let (_, rest) = rest.split_once("\" ")?;
    let is_time = time.len() >= 20 && time.as_bytes().get(2) == Some(&b'/');
    let mut columns = rest.split(' ');
    let status = columns.next()?;
    let size = columns.next()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let fits = names.split(' ').count() == 3 && is_time && status.len() == 3 && is_number(status);
    let fits = fits && (size == "-" || is_number(size));
    fits.then(|| columns.next().is_some_and(|referer| referer.starts_with('"')))
}

/// Every word is `key=value`, and there are at least two.
fn is_logfmt(line: &str) -> bool {
    let (mut rest, mut pairs) = (line, 0);
    while !rest.is_empty() {
        let Some((key, value)) = rest.split_once('=') else { return false };
        let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | '/');
        if key.is_empty() || !key.chars().all(is_key) {
            return false;
        }
        let end = match value.strip_prefix('"') {
            Some(quoted) => end_of_string(quoted).map(|end| end + 2),
            None => Some(value.find(' ').unwrap_or(value.len())),
        };
        let Some(after) = end.and_then(|end| value.get(end..)) else { return false };
        if !after.is_empty() && !after.starts_with(' ') {
            return false;
        }
        rest = after.trim_start();
        pairs += 1;
    }
    pairs >= 2
}

fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: (Format, usize, usize), trace: Option<&str>) {
        let guess = sniff(text.as_bytes(), false);
        assert_eq!((guess.format, guess.fit, guess.lines), expect, "{text}");
        assert_eq!(guess.trace, trace, "{text}");
    }

    #[test]
    fn formats_are_detected_by_their_lines() {
        check("{\"a\":1}\n{\"b\":\"}{\\\"\"}\n", (Format::Json, 2, 2), None);
        check("{}\n", (Format::Json, 1, 1), None);
        check("level=info msg=\"a \\\" b\" n=1\nts=1 level=warn\n", (Format::Logfmt, 2, 2), None);
        let common = "127.0.0.1 - - [22/Nov/2026:14:00:00 +0000] \"GET / HTTP/1.1\" 200 5";
        check(common, (Format::Common, 1, 1), None);
        check(&format!("{common} \"-\" \"curl/8\"\n"), (Format::Combined, 1, 1), None);
        check("hello\nworld\n", (Format::Plain, 2, 2), None);
        check("", (Format::Empty, 0, 0), None);
        check("\n\n", (Format::Empty, 0, 0), None);
        check("a\0b\n", (Format::Binary, 0, 0), None);
    }

    #[test]
    fn near_misses_of_a_format_are_plain_text() {
        for line in [
            "{not json}",
            "{\"a\":1} tail {\"b\":2}",
            "{\"a\":1",
            "{\"a\":\"}",
            "key=value",
            "see a=b and c",
            "a=\"open b=1",
            "x - - [when] \"GET /\" 200 5",
            "1.2.3.4 - - [22/Nov/2026:14:00:00 +0000] \"GET /\" abc 5",
        ] {
            check(line, (Format::Plain, 1, 1), None);
        }
    }

    #[test]
    fn stack_trace_lines_are_counted_separately() {
        let java = "ERROR it broke\njava.lang.Exception: x\n\tat a.B.c(B.java:7)\n\t... 3 more\nCaused by: y\nnext\n";
        check(java, (Format::Plain, 3, 6), Some("Java"));
        let python = "boom\nTraceback (most recent call last):\n  File \"a.py\", line 1, in f\n    x()\nKeyError: 1\n";
        check(python, (Format::Plain, 2, 5), Some("Python"));
        let json = "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n{\"a\":4}\nError: x\n    at f (/a.js:1:2)\n";
        check(json, (Format::Json, 4, 6), Some("Node"));
        let guess = sniff(b"one\n  two\n", false);
        assert_eq!((guess.continued, guess.trace), (1, None));
    }

    #[test]
    fn most_lines_decide_and_cut_lines_are_ignored() {
        let mut lines = vec!["{\"a\":1}"; 8];
        lines.extend(["plain", "plain"]);
        check(&lines.join("\n"), (Format::Json, 8, 10), None);
        lines.push("plain");
        check(&lines.join("\n"), (Format::Plain, 11, 11), None);
        assert_eq!(sniff(b"a\":1}\n{\"b\":2}\n", true).lines, 1);
        assert_eq!(sniff(b"one line without an end", true).lines, 1);
    }
}
