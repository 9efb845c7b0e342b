//! The data of `cargo metadata`: the workspace's crates with their imports of each other, and the libraries in the binary.
//! In: the JSON of `cargo metadata`. Out: plain structs for rules and tests.
//! Bound: one start of cargo; dependencies of other platforms than this one are omitted.

use crate::shell::{self, Outcome};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// The package whose normal dependencies are shipped to users.
const SHIPPED: &str = "outrigger";

pub struct Workspace {
    pub members: Vec<Member>,
    pub shipped: Shipped,
}

/// One crate of the workspace.
#[derive(Debug, PartialEq)]
pub struct Member {
    pub name: String,
    /// Its manifest, from the root of the repository.
    pub manifest: String,
    /// Crates of the workspace that it depends on, in any way (normal, dev, build).
    pub imports: Vec<String>,
    /// Names of its integration tests.
    pub tests: Vec<String>,
}

/// The libraries linked into the binary, without procedural macros and their dependencies.
#[derive(Default)]
pub struct Shipped {
    pub libraries: BTreeSet<Library>,
    /// Its dependent: the first one found from the binary.
    pub brought_by: BTreeMap<Library, Library>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Library {
    pub name: String,
    pub version: String,
}

impl Workspace {
    pub fn load() -> Outcome<Self> {
        let host = host()?;
        let json =
            shell::output(&mut shell::cargo(&["metadata", "--format-version", "1", "--filter-platform", &host]))?;
        let root = shell::root();
        Self::parse(&json, &root.to_string_lossy())
    }

    pub fn parse(json: &str, root: &str) -> Outcome<Self> {
        let metadata: Value =
            serde_json::from_str(json).map_err(|error| format!("`cargo metadata` printed invalid JSON: {error}"))?;
        let members = members(&metadata, root);
        let shipped = shipped(&metadata).ok_or(format!("`cargo metadata` has no package `{SHIPPED}`"))?;
        Ok(Self { members, shipped })
    }
}

fn host() -> Outcome<String> {
    let facts = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = facts.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_string).ok_or("`rustc -vV` has no host line".to_string())
}

fn members(metadata: &Value, root: &str) -> Vec<Member> {
    let ids: BTreeSet<&str> = each(&metadata["workspace_members"]).filter_map(Value::as_str).collect();
    let packages = each(&metadata["packages"]).filter(|package| ids.contains(text(&package["id"])));
    packages
        .map(|package| {
            let manifest = text(&package["manifest_path"]);
            let local = each(&package["dependencies"]).filter(|dependency| dependency["path"].is_string());
            let imports: BTreeSet<String> = local.map(|dependency| text(&dependency["name"]).to_string()).collect();
            let tests = each(&package["targets"])
                .filter(|target| each(&target["kind"]).any(|kind| kind == "test"))
                .map(|target| text(&target["name"]).to_string());
            Member {
                name: text(&package["name"]).to_string(),
                manifest: manifest.strip_prefix(root).unwrap_or(manifest).trim_start_matches('/').to_string(),
                imports: imports.into_iter().collect(),
                tests: tests.collect(),
            }
        })
        .collect()
}

fn shipped(metadata: &Value) -> Option<Shipped> {
    let packages: BTreeMap<&str, &Value> =
        each(&metadata["packages"]).map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<&str, &Value> =
        each(&metadata["resolve"]["nodes"]).map(|node| (text(&node["id"]), node)).collect();
    let binary = packages.iter().find(|(_, package)| package["name"] == SHIPPED).map(|(id, _)| *id)?;

    let mut shipped = Shipped::default();
    let mut seen = BTreeSet::from([binary]);
    let mut waiting = std::collections::VecDeque::from([binary]);
    while let Some(id) = waiting.pop_front() {
        let dependent = library(packages.get(id)?);
        for dependency in nodes.get(id).into_iter().flat_map(|node| each(&node["deps"])) {
            let child = text(&dependency["pkg"]);
            let normal = each(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
            let package = packages.get(child)?;
            if normal && !is_macro(package) && seen.insert(child) {
                let library = library(package);
                shipped.brought_by.insert(library.clone(), dependent.clone());
                shipped.libraries.insert(library);
                waiting.push_back(child);
            }
        }
    }
    Some(shipped)
}

impl Shipped {
    /// `rustls 0.23.1 <- net 0.1.0 <- outrigger 0.1.0`
    pub fn chain(&self, library: &Library) -> String {
        let mut chain = format!("{} {}", library.name, library.version);
        let mut here = library;
        while let Some(dependent) = self.brought_by.get(here) {
            chain.push_str(&format!(" <- {}", dependent.name));
            here = dependent;
        }
        chain
    }
}

fn is_macro(package: &Value) -> bool {
    each(&package["targets"]).any(|target| each(&target["kind"]).any(|kind| kind == "proc-macro"))
}

fn library(package: &Value) -> Library {
    Library { name: text(&package["name"]).to_string(), version: text(&package["version"]).to_string() }
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{
      "workspace_members": ["o", "n"],
      "packages": [
        {"id": "o", "name": "outrigger", "version": "0.1.0", "manifest_path": "/r/crates/outrigger/Cargo.toml",
         "dependencies": [{"name": "net", "path": "/r/crates/net"}, {"name": "serde"}], "targets": [{"name": "x", "kind": ["bin"]}]},
        {"id": "n", "name": "net", "version": "0.1.0", "manifest_path": "/r/crates/net/Cargo.toml",
         "dependencies": [], "targets": [{"name": "t", "kind": ["test"]}]},
        {"id": "r", "name": "ring", "version": "0.17.1", "targets": [{"kind": ["lib"]}]},
        {"id": "d", "name": "serde_derive", "version": "1.0.0", "targets": [{"kind": ["proc-macro"]}]},
        {"id": "s", "name": "smol", "version": "2.0.0", "targets": [{"kind": ["lib"]}]}
      ],
      "resolve": {"nodes": [
        {"id": "o", "deps": [{"pkg": "n", "dep_kinds": [{"kind": null}]}, {"pkg": "s", "dep_kinds": [{"kind": "dev"}]}]},
        {"id": "n", "deps": [{"pkg": "r", "dep_kinds": [{"kind": null}]}, {"pkg": "d", "dep_kinds": [{"kind": null}]}]}
      ]}
    }"#;

    #[test]
    fn members_have_their_imports_and_tests() {
        let workspace = Workspace::parse(METADATA, "/r").expect("the sample is complete");
        let seen: Vec<_> =
            workspace.members.iter().map(|m| (&*m.name, &*m.manifest, &m.imports[..], &m.tests[..])).collect();
        let net = ["net".to_string()];
        let test = ["t".to_string()];
        assert_eq!(
            seen,
            [
                ("outrigger", "crates/outrigger/Cargo.toml", &net[..], &[][..]),
                ("net", "crates/net/Cargo.toml", &[][..], &test[..])
            ]
        );
    }

    #[test]
    fn only_linked_normal_dependencies_are_shipped() {
        let shipped = Workspace::parse(METADATA, "/r").expect("the sample is complete").shipped;
        let names: Vec<_> = shipped.libraries.iter().map(|library| library.name.as_str()).collect();
        assert_eq!(names, ["net", "ring"]);
        let ring = Library { name: "ring".to_string(), version: "0.17.1".to_string() };
        assert_eq!(shipped.chain(&ring), "ring 0.17.1 <- net <- outrigger");
    }
}
