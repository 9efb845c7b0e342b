//! The tables of keys, metrics and reasons in docs/, generated between markers from the product's own description.
//! In: a page with `<!-- keys: PATH [only a,b] -->` … `<!-- end of keys -->` or `<!-- list: NAME -->` … `<!-- end of list -->`, the
//! schema, and the lists as `outrigger explain` prints them. Out: the page with current tables.
//! Bound: text outside the markers is not changed.

use serde_json::Value;

/// The keys shared by all HTTP clients; one table documents them.
const CLIENT: [&str; 5] = ["timeout", "connect_timeout", "headers", "auth", "tls"];
const CLIENT_ROW: &str = "| `timeout`, `connect_timeout`, `headers`, `auth`, `tls` | | see [outgoing connections](configuration.md#outgoing-connections) |\n";

/// The product's own description.
pub struct Product<'p> {
    pub schema: &'p Value,
    /// `outrigger explain NAME`.
    pub explain: &'p dyn Fn(&str) -> Result<String, String>,
}

/// The page with its tables regenerated, or the error of a marker.
pub fn fill(page: &str, product: &Product<'_>) -> Result<String, String> {
    let page = between(page, "<!-- keys: ", "<!-- end of keys -->", &|marker| table(marker, product.schema))?;
    between(&page, "<!-- list: ", "<!-- end of list -->", &|marker| Ok(list(&(product.explain)(marker)?)))
}

/// Replaces the text between each pair of markers of the page.
fn between(
    page: &str,
    open: &str,
    close: &str,
    write: &dyn Fn(&str) -> Result<String, String>,
) -> Result<String, String> {
    let mut out = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(at) = rest.find(open) {
        let marker_end = rest[at..].find("-->").ok_or("a marker is not closed")? + at + "-->".len();
        let marker = rest[at + open.len()..marker_end - "-->".len()].trim();
        let end = rest[marker_end..].find(close).ok_or_else(|| format!("`{marker}` has no `{close}`"))? + marker_end;
        out.push_str(&rest[..marker_end]);
        out.push('\n');
        out.push_str(&write(marker)?);
        out.push_str(close);
        rest = &rest[end + close.len()..];
    }
    out.push_str(rest);
    Ok(out)
}

/// A table of entries as `outrigger explain` prints them: a name, the text in brackets after it, and indented text.
fn list(text: &str) -> String {
    let mut rows: Vec<(String, String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("      ") {
            if let Some((.., text)) = rows.last_mut() {
                text.push_str(if text.is_empty() { "" } else { " " });
                text.push_str(about.trim());
            }
        } else if let Some(entry) = line.strip_prefix("  ") {
            let (name, more) = entry.split_once(" (").unwrap_or((entry, ""));
            rows.push((name.to_string(), more.trim_end_matches(')').to_string(), String::new()));
        }
    }
    let has_more = rows.iter().any(|(_, more, _)| !more.is_empty());
    let mut out =
        String::from(if has_more { "| name | type: labels | |\n|---|---|---|\n" } else { "| name | |\n|---|---|\n" });
    for (name, more, about) in rows {
        let more = if has_more { format!(" {more} |") } else { String::new() };
        out.push_str(&format!("| `{name}` |{more} {} |\n", about.replace('|', "\\|")));
    }
    out
}

fn table(marker: &str, schema: &Value) -> Result<String, String> {
    let (path, only) = marker.split_once(" only ").map_or((marker, None), |(path, only)| (path, Some(only)));
    let only: Option<Vec<&str>> = only.map(|only| only.split(',').map(str::trim).collect());
    let mut at = schema;
    for key in path.split('.').filter(|key| !key.is_empty()) {
        let content = content(schema, at);
        at = match key {
            "*" if content["items"].is_object() => &content["items"],
            "*" => &content["additionalProperties"],
            key => &content["properties"][key],
        };
        if !at.is_object() {
            return Err(format!("`{path}` has no `{key}` in the schema"));
        }
    }
    let mut rows = String::from("| key | default | |\n|---|---|---|\n");
    keys(schema, at, "", &|key| only.as_ref().is_none_or(|only| only.contains(&key)), &mut rows);
    Ok(rows)
}

