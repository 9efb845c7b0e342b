//! Validates the tree against a JSON Schema and reports every error with its location, reason and next step. In: the tree,
//! and the schema that `schemars` generates from a Config type. Out: JSON for serde, typed by the schema, and the findings. It
//! supports the part of JSON Schema that Config types use, and two extensions: `x-kinds` (exactly one of these keys is the
//! kind) `x-exactly-one` (exactly one of these keys is required), and the formats `duration`, `size`, `secret`, `address` and `url`.

use crate::diag::{Diagnostic, Location, nearest};
use crate::tree::{Entry, Node, Value};
use crate::unit::{Address, ByteSize, TimeSpan, Url};
use serde_json::{Map, Number, Value as Json};

mod hints;
#[cfg(test)]
mod tests;

/// Result of the walk: the value for serde, the errors, and the nodes that no message may show.
#[derive(Debug, Default)]
pub struct Checked {
    pub json: Json,
    pub findings: Vec<Diagnostic>,
    pub secrets: Vec<Location>,
}

pub fn check(tree: &Node, schema: &Json) -> Checked {
    walk(tree, schema, false)
}

/// The tree as JSON for display: secrets, credentials in URLs and interpolated values are hidden.
pub fn shown(tree: &Node, schema: &Json) -> Json {
    walk(tree, schema, true).json
}

fn walk(tree: &Node, schema: &Json, hide: bool) -> Checked {
    let mut walker =
        Walker { root: schema, above: Vec::new(), path: Vec::new(), findings: Vec::new(), secrets: Vec::new(), hide };
    let json = walker.value(tree, schema);
    Checked { json, findings: walker.findings, secrets: walker.secrets }
}

struct Walker<'s> {
    root: &'s Json,
    /// The mappings around the current one, outermost first.
    above: Vec<&'s Json>,
    /// The keys and list indexes down to the current node.
    path: Vec<String>,
    findings: Vec<Diagnostic>,
    secrets: Vec<Location>,
    hide: bool,
}

impl<'s> Walker<'s> {
    fn value(&mut self, node: &Node, schema: &'s Json) -> Json {
        let schema = self.resolve(schema);
        if let Some(variants) = schema["anyOf"].as_array() {
            // `Option<T>` is "T or null"; a null omits the key.
            if node.is_null() && variants.iter().any(|variant| variant["type"] == "null") {
                return Json::Null;
            }
            if let Some(variant) = variants.iter().find(|variant| variant["type"] != "null") {
                return self.value(node, variant);
            }
        }
        if let Some(variants) = schema["oneOf"].as_array() {
            return self.one_of(node, variants);
        }
        let allowed: Vec<&str> = words_of(schema).collect();
        if !allowed.is_empty() {
            return self.word(node, &allowed);
        }
        let (expected, nullable) = type_of(schema);
        if nullable && node.is_null() {
            return Json::Null;
        }
        match expected {
            Some("object") => self.object(node, schema),
            Some("array") => self.array(node, schema),
            Some("string") => self.string(node, schema),
            Some("integer" | "number") => self.number(node, schema),
            Some("boolean") => self.boolean(node),
            _ => untyped(node),
        }
    }

    /// Walks a node below the current one.
    fn below(&mut self, key: impl Into<String>, node: &Node, schema: &'s Json) -> Json {
        self.path.push(key.into());
        let json = self.value(node, schema);
        self.path.pop();
        json
    }

    /// The path of the current node as messages show it.
    fn name(&self) -> String {
        match self.path.as_slice() {
            [] => "the file".into(),
            path => path.join(".").replace(".[", "["),
        }
    }

    fn resolve(&self, schema: &'s Json) -> &'s Json {
        let mut schema = schema;
        while let Some(target) = schema["$ref"].as_str() {
            match self.root.pointer(target.trim_start_matches('#')) {
                Some(found) => schema = found,
                None => break,
            }
        }
        schema
    }

    fn object(&mut self, node: &Node, schema: &'s Json) -> Json {
        let kinds: Vec<&str> = strings(&schema["x-kinds"]).collect();
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            _ if node.is_null() => &[],
            _ => return self.not_a_mapping(node, schema, &kinds),
        };
        let properties = schema["properties"].as_object();
        let mut json = Map::new();
        let mut unknown = Vec::new();
        self.above.push(schema);
        for entry in entries {
            let property = properties.and_then(|properties| properties.get(&entry.key));
            match (property, &schema["additionalProperties"]) {
                (Some(property), _) => {
                    let empty_kind = entry.node.is_null() && kinds.contains(&entry.key.as_str());
                    let node = if empty_kind {
                        &Node { value: Value::Map(Vec::new()), ..entry.node.clone() }
                    } else {
                        &entry.node
                    };
                    let value = self.below(&entry.key, node, property);
                    if !value.is_null() {
                        json.insert(entry.key.clone(), value);
                    }
                }
                (None, Json::Object(_)) => {
                    self.entry_name(entry, schema);
                    let value = self.below(&entry.key, &entry.node, &schema["additionalProperties"]);
                    json.insert(entry.key.clone(), value);
                }
                (None, Json::Bool(false)) => unknown.push(entry),
                (None, _) => {
                    json.insert(entry.key.clone(), untyped(&entry.node));
                }
            }
        }
        let is_kind_explained = self.unknown_keys(&unknown, entries, schema, &kinds);
        self.above.pop();
        self.missing_keys(node, schema, entries);
        self.dependent_keys(schema, entries);
        self.exactly_one(node, schema, entries);
        self.one_kind(node, entries, &kinds, is_kind_explained);
        self.keys_without_effect(schema, entries, &kinds);
        Json::Object(json)
    }

