//! `outrigger explain` and `outrigger schema`: documentation generated from the Config types. In: a component's path. Out: text.

use crate::config::Config;
use base::system::output;
use base::telemetry::reason::Reason;
use config::diag::nearest;
use config::registry::KindInfo;
use serde_json::Value;
use std::fmt::Write as _;

/// Every registry, by the path of its kinds in the file.
fn registries() -> [(&'static str, &'static [KindInfo]); 9] {
    [
        ("logs.sources", logs::source::SourceEntry::KINDS),
        ("logs.stages", logs::stage::StageEntry::KINDS),
        ("logs.sinks", logs::sink::SinkEntry::KINDS),
        ("metrics.sources", metrics::source::SourceEntry::KINDS),
        ("metrics.sinks", metrics::sink::SinkEntry::KINDS),
        ("sync.store", sync::store::StoreEntry::KINDS),
        ("sync.publish", sync::publish::PublishEntry::KINDS),
        ("sync.notify", sync::notify::NotifyEntry::KINDS),
        ("proxy.balance", proxy::balance::BalanceEntry::KINDS),
    ]
}

pub fn explain(kind: Option<&str>) -> i32 {
    let root = config::load::schema_of::<Config>();
    let sections = || root["properties"].as_object().into_iter().flatten();
    let Some(wanted) = kind else {
        let mut text =
            "Sections; `outrigger explain NAME` shows one, including nested keys (app.stop):\n\n".to_string();
        let row = |name: &str, schema: &Value| format!("  {name:<26} {}\n", first_sentence(schema));
        text.extend(sections().map(|(name, section)| row(name, section)));
        text.push_str("\nOutrigger itself:\n\n");
        let lists = [
            (KINDS, "Kinds of all entries"),
            (METRICS, "Own metrics"),
            (REASONS, "Reasons of dropped records and errors"),
        ];
        for (name, about) in lists {
            text.push_str(&format!("  {name:<26} {about}\n"));
        }
        text.push_str("\nComponents; `outrigger explain NAME` shows one:\n\n");
        for (path, kinds) in registries() {
            text.extend(kinds.iter().map(|kind| row(&format!("{path}.{}", kind.name), &(kind.schema)())));
        }
        return output::print(&text);
    };
    match wanted {
        KINDS => return output::print(&kinds()),
        METRICS => return output::print(&own_metrics(|_| true)),
        REASONS => return output::print(&reasons(|_| true)),
        _ if crate::telemetry::all().iter().any(|metric| metric.name == wanted) => {
            return output::print(&own_metrics(|name| name == wanted));
        }
        _ if Reason::ALL.iter().any(|reason| reason.as_str() == wanted) => {
            return output::print(&reasons(|name| name == wanted));
        }
        _ => {}
    }
    let ending = ending_in(&root, wanted);
    // A name without its path, if there is only one.
    let wanted = match ending.as_slice() {
        [only] if section(&root, wanted).is_none() => only,
        _ => wanted,
    };
    let all = registries();
    let found = all.iter().find_map(|(path, kinds)| {
        kinds.iter().find(|kind| wanted == format!("{path}.{}", kind.name)).map(|kind| (path, kind))
    });
    match found {
        Some((path, kind)) => output::print(&document(path, kind)),
        None if let Some(text) = section(&root, wanted) => output::print(&text),
        None => {
            let names: Vec<String> = all
                .iter()
                .flat_map(|(path, kinds)| kinds.iter().map(move |kind| format!("{path}.{}", kind.name)))
                .collect();
            base::system::output::note(&format!("error: unknown component `{wanted}`\n"));
            let sections = sections().map(|(name, _)| name);
            let help = match ending.as_slice() {
                [] => match nearest(wanted, names.iter().chain(sections).map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "`outrigger explain` lists all components".into(),
                },
                several => format!("use the whole path: {}", several.join(", ")),
            };
            base::system::output::note(&format!("  help: {help}\n"));
            i32::from(crate::EXIT_ERROR)
        }
    }
}

/// Names of the lists, in addition to the paths of components.
const KINDS: &str = "outrigger.kinds";
const METRICS: &str = "outrigger.metrics";
const REASONS: &str = "outrigger.reasons";

