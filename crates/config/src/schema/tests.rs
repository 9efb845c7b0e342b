//! The walker with a Config type of its own. In: YAML. Out: findings with location and help text.

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
    #[serde(default)]
    store: Option<Store>,
    #[serde(default)]
    entries: Vec<Store>,
    #[serde(default)]
    words: Vec<String>,
    #[serde(default)]
    limits: Option<Limits>,
    #[serde(default)]
    auth: Option<Auth>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kinds" = ["git", "http"]))]
#[expect(dead_code, reason = "read only by serde and the schema")]
struct Store {
    #[serde(default)]
    git: Option<Git>,
    #[serde(default)]
    http: Option<Git>,
    #[serde(default)]
    keep: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read only by serde and the schema")]
struct Git {
    #[serde(default)]
    url: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependentRequired" = { "user": ["group"] }))]
#[expect(dead_code, reason = "read only by serde and the schema")]
struct Limits {
    #[serde(default)]
    max_bytes: Option<crate::unit::ByteSize>,
    #[serde(default)]
    min_bytes: Option<crate::unit::ByteSize>,
    #[serde(default)]
    timeout: Option<TimeSpan>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    dir: Option<std::path::PathBuf>,
    #[serde(default)]
    user: Option<u32>,
    #[serde(default)]
    group: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read only by serde and the schema")]
struct Auth {
    #[serde(default)]
    password: Option<crate::unit::Secret>,
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
    check_finding("grace: 5s\n", "missing required key `port` in `the file` / add `port: …` — The port of the app.");
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
fn a_scalar_for_a_mapping_gets_the_text_to_write() {
    let port = |rest: &str| format!("{{port: 1, {rest}}}");
    for (text, part) in [
        (port("balance: round_robin"), "/ the kind is a key: write `balance: { round_robin: {} }`"),
        (port("balance: fastest"), "`balance`: expected a mapping with exactly one key, found a string"),
        (port("store: git"), "/ the kind is a key: write `store: { git: {} }`"),
        (port("store: hg"), "/ set exactly one of: git, http"),
        (port("limits: 5MiB"), "/ write `limits: { max_bytes: 5MiB }`"),
        (port("limits: 5s"), "/ write `limits: { timeout: 5s }`"),
        (port("limits: /srv"), "/ write `limits: { dir: /srv }`"),
        (port("limits: drop_oldest"), "/ write `limits: { mode: drop_oldest }`"),
    ] {
        check_finding(&text, part);
    }
}

#[test]
fn a_list_or_scalar_in_place_of_another_has_help() {
    for (text, part) in [
        ("{port: 1, labels: [a]}", "/ write `labels: { NAME: { … } }`: each entry has a name"),
        ("{port: 1, limits: [a]}", "/ its keys: max_bytes, min_bytes, timeout,"),
        ("{port: 1, store: [git]}", "/ set exactly one of: git, http"),
        ("{port: 1, words: a}", "/ write `words: [a]`"),
        ("{port: 1, words: \"a: b\"}", "/ write `words: [\"a: b\"]`"),
        ("{port: 1, entries: {git: {}}}", "/ write `entries: [ { … } ]`"),
        ("{port: 1, limits: \"/srv/a b\"}", "/ write `limits: { dir: \"/srv/a b\" }`"),
    ] {
        check_finding(text, part);
    }
}

#[test]
fn one_error_for_an_unknown_kind() {
    let port = |rest: &str| format!("{{port: 1, {rest}}}");
    for (text, part) in [
        (port("store: { hg: {} }"), "unknown kind `hg` in `store` / known kinds: git, http"),
        (port("store: { gti: {} }"), "unknown kind `gti` in `store` / did you mean `git`?"),
        (port("store: { type: git }"), "/ the kind is the key itself: write `git: { … }`"),
        (port("store: { every: 5 }"), "`store` has no kind"),
        (port("store: { git: { keep: 3 } }"), "unknown key `keep` in `store.git` / it belongs next to `git`"),
    ] {
        let found = findings(&text);
        assert!(found.iter().any(|finding| finding.contains(part)), "{text}: {found:?}");
        assert_eq!(found.len(), 1 + usize::from(text.contains("every")), "{text}: {found:?}");
    }
    let found = findings("{port: 1, store: { type: git, url: x }}");
    assert!(found.len() == 2 && found[1].contains("write `git: { url: … }`"), "{found:?}");
    let found = findings("{port: 1, entries: [{ git: {} }], http: {}}");
    assert!(found.len() == 1 && found[0].contains("write `entries: [ { http: … } ]`"), "{found:?}");
}

#[test]
fn dependent_key_is_required_paths_are_complete() {
    check_finding("{port: 1, limits: { user: 1 }}", "`user` in `limits` requires `group` / set both or none");
    check_finding("{port: 1, entries: [{git: {}}, {git: {uri: x}}]}", "unknown key `uri` in `entries[1].git`");
}

#[test]
fn a_secret_in_place_of_a_mapping_is_masked() {
    let schema = serde_json::to_value(schemars::schema_for!(Sample)).expect("a schema is JSON");
    let tree = parse(
        "port: 1
auth: hunter2
",
    )
    .expect("valid YAML");
    let checked = check(&tree, &schema);
    assert_eq!(checked.secrets.len(), 1);
    let help = checked.findings[0].help.clone().unwrap_or_default();
    assert_eq!(help, "write `auth: { password: … }`");
}

#[test]
fn all_errors_are_reported_and_secrets_marked() {
    assert_eq!(findings("{prot: 1, grace: x, mode: y, labels: 3, balance: z}").len(), 6);
    let schema = serde_json::to_value(schemars::schema_for!(Sample)).expect("a schema is JSON");
    let checked = check(&parse("port: 1\ntoken: hunter2\n").expect("valid YAML"), &schema);
    assert_eq!(checked.secrets, [Location { line: 2, column: 8, width: 7 }]);
    let text =
        shown(&parse("port: 1\ntoken: hunter2\nlabels: { u: \"http://me:pw@h/\" }\n").expect("valid YAML"), &schema)
            .to_string();
    assert_eq!(text, r#"{"port":1,"token":"(secret)","labels":{"u":"http://*****@h/"}}"#);
}
