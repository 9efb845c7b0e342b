//! Rule: texts, comments, names and documents use the words of the field; a test's name has at most `TEST_NAME_MAX` letters.
//! In: strings, comments and names of Rust files, and documents. Out: a finding for each word of `TABLE`, with its replacement.
//! Bound: it knows words, not grammar. docs/decisions/001-words.md has the list with the reasons and the words that need a reader.

use super::source::Source;
use super::{Finding, source};

/// A limit for readability: longer names wrap in the output of test runners.
const TEST_NAME_MAX: usize = 45;

/// Files that list the words themselves.
const EXEMPT: &[&str] = &[
    "xtask/src/tidy/words.rs",
    "docs/decisions/001-words.md",
    "crates/config/src/renamed.rs",
    "crates/outrigger/src/hints_test.rs",
];

/// A word that is not the field's.
struct Word {
    forms: &'static [&'static str],
    /// Phrases in which the word is the field's.
    except: &'static [&'static str],
    better: &'static str,
}

const fn word(forms: &'static [&'static str], better: &'static str) -> Word {
    Word { forms, except: &[], better }
}

const fn but(forms: &'static [&'static str], except: &'static [&'static str], better: &'static str) -> Word {
    Word { forms, except, better }
}

const TABLE: &[Word] = &[
    word(&["ask", "asks", "asked", "asking"], "request, query, poll, probe, call"),
    word(&["tell", "tells", "told", "telling"], "notify, send, report, expose"),
    but(
        &["nobody", "everybody", "somebody", "anybody"],
        &["`nobody`", "user nobody", "user: nobody", "user=nobody"],
        "no process, no client, every user",
    ),
    word(&["whoever"], "any client that, any process that"),
    but(
        &["fell", "fallen", "falls"],
        &["falls back", "fell back", "fallen back", "falls below", "fell below", "falls under", "falls within"],
        "crash, crashed",
    ),
    word(&["left out", "leave out", "leaves out", "leaving out"], "omitted, skipped, default"),
    word(
        &["look at", "looks at", "looked at", "looking at", "look through", "looked through"],
        "check, inspect, scan, poll",
    ),
    but(
        &["stand", "stands", "stood", "standing"],
        &["stands for", "stand for", "standing for"],
        "is, is set, is located",
    ),
    word(&["want of"], "lack of, out of"),
    word(&["folder", "folders"], "directory"),
    word(&["time-out", "time-outs", "time out of"], "timeout"),
    word(&["is well", "are well", "not well", "well again", "all is well"], "healthy, unhealthy, recovered"),
    word(&["go on", "goes on", "going on", "gone on", "went on"], "continue, keep running, resume"),
    word(&["hand-over", "hand-overs", "hand-off", "handoff"], "handover"),
    word(&["mistake", "mistakes"], "error (of a person), bug (of Outrigger)"),
    word(&["fill in", "fills in", "filled in", "filling in"], "interpolate, substitute, expand"),
    word(&["notices", "a notice", "the notice", "each notice", "one notice", "no notice"], "notification"),
    word(&["tried again", "tries again", "try it again"], "retried, retries"),
    word(&["gone"], "removed, deleted, closed, exited"),
    word(&["at once"], "immediately, or simultaneously"),
    word(
        &["memory is short", "memory was short", "short of memory", "shortage of memory"],
        "memory pressure, low memory",
    ),
    word(&["tombstone", "tombstones"], "exit code file"),
    word(&["person", "persons"], "user, operator"),
    word(&["leftover", "leftovers"], "backlog (lines), orphans (processes)"),
    word(&["rights"], "permissions, privileges, capabilities"),
    word(&["hear", "hears", "heard"], "receive, learn"),
    word(&["trouble", "troubles"], "error"),
    word(&["cell", "cells"], "node, scalar, value; of a table: column"),
    word(&["lies", "lie in", "lie at", "lay in"], "is located in, is stored in"),
    word(&["passed over", "pass over", "passes over"], "skipped, ignored, ejected"),
    word(&["lacks", "lacked", "lacking"], "is missing, has no"),
    word(&["mend", "mends", "mended", "in good order", "broke off"], "fix, gracefully, aborted"),
    word(&["be understood", "is understood", "not understood"], "parse, decode, supported"),
    word(&["be had", "is had", "are had"], "open, bind, available"),
    word(&["newer than ours", "of a newer version"], "unsupported version"),
    word(&["came and went"], "is short-lived"),
    word(&["verdict", "verdicts"], "health, status"),
    word(&["meanwhile"], "in the meantime, concurrently"),
    word(&["stranger", "strangers", "stranger's", "from elsewhere"], "cross-origin, unknown host, other process"),
    word(
        &["does not move", "has not moved", "did not move", "thread moves", "threads move"],
        "stalled, makes no progress",
    ),
    word(
        &["put aside", "puts aside", "set aside", "sets aside", "put back", "puts back"],
        "ejected, renamed, restored",
    ),
    word(&["zero byte", "zero bytes"], "NUL byte"),
    word(&["in force"], "in effect, enforced, active"),
    word(&["written down", "write down", "writes down", "wrote down"], "recorded, persisted"),
    word(&["all the same"], "anyway, nevertheless"),
    word(&["him", "himself", "his"], "it, the process, the client"),
    word(&["hold up", "holds up", "held up", "holding up"], "block, delay"),
    word(&["kept connection", "kept connections", "connecting anew", "anew"], "idle connection; again, re-created"),
    word(&["switch on", "switches on", "switched on"], "enable"),
    word(&["let go", "lets go"], "release"),
    word(&["since 1970"], "Unix time"),
    word(&["wind up", "winds up", "wound up"], "re-arm"),
    but(&["figure", "figures"], &["figures.md"], "metric, number, measurement"),
    word(&["for good"], "permanently"),
    word(&["by chance"], "at random"),
    word(&["under way", "on its way", "on their way"], "in flight, in progress, pending"),
    word(&["give way", "gives way", "gave way"], "is closed, is evicted"),
    word(&["oplog"], "log, logging"),
];

