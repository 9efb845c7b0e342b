//! Expands `${NAME}`, `${NAME:-default}` and `${file:/path}` in string values of the tree; `$$` is a dollar sign.
//! In: the tree and a lookup for names. Out: the tree with interpolated values, and a finding for each name that is
//! not found. Keys, comments and other text are unchanged, and an interpolated value is never parsed as YAML.
//! Limits: an interpolated file has at most `FILE_MAX` bytes, and all interpolated values together `VALUES_MAX`.

use crate::diag::{Diagnostic, Location};
use crate::tree::{Node, Value};
use std::path::Path;

pub const FILE_MAX: u64 = 64 << 10;

/// Total size of all interpolated values.
pub const VALUES_MAX: usize = 4 << 20;

/// The source of values; tests use their own.
pub struct Lookup<'a> {
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    pub file: &'a dyn Fn(&Path) -> std::io::Result<String>,
}

impl Lookup<'static> {
    /// The environment and the file system of this process.
    pub const HERE: Lookup<'static> = Lookup { variable: &|name| std::env::var(name).ok(), file: &read_small };
}

fn read_small(path: &Path) -> std::io::Result<String> {
    let bytes = base::system::file::read(path, FILE_MAX)?;
    String::from_utf8(bytes).map_err(|_| std::io::Error::other(format!("{} is not UTF-8", path.display())))
}

/// Result of the interpolation.
#[derive(Debug, Default)]
pub struct Interpolated {
    pub findings: Vec<Diagnostic>,
    /// The names, `NAME` or `file:/path`, and their locations.
    pub names: Vec<(Location, String)>,
    /// The variables in the user part of a URL, which are credentials.
    pub credentials: Vec<String>,
    /// The interpolated values, and the text in the file that each replaces.
    pub values: Vec<(String, String)>,
    bytes: usize,
}

/// Interpolates all values of the tree in place.
pub fn apply(node: &mut Node, lookup: &Lookup<'_>) -> Interpolated {
    let mut interpolated = Interpolated::default();
    walk(node, lookup, &mut interpolated);
    interpolated
}

fn walk(node: &mut Node, lookup: &Lookup<'_>, all: &mut Interpolated) {
    let place = node.place;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| walk(item, lookup, all)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| walk(&mut entry.node, lookup, all)),
        Value::Scalar { text, plain } => {
            if !text.contains('$') {
                return;
            }
            if let Some(name) = text.strip_prefix('$').filter(|name| is_variable(name)) {
                let message = format!("`${name}` is not expanded");
                let help = format!("write `${{{name}}}` for the variable, or `$${name}` for this text");
                all.findings.push(Diagnostic::warning(place, message).help(help));
            }
            all.names.extend(variables(text).map(|name| (place, name)));
            all.credentials.extend(user_part(text).into_iter().flat_map(variables));
            let known = all.values.len();
            match expand(text, lookup, 0, &mut all.values) {
                Ok(value) if all.bytes + value.len() > VALUES_MAX => {
                    all.values.truncate(known);
                    let text = format!("the values of placeholders exceed {VALUES_MAX} bytes");
                    all.findings.push(Diagnostic::error(place, text).help("pass large values to the app in a file"));
                }
                Ok(value) => {
                    all.bytes += value.len();
                    // A scalar that is entirely a placeholder may be a number or a boolean, even in quotes: `port: "${PORT}"`.
                    *plain |= text.starts_with("${") && text.ends_with('}');
                    node.interpolated = *text != value;
                    let written = std::mem::replace(text, value.clone());
                    if node.interpolated {
                        all.values.push((value, written));
                    }
                }
                Err(finding) => all.findings.push(Diagnostic { place: Some(place), ..finding }),
            }
        }
    }
}

/// The names in the placeholders of a text.
fn variables(text: &str) -> impl Iterator<Item = String> {
    let names = text.split("${").skip(1).filter_map(|rest| rest.split(":-").next()?.split('}').next());
    names.map(str::to_string)
}

