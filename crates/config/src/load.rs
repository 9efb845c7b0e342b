//! From the text of a file to a typed Config; all errors are reported in one run. In: text, a Config type, a lookup for
//! placeholders. Out: the Config and its tree (so that later checks can report locations), or a `Report`.

use crate::diag::{Diagnostic, FINDINGS_MAX, Location, Report, Severity, line_of};
use crate::interpolate::{self, Interpolated, Lookup};
use crate::schema;
use crate::tree::{self, Node, Value};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

/// A Config that is valid under the schema, with the tree it was read from.
pub struct Loaded<C> {
    pub config: C,
    pub tree: Node,
    pub report: Report,
    /// The variables used in secret values and in the user part of URLs.
    pub secret_variables: Vec<String>,
    /// The interpolated files.
    pub files: Vec<PathBuf>,
    /// The content of those that were read.
    pub contents: BTreeMap<PathBuf, String>,
}

/// The JSON Schema of a Config type, for the walker and for editors.
pub fn schema_of<C: JsonSchema>() -> serde_json::Value {
    schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<C>().to_value()
}

/// A checked tree as JSON for display, without secrets.
pub fn shown<C: JsonSchema>(tree: &Node) -> serde_json::Value {
    schema::shown(tree, &schema_of::<C>())
}

/// A file with errors, and what remains of it without them, so that the rest can be checked.
pub struct Refused<C> {
    pub report: Report,
    pub tree: Option<Node>,
    /// The Config without the values and entries that have an error. None if the file is not YAML, or nothing remains.
    pub rest: Option<C>,
    /// The keys and names of what was removed.
    pub removed: Vec<String>,
    /// The locations of placeholders that could not be resolved.
    pub unresolved: Vec<Location>,
}

/// Parses, interpolates, checks and deserializes. `Err` contains all findings, with secrets masked.
pub fn load<C: DeserializeOwned + JsonSchema>(
    file: &str,
    text: &str,
    lookup: &Lookup<'_>,
) -> Result<Loaded<C>, Report> {
    load_or_rest(file, text, lookup).map_err(|refused| refused.report)
}

/// Like `load`; for a file with errors, `Err` also has what is valid.
pub fn load_or_rest<C: DeserializeOwned + JsonSchema>(
    file: &str,
    text: &str,
    lookup: &Lookup<'_>,
) -> Result<Loaded<C>, Box<Refused<C>>> {
    let mut report = Report::new(file, text);
    let mut tree = match tree::parse(text) {
        Ok(tree) => tree,
        Err(findings) => {
            let places = findings.iter().take(FINDINGS_MAX).filter_map(|finding| finding.place);
            let lines: HashSet<u32> = places.map(|place| place.line).collect();
            lines.into_iter().for_each(|line| mask_by_name(text, line, &mut report));
            report.extend(findings);
            return Err(Box::new(Refused {
                report,
                tree: None,
                rest: None,
                removed: Vec::new(),
                unresolved: Vec::new(),
            }));
        }
    };
    let Interpolated { findings, names, values, credentials, .. } = interpolate::apply(&mut tree, lookup);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let unresolved: Vec<_> = errors.filter_map(|finding| finding.place).collect();
    let checked = schema::check(&tree, &schema_of::<C>());
    mask_secrets(&tree, &checked.secrets.iter().copied().collect(), false, &mut report);
    let files = names.iter().filter_map(|(_, name)| name.strip_prefix("file:")).map(PathBuf::from).collect();
    let content = |(value, written): &(String, String)| {
        let path = written.strip_prefix("${file:")?.strip_suffix('}')?;
        Some((PathBuf::from(path), value.clone()))
    };
    let contents = values.iter().filter_map(content).collect();
    let secret = names.iter().filter(|(place, name)| checked.secrets.contains(place) && !name.starts_with("file:"));
    let credentials = credentials.into_iter().filter(|name| !name.starts_with("file:"));
    let secret_variables = secret.map(|(_, name)| name.clone()).chain(credentials).collect();
    report.extend(findings);
    // A value that could not be interpolated would be reported a second time for its type.
    let is_resolved = |finding: &Diagnostic| finding.place.is_none_or(|place| !unresolved.contains(&place));
    // The walker shows no interpolated value.
    let reported: Vec<_> = checked.findings.iter().filter_map(|finding| finding.place).collect();
    report.extend(checked.findings.into_iter().filter(is_resolved));
    values.iter().for_each(|(value, written)| report.hide(value, written));
    let Decoded { config, findings, removed } = decode(checked.json, &tree);
    let is_new = |finding: &Diagnostic| finding.place.is_none_or(|place| !reported.contains(&place));
    report.extend(findings.into_iter().filter(|finding| is_resolved(finding) && is_new(finding)));
    match config {
        Some(config) if !report.has_errors() => Ok(Loaded { config, tree, report, secret_variables, files, contents }),
        rest => Err(Box::new(Refused { report, tree: Some(tree), rest, removed, unresolved })),
    }
}

/// A Config, without the values that serde rejects.
struct Decoded<C> {
    config: Option<C>,
    findings: Vec<Diagnostic>,
    removed: Vec<String>,
}

/// What the walker has reported, and set to null or left absent.
const REPORTED: [&str; 3] = ["invalid type: null", "missing field", "unknown field"];

