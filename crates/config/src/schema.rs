//! Validates the tree against a JSON Schema and reports every error with its location, reason and next step. In: the tree,
//! and the schema that `schemars` generates from a Config type. Out: JSON for serde, typed by the schema, and the findings. It
//! supports the part of JSON Schema that Config types use, and two extensions: `x-kinds` (exactly one of these keys is the
//! kind) and the formats `duration`, `size`, `secret`, `address` and `url`.

use crate::diag::{Diagnostic, Location, nearest};
use crate::renamed;
use crate::tree::{Entry, Node, Value};
use crate::unit::{Address, ByteSize, TimeSpan, Url};
use serde_json::{Map, Number, Value as Json};

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
    let mut walker = Walker { root: schema, above: Vec::new(), findings: Vec::new(), secrets: Vec::new(), hide };
    let json = walker.value(tree, schema, "the file");
    Checked { json, findings: walker.findings, secrets: walker.secrets }
}

struct Walker<'s> {
    root: &'s Json,
    /// The mappings around the current one, outermost first.
    above: Vec<&'s Json>,
    findings: Vec<Diagnostic>,
    secrets: Vec<Location>,
    hide: bool,
}

impl<'s> Walker<'s> {
    fn value(&mut self, node: &Node, schema: &'s Json, name: &str) -> Json {
        let schema = self.resolve(schema);
        if let Some(variants) = schema["anyOf"].as_array() {
            // `Option<T>` is "T or null"; a null omits the key.
            if node.is_null() && variants.iter().any(|variant| variant["type"] == "null") {
                return Json::Null;
            }
            if let Some(variant) = variants.iter().find(|variant| variant["type"] != "null") {
                return self.value(node, variant, name);
            }
        }
        if let Some(variants) = schema["oneOf"].as_array() {
            return self.one_of(node, variants, name);
        }
        if let Some(allowed) = schema["enum"].as_array() {
            return self.word(node, &allowed.iter().filter_map(Json::as_str).collect::<Vec<_>>(), name);
        }
        if let Some(only) = schema["const"].as_str() {
            return self.word(node, &[only], name);
        }
        let (expected, nullable) = type_of(schema);
        if nullable && node.is_null() {
            return Json::Null;
        }
        match expected {
            Some("object") => self.object(node, schema, name),
            Some("array") => self.array(node, schema, name),
            Some("string") => self.string(node, schema, name),
            Some("integer" | "number") => self.number(node, schema, name),
            Some("boolean") => self.boolean(node, name),
            _ => untyped(node),
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

    fn object(&mut self, node: &Node, schema: &'s Json, name: &str) -> Json {
        let kinds: Vec<&str> =
            schema["x-kinds"].as_array().map(|list| list.iter().filter_map(Json::as_str).collect()).unwrap_or_default();
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            _ if node.is_null() && kinds.is_empty() => &[],
            _ => {
                let json = self.mistyped(node, "a mapping", name);
                if let (Value::Scalar { text, .. }, Some(finding)) = (&node.value, self.findings.last_mut())
                    && schema["properties"].get("max_bytes").is_some()
                    && !node.interpolated
                {
                    finding.help = Some(format!("write `{name}: {{ max_bytes: {text} }}`"));
                }
                return json;
            }
        };
        let properties = schema["properties"].as_object();
        let mut json = Map::new();
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
                    let value = self.value(node, property, &entry.key);
                    if !value.is_null() {
                        json.insert(entry.key.clone(), value);
                    }
                }
                (None, Json::Object(_)) => {
                    self.entry_name(entry, schema, name);
                    let value = self.value(&entry.node, &schema["additionalProperties"], &entry.key);
                    json.insert(entry.key.clone(), value);
                }
                (None, Json::Bool(false)) => self.unknown_key(entry, entries, schema, &kinds, name),
                (None, _) => {
                    json.insert(entry.key.clone(), untyped(&entry.node));
                }
            }
        }
        self.above.pop();
        self.missing_keys(node, schema, entries, name);
        self.one_kind(node, entries, &kinds, name);
        Json::Object(json)
    }

    /// Names become file names, labels and ledger rows, so their alphabet is restricted.
    fn entry_name(&mut self, entry: &Entry, schema: &Json, parent: &str) {
        if schema["x-names"] == true && !is_name(&entry.key) {
            self.findings.push(
                Diagnostic::error(entry.key_place, format!("invalid name `{}` in `{parent}`", entry.key))
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

    /// Whether a schema contains a secret at any level up to `SECRET_DEPTH`.
    fn holds_secrets(&self, schema: &'s Json, depth: usize) -> bool {
        let schema = self.resolve(schema);
        let below = |value: &'s Json| depth < SECRET_DEPTH && self.holds_secrets(value, depth + 1);
        schema["format"] == "secret"
            || ["anyOf", "oneOf"].iter().any(|key| schema[*key].as_array().into_iter().flatten().any(below))
            || schema["properties"].as_object().into_iter().flatten().any(|(_, value)| below(value))
            || schema["items"].is_object() && below(&schema["items"])
            || schema["additionalProperties"].is_object() && below(&schema["additionalProperties"])
    }

    fn unknown_key(&mut self, entry: &Entry, siblings: &[Entry], schema: &'s Json, kinds: &[&str], name: &str) {
        let known: Vec<&str> = schema["properties"].as_object().into_iter().flatten().map(|(key, _)| &**key).collect();
        let key = entry.key.as_str();
        let (help, meant) = if let Some(hint) = renamed::hint(key, &known, |path| self.key_at(schema, path).is_some()) {
            (hint.help, hint.key.and_then(|path| self.key_at(schema, &path)))
        } else if let Some((help, meant)) = self.misplaced(key, siblings, schema, kinds, name) {
            (help, Some(meant))
        } else if key == "type" && !kinds.is_empty() {
            let (first, all) = (kinds.first().unwrap_or(&""), kinds.join(", "));
            (format!("the kind is the key itself: {{ {first}: {{ … }} }}; known kinds: {all}"), None)
        } else {
            (format!("known keys: {}", known.join(", ")), None)
        };
        let message = format!("unknown key `{key}` in `{name}`");
        self.findings.push(Diagnostic::error(entry.key_place, message).help(help));
        // The line is shown, so a secret is also masked under a wrong name, and so is every unknown value.
        if meant.is_none_or(|meant| self.holds_secrets(meant, 0)) {
            self.mask(&entry.node);
        }
    }

    /// A key that is valid inside a sibling kind, or next to the kind that contains it.
    fn misplaced(
        &self,
        key: &str,
        siblings: &[Entry],
        schema: &'s Json,
        kinds: &[&str],
        name: &str,
    ) -> Option<(String, &'s Json)> {
        let inside = siblings.iter().map(|entry| entry.key.as_str()).filter(|other| kinds.contains(other));
        for kind in inside {
            let known = |path: &str| self.key_at(schema, &format!("{kind}.{path}"));
            if let Some(meant) = known(key) {
                return Some((format!("it is a key of `{kind}`: write `{kind}: {{ {key}: … }}`"), meant));
            }
            if let Some(hint) = renamed::hint(key, &[], |path| known(path).is_some())
                && let Some(meant) = hint.key.and_then(|path| known(&path))
            {
                return Some((format!("{}, a key of `{kind}`", hint.help), meant));
            }
        }
        let above = self.above.iter().rev().nth(1)?;
        let is_kind = above["x-kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == name));
        let meant = self.key_at(above, key).filter(|_| is_kind)?;
        Some((format!("it belongs next to `{name}`, not in it"), meant))
    }

    /// The schema of a key, by its path from a mapping.
    fn key_at(&self, schema: &'s Json, path: &str) -> Option<&'s Json> {
        path.split('.').try_fold(schema, |schema, key| self.content(schema)["properties"].get(key))
    }

    /// The schema after resolving references and "or null".
    fn content(&self, schema: &'s Json) -> &'s Json {
        let schema = self.resolve(schema);
        let variants = schema["anyOf"].as_array().into_iter().flatten();
        let variant = variants.into_iter().find(|variant| variant["type"] != "null");
        variant.map_or(schema, |variant| self.resolve(variant))
    }

    fn missing_keys(&mut self, node: &Node, schema: &Json, entries: &[Entry], name: &str) {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
        for key in required.filter(|key| !entries.iter().any(|entry| entry.key == *key)) {
            let about = schema["properties"][key]["description"].as_str().and_then(|text| text.lines().next());
            let finding = Diagnostic::error(node.place, format!("missing required key `{key}` in `{name}`"));
            self.findings.push(match about {
                Some(about) => finding.help(format!("add `{key}: …` — {about}")),
                None => finding.help(format!("add `{key}: …`")),
            });
        }
    }

    fn one_kind(&mut self, node: &Node, entries: &[Entry], kinds: &[&str], name: &str) {
        if kinds.is_empty() {
            return;
        }
        let given: Vec<&Entry> = entries.iter().filter(|entry| kinds.contains(&entry.key.as_str())).collect();
        if let [_, second, ..] = given.as_slice() {
            let message = format!("`{name}` has two kinds: `{}` and `{}`", given[0].key, second.key);
            self.findings.push(Diagnostic::error(second.key_place, message).help("use a separate entry for each"));
        } else if given.is_empty() && !entries.iter().any(|entry| nearest(&entry.key, kinds.iter().copied()).is_some())
        {
            let finding = Diagnostic::error(node.place, format!("`{name}` has no kind"));
            self.findings.push(finding.help(format!("set exactly one of: {}", kinds.join(", "))));
        }
    }

    fn array(&mut self, node: &Node, schema: &'s Json, name: &str) -> Json {
        let items = match &node.value {
            Value::List(items) => items,
            _ => return self.mistyped(node, "a list", name),
        };
        let min = schema["minItems"].as_u64().unwrap_or(0);
        let max = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
        let length = items.len() as u64;
        if length < min || length > max {
            let limit = if length < min { format!("at least {min}") } else { format!("at most {max}") };
            self.findings
                .push(Diagnostic::error(node.place, format!("`{name}` has {length} entries, expected {limit}")));
        }
        Json::Array(items.iter().map(|item| self.value(item, &schema["items"], name)).collect())
    }

    /// An externally tagged enum: a word, or a mapping with exactly one key.
    fn one_of(&mut self, node: &Node, variants: &'s [Json], name: &str) -> Json {
        let words: Vec<&str> = variants
            .iter()
            .flat_map(|variant| {
                let variant = self.resolve(variant);
                variant["const"]
                    .as_str()
                    .into_iter()
                    .chain(variant["enum"].as_array().into_iter().flatten().filter_map(Json::as_str))
            })
            .collect();
        if let Value::Scalar { .. } = &node.value {
            return self.word(node, &words, name);
        }
        let keyed = |key: &str| variants.iter().find(|variant| self.resolve(variant)["properties"].get(key).is_some());
        let known: Vec<&str> = variants
            .iter()
            .filter_map(|variant| self.resolve(variant)["properties"].as_object())
            .flat_map(|properties| properties.keys().map(String::as_str))
            .collect();
        let Value::Map(entries) = &node.value else {
            return self.mistyped(node, "a mapping with exactly one key", name);
        };
        match entries.as_slice() {
            [entry] if keyed(&entry.key).is_some() => {
                let variant = self.resolve(keyed(&entry.key).unwrap_or(&Json::Null));
                let empty = Node { value: Value::Map(Vec::new()), ..entry.node.clone() };
                let inner = if entry.node.is_null() { &empty } else { &entry.node };
                let value = self.value(inner, &variant["properties"][entry.key.as_str()], &entry.key);
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

    fn word(&mut self, node: &Node, allowed: &[&str], name: &str) -> Json {
        let Value::Scalar { text, .. } = &node.value else {
            return self.mistyped(node, "a string", name);
        };
        if allowed.contains(&text.as_str()) {
            return Json::String(text.clone());
        }
        let finding = Diagnostic::error(node.place, format!("`{name}`: unknown value {}", quoted(node)));
        let near = nearest(text, allowed.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        self.findings.push(finding.help(near.unwrap_or_else(|| format!("expected one of: {}", allowed.join(", ")))));
        Json::Null
    }

    fn string(&mut self, node: &Node, schema: &Json, name: &str) -> Json {
        let format = schema["format"].as_str().unwrap_or("");
        if format == "secret" {
            self.mask(node);
        }
        let Value::Scalar { text, .. } = &node.value else {
            return self.mistyped(node, "a string", name);
        };
        if node.is_null() {
            return self.mistyped(node, "a string", name);
        }
        if text.contains('\0') {
            let finding = Diagnostic::error(node.place, format!("`{name}` contains a NUL byte"));
            self.findings.push(finding.help("remove it; the value of a placeholder must be text"));
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
            self.findings.push(Diagnostic::error(node.place, format!("`{name}`: {reason}")));
        }
        Json::String(match (self.hide, format, node.interpolated) {
            (true, "secret", _) => "(secret)".into(),
            (true, _, true) => "(interpolated)".into(),
            (true, _, false) => crate::diag::hide_userinfo(text),
            (false, ..) => text.clone(),
        })
    }

    fn number(&mut self, node: &Node, schema: &Json, name: &str) -> Json {
        let is_integer = schema["type"] == "integer"
            || schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "integer"));
        let expected = if is_integer { "an integer" } else { "a number" };
        let Value::Scalar { text, plain: true } = &node.value else {
            return self.mistyped(node, expected, name);
        };
        let number = if is_integer {
            text.parse::<i64>().ok().map(Number::from)
        } else {
            text.parse().ok().and_then(Number::from_f64)
        };
        let Some(number) = number else {
            return self.mistyped(node, expected, name);
        };
        let value = number.as_f64().unwrap_or(0.0);
        let min = schema["minimum"].as_f64().unwrap_or(f64::NEG_INFINITY);
        let max = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
        if value < min || value > max {
            let limit = if max.is_infinite() { format!("at least {min}") } else { format!("from {min} to {max}") };
            self.findings
                .push(Diagnostic::error(node.place, format!("`{name}` is {}, expected {limit}", quoted(node))));
        }
        Json::Number(number)
    }

    fn boolean(&mut self, node: &Node, name: &str) -> Json {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Json::Bool(true),
            Value::Scalar { text, plain: true } if text == "false" => Json::Bool(false),
            Value::Scalar { text, .. } => {
                let word = match text.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "y" | "1" | "true" => Some("true"),
                    "no" | "off" | "n" | "0" | "false" => Some("false"),
                    _ => None,
                };
                let finding =
                    Diagnostic::error(node.place, format!("`{name}`: expected true or false, found {}", quoted(node)));
                self.findings.push(match word {
                    Some(word) => finding.help(format!("write {word}, without quotes")),
                    None => finding,
                });
                Json::Null
            }
            _ => self.mistyped(node, "true or false", name),
        }
    }

    fn mistyped(&mut self, node: &Node, expected: &str, name: &str) -> Json {
        let quoted =
            matches!(&node.value, Value::Scalar { plain: false, .. }) && matches!(expected, "a number" | "an integer");
        let finding =
            Diagnostic::error(node.place, format!("`{name}`: expected {expected}, found {}", node.kind_name()));
        self.findings.push(if quoted { finding.help("write it without quotes") } else { finding });
        Json::Null
    }
}

/// Depth below a key down to which secrets are searched.
const SECRET_DEPTH: usize = 4;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;
    use schemars::JsonSchema;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read only by serde and the schema")]
    struct Sample {
        /// The port of the app.
        port: u16,
        #[serde(default)]
        grace: Option<TimeSpan>,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        balance: Option<Balance>,
        #[serde(default)]
        token: Option<crate::unit::Secret>,
    }

    #[derive(Debug, Default, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Block,
        DropOldest,
    }

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Balance {
        LeastRequest {},
        RoundRobin {},
    }

    fn findings(text: &str) -> Vec<String> {
        let schema = serde_json::to_value(schemars::schema_for!(Sample)).expect("a schema is JSON");
        let checked = check(&parse(text).expect("valid YAML"), &schema);
        if checked.findings.is_empty() {
            serde_json::from_value::<Sample>(checked.json).expect("serde reads what the walker accepts");
        }
        checked
            .findings
            .iter()
            .map(|f| {
                format!(
                    "{}:{} {} / {}",
                    f.place.map_or(0, |p| p.line),
                    f.place.map_or(0, |p| p.column),
                    f.message,
                    f.help.as_deref().unwrap_or("")
                )
            })
            .collect()
    }

    fn check_finding(text: &str, part: &str) {
        let found = findings(text);
        assert!(found.len() == 1 && found[0].contains(part), "{text}: {found:?}");
    }

    #[test]
    fn valid_configurations_pass() {
        for text in [
            "port: 1\n",
            "{port: 80, grace: 5s, mode: drop_oldest, labels: {v: 1.10, on: true}}",
            "port: 1\nbalance: { least_request: }\n",
            "port: 1\nbalance: { round_robin: {} }\ngrace:\n",
        ] {
            assert_eq!(findings(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn each_error_has_a_location_and_help() {
        check_finding("prot: 1\nport: 2\n", "1:1 unknown key `prot` in `the file` / did you mean `port`?");
        check_finding(
            "grace: 5s\n",
            "missing required key `port` in `the file` / add `port: …` — The port of the app.",
        );
        check_finding("port: 70000\n", "`port` is `70000`, expected from 0 to 65535");
        check_finding("port: \"80\"\n", "`port`: expected an integer, found a string / write it without quotes");
        check_finding("{port: 1, grace: 5}", "`grace`: `5` is not a duration");
        check_finding("{port: 1, mode: drop-oldest}", "did you mean `drop_oldest`?");
        check_finding("{port: 1, balance: {lest_request: {}}}", "did you mean `least_request`?");
        check_finding("{port: 1, balance: {}}", "must have exactly one key");
        check_finding("{port: 1, labels: [a]}", "`labels`: expected a mapping, found a list");
        check_finding("{port: [1]}", "found a list");
    }

    #[test]
    fn all_errors_are_reported_and_secrets_marked() {
        assert_eq!(findings("{prot: 1, grace: x, mode: y, labels: 3, balance: z}").len(), 6);
        let schema = serde_json::to_value(schemars::schema_for!(Sample)).expect("a schema is JSON");
        let checked = check(&parse("port: 1\ntoken: hunter2\n").expect("valid YAML"), &schema);
        assert_eq!(checked.secrets, [Location { line: 2, column: 8, width: 7 }]);
        let text = shown(
            &parse("port: 1\ntoken: hunter2\nlabels: { u: \"http://me:pw@h/\" }\n").expect("valid YAML"),
            &schema,
        )
        .to_string();
        assert_eq!(text, r#"{"port":1,"token":"(secret)","labels":{"u":"http://*****@h/"}}"#);
    }
}