    /// Names become file names, labels and ledger rows, so their alphabet is restricted.
    fn entry_name(&mut self, entry: &Entry, schema: &Json) {
        if schema["x-names"] == true && !is_name(&entry.key) {
            self.findings.push(
                Diagnostic::error(entry.key_place, format!("invalid name `{}` in `{}`", entry.key, self.name()))
                    .help("use up to 63 letters, digits, `-` and `_`, beginning with a letter or digit"),
            );
        }
    }

    /// Masks everything below an unknown key: it may be a secret under a wrong name.
    fn mask(&mut self, node: &Node) {
        match &node.value {
            Value::Scalar { .. } => self.secrets.push(node.place),
            Value::List(items) => items.iter().for_each(|item| self.mask(item)),
            Value::Map(entries) => entries.iter().for_each(|entry| self.mask(&entry.node)),
        }
    }

    fn missing_keys(&mut self, node: &Node, schema: &Json, entries: &[Entry]) {
        let name = self.name();
        let required = strings(&schema["required"]);
        for key in required.filter(|key| !entries.iter().any(|entry| entry.key == *key)) {
            let about = schema["properties"][key]["description"].as_str().and_then(|text| text.lines().next());
            let finding = Diagnostic::error(node.place, format!("missing required key `{key}` in `{name}`"));
            self.findings.push(match about {
                Some(about) => finding.help(format!("add `{key}: …` — {about}")),
                None => finding.help(format!("add `{key}: …`")),
            });
        }
    }

    /// Keys that require another one (JSON Schema, `dependentRequired`).
    fn dependent_keys(&mut self, schema: &Json, entries: &[Entry]) {
        let has = |key: &str| entries.iter().any(|entry| entry.key == key);
        for entry in entries {
            let required = strings(&schema["dependentRequired"][entry.key.as_str()]);
            for key in required.filter(|key| !has(key)) {
                let text = format!("`{}` in `{}` requires `{key}`", entry.key, self.name());
                self.findings.push(Diagnostic::error(entry.key_place, text).help("set both or none"));
            }
        }
    }

    /// Keys of which exactly one is required.
    fn exactly_one(&mut self, node: &Node, schema: &Json, entries: &[Entry]) {
        let keys: Vec<&str> = strings(&schema["x-exactly-one"]).collect();
        let given: Vec<&Entry> = entries.iter().filter(|entry| keys.contains(&entry.key.as_str())).collect();
        let place = match given.as_slice() {
            _ if keys.is_empty() => return,
            [] => node.place,
            [_] => return,
            [_, second, ..] => second.key_place,
        };
        let text = format!("`{}` needs exactly one of {}", self.name(), keys.join(" and "));
        let help = if given.is_empty() { "add one of them" } else { "keep one of them" };
        self.findings.push(Diagnostic::error(place, text).help(help));
    }

    /// Keys that all kinds of a registry share, except those listed in `x-without-effect-on` of the key.
    fn keys_without_effect(&mut self, schema: &Json, entries: &[Entry], kinds: &[&str]) {
        let kind = entries.iter().map(|entry| entry.key.as_str()).find(|key| kinds.contains(key));
        let Some(kind) = kind else { return };
        for entry in entries {
            let mut others = strings(&schema["properties"][entry.key.as_str()]["x-without-effect-on"]);
            if others.any(|other| other == kind) {
                let text = format!("`{}` has no effect on `{kind}` in `{}`", entry.key, self.name());
                self.findings.push(Diagnostic::error(entry.key_place, text).help("remove it"));
            }
        }
    }

