//! From the text of a file to a typed Config, with every mistake at once. In: text, a Config type, a lookup for
//! placeholders. Out: the Config and its tree (so that later checks can name places), or a `Report`.

use crate::diag::{Diagnostic, FINDINGS_MAX, Location, Report, line_of};
use crate::interpolate::{Filled, Lookup, fill};
use crate::schema;
use crate::tree::{self, Node, Value};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use std::collections::HashSet;
use std::path::PathBuf;

/// A Config that the schema allows, with the tree it came from.
pub struct Loaded<C> {
    pub config: C,
    pub tree: Node,
    pub report: Report,
    /// The variables that stand in secret cells.
    pub secret_variables: Vec<String>,
    /// The files that were filled in.
    pub files: Vec<PathBuf>,
}

/// The JSON Schema of a Config type, as the walker and editors read it.
pub fn schema_of<C: JsonSchema>() -> serde_json::Value {
    schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<C>().to_value()
}

/// A checked tree as JSON that people may see.
pub fn shown<C: JsonSchema>(tree: &Node) -> serde_json::Value {
    schema::shown(tree, &schema_of::<C>())
}

/// A file with mistakes of form: what is right in it can be checked all the same.
pub struct Refused {
    pub report: Report,
    pub tree: Option<Node>,
    /// What the schema made of it; cells with a mistake are null or left out.
    pub json: serde_json::Value,
}

impl Refused {
    /// A section that is right by itself, and its tree.
    pub fn section<S: DeserializeOwned>(&self, name: &str) -> Option<(S, &Node)> {
        let value = self.json.get(name)?.clone();
        Some((serde_json::from_value(value).ok()?, self.tree.as_ref()?.at(&[name])))
    }
}

/// Parses, fills, checks and reads. `Err` holds all findings; the text of secrets is masked in it.
pub fn load<C: DeserializeOwned + JsonSchema>(
    file: &str,
    text: &str,
    lookup: &Lookup<'_>,
) -> Result<Loaded<C>, Report> {
    load_or_sections(file, text, lookup).map_err(|refused| refused.report)
}

/// The same, and of a file with mistakes the sections that have none.
pub fn load_or_sections<C: DeserializeOwned + JsonSchema>(
    file: &str,
    text: &str,
    lookup: &Lookup<'_>,
) -> Result<Loaded<C>, Box<Refused>> {
    let mut report = Report::new(file, text);
    let mut tree = match tree::parse(text) {
        Ok(tree) => tree,
        Err(findings) => {
            let places = findings.iter().take(FINDINGS_MAX).filter_map(|finding| finding.place);
            let lines: HashSet<u32> = places.map(|place| place.line).collect();
            lines.into_iter().for_each(|line| mask_by_name(text, line, &mut report));
            report.extend(findings);
            return Err(Box::new(Refused { report, tree: None, json: serde_json::Value::Null }));
        }
    };
    let Filled { findings: unfilled, names, values, .. } = fill(&mut tree, lookup);
    values.iter().for_each(|(value, written)| report.hide(value, written));
    let unfilled_places: Vec<_> = unfilled.iter().filter_map(|finding| finding.place).collect();
    let checked = schema::check(&tree, &schema_of::<C>());
    mask_secrets(&tree, &checked.secrets.iter().copied().collect(), false, &mut report);
    let files = names.iter().filter_map(|(_, name)| name.strip_prefix("file:")).map(PathBuf::from).collect();
    let secret = names.iter().filter(|(place, name)| checked.secrets.contains(place) && !name.starts_with("file:"));
    let secret_variables = secret.map(|(_, name)| name.clone()).collect();
    report.extend(unfilled);
    // A cell that could not be filled would be reported a second time for its type.
    report
        .extend(checked.findings.into_iter().filter(|f| f.place.is_none_or(|place| !unfilled_places.contains(&place))));
    if report.has_errors() {
        return Err(Box::new(Refused { report, tree: Some(tree), json: checked.json }));
    }
    match serde_path_to_error::deserialize(&checked.json) {
        Ok(config) => Ok(Loaded { config, tree, report, secret_variables, files }),
        Err(error) => {
            let path = error.path().to_string();
            let keys: Vec<&str> = path.split(['.', '[', ']']).filter(|part| !part.is_empty()).collect();
            report.push(Diagnostic::error(tree.at(&keys).place, error.inner().to_string()));
            Err(Box::new(Refused { report, tree: Some(tree), json: checked.json }))
        }
    }
}

/// Hides the cells of secrets, with all that lies in them where it should not, on each of their lines.
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

/// Words in the names of keys that hold secrets.
const SECRET_WORDS: [&str; 6] = ["password", "token", "secret", "key", "credential", "authorization"];

/// Hides what stands behind a name that sounds like a secret's. For a line of a text that is no YAML: nobody knows its cells.
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

    #[derive(Debug, serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "what is read is no part of these tests")]
    struct Sample {
        token: Option<crate::unit::Secret>,
        port: Option<u16>,
    }

    fn refused(text: &str) -> String {
        match load::<Sample>("f", text, &Lookup::HERE) {
            Ok(_) => panic!("no mistake was found in {text}"),
            Err(report) => report.render(),
        }
    }

    #[test]
    fn a_secret_is_hidden_on_all_its_lines_and_in_a_text_that_is_no_yaml() {
        for text in [
            "{ token: \"hunter2\n  hunter2\", port: x }",
            "{ token: [hunter2, { a: hunter2 }], port: x }",
            "token: hunter2, b: hunter2\nport: 1",
            "token: *hunter2\n",
            "{ token: @hunter2, port: 1 }",
        ] {
            let shown = refused(text);
            assert!(!shown.contains("hunter2") && shown.contains("-->"), "{shown}");
        }
    }
}