/// Every kind, with what it does in a sentence.
fn kinds() -> String {
    let mut out = format!("{KINDS}\n\nKinds of all entries; `outrigger explain NAME` shows one with its keys.\n\n");
    for (path, kinds) in registries() {
        for kind in kinds {
            let _ = writeln!(out, "  {path}.{}\n{}", kind.name, wrap(&first_sentence(&(kind.schema)()), "      "));
        }
    }
    out
}

/// Outrigger's own metrics.
fn own_metrics(is_wanted: impl Fn(&str) -> bool) -> String {
    let mut out = format!(
        "{METRICS}\n\nMetrics of Outrigger itself, on the admin listener and at sinks with a `self` source.\n\n"
    );
    for metric in crate::telemetry::all().into_iter().filter(|metric| is_wanted(metric.name)) {
        let labels = if metric.labels.is_empty() { "no labels".into() } else { metric.labels.join(", ") };
        let _ = writeln!(out, "  {} ({}: {labels})", metric.name, metric.kind.as_str());
        let _ = writeln!(out, "{}", wrap(metric.help, "      "));
    }
    out
}

/// Reasons of the ledger.
fn reasons(is_wanted: impl Fn(&str) -> bool) -> String {
    let mut out = format!("{REASONS}\n\nWhy records are dropped, in the ledger and in metrics.\n\n");
    for reason in Reason::ALL.into_iter().filter(|reason| is_wanted(reason.as_str())) {
        let _ = writeln!(out, "  {}\n{}", reason.as_str(), wrap(reason.about(), "      "));
    }
    out
}

fn document(path: &str, kind: &KindInfo) -> String {
    let schema = (kind.schema)();
    let name = format!("{path}.{}", kind.name);
    let mut out = keys(&name, schema["description"].as_str().unwrap_or(""), &schema, &schema);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "Example:");
    for line in (kind.example)().lines() {
        let _ = writeln!(out, "  {line}");
    }
    out
}

/// A section or key by its path. For a mapping of names, such as `proxy.clusters`, the value of one name is shown.
fn section(root: &Value, path: &str) -> Option<String> {
    let (mut node, mut description) = (root, None);
    let mut property = None;
    for key in path.split('.') {
        let known = properties(root, entry(root, node));
        // A mistyped kind is not the name of an entry.
        let is_near = nearest(key, known.iter().map(|(name, _)| *name)).is_some();
        match known.into_iter().find(|(name, ..)| *name == key) {
            Some((_, (found, about))) => {
                (node, description, property) = (found, about, Some(found));
            }
            // The name of an entry, or an index: its keys are those of each entry.
            None if !is_near && property.is_some_and(|property| has_entries(root, property)) => property = None,
            None => return None,
        }
    }
    let inside = entry(root, node);
    let mut text = keys(path, description.or(inside["description"].as_str())?, root, inside);
    if properties(root, inside).is_empty() {
        let default = match &node["default"] {
            Value::Null => String::new(),
            default => format!(", default {default}"),
        };
        let _ = writeln!(text, "Type: {}{default}", type_name(root, node));
    }
    Some(text)
}

/// The keys of a mapping, each with its schema and description; for an entry of exactly one kind, the kinds.
fn properties<'a>(root: &'a Value, schema: &'a Value) -> Vec<(&'a str, (&'a Value, Option<&'a str>))> {
    let own = |schema: &'a Value| schema["properties"].as_object().into_iter().flatten();
    let about = |property: &'a Value| property["description"].as_str();
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    let kinds = variants.flat_map(|variant| own(entry(root, variant)).map(move |found| (found, variant)));
    let kinds = kinds.map(|((key, property), variant)| {
        (key.as_str(), (property, about(property).or(about(variant)).or(about(entry(root, property)))))
    });
    own(schema).map(|(key, property)| (key.as_str(), (property, about(property)))).chain(kinds).collect()
}

/// Whether a node is a mapping of names or a list, so that a path continues with a name or an index.
fn has_entries(root: &Value, node: &Value) -> bool {
    let node = mapping(root, node);
    node["additionalProperties"].is_object() || node["items"].is_object()
}

/// How many paths a help text lists.
const PATHS_MAX: usize = 6;

