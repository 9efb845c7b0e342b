//! The next steps for errors of shape: an unknown key, a kind that is not known or is written as a value, and a scalar in place
//! of a mapping. In: the node and the schema at its location. Out: findings with a text to write.

use super::{Walker, strings, type_of, words_of};
use crate::diag::{Diagnostic, nearest};
use crate::renamed;
use crate::tree::{Entry, Node, Value};
use crate::unit::{ByteSize, TimeSpan};
use serde_json::Value as Json;

/// Depth below a key down to which secrets are searched.
const SECRET_DEPTH: usize = 4;

impl<'s> Walker<'s> {
    /// Reports unknown keys. Returns whether they explain why the mapping has no kind.
    pub(super) fn unknown_keys(
        &mut self,
        unknown: &[&Entry],
        entries: &[Entry],
        schema: &'s Json,
        kinds: &[&str],
    ) -> bool {
        let is_kind = |key: &str| kinds.contains(&key);
        let has_kind = entries.iter().any(|entry| is_kind(&entry.key));
        // A kind as the value of a key, such as `type: loki`.
        let named = unknown.iter().find_map(|entry| match &entry.node.value {
            Value::Scalar { text, .. }
                if KIND_KEYS.contains(&entry.key.as_str()) && is_kind(text) && !entry.node.interpolated =>
            {
                Some(text.as_str())
            }
            _ => None,
        });
        let siblings: Vec<&str> =
            entries.iter().map(|entry| entry.key.as_str()).filter(|key| is_kind(key)).chain(named).collect();
        let mut is_explained = named.is_some();
        for entry in unknown {
            let key = entry.key.as_str();
            let may_be_kind = !kinds.is_empty()
                && !has_kind
                && named.is_none()
                && (entry.node.is_null() || matches!(entry.node.value, Value::Map(_)));
            let is_near_kind = nearest(key, kinds.iter().copied()).is_some();
            is_explained |= may_be_kind || is_near_kind;
            let known = || schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
            let found = self.meant(key, &siblings, schema, &known().collect::<Vec<_>>());
            let what = if may_be_kind && (found.is_none() || is_near_kind) { "kind" } else { "key" };
            let (help, meant) = match named {
                Some(kind) if KIND_KEYS.contains(&key) => {
                    (format!("the kind is the key itself: write `{kind}: {{ … }}`"), None)
                }
                _ => match found {
                    Some((help, meant)) => (help, meant),
                    None if may_be_kind => (format!("known kinds: {}", kinds.join(", ")), None),
                    None if KIND_KEYS.contains(&key) && !kinds.is_empty() => {
                        (format!("the kind is the key itself: one of {}", kinds.join(", ")), None)
                    }
                    None => (format!("known keys: {}", known().collect::<Vec<_>>().join(", ")), None),
                },
            };
            let message = format!("unknown {what} `{key}` in `{}`", self.name());
            self.findings.push(Diagnostic::error(entry.key_place, message).help(help));
            // The line is shown, so a secret is also masked under a wrong name, and so is every unknown value.
            if meant.is_none_or(|meant| self.holds_secrets(meant, 0)) {
                self.mask(&entry.node);
            }
        }
        is_explained
    }

    /// The key that an unknown key may mean: its help text, and its schema if that is unambiguous. `siblings`: the kinds beside it.
    fn meant(
        &self,
        key: &str,
        siblings: &[&str],
        schema: &'s Json,
        known: &[&str],
    ) -> Option<(String, Option<&'s Json>)> {
        if let Some(hint) = renamed::hint(key, known, |path| self.key_at(schema, path).is_some()) {
            return Some((hint.help, hint.key.and_then(|path| self.key_at(schema, &path))));
        }
        for kind in siblings {
            let inside = |path: &str| self.key_at(schema, &format!("{kind}.{path}"));
            if let Some(meant) = inside(key) {
                return Some((format!("it is a key of `{kind}`: write `{kind}: {{ {key}: … }}`"), Some(meant)));
            }
            if let Some(hint) = renamed::hint(key, &[], |path| inside(path).is_some())
                && let Some(meant) = hint.key.and_then(|path| inside(&path))
            {
                return Some((format!("{}, a key of `{kind}`", hint.help), Some(meant)));
            }
        }
        if let Some((list, meant)) = self.list_of(key, schema) {
            return Some((format!("it belongs in a list: write `{list}: [ {{ {key}: … }} ]`"), Some(meant)));
        }
        // Inside a kind: a key that belongs next to it.
        let (name, above) = (self.path.last()?, self.above.iter().rev().nth(1)?);
        let is_kind = strings(&above["x-kinds"]).any(|kind| kind == name);
        let meant = self.key_at(above, key).filter(|_| is_kind)?;
        Some((format!("it belongs next to `{name}`, not in it"), Some(meant)))
    }

