//! The proposal as text. In: `Found`. Out: YAML that is valid as it stands, each conclusion under a `# evidence:` line, each
//! example behind a `#` in the first column and in its place, so that taking the sign away switches it on. Bound: what
//! comes from the app goes through `page.rs`, whether as a comment or as a value.

use crate::files::LogFile;
use crate::format::{Format, Guess};
use crate::look::Found;
use crate::page::{Page, quoted};
use crate::ports::Port;
use crate::service::Service;
use crate::{Target, arguments, choose};
use std::fmt::Write as _;

/// The configuration.
pub fn render(found: &Found) -> String {
    let mut page = Page::default();
    page.note(
        "",
        "A proposal of `outrigger detect`, which switches nothing on. Look through it, decide what is marked so, then",
    );
    page.note(
        "",
        "start with `outrigger run -c FILE`. Lines such as `#  name: value` are examples: without the `#` they are in",
    );
    page.note(
        "",
        "force. `outrigger validate -c FILE` checks the file, and `outrigger explain` lists what else there is.",
    );
    if let Some(example) = found.example() {
        page.note("", example);
    }
    for note in &found.notes {
        page.note("", &format!("note: {note}"));
    }
    let command = found.command();
    app(&mut page, found, command.as_deref());
    logs(&mut page, found, command.is_some());
    metrics(&mut page, found, command.is_some());
    proxy(&mut page, found);
    admin(&mut page, found);
    if !page.is_active {
        page.gap();
        page.evidence("", "nothing was found that could be set; this is the default, so that the file is valid");
        page.line("limits: { memory: 64MiB }");
    }
    page.text
}

impl Found {
    /// The command's arguments, where we started it and it can stand in a file.
    fn command(&self) -> Option<Vec<String>> {
        let Target::Command(command) = &self.target else { return None };
        command.iter().map(|part| part.to_str().map(str::to_string)).collect()
    }

    fn example(&self) -> Option<&'static str> {
        match self.target {
            Target::Network => Some("Looked at this network namespace; `--pid N` looks at one app's files as well."),
            Target::Process(_) => {
                Some("Looked at a process that runs already; with `-- command` Outrigger would start the app itself.")
            }
            Target::Command(_) => None,
        }
    }
}

fn app(page: &mut Page, found: &Found, command: Option<&[String]>) {
    page.gap();
    for (process, runtime) in found.processes.iter().take(SHOWN_MAX) {
        let what = runtime.as_ref().map_or("of no runtime that is known here".into(), |runtime| {
            format!("{}: {}", runtime.name, runtime.evidence)
        });
        page.note("", &format!("process: {} (pid {}), {what}", process.name, process.pid));
    }
    for port in found.ports.iter().take(SHOWN_MAX) {
        page.note("", &format!("port: {}", describe(port)));
    }
    if found.processes.len().max(found.ports.len()) > SHOWN_MAX {
        let (processes, ports) = (found.processes.len(), found.ports.len());
        page.note("", &format!("of {processes} processes and {ports} ports the first {SHOWN_MAX} are shown"));
    }
    for hint in &found.hints {
        page.note(
            "",
            &match &hint.value {
                Some(value) => format!("environment: {}={value}", hint.name),
                None => format!("environment: {} is set", hint.name),
            },
        );
    }
    let port = choose::app_port(found);
    if command.is_none() && port.is_none() {
        page.example("", &["app:", "  # decide: the port on which the app serves", "  port: 8080"]);
        return;
    }
    page.line("app:");
    if let Some(command) = command {
        let (cells, hidden) = arguments::cells(command);
        page.evidence("  ", "it is the command that was given");
        if !hidden.is_empty() {
            page.note(
                "  ",
                &format!("decide: arguments that looked like secrets are to come from: {}", hidden.join(", ")),
            );
        }
        if let Some(advice) = &found.background {
            page.note(
                "  ",
                "decide: the command ends and leaves its work to a process in the background, so that Outrigger",
            );
            page.note("  ", &format!("would end with it at once; {advice}"));
        }
        page.line(&format!("  command: [{}]", cells.join(", ")));
    }
    match port {
        Some((port, reason)) => {
            page.evidence("  ", &format!("{}; {reason}", describe(port)));
            page.line(&format!("  port: {}", port.number));
        }
        None => page.example("  ", &["# decide: the port on which the app serves", "port: 8080"]),
    }
    let stop = found.processes.iter().find_map(|(_, runtime)| Some((runtime.as_ref()?.name, runtime.as_ref()?.stop?)));
    if let (Some((name, signal)), Some(_)) = (stop, command) {
        page.note("  ", &format!("decide: {name} ends its work in good order on {signal}"));
        page.example("  ", &[&format!("stop: {{ signal: {signal} }}")]);
    }
}

