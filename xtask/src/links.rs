//! Checks that relative links in Markdown files resolve.
//! In: every *.md that git tracks. Out: `path:line: what. help: next step` for each link to a missing file or heading.
//! Bound: URLs are not requested, and text in code is not a link.

use crate::shell::{self, Outcome};
use crate::tidy::{Finding, tracked_files};
use std::fs;
use std::path::{Component, Path, PathBuf};

pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.first() {
        return Err(format!("the check of links takes no argument, but was given `{unknown}`"));
    }
    let root = shell::root();
    let files = tracked_files(&root)?;
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let exists = |path: &str| root.join(path).exists();
    let pages: Vec<&String> = files.iter().filter(|path| path.ends_with(".md")).collect();
    let findings: Vec<Finding> = pages.iter().flat_map(|page| check(page, &read(page), &exists, &read)).collect();
    findings.iter().for_each(|finding| println!("{finding}"));
    match findings.len() {
        0 => {
            println!("{} pages, every link resolves", pages.len());
            Ok(())
        }
        broken => Err(format!("{broken} broken links")),
    }
}

fn check(page: &str, text: &str, exists: &dyn Fn(&str) -> bool, read: &dyn Fn(&str) -> String) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, link) in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, heading) = link.split_once('#').unwrap_or((link.as_str(), ""));
        let target = match file {
            "" => page.to_string(),
            file => resolve(page, file),
        };
        if !exists(&target) {
            findings.push(Finding::new(
                page,
                line,
                format!("`{link}` points to no file"),
                "use the file's current name",
            ));
        } else if !heading.is_empty() && target.ends_with(".md") && !anchors(&read(&target)).any(|name| name == heading)
        {
            findings.push(Finding::new(
                page,
                line,
                format!("`{link}` points to no heading of {target}"),
                "use a heading of that page",
            ));
        }
    }
    findings
}

/// A path from the root of the repository; a target that starts with `/` is already relative to the root.
fn resolve(page: &str, file: &str) -> String {
    let joined = match file.strip_prefix('/') {
        Some(from_root) => PathBuf::from(from_root),
        None => Path::new(page).parent().unwrap_or(Path::new("")).join(file),
    };
    let mut plain = PathBuf::new();
    for part in joined.components() {
        match part {
            // A path out of the repository keeps its `..`, so that no file is found.
            Component::ParentDir if !plain.pop() => plain.push(".."),
            Component::ParentDir | Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain.to_string_lossy().into_owned()
}

/// Targets of `[words](target)` and `[name]: target`, with their lines, outside code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        if let Some(target) = definition(&line) {
            found.push((number, target));
        }
        for (offset, _) in line.match_indices("](") {
            let rest = &line[offset + 2..];
            let Some(end) = rest.find(')') else { continue };
            found.extend(target(&rest[..end]).map(|target| (number, target)));
        }
    }
    found
}

fn definition(line: &str) -> Option<String> {
    let (name, rest) = line.trim_start().strip_prefix('[')?.split_once("]: ")?;
    (!name.contains(']') && !name.starts_with('^')).then(|| target(rest)).flatten()
}

/// The target without its title and angle brackets.
fn target(inside: &str) -> Option<String> {
    let word = inside.split_whitespace().next()?;
    Some(word.trim_start_matches('<').trim_end_matches('>').to_string())
}

/// Lines outside fenced blocks, with inline code blanked.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut fence: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        match fence {
            Some(mark) if start.starts_with(mark) => fence = None,
            Some(_) => {}
            None => match ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark)) {
                Some(mark) => fence = Some(mark),
                None => lines.push((index + 1, without_code(line))),
            },
        }
    }
    lines
}

fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    let paired = parts.len() - (parts.len() + 1) % 2;
    let kept = parts.iter().enumerate().map(|(index, part)| match index % 2 == 1 && index < paired {
        true => "",
        false => part,
    });
    kept.collect::<Vec<_>>().join("`")
}

/// The anchors of a page's headings, as code hosts generate them.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let mut fenced = false;
    let headings: Vec<String> = text
        .lines()
        .filter(|line| {
            fenced ^= line.trim_start().starts_with("```");
            !fenced && line.starts_with('#')
        })
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect();
    headings.into_iter()
}

#[cfg(test)]
mod tests {
    #[test]
    fn links_resolve_to_files_and_headings() {
        let exists = |path: &str| ["README.md", "docs", "docs/a.md", "docs/b c.md", "Cargo.toml"].contains(&path);
        let read = |_: &str| "# First things\n\n## What `it` is, today\n```sh\n# no heading\n```\n".to_string();
        let check = |text: &str, expect: &[&str]| {
            let seen = super::check("docs/a.md", text, &exists, &read);
            let seen: Vec<_> = seen.iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect();
            assert_eq!(seen, expect, "{text}");
        };
        check(
            "[a](../README.md) [b](a.md) [c](/Cargo.toml) [d](..) ![e](./a.md \"title\")",
            &["1: `..` points to no file"],
        );
        check(
            "[a](b.md)\n\n[c](../../etc/passwd)",
            &["1: `b.md` points to no file", "3: `../../etc/passwd` points to no file"],
        );
        check("[a](https://example.org/x.md) [b](mailto:a@example.org)", &[]);
        check("`[a](b.md)` and\n```\n[a](b.md)\n```\n~~~\n[a](b.md)\n~~~", &[]);
        check("a ` alone and [a](b.md)", &["1: `b.md` points to no file"]);
        check("[a](#first-things) [b](../README.md#what-it-is-today)", &[]);
        check("[a](#no-heading)", &["1: `#no-heading` points to no heading of docs/a.md"]);
        check("[name]: b.md\n[^note]: b.md", &["1: `b.md` points to no file"]);
    }
}
