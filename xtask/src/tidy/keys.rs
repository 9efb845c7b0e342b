//! Rule: keys of the configuration follow the field's conventions: prefix `max_`, suffix `_bytes` for a size, and a duration has
//! one of the words for durations.
//! In: docs/outrigger.schema.json. Out: a finding for each other key, with its path in the file.
//! Bound: it reads the schema; that the schema is current is checked by `cargo xtask schema --check`.

use super::Finding;
use serde_json::Value;
use std::collections::BTreeSet;

pub const SCHEMA: &str = "docs/outrigger.schema.json";

/// Words of earlier versions, and those that YAML 1.1 parses as booleans.
const REFUSED: &[&str] = &["every", "wait", "deadline", "from", "to", "on", "off", "yes", "no", "y", "n"];

/// Names of durations in addition to `timeout` and `interval`, and to names that end in these two.
const DURATIONS: &[&str] = &[
    "backoff",
    "base_ejection_time",
    "grace_period",
    "ignore_older",
    "max_age",
    "max_backoff",
    "max_connection_age",
    "max_ejection_time",
    "max_staleness",
    "max_ttl",
    "min_age",
    "min_ttl",
    "remove_delivered_after",
    "reset_after",
    "rotate_wait",
    "settle",
    "splay",
    "ttl",
    "window",
];

/// The depth up to which references of the schema are followed.
const DEPTH_MAX: usize = 16;

pub fn check(path: &str, schema: &str) -> Vec<Finding> {
    let Ok(root) = serde_json::from_str::<Value>(schema) else {
        return vec![Finding::new(path, 1, "the schema is not JSON", "cargo xtask schema")];
    };
    let mut keys = BTreeSet::new();
    collect(&root, &root, "", 0, &mut keys);
    let finding = |(key, format): &(String, String)| {
        let name = key.rsplit('.').next().unwrap_or_default();
        let help = breach(key, name, format)?;
        let line = schema.lines().position(|line| line.trim_start().starts_with(&format!("\"{name}\":")));
        Some(Finding::new(path, line.map_or(1, |line| line + 1), format!("the key `{key}` breaks a naming rule"), help))
    };
    keys.iter().filter_map(finding).collect()
}

/// The help text of the rule that a key breaks.
fn breach(key: &str, name: &str, format: &str) -> Option<&'static str> {
    let is_duration =
        name == "timeout" || name == "interval" || name.ends_with("_timeout") || name.ends_with("_interval");
    if name.ends_with("_max") || name.ends_with("_min") || name == "max" || name == "min" {
        return Some("put the limit in front: max_<what>, min_<what>");
    }
    if REFUSED.contains(&name) {
        return Some("use the field's word: interval, timeout, store, inputs, cluster");
    }
    if matches!(name, "endpoint" | "endpoints") && !key.starts_with("proxy.") {
        return Some("call it `url`: an endpoint is a member of a proxy cluster");
    }
    if format == "size" && !name.ends_with("_bytes") && key != "limits.memory" {
        return Some("end the name of a size in _bytes");
    }
    if format == "duration" && !is_duration && !DURATIONS.contains(&name) {
        return Some("call it timeout, interval or max_age, or <what>_timeout, <what>_interval");
    }
    None
}

/// Every key with the format of its value.
fn collect(root: &Value, schema: &Value, path: &str, depth: usize, keys: &mut BTreeSet<(String, String)>) {
    let mut schema = schema;
    while let Some(target) = schema["$ref"].as_str() {
        let Some(found) = root.pointer(target.trim_start_matches('#')) else { return };
        schema = found;
    }
    if depth > DEPTH_MAX {
        return;
    }
    for (name, value) in schema["properties"].as_object().into_iter().flatten() {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        keys.insert((key.clone(), format_of(root, value)));
        collect(root, value, &key, depth + 1, keys);
    }
    let entries = format!("{path}.*");
    if schema["additionalProperties"].is_object() {
        collect(root, &schema["additionalProperties"], &entries, depth + 1, keys);
    }
    if schema["items"].is_object() {
        collect(root, &schema["items"], path, depth + 1, keys);
    }
    for variant in ["anyOf", "oneOf"].iter().flat_map(|of| schema[*of].as_array().into_iter().flatten()) {
        collect(root, variant, path, depth + 1, keys);
    }
}

/// The format of a value, also of an optional one.
fn format_of(root: &Value, value: &Value) -> String {
    let variants = value["anyOf"].as_array().into_iter().flatten();
    let all = std::iter::once(value).chain(variants);
    let target = |value: &Value| root.pointer(value["$ref"].as_str()?.trim_start_matches('#')).cloned();
    let format = |value: &Value| value["format"].as_str().map(str::to_string);
    all.filter_map(|value| format(value).or_else(|| format(&target(value)?))).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_naming_rule_finds_its_breach() {
        let check = |properties: &str, expect: &[&str]| {
            let schema = format!(
                "{{\"properties\":{{{properties}}},\"$defs\":{{\"Span\":{{\"type\":\"string\",\"format\":\"duration\"}}}}}}"
            );
            let found: Vec<_> = check("schema", &schema).into_iter().map(|finding| finding.what).collect();
            let expect: Vec<_> = expect.iter().map(|key| format!("the key `{key}` breaks a naming rule")).collect();
            assert_eq!(found, expect, "{properties}");
        };
        check(r##""max_bytes":{"format":"size"},"timeout":{"$ref":"#/$defs/Span"}"##, &[]);
        check(r##""limits":{"properties":{"memory":{"format":"size"}}}"##, &[]);
        check(r##""proxy":{"properties":{"endpoints":{}}}"##, &[]);
        check(r##""head_max":{}"##, &["head_max"]);
        check(r##""every":{},"from":{},"to":{},"on":{}"##, &["every", "from", "on", "to"]);
        check(r##""endpoint":{}"##, &["endpoint"]);
        check(r##""a":{"additionalProperties":{"properties":{"memory":{"format":"size"}}}}"##, &["a.*.memory"]);
        check(r##""pause":{"anyOf":[{"$ref":"#/$defs/Span"},{"type":"null"}]}"##, &["pause"]);
        check(r##""list":{"items":{"anyOf":[{"properties":{"wait":{}}}]}}"##, &["list.wait"]);
    }
}