/// The paths of keys that end in some keys, such as `auth.bearer`.
fn ending_in(root: &Value, keys: &str) -> Vec<String> {
    fn walk(root: &Value, schema: &Value, path: &str, ending: &str, found: &mut Vec<String>) {
        for (key, (property, _)) in properties(root, schema) {
            let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            if path.ends_with(ending) && found.len() < PATHS_MAX {
                found.push(path.clone());
            }
            walk(root, entry(root, property), &path, ending, found);
        }
    }
    let mut found = Vec::new();
    walk(root, root, "", &format!(".{keys}"), &mut found);
    found
}

fn resolve<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let target = node["$ref"].as_str().and_then(|to| root.pointer(to.trim_start_matches('#')));
    target.unwrap_or(node)
}

/// A node after "or null" and its reference.
fn mapping<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let optional = node["anyOf"].as_array().and_then(|list| list.iter().find(|variant| variant["type"] != "null"));
    resolve(root, optional.unwrap_or(node))
}

/// Resolves the reference of a node; for a list or a mapping of names, returns the schema of its values.
fn entry<'a>(root: &'a Value, node: &'a Value) -> &'a Value {
    let node = mapping(root, node);
    match (&node["additionalProperties"], &node["items"]) {
        (each @ Value::Object(_), _) | (_, each @ Value::Object(_)) => resolve(root, each),
        _ => node,
    }
}

/// A title, the description, and the keys of a mapping.
fn keys(name: &str, description: &str, root: &Value, schema: &Value) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{name}\n\n{}\n", wrap(description, ""));
    let properties = properties(root, schema);
    if !properties.is_empty() {
        let _ = writeln!(out, "{}:", if schema["oneOf"].is_array() { "Exactly one of" } else { "Keys" });
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let kinds = schema["x-kinds"].as_array();
        let is_kind =
            |key: &str| schema["oneOf"].is_array() || kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == key));
        for (key, (property, about)) in properties {
            let state = match (&property["default"], required.contains(&key)) {
                _ if is_kind(key) => "kind".to_string(),
                (_, true) => "required".to_string(),
                (Value::Null, _) => "optional".to_string(),
                (default, _) => format!("default {default}"),
            };
            let _ = writeln!(out, "  {key} ({}, {state})", type_name(root, property));
            let _ = writeln!(out, "{}", wrap(about.unwrap_or(""), "      "));
        }
        out.push('\n');
    }
    out
}

/// The type of this key's value, in a few words.
fn type_name(root: &Value, property: &Value) -> String {
    if let Some(target) = property["$ref"].as_str() {
        return root.pointer(target.trim_start_matches('#')).map_or("mapping".into(), |found| type_name(root, found));
    }
    if let Some(format @ ("duration" | "size" | "address" | "url" | "secret")) = property["format"].as_str() {
        return format.to_string();
    }
    if let Some(variants) = property["anyOf"].as_array() {
        return variants
            .iter()
            .find(|variant| variant["type"] != "null")
            .map_or("value".into(), |variant| type_name(root, variant));
    }
    let words = |list: &Vec<Value>| {
        list.iter().filter_map(|v| v.as_str().or(v["const"].as_str())).collect::<Vec<_>>().join(" or ")
    };
    if let Some(list) = property["enum"].as_array().or(property["oneOf"].as_array()) {
        let words = words(list);
        return if words.is_empty() { "mapping with exactly one key".into() } else { words };
    }
    match &property["type"] {
        Value::String(name) if name == "array" => format!("list of {}", type_name(root, &property["items"])),
        Value::String(name) if name == "object" => "mapping".into(),
        Value::String(name) if name == "integer" => "integer".into(),
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().find(|name| *name != "null").map_or("value".into(), |name| {
            let mut single = property.clone();
            single["type"] = name.clone();
            type_name(root, &single)
        }),
        _ => "value".into(),
    }
}

fn first_sentence(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ");
    text.split(". ").next().unwrap_or("").trim_end_matches('.').to_string()
}

const WIDTH: usize = 96;

