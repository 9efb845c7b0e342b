//! One Rust file as the rules see it: its code with strings and comments blanked, its functions, its test parts.
//! In: path and text. Out: lines and spans that a rule can search without meeting a word in a string or a comment.
//! Bound: a small lexer, not a parser; it knows literals, comments and balanced brackets, and nothing of macros' meaning.

/// A Rust file, read once for all rules.
pub struct Source {
    pub path: String,
    pub text: String,
    /// The text with the inside of every string and comment replaced by spaces; lines are where they were.
    pub code: String,
    pub functions: Vec<Function>,
}

/// A function with a body.
#[derive(Debug, PartialEq)]
pub struct Function {
    pub name: String,
    /// Lines count from 1; `first` is the line of `fn`, `last` that of the closing brace.
    pub first: usize,
    pub last: usize,
    /// Comments and attributes directly above, top to bottom, each with its line.
    pub head: Vec<(usize, String)>,
}

impl Function {
    pub fn is_test(&self) -> bool {
        self.head.iter().any(|(_, line)| {
            let line = line.trim();
            line.starts_with("#[test]") || (line.starts_with("#[") && line.contains("::test"))
        })
    }

    pub fn lines(&self) -> usize {
        self.last - self.first + 1
    }
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let functions = functions(text, &code);
        Self { path: path.to_string(), text: text.to_string(), code, functions }
    }

    /// Lines outside `#[cfg(test)]` items.
    pub fn lines_without_tests(&self) -> usize {
        let all = self.text.lines().count();
        let tests: usize = test_spans(&self.code).iter().map(|(first, last)| last - first + 1).sum();
        all.saturating_sub(tests)
    }

    /// First and last lines of the items under `#[cfg(test)]`.
    pub fn test_lines(&self) -> Vec<(usize, usize)> {
        test_spans(&self.code)
    }

    /// The line of a byte offset into `code`.
    pub fn line_at(&self, offset: usize) -> usize {
        line_at(&self.code, offset)
    }

    /// Offsets of `word` in `code` where it is not the end of a longer name.
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        words(&self.code, word)
    }
}

fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(offset, _)| offset)
        .filter(move |offset| !code[..*offset].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

pub fn line_at(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// The offset after the bracket that closes the one at `open`.
pub fn end_of_brackets(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(open + offset + c.len_utf8());
        }
    }
    None
}

fn functions(text: &str, code: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    words(code, "fn ")
        .filter_map(|offset| {
            let name: String =
                code[offset + 3..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let end = end_of_item(code, offset).filter(|end| !name.is_empty() && code[..*end].ends_with('}'))?;
            let first = line_at(code, offset);
            Some(Function { name, first, last: line_at(code, end - 1), head: head(&lines, first) })
        })
        .collect()
}

/// The offset after an item: its `;`, or the brace that closes its body, outside any bracket of its signature.
fn end_of_item(code: &str, start: usize) -> Option<usize> {
    let mut at = start;
    while let Some(c) = code[at..].chars().next() {
        match c {
            ';' => return Some(at + 1),
            '{' => return end_of_brackets(code, at),
            '(' | '[' => at = end_of_brackets(code, at)?,
            // The block we started in ends: there is no item here.
            '}' | ')' | ']' => return None,
            _ => at += c.len_utf8(),
        }
    }
    None
}

/// Comments and attributes directly above a line; an attribute may span several lines.
fn head(lines: &[&str], first: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside_attribute = false;
    for index in (0..first - 1).rev() {
        let line = lines[index].trim();
        let opens = line.starts_with("#[") || line.starts_with("//");
        let closes_attribute = line.ends_with(")]") && !opens;
        if !(opens || closes_attribute || inside_attribute) {
            break;
        }
        inside_attribute = (inside_attribute || closes_attribute) && !line.starts_with("#[");
        found.push((index + 1, line.to_string()));
    }
    found.reverse();
    found
}

/// First and last line of each item under `#[cfg(test)]`.
fn test_spans(code: &str) -> Vec<(usize, usize)> {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for marker in ["#[cfg(test)]", "#[cfg(all(test"] {
        for (offset, _) in code.match_indices(marker) {
            let first = line_at(code, offset);
            let after = end_of_brackets(code, offset + 1).unwrap_or(offset + marker.len());
            let Some(end) = end_of_attributes(code, after).and_then(|start| end_of_item(code, start)) else {
                continue;
            };
            spans.push((first, line_at(code, end - 1)));
        }
    }
    let all = spans.clone();
    let inside =
        |span: &(usize, usize)| all.iter().any(|other| other != span && other.0 <= span.0 && span.1 <= other.1);
    spans.retain(|span| !inside(span));
    spans
}

/// Skips further attributes between one and its item.
fn end_of_attributes(code: &str, mut at: usize) -> Option<usize> {
    loop {
        at += code[at..].len() - code[at..].trim_start().len();
        match code[at..].starts_with("#[") {
            true => at = end_of_brackets(code, at + 1)?,
            false => return Some(at),
        }
    }
}

/// Replaces what is inside strings, characters and comments by spaces.
fn blank(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let end = end_of_literal(&characters, at);
        match end {
            Some(end) => {
                // Quotes stay, so that what was a string still looks like one.
                let keeps = characters[at] != '/';
                for (offset, c) in characters[at..end].iter().enumerate() {
                    let quote = keeps && (offset == 0 || at + offset + 1 == end) && *c == '"';
                    code.push(if *c == '\n' || quote { *c } else { ' ' });
                }
                at = end;
            }
            None => {
                code.push(characters[at]);
                at += 1;
            }
        }
    }
    code
}

