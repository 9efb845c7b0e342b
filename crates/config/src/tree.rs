//! The spanned tree: YAML as written, every node with its location. In: the text of one file. Out: a `Node`, or the
//! errors of the text. A scalar stays text until the schema determines its type, so that `version: 1.10` is `1.10`
//! if a string is expected. Limits: `TEXT_MAX`, `NODES_MAX` and `EXPANDED_MAX` (aliases count as the nodes that they
//! stand for), `DEPTH_MAX`.

use crate::diag::{Diagnostic, Location, line_of};
use granit_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::HashMap;

pub const TEXT_MAX: usize = 1 << 20;
pub const NODES_MAX: usize = 50_000;
pub const DEPTH_MAX: usize = 64;

/// Bytes of all keys and scalars, including those that aliases stand for.
pub const EXPANDED_MAX: usize = 4 << 20;

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub place: Location,
    pub value: Value,
    /// Its last line; a text may span several lines.
    pub last_line: u32,
    /// The text came from a variable or a file, so a message must not show it.
    pub interpolated: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `plain` is false for quoted and block scalars, which are always strings.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_place: Location,
    pub node: Node,
}

impl Node {
    fn new(span: &Span, value: Value) -> Node {
        Node { place: place_of(span), value, last_line: to_u32(span.end.line()), interpolated: false }
    }

    /// Whether the value is empty, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The type of this node, for a message.
    pub fn kind_name(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "nothing",
            Value::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => "a number",
            Value::Scalar { text, plain: true } if matches!(text.as_str(), "true" | "false") => "a boolean",
            Value::Scalar { .. } => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Whether this mapping has a key.
    pub fn has(&self, key: &str) -> bool {
        matches!(&self.value, Value::Map(entries) if entries.iter().any(|entry| entry.key == key))
    }

    /// The node at a path of keys and indexes, or its deepest existing ancestor.
    pub fn at(&self, path: &[&str]) -> &Node {
        let Some((first, rest)) = path.split_first() else {
            return self;
        };
        let next = match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == *first).map(|entry| &entry.node),
            Value::List(items) => first.parse::<usize>().ok().and_then(|index| items.get(index)),
            Value::Scalar { .. } => None,
        };
        next.map_or(self, |node| node.at(rest))
    }
}

/// Parses one YAML document.
pub fn parse(text: &str) -> Result<Node, Vec<Diagnostic>> {
    if text.len() > TEXT_MAX {
        return Err(vec![
            Diagnostic::whole(format!("the file has {} bytes, more than the {TEXT_MAX} allowed", text.len()))
                .help("move content that is not configuration into separate files"),
        ]);
    }
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.apply(event, &span),
            Err(error) => {
                let marker = error.marker();
                let place = Location { line: to_u32(marker.line()), column: to_u32(marker.col() + 1), width: 1 };
                let line = line_of(text, place.line);
                let rest: String = line.chars().skip(marker.col()).collect();
                builder.findings.push(
                    Diagnostic::error(place, format!("not valid YAML: {}", error.info())).help(help_for(line, &rest)),
                );
                return Err(builder.findings);
            }
        }
        let size = builder.size;
        if size.nodes > NODES_MAX || size.bytes > EXPANDED_MAX || builder.open.len() > DEPTH_MAX {
            return Err(vec![Diagnostic::whole(format!(
                "the file is nested deeper than {DEPTH_MAX} levels or expands to more than {NODES_MAX} nodes or {EXPANDED_MAX} bytes"
            ))]);
        }
    }
    let place = Location { line: 1, column: 1, width: 1 };
    let nothing = Node { place, value: Value::Map(Vec::new()), last_line: 1, interpolated: false };
    if builder.findings.is_empty() { Ok(builder.root.unwrap_or(nothing)) } else { Err(builder.findings) }
}

/// The likely cause of a line that is not valid YAML.
fn help_for(line: &str, rest: &str) -> String {
    let word = rest.split([',', ']', '}', ' ']).next().unwrap_or(rest);
    match word.chars().next() {
        // An alias, a tag, a directive, or a character that must not start a plain scalar.
        Some('*' | '&' | '!' | '%' | '@' | '`') => {
            format!("a word that begins with `{}` has a special meaning in YAML: quote it, \"{word}\"", &word[..1])
        }
        _ if line.contains('\t') => "indent with spaces: YAML does not allow tabs".into(),
        _ => "check the indentation, quotes and colons of this line and the previous line".into(),
    }
}

/// A collection that is not complete yet.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<(String, Location)>,
    /// The keys of a mapping so far, with their lines.
    keys: HashMap<String, u32>,
}

impl Open {
    fn new(node: Node, anchor: usize) -> Open {
        Open { node, anchor, key: None, keys: HashMap::new() }
    }
}

/// Size of a part of the tree.
#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
}

impl Size {
    fn add(&mut self, nodes: usize, bytes: usize) {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn add_all(&mut self, node: &Node) {
        match &node.value {
            Value::Scalar { text, .. } => self.add(1, text.len()),
            Value::List(items) => {
                self.add(1, 0);
                items.iter().for_each(|item| self.add_all(item));
            }
            Value::Map(entries) => {
                self.add(1, 0);
                for entry in entries {
                    self.add(0, entry.key.len());
                    self.add_all(&entry.node);
                }
            }
        }
    }
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, Size)>,
    root: Option<Node>,
    documents: usize,
    size: Size,
    findings: Vec<Diagnostic>,
}