    /// `explained`: an unknown key is reported that may be the kind.
    fn one_kind(&mut self, node: &Node, entries: &[Entry], kinds: &[&str], explained: bool) {
        if kinds.is_empty() {
            return;
        }
        let name = self.name();
        let given: Vec<&Entry> = entries.iter().filter(|entry| kinds.contains(&entry.key.as_str())).collect();
        if let [_, second, ..] = given.as_slice() {
            let message = format!("`{name}` has two kinds: `{}` and `{}`", given[0].key, second.key);
            self.findings.push(Diagnostic::error(second.key_place, message).help("use a separate entry for each"));
        } else if given.is_empty() && !explained {
            let finding = Diagnostic::error(node.place, format!("`{name}` has no kind"));
            self.findings.push(finding.help(format!("set exactly one of: {}", kinds.join(", "))));
        }
    }

    fn array(&mut self, node: &Node, schema: &'s Json) -> Json {
        let items = match &node.value {
            Value::List(items) => items,
            _ => return self.not_a_list(node, schema),
        };
        let min = schema["minItems"].as_u64().unwrap_or(0);
        let max = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
        let length = items.len() as u64;
        if length < min || length > max {
            let limit = if length < min { format!("at least {min}") } else { format!("at most {max}") };
            self.findings.push(Diagnostic::error(
                node.place,
                format!("`{}` has {length} entries, expected {limit}", self.name()),
            ));
        }
        let items = items.iter().enumerate();
        Json::Array(items.map(|(index, item)| self.below(format!("[{index}]"), item, &schema["items"])).collect())
    }

    /// An externally tagged enum: a word, or a mapping with exactly one key.
    fn one_of(&mut self, node: &Node, variants: &'s [Json]) -> Json {
        let words: Vec<&str> = variants.iter().flat_map(|variant| words_of(self.resolve(variant))).collect();
        let keyed = |key: &str| variants.iter().find(|variant| self.resolve(variant)["properties"].get(key).is_some());
        let known: Vec<&str> = variants
            .iter()
            .filter_map(|variant| self.resolve(variant)["properties"].as_object())
            .flat_map(|properties| properties.keys().map(String::as_str))
            .collect();
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Scalar { text, .. } if known.contains(&text.as_str()) && !node.interpolated => {
                return self.kind_without_mapping(node, text);
            }
            Value::Scalar { .. } if words.is_empty() => return self.mistyped(node, "a mapping with exactly one key"),
            Value::Scalar { .. } => return self.word(node, &words),
            Value::List(_) => return self.mistyped(node, "a mapping with exactly one key"),
        };
        let name = self.name();
        match entries.as_slice() {
            [entry] if keyed(&entry.key).is_some() => {
                let variant = self.resolve(keyed(&entry.key).unwrap_or(&Json::Null));
                let empty = Node { value: Value::Map(Vec::new()), ..entry.node.clone() };
                let inner = if entry.node.is_null() { &empty } else { &entry.node };
                let value = self.below(&entry.key, inner, &variant["properties"][entry.key.as_str()]);
                Json::Object(Map::from_iter([(entry.key.clone(), value)]))
            }
            [entry] => {
                let finding = Diagnostic::error(entry.key_place, format!("unknown kind `{}` in `{name}`", entry.key));
                let near = nearest(&entry.key, known.iter().copied()).map(|near| format!("did you mean `{near}`?"));
                self.findings.push(finding.help(near.unwrap_or_else(|| format!("known kinds: {}", known.join(", ")))));
                Json::Null
            }
            _ => {
                let finding = Diagnostic::error(node.place, format!("`{name}` must have exactly one key, its kind"));
                self.findings.push(finding.help(format!("known kinds: {}", known.join(", "))));
                Json::Null
            }
        }
    }

    fn word(&mut self, node: &Node, allowed: &[&str]) -> Json {
        let Value::Scalar { text, .. } = &node.value else {
            return self.mistyped(node, "a string");
        };
        if allowed.contains(&text.as_str()) {
            return Json::String(text.clone());
        }
        let finding = Diagnostic::error(node.place, format!("`{}`: unknown value {}", self.name(), quoted(node)));
        let near = nearest(text, allowed.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        self.findings.push(finding.help(near.unwrap_or_else(|| format!("expected one of: {}", allowed.join(", ")))));
        Json::Null
    }

    fn string(&mut self, node: &Node, schema: &Json) -> Json {
        let format = schema["format"].as_str().unwrap_or("");
        if format == "secret" {
            self.mask(node);
        }
        let Value::Scalar { text, .. } = &node.value else {
            return self.mistyped(node, "a string");
        };
        if node.is_null() {
            return self.mistyped(node, "a string");
        }
        if text.contains('\0') {
            let finding = Diagnostic::error(node.place, format!("`{}` contains a NUL byte", self.name()));
            self.findings.push(finding.help("remove it; the value of a placeholder must be text"));
        }
        if text.is_empty() && schema["minLength"].as_u64().is_some_and(|min| min > 0) {
            self.findings.push(Diagnostic::error(node.place, format!("`{}` is empty", self.name())));
        }
        let reason = match format {
            "duration" => TimeSpan::parse(text).err(),
            "size" => ByteSize::parse(text).err(),
            "address" => Address::parse(text).err(),
            "url" => Url::parse(text).err(),
            _ => None,
        };
        if let Some(reason) = reason {
            let reason =
                if node.interpolated { reason.replace(&format!("`{text}`"), "the interpolated value") } else { reason };
            self.findings.push(Diagnostic::error(node.place, format!("`{}`: {reason}", self.name())));
        }
        Json::String(match (self.hide, format, node.interpolated) {
            (true, "secret", _) => "(secret)".into(),
            (true, _, true) => "(interpolated)".into(),
            (true, _, false) => crate::diag::hide_userinfo(text),
            (false, ..) => text.clone(),
        })
    }

    fn number(&mut self, node: &Node, schema: &Json) -> Json {
        let is_integer = schema["type"] == "integer"
            || schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "integer"));
        let expected = if is_integer { "an integer" } else { "a number" };
        let Value::Scalar { text, plain: true } = &node.value else {
            return self.mistyped(node, expected);
        };
        let number = if is_integer {
            text.parse::<i64>().ok().map(Number::from)
        } else {
            text.parse().ok().and_then(Number::from_f64)
        };
        let Some(number) = number else {
            return self.mistyped(node, expected);
        };
        let value = number.as_f64().unwrap_or(0.0);
        let min = schema["minimum"].as_f64().unwrap_or(f64::NEG_INFINITY);
        let max = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
        if value < min || value > max {
            let limit = if max.is_infinite() { format!("at least {min}") } else { format!("from {min} to {max}") };
            self.findings.push(Diagnostic::error(
                node.place,
                format!("`{}` is {}, expected {limit}", self.name(), quoted(node)),
            ));
        }
        Json::Number(number)
    }

    fn boolean(&mut self, node: &Node) -> Json {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Json::Bool(true),
            Value::Scalar { text, plain: true } if text == "false" => Json::Bool(false),
            Value::Scalar { text, .. } => {
                let word = match text.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "y" | "1" | "true" => Some("true"),
                    "no" | "off" | "n" | "0" | "false" => Some("false"),
                    _ => None,
                };
                let finding = Diagnostic::error(
                    node.place,
                    format!("`{}`: expected true or false, found {}", self.name(), quoted(node)),
                );
                self.findings.push(match word {
                    Some(word) => finding.help(format!("write {word}, without quotes")),
                    None => finding,
                });
                Json::Null
            }
            _ => self.mistyped(node, "true or false"),
        }
    }

    fn mistyped(&mut self, node: &Node, expected: &str) -> Json {
        let quoted =
            matches!(&node.value, Value::Scalar { plain: false, .. }) && matches!(expected, "a number" | "an integer");
        let finding = Diagnostic::error(
            node.place,
            format!("`{}`: expected {expected}, found {}", self.name(), node.kind_name()),
        );
        self.findings.push(if quoted { finding.help("write it without quotes") } else { finding });
        Json::Null
    }
}