/// The user part of a URL: between `://` and the last `@` before the path, outside of placeholders.
fn user_part(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let mut depth = 0usize;
    let mut at = None;
    for (index, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '@' if depth == 0 => at = Some(index),
            '/' | '?' | '#' if depth == 0 => break,
            _ => {}
        }
    }
    rest.get(..at?)
}

/// Whether a text looks like the name of an environment variable.
fn is_variable(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_') && name.chars().all(allowed)
}

/// Maximum nesting of placeholders in defaults of placeholders.
const DEPTH_MAX: usize = 8;

/// The end of a placeholder; its default may contain another placeholder.
fn closing(inside: &str) -> Option<usize> {
    let (mut open, mut after_dollar) = (0usize, false);
    for (at, c) in inside.char_indices() {
        match c {
            '{' if after_dollar => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
        after_dollar = c == '$';
    }
    None
}

type Values = Vec<(String, String)>;

fn expand(text: &str, lookup: &Lookup<'_>, depth: usize, values: &mut Values) -> Result<String, Diagnostic> {
    if depth > DEPTH_MAX {
        return Err(Diagnostic::whole(format!("placeholders are nested deeper than {DEPTH_MAX} levels")));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inside) = tail.strip_prefix('{') {
            let end = closing(inside).ok_or_else(|| {
                Diagnostic::whole("unclosed `${`").help("close it with `}`, or write `$$` for a literal `$`")
            })?;
            let value = resolve(&inside[..end], lookup, depth, values)?;
            out.push_str(&value);
            let name = inside[..end].split(":-").next().unwrap_or("");
            values.push((value, format!("${{{name}}}")));
            rest = &inside[end + 1..];
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn resolve(name: &str, lookup: &Lookup<'_>, depth: usize, values: &mut Values) -> Result<String, Diagnostic> {
    if let Some(path) = name.strip_prefix("file:") {
        // Editors and `echo` append a newline that is not part of the secret.
        return (lookup.file)(Path::new(path)).map(|text| text.trim_end_matches(['\n', '\r']).to_string()).map_err(
            |error| {
                Diagnostic::whole(format!("cannot read `${{file:{path}}}`: {error}"))
                    .help("mount the file, or correct the path")
            },
        );
    }
    let (variable, default) = match name.split_once(":-") {
        Some((variable, default)) => (variable, Some(default)),
        None => (name, None),
    };
    let valid = !variable.is_empty() && variable.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !valid {
        // The text is not shown: it may be the secret itself, written in place of a name.
        let help = match variable.strip_prefix("env:") {
            Some(_) => "write ${NAME} without `env:`",
            None => "write ${NAME}, ${NAME:-default} or ${file:/path}; write `$$` for a literal `$`",
        };
        return Err(Diagnostic::whole("invalid variable name in a placeholder").help(help));
    }
    match ((lookup.variable)(variable).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => expand(default, lookup, depth + 1, values),
        (None, None) => Err(Diagnostic::whole(format!("variable `{variable}` is unset or empty"))
            .help(format!("set {variable} in the environment, or give a default: ${{{variable}:-value}}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    const LOOKUP: Lookup<'static> = Lookup {
        variable: &|name| (name == "PORT").then(|| "8080".to_string()),
        file: &|path| {
            if path == Path::new("/token") {
                Ok("s3cret\n".into())
            } else {
                Err(std::io::Error::from(std::io::ErrorKind::NotFound))
            }
        },
    };

    fn check(text: &str, expect: Result<(&str, bool), &str>) {
        let mut tree = parse(&format!("k: {text}\n")).expect("valid YAML");
        let findings = apply(&mut tree, &LOOKUP).findings;
        match expect {
            Ok((want, want_plain)) => {
                assert!(findings.is_empty(), "{text}: {findings:?}");
                assert_eq!(tree.at(&["k"]).value, Value::Scalar { text: want.into(), plain: want_plain }, "{text}");
            }
            Err(part) => assert!(findings.iter().any(|f| f.message.contains(part)), "{text}: {findings:?}"),
        }
    }

    #[test]
    fn placeholders_expand_and_missing_are_reported() {
        check("\"${PORT}\"", Ok(("8080", true)));
        check("${PORT}", Ok(("8080", true)));
        check("\"127.0.0.1:${PORT}\"", Ok(("127.0.0.1:8080", false)));
        check("\"${NOPE:-x}\"", Ok(("x", true)));
        check("\"${NOPE:-}\"", Ok(("", true)));
        check("\"${file:/token}\"", Ok(("s3cret", true)));
        check("\"$$PORT costs 5$\"", Ok(("$PORT costs 5$", false)));
        check("\"${NOPE}\"", Err("`NOPE` is unset"));
        check("\"${file:/none}\"", Err("${file:/none}"));
        check("\"${open\"", Err("unclosed"));
        check("\"${a-b}\"", Err("invalid variable name"));
    }

    #[test]
    fn variables_in_a_user_part_are_credentials() {
        let check = |text: &str, expect: &[&str]| {
            let mut tree = parse(&format!("k: \"{text}\"")).expect("valid YAML");
            assert_eq!(apply(&mut tree, &LOOKUP).credentials, expect, "{text}");
        };
        check("https://me:${PASSWORD}@host/${PATH_OF}", &["PASSWORD"]);
        check("https://${USER:-me}:${PASSWORD:-x/y}@host/", &["USER", "PASSWORD"]);
        check("https://${HOST}/a@${REF}", &[]);
        check("${PORT}", &[]);
        check("https://host?user=${USER}@x", &[]);
    }

    #[test]
    fn a_variable_without_braces_is_a_warning() {
        let check = |text: &str, expect: &str| {
            let mut tree = parse(&format!("k: '{text}'")).expect("valid YAML");
            let findings = apply(&mut tree, &LOOKUP).findings;
            let shown: Vec<String> = findings.into_iter().filter_map(|finding| finding.help).collect();
            assert_eq!(shown.join(""), expect, "{text}");
        };
        check("$HOME", "write `${HOME}` for the variable, or `$$HOME` for this text");
        check("echo $HOME", "");
        check("$1", "");
        check("pa$WORD", "");
    }

    #[test]
    fn placeholder_names_have_locations() {
        let mut tree = parse("a: ${PORT}-${NOPE:-x}\nb: ${file:/token}\n").expect("valid YAML");
        let interpolated = apply(&mut tree, &LOOKUP);
        let names: Vec<(u32, &str)> =
            interpolated.names.iter().map(|(place, name)| (place.line, name.as_str())).collect();
        assert_eq!(names, [(1, "PORT"), (1, "NOPE"), (2, "file:/token")]);
    }

    #[test]
    fn interpolated_values_are_limited_and_listed() {
        let large = "x".repeat(FILE_MAX as usize);
        let lookup = Lookup { variable: &|name| Some(format!("{name}={large}")), file: LOOKUP.file };
        let mut tree = parse(&format!("k: [{}]\n", "\"${A}\", ".repeat(200))).expect("valid YAML");
        let findings = apply(&mut tree, &lookup).findings;
        assert!(findings.iter().all(|finding| finding.message.contains("exceed")), "{findings:?}");
        assert!((1..200).contains(&findings.len()), "some fit: {}", findings.len());
        let mut tree = parse("k: \"http://${PORT}/\"\n").expect("valid YAML");
        let values = apply(&mut tree, &LOOKUP).values;
        let pair = |value: &str, written: &str| (value.to_string(), written.to_string());
        assert_eq!(values, [pair("8080", "${PORT}"), pair("http://8080/", "http://${PORT}/")]);
    }

    #[test]
    fn interpolated_values_are_never_parsed_as_yaml() {
        let lookup = Lookup { variable: &|_| Some("x\nadmin: { listen: evil }".into()), file: LOOKUP.file };
        let mut tree = parse("# ${IGNORED}\na: ${V}\n").expect("valid YAML");
        assert!(apply(&mut tree, &lookup).findings.is_empty());
        let Value::Map(entries) = &tree.value else { panic!("a mapping") };
        assert_eq!(entries.len(), 1);
    }
}