/// Processes and ports that are named one by one.
const SHOWN_MAX: usize = 40;

fn logs(page: &mut Page, found: &Found, is_wrapped: bool) {
    page.gap();
    for file in found.files.iter().filter(|file| !file.is_visible) {
        let (path, owner) = (file.path.to_string_lossy(), &file.owner);
        page.note(
            "",
            &format!("note: {owner} writes {path}, which is not there for us: share its folder, then add it"),
        );
    }
    let sources = log_sources(found, is_wrapped);
    if sources.is_empty() {
        page.note("", "no log file was open for writing. Where the app writes one:");
        page.example("", &["logs:", "  sources:", "    files: { file: { include: [\"/var/log/app/*.log\"] } }"]);
        return;
    }
    page.line("logs:");
    page.line("  sources:");
    for (line, evidence) in sources {
        evidence.iter().for_each(|evidence| page.evidence("    ", evidence));
        page.line(&line);
    }
    for advice in unparsed(found.files.iter().map(|file| &file.guess).chain(&found.output)) {
        page.note("    ", advice);
    }
    if choose::app_port(found).is_some_and(|(port, _)| port.server().is_some()) {
        page.note("    ", "decide: with the proxy below, a record for each request");
        page.example("    ", &["access: { proxy: {} }"]);
    }
    page.note("  ", "decide: where the lines go. Until a sink is named, they are read and go nowhere.");
    page.line("  sinks:");
    let service = choose::service_name(found);
    page.example(
        "    ",
        &[
            &format!("loki: {{ loki: {{ url: \"http://loki:3100\", labels: {{ service: {} }} }} }}", quoted(&service)),
            "lines: { http: { url: \"http://collector:8080/lines\" } }",
            &format!("archive: {{ file: {{ path: \"/archive/{service}.log\" }} }}"),
        ],
    );
}

/// Each source as its line, and the evidence for it.
fn log_sources(found: &Found, is_wrapped: bool) -> Vec<(String, Vec<String>)> {
    let mut sources = Vec::new();
    if is_wrapped {
        let guess = found.output.as_ref();
        let seen = guess.map_or("was not seen".into(), told);
        let evidence = format!("Outrigger starts the app, and can read its stdout and stderr; its output: {seen}");
        sources.push((format!("    app: {{ stdio: {{}}{} }}", stages_of(guess)), vec![evidence]));
    }
    let visible = found.files.iter().filter(|file| file.is_visible);
    let (json, other): (Vec<&LogFile>, Vec<&LogFile>) = visible.partition(|file| file.guess.format == Format::Json);
    for (name, files) in [("files", other), ("json-files", json)] {
        let mut patterns: Vec<String> = files.iter().filter_map(|file| choose::pattern(&file.path)).collect();
        patterns.dedup();
        let cells: Vec<String> = patterns.iter().map(|pattern| quoted(pattern)).collect();
        if cells.is_empty() {
            continue;
        }
        let stages = stages_of(files.first().map(|file| &file.guess));
        let evidence = files.iter().map(|file| describe_file(file)).collect();
        sources.push((format!("    {name}: {{ file: {{ include: [{}] }}{stages} }}", cells.join(", ")), evidence));
    }
    sources
}