/// The texts of a list; none if it is absent.
pub(crate) fn strings(list: &Json) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Json::as_str)
}

/// The words that a schema allows.
fn words_of(schema: &Json) -> impl Iterator<Item = &str> {
    schema["const"].as_str().into_iter().chain(strings(&schema["enum"]))
}

fn type_of(schema: &Json) -> (Option<&str>, bool) {
    match &schema["type"] {
        Json::String(one) => (Some(one), false),
        Json::Array(several) => (
            several.iter().filter_map(Json::as_str).find(|name| *name != "null"),
            several.iter().any(|name| name == "null"),
        ),
        _ => (None, false),
    }
}

fn quoted(node: &Node) -> String {
    match &node.value {
        Value::Scalar { .. } if node.interpolated => "the interpolated value".into(),
        Value::Scalar { text, .. } => format!("`{text}`"),
        _ => node.kind_name().into(),
    }
}

/// A node without a type in the schema is read with the types of YAML.
fn untyped(node: &Node) -> Json {
    match &node.value {
        _ if node.is_null() => Json::Null,
        Value::Scalar { text, plain: true } => serde_json::from_str::<Number>(text)
            .map(Json::Number)
            .or_else(|_| text.parse::<bool>().map(Json::Bool))
            .unwrap_or_else(|_| Json::String(text.clone())),
        Value::Scalar { text, .. } => Json::String(text.clone()),
        Value::List(items) => Json::Array(items.iter().map(untyped).collect()),
        Value::Map(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), untyped(&entry.node))).collect())
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.len() <= 63
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}