/// A row for each key; the keys of a block follow with their path.
fn keys(root: &Value, schema: &Value, prefix: &str, wanted: &dyn Fn(&str) -> bool, rows: &mut String) {
    let schema = content(root, schema);
    let kinds: Vec<&str> = schema["x-kinds"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let Some(properties) = schema["properties"].as_object() else { return };
    let has_client = prefix.is_empty() && CLIENT.iter().all(|key| properties.contains_key(*key) && wanted(key));
    let has_more = properties.keys().any(|key| !CLIENT.contains(&key.as_str()) && wanted(key));
    for (key, property) in properties {
        let hidden = kinds.contains(&key.as_str()) || (has_client && has_more && CLIENT.contains(&key.as_str()));
        if hidden || prefix.is_empty() && !wanted(key) {
            continue;
        }
        let name = format!("{prefix}{key}");
        let value = content(root, property);
        let is_block = value["properties"].is_object() && value["x-kinds"].is_null();
        if is_block && may_be_null(property) {
            // An optional block is off unless it is set.
            rows.push_str(&row(root, &name, property, "none"));
        }
        if is_block {
            keys(root, value, &format!("{name}."), wanted, rows);
            continue;
        }
        let default = if required.contains(&key.as_str()) { "required".into() } else { default(&property["default"]) };
        rows.push_str(&row(root, &name, property, &default));
        for variant in value["oneOf"].as_array().into_iter().flatten() {
            for (kind, inner) in content(root, variant)["properties"].as_object().into_iter().flatten() {
                keys(root, inner, &format!("{name}.{kind}."), wanted, rows);
            }
        }
    }
    if has_client && has_more {
        rows.push_str(CLIENT_ROW);
    }
}

fn row(root: &Value, name: &str, property: &Value, default: &str) -> String {
    let about = property["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let value = content(root, property);
    let about = about.trim_end_matches('.').replace('|', "\\|");
    // A computed default, or one that is a value of an enum, is in the last sentence of the comment.
    let (mut about, default) = match about.rsplit_once(". Default: ") {
        Some((about, default)) => (about.to_string(), default.to_string()),
        None => (about, default.to_string()),
    };
    let words: Vec<String> = words(root, value).into_iter().map(|word| format!("`{word}`")).collect();
    if !words.iter().all(|word| about.contains(word.as_str())) {
        about = format!("{about}: {}", words.join(", "));
    }
    if let Some(range) = range(value) {
        about = format!("{about}; {range}");
    }
    format!("| `{name}` | {default} | {about} |\n")
}

fn may_be_null(property: &Value) -> bool {
    property["anyOf"].as_array().into_iter().flatten().any(|variant| variant["type"] == "null")
}

/// The values of an enum.
fn words(root: &Value, value: &Value) -> Vec<String> {
    let variants = value["oneOf"].as_array().into_iter().flatten().map(|variant| content(root, variant));
    let all = std::iter::once(value).chain(variants);
    let of = |value: &Value| -> Vec<String> {
        let one = value["const"].as_str().into_iter();
        let many = value["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        one.chain(many).map(str::to_string).collect()
    };
    all.flat_map(of).collect()
}

/// The limits in the schema, except those of the integer's own type.
fn range(value: &Value) -> Option<String> {
    let bound = |key: &str| value[key].as_u64();
    let is_type =
        |bound: u64| [u64::from(u8::MAX), u64::from(u16::MAX), u64::from(u32::MAX), u64::MAX].contains(&bound);
    let least = bound("minimum").or_else(|| bound("minItems")).filter(|least| *least > 0);
    let most = bound("maximum").or_else(|| bound("maxItems")).filter(|most| !is_type(*most));
    match (least, most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}")),
        (Some(least), None) => Some(format!("at least {least}")),
        (None, Some(most)) => Some(format!("at most {most}")),
        (None, None) => None,
    }
}

fn default(default: &Value) -> String {
    match default {
        Value::Null => "none".into(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Object(entries) if entries.is_empty() => "none".into(),
        Value::Object(entries) => match entries.iter().next() {
            Some((kind, _)) => format!("`{{ {kind}: {{}} }}`"),
            None => "none".into(),
        },
        Value::String(text) if text.is_empty() => "none".into(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

/// The schema with references and "or null" resolved.
fn content<'s>(root: &'s Value, schema: &'s Value) -> &'s Value {
    let mut schema = schema;
    loop {
        if let Some(found) = schema["$ref"].as_str().and_then(|target| root.pointer(target.trim_start_matches('#'))) {
            schema = found;
        } else if let Some(variant) =
            schema["anyOf"].as_array().into_iter().flatten().find(|variant| variant["type"] != "null")
        {
            schema = variant;
        } else {
            return schema;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_written_between_its_markers() {
        let schema = json!({ "properties": { "sinks": { "additionalProperties": {
            "x-kinds": ["loki"],
            "properties": {
                "loki": { "$ref": "#/$defs/Loki" },
                "required": { "type": "boolean", "default": true, "description": "Whether\nsources wait." },
                "buffer": { "default": {}, "properties": { "max_bytes": { "default": "8MiB", "description": "Memory." } } },
            },
        } } }, "$defs": { "Loki": { "required": ["url"], "properties": {
            "url": { "description": "The URL." },
            "mode": { "default": "a", "oneOf": [ { "const": "a" }, { "enum": ["b"] } ], "description": "How." },
            "many": { "type": "integer", "minimum": 1, "maximum": 9, "default": 3, "description": "Many." },
        } } } });
        let (open, close) = ("<!-- keys: ", "<!-- end of keys -->");
        let explain = |name: &str| {
            Ok(format!("{name}\n\nText.\n\n  a_total (counter: x, y)\n      First\n      second.\n  b (gauge)\n"))
        };
        let product = Product { schema: &schema, explain: &explain };
        let fill = |page: &str| super::fill(page, &product);
        let page = format!("a\n{open}sinks.* -->\nold\n{close}\nb\n{open}sinks.*.loki -->\n{close}\n");
        let filled = fill(&page).expect("the markers are valid");
        let head = "| key | default | |\n|---|---|---|\n";
        let shared = "| `required` | `true` | Whether sources wait |\n| `buffer.max_bytes` | `8MiB` | Memory |\n";
        let loki =
            "| `url` | required | The URL |\n| `mode` | `a` | How: `a`, `b` |\n| `many` | `3` | Many; 1 to 9 |\n";
        let expect =
            format!("a\n{open}sinks.* -->\n{head}{shared}{close}\nb\n{open}sinks.*.loki -->\n{head}{loki}{close}\n");
        assert_eq!(filled, expect);
        assert_eq!(fill(&filled).as_ref(), Ok(&filled), "a second run changes nothing");
        assert!(fill(&page.replace("sinks.*.loki", "sinks.*.loky")).is_err(), "a wrong path is an error");
        assert!(fill(&page.replace(close, "")).is_err(), "a marker without its end is an error");
        let listed = fill("<!-- list: x -->\n<!-- end of list -->").expect("a list");
        let rows = "| name | type: labels | |\n|---|---|---|\n| `a_total` | counter: x, y | First second. |\n| `b` | gauge |  |\n";
        assert_eq!(listed, format!("<!-- list: x -->\n{rows}<!-- end of list -->"));
    }
}