/// What the product cannot read apart today, said instead of a stage.
fn unparsed<'a>(guesses: impl Iterator<Item = &'a Guess>) -> Vec<&'static str> {
    let mut advice: Vec<&'static str> = guesses
        .flat_map(|guess| {
            let format = match guess.format {
                Format::Logfmt => Some("note: no stage reads logfmt yet; such lines are shipped as they are"),
                Format::Common | Format::Combined => {
                    Some("note: no stage reads access logs yet; such lines are shipped as they are")
                }
                _ => None,
            };
            let trace = (guess.continued > 0)
                .then_some("note: no stage joins stack traces and other lines that go on yet; each line is a record");
            format.into_iter().chain(trace)
        })
        .collect();
    advice.sort_unstable();
    advice.dedup();
    advice
}

fn stages_of(guess: Option<&Guess>) -> &'static str {
    match guess.map(|guess| guess.format) {
        Some(Format::Json) => ", stages: [ { parse: { json: {} } } ]",
        _ => "",
    }
}

fn describe_file(file: &LogFile) -> String {
    let (path, size) = (file.path.to_string_lossy(), file.size);
    let start = if size > LARGE { "; with `start: end` what is in it already is left out" } else { "" };
    let (owner, pid, descriptor) = (&file.owner, file.pid, file.descriptor);
    format!("{owner} (pid {pid}, descriptor {descriptor}) writes {path}, {size} bytes: {}{start}", told(&file.guess))
}

/// From here on it is said that a file may be read from its end.
const LARGE: u64 = 1 << 20;