    /// A list beside the key whose entries have it as a kind, and the schema of that kind.
    fn list_of(&self, key: &str, schema: &'s Json) -> Option<(&'s str, &'s Json)> {
        schema["properties"].as_object()?.iter().find_map(|(list, property)| {
            let item = self.resolve(&self.content(property)["items"]);
            let is_kind = strings(&item["x-kinds"]).any(|kind| kind == key);
            Some((list.as_str(), self.key_at(item, key).filter(|_| is_kind)?))
        })
    }

    /// Reports a node that is not the mapping that the schema requires.
    pub(super) fn not_a_mapping(&mut self, node: &Node, schema: &'s Json, kinds: &[&str]) -> Json {
        if let Value::Scalar { text, .. } = &node.value
            && kinds.contains(&text.as_str())
            && !node.interpolated
        {
            return self.kind_without_mapping(node, text);
        }
        if self.holds_secrets(schema, 0) {
            self.mask(node);
        }
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => {
                let help = self.mapping_of(node, text, schema, kinds);
                self.mistyped_with(node, "a mapping", help)
            }
            Value::List(_) => {
                let names = schema["x-names"] == true || schema["additionalProperties"].is_object();
                let help = match schema["properties"].as_object() {
                    _ if names => {
                        Some(format!("write `{}: {{ NAME: {{ … }} }}`: each entry has a name", self.last_key()))
                    }
                    _ if !kinds.is_empty() => Some(format!("set exactly one of: {}", kinds.join(", "))),
                    Some(keys) => Some(format!("its keys: {}", keys.keys().cloned().collect::<Vec<_>>().join(", "))),
                    None => None,
                };
                self.mistyped_with(node, "a mapping", help)
            }
            Value::Scalar { .. } | Value::Map(_) => self.mistyped(node, "a mapping"),
        }
    }

    /// Reports a node that is not the list that the schema requires.
    pub(super) fn not_a_list(&mut self, node: &Node, schema: &'s Json) -> Json {
        let is_secret = self.holds_secrets(schema, 0);
        if is_secret {
            self.mask(node);
        }
        let is_scalar = !matches!(type_of(self.resolve(&schema["items"])).0, Some("object"));
        let key = self.last_key();
        let help = match &node.value {
            Value::Scalar { text, .. } if is_scalar && !is_secret && !node.is_null() && !node.interpolated => {
                Some(format!("write `{key}: [{}]`", in_flow(text)))
            }
            Value::Map(_) => Some(format!("write `{key}: [ {{ … }} ]`")),
            Value::Scalar { .. } | Value::List(_) => None,
        };
        self.mistyped_with(node, "a list", help)
    }

    fn mistyped_with(&mut self, node: &Node, expected: &str, help: Option<String>) -> Json {
        let json = self.mistyped(node, expected);
        if let (Some(help), Some(finding)) = (help, self.findings.last_mut()) {
            finding.help = Some(help);
        }
        json
    }

    /// Reports a kind that is written as a value: `balance: round_robin`.
    pub(super) fn kind_without_mapping(&mut self, node: &Node, kind: &str) -> Json {
        let help = format!("the kind is a key: write `{}: {{ {kind}: {{}} }}`", self.last_key());
        let finding = Diagnostic::error(node.place, format!("`{}`: expected a mapping, found a string", self.name()));
        self.findings.push(finding.help(help));
        Json::Null
    }

    /// How to write a scalar as the value of the key that accepts it; or else which keys there are.
    fn mapping_of(&self, node: &Node, text: &str, schema: &'s Json, kinds: &[&str]) -> Option<String> {
        if !kinds.is_empty() {
            return Some(format!("set exactly one of: {}", kinds.join(", ")));
        }
        let properties = schema["properties"].as_object()?;
        let required: Vec<&str> = strings(&schema["required"]).collect();
        let accepting = |fit: Fit| -> Vec<&str> {
            let fits = properties.iter().filter(|(_, property)| self.fit(text, property) == fit);
            fits.map(|(key, _)| key.as_str()).collect()
        };
        let only = |keys: Vec<&'s str>| match keys.as_slice() {
            [key] => Some(*key),
            _ => None,
        };
        let free = || {
            let free = accepting(Fit::Free);
            let required: Vec<&str> = free.iter().copied().filter(|key| required.contains(key)).collect();
            only(required).or_else(|| only(free))
        };
        let bytes = || accepting(Fit::Typed).into_iter().find(|key| *key == "max_bytes");
        let key = only(accepting(Fit::Word)).or_else(bytes).or_else(|| only(accepting(Fit::Typed))).or_else(free);
        let shown = if node.interpolated || self.holds_secrets(schema, 0) { "…".into() } else { in_flow(text) };
        Some(match key {
            Some(key) => format!("write `{}: {{ {key}: {shown} }}`", self.last_key()),
            None => format!("its keys: {}", properties.keys().cloned().collect::<Vec<_>>().join(", ")),
        })
    }

    /// How well a scalar fits a schema.
    fn fit(&self, text: &str, schema: &'s Json) -> Fit {
        let schema = self.content(schema);
        let variants = schema["oneOf"].as_array().into_iter().flatten().map(|variant| self.resolve(variant));
        let mut words = words_of(schema).chain(variants.flat_map(words_of)).peekable();
        if words.peek().is_some() {
            return if words.any(|word| word == text) { Fit::Word } else { Fit::None };
        }
        let is_typed = match (type_of(schema).0, schema["format"].as_str()) {
            (Some("string"), Some("duration")) => TimeSpan::parse(text).is_ok(),
            (Some("string"), Some("size")) => ByteSize::parse(text).is_ok(),
            (Some("integer" | "number"), _) => text.parse::<f64>().is_ok(),
            (Some("boolean"), _) => text.parse::<bool>().is_ok(),
            (Some("string"), _) => return Fit::Free,
            _ => return Fit::None,
        };
        if is_typed { Fit::Typed } else { Fit::None }
    }

    fn last_key(&self) -> &str {
        self.path.last().map_or("…", String::as_str)
    }

    /// Whether a schema contains a secret at any level up to `SECRET_DEPTH`.
    pub(super) fn holds_secrets(&self, schema: &'s Json, depth: usize) -> bool {
        let schema = self.resolve(schema);
        let below = |value: &'s Json| depth < SECRET_DEPTH && self.holds_secrets(value, depth + 1);
        schema["format"] == "secret"
            || ["anyOf", "oneOf"].iter().any(|key| schema[*key].as_array().into_iter().flatten().any(below))
            || schema["properties"].as_object().into_iter().flatten().any(|(_, value)| below(value))
            || schema["items"].is_object() && below(&schema["items"])
            || schema["additionalProperties"].is_object() && below(&schema["additionalProperties"])
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
}

/// A scalar as it is written in a flow mapping or list: in quotes if it has characters of YAML (YAML 1.2.2, 7.3.3).
fn in_flow(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || "./_-+%".contains(c)) && !text.starts_with(['-', '%']);
    if is_plain { text.into() } else { format!("{text:?}") }
}

/// Keys that other tools use for a kind.
const KIND_KEYS: [&str; 3] = ["type", "name", "kind"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    None,
    /// Any text is valid.
    Free,
    /// A duration, size, number or boolean.
    Typed,
    /// One of the allowed words.
    Word,
}