/// Reports each value that serde rejects, and removes it.
fn decode<C: DeserializeOwned>(mut json: serde_json::Value, tree: &Node) -> Decoded<C> {
    let (mut findings, mut removed) = (Vec::new(), Vec::new());
    let mut removed_items = RemovedItems::default();
    for _ in 0..FINDINGS_MAX {
        let error = match serde_path_to_error::deserialize::<_, C>(&json) {
            Ok(config) => return Decoded { config: Some(config), findings, removed },
            Err(error) => error,
        };
        let keys: Vec<String> = error.path().iter().filter_map(key_of).collect();
        let written = removed_items.as_written(&keys);
        let message = error.inner().to_string();
        if !REPORTED.iter().any(|known| message.starts_with(known)) {
            let place = tree.at(&written.iter().map(String::as_str).collect::<Vec<_>>()).place;
            findings.push(Diagnostic::error(place, message));
        }
        let Some((last, above)) = keys.split_last() else { break };
        let parent = above.iter().try_fold(&mut json, |json, key| match json {
            serde_json::Value::Array(items) => items.get_mut(key.parse::<usize>().ok()?),
            json => json.get_mut(key),
        });
        if !parent.is_some_and(|parent| remove(parent, last)) {
            break;
        }
        removed_items.add(&written);
        removed.push(last.clone());
    }
    Decoded { config: None, findings, removed }
}

/// The original indexes of removed items, by the path of their list in the file.
#[derive(Default)]
struct RemovedItems(BTreeMap<Vec<String>, BTreeSet<usize>>);

impl RemovedItems {
    /// The path in the file of a path after removals.
    fn as_written(&self, path: &[String]) -> Vec<String> {
        let mut written: Vec<String> = Vec::new();
        for key in path {
            let index = match (self.0.get(&written), key.parse::<usize>()) {
                (Some(removed), Ok(index)) => {
                    let index = removed.iter().fold(index, |index, removed| index + usize::from(*removed <= index));
                    index.to_string()
                }
                _ => key.clone(),
            };
            written.push(index);
        }
        written
    }

    fn add(&mut self, path: &[String]) {
        if let Some((index, list)) = path.split_last().and_then(|(last, list)| Some((last.parse().ok()?, list))) {
            self.0.entry(list.to_vec()).or_default().insert(index);
        }
    }
}

/// Removes a key or an index; false if there is none.
fn remove(parent: &mut serde_json::Value, key: &str) -> bool {
    match parent {
        serde_json::Value::Object(entries) => entries.remove(key).is_some(),
        serde_json::Value::Array(items) => match key.parse::<usize>() {
            Ok(index) if index < items.len() => {
                items.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

fn key_of(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { variant } => Some(variant.clone()),
        Segment::Unknown => None,
    }
}

/// Masks the nodes of secrets on each of their lines, including misplaced children.
fn mask_secrets(node: &Node, secrets: &HashSet<Location>, within: bool, report: &mut Report) {
    let within = within || secrets.contains(&node.place);
    match &node.value {
        Value::Scalar { .. } if within => {
            report.mask(node.place);
            let others = node.place.line + 1..=node.last_line;
            others.for_each(|line| report.mask(Location { line, column: 1, width: Location::TO_THE_END }));
        }
        Value::Scalar { .. } => {}
        Value::List(items) => items.iter().for_each(|item| mask_secrets(item, secrets, within, report)),
        Value::Map(entries) => entries.iter().for_each(|entry| mask_secrets(&entry.node, secrets, within, report)),
    }
}

/// Words in the names of keys of secrets.
const SECRET_WORDS: [&str; 6] = ["password", "token", "secret", "key", "credential", "authorization"];

/// Masks the text after a key whose name suggests a secret. For a line of invalid YAML, whose nodes are unknown.
fn mask_by_name(text: &str, line: u32, report: &mut Report) {
    let written = line_of(text, line);
    let lower = written.to_ascii_lowercase();
    let ends = SECRET_WORDS.iter().filter_map(|word| lower.find(word).map(|at| at + word.len()));
    let Some(colon) = ends.min().and_then(|end| written.get(end..)?.find(':').map(|at| end + at)) else { return };
    let value = written.get(colon + 1..).unwrap_or("");
    let column = written.get(..=colon).unwrap_or("").chars().count() as u32 + 1;
    report.mask(Location { line, column, width: Location::TO_THE_END });
    value.split([' ', ',', ']', '}']).chain([value.trim()]).for_each(|word| report.hide(word, "***"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_after_removed_ones_keep_their_location() {
        #[derive(serde::Deserialize, JsonSchema)]
        struct Lists {
            #[expect(dead_code, reason = "only its errors are read")]
            modes: Vec<std::net::Ipv4Addr>,
        }
        let report = match load::<Lists>("f", "modes:\n  - a\n  - 1.2.3.4\n  - b\n  - c\n", &Lookup::HERE) {
            Ok(_) => panic!("three items are invalid"),
            Err(report) => report.render(),
        };
        for place in ["f:2:5", "f:4:5", "f:5:5"] {
            assert!(report.contains(place), "{place} in {report}");
        }
    }

    #[derive(Debug, serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "these tests do not read the values")]
    struct Sample {
        token: Option<crate::unit::Secret>,
        port: Option<u16>,
    }

    fn rejected(text: &str) -> String {
        match load::<Sample>("f", text, &Lookup::HERE) {
            Ok(_) => panic!("no error was found in {text}"),
            Err(report) => report.render(),
        }
    }

    #[test]
    fn secret_is_masked_on_all_lines_and_in_bad_yaml() {
        for text in [
            "{ token: \"hunter2\n  hunter2\", port: x }",
            "{ token: [hunter2, { a: hunter2 }], port: x }",
            "token: hunter2, b: hunter2\nport: 1",
            "token: *hunter2\n",
            "{ token: @hunter2, port: 1 }",
        ] {
            let shown = rejected(text);
            assert!(!shown.contains("hunter2") && shown.contains("-->"), "{shown}");
        }
    }
}