fn wrap(text: &str, indent: &str) -> String {
    let mut out = String::from(indent);
    let mut column = indent.len();
    for word in text.split_whitespace() {
        if column > indent.len() && column + 1 + word.len() > WIDTH {
            out.push('\n');
            out.push_str(indent);
            column = indent.len();
        } else if column > indent.len() {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out
}

/// `outrigger schema`.
pub fn schema() -> i32 {
    let mut schema = config::load::schema_of::<Config>();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "Outrigger".into());
    }
    match serde_json::to_string_pretty(&schema) {
        Ok(text) => output::print(&format!("{text}\n")),
        Err(error) => {
            base::system::output::note(&format!("error: {error}\n"));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_has_documentation_and_example() {
        for (path, kinds) in registries() {
            for kind in kinds {
                let text = document(path, kind);
                assert!(text.contains("Example:") && text.contains((kind.example)().trim_end()), "{text}");
                assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
            }
        }
        let loki = registries()[2].1.iter().find(|kind| kind.name == "loki").map(|kind| document("logs.sinks", kind));
        let loki = loki.expect("loki is registered");
        for part in ["logs.sinks.loki", "url (url, required)", "labels (mapping, default {})"] {
            assert!(loki.contains(part), "{part} in\n{loki}");
        }
    }

    /// With their defaults, sources of each kind and two log sinks fit into the default memory, without a warning.
    #[test]
    fn one_entry_of_each_kind_fits_into_memory() {
        let entries = |path: &str| {
            let all = registries();
            let kinds = all.iter().find(|(known, _)| *known == path).map(|(_, kinds)| *kinds).expect("a registry");
            kinds.iter().map(|kind| (kind.example)().trim_end().to_string()).collect::<Vec<_>>()
        };
        let named = |entries: &[String]| {
            let entries = entries.iter().enumerate();
            entries.map(|(index, entry)| format!("e{index}: {{ {entry} }}")).collect::<Vec<_>>().join(", ")
        };
        let list =
            |path: &str| entries(path).iter().map(|entry| format!("{{ {entry} }}")).collect::<Vec<_>>().join(", ");
        let (store, publish, notify) = (&entries("sync.store")[0], &entries("sync.publish")[0], list("sync.notify"));
        for log_sinks in entries("logs.sinks").chunks(2) {
            let sources = named(&entries("logs.sources"));
            let (stages, sinks) = (list("logs.stages"), named(log_sinks));
            let mut text =
                format!("logs: {{ sources: {{ {sources} }}, stages: [ {stages} ], sinks: {{ {sinks} }} }}\n");
            let (sources, sinks) = (named(&entries("metrics.sources")), named(&entries("metrics.sinks")));
            let _ = writeln!(text, "metrics: {{ sources: {{ {sources} }}, sinks: {{ {sinks} }} }}");
            let _ = writeln!(
                text,
                "sync: {{ a: {{ store: {{ {store} }}, publish: {{ {publish} }}, notify: [ {notify} ] }} }}"
            );
            text.push_str("proxy: { listeners: { in: { listen: \"127.0.0.1:18080\", cluster: app } } }\n");
            text.push_str("app: { command: [\"./orders\"], port: 8080 }\n");
            assert_no_warning(&text);
        }
    }

    fn assert_no_warning(text: &str) {
        let path = std::env::temp_dir().join(format!("outrigger-kinds-{}.yaml", std::process::id()));
        std::fs::write(&path, text).expect("written");
        let planned = crate::load::Source::read(&path).and_then(|source| source.plans(&[]));
        std::fs::remove_file(&path).expect("it was written");
        let (plans, report) = planned.unwrap_or_else(|report| panic!("{}", report.render()));
        assert_eq!(report.render(), "", "{text}");
        assert!(plans.components().iter().any(|component| component.memory() > 8 << 20), "buffers count");
    }

    #[test]
    fn every_section_has_documentation() {
        let root = config::load::schema_of::<Config>();
        for (path, parts) in [
            ("app", &["command (list of string", "stop (mapping"][..]),
            ("app.stop", &["grace_period (duration, default \"20s\")"]),
            ("app.port", &["The port that it listens on"]),
            ("proxy.clusters", &["endpoints ("]),
            ("sync", &["Directories synchronized", "publish (mapping, required)"]),
        ] {
            let text = section(&root, path).unwrap_or_else(|| panic!("{path} has documentation"));
            parts.iter().for_each(|part| assert!(text.contains(part), "{part} in\n{text}"));
        }
        for path in ["", "ap", "app.", "app.stop.grace_period.more", "properties"] {
            assert_eq!(section(&root, path), None, "{path}");
        }
    }
}
