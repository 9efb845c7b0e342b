//! From the text of a file to a typed Config, with every mistake at once. In: text, a Config type, a lookup for
//! placeholders. Out: the Config and its tree (so that later checks can name places), or a `Report`.

use crate::diag::{Diagnostic, Report};
use crate::fill::{Filled, Lookup, fill};
use crate::schema;
use crate::tree::{self, Node};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
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
            report.extend(findings);
            return Err(Box::new(Refused { report, tree: None, json: serde_json::Value::Null }));
        }
    };
    let Filled { findings: unfilled, names, values, .. } = fill(&mut tree, lookup);
    values.iter().for_each(|(value, written)| report.hide(value, written));
    let unfilled_places: Vec<_> = unfilled.iter().filter_map(|finding| finding.place).collect();
    let checked = schema::check(&tree, &schema_of::<C>());
    checked.secrets.iter().for_each(|place| report.mask(*place));
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