fn told(guess: &Guess) -> String {
    let mut text = match guess.format {
        Format::Empty => return "nothing yet".into(),
        Format::Binary => return "no text".into(),
        Format::Plain => format!("plain text in {} lines", guess.lines),
        format => format!("{} in {} of {} lines", format.name(), guess.fit, guess.lines),
    };
    if guess.continued > 0 {
        let trace = guess.trace.map(|whose| format!(", with stack traces of {whose}")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(text, "; {} of them continue another{trace}", guess.continued);
    }
    text
}

fn metrics(page: &mut Page, found: &Found, is_wrapped: bool) {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut doubtful: Vec<(String, String)> = Vec::new();
    let app_port = choose::app_port(found).map(|(port, _)| port.number);
    let pages = found.ports.iter().filter_map(|port| Some((port, port.server()?)));
    let mut is_first = true;
    for (port, server) in pages {
        let is_app = Some(port.number) == app_port || app_port.is_none() && is_first;
        let name = if is_app { "app".to_string() } else { format!("app-{}", port.number) };
        let source = |path: &str| format!("    {name}: {{ scrape: {{ url: \"http://{}{path}\" }} }}", server.at);
        if let Some(found) = &server.page {
            is_first = false;
            let kind = if found.content_type.is_empty() { "no content type" } else { &found.content_type };
            let evidence =
                format!("GET http://{}{} answered 200, {kind}, and its lines are samples", server.at, found.path);
            if found.is_openmetrics {
                doubtful.push((format!("{evidence}; OpenMetrics is not read yet"), source(found.path)));
            } else {
                lines.push((evidence, source(found.path)));
            }
        } else if let Some(path) = server.locked {
            let evidence = format!("GET http://{}{path} asks for credentials; they go under client.auth", server.at);
            doubtful.push((evidence, source(path)));
        }
    }
    if is_wrapped {
        let evidence = "Outrigger starts the app, and can read its CPU time and memory from /proc".to_string();
        lines.push((evidence, "    process: { process: {} }".into()));
    }
    page.gap();
    if lines.is_empty() {
        page.note("", "no page of metrics was found. Where the app has one:");
        for (evidence, _) in &doubtful {
            page.note("", &format!("note: {evidence}"));
        }
        page.example(
            "",
            &["metrics:", "  sources:", "    app: { scrape: { url: \"http://127.0.0.1:8080/metrics\" } }"],
        );
        return;
    }
    page.line("metrics:");
    page.line("  sources:");
    for (evidence, line) in &lines {
        page.evidence("    ", evidence);
        page.line(line);
    }
    for (evidence, line) in &doubtful {
        page.note("    ", &format!("decide: {evidence}"));
        page.example("", &[line]);
    }
    page.note("  ", "decide: where samples go: a page for others to read, or a receiver");
    page.line("  sinks:");
    let listen = free(found, 9464);
    page.example(
        "    ",
        &[
            &format!("page: {{ prometheus: {{ listen: \"127.0.0.1:{listen}\" }} }}"),
            "central: { remote_write: { url: \"http://prometheus:9090/api/v1/write\" } }",
        ],
    );
}

fn proxy(page: &mut Page, found: &Found) {
    let Some((port, _)) = choose::app_port(found) else { return };
    let Some(server) = port.server() else { return };
    page.gap();
    let name = server.name.as_deref().map(|name| format!(", Server: {name}")).unwrap_or_default();
    page.note(
        "",
        &format!(
            "decide: port {} speaks HTTP (status {}{name}), so a proxy could stand before it:",
            port.number, server.status
        ),
    );
    let listen = free(found, 8443);
    page.example(
        "",
        &["proxy:", "  listeners:", &format!("    inbound: {{ listen: \"0.0.0.0:{listen}\", cluster: app }}")],
    );
}

fn admin(page: &mut Page, found: &Found) {
    page.gap();
    page.note("", "decide: where Outrigger shows itself. Nothing listens unless it is named.");
    let (listen, probes) = (free(found, 9900), free(found, 9901));
    page.example("", &[&format!("admin: {{ listen: \"127.0.0.1:{listen}\", probes_listen: \"0.0.0.0:{probes}\" }}")]);
}

/// The wanted port, or the next one above it that nobody was seen on.
fn free(found: &Found, wanted: u16) -> u16 {
    (wanted..=u16::MAX).find(|number| found.ports.iter().all(|port| port.number != *number)).unwrap_or(wanted)
}

fn describe(port: &Port) -> String {
    let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
    let owner = match port.owners.first() {
        Some((pid, name)) => format!("{name} (pid {pid})"),
        None => "somebody".into(),
    };
    let what = match &port.service {
        Service::NotProbed(reason) => format!("it was not asked: {reason}"),
        Service::Refused => "it took no connection".into(),
        Service::Silent => "it gave no whole answer to GET".into(),
        Service::Other(what) => format!("it speaks {what}"),
        Service::Http(server) => {
            let name = server.name.as_deref().map(|name| format!(", Server: {name}")).unwrap_or_default();
            format!("it speaks HTTP (status {}{name})", server.status)
        }
    };
    format!("{owner} listens on port {} of {}; {what}", port.number, addresses.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hints::Hint;
    use crate::process::Process;
    use crate::runtime::Runtime;
    use crate::service::{Page as Metrics, Server};

    fn found(target: Target) -> Found {
        Found {
            target,
            processes: Vec::new(),
            ports: Vec::new(),
            files: Vec::new(),
            background: None,
            output: None,
            hints: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn port(number: u16, name: &str, page: Option<&'static str>) -> Port {
        let page = page.map(|path| Metrics { path, content_type: "text/plain".into(), is_openmetrics: false });
        let at = ([127, 0, 0, 1], number).into();
        Port {
            number,
            addresses: vec![[127, 0, 0, 1].into()],
            owners: vec![(7, name.into())],
            is_here: true,
            service: Service::Http(Server { at, status: 404, name: Some(name.into()), page, locked: None }),
        }
    }

    /// Lines that are in force, and above each leaf of them its evidence.
    fn assert_rendered(text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for (place, line) in lines.iter().enumerate() {
            let is_leaf = !line.trim().is_empty() && !line.trim_start().starts_with('#') && !line.ends_with(':');
            let mut above = lines[..place].iter().rev().take_while(|above| above.trim_start().starts_with('#'));
            assert!(
                !is_leaf || above.any(|above| above.contains("# evidence: ")),
                "{line} has no evidence in:\n{text}"
            );
        }
    }

    fn in_force(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).collect()
    }

    #[test]
    fn what_is_found_is_in_force_with_its_evidence_and_the_rest_is_not() {
        let mut wrapped = found(Target::Command(vec!["./orders".into(), "-v".into()]));
        wrapped.ports = vec![port(8080, "orders", Some("/metrics")), port(9000, "orders", None)];
        wrapped.output = Some(crate::format::sniff(b"{\"a\":1}\n", false));
        wrapped.hints = vec![Hint { name: "PORT".into(), value: Some("8080".into()) }];
        let text = render(&wrapped);
        assert_rendered(&text);
        let expect = [
            "app:",
            "  command: [\"./orders\", \"-v\"]",
            "  port: 8080",
            "logs:",
            "  sources:",
            "    app: { stdio: {}, stages: [ { parse: { json: {} } } ] }",
            "  sinks:",
            "metrics:",
            "  sources:",
            "    app: { scrape: { url: \"http://127.0.0.1:8080/metrics\" } }",
            "    process: { process: {} }",
            "  sinks:",
        ];
        assert_eq!(in_force(&text), expect, "{text}");
        for target in [Target::Network, Target::Process(7)] {
            let nothing = render(&found(target));
            assert_rendered(&nothing);
            assert_eq!(in_force(&nothing), ["limits: { memory: 64MiB }"], "{nothing}");
        }
    }

    #[test]
    fn of_several_ports_the_apps_is_chosen_with_a_reason() {
        let check = |ports: Vec<Port>, hint: Option<u16>, expect: Option<u16>| {
            let mut found = found(Target::Process(7));
            found.ports = ports;
            found.hints =
                hint.map(|port| Hint { name: "PORT".into(), value: Some(port.to_string()) }).into_iter().collect();
            assert_eq!(choose::app_port(&found).map(|(port, _)| port.number), expect);
        };
        let silent = |number| Port { service: Service::Silent, ..port(number, "x", None) };
        let public = |number| Port { addresses: vec![[0, 0, 0, 0].into()], ..port(number, "x", None) };
        check(vec![port(81, "x", None), port(82, "x", None)], Some(82), Some(82));
        check(vec![port(81, "x", None), port(82, "x", None)], Some(99), Some(81));
        check(vec![port(81, "x", Some("/metrics")), port(82, "x", None)], None, Some(82));
        check(vec![port(81, "x", None), public(82)], None, Some(82));
        check(vec![silent(81), port(82, "x", None)], None, Some(82));
        check(vec![silent(81)], None, Some(81));
        check(vec![silent(81), silent(82)], None, None);
        check(vec![Port { is_here: false, ..port(81, "x", None) }], None, None);
    }

    #[test]
    fn nothing_from_the_app_leaves_its_comment_or_its_quotes() {
        let evil = "x\nadmin: { listen: \"0.0.0.0:1\" }\u{2028}y\u{85}";
        let mut hostile = found(Target::Command(vec![evil.into()]));
        hostile.ports = vec![port(80, evil, None)];
        let process = Process { pid: 7, parent: 1, group: 7, name: evil.into(), started: 1 };
        hostile.processes =
            vec![(process, Some(Runtime { name: "Go", evidence: evil.into(), script: None, stop: None }))];
        hostile.notes = vec![evil.into()];
        let text = render(&hostile);
        assert_rendered(&text);
        assert!(!text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{2028}')), "{text}");
        assert!(in_force(&text).iter().all(|line| !line.starts_with("admin")), "{text}");
    }

    #[test]
    fn a_port_in_an_example_is_one_that_nobody_was_seen_on() {
        let mut busy = found(Target::Network);
        busy.ports = vec![port(9900, "x", None), port(9901, "x", None)];
        assert_eq!((free(&busy, 9900), free(&busy, 9901), free(&busy, 8443)), (9902, 9902, 8443));
    }
}
