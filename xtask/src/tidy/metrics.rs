//! Rule: own metrics are named as Prometheus' conventions and the field name them.
//! In: the `MetricDesc` values in the sources. Out: a finding for each that has no prefix, a wrong suffix, no help text, or a component
//! metric without the labels of a component. Limits: it reads literals; names that are put together at runtime do not exist.

use super::source::end_of_brackets;
use super::{Finding, Source};

/// Units that are not base units, as the last words of a name.
const OTHER_UNITS: [&str; 7] = ["_ms", "_milliseconds", "_us", "_ns", "_kib", "_mib", "_percent"];

const COMPONENT_LABELS: [&str; 3] = ["component_id", "component_kind", "component_type"];

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let product = sources.iter().filter(|source| source.path.starts_with("crates/"));
    product.flat_map(|source| in_source(source).collect::<Vec<_>>()).collect()
}

fn in_source(source: &Source) -> impl Iterator<Item = Finding> {
    ["counter", "gauge"].into_iter().flat_map(move |kind| {
        let call = format!("MetricDesc::{kind}(");
        let offsets: Vec<usize> = source.words(&call).collect();
        offsets.into_iter().filter_map(move |offset| {
            let open = offset + "MetricDesc::".len() + kind.len();
            let end = end_of_brackets(&source.code, open)?;
            // `code` has the characters of the text, not its bytes.
            let skip = source.code[..open].chars().count();
            let arguments: String =
                source.text.chars().skip(skip).take(source.code[open..end].chars().count()).collect();
            let (what, help) = breach(kind, &arguments)?;
            Some(Finding::new(&source.path, source.line_at(offset), what, help))
        })
    })
}

/// What is wrong with a description, and the next step.
fn breach(kind: &str, arguments: &str) -> Option<(String, &'static str)> {
    let literals: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
    let name = *literals.first()?;
    let says = |what: &str| format!("the metric `{name}` {what}");
    if !name.starts_with("outrigger_") {
        return Some((says("has no prefix"), "begin its name with outrigger_"));
    }
    if (kind == "counter") != name.ends_with("_total") {
        return Some((says(&format!("is a {kind}")), "end the names of counters, and of nothing else, in _total"));
    }
    let base = name.trim_end_matches("_total");
    if OTHER_UNITS.iter().any(|unit| base.ends_with(unit)) {
        return Some((says("is not in a base unit"), "use seconds, bytes or a ratio"));
    }
    if name.starts_with("outrigger_component_")
        && !arguments.contains("LABELS")
        && !COMPONENT_LABELS.iter().all(|label| literals.contains(label))
    {
        return Some((says("has no labels of a component"), "begin its labels with those of a component"));
    }
    let ends_in_text = arguments.trim_end_matches([')', ',', ' ', '\n']).ends_with('"');
    let has_help = ends_in_text && literals.last().is_some_and(|help| !help.trim().is_empty());
    (!has_help).then(|| (says("has no help text"), "say in a sentence what it counts or measures"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_for_metrics_finds_its_breach() {
        let check = |description: &str, expect: Option<&str>| {
            let text = format!("static A: MetricDesc = MetricDesc::{description};\n");
            let found = super::check(&[Source::new("crates/a/src/telemetry.rs", &text)]);
            let found: Vec<_> = found.iter().map(|finding| finding.what.as_str()).collect();
            assert_eq!(found, expect.into_iter().collect::<Vec<_>>(), "{description}");
        };
        check(r#"counter("outrigger_a_total", &["b"], "Things.")"#, None);
        check(r#"gauge("outrigger_a_bytes", &[], "Bytes, in use.")"#, None);
        check(r#"counter("outrigger_component_a_total", &LABELS, "Things.")"#, None);
        check(
            r#"counter("outrigger_component_a_total", &["component_id", "component_kind", "component_type", "reason"], "Things.")"#,
            None,
        );
        check(r#"counter("a_total", &[], "Things.")"#, Some("the metric `a_total` has no prefix"));
        check(r#"counter("outrigger_a", &[], "Things.")"#, Some("the metric `outrigger_a` is a counter"));
        check(r#"gauge("outrigger_a_total", &[], "Things.")"#, Some("the metric `outrigger_a_total` is a gauge"));
        check(r#"gauge("outrigger_a_ms", &[], "Time.")"#, Some("the metric `outrigger_a_ms` is not in a base unit"));
        check(r#"gauge("outrigger_a", &["b"], "")"#, Some("the metric `outrigger_a` has no help text"));
        check(r#"gauge("outrigger_a", &["b"], " ",)"#, Some("the metric `outrigger_a` has no help text"));
        check(
            r#"gauge("outrigger_component_a", &["component_id"], "Things.")"#,
            Some("the metric `outrigger_component_a` has no labels of a component"),
        );
    }
}
