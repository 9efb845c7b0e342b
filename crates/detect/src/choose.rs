//! Chooses the app's port, and turns files into patterns. In: what was found. Out: choices with their reasons. It decides
//! nothing without evidence: a choice without a reason is left to the user.

use crate::inspect::Found;
use crate::ports::Port;
use crate::{Target, hints};
use std::path::Path;

/// The port on which the app serves, and the reason for the choice.
pub fn app_port(found: &Found) -> Option<(&Port, String)> {
    let reachable = |port: &&Port| port.is_local && !port.on_loopback().is_empty();
    let ports: Vec<&Port> = found.ports.iter().filter(reachable).collect();
    for (name, number) in hints::ports(&found.hints) {
        if let Some(port) = ports.iter().find(|port| port.number == number) {
            return Some((port, format!("the environment has {name}={number}")));
        }
    }
    let serving: Vec<&&Port> = ports.iter().filter(|port| port.server().is_some()).collect();
    match (serving.as_slice(), ports.as_slice()) {
        ([only], _) => Some((only, "the only port that speaks HTTP".into())),
        ([], [only]) => Some((only, "the only port".into())),
        ([], _) => None,
        // A separate port for metrics or debugging is rarely the public one.
        (several, _) => {
            let first = several.iter().min_by_key(|port| (!port.is_public(), port.metrics().is_some(), port.number))?;
            let others = several.len() - 1;
            Some((
                first,
                format!("the likeliest of {} ports that speak HTTP; check the other {others} above", several.len()),
            ))
        }
    }
}

/// A name for the service: that of its script, else that of its program.
pub fn service_name(found: &Found) -> String {
    let script = found.processes.iter().find_map(|(_, runtime)| runtime.as_ref()?.script.clone());
    let of_command = match &found.target {
        Target::Command(command) => command.first().map(|program| program.to_string_lossy().into_owned()),
        _ => None,
    };
    let process = found.processes.first().map(|(process, _)| process.name.clone());
    let name = script.or(of_command).or(process).unwrap_or_default();
    let name = Path::new(&name).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(40).collect();
    if name.is_empty() { "app".into() } else { name }
}

/// A path as a pattern: its wildcard characters are escaped, and a date in the file's name becomes `*`, since tomorrow's file
/// has another date. None if the path is not UTF-8.
pub fn pattern(path: &Path) -> Option<String> {
    let (directory, name) = path.to_str()?.rsplit_once('/')?;
    Some(format!("{}/{}", literal(directory), dateless(&literal(name))))
}

fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '*' | '?' | '[' | ']' => out.extend(['[', c, ']']),
            _ => out.push(c),
        }
    }
    out
}

/// `2026-11-22`, `20261122` and `2026_11_22` become `*`.
fn dateless(name: &str) -> String {
    let bytes = name.as_bytes();
    let digits = |from: usize, count: usize| {
        let range = bytes.get(from..from + count)?;
        range
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| range.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')))
    };
    let is_separator = |at: usize| bytes.get(at).is_some_and(|byte| matches!(byte, b'-' | b'_' | b'.'));
    let end_of_date = |start: usize| {
        let year = digits(start, 4)?;
        let gap = usize::from(is_separator(start + 4));
        let month = digits(start + 4 + gap, 2)?;
        let day = digits(start + 6 + 2 * gap, 2)?;
        let fits = (1990..2100).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        let fits = fits && (gap == 0 || is_separator(start + 7));
        (fits && digits(start + 8 + 2 * gap, 1).is_none()).then_some(start + 8 + 2 * gap)
    };
    let starts = (0..bytes.len()).filter(|start| *start == 0 || digits(start - 1, 1).is_none());
    match starts.filter_map(|start| Some((start, end_of_date(start)?))).next() {
        Some((start, end)) => format!("{}*{}", &name[..start], &name[end..]),
        None => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_literal_except_for_the_date() {
        let check = |path: &str, expect: &str| assert_eq!(pattern(Path::new(path)).as_deref(), Some(expect));
        check("/srv/app.log", "/srv/app.log");
        check("/srv/a[1]*/app?.log", "/srv/a[[]1[]][*]/app[?].log");
        check("/srv/app-2026-11-22.log", "/srv/app-*.log");
        check("/srv/20261122.log", "/srv/*.log");
        check("/srv/2026-11-22/app.log", "/srv/2026-11-22/app.log");
        check("/srv/app-20261199.log", "/srv/app-20261199.log");
        check("/srv/app-202611221.log", "/srv/app-202611221.log");
        check("/srv/app-120261122.log", "/srv/app-120261122.log");
    }
}