impl Builder {
    fn apply(&mut self, event: Event<'_>, span: &Span) {
        let place = place_of(span);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents == 2 {
                    self.findings.push(
                        Diagnostic::error(place, "unexpected second document, expected only one")
                            .help("remove the line `---`, or move the second document to a separate file"),
                    );
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain || tag.is_some();
                let node = Node::new(span, Value::Scalar { text: text.into_owned(), plain: !quoted });
                self.complete(node, anchor);
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open::new(Node::new(span, Value::List(Vec::new())), anchor));
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open::new(Node::new(span, Value::Map(Vec::new())), anchor));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(done) = self.open.pop() {
                    self.complete(done.node, done.anchor);
                }
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some((_, size)) if self.size.bytes + size.bytes > EXPANDED_MAX => self.size.add(0, size.bytes),
                Some((node, size)) => {
                    let node = Node { place, ..node.clone() };
                    self.size.add(size.nodes, size.bytes);
                    self.complete(node, 0);
                }
                None => self.findings.push(Diagnostic::error(place, "recursive alias")),
            },
            _ => {}
        }
    }

    fn complete(&mut self, node: Node, anchor: usize) {
        let bytes = if let Value::Scalar { text, .. } = &node.value { text.len() } else { 0 };
        self.size.add(1, bytes);
        if anchor != 0 {
            let mut size = Size::default();
            size.add_all(&node);
            self.size.add(size.nodes, size.bytes);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root.get_or_insert(node);
            return;
        };
        match &mut parent.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match parent.key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => parent.key = Some((text, node.place)),
                    _ => {
                        self.findings
                            .push(Diagnostic::error(node.place, "a key must be a plain word, not a list or a mapping"));
                        parent.key = Some((String::new(), node.place));
                    }
                },
                Some((key, key_place)) => {
                    if let Some(first) = parent.keys.get(&key) {
                        self.findings.push(
                            Diagnostic::error(key_place, format!("duplicate key `{key}`"))
                                .help(format!("first defined on line {first}; remove one of them")),
                        );
                    } else {
                        parent.keys.insert(key.clone(), key_place.line);
                        entries.push(Entry { key, key_place, node });
                    }
                }
            },
            Value::Scalar { .. } => {}
        }
    }
}

fn place_of(span: &Span) -> Location {
    let within = span.start.line() == span.end.line();
    let width = if within { span.end.col().saturating_sub(span.start.col()) } else { Location::TO_THE_END as usize };
    Location { line: to_u32(span.start.line()), column: to_u32(span.start.col() + 1), width: to_u32(width.max(1)) }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_rejected(text: &str, line: u32, part: &str) {
        let findings = parse(text).expect_err(text);
        assert!(
            findings.iter().any(|f| f.message.contains(part) && f.place.is_none_or(|p| p.line == line)),
            "{text}: {findings:?}"
        );
    }

    #[test]
    fn every_node_has_its_location_and_text() {
        let tree = parse("app:\n  port: 8080\n  tags: [a, 1.10]\n").expect("valid");
        let port = tree.at(&["app", "port"]);
        assert_eq!(port.place, Location { line: 2, column: 9, width: 4 });
        let tag = tree.at(&["app", "tags", "1"]);
        assert_eq!(tag.value, Value::Scalar { text: "1.10".into(), plain: true });
    }

    #[test]
    fn misleading_texts_are_rejected_with_their_line() {
        check_rejected("a: 1\na: 2\n", 2, "duplicate key");
        check_rejected("a: 1\n---\nb: 2\n", 2, "second document");
        check_rejected("a: [1, 2\nb: 3\n", 2, "not valid YAML");
        check_rejected("a: &x [*x]\n", 1, "");
        check_rejected("? [a, b]\n: c\n", 1, "plain word");
    }

    /// Guarantee: hostile-configuration-rejected
    #[test]
    fn alias_bomb_is_rejected() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..8 {
            let previous = level - 1;
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{previous}"); 10].join(",")));
        }
        check_rejected(&text, 0, "expands");
        check_rejected(&format!("a: {}{}", "[".repeat(100), "]".repeat(100)), 0, "deeper");
        let long = "x".repeat(TEXT_MAX / 2);
        check_rejected(&format!("a: &a {long}\nb: [{}]\n", "*a,".repeat(1000)), 0, "expands");
    }

    #[test]
    fn many_keys_parse_in_linear_time() {
        let text: String = (0..24_000).map(|number| format!("k{number}: \n")).collect();
        let started = std::time::Instant::now();
        let Value::Map(entries) = parse(&text).expect("valid").value else { panic!("a mapping") };
        assert_eq!(entries.len(), 24_000);
        assert!(started.elapsed().as_secs() < 4, "{:?}", started.elapsed());
    }

    #[test]
    fn alias_has_its_own_location_and_the_value() {
        let tree = parse("a: &x {k: 1}\nb: *x\n").expect("valid");
        assert_eq!(tree.at(&["b"]).place.line, 2);
        assert_eq!(tree.at(&["b", "k"]).value, Value::Scalar { text: "1".into(), plain: true });
    }
}