/// Where the string, character or comment that starts at `at` ends; nothing when none starts there.
fn end_of_literal(text: &[char], at: usize) -> Option<usize> {
    let next = |offset: usize| text.get(at + offset).copied();
    let in_a_name = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
    match text[at] {
        '/' if next(1) == Some('/') => {
            Some(text[at..].iter().position(|c| *c == '\n').map_or(text.len(), |length| at + length))
        }
        '/' if next(1) == Some('*') => Some(end_of_block_comment(text, at)),
        '"' => Some(end_of_string(text, at + 1)),
        'r' if !in_a_name => end_of_raw_string(text, at + 1),
        'b' | 'c' if !in_a_name && next(1) == Some('r') => end_of_raw_string(text, at + 2),
        '\'' if next(1) == Some('\\') => {
            let close = text.iter().skip(at + 3).position(|c| *c == '\'')?;
            Some(at + 3 + close + 1)
        }
        '\'' if next(2) == Some('\'') => Some(at + 3),
        _ => None,
    }
}

fn end_of_block_comment(text: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut here = at;
    while here < text.len() {
        match (text[here], text.get(here + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                here += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                here += 2;
            }
            _ => here += 1,
        }
        if depth == 0 {
            return here;
        }
    }
    text.len()
}

fn end_of_string(text: &[char], mut at: usize) -> usize {
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `at` is behind the `r`; a raw identifier such as `r#type` is no string.
fn end_of_raw_string(text: &[char], at: usize) -> Option<usize> {
    let hashes = text[at..].iter().take_while(|c| **c == '#').count();
    if text.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut here = at + hashes + 1;
    while here < text.len() {
        let closes = text[here] == '"' && text[here + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        if closes {
            return Some(here + 1 + hashes);
        }
        here += 1;
    }
    Some(text.len())
}

/// The complement of `code`: what is inside strings and comments, everything else replaced by spaces; lines are where they were.
pub fn prose(text: &str, code: &str) -> String {
    // `code` has one character for each character of `text`.
    let pairs = text.chars().zip(code.chars());
    pairs
        .map(|(c, code)| {
            if c == '\n' {
                c
            } else if c == code {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Names of types, traits and constants, with their lines.
pub fn type_names(code: &str) -> Vec<(String, usize)> {
    let keywords = ["struct ", "enum ", "trait ", "type ", "const ", "static ", "mod "];
    let found = keywords.iter().flat_map(|keyword| words(code, keyword).map(move |offset| offset + keyword.len()));
    found
        .map(|start| {
            let name = code[start..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            (name, line_at(code, start))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_blanked() {
        let check = |text: &str, expect: &str| assert_eq!(blank(text), expect, "{text}");
        check("a // b\nc", "a     \nc");
        check("a /* b /* c */ d */ e", "a                   e");
        check(r#"f("todo!()", x)"#, r#"f("       ", x)"#);
        check(r#"f("a\"b", x)"#, r#"f("    ", x)"#);
        check(r##"f(r#"a"b"#, x)"##, r##"f(        , x)"##);
        check("r#type + 1", "r#type + 1");
        check("let c = '{'; d", "let c =    ; d");
        check(r"let c = '\''; d", "let c =     ; d");
        check("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)");
        check("b\"{\" + b'{'", "b\" \" + b   ");
        check("\"line\nline\"", "\"    \n    \"");
    }

    #[test]
    fn functions_have_their_lines_and_their_head() {
        let text = "/// Doc.\n#[expect(\n    unused,\n    reason = \"x\"\n)]\npub fn a(x: [u8; 4]) -> u8 {\n    1\n}\n\ntrait T {\n    fn none(&self);\n}\nconst F: fn(u8) = g;\n#[test]\nfn b() {}\n";
        let source = Source::new("a.rs", text);
        let seen: Vec<_> =
            source.functions.iter().map(|f| (f.name.as_str(), f.first, f.last, f.head.len(), f.is_test())).collect();
        assert_eq!(seen, [("a", 6, 8, 5, false), ("b", 15, 15, 1, true)]);
    }

    #[test]
    fn test_parts_do_not_count_as_lines() {
        let check = |text: &str, expect: usize| {
            assert_eq!(Source::new("a.rs", text).lines_without_tests(), expect, "{text}");
        };
        check("a\nb\n", 2);
        check("a\n#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n", 1);
        check("a\n#[cfg(test)]\n#[path = \"x\"]\nmod tests;\nb\n", 2);
        check("a\n#[cfg(all(test, unix))]\nmod tests {\n    #[cfg(test)]\n    fn f() {}\n}\n", 1);
    }
}
