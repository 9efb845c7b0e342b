//! Rule: every Rust file opens with a `//!` paragraph that says its job.
//! In: the sources. Out: a finding for each file whose first words are code.
//! Bound: it sees that a header is there, not that it is a good one.

use super::{Finding, Source};

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let without = sources.iter().filter(|source| !opens_with_header(&source.text));
    without
        .map(|source| {
            let help = "open it with `//!`: its job, what comes in, what goes out, what bounds it";
            Finding::new(&source.path, 1, "the file has no header", help)
        })
        .collect()
}

fn opens_with_header(text: &str) -> bool {
    let first = text.lines().find(|line| !line.trim().is_empty());
    first.and_then(|line| line.strip_prefix("//!")).is_some_and(|words| !words.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_the_first_thing_in_a_file() {
        let check = |text: &str, expect: bool| assert_eq!(opens_with_header(text), expect, "{text:?}");
        check("//! Job.\nuse a;\n", true);
        check("\n//! Job.\n", true);
        check("//!\nuse a;\n", false);
        check("// Job.\n", false);
        check("use a;\n//! Job.\n", false);
        check("", false);
    }
}