pub fn check(sources: &[Source], documents: &[(String, String)]) -> Vec<Finding> {
    let sources = sources.iter().filter(|source| !EXEMPT.contains(&source.path.as_str()));
    let mut findings: Vec<Finding> = sources.flat_map(in_source).collect();
    let documents = documents.iter().filter(|(path, _)| !EXEMPT.contains(&path.as_str()));
    findings.extend(documents.flat_map(|(path, text)| in_text(path, text)));
    findings
}

fn in_source(source: &Source) -> Vec<Finding> {
    let mut findings = in_text(&source.path, &source::prose(&source.text, &source.code));
    for function in &source.functions {
        let (name, line) = (&function.name, function.first);
        if function.is_test() && name.len() > TEST_NAME_MAX {
            let what = format!("the name of the test `{name}` has {} letters", name.len());
            findings.push(Finding::new(&source.path, line, what, format!("claim the same in {TEST_NAME_MAX} letters")));
        }
        findings.extend(breaches(&name.replace('_', " ")).map(|(form, word)| {
            Finding::new(
                &source.path,
                line,
                format!("`{form}` in the name `{name}` is not the field's word"),
                word.better,
            )
        }));
    }
    for (name, line) in source::type_names(&source.code) {
        findings.extend(breaches(&split_camel_case(&name)).map(|(form, word)| {
            Finding::new(
                &source.path,
                line,
                format!("`{form}` in the name `{name}` is not the field's word"),
                word.better,
            )
        }));
    }
    findings
}

/// A sentence may continue on the next line; the line of a finding is that of its first word.
fn in_text(path: &str, text: &str) -> Vec<Finding> {
    let mut plain = String::with_capacity(text.len());
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim().trim_start_matches(['/', '!', '*', '>']).trim();
        lines.push((plain.len(), index + 1));
        plain.push_str(line);
        plain.push(' ');
    }
    let line_at = |offset: usize| lines[lines.partition_point(|(start, _)| *start <= offset) - 1].1;
    let plain = plain.to_lowercase();
    let mut findings = Vec::new();
    for word in TABLE {
        for (offset, form) in places(&plain, word) {
            let what = format!("`{form}` is not the field's word");
            findings.push(Finding::new(path, line_at(offset), what, word.better));
        }
    }
    findings
}

fn breaches(name: &str) -> impl Iterator<Item = (&'static str, &'static Word)> {
    let name = name.to_lowercase();
    TABLE.iter().filter_map(move |word| places(&name, word).next().map(|(_, form)| (form, word)))
}

/// Where a word is found outside its exceptions.
fn places<'a>(text: &'a str, word: &'a Word) -> impl Iterator<Item = (usize, &'static str)> + 'a {
    let found = word.forms.iter().flat_map(|form| text.match_indices(*form).map(move |(offset, _)| (offset, *form)));
    found.filter(move |(offset, form)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let end = offset + form.len();
        let excepted = |phrase: &&str| {
            text.match_indices(*phrase).any(|(start, _)| start <= *offset && end <= start + phrase.len())
        };
        !text[..*offset].ends_with(is_part) && !text[end..].starts_with(is_part) && !word.except.iter().any(excepted)
    })
}

fn split_camel_case(name: &str) -> String {
    let mut words = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(c);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_table_is_found() {
        for word in TABLE {
            for form in word.forms {
                let text = format!("Before {form} after.");
                assert!(in_text("docs/a.md", &text).iter().any(|finding| finding.help == word.better), "{text}");
            }
            for phrase in word.except {
                let found: Vec<_> = places(phrase, word).collect();
                assert_eq!(found, [], "{phrase}");
            }
        }
    }

    #[test]
    fn strings_comments_names_and_docs_are_checked() {
        let check = |text: &str, expect: &[(usize, &str)]| {
            let findings = check(&[Source::new("a.rs", text)], &[]);
            let found: Vec<_> = findings.iter().map(|f| (f.line, f.what.split('`').nth(1).unwrap_or(""))).collect();
            assert_eq!(found, expect, "{text}");
        };
        check("/// A client is told so.\nfn f() {}\n", &[(1, "told")]);
        check("/// What is read, and is tried\n/// again.\nfn f() {}\n", &[(1, "tried again")]);
        check("fn f() { g(\"nobody listens\"); }\n", &[(1, "nobody")]);
        check("fn f() { g(\"user nobody\"); }\n", &[]);
        check("fn f() { told(); }\n", &[]);
        check("fn who_was_told() {}\n", &[(1, "told")]);
        check("pub struct TroubleKind;\n", &[(1, "trouble")]);
        check("fn f() { let unfolder = \"stands for\"; }\n", &[]);
        let long = format!("#[test]\nfn {}() {{}}\n", "a".repeat(TEST_NAME_MAX + 1));
        check(&long, &[(2, &"a".repeat(TEST_NAME_MAX + 1))]);
        let document = [("docs/a.md".to_string(), "# A\n\nAt once.\n".to_string())];
        let found = super::check(&[], &document);
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [3]);
    }
}
