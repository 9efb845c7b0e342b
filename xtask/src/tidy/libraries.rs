//! Rule: one TLS provider, one asynchronous runtime, one major version of each large library.
//! In: the libraries that the binary ships. Out: a finding with the dependent that added the second one.
//! Bound: it checks linked libraries only, not those of builds or tests.

use super::Finding;
use super::workspace::{Library, Shipped};
use std::collections::BTreeSet;

const TLS_PROVIDERS: [&str; 5] = ["ring", "aws-lc-rs", "openssl-sys", "boring-sys", "mbedtls"];
/// tokio is the only runtime; each of these would start its own threads.
const OTHER_RUNTIMES: [&str; 5] = ["async-std", "smol", "async-executor", "async-global-executor", "glommio"];
const LARGE: [&str; 10] = ["tokio", "hyper", "rustls", "prost", "http", "h2", "serde", "gix", "clap", "schemars"];

pub fn check(shipped: &Shipped) -> Vec<Finding> {
    let mut findings = Vec::new();
    let providers: Vec<_> = named(shipped, &TLS_PROVIDERS).collect();
    if providers.len() > 1 {
        let what = format!("the binary ships more than one TLS provider: {}", chains(shipped, &providers));
        findings.push(at_manifest(what, "disable the feature that adds the second one"));
    }
    for runtime in named(shipped, &OTHER_RUNTIMES) {
        let what = format!("the binary ships a second asynchronous runtime: {}", shipped.chain(runtime));
        findings.push(at_manifest(what, "use tokio, or a library without a runtime"));
    }
    for name in LARGE {
        let only = [name];
        let versions: Vec<_> = named(shipped, &only).collect();
        let majors: BTreeSet<String> = versions.iter().map(|library| major(&library.version)).collect();
        if majors.len() > 1 {
            let what =
                format!("the binary ships {name} in {} major versions: {}", majors.len(), chains(shipped, &versions));
            findings.push(at_manifest(what, "move the older user to the newer version, or replace it"));
        }
    }
    findings
}

fn at_manifest(what: String, help: &str) -> Finding {
    Finding::new("Cargo.lock", 1, what, help)
}

fn named<'a>(shipped: &'a Shipped, names: &'a [&str]) -> impl Iterator<Item = &'a Library> {
    shipped.libraries.iter().filter(|library| names.contains(&library.name.as_str()))
}

fn chains(shipped: &Shipped, libraries: &[&Library]) -> String {
    let chains: Vec<_> = libraries.iter().map(|library| shipped.chain(library)).collect();
    chains.join("; ")
}

/// The incompatible part by semantic versioning: up to the first number that is not 0.
fn major(version: &str) -> String {
    let mut numbers = version.split(['.', '-', '+']);
    let first = numbers.next().unwrap_or_default();
    match (first, numbers.next(), numbers.next()) {
        ("0", Some("0"), Some(third)) => format!("0.0.{third}"),
        ("0", Some(second), _) => format!("0.{second}"),
        _ => first.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_ships_one_of_each() {
        let check = |libraries: &[(&str, &str)], expect: &[&str]| {
            let library =
                |(name, version): &(&str, &str)| Library { name: name.to_string(), version: version.to_string() };
            let shipped = Shipped { libraries: libraries.iter().map(library).collect(), ..Shipped::default() };
            let seen: Vec<_> = super::check(&shipped).into_iter().map(|finding| finding.what).collect();
            assert_eq!(seen.len(), expect.len(), "{libraries:?}: {seen:?}");
            for (seen, expect) in seen.iter().zip(expect) {
                assert!(seen.contains(expect), "{seen} should contain {expect}");
            }
        };
        check(&[("ring", "0.17.1"), ("tokio", "1.54.0"), ("serde", "1.0.1")], &[]);
        check(&[("aws-lc-rs", "1.0.0")], &[]);
        check(&[("ring", "0.17.1"), ("aws-lc-rs", "1.0.0")], &["aws-lc-rs 1.0.0; ring 0.17.1"]);
        check(&[("tokio", "1.54.0"), ("smol", "2.0.0")], &["smol 2.0.0"]);
        check(&[("http", "0.2.9"), ("http", "1.3.0")], &["http in 2 major versions"]);
        check(&[("rustls", "0.22.1"), ("rustls", "0.23.1")], &["rustls in 2 major versions"]);
        check(&[("rustls", "0.23.0"), ("rustls", "0.23.1"), ("syn", "1.0.0"), ("syn", "2.0.0")], &[]);
    }

    #[test]
    fn major_versions_are_the_incompatible_part() {
        let check = |version: &str, expect: &str| assert_eq!(major(version), expect);
        check("1.54.0", "1");
        check("0.23.1", "0.23");
        check("0.0.3", "0.0.3");
        check("2.0.0-rc.1", "2");
    }
}
